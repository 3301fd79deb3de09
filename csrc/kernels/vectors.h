// The vector types of one instruction set: GCC/Clang vector extensions, parametrised by element type and register width.
//
// An ISA file states its traits in a struct Isa, includes the header of its family (avx512.h, avx2.h, scalar.h), which says
// what the compiler cannot, and then the kernels. +, -, *, / and comparisons come from the compiler. No standard header with
// inline functions may be included by anything in this folder: a copy of such a function compiled for AVX-512 could be the
// one the linker keeps for everybody.
#pragma once

#include <stddef.h>
#include <stdint.h>

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
  typedef float Vector __attribute__((vector_size(Isa::kVectorBytes)));
  typedef int32_t Bits __attribute__((vector_size(Isa::kVectorBytes)));
  typedef float Unaligned __attribute__((vector_size(Isa::kVectorBytes), aligned(4), may_alias));
};

template <>
struct Simd<double> {
  typedef double Vector __attribute__((vector_size(Isa::kVectorBytes)));
  typedef int64_t Bits __attribute__((vector_size(Isa::kVectorBytes)));
  typedef double Unaligned __attribute__((vector_size(Isa::kVectorBytes), aligned(8), may_alias));
};

template <class T>
using Vector = typename Simd<T>::Vector;
template <class T>
using Bits = typename Simd<T>::Bits;

template <class T>
constexpr int kLanes = Isa::kVectorBytes / sizeof(T);

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

// 64-bit words, for hash_block.h.
typedef uint64_t Words __attribute__((vector_size(Isa::kVectorBytes)));

}  // namespace
