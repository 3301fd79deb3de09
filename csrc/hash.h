// A hash that tells whether the bytes of some arrays are those they were.
//
// NH (Black, Halevi, Krawczyk, Krovetz, Rogaway, "UMAC", CRYPTO 1999) of blocks of 4 KiB, and NH again of the blocks'
// results, in words of 64 bits: the sum of (m[i] + k[i]) (m[i+1] + k[i+1]) modulo 2^128 over pairs of words. For random
// keys two different messages of one length have the same NH with probability at most 2^-64, so here with 2^-63.
#pragma once

#include <stdint.h>

namespace hotloop {

// Of `count` arrays of so many bytes each, in two words. The keys are made of the seed.
void hash(const void* const* arrays, const int64_t* bytes, int64_t count, uint64_t seed, uint64_t result[2]);

}  // namespace hotloop
