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
// A chunk is also what is done between two looks at the clock: at most some 60 ms.
template <class T>
constexpr double kChunkFlops = 20 * kSliceFlops<T>;
// Products of a chunk that are worth waking threads that slept while one thread ran the recurrence of a single row.
template <class T>
constexpr double kWakeFlops = kSliceFlops<T>;

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
  for (int j = 0; j < Cell::kGradients; ++j) part.store(gradients + j * H, da[j]);
  if constexpr (Cell::kHasC || Cell::kCarriesH) part.store(step.carry + row * H + unit, carry);
}

// dh = dG of the step after * weight_hh (+ what bypassed weight_hh), and the cell's derivative on it.
template <class Cell, int MR, int NB, class T>
HOTLOOP_NOINLINE void backward_tile(const BackwardStep<T>& step, const T* weight_hh, int64_t H, int64_t row,
                                    int64_t block) {
  constexpr int kL = kLanes<T>;
  const int64_t depth = Cell::kGates * H;
  Vector<T> acc[MR][NB] = {};
  const T* next[MR];
  for (int r = 0; r < MR; ++r) next[r] = step.next + (row + r) * step.row_stride;
  multiply<MR, NB, 1>(acc, next, weight_hh + block * depth * kL, depth * kL, depth);
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

// Right-hand sides of the weight gradients: a chunk's rows of x or h, in panels of 4, 2 or 1 vectors, [panel][row][lane].
template <class T>
struct Panels {
  static constexpr int kL = kLanes<T>;
  T* start;
  int64_t columns, rows;

  // f(Int<NV>, first vector, panel) for every panel.
  template <class F>
  HOTLOOP_INLINE void each(F&& f) const {
    const int64_t vectors = blocks_of(columns, kL);
    for (int64_t v = 0; v < vectors;) {
      int width = 4;
      while (width > vectors - v) width /= 2;
      with_power_of_two<4>(width, [&](auto nv) { f(nv, v, start + v * kL * rows); });
      v += width;
    }
  }

  HOTLOOP_INLINE void put(int64_t row, const T* from) const {
    each([&](auto nv, int64_t first, T* panel) {
      constexpr int NV = decltype(nv)::value;
      for (int v = 0; v < NV; ++v) {
        store(panel + (row * NV + v) * kL, Part<T>(columns - (first + v) * kL).load(from + (first + v) * kL));
      }
    });
  }
};

template <class Cell, class T>
struct BackwardRun {
  static constexpr int G = Cell::kGates, S = Cell::kSaved, kL = kLanes<T>;
  hotloop_backward_args& args;
  T *weight_hh, *weight_ih;  // pack_by_column
  T* zeros;                  // [H]
  T* carry;                  // [B, H] GRU; an LSTM's is grad_c0
  T* gradients;              // [chunk rows][row_stride] dG
  T* bias_sums;              // [kGradients*H]
  T *h_panels, *x_panels;
  int64_t row_stride, chunk;
  int64_t s0, s1;  // steps of this chunk

  static int useful_threads(const hotloop_forward_args& f, int threads) {
    return 2 * (double)f.seq_len * step_flops<Cell, T>(f) < kInlineFlops<T> ? 1 : threads;
  }

  static BackwardRun carve(hotloop_backward_args& args, void* workspace, int64_t& bytes) {
    Carver carver(workspace);
    const int64_t B = args.forward.batch_size, I = args.forward.input_size, H = args.forward.hidden_size;
    BackwardRun run{args, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, 0, 0, 0, 0};
    run.chunk = B > 0 ? kChunkRows / B : args.forward.seq_len;
    const double most = kChunkFlops<T> / (2 * step_flops<Cell, T>(args.forward) + 1);
    if ((double)run.chunk > most) run.chunk = (int64_t)most;
    if (run.chunk < 1) run.chunk = 1;
    if (run.chunk > args.forward.seq_len) run.chunk = args.forward.seq_len;
    // One line more than a whole number of them keeps rows of 4 KiB from meeting in the same sets of the cache.
    run.row_stride = (Cell::kGradients * H + kL - 1) / kL * kL + 64 / (int64_t)sizeof(T);
    const int64_t rows = run.chunk * B;
    run.weight_hh = carver.take<T>(blocks_of(H, kL) * G * H * kL);
    if (args.grad_x) run.weight_ih = carver.take<T>(blocks_of(I, kL) * G * H * kL);
    run.zeros = carver.take<T>(H);
    run.carry = Cell::kCarriesH ? carver.take<T>(B * H) : static_cast<T*>(args.grad_c0);
    run.gradients = carver.take<T>(rows * run.row_stride);
    run.bias_sums = carver.take<T>(Cell::kGradients * H);
    if (args.grad_weight_hh) run.h_panels = carver.take<T>(blocks_of(H, kL) * kL * rows);
    if (args.grad_weight_ih) run.x_panels = carver.take<T>(blocks_of(I, kL) * kL * rows);
    bytes = carver.bytes();
    return run;
  }

  void start() const {
    const hotloop_forward_args& f = args.forward;
    const int64_t H = f.hidden_size, state = f.batch_size * H * (int64_t)sizeof(T);
    static constexpr int in_order[] = {0, 1, 2, 3};
    pack_by_column<G>(static_cast<const T*>(f.weight_hh), H, H, Cell::kHGate, weight_hh);
    if (args.grad_x) {
      pack_by_column<G>(static_cast<const T*>(f.weight_ih), H, f.input_size,
                        reinterpret_cast<const int (&)[G]>(in_order), weight_ih);
    }
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
  void recurrence(int index, int count) const {
    const FlushSubnormals flush;
    const hotloop_forward_args& f = args.forward;
    const int64_t B = f.batch_size, H = f.hidden_size;
    const int64_t first = B * index / count, last = B * (index + 1) / count, rows = last - first;
    if (rows == 0) return;
    const int64_t blocks = blocks_of(H, kL);
    const Sequence<const T> x(static_cast<const T*>(f.x), f.x_stride_t, f.x_stride_b, f);
    const Sequence<const T> output(static_cast<const T*>(f.output), f.output_stride_t, f.output_stride_b, f);
    const Sequence<const T> gates(static_cast<const T*>(f.gates), B * S * H, S * H, f);
    const Sequence<const T> c(static_cast<const T*>(f.c), B * H, H, f);
    const Sequence<const T> grad_output(static_cast<const T*>(args.grad_output), args.grad_output_stride_t,
                                        args.grad_output_stride_b, f);
    const T* const h0 = static_cast<const T*>(f.h0);
    const T* const c0 = static_cast<const T*>(f.c0);

    for (int64_t s = s1 - 1; s >= s0 - 1; --s) {
      BackwardStep<T> step{};
      step.row_stride = row_stride;
      step.dh = static_cast<T*>(args.grad_h0) + first * H;
      step.carry = carry + first * H;
      if (s < s1 - 1) step.next = gradients_of(s + 1, first);
      if (s >= s0) {
        step.gradients = gradients_of(s, first);
        if (args.grad_output) step.grad_output = grad_output.at(s, first);
        step.grad_output_row = grad_output.row;
        if constexpr (S > 0) step.gates = gates.at(s, first);
        step.h = output.at(s, first);
        step.h_row = output.row;
        step.h_prev = s > 0 ? output.at(s - 1, first) : h0 ? h0 + first * H : zeros;
        step.h_prev_row = s > 0 ? output.row : h0 ? H : 0;
        if constexpr (Cell::kHasC) {
          step.c = c.at(s, first);
          step.c_prev = s > 0 ? c.at(s - 1, first) : c0 ? c0 + first * H : zeros;
          step.c_prev_row = s > 0 || c0 ? H : 0;
        }
        if (h_panels || x_panels) put_rows(x, s, first, rows, step.h_prev, step.h_prev_row);
      }
      if (step.next != nullptr) {
        for_tiles<1>(rows, blocks, [&](auto mr, auto nb, int64_t row, int64_t block) {
          backward_tile<Cell, decltype(mr)::value, decltype(nb)::value>(step, weight_hh, H, row, block);
        });
      } else {
        for (int64_t row = 0; row < rows; ++row) {
          for (int64_t unit = 0; unit < H; unit += kL) {
            const Part<T> part(H - unit);
            cell_backward<Cell>(step, H, row, unit, part, part.load(step.dh + row * H + unit));
          }
        }
      }
    }
  }

  void put_rows(const Sequence<const T>& x, int64_t s, int64_t first, int64_t rows, const T* h_prev,
                int64_t h_prev_row) const {
    const hotloop_forward_args& f = args.forward;
    const int64_t chunk_rows = (s1 - s0) * f.batch_size, to = (s1 - 1 - s) * f.batch_size + first;
    for (int64_t row = 0; row < rows; ++row) {
      if (h_panels) Panels<T>{h_panels, f.hidden_size, chunk_rows}.put(to + row, h_prev + row * h_prev_row);
      if (x_panels) Panels<T>{x_panels, f.input_size, chunk_rows}.put(to + row, x.at(s, first + row));
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
      weight_gradient(static_cast<T*>(args.grad_weight_hh), {h_panels, H, rows}, gradients, Cell::kHGate, first, last);
    }
    if (x_panels) {
      static constexpr int in_order[] = {0, 1, 2, 3};
      weight_gradient(static_cast<T*>(args.grad_weight_ih), {x_panels, f.input_size, rows},
                      gradients + Cell::kXSide * H, in_order, first, last);
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
      for_tiles<1>(to - from, blocks_of(f.input_size, kL), [&](auto mr, auto nb, int64_t row, int64_t block) {
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
    constexpr int kWide = 8;
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

  static void recurrence_task(void* run, int index, int count) {
    static_cast<BackwardRun*>(run)->recurrence(index, count);
  }
  static void products_task(void* run, int index, int count) { static_cast<BackwardRun*>(run)->products(index, count); }
};

template <class Cell, class T>
int64_t backward_workspace(const hotloop_backward_args& args, int) {
  int64_t bytes;
  hotloop_backward_args copy = args;
  BackwardRun<Cell, T>::carve(copy, nullptr, bytes);
  return bytes;
}

template <class Cell, class T>
int backward(hotloop_backward_args& args, int threads, int64_t deadline) {
  using Run = BackwardRun<Cell, T>;
  const hotloop_forward_args& f = args.forward;
  int64_t bytes;
  Run run = Run::carve(args, args.workspace, bytes);
  if (args.cursor == 0) run.start();
  threads = Run::useful_threads(f, threads);
  const int row_threads = threads < f.batch_size ? threads : f.batch_size > 0 ? (int)f.batch_size : 1;
  const double products = 2 * (double)run.chunk * step_flops<Cell, T>(f);
  if (row_threads == 1 && products < kWakeFlops<T>) threads = 1;
  while (args.cursor < f.seq_len) {
    run.s1 = f.seq_len - args.cursor;
    run.s0 = run.s1 > run.chunk ? run.s1 - run.chunk : 0;
    parallel(row_threads, &Run::recurrence_task, &run);
    parallel(threads, &Run::products_task, &run);
    args.cursor += run.s1 - run.s0;
    if (args.cursor < f.seq_len && monotonic_ns() > deadline) return HOTLOOP_AGAIN;
  }
  run.finish();
  return HOTLOOP_OK;
}

}  // namespace
