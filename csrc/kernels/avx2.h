// AVX2 and FMA: what the compiler cannot say of vectors of 32 bytes.
#pragma once

#include <immintrin.h>

#include "elements.h"

namespace {

// a * b + c, rounded once.
template <class V>
HOTLOOP_INLINE V fma(V a, V b, V c) {
  if constexpr (sizeof(a[0]) == 4) {
    return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  } else {
    return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
  }
}

// The lower half of every word of a times that of b: `*` would be a product of whole words, three times as slow.
HOTLOOP_INLINE Words multiply_lower(Words a, Words b) {
  return (Words)_mm256_mul_epu32((__m256i)a, (__m256i)b);  // NOLINT(portability-simd-intrinsics)
}

}  // namespace
