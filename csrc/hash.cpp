#include "hash.h"

#include <string.h>

namespace hotloop {
namespace {

__extension__ typedef unsigned __int128 Wide;

constexpr int kBlockWords = 512;
constexpr int kLanes = 4;  // sums that do not wait for each other

// Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014: the n-th number of a seed.
uint64_t random(uint64_t seed, uint64_t n) {
  uint64_t z = seed + (n + 1) * 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

Wide product(uint64_t a, uint64_t b) { return (Wide)a * b; }

uint64_t word(const char* bytes, int64_t index) {
  uint64_t result;
  memcpy(&result, bytes + 8 * index, 8);
  return result;
}

// `words` is a multiple of 2 * kLanes.
Wide block(const char* bytes, const uint64_t* keys, int64_t words) {
  Wide sums[kLanes] = {};
  for (int64_t i = 0; i < words; i += 2 * kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const int64_t at = i + 2 * lane;
      sums[lane] += product(word(bytes, at) + keys[at], word(bytes, at + 1) + keys[at + 1]);
    }
  }
  Wide sum = 0;
  for (const Wide& lane : sums) sum += lane;
  return sum;
}

}  // namespace

void hash(const void* const* arrays, const int64_t* bytes, int64_t count, uint64_t seed, uint64_t result[2]) {
  uint64_t keys[kBlockWords] = {};
  int64_t made = 0;
  uint64_t done = kBlockWords;  // keys of the second level come behind those of a block
  Wide sum = 0;
  for (int64_t array = 0; array < count; ++array) {
    const char* at = static_cast<const char*>(arrays[array]);
    int64_t left = bytes[array];
    while (left > 0) {
      constexpr int64_t kRound = 2 * kLanes * 8;
      const int64_t here = left < kBlockWords * 8 ? left : kBlockWords * 8;
      const int64_t whole = here / kRound * kRound, words = (here + kRound - 1) / kRound * kRound / 8;
      for (; made < words; ++made) keys[made] = random(seed, (uint64_t)made);
      Wide part = block(at, keys, whole / 8);
      if (whole < here) {  // the last words, with zeros behind
        char tail[kRound] = {};
        memcpy(tail, at + whole, (size_t)(here - whole));
        part += block(tail, keys + whole / 8, 2 * kLanes);
      }
      sum += product((uint64_t)part + random(seed, done), (uint64_t)(part >> 64) + random(seed, done + 1));
      done += 2;
      at += here;
      left -= here;
    }
  }
  result[0] = (uint64_t)sum;
  result[1] = (uint64_t)(sum >> 64);
}

}  // namespace hotloop
