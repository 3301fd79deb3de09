// The thread pool under load, for ThreadSanitizer to watch: tasks of a few nanoseconds, and calls of every cell in both
// directions, one after the other without a pause and with pauses in which workers go to sleep; from one thread, which
// always gets the pool, and from several; on fewer threads than there are processors and on many more. Whatever happens,
// results have the bits of one thread alone. A hang ends in SIGALRM.
//
// Forks are made where no sanitizer forbids them. ThreadSanitizer does: a child of a process of several threads may not
// start threads. AddressSanitizer does while another thread allocates, so here no thread calls while one forks;
// tests/test_pool.py has those forks.
//
//   hotloop_pool_tests [seconds] [seed]     how long it goes on, by default 10, and what it does first
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "calls.h"
#include "threads.h"

#if defined(__SANITIZE_THREAD__)
#define HOTLOOP_CAN_FORK 0
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define HOTLOOP_CAN_FORK 0
#endif
#endif
#ifndef HOTLOOP_CAN_FORK
#define HOTLOOP_CAN_FORK 1
#endif

namespace {

using namespace native_tests;

using Clock = std::chrono::steady_clock;

// Nothing, or about as long as a worker spins before it sleeps (50 us), or long enough to find all of them asleep.
void pause_a_while(Random& random) {
  const uint64_t choice = random.bits() % 8;
  if (choice < 2) std::this_thread::sleep_for(std::chrono::microseconds(20 + random.bits() % 80));
  if (choice == 2) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

// One thread and two to five in turn, each time new ones, do something with random numbers of their own until the time is
// over. One alone always gets the pool.
void on_several_threads(double seconds, uint64_t seed, const std::function<void(Random&)>& something) {
  const auto until = Clock::now() + std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
  for (uint64_t round = 0; round < 5 || Clock::now() < until; ++round) {
    std::vector<std::thread> callers;
    for (uint64_t i = 0; i < (round % 2 == 0 ? 1 : 2 + round / 2 % 4); ++i) {
      callers.emplace_back([&, number = seed * 1000003 + round * 5 + i] {
        Random random(number);
        const auto stop = std::min(until, Clock::now() + std::chrono::milliseconds(100));
        do {
          something(random);
        } while (Clock::now() < stop);
      });
    }
    for (std::thread& caller : callers) caller.join();
  }
}

// Tasks so small that the claims of their indices, the end of one and the beginning of the next lie close together.

std::atomic<int64_t> tasks{0}, elsewhere{0};

struct Task {
  std::vector<int64_t> seen;  // how often each index was run; ThreadSanitizer sees what is not in order
  std::thread::id caller;
  int64_t work;
};

void count_and_work(void* context, int index, int count) {
  Task& task = *static_cast<Task*>(context);
  task.seen[static_cast<size_t>(index)] += count == static_cast<int>(task.seen.size()) ? 1 : 1000;
  volatile int64_t turns = index % 3 == 0 ? task.work : 0;
  while (turns > 0) turns = turns - 1;
  if (std::this_thread::get_id() != task.caller) elsewhere += 1;
}

void run_tasks(Random& random) {
  constexpr int64_t kCounts[] = {2, 2, 2, 3, 2, 7, 1, 30};
  for (uint64_t burst = random.bits() % 500; burst > 0; --burst) {
    const auto count = kCounts[random.bits() % 8];
    Task task{std::vector<int64_t>(static_cast<size_t>(count)), std::this_thread::get_id(),
              static_cast<int64_t>(random.bits() % 300)};
    hotloop::parallel(nullptr, static_cast<int>(count), count_and_work, &task);
    check(std::all_of(task.seen.begin(), task.seen.end(), [](int64_t times) { return times == 1; }), "parallel",
          "every index is run once, with its own context and count, before the return");
    tasks += 1;
  }
  pause_a_while(random);
}

// Calls

class Recurrence {
 public:
  virtual ~Recurrence() = default;
  virtual std::unique_ptr<Call> call(Mode mode) const = 0;
  virtual bool right(const Call& call, Mode mode) const = 0;
};

template <class T>
class RecurrenceOf : public Recurrence {
 public:
  explicit RecurrenceOf(const Problem& p) : p_(p), data_(random_inputs<T>(p)), serial_(compute(p, data_, kTraining)) {
    check(all_finite(serial_), describe(p, sizeof(T)), "every result is written, and finite");
  }
  std::unique_ptr<Call> call(Mode mode) const override { return std::make_unique<CallOf<T>>(p_, data_, mode); }
  bool right(const Call& call, Mode mode) const override {
    const Results<T> r = static_cast<const CallOf<T>&>(call).results();
    return mode == kTraining ? all_same_bits(r, serial_) : same_bits(r, serial_, kForwardResults<T>);
  }

 private:
  Problem p_;
  Data<T> data_;
  Results<T> serial_;
};

// The recurrences of one call, and what it is called in a message.
struct Group {
  std::string name;
  std::vector<std::shared_ptr<const Recurrence>> recurrences;
};

void add(Group& group, const Problem& p, bool is_float) {
  group.name += (group.name.empty() ? "" : " and ") + describe(p, is_float ? 4 : 8);
  if (is_float) {
    group.recurrences.push_back(std::make_shared<RecurrenceOf<float>>(p));
  } else {
    group.recurrences.push_back(std::make_shared<RecurrenceOf<double>>(p));
  }
}

// Each large enough for several threads: a call below 48 us by the cost model of csrc/schedule.cpp is not split. Single
// rows and few, where threads can share only the units of a step; many rows; two directions; unlike ones together.
std::vector<Group> groups() {
  const Problem kAlone[] = {
      {HOTLOOP_LSTM, 110, 1, 3, 128},     {HOTLOOP_LSTM, 9, 1, 8, 512},
      {HOTLOOP_GRU, 40, 1, 5, 200},       {HOTLOOP_RNN_TANH, 60, 1, 1, 300},
      {HOTLOOP_GRU, 40, 1, 5, 256},       {HOTLOOP_GRU_RESET_BEFORE, 60, 1, 2, 150},
      {HOTLOOP_LSTM, 40, 4, 7, 128},      {HOTLOOP_GRU, 50, 4, 16, 129},
      {HOTLOOP_LSTM, 50, 8, 9, 96},       {HOTLOOP_GRU_RESET_BEFORE, 40, 8, 4, 100},
      {HOTLOOP_RNN_RELU, 80, 8, 20, 128}, {HOTLOOP_LSTM, 9, 300, 6, 20},
      {HOTLOOP_GRU, 40, 33, 11, 50},
  };
  std::vector<Group> all;
  for (const Problem& p : kAlone) {
    all.emplace_back();
    add(all.back(), p, all.size() % 3 != 0);
  }
  for (const int64_t batch : {1, 4}) {
    Group both;
    for (const bool reverse : {false, true}) {
      Problem p{HOTLOOP_LSTM, 40, batch, 8, 128};
      p.reverse = reverse;
      p.layout = kBatchFirst;
      add(both, p, true);
    }
    all.push_back(std::move(both));
  }
  Group unlike;
  add(unlike, {HOTLOOP_LSTM, 30, 9, 8, 64}, false);
  add(unlike, {HOTLOOP_LSTM, 70, 1, 8, 64}, false);
  add(unlike, {HOTLOOP_LSTM, 3, 2, 8, 64}, false);
  all.push_back(std::move(unlike));
  return all;
}

void run_group(const Group& group, Mode mode, int32_t threads, const hotloop_executor* executor = nullptr) {
  std::vector<std::unique_ptr<Call>> owned;
  std::vector<Call*> calls;
  for (const auto& recurrence : group.recurrences) {
    owned.push_back(recurrence->call(mode));
    calls.push_back(owned.back().get());
  }
  const std::string what = group.name + " on " + std::to_string(threads) + " threads, mode " + std::to_string(mode);
  run(calls, false, threads, what, {}, executor);
  if (mode == kTraining) run(calls, true, threads, what, {}, executor);
  for (size_t i = 0; i < calls.size(); ++i) {
    check(group.recurrences[i]->right(*calls[i], mode), what, "the bits are those of one thread");
  }
}

void run_any_group(const std::vector<Group>& all, Random& random) {
  constexpr int32_t kThreads[] = {2, 2, 2, 3, 1, 8};
  constexpr Mode kModes[] = {kTraining, kTraining, kInference, kPacked};
  run_group(all[random.bits() % all.size()], kModes[random.bits() % 4], kThreads[random.bits() % 6]);
  pause_a_while(random);
}

// A child, and a child of it, compute when the pool of the parent spins, or sleeps, or was never made.
void check_forks(const std::vector<Group>& all, unsigned limit, int generation, Random& random) {
  for (int turn = 0; turn < 6; ++turn) {
    pause_a_while(random);
    fflush(nullptr);
    const pid_t child = fork();
    if (child == 0) {
      alarm(limit);  // a child has none of its parent's
      failed = 0;
      if (generation == 0 && turn % 3 == 0) check_forks(all, limit, 1, random);
      for (int i = 0; i < 3; ++i) run_any_group(all, random);
      _exit(failed == 0 ? 0 : 1);
    }
    check(child > 0, "fork", "there is a child");
    run_any_group(all, random);
    int status = -1;
    waitpid(child, &status, 0);
    check(status == 0, "fork", "a child computes and ends");
  }
}

// What an OpenMP runtime does, as far as hotloop can see: as many threads as it is set to, all at one task.
std::atomic<int64_t> lent{0};
std::atomic<int> most{3};
int lent_most() { return most; }
void lend(void (*task)(void*), void* data, unsigned threads, unsigned flags) {
  check(threads == 0 && flags == 0, "OpenMP's threads", "their number is left to their owner");
  if (lent.fetch_add(1) == 0) {
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    check(sigismember(&mask, SIGUSR1) == 1, "OpenMP's threads", "signals are blocked where they may be started");
  }
  std::vector<std::thread> others;
  for (int i = 1; i < lent_most(); ++i) others.emplace_back(task, data);
  task(data);
  for (std::thread& other : others) other.join();
}

void check_openmp_threads(const std::vector<Group>& all, unsigned limit) {
  const hotloop_executor* const openmp = hotloop_openmp_executor(&lend, &lent_most);
  for (const Group& group : all) run_group(group, kTraining, 2, openmp);
  check(lent > 0 || hotloop_processors() == 1, "OpenMP's threads", "calls run on them");
  const int64_t before = lent;
  for (const Group& group : all) run_group(group, kTraining, 2);
  check(lent == before, "OpenMP's threads", "not of calls that are not given them");
  if (HOTLOOP_CAN_FORK) {
    fflush(nullptr);
    const pid_t child = fork();
    if (child == 0) {
      alarm(limit);
      failed = 0;
      for (const Group& group : all) run_group(group, kTraining, 2, openmp);
      _exit(failed == 0 && lent == before ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    check(status == 0, "OpenMP's threads", "a forked child has none");
  }
  most = 1;
  for (const Group& group : all) run_group(group, kTraining, 2, openmp);
  check(lent == before, "OpenMP's threads", "not where they are too few");
  most = 3;
}

}  // namespace

int main(int argc, char** argv) {
  const double seconds = argc > 1 ? atof(argv[1]) : 10;
  const uint64_t seed = argc > 2 ? strtoull(argv[2], nullptr, 10) : 1;
  const unsigned limit = 120 + static_cast<unsigned>(10 * seconds);
  alarm(limit);
  printf("%s, %d processors, %.0f s, seed %llu\n", hotloop_isa(), hotloop_processors(), seconds,
         static_cast<unsigned long long>(seed));
  fflush(stdout);
  const std::vector<Group> all = groups();  // with one thread each: the pool is not made yet
  Random random(seed);
  if (HOTLOOP_CAN_FORK) check_forks(all, limit, 0, random);
  on_several_threads(seconds / 4, seed, run_tasks);
  if (hotloop_processors() > 1) check(elsewhere > 0, "parallel", "not all is done by the caller");
  check_openmp_threads(all, limit);
  for (const Group& group : all) {  // every one at least once
    for (const int32_t threads : {2, 5}) run_group(group, kTraining, threads);
  }
  std::atomic<int64_t> calls{0};
  on_several_threads(seconds * 3 / 4, seed, [&](Random& own) {
    run_any_group(all, own);
    calls += 1;
  });
  if (HOTLOOP_CAN_FORK) check_forks(all, limit, 0, random);
  printf("%lld tasks, %lld calls, %lld checks, %lld failed\n", static_cast<long long>(tasks),
         static_cast<long long>(calls), static_cast<long long>(passed + failed), static_cast<long long>(failed));
  return failed == 0 ? 0 : 1;
}
