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

template <class T>
struct BackwardStep {
  const T* next;  // [B, row_stride] dG of the step after, or null: dh is taken from dh
  T* gradients;   // [B, row_stride] dG of this step, or null: dh goes to dh
  int64_t row_stride;
  const T* grad_output;  // [B, H] or null
  int64_t grad_output_row;
  const T* gates;  // [B, S*H]
  const T *h, *h_prev;
  int64_t h_row, h_prev_row;
  const T *c, *c_prev;
  int64_t c_prev_row;
  T *dh, *carry;  // [B, H]
};

// Blocks of dG that the second pass of a step gives, if there is one.
template <class Cell>
constexpr int kLateGradients = Cell::kOfH < Cell::kGates ? 1 : 0;

template <class Cell, class T>
HOTLOOP_INLINE void cell_backward(const BackwardStep<T>& step, int64_t H, int64_t row, int64_t unit, Part<T> part,
                                  Vector<T> dh) {
  constexpr int S = Cell::kSaved;
  if (step.grad_output != nullptr) dh = dh + part.load(step.grad_output + row * step.grad_output_row + unit);
  Vector<T> saved[S + 1], h{}, h_prev{}, c{}, c_prev{}, carry{}, da[Cell::kGradients];
  for (int s = 0; s < S; ++s) saved[s] = part.load(step.gates + (row * S + s) * H + unit);
  if constexpr (Cell::kBackwardReadsH) h = part.load(step.h + row * step.h_row + unit);
  if constexpr (Cell::kCarriesH) h_prev = part.load(step.h_prev + row * step.h_prev_row + unit);
  if constexpr (Cell::kHasC) {
    c = part.load(step.c + row * H + unit);
    c_prev = part.load(step.c_prev + row * step.c_prev_row + unit);
    carry = part.load(step.carry + row * H + unit);
  }
  Cell::backward(saved, h, h_prev, c_prev, c, dh, carry, da);
  T* const gradients = step.gradients + row * step.row_stride + unit;
  for (int j = kLateGradients<Cell>; j < Cell::kGradients; ++j) part.store(gradients + j * H, da[j]);
  if constexpr (Cell::kHasC || Cell::kCarriesH) part.store(step.carry + row * H + unit, carry);
}

// Asks for what the cell will read of a row, while the product before it runs: it was saved long ago and comes from memory.
template <class Cell, int NB, class T>
HOTLOOP_INLINE void prefetch_cell(const BackwardStep<T>& step, int64_t H, int64_t row, int64_t unit) {
  for (int b = 0; b < NB; ++b) {
    const int64_t at = unit + b * kLanes<T>;
    for (int s = 0; s < Cell::kSaved; ++s) prefetch(step.gates + (row * Cell::kSaved + s) * H + at);
    if (step.grad_output != nullptr) prefetch(step.grad_output + row * step.grad_output_row + at);
    if constexpr (Cell::kBackwardReadsH) prefetch(step.h + row * step.h_row + at);
    if constexpr (Cell::kCarriesH) prefetch(step.h_prev + row * step.h_prev_row + at);
    if constexpr (Cell::kHasC) prefetch(step.c_prev + row * step.c_prev_row + at);
  }
}

// dh = dG of the step after * weight_hh (+ what bypassed weight_hh), and the cell's derivative on it.
template <class Cell, int MR, int NB, class T>
HOTLOOP_NOINLINE void backward_tile(const BackwardStep<T>& step, const T* weight_hh, int64_t H, int64_t row,
                                    int64_t block) {
  constexpr int kL = kLanes<T>;
  const int64_t depth = Cell::kOfH * H;
  Vector<T> acc[MR][NB] = {};
  const T* next[MR];
  for (int r = 0; r < MR; ++r) next[r] = step.next + (row + r) * step.row_stride;
  multiply<MR, NB, 1>(acc, next, weight_hh + block * depth * kL, depth * kL, depth, [&](int r) HOTLOOP_LAMBDA {
    if (step.gradients != nullptr) prefetch_cell<Cell, NB>(step, H, row + r, block * kL);
  });
  for (int b = 0; b < NB; ++b) {
    const int64_t unit = (block + b) * kL;
    const Part<T> part(H - unit);
    for (int r = 0; r < MR; ++r) {
      Vector<T> dh = acc[r][b];
      if constexpr (Cell::kCarriesH) dh = dh + part.load(step.carry + (row + r) * H + unit);
      if (step.gradients != nullptr) {
        cell_backward<Cell>(step, H, row + r, unit, part, dh);
      } else {
        part.store(step.dh + (row + r) * H + unit, dh);
      }
    }
  }
}

// The second pass of a step: the gradient of the reset h = dG of the gates that multiply it * their weights, and what
// follows from it.
template <class Cell, int MR, int NB, class T>
HOTLOOP_NOINLINE void reset_tile(const BackwardStep<T>& step, const T* weight_reset, int64_t H, int64_t row,
                                 int64_t block) {
  constexpr int S = Cell::kSaved, kL = kLanes<T>;
  const int64_t depth = (Cell::kGates - Cell::kOfH) * H;
  Vector<T> acc[MR][NB] = {};
  const T* a[MR];
  for (int r = 0; r < MR; ++r) a[r] = step.gradients + (row + r) * step.row_stride + Cell::kOfH * H;
  multiply<MR, NB, 1>(acc, a, weight_reset + block * depth * kL, depth * kL, depth);
  for (int b = 0; b < NB; ++b) {
    const int64_t unit = (block + b) * kL;
    const Part<T> part(H - unit);
    for (int r = 0; r < MR; ++r) {
      Vector<T> saved[S];
      for (int s = 0; s < S; ++s) saved[s] = part.load(step.gates + ((row + r) * S + s) * H + unit);
      T* const carried = step.carry + (row + r) * H + unit;
      Vector<T> carry = part.load(carried);
      const Vector<T> h_prev = part.load(step.h_prev + (row + r) * step.h_prev_row + unit);
      part.store(step.gradients + (row + r) * step.row_stride + unit,
                 Cell::backward_reset(saved, h_prev, acc[r][b], carry));
      part.store(carried, carry);
    }
  }
}

template <int MR, int NB, class T>
HOTLOOP_NOINLINE void input_gradient_tile(const T* gradients, int64_t row_stride, const T* weight_ih, int64_t depth,
                                          int64_t I, const ChunkRows<T>& to, int64_t row, int64_t block) {
  constexpr int kL = kLanes<T>;
  Vector<T> acc[MR][NB] = {};
  const T* a[MR];
  for (int r = 0; r < MR; ++r) a[r] = gradients + (row + r) * row_stride;
  multiply<MR, NB, 1>(acc, a, weight_ih + block * depth * kL, depth * kL, depth);
  for (int r = 0; r < MR; ++r) {
    T* const result = to.at(row + r);
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

  // Rows first .. first+count-1 from rows `stride` apart, or their products with those of `times` where there is one. Panel
  // by panel: row by row, choosing each panel's width took a third of the recurrence of LSTM B32 H64.
  HOTLOOP_INLINE void put(int64_t first, int64_t count, const T* from, int64_t stride, const T* times = nullptr,
                          int64_t times_stride = 0) const {
    each([&](auto nv, int64_t vector, T* panel) {
      constexpr int NV = decltype(nv)::value;
      const Part<T> part(columns - (vector + NV - 1) * kL);  // of the last one
      for (int64_t row = 0; row < count; ++row) {
        const T* const at = from + row * stride + vector * kL;
        T* const to = panel + (first + row) * NV * kL;
        for (int v = 0; v < NV; ++v) {
          Vector<T> value = v == NV - 1 ? part.load(at + v * kL) : load(at + v * kL);
          if (times != nullptr) {
            const T* const factor = times + row * times_stride + (vector + v) * kL;
            value = (v == NV - 1 ? part.load(factor) : load(factor)) * value;
          }
          store(to + v * kL, value);
        }
      }
    });
  }
};

template <class Cell, class T>
struct BackwardRows;

template <class Cell, class T>
struct BackwardRun {
  static constexpr int G = Cell::kGates, S = Cell::kSaved, kL = kLanes<T>;
  static constexpr bool kTwoPasses = Cell::kOfH < G;
  const hotloop_backward_args& args;
  // pack_by_column
  T *weight_hh = nullptr, *weight_reset = nullptr, *weight_ih = nullptr;
  T* zeros = nullptr;      // [H]
  T* carry = nullptr;      // [B, H] GRU; an LSTM's is grad_c0
  T* gradients = nullptr;  // [chunk rows][row_stride] dG
  T* bias_sums = nullptr;  // [kGradients*H]
  T *h_panels = nullptr, *reset_panels = nullptr, *x_panels = nullptr;
  int64_t row_stride = 0;
  int64_t s0 = 0, s1 = 0;  // steps of this chunk

  static double step_ns(const hotloop_backward_args& args) { return 2 * ::step_ns<Cell, T>(args.forward); }

  static int64_t chunk_steps(const hotloop_backward_args& args) {
    int64_t chunk = args.forward.batch_size > 0 ? kChunkRows / args.forward.batch_size : args.forward.seq_len;
    const double most = kChunkNs / (step_ns(args) + 1);
    if ((double)chunk > most) chunk = (int64_t)most;
    if (chunk < 1) return 1;
    return chunk < args.forward.seq_len ? chunk : args.forward.seq_len;
  }

  static BackwardRun carve(const hotloop_backward_args& args, void* workspace, int64_t steps, int64_t& bytes) {
    Carver carver(workspace);
    const int64_t B = args.forward.batch_size, I = args.forward.input_size, H = args.forward.hidden_size;
    BackwardRun run{args};
    run.s1 = args.forward.seq_len - args.cursor;
    run.s0 = run.s1 - steps;
    // One line more than a whole number of them keeps rows of 4 KiB from meeting in the same sets of the cache.
    run.row_stride = (Cell::kGradients * H + kL - 1) / kL * kL + 64 / (int64_t)sizeof(T);
    const int64_t rows = chunk_steps(args) * B;
    run.weight_hh = carver.take<T>(blocks_of(H, kL) * Cell::kOfH * H * kL);
    run.weight_reset = carver.take<T>(blocks_of(H, kL) * (G - Cell::kOfH) * H * kL);
    if (args.grad_x) run.weight_ih = carver.take<T>(blocks_of(I, kL) * G * H * kL);
    run.zeros = carver.take<T>(H);
    run.carry = Cell::kCarriesH ? carver.take<T>(B * H) : static_cast<T*>(args.grad_c0);
    run.gradients = carver.take<T>(rows * run.row_stride);
    run.bias_sums = carver.take<T>(Cell::kGradients * H);
    if (args.grad_weight_hh) run.h_panels = carver.take<T>(blocks_of(H, kL) * kL * rows);
    if (args.grad_weight_hh && kTwoPasses) run.reset_panels = carver.take<T>(blocks_of(H, kL) * kL * rows);
    if (args.grad_weight_ih) run.x_panels = carver.take<T>(blocks_of(I, kL) * kL * rows);
    bytes = carver.bytes();
    return run;
  }

  void start() const {
    const hotloop_forward_args& f = args.forward;
    const int64_t H = f.hidden_size, state = f.batch_size * H * (int64_t)sizeof(T);
    const T* const from = static_cast<const T*>(f.weight_hh);
    pack_by_column<Cell::kOfH>(from, H, H, Cell::kHGate, weight_hh);
    if constexpr (kTwoPasses) pack_by_column<G - Cell::kOfH>(from + Cell::kOfH * H * H, H, H, kInOrder, weight_reset);
    if (args.grad_x) pack_by_column<G>(static_cast<const T*>(f.weight_ih), H, f.input_size, kInOrder, weight_ih);
    __builtin_memset(zeros, 0, H * sizeof(T));
    __builtin_memset(bias_sums, 0, Cell::kGradients * H * sizeof(T));
    copy_or_zero(args.grad_h0, args.grad_h_n, state);
    if (Cell::kHasC) copy_or_zero(args.grad_c0, args.grad_c_n, state);
  }

  static void copy_or_zero(void* to, const void* from, int64_t bytes) {
    if (bytes == 0) return;
    if (from != nullptr) {
      __builtin_memcpy(to, from, bytes);
    } else {
      __builtin_memset(to, 0, bytes);
    }
  }

  HOTLOOP_INLINE T* gradients_of(int64_t s, int64_t b) const {
    return gradients + ((s1 - 1 - s) * args.forward.batch_size + b) * row_stride;
  }

  // The recurrence of this chunk for some batch rows, and their rows of the panels.
  void recurrence(const hotloop::Share& share) const {
    const FlushSubnormals flush;
    const BackwardRows<Cell, T> part(*this, share);
    if (part.count == 0) return;
    if (share.team == nullptr) {
      for (int64_t stage = 0; stage < part.stages(); ++stage) part.stage(stage, 0);
    } else {
      hotloop::run_team(share.team, share.member, part.stages(), &BackwardRows<Cell, T>::slice,
                        const_cast<void*>(static_cast<const void*>(&part)));
    }
  }

  // This chunk's share of the gradients of weights, biases and x: a range of gate rows, and of the chunk's rows for x.
  void products(int index, int count) const {
    const FlushSubnormals flush;
    const hotloop_forward_args& f = args.forward;
    const int64_t H = f.hidden_size, J = G * H;
    const int64_t rows = (s1 - s0) * f.batch_size;
    const int64_t first = J * index / count, last = J * (index + 1) / count;
    if (h_panels) {
      T* const result = static_cast<T*>(args.grad_weight_hh);
      const int64_t of_h = Cell::kOfH * H, middle = last < of_h ? last : of_h;
      weight_gradient(result, {h_panels, H, rows}, gradients, Cell::kHGate, first, middle);
      if (kTwoPasses) {
        weight_gradient(result, {reset_panels, H, rows}, gradients, Cell::kHGate, first > of_h ? first : of_h, last);
      }
    }
    if (x_panels) {
      weight_gradient(static_cast<T*>(args.grad_weight_ih), {x_panels, f.input_size, rows},
                      gradients + Cell::kXSide * H, kInOrder, first, last);
    }
    if (args.grad_bias_ih || args.grad_bias_hh) {
      const int64_t columns = Cell::kGradients * H;
      sum_columns(columns * index / count, columns * (index + 1) / count, rows);
    }
    if (args.grad_x) {
      const Sequence<T> grad_x(static_cast<T*>(args.grad_x), args.grad_x_stride_t, args.grad_x_stride_b, f);
      Sequence<T> backwards = grad_x;  // the chunk's rows run from its last step to its first
      backwards.start = grad_x.at(s1 - 1, 0);
      backwards.step = -grad_x.step;
      const int64_t from = rows * index / count, to = rows * (index + 1) / count;
      const ChunkRows<T> results{backwards, 0, 0, f.batch_size};
      const T* const a = gradients + Cell::kXSide * H;
      for_tiles<1>(to - from, {0, blocks_of(f.input_size, kL)}, [&](auto mr, auto nb, int64_t row, int64_t block) {
        input_gradient_tile<decltype(mr)::value, decltype(nb)::value>(a, row_stride, weight_ih, J, f.input_size,
                                                                      results, from + row, block);
      });
    }
  }

  // Gate rows first..last-1 of a weight gradient; block j of the rows of dG belongs to torch gate gate_of[j].
  void weight_gradient(T* result, Panels<T> panels, const T* a, const int* gate_of, int64_t first, int64_t last) const {
    const int64_t H = args.forward.hidden_size;
    const bool first_chunk = s1 == args.forward.seq_len;
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
              const int64_t row = gate_of[(j + r) / H] * H + (j + r) % H;
              c[r] = result + row * panels.columns + vector * kL;
            }
            outer_tile<MR, NV>(a + j, row_stride, panel, panels.rows, c, first_chunk, panels.columns - vector * kL);
          });
          j += height;
        }
      });
    }
  }

  void sum_columns(int64_t first, int64_t last, int64_t rows) const {
    constexpr int64_t kWide = 8;
    for (int64_t column = first; column < last;) {
      if (column + kWide * kL <= last) {
        sum_vectors<kWide>(column, Part<T>(kL), rows);
        column += kWide * kL;
      } else {
        sum_vectors<1>(column, Part<T>(last - column), rows);
        column += kL;
      }
    }
  }

  template <int N>
  HOTLOOP_INLINE void sum_vectors(int64_t column, Part<T> part, int64_t rows) const {
    Vector<T> sums[N];
    for (int v = 0; v < N; ++v) sums[v] = part.load(bias_sums + column + v * kL);
    for (int64_t row = 0; row < rows; ++row) {
      const T* const from = gradients + row * row_stride + column;
      for (int v = 0; v < N; ++v) sums[v] = sums[v] + part.load(from + v * kL);
    }
    for (int v = 0; v < N; ++v) part.store(bias_sums + column + v * kL, sums[v]);
  }

  void finish() const {
    const int64_t H = args.forward.hidden_size;
    T* const bias_ih = static_cast<T*>(args.grad_bias_ih);
    T* const bias_hh = static_cast<T*>(args.grad_bias_hh);
    for (int g = 0; g < G; ++g) {
      if (bias_ih) __builtin_memcpy(bias_ih + g * H, bias_sums + (Cell::kXSide + g) * H, H * sizeof(T));
      if (bias_hh) __builtin_memcpy(bias_hh + Cell::kHGate[g] * H, bias_sums + g * H, H * sizeof(T));
    }
  }
};

// The rows of one share in one chunk.
template <class Cell, class T>
struct BackwardRows {
  static constexpr int S = Cell::kSaved, kL = kLanes<T>, kPasses = Cell::kOfH < Cell::kGates ? 2 : 1;
  const BackwardRun<Cell, T>& run;
  const hotloop_backward_args& args;
  const int64_t first, count;  // rows
  const int members;
  const Blocks blocks;
  const Sequence<const T> x, output, gates, c, grad_output;

  BackwardRows(const BackwardRun<Cell, T>& run, const hotloop::Share& share)
      : run(run),
        args(run.args),
        first(args.forward.batch_size * share.index / share.count),
        count(args.forward.batch_size * (share.index + 1) / share.count - first),
        members(share.members),
        blocks{0, blocks_of(args.forward.hidden_size, kL)},
        x(static_cast<const T*>(args.forward.x), args.forward.x_stride_t, args.forward.x_stride_b, args.forward),
        output(static_cast<const T*>(args.forward.output), args.forward.output_stride_t, args.forward.output_stride_b,
               args.forward),
        gates(static_cast<const T*>(args.forward.gates), args.forward.batch_size * S * args.forward.hidden_size,
              S * args.forward.hidden_size, args.forward),
        c(static_cast<const T*>(args.forward.c), args.forward.batch_size * args.forward.hidden_size,
          args.forward.hidden_size, args.forward),
        grad_output(static_cast<const T*>(args.grad_output), args.grad_output_stride_t, args.grad_output_stride_b,
                    args.forward) {}

  // Of a chunk: its steps from the last, pass by pass, and the first pass of the step before, which leaves dh.
  int64_t stages() const { return (run.s1 - run.s0) * kPasses + 1; }

  static void slice(void* rows, int64_t stage, int member) {
    static_cast<const BackwardRows*>(rows)->stage(stage, member);
  }

  HOTLOOP_INLINE void stage(int64_t stage, int member) const {
    const hotloop_forward_args& f = args.forward;
    const int64_t H = f.hidden_size, s = run.s1 - 1 - stage / kPasses;
    const T* const h0 = static_cast<const T*>(f.h0);
    const T* const c0 = static_cast<const T*>(f.c0);
    Blocks slice = blocks.slice(member, members);
    slice.descending = s % 2 != 0;
    BackwardStep<T> step{};
    step.row_stride = run.row_stride;
    step.dh = static_cast<T*>(args.grad_h0) + first * H;
    step.carry = run.carry + first * H;
    if (s < run.s1 - 1) step.next = run.gradients_of(s + 1, first);
    if (s >= run.s0) {
      step.gradients = run.gradients_of(s, first);
      if (args.grad_output) step.grad_output = grad_output.at(s, first);
      step.grad_output_row = grad_output.row;
      if constexpr (S > 0) step.gates = gates.at(s, first);
      step.h = output.at(s, first);
      step.h_row = output.row;
      step.h_prev = s > 0 ? output.at(s - 1, first) : h0 ? h0 + first * H : run.zeros;
      step.h_prev_row = s > 0 ? output.row : h0 ? H : 0;
      if constexpr (Cell::kHasC) {
        step.c = c.at(s, first);
        step.c_prev = s > 0 ? c.at(s - 1, first) : c0 ? c0 + first * H : run.zeros;
        step.c_prev_row = s > 0 || c0 ? H : 0;
      }
    }
    if constexpr (kPasses == 2) {
      if (stage % kPasses == 1) {
        for_tiles<1>(count, slice, [&](auto mr, auto nb, int64_t row, int64_t block) {
          reset_tile<Cell, decltype(mr)::value, decltype(nb)::value>(step, run.weight_reset, H, row, block);
        });
        return;
      }
    }
    if (s >= run.s0 && (run.h_panels || run.x_panels)) put_rows(step, s, member);
    if (step.next != nullptr) {
      for_tiles<1>(count, slice, [&](auto mr, auto nb, int64_t row, int64_t block) {
        backward_tile<Cell, decltype(mr)::value, decltype(nb)::value>(step, run.weight_hh, H, row, block);
      });
      return;
    }
    for (int64_t row = 0; row < count; ++row) {
      for (int64_t block = slice.first; block < slice.last; ++block) {
        const Part<T> part(H - block * kL);
        cell_backward<Cell>(step, H, row, block * kL, part, part.load(step.dh + row * H + block * kL));
      }
    }
  }

  // A member fills some of the panels.
  void put_rows(const BackwardStep<T>& step, int64_t s, int member) const {
    const int64_t H = args.forward.hidden_size, I = args.forward.input_size;
    const int64_t rows = (run.s1 - run.s0) * args.forward.batch_size;
    const int64_t to = (run.s1 - 1 - s) * args.forward.batch_size + first;
    const Panels<T> of_h{run.h_panels, H, rows, member, members}, of_reset{run.reset_panels, H, rows, member, members};
    const Panels<T> of_x{run.x_panels, I, rows, member, members};
    if (run.h_panels) of_h.put(to, count, step.h_prev, step.h_prev_row);
    if (kPasses == 2 && run.reset_panels) {  // r is the first of the saved arrays
      of_reset.put(to, count, step.h_prev, step.h_prev_row, step.gates, S * H);
    }
    if (run.x_panels) of_x.put(to, count, x.at(s, first), x.row);
  }
};

template <class Cell, class T>
double backward_step_ns(const hotloop_backward_args& args) {
  return BackwardRun<Cell, T>::step_ns(args);
}

// The recurrence alone: as the products of a step forward, without x.
template <class Cell, class T>
double recurrence_ns(const hotloop_backward_args& args) {
  hotloop_forward_args without_x = args.forward;
  without_x.input_size = 0;
  return step_ns<Cell, T>(without_x);
}

template <class Cell, class T>
int64_t backward_most_steps(const hotloop_backward_args& args) {
  return BackwardRun<Cell, T>::chunk_steps(args);
}

template <class Cell, class T>
int64_t backward_workspace(const hotloop_backward_args& args, int) {
  int64_t bytes;
  BackwardRun<Cell, T>::carve(args, nullptr, 0, bytes);
  return bytes;
}

template <class Cell, class T>
void backward_start(const hotloop_backward_args& args, void* workspace, int) {
  int64_t bytes;
  BackwardRun<Cell, T>::carve(args, workspace, 0, bytes).start();
}

template <class Cell, class T>
void backward_rows(const hotloop_backward_args& args, void* workspace, int64_t steps, const hotloop::Share& share) {
  int64_t bytes;
  BackwardRun<Cell, T>::carve(args, workspace, steps, bytes).recurrence(share);
}

template <class Cell, class T>
void backward_products(const hotloop_backward_args& args, void* workspace, int64_t steps, int index, int shares) {
  int64_t bytes;
  BackwardRun<Cell, T>::carve(args, workspace, steps, bytes).products(index, shares);
}

template <class Cell, class T>
void backward_finish(const hotloop_backward_args& args, void* workspace) {
  int64_t bytes;
  BackwardRun<Cell, T>::carve(args, workspace, 0, bytes).finish();
}

}  // namespace
