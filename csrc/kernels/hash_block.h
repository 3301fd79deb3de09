// What hash.cpp does with every byte: two sums of products of 32 by 32 bits.
#pragma once

#include "dispatch.h"
#include "simd.h"

namespace {

typedef uint64_t UnalignedWords __attribute__((vector_size(Isa::kVectorBytes), aligned(1), may_alias));
typedef uint32_t HalfWords __attribute__((vector_size(Isa::kVectorBytes)));

constexpr int kWordLanes = Isa::kVectorBytes / 8;

HOTLOOP_INLINE HalfWords load_halves(const void* from) {
  return (HalfWords) * static_cast<const UnalignedWords*>(from);
}

// The lower half of every word times its upper one.
HOTLOOP_INLINE Words multiply_halves(HalfWords halves) { return multiply_lower((Words)halves, (Words)halves >> 32); }

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
