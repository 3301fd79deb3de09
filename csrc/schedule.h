// How the work of a call is cut into rounds and shares: the one cost model.
#pragma once

#include "plan.h"

namespace hotloop {

// Ranges of a recurrence's rows, and the members of the team that runs each.
struct Split {
  int rows, members;
};

// Ranges of so many rows that teams of so many members leave.
inline int ranges_of(const Plan& plan, int64_t rows, int members) {
  const int most = plan.most_shares / members;
  return rows >= most ? most : rows < 1 ? 1 : (int)rows;
}

inline int64_t team_stride(Split split) { return (team_bytes(split.members) + 63) / 64 * 64; }

// The plan's recurrences, whose descriptions have been checked: HOTLOOP_OK, or HOTLOOP_AGAIN after some 50 ms, but never of
// a plan whose workspace is on the stack. `memory` starts a cache line. Cursors of `buffers` are advanced.
int run(const Plan& plan, ForwardCall* calls, hotloop_buffers* buffers, const hotloop_executor* executor, char* memory);
int run(const Plan& plan, BackwardCall* calls, hotloop_buffers* buffers, const hotloop_executor* executor,
        char* memory);

}  // namespace hotloop
