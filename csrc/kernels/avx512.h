// AVX-512: what the compiler cannot say of vectors of 64 bytes.
#pragma once

#include <immintrin.h>

#include "vectors.h"

namespace {

// a * b + c, rounded once. Every multiply-add of the kernels is written with it, since -ffp-contract=off keeps the
// compiler from fusing the same formula here and not there.
template <class V>
HOTLOOP_INLINE V fma(V a, V b, V c) {
  if constexpr (sizeof(a[0]) == 4) {
    return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  } else {
    return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
  }
}

// The first `count` elements, the others zero; and to store as many. Nothing else is touched.
template <class T>
HOTLOOP_INLINE Vector<T> load_part(const T* from, int64_t count) {
  const unsigned mask = (1u << count) - 1;
  if constexpr (sizeof(T) == 4) {
    return (Vector<T>)_mm512_maskz_loadu_ps((__mmask16)mask, from);
  } else {
    return (Vector<T>)_mm512_maskz_loadu_pd((__mmask8)mask, from);
  }
}

template <class T>
HOTLOOP_INLINE void store_part(T* to, int64_t count, Vector<T> value) {
  const unsigned mask = (1u << count) - 1;
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(to, (__mmask16)mask, (__m512)value);
  } else {
    _mm512_mask_storeu_pd(to, (__mmask8)mask, (__m512d)value);
  }
}

// The lower half of every word of a times that of b. The intrinsic without a mask makes GCC 12 warn.
HOTLOOP_INLINE Words multiply_lower(Words a, Words b) {
  return (Words)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)b);
}

}  // namespace
