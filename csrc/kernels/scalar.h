// No extension of any processor family: vectors of 16 bytes, which the baselines of x86-64 and AArch64 have. Products and sums
// are rounded apart, everywhere: the same bits on every processor, whatever it could fuse.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "elements.h"

namespace {

// a * b + c, rounded twice: -ffp-contract=off.
template <class V>
HOTLOOP_INLINE V fma(V a, V b, V c) {
  return a * b + c;
}

// The lower half of every word of a times that of b, an integer: the same with an instruction of its own and without.
HOTLOOP_INLINE Words multiply_lower(Words a, Words b) {
#if defined(__x86_64__)
  return (Words)_mm_mul_epu32((__m128i)a, (__m128i)b);  // NOLINT(portability-simd-intrinsics)
#else
  return (a & 0xffffffff) * (b & 0xffffffff);
#endif
}

}  // namespace
