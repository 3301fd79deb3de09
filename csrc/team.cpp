// The flags that a team exchanges. A slice is claimed for a stage by adding one to its `claimed`, so it is run exactly once
// a stage whoever runs it; `done` is written after it and read by all.
#include "team.h"

#include <sched.h>

#include <atomic>
#include <new>

#include "threads.h"

namespace hotloop {
namespace {

// How long a slice is left to an owner that came for the last one. It is worth some waiting: the weights of the slice lie
// in its core's caches.
constexpr int64_t kPatienceNs = 20'000;
// Who has claimed a slice and is not done after this long was put aside by the system: a slice takes some microseconds, a
// turn on a loaded processor some milliseconds.
constexpr int64_t kStalledNs = 300'000;
// Then recurrences run on one thread for so many times the wait: a loaded machine costs them a twentieth.
constexpr int64_t kTimesAlone = 20;
// Looks at the flags between two looks at the clock: some 2 us.
constexpr int kLooks = 64;

std::atomic<int64_t> alone_until{0};

// Longer waits say nothing of the load: the process was stopped, or the machine slept.
constexpr int64_t kLongestNs = 50'000'000;

void note_wait(int64_t ns) {
  if (ns <= kStalledNs) return;
  const int64_t until = monotonic_ns() + kTimesAlone * (ns < kLongestNs ? ns : kLongestNs);
  int64_t before = alone_until.load(std::memory_order_relaxed);
  while (before < until && !alone_until.compare_exchange_weak(before, until, std::memory_order_relaxed)) {
  }
}

}  // namespace

struct Team {
  struct alignas(64) Flag {
    std::atomic<int64_t> value{0};
  };
  struct Slice {
    Flag claimed, done;            // stages
    std::atomic<bool> late{true};  // its owner has not come yet, or not in time: others do not wait for it
  };
  int members;
  Slice slices[1];  // of `members`; the others follow

  bool claim(int slice, int64_t stage) {
    int64_t expected = stage;
    return slices[slice].claimed.value.compare_exchange_strong(expected, stage + 1, std::memory_order_acq_rel,
                                                               std::memory_order_relaxed);
  }
};

int64_t team_bytes(int members) { return (int64_t)(sizeof(Team) + (size_t)(members - 1) * sizeof(Team::Slice)); }

Team* make_team(void* memory, int members) {
  Team* const team = new (memory) Team;
  team->members = members;
  for (int i = 1; i < members; ++i) new (&team->slices[i]) Team::Slice;
  return team;
}

void run_team(Team* team, int member, int64_t stages, void (*slice)(void*, int64_t, int), void* context) {
  const int members = team->members;
  Team::Slice* const slices = team->slices;
  const auto run = [&](int which, int64_t stage) {
    slice(context, stage, which);
    slices[which].done.value.store(stage + 1, std::memory_order_release);
  };
  int64_t stage = 0, since = 0;  // since: the first look at the clock in this stage, or 0
  for (int looks = 0;; ++looks) {
    int64_t under_way = stages;
    for (int i = 0; i < members; ++i) {
      const int64_t done = slices[i].done.value.load(std::memory_order_acquire);
      if (done < under_way) under_way = done;
    }
    if (under_way != stage) {
      if (since != 0) note_wait(monotonic_ns() - since);
      stage = under_way;
      since = looks = 0;
    }
    if (stage == stages) return;
    if (team->claim(member, stage)) {
      if (slices[member].late.load(std::memory_order_relaxed)) {
        slices[member].late.store(false, std::memory_order_relaxed);
      }
      run(member, stage);
      continue;
    }
    int64_t waited = 0;
    if (looks % kLooks == kLooks - 1) {
      const int64_t now = monotonic_ns();
      if (since == 0) since = now;
      waited = now - since;
      if (waited > kPatienceNs) sched_yield();  // the owner may wait for this very processor
    }
    for (int i = 0; i < members; ++i) {
      const bool left = slices[i].late.load(std::memory_order_relaxed) || waited > kPatienceNs;
      if (left && slices[i].claimed.value.load(std::memory_order_relaxed) == stage && team->claim(i, stage)) {
        slices[i].late.store(true, std::memory_order_relaxed);
        run(i, stage);
      }
    }
    pause();
  }
}

bool teams_are_welcome() {
  const int64_t until = alone_until.load(std::memory_order_relaxed);
  return until == 0 || monotonic_ns() > until;
}

}  // namespace hotloop
