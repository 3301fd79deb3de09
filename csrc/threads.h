// The thread pool, and the clock.
#pragma once

#include <stdint.h>

namespace hotloop {

// Runs task(context, index, count) for index = 0 .. count-1, each exactly once, on up to `count` threads, the caller
// among them, and returns when all have finished. Which thread runs which index is not fixed. Called while another
// thread uses the pool, it runs everything on the caller.
void parallel(int count, void (*task)(void* context, int index, int count), void* context);

// Run tasks on the threads of an OpenMP runtime, its GOMP_parallel and omp_get_max_threads, from now on; on the pool's own
// where that runtime would use fewer than are wanted, and in a forked child, in which OpenMP's threads are gone. NULL, NULL:
// on the pool's own. OpenMP's threads spin for milliseconds after each of its regions (libgomp: 3 to 4). Beside those of
// torch's last operation, a worker of the pool had half a processor: a training step of LSTM T64 B32 I64 H256 on two
// threads took 17.7 ms in place of 11.4.
using OpenMpParallel = void (*)(void (*task)(void*), void* data, unsigned threads, unsigned flags);
void borrow_threads(OpenMpParallel run, int (*most)());

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
