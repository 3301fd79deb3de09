// Vectors of one instruction set: GCC/Clang vector extensions, parametrised by element type and register width.
//
// An ISA file defines HOTLOOP_VECTOR_BYTES and HOTLOOP_REGISTERS and includes the kernels; +, -, *, / and comparisons
// come from the compiler. What it cannot say stands here: fma, loads of a part of a vector, bits as integers, the
// processor's flush-to-zero mode. No standard header with inline functions may be included by anything in this folder:
// a copy of such a function compiled for AVX-512 could be the one the linker keeps for everybody.
#pragma once

#include <stddef.h>
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define HOTLOOP_INLINE inline __attribute__((always_inline))
#define HOTLOOP_LAMBDA __attribute__((always_inline))
#define HOTLOOP_NOINLINE __attribute__((noinline))

namespace {

template <int N>
struct Int {
  static constexpr int value = N;
};

// f(Int<0>{}), ..., f(Int<N - 1>{}): a loop unrolled before the compiler optimises, so that arrays it indexes can live in
// registers.
template <int N, int kFrom = 0, class F>
HOTLOOP_INLINE void unroll(F&& f) {
  if constexpr (kFrom < N) {
    f(Int<kFrom>{});
    unroll<N, kFrom + 1>(f);
  }
}

template <class T>
struct Simd;

template <>
struct Simd<float> {
  typedef float Vector __attribute__((vector_size(HOTLOOP_VECTOR_BYTES)));
  typedef int32_t Bits __attribute__((vector_size(HOTLOOP_VECTOR_BYTES)));
  typedef float Unaligned __attribute__((vector_size(HOTLOOP_VECTOR_BYTES), aligned(4), may_alias));
};

template <>
struct Simd<double> {
  typedef double Vector __attribute__((vector_size(HOTLOOP_VECTOR_BYTES)));
  typedef int64_t Bits __attribute__((vector_size(HOTLOOP_VECTOR_BYTES)));
  typedef double Unaligned __attribute__((vector_size(HOTLOOP_VECTOR_BYTES), aligned(8), may_alias));
};

template <class T>
using Vector = typename Simd<T>::Vector;
template <class T>
using Bits = typename Simd<T>::Bits;

template <class T>
constexpr int kLanes = HOTLOOP_VECTOR_BYTES / sizeof(T);

// Accumulators a register tile may keep: 24 of 32 leaves room for 4 weights and a broadcast; 12 of 16 for 3 and 1.
constexpr int kAccumulators = HOTLOOP_REGISTERS == 32 ? 24 : 12;

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
HOTLOOP_INLINE void transpose(typename Simd<T>::Vector (&rows)[HOTLOOP_VECTOR_BYTES / sizeof(T)]) {
  constexpr int kL = HOTLOOP_VECTOR_BYTES / sizeof(T);
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

template <class T>
HOTLOOP_INLINE Vector<T> splat(T value) {
  return value - Vector<T>{};  // value - 0 keeps -0 and compiles to a broadcast
}

template <class T>
HOTLOOP_INLINE Vector<T> load(const T* from) {
  return *reinterpret_cast<const typename Simd<T>::Unaligned*>(from);
}

template <class T>
HOTLOOP_INLINE void store(T* to, Vector<T> value) {
  *reinterpret_cast<typename Simd<T>::Unaligned*>(to) = value;
}

// To L2, for reading. Anything may be asked for: nothing faults.
HOTLOOP_INLINE void prefetch(const void* at) { __builtin_prefetch(at, 0, 2); }

// a * b + c. Fused where the ISA can; every multiply-add of the kernels is written with it, since -ffp-contract=off
// keeps the compiler from fusing the same formula here and not there.
template <class V>
HOTLOOP_INLINE V fma(V a, V b, V c) {
#if defined(__AVX512F__) && HOTLOOP_VECTOR_BYTES == 64
  if constexpr (sizeof(a[0]) == 4) {
    return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  } else {
    return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
  }
#elif defined(__FMA__) && HOTLOOP_VECTOR_BYTES == 32
  if constexpr (sizeof(a[0]) == 4) {
    return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  } else {
    return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
  }
#else
  return a * b + c;
#endif
}

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

#if defined(__AVX512F__) && HOTLOOP_VECTOR_BYTES == 64
  HOTLOOP_INLINE Vector<T> load(const T* from) const {
    const unsigned mask = (1u << count) - 1;
    if constexpr (sizeof(T) == 4) {
      return (Vector<T>)_mm512_maskz_loadu_ps((__mmask16)mask, from);
    } else {
      return (Vector<T>)_mm512_maskz_loadu_pd((__mmask8)mask, from);
    }
  }
  HOTLOOP_INLINE void store(T* to, Vector<T> value) const {
    const unsigned mask = (1u << count) - 1;
    if constexpr (sizeof(T) == 4) {
      _mm512_mask_storeu_ps(to, (__mmask16)mask, (__m512)value);
    } else {
      _mm512_mask_storeu_pd(to, (__mmask8)mask, (__m512d)value);
    }
  }
#else
  // A masked AVX2 store costs some 20 micro-operations on AMD, an element loop no more: whole vectors take the branch.
  HOTLOOP_INLINE Vector<T> load(const T* from) const {
    if (count == kLanes<T>) return ::load(from);
    Vector<T> value{};
    for (int lane = 0; lane < kLanes<T>; ++lane) {
      if (lane < count) value[lane] = from[lane];
    }
    return value;
  }
  HOTLOOP_INLINE void store(T* to, Vector<T> value) const {
    if (count == kLanes<T>) return ::store(to, value);
    for (int lane = 0; lane < kLanes<T>; ++lane) {
      if (lane < count) to[lane] = value[lane];
    }
  }
#endif
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
