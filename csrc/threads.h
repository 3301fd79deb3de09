// The thread pool, and the clock. Kernels include this: declarations only.
#pragma once

#include <stdint.h>

namespace hotloop {

// Runs task(context, index, count) for index = 0 .. count-1, each exactly once, on up to `count` threads, the caller
// among them, and returns when all have finished. Which thread runs which index is not fixed. Called while another
// thread uses the pool, it runs everything on the caller.
void parallel(int count, void (*task)(void* context, int index, int count), void* context);

// How many processors this process may run on.
int processors();

int64_t monotonic_ns();

}  // namespace hotloop
