// The thread pool, and the clock.
#pragma once

#include <stdint.h>

namespace hotloop {

// Runs task(context, index, count) for index = 0 .. count-1, each exactly once, on up to `count` threads, the caller
// among them, and returns when all have finished. Which thread runs which index is not fixed. Called while another
// thread uses the pool, it runs everything on the caller.
void parallel(int count, void (*task)(void* context, int index, int count), void* context);

// Whether that many threads would begin at once, as for a moment after each `parallel`; to wake one takes some 20 us.
bool awake(int threads);

// How many processors this process may run on.
int processors();

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
