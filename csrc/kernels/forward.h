// The whole sequence forward: input projection in chunks of steps, then the time loop, cell by template.
#pragma once

#include "../dispatch.h"
#include "cells.h"
#include "gemm.h"

namespace {

// Rows projected at once: enough for whole tiles and for the weights to be read from L2 once for many rows, few enough
// for the projected rows to stay in cache until the recurrence reads them.
constexpr int64_t kProjectedRows = 96;
constexpr int64_t kProjectedBytes = 192 * 1024;
// A vector's lane does 6 (scalar) to 14 (AVX) flops a nanosecond in the products.
constexpr double kLaneFlopsNs = 12.5;
// What the cell functions of one unit cost, in flops of products (LSTM: 16.4 ns a vector of 16 at 266 GF/s).
constexpr double kCellFlops = 270;

// Cuts arrays out of the caller's workspace, each starting a cache line. With a null start it only counts.
class Carver {
 public:
  HOTLOOP_INLINE explicit Carver(const void* start)
      : start_((reinterpret_cast<uintptr_t>(start) + 63) & ~static_cast<uintptr_t>(63)) {}
  template <class T>
  HOTLOOP_INLINE T* take(int64_t count) {
    T* const taken = reinterpret_cast<T*>(start_ + (uintptr_t)used_);
    used_ += (count * (int64_t)sizeof(T) + 63) & ~(int64_t)63;
    return taken;
  }
  HOTLOOP_INLINE int64_t bytes() const { return used_ + 64; }

 private:
  uintptr_t start_;
  int64_t used_ = 0;
};

// A sequence in the order of processing: row (s, b) of step s. `reverse` is a negative stride and nothing else.
template <class T>
struct Sequence {
  T* start;
  int64_t step, row;

  HOTLOOP_INLINE Sequence(T* base, int64_t stride_t, int64_t stride_b, const hotloop_forward_args& args)
      : start(args.reverse && base ? base + (args.seq_len - 1) * stride_t : base),
        step(args.reverse ? -stride_t : stride_t),
        row(stride_b) {}
  HOTLOOP_INLINE T* at(int64_t s, int64_t b) const { return start + s * step + b * row; }
};

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

  void fill(const hotloop_forward_args& args) const {
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

// Where one step of the recurrence reads and writes; pointers are those of the batch's first row.
template <class T>
struct ForwardStep {
  const T* projected;  // [B, G*H]
  int64_t projected_row;
  T* gates;  // [B, S*H] or null; never null for a cell of two passes, which keeps there what the second needs
  int64_t gates_row;
  T* reset_h;       // [B, H] between the two passes
  const T* h_prev;  // [B, H]
  int64_t h_prev_row;
  T* h;
  int64_t h_row;
  const T* c_prev;  // [B, H] contiguous but for the zero row
  int64_t c_prev_row;
  T* c;
  const T* later_gates;  // where the projection of a later step will be written, or null

  // Asks for its lines of a row, units from `unit` on: they were written long ago, if ever, and come from memory. Not for
  // those of h: the output may lie on pages that the system has not made yet, where asking took RNN T1000 B1 H128 twice
  // the time.
  template <class Cell, int NB>
  HOTLOOP_INLINE void ask(int64_t H, int64_t row, int64_t unit) const {
    for (int b = 0; b < NB; ++b) {
      const int64_t at = unit + b * kLanes<T>;
      if (later_gates != nullptr) {
        for (int s = 0; s < Cell::kSaved; ++s) prefetch(later_gates + row * gates_row + s * H + at);
      }
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
  for (int r = 0; r < MR; ++r) h_prev[r] = step.h_prev + (row + r) * step.h_prev_row;
  for (int b = 0; b < NB; ++b) {
    const int64_t unit = (block + b) * kL;
    const Part<T> part(H - unit);
    for (int r = 0; r < MR; ++r) {
      const T* const projected = step.projected + (row + r) * step.projected_row + unit;
      for (int g = 0; g < G; ++g) acc[r][b * G + g] = part.load(projected + g * H);
    }
  }
  multiply<MR, NB, G>(acc, h_prev, packed.weight_hh + block * H * G * kL, H * G * kL, H);
  for (int b = 0; b < NB; ++b) {
    const int64_t unit = (block + b) * kL;
    const Part<T> part(H - unit);
    for (int r = 0; r < MR; ++r) {
      Vector<T> saved[G];
      part.store(step.reset_h + (row + r) * H + unit, Cell::gates(&acc[r][b * G], part.load(h_prev[r] + unit), saved));
      T* const gates = step.gates + (row + r) * step.gates_row + unit;
      for (int g = 0; g < G; ++g) part.store(gates + g * H, saved[g]);
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
    h_prev[r] = step.h_prev + (row + r) * step.h_prev_row;
    operand[r] = kSecond ? step.reset_h + (row + r) * H : h_prev[r];
  }
  for (int b = 0; b < NB; ++b) {
    const int64_t unit = (block + b) * kL;
    const Part<T> part(H - unit);
    for (int r = 0; r < MR; ++r) {
      const T* const projected = step.projected + (row + r) * step.projected_row + unit;
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
      Vector<T> c{}, before{}, apart{}, saved[Cell::kSaved + 1];
      if constexpr (Cell::kHasC) c = part.load(step.c_prev + (row + r) * step.c_prev_row + unit);
      if constexpr (Cell::kCarriesH) before = part.load(h_prev[r] + unit);
      if constexpr (Cell::kApart >= 0) {
        apart = part.load(step.projected + (row + r) * step.projected_row + Cell::kApart * H + unit);
      }
      if constexpr (kSecond) {
        for (int g = 0; g < kFirst; ++g) {
          saved[g] = part.load(step.gates + (row + r) * step.gates_row + g * H + unit);
        }
      }
      const Vector<T> h = Cell::forward(&acc[r][b * G], apart, before, c, saved);
      part.store(step.h + (row + r) * step.h_row + unit, h);
      if constexpr (Cell::kHasC) part.store(step.c + (row + r) * H + unit, c);
      if constexpr (Cell::kSaved > 0) {
        if (step.gates != nullptr) {
          T* const gates = step.gates + (row + r) * step.gates_row + unit;
          for (int s = kFirst; s < Cell::kSaved; ++s) part.store(gates + s * H, saved[s]);
        }
      }
    }
  }
}

// Rows of a chunk, (step, batch row) with the batch row running fastest, and where each lies.
template <class T>
struct ChunkRows {
  Sequence<T> sequence;
  int64_t first_step, first_row, rows_a_step;

  HOTLOOP_INLINE T* at(int64_t row) const {
    return sequence.at(first_step + row / rows_a_step, first_row + row % rows_a_step);
  }
};

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

// The work of one step forward. Lanes beyond the last unit cost as much as those that are used.
template <class Cell, class T>
double step_flops(const hotloop_forward_args& args) {
  const double units = (double)(blocks_of(args.hidden_size, kLanes<T>) * kLanes<T>);
  const double of_unit = 2.0 * Cell::kGates * (double)(args.input_size + args.hidden_size) + kCellFlops;
  return (double)args.batch_size * units * of_unit;
}

template <class Cell, class T>
double step_ns(const hotloop_forward_args& args) {
  return step_flops<Cell, T>(args) / (kLaneFlopsNs * kLanes<T>);
}

template <class Cell, class T>
struct ForwardRows;

template <class Cell, class T>
struct ForwardRun {
  static constexpr bool kTwoPasses = Cell::kOfH < Cell::kGates;
  const hotloop_forward_args& args;
  PackedWeights<Cell, T> packed;
  T* zeros;      // [H]
  T* projected;  // [shares][chunk rows][G*H], where projections are not kept
  int64_t projected_size;
  T* reset_h;  // [shares][rows][H] of a cell of two passes
  int64_t reset_h_size;
  int64_t chunk;  // steps projected at once

  // In training the projection goes where the gates will be (RNN: where h will be), and is overwritten by them.
  static HOTLOOP_INLINE bool keeps_projection(const hotloop_forward_args& args) {
    return Cell::kSaved == 0 || args.gates != nullptr;
  }

  static int64_t chunk_steps(const hotloop_forward_args& args, int64_t rows) {
    const int64_t row_bytes = Cell::kGates * args.hidden_size * (int64_t)sizeof(T);
    int64_t most = kProjectedBytes / row_bytes;
    if (most > kProjectedRows) most = kProjectedRows;
    const int64_t steps = rows > 0 ? most / rows : 1;
    return steps < 1 ? 1 : steps > args.seq_len ? args.seq_len : steps;
  }

  // Points every array into the workspace; with a null workspace this is how its size is found.
  static ForwardRun carve(const hotloop_forward_args& args, void* workspace, int shares, int64_t& bytes) {
    Carver carver(workspace);
    const int64_t rows = (args.batch_size + shares - 1) / shares;
    ForwardRun run{args, {}, nullptr, nullptr, 0, nullptr, 0, chunk_steps(args, rows)};
    run.zeros = carver.take<T>(args.hidden_size);
    if (args.packed == nullptr) {
      run.packed = PackedWeights<Cell, T>::carve(carver, args.input_size, args.hidden_size);
    } else {
      Carver elsewhere(static_cast<const char*>(args.packed) + hotloop::kPackedHeaderBytes);
      run.packed = PackedWeights<Cell, T>::carve(elsewhere, args.input_size, args.hidden_size);
    }
    if (!keeps_projection(args)) {
      run.projected_size = (run.chunk * rows * Cell::kGates * args.hidden_size + 15) / 16 * 16;
      run.projected = carver.take<T>(run.projected_size * shares);
    }
    if (kTwoPasses) {
      run.reset_h_size = (rows * args.hidden_size + 15) / 16 * 16;
      run.reset_h = carver.take<T>(run.reset_h_size * shares);
    }
    bytes = carver.bytes();
    return run;
  }

  void start() const {
    if (args.packed == nullptr) packed.fill(args);
    __builtin_memset(zeros, 0, args.hidden_size * sizeof(T));
  }

  void rows(int64_t steps, const hotloop::Share& share) const {
    const FlushSubnormals flush;
    const ForwardRows<Cell, T> part(*this, steps, share);
    if (part.count == 0) return;
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
  const hotloop_forward_args& args;
  const ForwardRun<Cell, T>& run;
  const int64_t begin, end;    // steps
  const int64_t first, count;  // rows
  const int members;
  const Blocks blocks;
  const Sequence<const T> x;
  const Sequence<T> output, gates, c;
  const bool keeps;                    // the projection goes where it is kept
  T *const projected, *const reset_h;  // of this share

  ForwardRows(const ForwardRun<Cell, T>& run, int64_t steps, const hotloop::Share& share)
      : args(run.args),
        run(run),
        begin(args.cursor),
        end(args.cursor + steps),
        first(args.batch_size * share.index / share.count),
        count(args.batch_size * (share.index + 1) / share.count - first),
        members(share.members),
        blocks{0, blocks_of(args.hidden_size, kLanes<T>)},
        x(static_cast<const T*>(args.x), args.x_stride_t, args.x_stride_b, args),
        output(static_cast<T*>(args.output), args.output_stride_t, args.output_stride_b, args),
        gates(static_cast<T*>(args.gates), args.batch_size * S * args.hidden_size, S * args.hidden_size, args),
        c(static_cast<T*>(args.c), args.batch_size * args.hidden_size, args.hidden_size, args),
        keeps(run.keeps_projection(args)),
        projected(run.projected + share.index * run.projected_size),
        reset_h(run.reset_h + share.index * run.reset_h_size) {}

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

  // Where the projection of the chunk that begins at s0 goes: its row (s, b) is at (s - base step, b - base row).
  HOTLOOP_INLINE Sequence<T> projection() const {
    Sequence<T> to = S > 0 ? gates : output;
    if (!keeps) {
      to.start = projected;
      to.step = count * G * args.hidden_size;
      to.row = G * args.hidden_size;
    }
    return to;
  }

  void project(int64_t s0, int64_t s1, Blocks slice) const {
    const int64_t I = args.input_size, H = args.hidden_size;
    const ChunkRows<const T> from{x, s0, first, count};
    const ChunkRows<T> to{projection(), keeps ? s0 : 0, keeps ? first : 0, count};
    for_tiles<G>((s1 - s0) * count, slice, [&](auto mr, auto nb, int64_t row, int64_t block) {
      project_tile<Cell, decltype(mr)::value, decltype(nb)::value>(from, to, run.packed, I, H, row, block);
    });
  }

  HOTLOOP_INLINE void step(int64_t s0, int64_t s, int pass, Blocks slice) const {
    const int64_t H = args.hidden_size;
    const T* const h0 = static_cast<const T*>(args.h0);
    const T* const c0 = static_cast<const T*>(args.c0);
    T* const c_n = static_cast<T*>(args.c_n);
    const Sequence<T> from = projection();
    ForwardStep<T> step;
    step.projected = keeps ? from.at(s, first) : from.at(s - s0, 0);
    step.projected_row = from.row;
    step.gates = args.gates ? gates.at(s, first) : nullptr;
    step.gates_row = gates.row;
    if (kPasses == 2) {  // in inference the projected row is where they lie
      if (!args.gates) step.gates = projected + (s - s0) * from.step;
      if (!args.gates) step.gates_row = from.row;
      step.reset_h = reset_h;
    }
    step.h = output.at(s, first);
    step.h_row = output.row;
    step.h_prev = s > 0 ? output.at(s - 1, first) : h0 ? h0 + first * H : run.zeros;
    step.h_prev_row = s > 0 ? output.row : h0 ? H : 0;
    if constexpr (Cell::kHasC) {  // in inference c_n is the running state
      step.c = args.c ? c.at(s, first) : c_n + first * H;
      step.c_prev = s > 0 ? (args.c ? c.at(s - 1, first) : c_n + first * H) : c0 ? c0 + first * H : run.zeros;
      step.c_prev_row = s > 0 || c0 ? H : 0;
    }
    step.later_gates = S > 0 && args.gates && s + run.chunk < args.seq_len ? gates.at(s + run.chunk, first) : nullptr;
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

  // h_n and c_n, after the last step.
  void finish(Blocks slice) const {
    if (end < args.seq_len) return;
    const int64_t H = args.hidden_size, unit = slice.first * kLanes<T>;
    const int64_t last = slice.last * kLanes<T> < H ? slice.last * kLanes<T> : H;
    const size_t bytes = (size_t)(last - unit) * sizeof(T);
    for (int64_t b = first; b < first + count; ++b) {
      __builtin_memcpy(static_cast<T*>(args.h_n) + b * H + unit, output.at(end - 1, b) + unit, bytes);
      if (Cell::kHasC && args.c) {
        __builtin_memcpy(static_cast<T*>(args.c_n) + b * H + unit, c.at(end - 1, b) + unit, bytes);
      }
    }
  }
};

template <class Cell, class T>
int64_t packed_bytes(const hotloop_forward_args& args) {
  Carver carver(nullptr);
  PackedWeights<Cell, T>::carve(carver, args.input_size, args.hidden_size);
  return carver.bytes();
}

template <class Cell, class T>
void pack(const hotloop_forward_args& args, void* packed) {
  Carver carver(packed);
  PackedWeights<Cell, T>::carve(carver, args.input_size, args.hidden_size).fill(args);
}

template <class Cell, class T>
int64_t forward_most_steps(const hotloop_forward_args& args) {
  return args.seq_len;
}

template <class Cell, class T>
int64_t forward_workspace(const hotloop_forward_args& args, int shares) {
  int64_t bytes;
  ForwardRun<Cell, T>::carve(args, nullptr, shares, bytes);
  return bytes;
}

template <class Cell, class T>
void forward_start(const hotloop_forward_args& args, void* workspace, int shares) {
  int64_t bytes;
  ForwardRun<Cell, T>::carve(args, workspace, shares, bytes).start();
}

template <class Cell, class T>
void forward_rows(const hotloop_forward_args& args, void* workspace, int64_t steps, const hotloop::Share& share) {
  int64_t bytes;
  ForwardRun<Cell, T>::carve(args, workspace, share.count, bytes).rows(steps, share);
}

}  // namespace
