// The thread pool: threads are started at first use, spin for a moment after each task and then sleep.
//
// Indices of a task are claimed one by one, so a worker that is late, because it slept or the system runs something else,
// costs nothing: the caller takes its share. A fork leaves the child with a pool of its own, to be started anew.
#include "threads.h"

#include <pthread.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>

#include "float_control.h"
#include "signals.h"

namespace hotloop {
namespace {

constexpr int kMaxWorkers = 255;
// A worker that finds nothing to do spins this long before it sleeps: the gap between the parallel phases of one call is
// well below it, and waking a sleeper costs 5 to 50 us.
constexpr int64_t kSpinNs = 50'000;

// A worker woken on the caller's processor takes turns with it there, for all of a call and many after it: some kernels
// look for an idle processor only among those that share a cache. (On 2 processors of a virtual machine two threads were
// as slow as one in most calls of 2 to 10 ms.) So a worker that finds itself there leaves it, and keeps away from it.
class Place {
 public:
  static int here() {
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
  }

  // `caller` is on that processor. A mask that was set from outside, as by taskset, may be the very one that the worker
  // gave itself. But then it is the caller's too, which gives itself none: so of the processors that the worker left it
  // goes to those alone that the caller may run on.
  void leave(int processor, pthread_t caller) {
#if defined(__linux__)
    if (processor < 0 || sched_getcpu() != processor) return;
    cpu_set_t now, callers, next;
    if (sched_getaffinity(0, sizeof now, &now) != 0) return;
    if (pthread_getaffinity_np(caller, sizeof callers, &callers) != 0) callers = now;
    if (CPU_EQUAL(&now, &own_) == 0) allowed_ = now;
    CPU_AND(&next, &allowed_, &callers);
    CPU_OR(&next, &next, &now);
    if (processor < CPU_SETSIZE) CPU_CLR(processor, &next);
    own_ = CPU_COUNT(&next) > 0 && sched_setaffinity(0, sizeof next, &next) == 0 ? next : now;
#endif
  }

#if defined(__linux__)
  Place() {
    if (sched_getaffinity(0, sizeof allowed_, &allowed_) != 0) CPU_ZERO(&allowed_);
    own_ = allowed_;
  }

 private:
  cpu_set_t allowed_;  // what the worker began with, or was given since
  cpu_set_t own_;      // what it gave itself of that
#endif
};

using Task = void (*)(void* data, int32_t index);

class Pool {
 public:
  bool awake(int threads) const {
    return workers_.load(std::memory_order_relaxed) + 1 >= threads && sleepers_.load(std::memory_order_relaxed) == 0 &&
           !busy_.load(std::memory_order_relaxed);
  }
  bool try_enter() { return !busy_.exchange(true, std::memory_order_acquire); }
  void leave() { busy_.store(false, std::memory_order_release); }

  void run(int count, Task task, void* data) {
    start(count - 1);
    // The ticket holds a number in its upper half and the next index in its lower. It is closed while the fields change:
    // who sees a field of this task (acquire) sees the closed ticket too, and fails to claim with an older one.
    const uint64_t number = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
    ticket_.store(number << 32 | kClosed, std::memory_order_relaxed);
    task_.store(task, std::memory_order_release);
    data_.store(data, std::memory_order_release);
    count_.store(count, std::memory_order_release);
    caller_.store(pthread_self(), std::memory_order_relaxed);
    caller_at_.store(Place::here(), std::memory_order_relaxed);
    finished_.store(0, std::memory_order_release);
    ticket_.store((number + 1) << 32, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
    work();
    for (int spins = 0; finished_.load(std::memory_order_acquire) != count; ++spins) {
      pause();
      if (spins > 10'000) std::this_thread::yield();  // the worker may have lost its processor
    }
  }

 private:
  void start(int wanted) {
    if (wanted > kMaxWorkers) wanted = kMaxWorkers;
    if (workers_ >= wanted) return;
    const SignalsBlocked blocked;
    pthread_t thread;
    while (workers_ < wanted && pthread_create(&thread, nullptr, &Pool::main, this) == 0) {  // fewer, same results
      pthread_detach(thread);
      ++workers_;
    }
  }

  static void* main(void* pool) {
    static_cast<Pool*>(pool)->loop();
    return nullptr;
  }

  static constexpr uint64_t kClosed = 0xffffffff;

  bool has_work(uint64_t ticket) const {
    return static_cast<int64_t>(ticket & kClosed) < count_.load(std::memory_order_acquire);
  }

  void loop() {
    Place place;
    for (;;) {
      place.leave(caller_at_.load(std::memory_order_relaxed), caller_.load(std::memory_order_relaxed));
      work();
      const int64_t until = monotonic_ns() + kSpinNs;
      int spins = 0;
      while (!has_work(ticket_.load(std::memory_order_acquire))) {
        pause();
        if (++spins % 64 == 0 && monotonic_ns() > until) {
          std::unique_lock<std::mutex> lock(mutex_);
          sleepers_.fetch_add(1, std::memory_order_seq_cst);
          wake_.wait(lock, [this] { return has_work(ticket_.load(std::memory_order_seq_cst)); });
          sleepers_.fetch_sub(1, std::memory_order_relaxed);
          break;
        }
      }
    }
  }

  void work() {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    for (;;) {
      const int count = count_.load(std::memory_order_acquire);
      const auto task = task_.load(std::memory_order_acquire);
      void* const data = data_.load(std::memory_order_acquire);
      const int64_t index = static_cast<int64_t>(ticket & kClosed);
      if (index >= count) return;
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
        continue;
      }
      // The claim succeeded, so the ticket was not closed when the fields were read: they belong to it.
      task(data, static_cast<int32_t>(index));
      finished_.fetch_add(1, std::memory_order_release);
      ticket = ticket_.load(std::memory_order_acquire);
    }
  }

  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int> finished_{0};
  std::mutex mutex_;  // taken only where somebody sleeps, so its line costs nothing here
  alignas(64) std::atomic<Task> task_{nullptr};
  std::atomic<void*> data_{nullptr};
  std::atomic<int> count_{0}, caller_at_{-1};
  std::atomic<pthread_t> caller_{};
  alignas(64) std::atomic<bool> busy_{false};
  std::atomic<int> sleepers_{0};
  std::condition_variable wake_;
  std::atomic<int> workers_{0};
};

// Never freed: its threads outlive everything, and in a forked child it stays behind with the parent's locks in it.
std::atomic<Pool*> pool{nullptr};

void forget_threads() { pool.store(nullptr, std::memory_order_relaxed); }

const int registered_at_load = pthread_atfork(nullptr, nullptr, &forget_threads);

Pool* the_pool() {
  Pool* current = pool.load(std::memory_order_acquire);
  if (current != nullptr) return current;
  (void)registered_at_load;
  Pool* made = new (std::nothrow) Pool;
  if (made == nullptr || pool.compare_exchange_strong(current, made, std::memory_order_acq_rel)) return made;
  delete made;
  return current;
}

// A share that is computed on another thread has the bits it would have on the caller's.
struct AsTheCaller {
  void (*task)(void*, int, int);
  void* context;
  int count;
  FloatControl control;

  static void run(void* data, int32_t index) {
    const AsTheCaller& all = *static_cast<const AsTheCaller*>(data);
    const ComputeAs as_the_caller(all.control);
    all.task(all.context, index, all.count);
  }
};

std::atomic<int> told{0};  // how many processors there are, by use_processors

bool has(const hotloop_executor* executor, int threads) {
  return executor != nullptr && executor->threads(executor->context) >= threads;
}

}  // namespace

void parallel(const hotloop_executor* executor, int count, void (*task)(void*, int, int), void* context) {
  if (count > 1) {
    Pool* const shared = the_pool();
    if (shared != nullptr && shared->try_enter()) {
      AsTheCaller all{task, context, count, float_control()};
      if (has(executor, count)) {
        executor->parallel_for(executor->context, count, &AsTheCaller::run, &all);
      } else {
        shared->run(count, &AsTheCaller::run, &all);
      }
      shared->leave();
      return;
    }
  }
  for (int index = 0; index < count; ++index) task(context, index, count);
}

bool awake(const hotloop_executor* executor, int threads) {
  if (has(executor, threads)) return executor->awake(executor->context) != 0;
  const Pool* const current = pool.load(std::memory_order_acquire);
  return current != nullptr && current->awake(threads);
}

void use_processors(int count) { told.store(count, std::memory_order_relaxed); }

int processors() {
  if (const int count = told.load(std::memory_order_relaxed); count > 0) return count;
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  const long online = sysconf(_SC_NPROCESSORS_ONLN);
  return online > 0 ? static_cast<int>(online) : 1;
}

int64_t monotonic_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

}  // namespace hotloop
