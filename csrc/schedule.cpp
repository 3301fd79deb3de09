// A call goes in rounds. In each, as many recurrences as there are threads, of those that are not finished, do some steps,
// first their rows, then, backward, the products that need all of them. All shares of all these recurrences in a phase are
// spread over the threads. Work is split three ways: recurrences side by side; the rows of one, which need not wait for
// each other; and the units of some rows among a team, which exchanges flags at every step. Results do not depend on any
// of this: shares split rows and columns, never a sum.
#include "schedule.h"

#include "ragged.h"
#include "threads.h"

namespace hotloop {
namespace {

constexpr int64_t kCallNs = 50'000'000;  // a call returns HOTLOOP_AGAIN after this long, so that Ctrl-C is seen
constexpr double kRoundNs = 2e6;         // done between two looks at the clock

const Phases<ForwardCall>& phases_of(const Plan& plan, const ForwardCall*) { return plan.kernels().forward; }
const Phases<BackwardCall>& phases_of(const Plan& plan, const BackwardCall*) { return plan.kernels().backward; }

// Steps that a row takes, on average.
double mean_steps(const ForwardCall& call) {
  if (call.lengths == nullptr && call.offsets == nullptr) return (double)call.seq_len;
  return call.batch_size > 0 ? (double)row_steps(call) / (double)call.batch_size : 0;
}

template <class Call>
class Run {
 public:
  Run(const Plan& plan, Call* calls, hotloop_buffers* buffers, const hotloop_executor* executor, char* memory)
      : plan_(plan),
        phases_(phases_of(plan, calls)),
        calls_(calls),
        buffers_(buffers),
        executor_(executor),
        memory_(memory),
        count_(plan.count),
        threads_(plan.threads),
        most_shares_(plan.most_shares) {
    if (threads_ == 1) return;
    double ns = 0;
    bool begun = false;
    for (int64_t i = 0; i < count_; ++i) {
      const ForwardCall& call = forward_of(calls_[i]);
      ns += plan_.step.all * (double)call.batch_size * mean_steps(call);
      begun = begun || call.cursor > 0;
    }
    // A call that has begun goes on as it began: its workspace is laid out for these shares.
    alone_ = !begun && (runs_alone(*plan_.table, ns, true) ||
                        (runs_alone(*plan_.table, ns, false) && !awake(executor_, threads_)));
    if (alone_) {
      threads_ = most_shares_ = 1;
    } else {
      const int most = processors();  // the process may have lost some since the plan was made
      if (most < threads_) threads_ = most;
    }
  }

  int run() {
    const bool to_the_end = alone_ || plan_.on_stack;
    const int64_t deadline = to_the_end ? 0 : monotonic_ns() + kCallNs;
    while (unfinished()) {
      choose();
      in_parallel(&Run::start, &Run::one);
      make_teams();
      in_parallel(&Run::rows, &Run::row_shares);
      if (phases_.products != nullptr) in_parallel(&Run::products, &Run::product_shares);
      advance();
      if (!to_the_end && unfinished() && monotonic_ns() > deadline) return HOTLOOP_AGAIN;
    }
    return HOTLOOP_OK;
  }

 private:
  bool finished(int64_t i) const { return forward_of(calls_[i]).cursor == forward_of(calls_[i]).seq_len; }
  void* memory(int64_t i) const { return memory_ + i * plan_.each; }

  bool unfinished() const {
    for (int64_t i = 0; i < count_; ++i) {
      if (!finished(i)) return true;
    }
    return false;
  }

  // Those of this round are the first `threads_` that are not finished, all before end_.
  void choose() {
    int chosen = 0;
    for (end_ = 0; end_ < count_ && chosen < threads_; ++end_) chosen += finished(end_) ? 0 : 1;
  }

  // Steps of recurrence i in this round.
  int64_t steps(int64_t i) const {
    const ForwardCall& call = forward_of(calls_[i]);
    const int64_t left = call.seq_len - call.cursor, most = phases_.most_steps(calls_[i], memory(i));
    int64_t now = most < left ? most : left;
    if (phases_.products == nullptr) {  // else rounds are the chunks in which weight gradients are summed
      const double ns = plan_.step.all * (double)call.batch_size;
      if (ns >= 1 && kRoundNs / ns + 1 < (double)now) now = (int64_t)(kRoundNs / ns) + 1;
    }
    return now;
  }

  int one(int64_t i) const { return forward_of(calls_[i]).cursor == 0 ? 1 : 0; }

  // The part of a whole that the largest of so many parts has.
  static double largest_part(int64_t whole, int64_t parts) {
    const int64_t largest = (whole + parts - 1) / parts;
    return (double)largest / (double)whole;
  }

  // The part of all rows' steps that the largest of `ranges` has; of a ragged batch at least those of its longest row.
  static double largest(const ForwardCall& call, int ranges) {
    const int64_t rows = call.batch_size < 1 ? 1 : call.batch_size;
    const double even = largest_part(rows, ranges);
    const double steps = mean_steps(call) * (double)rows, longest = steps > 0 ? (double)call.seq_len / steps : 1;
    return longest > even ? longest < 1 ? longest : 1 : even;
  }

  // The cheapest way to split recurrence i.
  Split split_of(int64_t i) const {
    if (most_shares_ == 1) return {1, 1};
    const ForwardCall& call = forward_of(calls_[i]);
    const int64_t lanes = plan_.type().lanes, blocks = (call.hidden_size + lanes - 1) / lanes;
    Split best{1, 1};
    double least = 0;
    for (int members = 1; members <= most_shares_ && members <= blocks; ++members) {
      if (most_shares_ % members != 0) continue;
      const int ranges = ranges_of(plan_, call.batch_size, members);
      const double ns = split_step_ns(*plan_.table, plan_.step, (double)call.batch_size, largest(call, ranges),
                                      largest_part(blocks, members), members > 1);
      if (members == 1 || ns < least) {
        best = {ranges, members};
        least = ns;
      }
    }
    return best;
  }

  // Team `range` of recurrence i, where it has one: behind what its kernels need.
  void* team_of(int64_t i, Split split, int range) const {
    const int64_t offset = (phases_.workspace(calls_[i], split.rows) + 63) / 64 * 64;
    return static_cast<char*>(memory(i)) + offset + range * team_stride(split);
  }

  void make_teams() {
    together_ = most_shares_ > 1 && teams_are_welcome();
    if (!together_) return;
    for (int64_t i = 0; i < end_; ++i) {
      const Split split = split_of(i);
      for (int range = 0; range < split.rows && split.members > 1; ++range) {
        make_team(team_of(i, split, range), split.members);
      }
    }
  }

  int members(Split split) const { return together_ ? split.members : 1; }

  int row_shares(int64_t i) const {
    const Split split = split_of(i);
    return split.rows * members(split);
  }

  int product_shares(int64_t i) const {
    const bool asleep = count_ == 1 && row_shares(i) == 1;
    const double ns = plan_.step.all * (double)forward_of(calls_[i]).batch_size;
    return asleep && !worth_waking(ns * (double)steps(i)) ? 1 : most_shares_;
  }

  void start(int64_t i, int, int) const { phases_.start(calls_[i], memory(i), split_of(i).rows); }
  void rows(int64_t i, int index, int) const {
    const Split split = split_of(i);
    Share share{index, split.rows};
    if (members(split) > 1) {
      share.index = index / split.members;
      share.member = index % split.members;
      share.members = split.members;
      share.team = static_cast<Team*>(team_of(i, split, share.index));
    }
    phases_.rows(calls_[i], memory(i), steps(i), share);
  }
  void products(int64_t i, int index, int shares) const {
    phases_.products(calls_[i], memory(i), steps(i), index, shares);
  }

  void advance() {
    for (int64_t i = 0; i < end_; ++i) {
      if (finished(i)) continue;
      const int64_t done = steps(i);
      buffers_[i].cursor = forward_of(calls_[i]).cursor += done;
      if (finished(i) && phases_.finish != nullptr) phases_.finish(calls_[i], memory(i));
    }
  }

  using Work = void (Run::*)(int64_t i, int index, int shares) const;
  using Shares = int (Run::*)(int64_t i) const;
  struct Phase {
    const Run* run;
    Work work;
    Shares shares;
  };

  void in_parallel(Work work, Shares shares) const {
    int64_t all = 0;
    for (int64_t i = 0; i < end_; ++i) all += finished(i) ? 0 : (this->*shares)(i);
    Phase phase{this, work, shares};
    if (all > 0) parallel(executor_, all < threads_ ? (int)all : threads_, &Run::task, &phase);
  }

  // Thread `thread` of `threads` takes every so many of the shares of all recurrences.
  static void task(void* context, int thread, int threads) {
    const Phase& phase = *static_cast<const Phase*>(context);
    int64_t before = 0;
    for (int64_t i = 0; i < phase.run->end_; ++i) {
      if (phase.run->finished(i)) continue;
      const int shares = (phase.run->*phase.shares)(i);
      for (int index = 0; index < shares; ++index) {
        if ((before + index) % threads == thread) (phase.run->*phase.work)(i, index, shares);
      }
      before += shares;
    }
  }

  const Plan& plan_;
  const Phases<Call>& phases_;
  Call* calls_;
  hotloop_buffers* buffers_;
  const hotloop_executor* executor_;
  char* memory_;
  int64_t count_, end_ = 0;
  int threads_, most_shares_;
  bool alone_ = false;     // on the caller's thread, to its end
  bool together_ = false;  // in this round teams run, or else every member is one thread's
};

}  // namespace

int run(const Plan& plan, ForwardCall* calls, hotloop_buffers* buffers, const hotloop_executor* executor,
        char* memory) {
  return Run<ForwardCall>(plan, calls, buffers, executor, memory).run();
}

int run(const Plan& plan, BackwardCall* calls, hotloop_buffers* buffers, const hotloop_executor* executor,
        char* memory) {
  return Run<BackwardCall>(plan, calls, buffers, executor, memory).run();
}

}  // namespace hotloop
