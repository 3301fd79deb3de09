// A hash that tells whether the bytes of some arrays are those they were.
//
// NH (Black, Halevi, Krawczyk, Krovetz, Rogaway, "UMAC", CRYPTO 1999): the sum of (m[i] + k[i]) (m[i+1] + k[i+1]) over
// pairs of words. For random keys two different messages of one length have the same NH with probability at most 2^-w,
// where words have w bits. Blocks of 4 KiB are hashed twice in words of 32 bits, which vectors multiply, the second time
// with the keys shifted, as their section 5 has it; that makes 2^-64. The blocks' results are hashed in words of 64 bits:
// together 2^-63. LSTM I64 H128, 397 KB: 5.5 us with AVX-512; blocks in words of 64 bits took 13.
#pragma once

#include <stdint.h>

namespace hotloop {

// Of `count` arrays of so many bytes each, in two words. The keys are made of the seed. Every instruction set has the
// same result. There must be a table in use.
void hash(const void* const* arrays, const int64_t* bytes, int64_t count, uint64_t seed, uint64_t result[2]);

}  // namespace hotloop
