#include "hash.h"

#include <string.h>

#include "dispatch.h"

namespace hotloop {
namespace {

__extension__ typedef unsigned __int128 Wide;

constexpr int kBlockWords = 512;

// Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014: the n-th number of a seed.
uint64_t random(uint64_t seed, uint64_t n) {
  uint64_t z = seed + (n + 1) * 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

Wide product(uint64_t a, uint64_t b) { return (Wide)a * b; }

}  // namespace

void hash(const void* const* arrays, const int64_t* bytes, int64_t count, uint64_t seed, uint64_t result[2]) {
  constexpr int64_t kRound = 8 * kHashWords;
  const auto block = active_table()->hash_block;
  uint64_t keys[kBlockWords + kHashShift] = {};
  int64_t made = 0;
  uint64_t done = kBlockWords + kHashShift;  // keys of the second level come behind those of a block
  Wide sum = 0;
  for (int64_t array = 0; array < count; ++array) {
    const char* at = static_cast<const char*>(arrays[array]);
    int64_t left = bytes[array];
    while (left > 0) {
      const int64_t here = left < kBlockWords * 8 ? left : kBlockWords * 8;
      const int64_t whole = here / kRound * kRound, words = (here + kRound - 1) / kRound * kHashWords;
      for (; made < words + kHashShift; ++made) keys[made] = random(seed, (uint64_t)made);
      uint64_t sums[2] = {};
      block(at, keys, whole / 8, sums);
      if (whole < here) {  // the last words, with zeros behind
        char tail[kRound] = {};
        memcpy(tail, at + whole, (size_t)(here - whole));
        block(tail, keys + whole / 8, kHashWords, sums);
      }
      sum += product(sums[0] + random(seed, done), sums[1] + random(seed, done + 1));
      done += 2;
      at += here;
      left -= here;
    }
  }
  result[0] = (uint64_t)sum;
  result[1] = (uint64_t)(sum >> 64);
}

}  // namespace hotloop
