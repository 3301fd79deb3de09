// Packed layouts and the register tiles: all products of the kernels.
//
// A unit block is kLanes consecutive units (or inputs). Packed weights are a stream in the order the tile reads them:
//
//   [block][k][gate][lane]        k = 0 .. depth-1; lanes beyond the last unit are zero
//
//   block 0: | k=0: i i i i  f f f f  g g g g  o o o o | k=1: i i i i  f f f f ... |        (4 lanes shown)
//   block 1: | ...
//
// so one tile of MR rows x NB blocks holds all G gates of its units in MR*NB*G accumulators when the last k is done, and
// the cell runs on them at once. Every element of a result is one chain of fma over k = 0, 1, ... starting from what
// the accumulator held: no sum over k is ever split, so neither the tile's height nor its place shows in the bits.
#pragma once

#include "simd.h"

namespace {

// acc[r][b * G + g] += sum over k of a[r][k] * w[b][k][g]. On the way, ask(r) asks for what will be needed of row r: all at
// once would fill the queue of misses, and the product would wait behind it.
template <int MR, int NB, int G, class T, class Ask>
HOTLOOP_INLINE void multiply(Vector<T> (&result)[MR][NB * G], const T* const (&a)[MR], const T* w, int64_t block_stride,
                             int64_t depth, Ask&& ask) {
  constexpr int kL = kLanes<T>, NV = NB * G;
  // A copy that nothing else refers to, and loops unrolled before the compiler optimises. The caller's array is indexed
  // later, and g++ 11 and clang 14 would keep it in memory and store every accumulator in every turn: 2.8 and 1.9 times
  // the time of LSTM T128 B32 I256 H256.
  Vector<T> acc[MR][NV];
  unroll<MR * NV>([&](auto i) HOTLOOP_LAMBDA { acc[i.value / NV][i.value % NV] = result[i.value / NV][i.value % NV]; });
  int64_t k = 0;
  for (int row = 0; row < MR; ++row) {
    ask(row);
    for (const int64_t end = depth * (row + 1) / MR; k < end; ++k) {
      const T* const at = w + k * G * kL;
      if constexpr ((MR + 1) * NV + 1 <= Isa::kRegisters) {
        Vector<T> weight[NV];
        unroll<NV>([&](auto v)
                       HOTLOOP_LAMBDA { weight[v.value] = load(at + v.value / G * block_stride + v.value % G * kL); });
        unroll<MR>([&](auto r) HOTLOOP_LAMBDA {
          const Vector<T> value = splat(a[r.value][k]);
          unroll<NV>([&](auto v) HOTLOOP_LAMBDA {
            acc[r.value][v.value] = fma(value, weight[v.value], acc[r.value][v.value]);
          });
        });
      } else {  // as for 3 x 4 of 16 registers: 12 accumulators, 3 broadcasts, one weight at a time
        Vector<T> value[MR];
        unroll<MR>([&](auto r) HOTLOOP_LAMBDA { value[r.value] = splat(a[r.value][k]); });
        unroll<NV>([&](auto v) HOTLOOP_LAMBDA {
          const Vector<T> weight = load(at + v.value / G * block_stride + v.value % G * kL);
          unroll<MR>([&](auto r) HOTLOOP_LAMBDA {
            acc[r.value][v.value] = fma(value[r.value], weight, acc[r.value][v.value]);
          });
        });
      }
    }
  }
  unroll<MR * NV>([&](auto i) HOTLOOP_LAMBDA { result[i.value / NV][i.value % NV] = acc[i.value / NV][i.value % NV]; });
}

template <int MR, int NB, int G, class T>
HOTLOOP_INLINE void multiply(Vector<T> (&result)[MR][NB * G], const T* const (&a)[MR], const T* w, int64_t block_stride,
                             int64_t depth) {
  multiply<MR, NB, G>(result, a, w, block_stride, depth, [](int) HOTLOOP_LAMBDA {});
}

// The most rows of a tile whose blocks hold `vectors` vectors each, and how many blocks go with a number of rows.
// A row of few vectors takes more blocks, since 8 chains hide the latency of fma; more than 8 blocks or rows bring nothing.
constexpr int max_rows(int vectors) {
  const int rows = kAccumulators / (vectors == 1 ? 4 : vectors);
  return rows < 8 ? rows : 8;
}

constexpr int max_blocks(int rows, int vectors) {
  int blocks = 1;
  while (2 * blocks * rows * vectors <= kAccumulators && 2 * blocks * vectors <= 16 && 2 * blocks <= 8) blocks *= 2;
  return blocks;
}

template <int kLow, int kHigh, class F>
HOTLOOP_INLINE void with_int(int value, F&& f) {
  if constexpr (kLow == kHigh) {
    f(Int<kLow>{});
  } else {
    constexpr int kMiddle = (kLow + kHigh) / 2;
    if (value <= kMiddle) {
      with_int<kLow, kMiddle>(value, f);
    } else {
      with_int<kMiddle + 1, kHigh>(value, f);
    }
  }
}

template <int kMost, class F>
HOTLOOP_INLINE void with_power_of_two(int value, F&& f) {
  if constexpr (kMost == 1) {
    f(Int<1>{});
  } else {
    if (value == kMost) {
      f(Int<kMost>{});
    } else {
      with_power_of_two<kMost / 2>(value, f);
    }
  }
}

// Unit blocks first .. last-1, from either end. A step that begins with the blocks where the last one ended finds their
// weights in a nearer cache.
struct Blocks {
  int64_t first, last;
  bool descending = false;

  // Slice `index` of `count` of them.
  HOTLOOP_INLINE Blocks slice(int index, int count) const {
    return {first + (last - first) * index / count, first + (last - first) * (index + 1) / count, descending};
  }
};

// Covers rows x blocks with tiles of blocks with G vectors each: f(Int<MR>, Int<NB>, first row, first block). Blocks are
// outermost, so that a block's weights come from L2 once and from L1 for every further tile; rows are split evenly
// (32 = 6+6+5+5+5+5, not 6*5+2): both together made the difference between 83 and 109 GF/s at 32 rows.
template <int G, class F>
HOTLOOP_INLINE void for_tiles(int64_t rows, Blocks blocks, F&& f) {
  if (rows == 0) return;
  constexpr int kMaxRows = max_rows(G);
  const int64_t tiles = (rows + kMaxRows - 1) / kMaxRows;
  const int64_t height = rows / tiles, taller = rows % tiles;
  int widest = 1;
  with_int<1, kMaxRows>((int)(height + (taller > 0)), [&](auto mr) { widest = max_blocks(decltype(mr)::value, G); });
  for (int64_t left = blocks.last - blocks.first; left > 0;) {
    int width = widest;
    while (width > left) width /= 2;
    const int64_t block = blocks.descending ? blocks.first + left - width : blocks.last - left;
    int64_t row = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int now = (int)(height + (tile < taller));
      with_int<1, kMaxRows>(now, [&](auto mr) {
        constexpr int kMostBlocks = max_blocks(decltype(mr)::value, G);
        with_power_of_two<kMostBlocks>(width, [&](auto nb) { f(mr, nb, row, block); });
      });
      row += now;
    }
    left -= width;
  }
}

HOTLOOP_INLINE int64_t blocks_of(int64_t units, int64_t lanes) { return (units + lanes - 1) / lanes; }

// [blocks of units][depth][G][lane] from row-major weight [G*units, depth]: tile operand of h W' and x W'. A square of
// vectors at a time: 8 MiB took 2.3 ms element by element.
template <int G, class T>
void pack_by_unit(const T* weight, int64_t units, int64_t depth, T* packed) {
  constexpr int kL = kLanes<T>;
  for (int64_t block = 0; block < blocks_of(units, kL); ++block, packed += depth * G * kL) {
    const int64_t count = units - block * kL < kL ? units - block * kL : kL;
    for (int g = 0; g < G; ++g) {
      const T* rows = weight + (g * units + block * kL) * depth;
      for (int64_t k0 = 0; k0 < depth; k0 += kL) {
        const Part<T> part(depth - k0);
        Vector<T> square[kL];
        for (int lane = 0; lane < kL; ++lane) {
          square[lane] = lane < count ? part.load(rows + lane * depth + k0) : Vector<T>{};
        }
        transpose<T>(square);
        for (int k = 0; k < part.count; ++k) store(packed + ((k0 + k) * G + g) * kL, square[k]);
      }
    }
  }
}

// [blocks of columns][row][lane] from row-major weight [G*units, columns], gates in the given order: tile operand of
// dG W, with depth G*units. Some rows at a time, so that they are read as they lie.
template <int G, class T>
void pack_by_column(const T* weight, int64_t units, int64_t columns, const int* gate_order, T* packed) {
  constexpr int kL = kLanes<T>, kRows = 8;
  const int64_t blocks = blocks_of(columns, kL), depth = G * units;
  for (int g = 0; g < G; ++g) {
    for (int64_t row = 0; row < units; row += kRows) {
      const int64_t rows = units - row < kRows ? units - row : kRows;
      const T* const from = weight + (gate_order[g] * units + row) * columns;
      T* const to = packed + (g * units + row) * kL;
      for (int64_t block = 0; block < blocks; ++block) {
        const Part<T> part(columns - block * kL);
        for (int64_t r = 0; r < rows; ++r) {
          store(to + (block * depth + r) * kL, part.load(from + r * columns + block * kL));
        }
      }
    }
  }
}

// One tile of a sum of outer products, C[j][v] += sum over rows of a[row][j] * b[row][v], row after row: weight
// gradients. b is packed [row][NV][lane]; the last vectors of C may exist in part.
template <int MR, int NV, class T>
HOTLOOP_NOINLINE void outer_tile(const T* a, int64_t a_stride, const T* b, int64_t rows, T* const (&c)[MR], bool first,
                                 int64_t columns) {
  constexpr int kL = kLanes<T>;
  Vector<T> acc[MR][NV];
  unroll<NV>([&](auto v) HOTLOOP_LAMBDA {
    const Part<T> part(columns - v.value * kL);
    unroll<MR>([&](auto j) HOTLOOP_LAMBDA {
      acc[j.value][v.value] = first ? Vector<T>{} : part.load(c[j.value] + v.value * kL);
    });
  });
  for (int64_t row = 0; row < rows; ++row, a += a_stride, b += NV * kL) {
    if constexpr ((MR + 1) * NV + 1 <= Isa::kRegisters) {
      Vector<T> column[NV];
      unroll<NV>([&](auto v) HOTLOOP_LAMBDA { column[v.value] = load(b + v.value * kL); });
      unroll<MR>([&](auto j) HOTLOOP_LAMBDA {
        const Vector<T> value = splat(a[j.value]);
        unroll<NV>([&](auto v)
                       HOTLOOP_LAMBDA { acc[j.value][v.value] = fma(value, column[v.value], acc[j.value][v.value]); });
      });
    } else {
      Vector<T> value[MR];
      unroll<MR>([&](auto j) HOTLOOP_LAMBDA { value[j.value] = splat(a[j.value]); });
      unroll<NV>([&](auto v) HOTLOOP_LAMBDA {
        const Vector<T> column = load(b + v.value * kL);
        unroll<MR>([&](auto j)
                       HOTLOOP_LAMBDA { acc[j.value][v.value] = fma(value[j.value], column, acc[j.value][v.value]); });
      });
    }
  }
  unroll<NV>([&](auto v) HOTLOOP_LAMBDA {
    const Part<T> part(columns - v.value * kL);
    unroll<MR>([&](auto j) HOTLOOP_LAMBDA { part.store(c[j.value] + v.value * kL, acc[j.value][v.value]); });
  });
}

}  // namespace
