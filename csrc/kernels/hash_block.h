// What hash.cpp does with every byte: two sums of products of 32 by 32 bits.
#pragma once

#include "dispatch.h"
#include "simd.h"

namespace {

typedef uint64_t Words __attribute__((vector_size(HOTLOOP_VECTOR_BYTES)));
typedef uint64_t UnalignedWords __attribute__((vector_size(HOTLOOP_VECTOR_BYTES), aligned(1), may_alias));
typedef uint32_t HalfWords __attribute__((vector_size(HOTLOOP_VECTOR_BYTES)));

constexpr int kWordLanes = HOTLOOP_VECTOR_BYTES / 8;

HOTLOOP_INLINE HalfWords load_halves(const void* from) {
  return (HalfWords) * static_cast<const UnalignedWords*>(from);
}

// The lower half of every word times its upper one.
HOTLOOP_INLINE Words multiply_halves(HalfWords halves) {
  const Words lower = (Words)halves, upper = lower >> 32;
  // NOLINTBEGIN(portability-simd-intrinsics): `*` would be a product of whole words, three times as slow
#if defined(__AVX512F__) && HOTLOOP_VECTOR_BYTES == 64
  return (Words)_mm512_maskz_mul_epu32(0xff, (__m512i)lower, (__m512i)upper);  // the other one makes GCC 12 warn
#elif defined(__AVX2__) && HOTLOOP_VECTOR_BYTES == 32
  return (Words)_mm256_mul_epu32((__m256i)lower, (__m256i)upper);
#elif defined(__SSE2__) && HOTLOOP_VECTOR_BYTES == 16
  return (Words)_mm_mul_epu32((__m128i)lower, (__m128i)upper);
#else
  return (lower & 0xffffffff) * upper;
#endif
  // NOLINTEND(portability-simd-intrinsics)
}

// Adds to both sums, for pairs of the halves of a word, what `words` words (a multiple of kHashWords) make: once with the
// keys as they are, once with those kHashShift behind.
void hash_block(const void* bytes, const uint64_t* keys, int64_t words, uint64_t* sums) {
  constexpr int kWide = hotloop::kHashWords / kWordLanes < 4 ? hotloop::kHashWords / kWordLanes : 4;
  static_assert(hotloop::kHashWords % (kWide * kWordLanes) == 0, "whole vectors");
  const char* const data = static_cast<const char*>(bytes);
  Words first[kWide] = {}, second[kWide] = {};
  for (int64_t i = 0; i < words; i += kWide * kWordLanes) {
    unroll<kWide>([&](auto v) HOTLOOP_LAMBDA {
      const int64_t at = i + v.value * kWordLanes;
      const HalfWords message = load_halves(data + 8 * at);
      first[v.value] += multiply_halves(message + load_halves(keys + at));
      second[v.value] += multiply_halves(message + load_halves(keys + at + hotloop::kHashShift));
    });
  }
  for (int v = 0; v < kWide; ++v) {
    for (int lane = 0; lane < kWordLanes; ++lane) {
      sums[0] += first[v][lane];
      sums[1] += second[v][lane];
    }
  }
}

}  // namespace
