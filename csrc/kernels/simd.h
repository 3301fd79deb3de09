// What kernels say with vectors of any instruction set, on top of vectors.h and the header of a family.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "vectors.h"

namespace {

// Accumulators a register tile may keep: 24 of 32 leaves room for 4 weights and a broadcast; 12 of 16 for 3 and 1.
constexpr int kAccumulators = Isa::kRegisters == 32 ? 24 : 12;

template <int... kIndices>
struct Ints {};

// The lanes that interleave two vectors of kLeft / 2 * 2 lanes, from lane kFrom of each on: kFrom, kFrom + lanes, ...
template <int kLanesOfOne, int kFrom, int kLeft, int... kIndices>
struct Interleaving
    : Interleaving<kLanesOfOne, kFrom, kLeft - 1, kFrom + kLeft - 1, kFrom + kLeft - 1 + kLanesOfOne, kIndices...> {};
template <int kLanesOfOne, int kFrom, int... kIndices>
struct Interleaving<kLanesOfOne, kFrom, 0, kIndices...> {
  using Type = Ints<kIndices...>;
};

template <class V, int... kIndices>
HOTLOOP_INLINE V shuffle(V a, V b, Ints<kIndices...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, kIndices...);
#else
  using T = decltype(V{}[0] + 0);
  return __builtin_shuffle(a, b, typename Simd<T>::Bits{kIndices...});
#endif
}

// Rows of a square of vectors become its columns: log2(lanes) times, row i is interleaved with the one half a square below.
template <class T>
HOTLOOP_INLINE void transpose(typename Simd<T>::Vector (&rows)[Isa::kVectorBytes / sizeof(T)]) {
  constexpr int kL = Isa::kVectorBytes / sizeof(T);
  using Low = typename Interleaving<kL, 0, kL / 2>::Type;
  using High = typename Interleaving<kL, kL / 2, kL / 2>::Type;
  for (int stage = 1; stage < kL; stage *= 2) {
    typename Simd<T>::Vector mixed[kL];
    unroll<kL / 2>([&](auto i) HOTLOOP_LAMBDA {
      mixed[2 * i.value] = shuffle(rows[i.value], rows[i.value + kL / 2], Low{});
      mixed[2 * i.value + 1] = shuffle(rows[i.value], rows[i.value + kL / 2], High{});
    });
    unroll<kL>([&](auto i) HOTLOOP_LAMBDA { rows[i.value] = mixed[i.value]; });
  }
}

// To L2, for reading. Anything may be asked for: nothing faults.
HOTLOOP_INLINE void prefetch(const void* at) { __builtin_prefetch(at, 0, 2); }

// c - a * b, rounded as fma(-a, b, c).
template <class V>
HOTLOOP_INLINE V fnma(V a, V b, V c) {
  return fma(-a, b, c);
}

// The units of one block that exist: all lanes, or the first `count` in the last block of a hidden size that is no
// multiple of the lanes. Lanes beyond are read as zero and never written; nothing beyond an array is touched.
template <class T>
struct Part {
  int64_t count;

  HOTLOOP_INLINE explicit Part(int64_t left) : count(left < kLanes<T> ? left : kLanes<T>) {}

  HOTLOOP_INLINE Vector<T> load(const T* from) const { return load_part(from, count); }
  HOTLOOP_INLINE void store(T* to, Vector<T> value) const { store_part(to, count, value); }
};

// A block whose units all exist.
template <class T>
struct Whole {
  HOTLOOP_INLINE Vector<T> load(const T* from) const { return ::load(from); }
};

template <class V>
struct ElementOf;
template <>
struct ElementOf<Vector<float>> {
  using Type = float;
};
template <>
struct ElementOf<Vector<double>> {
  using Type = double;
};
template <class V>
using Element = typename ElementOf<V>::Type;

// x <= limit ? x : limit and the like would swallow a NaN in x; these keep it.
template <class V>
HOTLOOP_INLINE V at_least(V x, V limit) {
  return x < limit ? limit : x;
}

template <class T>
constexpr Bits<T> sign_bits() {
  using I = decltype(Bits<T>{}[0] + 0);
  return Bits<T>{} + (I)((I)1 << (8 * sizeof(T) - 1));
}

template <class V>
HOTLOOP_INLINE V magnitude(V x) {
  return (V)((Bits<Element<V>>)x & ~sign_bits<Element<V>>());
}

// `value`, which is >= 0 or NaN, with the sign of x.
template <class V>
HOTLOOP_INLINE V with_sign_of(V x, V value) {
  return (V)((Bits<Element<V>>)value | ((Bits<Element<V>>)x & sign_bits<Element<V>>()));
}

// Subnormal numbers cost a hundred cycles an operation on some processors, and decaying states and gradients are full
// of them. Inside a kernel they are flushed to zero; the mode of the calling thread is put back.
class FlushSubnormals {
 public:
#if defined(__x86_64__)
  HOTLOOP_INLINE FlushSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  HOTLOOP_INLINE ~FlushSubnormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  HOTLOOP_INLINE FlushSubnormals() {
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(before_));
    __asm__ __volatile__("msr fpcr, %0" : : "r"(before_ | ((uint64_t)1 << 24)));
  }
  HOTLOOP_INLINE ~FlushSubnormals() { __asm__ __volatile__("msr fpcr, %0" : : "r"(before_)); }

 private:
  uint64_t before_;
#endif
};

}  // namespace
