// The whole sequence forward: input projection in chunks of steps, then the time loop, cell by template.
#pragma once

#include "../dispatch.h"
#include "cells.h"
#include "gemm.h"
#include "rows.h"

namespace {

// Rows projected at once: enough for whole tiles and for the weights to be read from L2 once for many rows, few enough
// for the projected rows to stay in cache until the recurrence reads them.
constexpr int64_t kProjectedRows = 96;
constexpr int64_t kProjectedBytes = 192 * 1024;

template <class Cell, class T>
struct PackedWeights {
  static constexpr int kL = kLanes<T>;
  T* weight_ih;              // pack_by_unit
  T* stages[kStages<Cell>];  // the same of the weights of each stage
  T* bias;        // [block][G][lane] what the projection starts from: both biases, or b_ih of the gate kept apart
  T* bias_apart;  // [block][lane] b_hh of the gate kept apart

  static HOTLOOP_INLINE PackedWeights carve(Carver& carver, const Sizes& sizes) {
    const int64_t blocks = blocks_of(sizes.hidden, kL), vectors = blocks * Cell::kGates;
    PackedWeights packed;
    packed.weight_ih = carver.take<T>(vectors * sizes.input * kL);
    each_stage<Cell>([&](auto stage) HOTLOOP_LAMBDA {
      using S = decltype(stage);
      const int64_t of_stage = blocks_of(sizes.units<S>(), kL) * S::kGates * sizes.depth<S>() * kL;
      packed.stages[S::kIndex] = carver.take<T>(of_stage);
    });
    packed.bias = carver.take<T>(vectors * kL);
    packed.bias_apart = carver.take<T>(Cell::List::apart() < 0 ? 0 : blocks * kL);
    return packed;
  }

  void fill(const hotloop::ForwardCall& args) const {
    const Sizes sizes = sizes_of<Cell>(args);
    const int64_t H = sizes.hidden;
    const auto parameter = [&](int index) { return static_cast<const T*>(args.parameters[index]); };
    pack_by_unit<Cell::kGates>(parameter(HOTLOOP_WEIGHT_IH), H, sizes.input, weight_ih);
    each_stage<Cell>([&](auto stage) {
      using S = decltype(stage);
      const int64_t units = sizes.units<S>(), depth = sizes.depth<S>();
      pack_by_unit<S::kGates>(parameter(S::kParameter) + S::kFirst * units * depth, units, depth, stages[S::kIndex]);
    });
    const T *const bias_ih = parameter(HOTLOOP_BIAS_IH), *const bias_hh = parameter(HOTLOOP_BIAS_HH);
    for (int64_t unit = 0; unit < blocks_of(H, kL) * kL; ++unit) {
      const int64_t block = unit / kL, lane = unit % kL;
      for (int g = 0; g < Cell::kGates; ++g) {
        const T of_x = bias_ih && unit < H ? bias_ih[g * H + unit] : 0;
        const T of_h = bias_hh && unit < H ? bias_hh[g * H + unit] : 0;
        bias[(block * Cell::kGates + g) * kL + lane] = g == Cell::List::apart() ? of_x : of_x + of_h;
        if (g == Cell::List::apart()) bias_apart[unit] = of_h;
      }
    }
  }
};

// Where one step of the recurrence reads and writes.
template <class T>
struct ForwardStep {
  StepRows<T> projected;  // G*H
  StepRows<T> gates;      // S*H, or none; never none for a cell whose later stages read what the earlier ones save
  T* hidden;              // [B, H] between two stages
  const T* masked;        // [B, P] h_prev times recurrent_mask, or none
  StepRows<const T> h_prev, c_prev;
  StepRows<T> h, c;
  StepRows<T> later_gates;         // where the projection of a later step will be written, or none
  StepRows<const uint8_t> resets;  // where an episode begins, if one does among these rows
  const Episodes<T>* episodes;

  HOTLOOP_INLINE bool begins(int64_t row) const { return resets.start != nullptr && *resets[row] != 0; }
  HOTLOOP_INLINE const T* h_before(int64_t row) const { return begins(row) ? episodes->h[row] : h_prev[row]; }
  HOTLOOP_INLINE const T* c_before(int64_t row) const { return begins(row) ? episodes->c[row] : c_prev[row]; }

  // Asks for its lines of a row, units from `unit` on: they were written long ago, if ever, and come from memory. Not for
  // those of h: the output may lie on pages that the system has not made yet, where asking took RNN T1000 B1 H128 twice
  // the time.
  template <class Cell, int NB>
  HOTLOOP_INLINE void ask(int64_t H, int64_t row, int64_t unit) const {
    if (later_gates.start == nullptr) return;
    for (int b = 0; b < NB; ++b) {
      for (int s = 0; s < kSaved<Cell>; ++s) prefetch(later_gates[row] + s * H + unit + b * kLanes<T>);
    }
  }
};

// A stage of a step, for some rows and units.
template <class Cell, class S, int MR, int NB, class T>
HOTLOOP_NOINLINE void forward_tile(const ForwardStep<T>& step, const PackedWeights<Cell, T>& packed, const Sizes& sizes,
                                   int64_t row, int64_t block) {
  constexpr int G = S::kGates, kL = kLanes<T>, kBefore = S::saved_before();
  constexpr bool kOfH = S::kOperand == Operand::kH;
  const int64_t H = sizes.hidden, units = sizes.units<S>(), depth = sizes.depth<S>();
  Vector<T> acc[MR][NB * G];
  const T *h_prev[MR], *operand[MR];
  for (int r = 0; r < MR; ++r) {
    if constexpr (kOfH || (S::kForwardReads & kReadsHPrev) != 0) h_prev[r] = step.h_before(row + r);
    operand[r] = !kOfH ? step.hidden + (row + r) * H : step.masked ? step.masked + (row + r) * depth : h_prev[r];
  }
  for (int b = 0; b < NB; ++b) {
    const int64_t unit = (block + b) * kL;
    const Part<T> part(units - unit);
    for (int r = 0; r < MR; ++r) {
      const T* const projected = step.projected[row + r] + unit;
      for (int g = 0; g < G; ++g) {
        Vector<T>& start = acc[r][b * G + g];
        if constexpr (S::kOfOutput) {
          start = Vector<T>{};
        } else {
          start = g == S::kApart ? load(packed.bias_apart + unit) : part.load(projected + (S::kFirst + g) * H);
        }
      }
    }
  }
  multiply<MR, NB, G>(acc, operand, packed.stages[S::kIndex] + block * depth * G * kL, depth * G * kL, depth,
                      [&](int r) HOTLOOP_LAMBDA {
                        if constexpr (S::asks()) step.template ask<Cell, NB>(H, row + r, block * kL);
                      });
  for (int b = 0; b < NB; ++b) {
    const int64_t unit = (block + b) * kL;
    const Part<T> part(units - unit);
    for (int r = 0; r < MR; ++r) {
      ForwardUnit<Vector<T>> now;
      for (int g = 0; g < G; ++g) now.a[g] = acc[r][b * G + g];
      if constexpr ((S::kForwardReads & kReadsC) != 0) now.c_prev = part.load(step.c_before(row + r) + unit);
      if constexpr ((S::kForwardReads & kReadsHPrev) != 0) now.h_prev = part.load(h_prev[r] + unit);
      if constexpr ((S::kForwardReads & kReadsOperand) != 0) now.operand = part.load(operand[r] + unit);
      if constexpr (S::kApart >= 0) {
        now.x_apart = part.load(step.projected[row + r] + (S::kFirst + S::kApart) * H + unit);
      }
      if constexpr ((S::kForwardReads & kReadsSaved) != 0) {
        for (int s = 0; s < kBefore; ++s) now.saved[s] = part.load(step.gates[row + r] + s * H + unit);
      }
      S::forward(now);
      part.store((S::kLast ? step.h[row + r] : step.hidden + (row + r) * H) + unit, now.out);
      if constexpr ((S::kForwardReads & kReadsC) != 0) part.store(step.c[row + r] + unit, now.c);
      if constexpr (S::kSaves > 0) {
        if (step.gates.start != nullptr) {
          T* const gates = step.gates[row + r] + unit;
          for (int s = kBefore; s < kBefore + S::kSaves; ++s) part.store(gates + s * H, now.saved[s]);
        }
      }
    }
  }
}

// rows(to) = bias + rows(from) W': gates of `from`'s rows in natural order.
template <class Cell, int MR, int NB, class T>
HOTLOOP_NOINLINE void project_tile(const ChunkRows<const T>& from, const ChunkRows<T>& to,
                                   const PackedWeights<Cell, T>& packed, int64_t I, int64_t H, int64_t row,
                                   int64_t block) {
  constexpr int G = Cell::kGates, kL = kLanes<T>;
  Vector<T> acc[MR][NB * G];
  const T* x[MR];
  for (int r = 0; r < MR; ++r) {
    x[r] = from.at(row + r);
    for (int v = 0; v < NB * G; ++v) acc[r][v] = load(packed.bias + (block * G + v) * kL);
  }
  multiply<MR, NB, G>(acc, x, packed.weight_ih + block * I * G * kL, I * G * kL, I);
  for (int r = 0; r < MR; ++r) {
    T* const result = to.at(row + r);
    for (int b = 0; b < NB; ++b) {
      const int64_t unit = (block + b) * kL;
      const Part<T> part(H - unit);
      for (int g = 0; g < G; ++g) part.store(result + g * H + unit, acc[r][b * G + g]);
    }
  }
}

template <class Cell, class T>
struct ForwardRows;

template <class Cell, class T>
struct ForwardRun {
  const hotloop::ForwardCall& args;
  const Sizes sizes;
  PackedWeights<Cell, T> packed{};
  Rows rows_of;
  // Places, [B]: of h and of c as states, and of what is the same for all rows.
  int64_t *of_h_n = nullptr, *of_c_n = nullptr, *nowhere = nullptr;
  int64_t *of_x = nullptr, *of_output = nullptr, *of_gates = nullptr, *of_c = nullptr, *of_resets = nullptr,
          *of_projected = nullptr;
  T* zeros = nullptr;      // of a state
  T* projected = nullptr;  // [shares][chunk rows][G*H], where projections are not kept
  int64_t projected_size = 0;
  T *hidden = nullptr, *masked = nullptr;  // [shares][rows][H] of a cell of several stages; [shares][rows][P]
  int64_t hidden_size = 0, masked_size = 0;
  int64_t chunk;  // steps projected at once

  ForwardRun(const hotloop::ForwardCall& args, int64_t chunk)
      : args(args), sizes(sizes_of<Cell>(args)), rows_of(args), chunk(chunk) {}

  // In training the projection goes where the gates will be (RNN: where h will be), and is overwritten by them.
  static HOTLOOP_INLINE bool keeps_projection(const hotloop::ForwardCall& args) {
    return kSaved<Cell> == 0 || args.gates != nullptr;
  }

  static int64_t chunk_steps(const hotloop::ForwardCall& args, int64_t rows) {
    const int64_t row_bytes = Cell::kGates * args.hidden_size * (int64_t)sizeof(T);
    int64_t most = kProjectedBytes / row_bytes;
    if (most > kProjectedRows) most = kProjectedRows;
    const int64_t steps = rows > 0 ? most / rows : 1;
    return steps < 1 ? 1 : steps > args.seq_len ? args.seq_len : steps;
  }

  // Rows projected at once in any call of at most so many steps and rows.
  static int64_t most_projected(const hotloop::ForwardCall& args, int64_t rows) {
    const int64_t most = kProjectedBytes / (Cell::kGates * args.hidden_size * (int64_t)sizeof(T));
    const int64_t all = args.seq_len * rows;
    const int64_t fit = most > kProjectedRows ? kProjectedRows : most;
    const int64_t now = fit < all ? fit : all;
    return now > rows ? now : rows;
  }

  // Points every array into the workspace; with a null workspace it finds the size that is enough for any smaller call too.
  static ForwardRun carve(const hotloop::ForwardCall& args, void* workspace, int shares, int64_t& bytes) {
    Carver carver(workspace);
    const int64_t B = args.batch_size, rows = (B + shares - 1) / shares;
    ForwardRun run(args, chunk_steps(args, rows));
    run.rows_of.carve(carver);
    int64_t* places = carver.take<int64_t>((Cell::kProjects ? 9 : 8) * B);
    const auto table = [&places, B] { return places += B, places - B; };
    run.of_h_n = table();
    run.of_c_n = Cell::kProjects ? table() : run.of_h_n;
    run.nowhere = table();
    run.of_x = table();
    run.of_output = table();
    run.of_gates = table();
    run.of_c = table();
    run.of_resets = table();
    run.of_projected = table();
    run.zeros = carver.take<T>(run.zeros_size());
    if (args.packed == nullptr) {
      run.packed = PackedWeights<Cell, T>::carve(carver, run.sizes);
    } else {
      Carver elsewhere(static_cast<const char*>(args.packed) + hotloop::kPackedHeaderBytes);
      run.packed = PackedWeights<Cell, T>::carve(elsewhere, run.sizes);
    }
    if (!keeps_projection(args)) {
      const int64_t most = workspace == nullptr ? most_projected(args, rows) : run.chunk * rows;
      run.projected_size = (most * Cell::kGates * args.hidden_size + 15) / 16 * 16;
      run.projected = carver.take<T>(run.projected_size * shares);
    }
    if (kStages<Cell> > 1) {
      run.hidden_size = (rows * args.hidden_size + 15) / 16 * 16;
      run.hidden = carver.take<T>(run.hidden_size * shares);
    }
    if (args.recurrent_mask) {
      run.masked_size = (rows * run.sizes.output + 15) / 16 * 16;
      run.masked = carver.take<T>(run.masked_size * shares);
    }
    bytes = carver.bytes();
    return run;
  }

  int64_t zeros_size() const { return sizes.output > sizes.hidden ? sizes.output : sizes.hidden; }

  void start(int shares) const {
    const int64_t B = args.batch_size, H = args.hidden_size, S = kSaved<Cell>;
    if (args.packed == nullptr) packed.fill(args);
    __builtin_memset(zeros, 0, zeros_size() * sizeof(T));
    rows_of.sort();
    rows_of.place_states(sizes.output, shares, of_h_n);
    if (Cell::kProjects) rows_of.place_states(H, shares, of_c_n);
    rows_of.place(args.x_stride_t, args.x_stride_b, shares, of_x);
    rows_of.place(args.output_stride_t, args.output_stride_b, shares, of_output);
    if (args.gates) rows_of.place((rows_of.flat() ? 1 : B) * S * H, S * H, shares, of_gates);
    if (args.c) rows_of.place(args.c_stride_t, args.c_stride_b, shares, of_c);
    if (args.resets) rows_of.place(args.resets_stride_t, args.resets_stride_b, shares, of_resets);
    for (int64_t row = 0; row < B; ++row) {
      nowhere[row] = 0;
      of_projected[row] = row * Cell::kGates * H;
    }
  }

  void rows(int64_t steps, const hotloop::Share& share) const {
    const FlushSubnormals flush;
    const ForwardRows<Cell, T> part(*this, steps, share);
    if (part.share.count == 0) return;
    if (share.team == nullptr) {
      part.all();
    } else {
      hotloop::run_team(share.team, share.member, part.phases(), &ForwardRows<Cell, T>::phase,
                        const_cast<void*>(static_cast<const void*>(&part)));
    }
  }
};

// The rows of one share in one round.
template <class Cell, class T>
struct ForwardRows {
  static constexpr int G = Cell::kGates, S = kSaved<Cell>;
  const hotloop::ForwardCall& args;
  const ForwardRun<Cell, T>& run;
  const int64_t begin, end;  // steps
  const ShareRows share;
  const int members;
  const Sequence<const T> x;
  const Sequence<T> output, gates, c;
  const Sequence<const uint8_t> resets;
  const StepRows<const T> h_first, c_first;  // the initial state
  const Episodes<T> episodes;
  const bool keeps;                                  // the projection goes where it is kept
  T *const projected, *const hidden, *const masked;  // of this share

  ForwardRows(const ForwardRun<Cell, T>& run, int64_t steps, const hotloop::Share& of)
      : args(run.args),
        run(run),
        begin(args.cursor),
        end(args.cursor + steps),
        share(run.rows_of.share(of.index, of.count)),
        members(of.members),
        x(sequence<const T>(args.x, args.x_stride_t, run.of_x)),
        output(sequence<T>(args.output, args.output_stride_t, run.of_output)),
        gates(sequence<T>(args.gates, (run.rows_of.flat() ? 1 : args.batch_size) * S * args.hidden_size, run.of_gates)),
        c(sequence<T>(args.c, args.c_stride_t, run.of_c)),
        resets(sequence<const uint8_t>(args.resets, args.resets_stride_t, run.of_resets)),
        h_first(initial(args.h0, run.of_h_n)),
        c_first(initial(args.c0, run.of_c_n)),
        episodes{initial(args.reset_to_initial ? args.h0 : nullptr, run.of_h_n),
                 initial(args.reset_to_initial ? args.c0 : nullptr, run.of_c_n),
                 {},
                 {}},
        keeps(run.keeps_projection(args)),
        projected(run.projected + of.index * run.projected_size),
        hidden(run.hidden + of.index * run.hidden_size),
        masked(args.recurrent_mask ? run.masked + of.index * run.masked_size : nullptr) {}

  // The share's rows of an array that the caller has, in the order of processing.
  template <class E, class V>
  HOTLOOP_INLINE Sequence<E> sequence(V* start, int64_t stride_t, const int64_t* places) const {
    return {static_cast<E*>(start), args.reverse ? -stride_t : stride_t, places + share.begin};
  }

  HOTLOOP_INLINE StepRows<const T> initial(const void* state, const int64_t* places) const {
    if (state == nullptr) return {run.zeros, run.nowhere};
    return {static_cast<const T*>(state), places + share.begin};
  }

  // A member's blocks of so many units.
  HOTLOOP_INLINE Blocks slice(int64_t units, int member) const {
    const Blocks all{0, blocks_of(units, kLanes<T>)};
    return members == 1 ? all : all.slice(member, members);  // two divisions less a step
  }

  // All of it, on this thread.
  void all() const {
    for (int64_t s0 = begin; s0 < end; s0 += run.chunk) {
      const int64_t s1 = s0 + run.chunk < end ? s0 + run.chunk : end;
      project(s0, s1, 0);
      for (int64_t s = s0; s < s1; ++s) {
        if (masked) mask(s, 0);
        each_stage<Cell>([&](auto stage) HOTLOOP_LAMBDA { step<decltype(stage)>(s0, s, 0); });
      }
    }
    finish(0);
  }

  // The same as phases of a team: for each chunk its projection and then its steps, of each the mask and the stages; and the
  // end.
  int64_t phases() const {
    const int64_t chunks = (end - begin + run.chunk - 1) / run.chunk;
    return chunks + (end - begin) * phases_of_step() + 1;
  }
  HOTLOOP_INLINE int64_t phases_of_step() const { return kStages<Cell> + (masked ? 1 : 0); }

  static void phase(void* rows, int64_t phase, int member) {
    const ForwardRows& part = *static_cast<const ForwardRows*>(rows);
    if (phase == part.phases() - 1) return part.finish(member);
    const int64_t of_step = part.phases_of_step(), of_chunk = 1 + part.run.chunk * of_step;
    const int64_t s0 = part.begin + phase / of_chunk * part.run.chunk, now = phase % of_chunk - 1;
    const int64_t s1 = s0 + part.run.chunk < part.end ? s0 + part.run.chunk : part.end;
    if (now < 0) return part.project(s0, s1, member);
    const int64_t s = s0 + now / of_step, index = now % of_step - (of_step - kStages<Cell>);
    if (index < 0) return part.mask(s, member);
    with_stage<Cell>((int)index, [&](auto stage) { part.template step<decltype(stage)>(s0, s, member); });
  }

  // Where the projection goes: of the chunk that begins at s0, step s is at s - s0 where it is not kept.
  HOTLOOP_INLINE Sequence<T> projection() const {
    if (keeps) return S > 0 ? gates : output;
    return {projected, share.count * G * args.hidden_size, run.of_projected};
  }

  void project(int64_t s0, int64_t s1, int member) const {
    const int64_t I = args.input_size, H = args.hidden_size;
    const Blocks blocks = slice(H, member);
    for (int64_t first = s0, last; first < s1;
         first = last) {  // steps that have equally many rows are projected together
      const int64_t rows = run.rows_of.active(share, first);
      for (last = first + 1; last < s1 && run.rows_of.active(share, last) == rows;) ++last;
      const ChunkRows<const T> from{x, first, rows};
      const ChunkRows<T> to{projection(), keeps ? first : first - s0, rows};
      for_tiles<G>((last - first) * rows, blocks, [&](auto mr, auto nb, int64_t row, int64_t block) {
        project_tile<Cell, decltype(mr)::value, decltype(nb)::value>(from, to, run.packed, I, H, row, block);
      });
    }
  }

  HOTLOOP_INLINE StepRows<const T> h_before(int64_t s) const {
    if (s == 0) return h_first;
    const StepRows<T> before = output.rows(s - 1);
    return {before.start, before.places};
  }

  // A member's part of what products of a step multiply where there is a mask.
  void mask(int64_t s, int member) const {
    const int64_t P = run.sizes.output, count = run.rows_of.active(share, s);
    const StepRows<const T> factors = initial(args.recurrent_mask, run.of_h_n);
    ForwardStep<T> step{};
    step.h_prev = h_before(s);
    step.resets = resets_at(resets, s, count);
    step.episodes = &episodes;
    const Blocks blocks = slice(P, member);
    for (int64_t row = 0; row < count; ++row) {
      const T *const h = step.h_before(row), *const factor = factors[row];
      for (int64_t block = blocks.first; block < blocks.last; ++block) {
        const int64_t unit = block * kLanes<T>;
        const Part<T> part(P - unit);
        part.store(masked + row * P + unit, part.load(h + unit) * part.load(factor + unit));
      }
    }
  }

  template <class Stage>
  HOTLOOP_INLINE void step(int64_t s0, int64_t s, int member) const {
    const int64_t count = run.rows_of.active(share, s);
    ForwardStep<T> step{};
    step.projected = projection().rows(keeps ? s : s - s0);
    if (args.gates) {
      step.gates = gates.rows(s);
    } else if (Cell::List::kReadsSaves) {
      step.gates = step.projected;  // in inference the projected row is where what the first stages save lies
    }
    step.hidden = hidden;
    step.masked = masked;
    step.h = output.rows(s);
    step.h_prev = h_before(s);
    if constexpr (Cell::kHasC) {  // in inference c_n is the running state
      step.c = args.c ? c.rows(s) : StepRows<T>{static_cast<T*>(args.c_n), run.of_c_n + share.begin};
      step.c_prev = c_first;
      if (s > 0) {
        const StepRows<T> before = args.c ? c.rows(s - 1) : step.c;
        step.c_prev = {before.start, before.places};
      }
    }
    step.resets = resets_at(resets, s, count);
    step.episodes = &episodes;
    if (S > 0 && args.gates && s + run.chunk < args.seq_len) step.later_gates = gates.rows(s + run.chunk);
    Blocks blocks = slice(run.sizes.template units<Stage>(), member);
    blocks.descending = s % 2 != 0;
    for_tiles<Stage::kGates>(count, blocks, [&](auto mr, auto nb, int64_t row, int64_t block) {
      forward_tile<Cell, Stage, decltype(mr)::value, decltype(nb)::value>(step, run.packed, run.sizes, row, block);
    });
  }

  // The elements of a state that a member finishes.
  struct Elements {
    int64_t from, to;
  };
  HOTLOOP_INLINE Elements elements(int64_t units, int member) const {
    const Blocks blocks = slice(units, member);
    const int64_t last = blocks.last * kLanes<T>;
    return {blocks.first * kLanes<T>, last < units ? last : units};
  }

  // After the last step: h_n and c_n, of each row at its own end, and zeros behind it.
  void finish(int member) const {
    if (end < args.seq_len) return;
    const Elements of_h = elements(run.sizes.output, member);
    const Elements of_c = Cell::kProjects ? elements(run.sizes.hidden, member) : of_h;
    const size_t h_bytes = (size_t)(of_h.to - of_h.from) * sizeof(T),
                 c_bytes = (size_t)(of_c.to - of_c.from) * sizeof(T);
    for (int64_t row = 0; row < share.count; ++row) {
      const int64_t length = run.rows_of.length(share, row);
      const T* const h = length > 0 ? output.at(length - 1, row) : h_first[row];
      __builtin_memcpy(static_cast<T*>(args.h_n) + run.of_h_n[share.begin + row] + of_h.from, h + of_h.from, h_bytes);
      if (Cell::kHasC && (args.c || length == 0)) {
        const T* const from = length > 0 ? c.at(length - 1, row) : c_first[row];
        __builtin_memcpy(static_cast<T*>(args.c_n) + run.of_c_n[share.begin + row] + of_c.from, from + of_c.from,
                         c_bytes);
      }
    }
    if (args.lengths == nullptr) return;
    // Of the padding too every share has a part, which need not be that of its rows.
    const int64_t first = share.begin, last = first + share.count;
    clear_padding<T>(args, args.output, args.output_stride_t, args.output_stride_b, first, last, of_h.from, of_h.to);
    if (Cell::kHasC && args.c) {
      clear_padding<T>(args, args.c, args.c_stride_t, args.c_stride_b, first, last, of_c.from, of_c.to);
    }
  }
};

template <class Cell, class T>
int64_t packed_bytes(const hotloop::ForwardCall& sizes) {
  Carver carver(nullptr);
  PackedWeights<Cell, T>::carve(carver, sizes_of<Cell>(sizes));
  return carver.bytes();
}

template <class Cell, class T>
void pack(const hotloop::ForwardCall& args, void* packed) {
  Carver carver(packed);
  PackedWeights<Cell, T>::carve(carver, sizes_of<Cell>(args)).fill(args);
}

template <class Cell, class T>
int64_t forward_most_steps(const hotloop::ForwardCall& args, void*) {
  return args.seq_len;
}

template <class Cell, class T>
int64_t forward_workspace(const hotloop::ForwardCall& args, int shares) {
  int64_t bytes;
  ForwardRun<Cell, T>::carve(args, nullptr, shares, bytes);
  return bytes;
}

template <class Cell, class T>
void forward_start(const hotloop::ForwardCall& args, void* workspace, int shares) {
  int64_t bytes;
  ForwardRun<Cell, T>::carve(args, workspace, shares, bytes).start(shares);
}

template <class Cell, class T>
void forward_rows(const hotloop::ForwardCall& args, void* workspace, int64_t steps, const hotloop::Share& share) {
  int64_t bytes;
  ForwardRun<Cell, T>::carve(args, workspace, share.count, bytes).rows(steps, share);
}

}  // namespace
