// A call goes in rounds. In each, as many recurrences as there are threads, of those that are not finished, do some steps,
// first their rows, then, backward, the products that need all of them. All shares of all these recurrences in a phase are
// spread over the threads. Work is split three ways: recurrences side by side; the rows of one, which need not wait for
// each other; and the units of some rows among a team, which exchanges flags at every step. Results do not depend on any
// of this: shares split rows and columns, never a sum.
#include "schedule.h"

#include <type_traits>

#include "ragged.h"
#include "threads.h"

namespace hotloop {
namespace {

constexpr int64_t kCallNs = 50'000'000;  // a call returns HOTLOOP_AGAIN after this long, so that Ctrl-C is seen
constexpr double kRoundNs = 2e6;         // done between two looks at the clock
// A call below this runs on the caller alone: to wake a thread takes some 20 us, of the caller 3 to 5. At 48 us a step of
// GRU B32 I64 H128 stayed on one thread, 31 us; split it takes 21 us.
constexpr double kInlineNs = 24e3;
// The same where the other threads are awake.
constexpr double kInlineAwakeNs = 10e3;
// What a team spends at a step on exchanging flags and on waiting for the slowest.
constexpr double kExchangeNs = 200;
// What one core reads of packed weights: from L2.
constexpr double kReadBytesNs = 200;
// Products that are worth waking threads that slept while one thread ran the recurrence of a single row.
constexpr double kWakeNs = 2e6;

const Phases<hotloop_forward_args>& phases_of(const CellKernels& cell, const hotloop_forward_args&) {
  return cell.forward;
}
const Phases<hotloop_backward_args>& phases_of(const CellKernels& cell, const hotloop_backward_args&) {
  return cell.backward;
}

// Steps that a row takes, on average.
double mean_steps(const hotloop_forward_args& args) {
  if (args.lengths == nullptr && args.offsets == nullptr) return (double)args.seq_len;
  return args.batch_size > 0 ? (double)row_steps(args) / (double)args.batch_size : 0;
}

int greatest_common_divisor(int a, int b) { return b == 0 ? a : greatest_common_divisor(b, a % b); }

template <class Args>
class Call {
 public:
  Call(Args* args, int64_t count, int threads) : args_(args), count_(count), threads_(threads) {
    // As few shares of each recurrence as give every thread equally many.
    most_shares_ = threads_ / greatest_common_divisor(threads_, (int)(count % threads_));
    each_ = most_workspace();
    double ns = 0;
    for (int64_t i = 0; i < count; ++i) ns += phases(i).step_ns(args[i]) * mean_steps(forward_of(args[i]));
    bool begun = false;
    for (int64_t i = 0; i < count; ++i) begun = begun || args[i].cursor > 0;
    short_ = !begun && ns < (awake(threads) ? kInlineAwakeNs : kInlineNs);
    if (short_) threads_ = most_shares_ = 1;
  }

  bool is_short() const { return short_; }
  int64_t workspace_each() const { return each_; }

  // `short_call`: it was found to be short. It might not be any more: whether other threads are awake changes at any time.
  int run(void* workspace, bool short_call) {
    short_ = short_ || short_call;
    aligned_ = static_cast<char*>(workspace) + (-reinterpret_cast<uintptr_t>(workspace) & 63);
    const int64_t deadline = monotonic_ns() + kCallNs;
    while (unfinished()) {
      choose();
      in_parallel(&Call::start, &Call::one);
      make_teams();
      in_parallel(&Call::rows, &Call::row_shares);
      in_parallel(&Call::products, &Call::product_shares);
      advance();
      // A short call never comes back before its end: the workspace of a call that goes on is as it was begun, and by then
      // it would count as a long one if the other threads are awake.
      if (!short_ && unfinished() && monotonic_ns() > deadline) return HOTLOOP_AGAIN;
    }
    return HOTLOOP_OK;
  }

 private:
  // Each recurrence has as much of the workspace as the largest needs, however it is split: what its kernels need, and then
  // its teams. The split may depend on the lengths of rows, the size may not.
  int64_t most_workspace() const {
    int64_t most = 0;
    for (int64_t i = 0; i < count_; ++i) {
      const int64_t alone = phases(i).workspace(args_[i], 1);
      if (alone > most) most = alone;
      for (int members = 1; members <= most_shares_; ++members) {
        if (most_shares_ % members != 0) continue;
        const Split split{ranges_of(i, members), members};
        const int64_t bytes = team_offset(i, split) + (members > 1 ? split.rows * team_stride(split) : 0);
        if (bytes > most) most = bytes;
      }
    }
    return (most + 63) / 64 * 64 + 64;
  }

  const Phases<std::remove_const_t<Args>>& phases(int64_t i) const {
    const hotloop_forward_args& forward = forward_of(args_[i]);
    return phases_of(active_table()->types[forward.dtype].cells[forward.cell], args_[i]);
  }

  bool finished(int64_t i) const { return args_[i].cursor == forward_of(args_[i]).seq_len; }

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
    const int64_t left = forward_of(args_[i]).seq_len - args_[i].cursor;
    const int64_t most = phases(i).most_steps(args_[i], aligned_ + i * each_);
    int64_t now = most < left ? most : left;
    if (phases(i).products == nullptr) {  // else rounds are the chunks in which weight gradients are summed
      const double ns = phases(i).step_ns(args_[i]);
      if (ns >= 1 && kRoundNs / ns + 1 < (double)now) now = (int64_t)(kRoundNs / ns) + 1;
    }
    return now;
  }

  int one(int64_t i) const { return args_[i].cursor == 0 ? 1 : 0; }

  // Ranges of a recurrence's rows, and the members of the team that runs each.
  struct Split {
    int rows, members;
  };

  // Ranges of rows that teams of so many members leave.
  int ranges_of(int64_t i, int members) const {
    const int64_t rows = forward_of(args_[i]).batch_size;
    return rows >= most_shares_ / members ? most_shares_ / members : rows < 1 ? 1 : (int)rows;
  }

  // The part of a whole that the largest of so many parts has.
  static double largest_part(int64_t whole, int64_t parts) {
    const int64_t largest = (whole + parts - 1) / parts;
    return (double)largest / (double)whole;
  }

  // The part of all rows' steps that the largest of `ranges` has; of a ragged batch at least those of its longest row.
  static double largest(const hotloop_forward_args& args, int ranges) {
    const int64_t rows = args.batch_size < 1 ? 1 : args.batch_size;
    const double even = largest_part(rows, ranges);
    const double steps = mean_steps(args) * (double)rows, longest = steps > 0 ? (double)args.seq_len / steps : 1;
    return longest > even ? longest < 1 ? longest : 1 : even;
  }

  // The cheapest way to split recurrence i: a thread's part of a step takes as long as its products or as reading its
  // weights, whichever is longer.
  Split split_of(int64_t i) const {
    const hotloop_forward_args& args = forward_of(args_[i]);
    const TypeKernels& type = active_table()->types[args.dtype];
    const int64_t blocks = (args.hidden_size + type.lanes - 1) / type.lanes;
    const double step = phases(i).rows_ns(args_[i]);
    const double read = (double)(type.cells[args.cell].gates * args.hidden_size * blocks * type.lanes) *
                        (args.dtype == HOTLOOP_FLOAT64 ? 8 : 4) / kReadBytesNs;
    Split best{1, 1};
    double least = 0;
    for (int members = 1; members <= most_shares_ && members <= blocks; ++members) {
      if (most_shares_ % members != 0) continue;
      const int ranges = ranges_of(i, members);
      const double of_units = largest_part(blocks, members), of_rows = largest(args, ranges);
      const double products = step * of_rows * of_units, reading = read * of_units;
      const double ns = (products > reading ? products : reading) + (members > 1 ? kExchangeNs : 0);
      if (members == 1 || ns < least) {
        best = {ranges, members};
        least = ns;
      }
    }
    return best;
  }

  int64_t team_offset(int64_t i, Split split) const {
    return (phases(i).workspace(args_[i], split.rows) + 63) / 64 * 64;
  }
  static int64_t team_stride(Split split) { return (team_bytes(split.members) + 63) / 64 * 64; }

  // Team `range` of recurrence i, where it has one.
  void* team_of(int64_t i, Split split, int range) const {
    return aligned_ + i * each_ + team_offset(i, split) + range * team_stride(split);
  }

  void make_teams() {
    together_ = teams_are_welcome();
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
    if (phases(i).products == nullptr) return 0;
    const bool asleep = count_ == 1 && row_shares(i) == 1;
    return asleep && phases(i).step_ns(args_[i]) * (double)steps(i) < kWakeNs ? 1 : most_shares_;
  }

  void start(int64_t i, int, int) const { phases(i).start(args_[i], aligned_ + i * each_, split_of(i).rows); }
  void rows(int64_t i, int index, int) const {
    const Split split = split_of(i);
    Share share{index, split.rows};
    if (members(split) > 1) {
      share.index = index / split.members;
      share.member = index % split.members;
      share.members = split.members;
      share.team = static_cast<Team*>(team_of(i, split, share.index));
    }
    phases(i).rows(args_[i], aligned_ + i * each_, steps(i), share);
  }
  void products(int64_t i, int index, int shares) const {
    phases(i).products(args_[i], aligned_ + i * each_, steps(i), index, shares);
  }

  void advance() {
    for (int64_t i = 0; i < end_; ++i) {
      if (finished(i)) continue;
      args_[i].cursor += steps(i);
      if (finished(i) && phases(i).finish != nullptr) phases(i).finish(args_[i], aligned_ + i * each_);
    }
  }

  using Work = void (Call::*)(int64_t i, int index, int shares) const;
  using Shares = int (Call::*)(int64_t i) const;
  struct Phase {
    const Call* call;
    Work work;
    Shares shares;
  };

  void in_parallel(Work work, Shares shares) const {
    int64_t all = 0;
    for (int64_t i = 0; i < end_; ++i) all += finished(i) ? 0 : (this->*shares)(i);
    Phase phase{this, work, shares};
    if (all > 0) parallel(all < threads_ ? (int)all : threads_, &Call::task, &phase);
  }

  // Thread `thread` of `threads` takes every so many of the shares of all recurrences.
  static void task(void* context, int thread, int threads) {
    const Phase& phase = *static_cast<const Phase*>(context);
    int64_t before = 0;
    for (int64_t i = 0; i < phase.call->end_; ++i) {
      if (phase.call->finished(i)) continue;
      const int shares = (phase.call->*phase.shares)(i);
      for (int index = 0; index < shares; ++index) {
        if ((before + index) % threads == thread) (phase.call->*phase.work)(i, index, shares);
      }
      before += shares;
    }
  }

  Args* args_;
  int64_t count_, end_ = 0;
  int threads_, most_shares_;
  char* aligned_ = nullptr;  // the workspace, from a cache line on
  int64_t each_ = 0;
  bool short_ = false;
  bool together_ = true;  // in this round, or is every team one thread
};

}  // namespace

int64_t workspace_of(const hotloop_forward_args* args, int64_t count, int threads) {
  return Call<const hotloop_forward_args>(args, count, threads).workspace_each();
}

int64_t workspace_of(const hotloop_backward_args* args, int64_t count, int threads) {
  return Call<const hotloop_backward_args>(args, count, threads).workspace_each();
}

bool is_short(const hotloop_forward_args* args, int64_t count) {
  return Call<const hotloop_forward_args>(args, count, 2).is_short();
}

bool is_short(const hotloop_backward_args* args, int64_t count) {
  return Call<const hotloop_backward_args>(args, count, 2).is_short();
}

int run(hotloop_forward_args* args, int64_t count, int threads, void* workspace, bool short_call) {
  return Call<hotloop_forward_args>(args, count, threads).run(workspace, short_call);
}

int run(hotloop_backward_args* args, int64_t count, int threads, void* workspace, bool short_call) {
  return Call<hotloop_backward_args>(args, count, threads).run(workspace, short_call);
}

}  // namespace hotloop
