// The thread pool, calls on it or on an executor, and the clock.
#pragma once

#include <stdint.h>

#include "hotloop.h"

namespace hotloop {

// Runs task(context, index, count) for index = 0 .. count-1, each exactly once, on up to `count` threads, the caller
// among them, and returns when all have finished. Which thread runs which index is not fixed. The threads are those of the
// executor, or the pool's own where there is none or where it would use fewer than are wanted. Called while another thread
// has a call's threads at work, it runs everything on the caller.
void parallel(const hotloop_executor* executor, int count, void (*task)(void* context, int index, int count),
              void* context);

// Whether that many threads would begin at once, as for a moment after each `parallel`; to wake one takes some 20 us.
bool awake(const hotloop_executor* executor, int threads);

// How many processors this process may run on.
int processors();
void use_processors(int count);  // that there are so many; 0: as many as there are

int64_t monotonic_ns();

// In a loop that waits for another thread.
inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

}  // namespace hotloop
