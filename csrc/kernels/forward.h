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
  static constexpr int kOfResetH = Cell::kGates - Cell::kOfH;
  T *weight_ih, *weight_hh;  // pack_by_unit; of weight_hh the gates that multiply h
  T* weight_reset;           // those that multiply the reset h
  T* bias;        // [block][G][lane] what the projection starts from: both biases, or b_ih of the gate kept apart
  T* bias_apart;  // [block][lane] b_hh of the gate kept apart

  static HOTLOOP_INLINE PackedWeights carve(Carver& carver, int64_t input_size, int64_t hidden_size) {
    const int64_t blocks = blocks_of(hidden_size, kL), vectors = blocks * Cell::kGates;
    PackedWeights packed;
    packed.weight_ih = carver.take<T>(vectors * input_size * kL);
    packed.weight_hh = carver.take<T>(blocks * Cell::kOfH * hidden_size * kL);
    packed.weight_reset = carver.take<T>(blocks * kOfResetH * hidden_size * kL);
    packed.bias = carver.take<T>(vectors * kL);
    packed.bias_apart = carver.take<T>(Cell::kApart < 0 ? 0 : blocks * kL);
    return packed;
  }

  void fill(const hotloop::ForwardCall& args) const {
    const int64_t H = args.hidden_size;
    pack_by_unit<Cell::kGates>(static_cast<const T*>(args.weight_ih), H, args.input_size, weight_ih);
    pack_by_unit<Cell::kOfH>(static_cast<const T*>(args.weight_hh), H, H, weight_hh);
    if constexpr (kOfResetH > 0)
      pack_by_unit<kOfResetH>(static_cast<const T*>(args.weight_hh) + Cell::kOfH * H * H, H, H, weight_reset);
    const T* const bias_ih = static_cast<const T*>(args.bias_ih);
    const T* const bias_hh = static_cast<const T*>(args.bias_hh);
    for (int64_t unit = 0; unit < blocks_of(H, kL) * kL; ++unit) {
      const int64_t block = unit / kL, lane = unit % kL;
      for (int g = 0; g < Cell::kGates; ++g) {
        const T of_x = bias_ih && unit < H ? bias_ih[g * H + unit] : 0;
        const T of_h = bias_hh && unit < H ? bias_hh[g * H + unit] : 0;
        bias[(block * Cell::kGates + g) * kL + lane] = g == Cell::kApart ? of_x : of_x + of_h;
        if (g == Cell::kApart) bias_apart[unit] = of_h;
      }
    }
  }
};

// Where one step of the recurrence reads and writes.
template <class T>
struct ForwardStep {
  StepRows<T> projected;  // G*H
  StepRows<T> gates;      // S*H, or none; never none for a cell of two passes, which keeps there what the second needs
  T* reset_h;             // [B, H] between the two passes
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
      for (int s = 0; s < Cell::kSaved; ++s) prefetch(later_gates[row] + s * H + unit + b * kLanes<T>);
    }
  }
};

// The first pass of a cell that takes two: the gates that multiply h, and the reset h.
template <class Cell, int MR, int NB, class T>
HOTLOOP_NOINLINE void gates_tile(const ForwardStep<T>& step, const PackedWeights<Cell, T>& packed, int64_t H,
                                 int64_t row, int64_t block) {
  constexpr int G = Cell::kOfH, kL = kLanes<T>;
  Vector<T> acc[MR][NB * G];
  const T* h_prev[MR];
  for (int r = 0; r < MR; ++r) {
    h_prev[r] = step.h_before(row + r);
    const T* const projected = step.projected[row + r];
    for (int b = 0; b < NB; ++b) {
      const int64_t unit = (block + b) * kL;
      const Part<T> part(H - unit);
      for (int g = 0; g < G; ++g) acc[r][b * G + g] = part.load(projected + g * H + unit);
    }
  }
  multiply<MR, NB, G>(acc, h_prev, packed.weight_hh + block * H * G * kL, H * G * kL, H);
  for (int r = 0; r < MR; ++r) {
    T *const reset_h = step.reset_h + (row + r) * H, *const gates = step.gates[row + r];
    for (int b = 0; b < NB; ++b) {
      const int64_t unit = (block + b) * kL;
      const Part<T> part(H - unit);
      ForwardUnit<Cell, Vector<T>> now;
      for (int g = 0; g < G; ++g) now.a[g] = acc[r][b * G + g];
      now.h_prev = part.load(h_prev[r] + unit);
      Cell::gates(now);
      part.store(reset_h + unit, now.reset_h);
      for (int g = 0; g < G; ++g) part.store(gates + g * H + unit, now.saved[g]);
    }
  }
}

// The gates that remain, all of them but in a cell of two passes, and the new state.
template <class Cell, int MR, int NB, class T>
HOTLOOP_NOINLINE void forward_tile(const ForwardStep<T>& step, const PackedWeights<Cell, T>& packed, int64_t H,
                                   int64_t row, int64_t block) {
  constexpr bool kSecond = Cell::kOfH < Cell::kGates;
  constexpr int kFirst = kSecond ? Cell::kOfH : 0, G = Cell::kGates - kFirst, kL = kLanes<T>;
  Vector<T> acc[MR][NB * G];
  const T *h_prev[MR], *operand[MR];
  for (int r = 0; r < MR; ++r) {
    h_prev[r] = step.h_before(row + r);
    operand[r] = kSecond ? step.reset_h + (row + r) * H : h_prev[r];
  }
  for (int b = 0; b < NB; ++b) {
    const int64_t unit = (block + b) * kL;
    const Part<T> part(H - unit);
    for (int r = 0; r < MR; ++r) {
      const T* const projected = step.projected[row + r] + unit;
      for (int g = 0; g < G; ++g) {
        acc[r][b * G + g] =
            g == Cell::kApart ? load(packed.bias_apart + unit) : part.load(projected + (kFirst + g) * H);
      }
    }
  }
  const T* const weight = kSecond ? packed.weight_reset : packed.weight_hh;
  multiply<MR, NB, G>(acc, operand, weight + block * H * G * kL, H * G * kL, H,
                      [&](int r) HOTLOOP_LAMBDA { step.template ask<Cell, NB>(H, row + r, block * kL); });
  for (int b = 0; b < NB; ++b) {
    const int64_t unit = (block + b) * kL;
    const Part<T> part(H - unit);
    for (int r = 0; r < MR; ++r) {
      ForwardUnit<Cell, Vector<T>> now;
      for (int g = 0; g < G; ++g) now.a[kFirst + g] = acc[r][b * G + g];
      if constexpr (Cell::kHasC) now.c_prev = part.load(step.c_before(row + r) + unit);
      if constexpr (Cell::kCarriesH) now.h_prev = part.load(h_prev[r] + unit);
      if constexpr (Cell::kApart >= 0) {
        now.x_apart = part.load(step.projected[row + r] + Cell::kApart * H + unit);
      }
      if constexpr (kSecond) {
        for (int g = 0; g < kFirst; ++g) {
          now.saved[g] = part.load(step.gates[row + r] + g * H + unit);
        }
      }
      Cell::forward(now);
      part.store(step.h[row + r] + unit, now.h);
      if constexpr (Cell::kHasC) part.store(step.c[row + r] + unit, now.c);
      if constexpr (Cell::kSaved > 0) {
        if (step.gates.start != nullptr) {
          T* const gates = step.gates[row + r] + unit;
          for (int s = kFirst; s < Cell::kSaved; ++s) part.store(gates + s * H, now.saved[s]);
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
  static constexpr bool kTwoPasses = Cell::kOfH < Cell::kGates;
  const hotloop::ForwardCall& args;
  PackedWeights<Cell, T> packed{};
  Rows rows_of;
  int64_t *states = nullptr, *nowhere = nullptr;  // places, [B]: of states, and of what is the same for all rows
  int64_t *of_x = nullptr, *of_output = nullptr, *of_gates = nullptr, *of_c = nullptr, *of_resets = nullptr,
          *of_projected = nullptr;
  T* zeros = nullptr;      // [H]
  T* projected = nullptr;  // [shares][chunk rows][G*H], where projections are not kept
  int64_t projected_size = 0;
  T* reset_h = nullptr;  // [shares][rows][H] of a cell of two passes
  int64_t reset_h_size = 0;
  int64_t chunk;  // steps projected at once

  ForwardRun(const hotloop::ForwardCall& args, int64_t chunk) : args(args), rows_of(args), chunk(chunk) {}

  // In training the projection goes where the gates will be (RNN: where h will be), and is overwritten by them.
  static HOTLOOP_INLINE bool keeps_projection(const hotloop::ForwardCall& args) {
    return Cell::kSaved == 0 || args.gates != nullptr;
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
    int64_t* places = carver.take<int64_t>(8 * B);
    const auto table = [&places, B] { return places += B, places - B; };
    run.states = table();
    run.nowhere = table();
    run.of_x = table();
    run.of_output = table();
    run.of_gates = table();
    run.of_c = table();
    run.of_resets = table();
    run.of_projected = table();
    run.zeros = carver.take<T>(args.hidden_size);
    if (args.packed == nullptr) {
      run.packed = PackedWeights<Cell, T>::carve(carver, args.input_size, args.hidden_size);
    } else {
      Carver elsewhere(static_cast<const char*>(args.packed) + hotloop::kPackedHeaderBytes);
      run.packed = PackedWeights<Cell, T>::carve(elsewhere, args.input_size, args.hidden_size);
    }
    if (!keeps_projection(args)) {
      const int64_t most = workspace == nullptr ? most_projected(args, rows) : run.chunk * rows;
      run.projected_size = (most * Cell::kGates * args.hidden_size + 15) / 16 * 16;
      run.projected = carver.take<T>(run.projected_size * shares);
    }
    if (kTwoPasses) {
      run.reset_h_size = (rows * args.hidden_size + 15) / 16 * 16;
      run.reset_h = carver.take<T>(run.reset_h_size * shares);
    }
    bytes = carver.bytes();
    return run;
  }

  void start(int shares) const {
    const int64_t B = args.batch_size, H = args.hidden_size, S = Cell::kSaved;
    if (args.packed == nullptr) packed.fill(args);
    __builtin_memset(zeros, 0, H * sizeof(T));
    rows_of.sort();
    rows_of.place_states(H, shares, states);
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
      hotloop::run_team(share.team, share.member, part.stages(), &ForwardRows<Cell, T>::stage,
                        const_cast<void*>(static_cast<const void*>(&part)));
    }
  }
};

// The rows of one share in one round.
template <class Cell, class T>
struct ForwardRows {
  static constexpr int G = Cell::kGates, S = Cell::kSaved, kPasses = Cell::kOfH < Cell::kGates ? 2 : 1;
  const hotloop::ForwardCall& args;
  const ForwardRun<Cell, T>& run;
  const int64_t begin, end;  // steps
  const ShareRows share;
  const int members;
  const Blocks blocks;
  const Sequence<const T> x;
  const Sequence<T> output, gates, c;
  const Sequence<const uint8_t> resets;
  const StepRows<const T> h_first, c_first;  // the initial state
  const Episodes<T> episodes;
  const bool keeps;                    // the projection goes where it is kept
  T *const projected, *const reset_h;  // of this share

  ForwardRows(const ForwardRun<Cell, T>& run, int64_t steps, const hotloop::Share& of)
      : args(run.args),
        run(run),
        begin(args.cursor),
        end(args.cursor + steps),
        share(run.rows_of.share(of.index, of.count)),
        members(of.members),
        blocks{0, blocks_of(args.hidden_size, kLanes<T>)},
        x(sequence<const T>(args.x, args.x_stride_t, run.of_x)),
        output(sequence<T>(args.output, args.output_stride_t, run.of_output)),
        gates(sequence<T>(args.gates, (run.rows_of.flat() ? 1 : args.batch_size) * S * args.hidden_size, run.of_gates)),
        c(sequence<T>(args.c, args.c_stride_t, run.of_c)),
        resets(sequence<const uint8_t>(args.resets, args.resets_stride_t, run.of_resets)),
        h_first(initial(args.h0)),
        c_first(initial(args.c0)),
        episodes{initial(args.reset_to_initial ? args.h0 : nullptr),
                 initial(args.reset_to_initial ? args.c0 : nullptr),
                 {},
                 {}},
        keeps(run.keeps_projection(args)),
        projected(run.projected + of.index * run.projected_size),
        reset_h(run.reset_h + of.index * run.reset_h_size) {}

  // The share's rows of an array that the caller has, in the order of processing.
  template <class E, class V>
  HOTLOOP_INLINE Sequence<E> sequence(V* start, int64_t stride_t, const int64_t* places) const {
    return {static_cast<E*>(start), args.reverse ? -stride_t : stride_t, places + share.begin};
  }

  HOTLOOP_INLINE StepRows<const T> initial(const void* state) const {
    if (state == nullptr) return {run.zeros, run.nowhere};
    return {static_cast<const T*>(state), run.states + share.begin};
  }

  // All of it, on this thread.
  void all() const {
    for (int64_t s0 = begin; s0 < end; s0 += run.chunk) {
      const int64_t s1 = s0 + run.chunk < end ? s0 + run.chunk : end;
      project(s0, s1, blocks);
      for (int64_t s = s0; s < s1; ++s) {
        for (int pass = 0; pass < kPasses; ++pass) step(s0, s, pass, blocks);
      }
    }
    finish(blocks);
  }

  // The same as stages of a team: for each chunk its projection and then its steps, pass by pass; and the end.
  int64_t stages() const {
    const int64_t chunks = (end - begin + run.chunk - 1) / run.chunk;
    return chunks + (end - begin) * kPasses + 1;
  }

  static void stage(void* rows, int64_t stage, int member) {
    const ForwardRows& part = *static_cast<const ForwardRows*>(rows);
    const Blocks slice = part.blocks.slice(member, part.members);
    if (stage == part.stages() - 1) return part.finish(slice);
    const int64_t of_chunk = 1 + part.run.chunk * kPasses;
    const int64_t s0 = part.begin + stage / of_chunk * part.run.chunk, now = stage % of_chunk - 1;
    const int64_t s1 = s0 + part.run.chunk < part.end ? s0 + part.run.chunk : part.end;
    if (now < 0) return part.project(s0, s1, slice);
    part.step(s0, s0 + now / kPasses, (int)(now % kPasses), slice);
  }

  // Where the projection goes: of the chunk that begins at s0, step s is at s - s0 where it is not kept.
  HOTLOOP_INLINE Sequence<T> projection() const {
    if (keeps) return S > 0 ? gates : output;
    return {projected, share.count * G * args.hidden_size, run.of_projected};
  }

  void project(int64_t s0, int64_t s1, Blocks slice) const {
    const int64_t I = args.input_size, H = args.hidden_size;
    for (int64_t first = s0, last; first < s1;
         first = last) {  // steps that have equally many rows are projected together
      const int64_t rows = run.rows_of.active(share, first);
      for (last = first + 1; last < s1 && run.rows_of.active(share, last) == rows;) ++last;
      const ChunkRows<const T> from{x, first, rows};
      const ChunkRows<T> to{projection(), keeps ? first : first - s0, rows};
      for_tiles<G>((last - first) * rows, slice, [&](auto mr, auto nb, int64_t row, int64_t block) {
        project_tile<Cell, decltype(mr)::value, decltype(nb)::value>(from, to, run.packed, I, H, row, block);
      });
    }
  }

  HOTLOOP_INLINE void step(int64_t s0, int64_t s, int pass, Blocks slice) const {
    const int64_t H = args.hidden_size, count = run.rows_of.active(share, s);
    ForwardStep<T> step{};
    step.projected = projection().rows(keeps ? s : s - s0);
    if (args.gates) step.gates = gates.rows(s);
    if (kPasses == 2) {  // in inference the projected row is where they lie
      if (!args.gates) step.gates = step.projected;
      step.reset_h = reset_h;
    }
    step.h = output.rows(s);
    step.h_prev = h_first;
    if (s > 0) {
      const StepRows<T> before = output.rows(s - 1);
      step.h_prev = {before.start, before.places};
    }
    if constexpr (Cell::kHasC) {  // in inference c_n is the running state
      step.c = args.c ? c.rows(s) : StepRows<T>{static_cast<T*>(args.c_n), run.states + share.begin};
      step.c_prev = c_first;
      if (s > 0) {
        const StepRows<T> before = args.c ? c.rows(s - 1) : step.c;
        step.c_prev = {before.start, before.places};
      }
    }
    step.resets = resets_at(resets, s, count);
    step.episodes = &episodes;
    if (S > 0 && args.gates && s + run.chunk < args.seq_len) step.later_gates = gates.rows(s + run.chunk);
    slice.descending = s % 2 != 0;
    if constexpr (kPasses == 2) {
      if (pass == 0) {
        for_tiles<Cell::kOfH>(count, slice, [&](auto mr, auto nb, int64_t row, int64_t block) {
          gates_tile<Cell, decltype(mr)::value, decltype(nb)::value>(step, run.packed, H, row, block);
        });
        return;
      }
    }
    for_tiles<kPasses == 2 ? G - Cell::kOfH : G>(count, slice, [&](auto mr, auto nb, int64_t row, int64_t block) {
      forward_tile<Cell, decltype(mr)::value, decltype(nb)::value>(step, run.packed, H, row, block);
    });
  }

  // After the last step: h_n and c_n, of each row at its own end, and zeros behind it.
  void finish(Blocks slice) const {
    if (end < args.seq_len) return;
    const int64_t H = args.hidden_size, unit = slice.first * kLanes<T>;
    const int64_t last = slice.last * kLanes<T> < H ? slice.last * kLanes<T> : H;
    const size_t bytes = (size_t)(last - unit) * sizeof(T);
    for (int64_t row = 0; row < share.count; ++row) {
      const int64_t length = run.rows_of.length(share, row), state = run.states[share.begin + row] + unit;
      const T* const h = length > 0 ? output.at(length - 1, row) : h_first[row];
      __builtin_memcpy(static_cast<T*>(args.h_n) + state, h + unit, bytes);
      if (Cell::kHasC && (args.c || length == 0)) {
        const T* const from = length > 0 ? c.at(length - 1, row) : c_first[row];
        __builtin_memcpy(static_cast<T*>(args.c_n) + state, from + unit, bytes);
      }
    }
    if (args.lengths == nullptr) return;
    // Of the padding too every share has a part, which need not be that of its rows.
    const int64_t from = share.begin, to = from + share.count;
    clear_padding<T>(args, args.output, args.output_stride_t, args.output_stride_b, from, to, unit, last);
    if (Cell::kHasC && args.c) clear_padding<T>(args, args.c, args.c_stride_t, args.c_stride_b, from, to, unit, last);
  }
};

template <class Cell, class T>
int64_t packed_bytes(int64_t input_size, int64_t hidden_size) {
  Carver carver(nullptr);
  PackedWeights<Cell, T>::carve(carver, input_size, hidden_size);
  return carver.bytes();
}

template <class Cell, class T>
void pack(const hotloop::ForwardCall& args, void* packed) {
  Carver carver(packed);
  PackedWeights<Cell, T>::carve(carver, args.input_size, args.hidden_size).fill(args);
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
