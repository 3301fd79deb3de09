// Backpropagation through time: the reverse loop, and the gradients of x, weights and biases.
//
// Steps are taken in chunks, from the last. Each chunk is what a whole sequence cut there would be: it starts from dh
// (and dc) of its last step, runs the recurrence back, leaves dh of the step before its first in grad_h0 (dc in grad_c0),
// and its gradients of the pre-activations, dG, are then consumed by the large products while still in cache. Rows of dG
// lie in the one canonical order, steps from last to first, then batch rows, in which every weight gradient is summed.
#pragma once

#include "forward.h"

namespace {

// Rows of a chunk. Each chunk reads and writes the weight gradients once, so fewer rows cost traffic; more rows push dG
// out of L2.
constexpr int64_t kChunkRows = 256;
// A chunk is also what is done between two looks at the clock.
constexpr double kChunkNs = 40e6;

constexpr int kInOrder[] = {0, 1, 2, 3};

// One row of a step.
template <class T>
struct BackwardRow {
  T *gradients, *carry;
  const T *grad_output, *grad_c, *gates, *h, *h_prev, *c, *c_prev, *mask;
  bool begins;  // an episode, at this step
};

template <class T>
struct BackwardStep {
  const T* next;  // [B, row_stride] dG of the step after
  T* gradients;   // [B, row_stride] dG of this step, or null: dh goes to dh
  int64_t row_stride;
  StepRows<const T> grad_output, grad_c;  // or none
  StepRows<const T> gates;                // S*H
  StepRows<const T> h, h_prev, c, c_prev;
  StepRows<const T> mask;  // or none
  StepRows<T> dh, carry;
  StepRows<const uint8_t> resets, cuts;  // where an episode begins at this step, and at the one after; or none
  const Episodes<T>* episodes;

  HOTLOOP_INLINE bool begins(int64_t row) const { return resets.start != nullptr && *resets[row] != 0; }
  HOTLOOP_INLINE const T* h_before(int64_t row) const { return begins(row) ? episodes->h[row] : h_prev[row]; }

  // Where what a stage reads and writes of the row lies, looked up once, before anything is stored.
  template <class Cell, class S>
  HOTLOOP_INLINE BackwardRow<T> at(int64_t row) const {
    constexpr bool kC = (S::kBackwardReads & kReadsC) != 0, kLeavesCarry = S::kLast && Cell::kCarriesH;
    BackwardRow<T> at{};
    at.gradients = gradients + row * row_stride;
    if (S::kLast && grad_output.start != nullptr) at.grad_output = grad_output[row];
    if constexpr (S::reads_saved() > 0) at.gates = gates[row];
    if constexpr ((S::kBackwardReads & kReadsOut) != 0) at.h = h[row];
    if constexpr ((S::kBackwardReads & (kReadsHPrev | kReadsOperand)) != 0) at.h_prev = h_before(row);
    if ((S::kBackwardReads & kReadsOperand) != 0 && mask.start != nullptr) at.mask = mask[row];
    if constexpr (kC) {
      if (grad_c.start != nullptr) at.grad_c = grad_c[row];
      at.begins = begins(row);
      at.c = c[row];
      at.c_prev = at.begins ? episodes->c[row] : c_prev[row];
    }
    if constexpr (kLeavesCarry || (S::kBackwardReads & kReadsCarry) != 0) at.carry = carry[row];
    return at;
  }
};

// Of c of a step at which an episode begins the gradient is of the initial state, and nothing is of the step before.
template <class T>
HOTLOOP_NOINLINE Vector<T> cut_c(const BackwardStep<T>& step, int64_t row, int64_t unit, Part<T> part, Vector<T> dc) {
  const StepRows<T> sums = step.episodes->dc;
  if (sums.start != nullptr) part.store(sums[row] + unit, part.load(sums[row] + unit) + dc);
  return Vector<T>{};
}

// The derivative of a stage: gradients of its pre-activations from the one of what it gave.
template <class Cell, class S, class T>
HOTLOOP_INLINE void stage_backward(const BackwardStep<T>& step, const BackwardRow<T>& at, int64_t H, int64_t row,
                                   int64_t unit, Part<T> part, Vector<T> d_out) {
  constexpr bool kC = (S::kBackwardReads & kReadsC) != 0, kLeavesCarry = S::kLast && Cell::kCarriesH;
  if (S::kLast && at.grad_output != nullptr) d_out = d_out + part.load(at.grad_output + unit);
  BackwardUnit<Vector<T>> now;
  now.d_out = d_out;
  for (int s = 0; s < S::reads_saved(); ++s) now.saved[s] = part.load(at.gates + s * H + unit);
  if constexpr ((S::kBackwardReads & kReadsOut) != 0) now.out = part.load(at.h + unit);
  if constexpr ((S::kBackwardReads & kReadsHPrev) != 0) now.h_prev = part.load(at.h_prev + unit);
  if constexpr ((S::kBackwardReads & kReadsOperand) != 0) {
    now.mask = at.mask != nullptr ? part.load(at.mask + unit) : splat<T>(1);
    now.operand = part.load(at.h_prev + unit) * now.mask;
  }
  if constexpr ((S::kBackwardReads & kReadsCarry) != 0) now.carry = part.load(at.carry + unit);
  if constexpr (kC) {
    now.c = part.load(at.c + unit);
    now.c_prev = part.load(at.c_prev + unit);
    if (at.grad_c != nullptr) now.carry = now.carry + part.load(at.grad_c + unit);
  }
  S::backward(now);
  for (int j = 0; j < S::kGiven; ++j) part.store(at.gradients + (S::kGives + j) * H + unit, now.da[j]);
  if constexpr (kC) {
    if (at.begins) now.carry = cut_c(step, row, unit, part, now.carry);
  }
  if constexpr (kLeavesCarry || (S::kBackwardReads & kReadsCarry) != 0) part.store(at.carry + unit, now.carry);
}

// Asks for what a stage will read of a row, while the product before it runs: it was saved long ago and comes from memory.
template <class Cell, class S, int NB, class T>
HOTLOOP_INLINE void prefetch_stage(const BackwardStep<T>& step, int64_t H, int64_t row, int64_t unit) {
  constexpr bool kAsks = S::asks();
  for (int b = 0; b < NB; ++b) {
    const int64_t at = unit + b * kLanes<T>;
    if constexpr (kAsks) {
      for (int s = 0; s < kSaved<Cell>; ++s) prefetch(step.gates[row] + s * H + at);
    }
    if (S::kLast && step.grad_output.start != nullptr) prefetch(step.grad_output[row] + at);
    if constexpr ((S::kBackwardReads & kReadsOut) != 0) prefetch(step.h[row] + at);
    if constexpr (kAsks && Cell::kCarriesH) prefetch(step.h_prev[row] + at);
    if constexpr ((S::kBackwardReads & kReadsC) != 0) prefetch(step.c_prev[row] + at);
  }
}

// An episode begins at the step after: what came from there is of the initial state, and nothing is of this step.
template <class T>
HOTLOOP_NOINLINE Vector<T> cut(const BackwardStep<T>& step, int64_t row, int64_t unit, Part<T> part, Vector<T> dh) {
  const StepRows<T> sums = step.episodes->dh;
  if (sums.start != nullptr) part.store(sums[row] + unit, part.load(sums[row] + unit) + dh);
  return Vector<T>{};
}

// The gradient of what a stage gave is that of the pre-activations it went into * their weights: of the next stage's, or,
// of h, of the first stage of the step after, and what bypassed that product. And the stage's derivative on it.
template <class Cell, class S, int MR, int NB, class T>
HOTLOOP_NOINLINE void backward_tile(const BackwardStep<T>& step, const T* weights, const Sizes& sizes, int64_t row,
                                    int64_t block) {
  using Next = At<Cell, S::kLast ? 0 : S::kIndex + 1>;
  constexpr int kL = kLanes<T>;
  const int64_t H = sizes.hidden, units = sizes.units<S>(), depth = Next::kGates * sizes.units<Next>();
  Vector<T> acc[MR][NB] = {};
  const T* next[MR];
  for (int r = 0; r < MR; ++r) {
    next[r] = (S::kLast ? step.next : step.gradients) + (row + r) * step.row_stride + Next::kGradients * H;
  }
  multiply<MR, NB, 1>(acc, next, weights + block * depth * kL, depth * kL, depth, [&](int r) HOTLOOP_LAMBDA {
    if (step.gradients != nullptr && (S::kLast || S::asks())) {
      prefetch_stage<Cell, S, NB>(step, H, row + r, block * kL);
    }
  });
  for (int r = 0; r < MR; ++r) {
    const bool ends = S::kLast && step.cuts.start != nullptr && *step.cuts[row + r] != 0;
    BackwardRow<T> at{};
    T* dh_to = nullptr;
    if (!S::kLast || step.gradients != nullptr) {
      at = step.template at<Cell, S>(row + r);
    } else {
      if constexpr (Cell::kCarriesH) at.carry = step.carry[row + r];
      dh_to = step.dh[row + r];
    }
    for (int b = 0; b < NB; ++b) {
      const int64_t unit = (block + b) * kL;
      const Part<T> part(units - unit);
      Vector<T> d_out = acc[r][b];
      if (S::kLast && step.mask.start != nullptr) d_out = d_out * part.load(step.mask[row + r] + unit);
      if constexpr (S::kLast && Cell::kCarriesH) d_out = d_out + part.load(at.carry + unit);
      if (ends) d_out = cut(step, row + r, unit, part, d_out);
      if (dh_to == nullptr) {
        stage_backward<Cell, S>(step, at, H, row + r, unit, part, d_out);
      } else {
        part.store(dh_to + unit, d_out);
      }
    }
  }
}

// Row `row` of `gradients` belongs to row first + row of `to`.
template <int MR, int NB, class T>
HOTLOOP_NOINLINE void input_gradient_tile(const T* gradients, int64_t row_stride, const T* weight_ih, int64_t depth,
                                          int64_t I, const ChunkRows<T>& to, int64_t first, int64_t row,
                                          int64_t block) {
  constexpr int kL = kLanes<T>;
  Vector<T> acc[MR][NB] = {};
  const T* a[MR];
  for (int r = 0; r < MR; ++r) a[r] = gradients + (row + r) * row_stride;
  multiply<MR, NB, 1>(acc, a, weight_ih + block * depth * kL, depth * kL, depth);
  for (int r = 0; r < MR; ++r) {
    T* const result = to.at(first + row + r);
    for (int b = 0; b < NB; ++b) Part<T>(I - (block + b) * kL).store(result + (block + b) * kL, acc[r][b]);
  }
}

// Right-hand sides of the weight gradients: a chunk's rows of x, h or the reset h, in panels of 4, 2 or 1 vectors, [panel][row][lane].
template <class T>
struct Panels {
  static constexpr int kL = kLanes<T>;
  T* start;
  int64_t columns, rows;
  int member = 0, members = 1;  // who fills them, each some

  // f(Int<NV>, first vector, panel) for every panel of the member.
  template <class F>
  HOTLOOP_INLINE void each(F&& f) const {
    const int64_t vectors = blocks_of(columns, kL);
    for (int64_t v = 0; v < vectors;) {
      int width = 4;
      while (width > vectors - v) width /= 2;
      if (members == 1 || v * members / vectors == member) {
        with_power_of_two<4>(width, [&](auto nv) { f(nv, v, start + v * kL * rows); });
      }
      v += width;
    }
  }

  // Rows first, first + every, ...: row by row from(row), a function that gives a vector of it by its first element. Panel by
  // panel: row by row, choosing each panel's width took a third of the recurrence of LSTM B32 H64.
  template <class From>
  HOTLOOP_INLINE void put(int64_t first, int64_t every, int64_t count, From&& from) const {
    each([&](auto nv, int64_t vector, T* panel) {
      constexpr int NV = decltype(nv)::value;
      const Part<T> part(columns - (vector + NV - 1) * kL);  // of the last one
      for (int64_t row = 0; row < count; ++row) {
        const auto values = from(row);
        T* const to = panel + (first + row * every) * NV * kL;
        for (int v = 0; v < NV; ++v) {
          const int64_t at = (vector + v) * kL;
          store(to + v * kL, v == NV - 1 ? values(part, at) : values(Whole<T>{}, at));
        }
      }
    });
  }
};

template <class Cell, class T>
struct BackwardRows;

template <class Cell, class T>
struct BackwardRun {
  static constexpr int G = Cell::kGates, S = kSaved<Cell>, kL = kLanes<T>;
  const hotloop::BackwardCall& args;
  const Sizes sizes;
  Rows rows_of;
  // Places, [B]: of h and of c as states, and of what is the same for all rows.
  int64_t *of_h_n = nullptr, *of_c_n = nullptr, *nowhere = nullptr;
  int64_t *of_x = nullptr, *of_output = nullptr, *of_gates = nullptr, *of_c = nullptr, *of_resets = nullptr,
          *of_grad_output = nullptr, *of_grad_c = nullptr;
  int64_t* of_grad_x = nullptr;                         // in the canonical order
  T *stages[kStages<Cell>] = {}, *weight_ih = nullptr;  // pack_by_column: the weights of each stage, and x's
  T* zeros = nullptr;                                   // of a state
  T* carry = nullptr;                                   // [B, H] GRU; an LSTM's is grad_c0
  T *dh_first = nullptr, *dc_first = nullptr;           // sums over the episodes that began with h0, c0
  T* gradients = nullptr;                               // [chunk rows][row_stride] dG
  // Of the columns of dG but a projection's, [kGradients*H]; and of x's side, [G*H], where sums of a column begin with two
  // numbers, what is there of bias_ih and of bias_hh.
  T *bias_sums = nullptr, *x_bias_sums = nullptr;
  T *panels[kStages<Cell>] = {}, *x_panels = nullptr;  // the operands of the stages, and x
  int64_t row_stride = 0;
  int64_t s0 = 0, s1 = 0;  // steps of this chunk

  static int64_t chunk_steps(const hotloop::BackwardCall& args) {
    int64_t chunk = args.forward.batch_size > 0 ? kChunkRows / args.forward.batch_size : args.forward.seq_len;
    const double most = kChunkNs / (args.forward.step_ns * (double)args.forward.batch_size + 1);
    if ((double)chunk > most) chunk = (int64_t)most;
    if (chunk < 1) return 1;
    return chunk < args.forward.seq_len ? chunk : args.forward.seq_len;
  }

  // The most rows of a chunk.
  static int64_t chunk_rows(const hotloop::BackwardCall& args) { return chunk_steps(args) * args.forward.batch_size; }

  // The same in any call of at most so many steps and rows.
  static int64_t most_chunk_rows(const hotloop::BackwardCall& args) {
    const int64_t B = args.forward.batch_size, all = args.forward.seq_len * B;
    const double most = kChunkNs / args.forward.step_ns;
    int64_t rows = kChunkRows < all ? kChunkRows : all;
    if (most < (double)rows) rows = (int64_t)most;
    return rows > B ? rows : B;
  }

  explicit BackwardRun(const hotloop::BackwardCall& args)
      : args(args), sizes(sizes_of<Cell>(args.forward)), rows_of(args.forward) {}

  // The gradient of a parameter, or null where it is not wanted.
  HOTLOOP_INLINE T* grad(int parameter) const { return static_cast<T*>(args.grad_parameters[parameter]); }

  // Points every array into the workspace; with a null workspace it finds the size that is enough for any smaller call too.
  static BackwardRun carve(const hotloop::BackwardCall& args, void* workspace, int64_t steps, int64_t& bytes) {
    Carver carver(workspace);
    const hotloop::ForwardCall& f = args.forward;
    BackwardRun run(args);
    const int64_t B = f.batch_size, I = f.input_size, H = f.hidden_size, P = run.sizes.output;
    run.s1 = f.seq_len - f.cursor;
    run.s0 = run.s1 - steps;
    run.rows_of.carve(carver);
    int64_t* places = carver.take<int64_t>((Cell::kProjects ? 11 : 10) * B);
    const auto table = [&places, B] { return places += B, places - B; };
    run.of_h_n = table();
    run.of_c_n = Cell::kProjects ? table() : run.of_h_n;
    run.nowhere = table();
    run.of_x = table();
    run.of_output = table();
    run.of_gates = table();
    run.of_c = table();
    run.of_resets = table();
    run.of_grad_output = table();
    run.of_grad_c = table();
    run.of_grad_x = table();
    // One line more than a whole number of them keeps rows of 4 KiB from meeting in the same sets of the cache.
    run.row_stride = (run.sizes.template gradients<Cell>() + kL - 1) / kL * kL + 64 / (int64_t)sizeof(T);
    const int64_t rows = workspace == nullptr ? most_chunk_rows(args) : chunk_rows(args);
    each_stage<Cell>([&](auto stage) HOTLOOP_LAMBDA {
      using Of = decltype(stage);
      const int64_t rows_of_stage = Of::kGates * run.sizes.template units<Of>();
      const int64_t columns = blocks_of(run.sizes.template depth<Of>(), kL) * kL;
      run.stages[Of::kIndex] = carver.take<T>(columns * rows_of_stage);
    });
    if (args.grad_x) run.weight_ih = carver.take<T>(blocks_of(I, kL) * G * H * kL);
    run.zeros = carver.take<T>(run.zeros_size());
    run.carry = Cell::kCarriesH ? carver.take<T>(B * H) : static_cast<T*>(args.grad_c0);
    if (f.resets && f.reset_to_initial) {
      run.dh_first = carver.take<T>(B * P);
      if (Cell::kHasC) run.dc_first = carver.take<T>(B * H);
    }
    run.gradients = carver.take<T>(rows * run.row_stride);
    run.bias_sums = carver.take<T>(Cell::kGradients * H);
    if (args.accumulate) run.x_bias_sums = carver.take<T>(G * H);
    each_stage<Cell>([&](auto stage) HOTLOOP_LAMBDA {
      using Of = decltype(stage);
      const int64_t columns = blocks_of(run.sizes.template depth<Of>(), kL) * kL;
      if (run.grad(Of::kParameter)) run.panels[Of::kIndex] = carver.take<T>(columns * rows);
    });
    if (run.grad(HOTLOOP_WEIGHT_IH)) run.x_panels = carver.take<T>(blocks_of(I, kL) * kL * rows);
    bytes = carver.bytes();
    return run;
  }

  int64_t zeros_size() const { return sizes.output > sizes.hidden ? sizes.output : sizes.hidden; }

  void start(int shares) const {
    const hotloop::ForwardCall& f = args.forward;
    const int64_t B = f.batch_size, H = f.hidden_size;
    const int64_t h_bytes = B * sizes.output * (int64_t)sizeof(T), c_bytes = B * H * (int64_t)sizeof(T);
    each_stage<Cell>([&](auto stage) {
      using Of = decltype(stage);
      const int64_t units = sizes.template units<Of>(), depth = sizes.template depth<Of>();
      const T* const from = static_cast<const T*>(f.parameters[Of::kParameter]) + Of::kFirst * units * depth;
      pack_by_column<Of::kGates>(from, units, depth, Of::kGateOf, stages[Of::kIndex]);
    });
    if (args.grad_x) {
      pack_by_column<G>(static_cast<const T*>(f.parameters[HOTLOOP_WEIGHT_IH]), H, f.input_size, kInOrder, weight_ih);
    }
    __builtin_memset(zeros, 0, zeros_size() * sizeof(T));
    __builtin_memset(bias_sums, 0, Cell::kGradients * H * sizeof(T));
    if (x_bias_sums) {
      copy_or_zero(x_bias_sums, grad(HOTLOOP_BIAS_IH), G * H * (int64_t)sizeof(T));
      if (T* const bias_hh = grad(HOTLOOP_BIAS_HH)) {
        each_bias([&](T* sums, int64_t of_bias) { __builtin_memcpy(sums, bias_hh + of_bias, H * sizeof(T)); });
      }
    }
    copy_or_zero(args.grad_h0, args.grad_h_n, h_bytes);
    if (Cell::kHasC) copy_or_zero(args.grad_c0, args.grad_c_n, c_bytes);
    if (dh_first) copy_or_zero(dh_first, nullptr, h_bytes);
    if (dc_first) copy_or_zero(dc_first, nullptr, c_bytes);
    rows_of.sort();
    rows_of.place_states(sizes.output, shares, of_h_n);
    if (Cell::kProjects) rows_of.place_states(H, shares, of_c_n);
    for (int64_t row = 0; row < B; ++row) nowhere[row] = 0;
    rows_of.place(f.x_stride_t, f.x_stride_b, shares, of_x);
    rows_of.place(f.output_stride_t, f.output_stride_b, shares, of_output);
    if (S > 0) rows_of.place((rows_of.flat() ? 1 : B) * S * H, S * H, shares, of_gates);
    if (Cell::kHasC) rows_of.place(f.c_stride_t, f.c_stride_b, shares, of_c);
    if (f.resets) rows_of.place(f.resets_stride_t, f.resets_stride_b, shares, of_resets);
    if (args.grad_output) rows_of.place(args.grad_output_stride_t, args.grad_output_stride_b, shares, of_grad_output);
    if (args.grad_c) rows_of.place(args.grad_c_stride_t, args.grad_c_stride_b, shares, of_grad_c);
    if (args.grad_x) rows_of.place(args.grad_x_stride_t, args.grad_x_stride_b, 1, of_grad_x);
  }

  // Steps of the round that begins at the cursor: a chunk's worth of rows, at least one step.
  int64_t steps() const {
    const int64_t most = chunk_rows(args), after = rows_of.steps_from(s1);
    int64_t low = 0, high = s1 - 1;  // of steps, the first that fits; the last always does
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (rows_of.steps_from(middle) - after <= most) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return s1 - low;
  }

  static void copy_or_zero(void* to, const void* from, int64_t bytes) {
    if (bytes == 0) return;
    if (from != nullptr) {
      __builtin_memcpy(to, from, bytes);
    } else {
      __builtin_memset(to, 0, bytes);
    }
  }

  // The chunk's rows that come before those of step s: steps run from the last to the first.
  HOTLOOP_INLINE int64_t rows_before(int64_t s) const {
    if (!rows_of.ragged) return (s1 - 1 - s) * args.forward.batch_size;
    return rows_of.steps_from(s + 1) - rows_of.steps_from(s1);
  }

  // The recurrence of this chunk for some batch rows, and their rows of the panels.
  void recurrence(const hotloop::Share& share) const {
    const FlushSubnormals flush;
    const BackwardRows<Cell, T> part(*this, share);
    if (part.share.count == 0) return;
    if (share.team == nullptr) {
      for (int64_t phase = 0; phase < part.phases(); ++phase) part.phase(phase, 0);
    } else {
      hotloop::run_team(share.team, share.member, part.phases(), &BackwardRows<Cell, T>::phase_of,
                        const_cast<void*>(static_cast<const void*>(&part)));
    }
  }

  // This chunk's share of the gradients of weights, biases and x: a range of gate rows, and of the chunk's rows for x.
  void products(int index, int count) const {
    const FlushSubnormals flush;
    const hotloop::ForwardCall& f = args.forward;
    const int64_t H = f.hidden_size, rows = rows_before(s0 - 1);
    const int64_t J = G * H, first = J * index / count, last = J * (index + 1) / count;
    int64_t before = 0;  // gate rows of the stages, one after the other
    each_stage<Cell>([&](auto stage) {
      using Of = decltype(stage);
      const int64_t units = sizes.template units<Of>(), depth = sizes.template depth<Of>(),
                    of_stage = Of::kGates * units;
      if (panels[Of::kIndex]) {
        const int64_t all = J + (Cell::kProjects ? sizes.output : 0);
        const int64_t from = all * index / count - before, to = all * (index + 1) / count - before;
        weight_gradient(grad(Of::kParameter) + Of::kFirst * units * depth, {panels[Of::kIndex], depth, rows},
                        gradients + Of::kGradients * H, units, Of::kGateOf, from < 0 ? 0 : from,
                        to < of_stage ? to : of_stage);
      }
      before += of_stage;
    });
    if (x_panels) {
      weight_gradient(grad(HOTLOOP_WEIGHT_IH), {x_panels, f.input_size, rows}, gradients + Cell::kXSide * H, H,
                      kInOrder, first, last);
    }
    if (grad(HOTLOOP_BIAS_IH) || grad(HOTLOOP_BIAS_HH)) {
      const int64_t columns = Cell::kGradients * H;
      sum_columns(gradients, bias_sums, columns * index / count, columns * (index + 1) / count, rows);
      if (x_bias_sums) sum_columns(gradients + Cell::kXSide * H, x_bias_sums, first, last, rows);
    }
    if (args.grad_x) {
      input_gradient(rows * index / count, rows * (index + 1) / count);
      if (f.lengths && s0 == 0) {
        clear_padding<T>(f, args.grad_x, args.grad_x_stride_t, args.grad_x_stride_b, f.batch_size * index / count,
                         f.batch_size * (index + 1) / count, 0, f.input_size);
      }
    }
  }

  HOTLOOP_INLINE Sequence<T> grad_x() const {
    const int64_t stride = args.grad_x_stride_t;
    return {static_cast<T*>(args.grad_x), args.forward.reverse ? -stride : stride, of_grad_x};
  }

  // Rows from..to-1 of the chunk's gradient of x.
  void input_gradient(int64_t from, int64_t to) const {
    const int64_t J = G * args.forward.hidden_size, I = args.forward.input_size;
    Sequence<T> backwards = grad_x();  // the chunk's rows run from its last step to its first
    backwards.step = -backwards.step;
    const T* const a = gradients + Cell::kXSide * args.forward.hidden_size;
    // Steps that have equally many rows are done together.
    for (int64_t last = s1 - 1, before = 0; last >= s0 && before < to;) {
      const int64_t rows = rows_of.active(last);
      int64_t first = last;
      while (first > s0 && rows_of.active(first - 1) == rows) --first;
      const int64_t after = before + (last - first + 1) * rows;
      const int64_t begin = from > before ? from : before, end = to < after ? to : after;
      if (begin < end) {
        const ChunkRows<T> results{backwards, -last, rows};
        for_tiles<1>(end - begin, {0, blocks_of(I, kL)}, [&](auto mr, auto nb, int64_t row, int64_t block) {
          input_gradient_tile<decltype(mr)::value, decltype(nb)::value>(a + begin * row_stride, row_stride, weight_ih,
                                                                        J, I, results, begin - before, row, block);
        });
      }
      before = after;
      last = first - 1;
    }
  }

  // Gate rows first..last-1 of a weight gradient; block j of the rows of dG, of so many units, belongs to gate gate_of[j].
  void weight_gradient(T* result, Panels<T> panels, const T* a, int64_t units, const int* gate_of, int64_t first,
                       int64_t last) const {
    const bool from_zero = s1 == args.forward.seq_len && !args.accumulate;
    // Gate rows are outermost: their columns of dG stay in L1 while the panels stream from L2.
    constexpr int kMost = kAccumulators / 4 * 2;
    for (int64_t j0 = first; j0 < last; j0 += kMost) {
      const int64_t j1 = j0 + kMost < last ? j0 + kMost : last;
      panels.each([&](auto nv, int64_t vector, const T* panel) {
        constexpr int NV = decltype(nv)::value;
        constexpr int kMaxHeight = NV == 4 ? kAccumulators / 4 : kMost;
        const int64_t tiles = (j1 - j0 + kMaxHeight - 1) / kMaxHeight;
        for (int64_t tile = 0, j = j0; tile < tiles; ++tile) {
          const int height = (int)((j1 - j0) / tiles + (tile < (j1 - j0) % tiles));
          with_int<1, kMaxHeight>(height, [&](auto mr) {
            constexpr int MR = decltype(mr)::value;
            T* c[MR];
            for (int r = 0; r < MR; ++r) {
              const int64_t row = gate_of[(j + r) / units] * units + (j + r) % units;
              c[r] = result + row * panels.columns + vector * kL;
            }
            outer_tile<MR, NV>(a + j, row_stride, panel, panels.rows, c, from_zero, panels.columns - vector * kL);
          });
          j += height;
        }
      });
    }
  }

  // Adds columns first..last-1 of so many rows of dG, or of the part of it that begins at `a`.
  void sum_columns(const T* a, T* sums, int64_t first, int64_t last, int64_t rows) const {
    constexpr int64_t kWide = 8;
    for (int64_t column = first; column < last;) {
      if (column + kWide * kL <= last) {
        sum_vectors<kWide>(a + column, sums + column, Part<T>(kL), rows);
        column += kWide * kL;
      } else {
        sum_vectors<1>(a + column, sums + column, Part<T>(last - column), rows);
        column += kL;
      }
    }
  }

  template <int N>
  HOTLOOP_INLINE void sum_vectors(const T* a, T* to, Part<T> part, int64_t rows) const {
    Vector<T> sums[N];
    for (int v = 0; v < N; ++v) sums[v] = part.load(to + v * kL);
    for (int64_t row = 0; row < rows; ++row) {
      const T* const from = a + row * row_stride;
      for (int v = 0; v < N; ++v) sums[v] = sums[v] + part.load(from + v * kL);
    }
    for (int v = 0; v < N; ++v) part.store(to + v * kL, sums[v]);
  }

  // f(sums, place) for each gate: where its sums are, and where it begins in bias_hh.
  template <class F>
  HOTLOOP_INLINE void each_bias(F&& f) const {
    const int64_t H = args.forward.hidden_size;
    each_stage<Cell>([&](auto stage) {
      using Of = decltype(stage);
      for (int g = 0; !Of::kOfOutput && g < Of::kGates; ++g) {
        f(bias_sums + (Of::kGradients + g) * H, (Of::kFirst + Of::kGateOf[g]) * H);
      }
    });
  }

  void finish() const {
    const int64_t H = args.forward.hidden_size;
    T *const bias_ih = grad(HOTLOOP_BIAS_IH), *const bias_hh = grad(HOTLOOP_BIAS_HH);
    const T* const x_sums = x_bias_sums ? x_bias_sums : bias_sums + Cell::kXSide * H;
    if (bias_ih) __builtin_memcpy(bias_ih, x_sums, G * H * sizeof(T));
    if (bias_hh) {
      each_bias([&](const T* sums, int64_t of_bias) { __builtin_memcpy(bias_hh + of_bias, sums, H * sizeof(T)); });
    }
    const int64_t B = args.forward.batch_size;
    if (dh_first) add(static_cast<T*>(args.grad_h0), dh_first, B * sizes.output);
    if (dc_first) add(static_cast<T*>(args.grad_c0), dc_first, B * H);
  }

  void add(T* to, const T* from, int64_t count) const {
    for (int64_t i = 0; i < count; i += kL) {
      const Part<T> part(count - i);
      part.store(to + i, part.load(to + i) + part.load(from + i));
    }
  }
};

// The rows of one share in one chunk.
template <class Cell, class T>
struct BackwardRows {
  static constexpr int S = kSaved<Cell>, kL = kLanes<T>;
  const BackwardRun<Cell, T>& run;
  const hotloop::BackwardCall& args;
  const ShareRows share;
  const int members;
  const Sequence<const T> x, output, gates, c, grad_output, grad_c;
  const Sequence<const uint8_t> resets;
  const StepRows<const T> h_first, c_first;  // the initial state
  const StepRows<T> dh, carry;
  const Episodes<T> episodes;

  BackwardRows(const BackwardRun<Cell, T>& run, const hotloop::Share& of)
      : run(run),
        args(run.args),
        share(run.rows_of.share(of.index, of.count)),
        members(of.members),
        x(sequence<T>(args.forward.x, args.forward.x_stride_t, run.of_x)),
        output(sequence<T>(args.forward.output, args.forward.output_stride_t, run.of_output)),
        gates(sequence<T>(args.forward.gates,
                          (run.rows_of.flat() ? 1 : args.forward.batch_size) * S * args.forward.hidden_size,
                          run.of_gates)),
        c(sequence<T>(args.forward.c, args.forward.c_stride_t, run.of_c)),
        grad_output(sequence<T>(args.grad_output, args.grad_output_stride_t, run.of_grad_output)),
        grad_c(sequence<T>(args.grad_c, args.grad_c_stride_t, run.of_grad_c)),
        resets(sequence<uint8_t>(args.forward.resets, args.forward.resets_stride_t, run.of_resets)),
        h_first(initial(args.forward.h0, run.of_h_n)),
        c_first(initial(args.forward.c0, run.of_c_n)),
        dh{static_cast<T*>(args.grad_h0), run.of_h_n + share.begin},
        carry{run.carry, run.of_c_n + share.begin},
        episodes{initial(args.forward.reset_to_initial ? args.forward.h0 : nullptr, run.of_h_n),
                 initial(args.forward.reset_to_initial ? args.forward.c0 : nullptr, run.of_c_n),
                 {run.dh_first, run.of_h_n + share.begin},
                 {run.dc_first, run.of_c_n + share.begin}} {}

  // The share's rows of an array that the caller has, in the order of processing.
  template <class E>
  HOTLOOP_INLINE Sequence<const E> sequence(const void* start, int64_t stride_t, const int64_t* places) const {
    return {static_cast<const E*>(start), args.forward.reverse ? -stride_t : stride_t, places + share.begin};
  }

  // The same of a state, or zeros.
  HOTLOOP_INLINE StepRows<const T> initial(const void* state, const int64_t* places) const {
    if (state == nullptr) return {run.zeros, run.nowhere};
    return {static_cast<const T*>(state), places + share.begin};
  }

  HOTLOOP_INLINE StepRows<const T> mask() const {
    if (args.forward.recurrent_mask == nullptr) return {};
    return initial(args.forward.recurrent_mask, run.of_h_n);
  }

  // Of a chunk: its steps from the last, of each its stages from the last; and of the step before it that which leaves dh.
  int64_t phases() const { return (run.s1 - run.s0) * kStages<Cell> + 1; }

  static void phase_of(void* rows, int64_t phase, int member) {
    static_cast<const BackwardRows*>(rows)->phase(phase, member);
  }

  HOTLOOP_INLINE void phase(int64_t phase, int member) const {
    const int64_t s = run.s1 - 1 - phase / kStages<Cell>;
    with_stage<Cell>((int)(kStages<Cell> - 1 - phase % kStages<Cell>),
                     [&](auto stage) HOTLOOP_LAMBDA { this->template step<decltype(stage)>(s, member); });
  }

  template <class Stage>
  HOTLOOP_INLINE void step(int64_t s, int member) const {
    const Sizes& sizes = run.sizes;
    const int64_t H = sizes.hidden, units = sizes.template units<Stage>();
    // Rows of this step, and those that come to it from the one after; the others end here, or with the chunk before.
    const int64_t continued = s < run.s1 - 1 ? run.rows_of.active(share, s + 1) : 0;
    const int64_t count = s >= run.s0 ? run.rows_of.active(share, s) : continued;
    Blocks slice{0, blocks_of(units, kL)};
    if (members > 1) slice = slice.slice(member, members);
    slice.descending = s % 2 != 0;
    BackwardStep<T> step{};
    step.row_stride = run.row_stride * share.every;
    step.dh = dh;
    step.carry = carry;
    step.mask = mask();
    step.episodes = &episodes;
    if (continued > 0) {
      step.next = run.gradients + (run.rows_before(s + 1) + share.first) * run.row_stride;
      step.cuts = resets_at(resets, s + 1, continued);
    }
    if (s >= run.s0) {
      step.gradients = run.gradients + (run.rows_before(s) + share.first) * run.row_stride;
      if (args.grad_output) step.grad_output = grad_output.rows(s);
      if (args.grad_c) step.grad_c = grad_c.rows(s);
      if constexpr (S > 0) step.gates = gates.rows(s);
      step.h = output.rows(s);
      step.h_prev = s > 0 ? output.rows(s - 1) : h_first;
      step.resets = resets_at(resets, s, count);
      if constexpr (Cell::kHasC) {
        step.c = c.rows(s);
        step.c_prev = s > 0 ? c.rows(s - 1) : c_first;
      }
    }
    if (Stage::kLast && s >= run.s0) put_rows(step, s, count, member);
    const T* const weights = run.stages[Stage::kLast ? 0 : Stage::kIndex + 1];
    const int64_t multiplied = Stage::kLast ? continued : count;
    for_tiles<1>(multiplied, slice, [&](auto mr, auto nb, int64_t row, int64_t block) {
      backward_tile<Cell, Stage, decltype(mr)::value, decltype(nb)::value>(step, weights, sizes, row, block);
    });
    for (int64_t row = multiplied; row < count; ++row) {
      const BackwardRow<T> at = step.template at<Cell, Stage>(row);
      for (int64_t block = slice.first; block < slice.last; ++block) {
        const Part<T> part(units - block * kL);
        stage_backward<Cell, Stage>(step, at, H, row, block * kL, part, part.load(step.dh[row] + block * kL));
      }
    }
  }

  // A member fills some of the panels.
  void put_rows(const BackwardStep<T>& step, int64_t s, int64_t count, int member) const {
    const int64_t rows = run.rows_before(run.s0 - 1), to = run.rows_before(s) + share.first;
    const auto plain = [](const T* values) HOTLOOP_LAMBDA {
      return [values](auto part, int64_t at) HOTLOOP_LAMBDA { return part.load(values + at); };
    };
    each_stage<Cell>([&](auto stage) {
      using Of = decltype(stage);
      if (run.panels[Of::kIndex] == nullptr) return;
      const Panels<T> panels{run.panels[Of::kIndex], run.sizes.template depth<Of>(), rows, member, members};
      if constexpr (Of::kOperand == Operand::kH) {
        if (step.mask.start != nullptr) {
          panels.put(to, share.every, count, [&](int64_t row) HOTLOOP_LAMBDA {
            return [h = step.h_before(row), factor = step.mask[row]](auto part, int64_t at)
                       HOTLOOP_LAMBDA { return part.load(h + at) * part.load(factor + at); };
          });
          return;
        }
        panels.put(to, share.every, count, [&](int64_t row) HOTLOOP_LAMBDA { return plain(step.h_before(row)); });
      } else {
        panels.put(to, share.every, count,
                   [&](int64_t row) HOTLOOP_LAMBDA { return hidden<At<Cell, Of::kIndex - 1>>(step, row); });
      }
    });
    if (run.x_panels) {
      const StepRows<const T> now = x.rows(s);
      const Panels<T> panels{run.x_panels, run.sizes.input, rows, member, members};
      panels.put(to, share.every, count, [&](int64_t row) HOTLOOP_LAMBDA { return plain(now[row]); });
    }
  }

  // What a stage left in forward, computed again.
  template <class Stage>
  HOTLOOP_INLINE auto hidden(const BackwardStep<T>& step, int64_t row) const {
    constexpr bool kOfH = (Stage::kForwardReads & kReadsOperand) != 0, kC = (Stage::kBackwardReads & kReadsC) != 0;
    const T* const h_prev = kOfH ? step.h_before(row) : nullptr;
    const T* const factor = kOfH && step.mask.start != nullptr ? step.mask[row] : nullptr;
    const T *const saved = step.gates[row], *const c = kC ? step.c[row] : nullptr;
    const int64_t H = run.sizes.hidden;
    return [=](auto part, int64_t at) HOTLOOP_LAMBDA {
      BackwardUnit<Vector<T>> unit;
      for (int s = 0; s < Stage::kSaves; ++s) unit.saved[s] = part.load(saved + s * H + at);
      if constexpr (kOfH)
        unit.operand = factor == nullptr ? part.load(h_prev + at) : part.load(h_prev + at) * part.load(factor + at);
      if constexpr (kC) unit.c = part.load(c + at);
      return Stage::hidden(unit);
    };
  }
};

template <class Cell, class T>
int64_t backward_most_steps(const hotloop::BackwardCall& args, void* workspace) {
  int64_t bytes;
  return BackwardRun<Cell, T>::carve(args, workspace, 0, bytes).steps();
}

template <class Cell, class T>
int64_t backward_workspace(const hotloop::BackwardCall& args, int) {
  int64_t bytes;
  BackwardRun<Cell, T>::carve(args, nullptr, 0, bytes);
  return bytes;
}

template <class Cell, class T>
void backward_start(const hotloop::BackwardCall& args, void* workspace, int shares) {
  int64_t bytes;
  BackwardRun<Cell, T>::carve(args, workspace, 0, bytes).start(shares);
}

template <class Cell, class T>
void backward_rows(const hotloop::BackwardCall& args, void* workspace, int64_t steps, const hotloop::Share& share) {
  int64_t bytes;
  BackwardRun<Cell, T>::carve(args, workspace, steps, bytes).recurrence(share);
}

template <class Cell, class T>
void backward_products(const hotloop::BackwardCall& args, void* workspace, int64_t steps, int index, int shares) {
  int64_t bytes;
  BackwardRun<Cell, T>::carve(args, workspace, steps, bytes).products(index, shares);
}

template <class Cell, class T>
void backward_finish(const hotloop::BackwardCall& args, void* workspace) {
  int64_t bytes;
  BackwardRun<Cell, T>::carve(args, workspace, 0, bytes).finish();
}

}  // namespace
