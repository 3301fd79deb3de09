// The executor on the threads of an OpenMP runtime. Its threads spin for milliseconds after each of its regions (libgomp: 3 to
// 4). Beside those of torch's last operation, a worker of the pool had half a processor: a training step of LSTM T64 B32
// I64 H256 on two threads took 17.7 ms in place of 11.4.
#include <pthread.h>

#include <atomic>

#include "signals.h"
#include "threads.h"

namespace hotloop {
namespace {

using Parallel = void (*)(void (*task)(void*), void* data, unsigned threads, unsigned flags);

std::atomic<Parallel> run{nullptr};
std::atomic<int (*)()> max_threads{nullptr};
std::atomic<int64_t> last_end{0};  // when they last did something for us
std::atomic<bool> forked{false};   // a child waits for its parent's OpenMP threads for ever

// How long they surely spin after that. libgomp: 300,000 times `pause`, if nothing else is set.
constexpr int64_t kSpinNs = 500'000;

struct Job {
  void (*task)(void*, int32_t);
  void* data;
  int count;
  std::atomic<int> next{0}, finished{0};
  int64_t ended = 0;  // when the last share was done; its region ends when all threads have come
};

// A region waits for each of its threads, those with nothing to do as well. One that comes so long after the last share was
// done was preempted: the pool, which waits for no one, is better then, for so many times the wait. (With every processor
// twice busy a call of 7 ms took 20 times as long in the median.)
constexpr int64_t kPreemptedNs = 300'000;
constexpr int64_t kTimesApart = 20;
constexpr int64_t kLongestNs = 50'000'000;  // longer waits say nothing of the load: the process was stopped
std::atomic<int64_t> apart_until{0};

void take_shares(void* data) {
  Job& job = *static_cast<Job*>(data);
  for (;;) {
    const int index = job.next.fetch_add(1, std::memory_order_relaxed);
    if (index >= job.count) return;
    job.task(job.data, index);
    if (job.finished.fetch_add(1, std::memory_order_acq_rel) + 1 == job.count) job.ended = monotonic_ns();
  }
}

int32_t threads(void*) {
  if (forked.load(std::memory_order_relaxed)) return 0;
  const int64_t until = apart_until.load(std::memory_order_relaxed);
  return until == 0 || monotonic_ns() > until ? max_threads.load(std::memory_order_acquire)() : 0;
}

int32_t awake(void*) { return monotonic_ns() - last_end.load(std::memory_order_relaxed) < kSpinNs ? 1 : 0; }

// Threads: 0, which is as many as that runtime is set to. With another number it would end some of its threads, or start
// some, and the program's next region the other way round.
void parallel_for(void*, int32_t count, void (*task)(void*, int32_t), void* data) {
  Job job{task, data, count};
  const auto region = run.load(std::memory_order_acquire);
  thread_local bool has_team = false;  // of OpenMP threads; each thread that calls has one of its own
  if (has_team) {
    region(&take_shares, &job, 0, 0);
  } else {
    const SignalsBlocked blocked;
    region(&take_shares, &job, 0, 0);
    has_team = true;
  }
  const int64_t now = monotonic_ns(), waited = now - job.ended;
  last_end.store(now, std::memory_order_relaxed);
  if (waited > kPreemptedNs) {
    apart_until.store(now + kTimesApart * (waited < kLongestNs ? waited : kLongestNs), std::memory_order_relaxed);
  }
}

const int registered_at_load = pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });

constexpr hotloop_executor kExecutor{nullptr, &threads, &awake, &parallel_for};

}  // namespace
}  // namespace hotloop

extern "C" const hotloop_executor* hotloop_openmp_executor(void (*parallel)(void (*task)(void*), void* data,
                                                                            unsigned threads, unsigned flags),
                                                           int (*max_threads)(void)) {
  (void)hotloop::registered_at_load;
  if (parallel == nullptr || max_threads == nullptr) return nullptr;
  hotloop::run.store(parallel, std::memory_order_release);
  hotloop::max_threads.store(max_threads, std::memory_order_release);
  return &hotloop::kExecutor;
}
