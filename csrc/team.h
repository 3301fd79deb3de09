// Threads that run one recurrence together, each some of its units, stage by stage: a stage, as the units of one time step,
// begins when every slice of the one before is done. Kernels include this: declarations only.
#pragma once

#include <stdint.h>

namespace hotloop {

// Lives in the caller's memory, on a cache line, for one round; run_team is then called once for each member, on any
// threads, side by side or one after the other.
struct Team;
int64_t team_bytes(int members);
Team* make_team(void* memory, int members);

// Runs slice(context, stage, member) for the stages 0 .. stages-1, and returns when all slices of all stages are done.
// A slice has an owner, the thread that called with its number, so that its weights stay in one core's caches. Others claim
// it only while its owner does not come, so no call depends on how many threads there are or when they begin.
void run_team(Team* team, int member, int64_t stages, void (*slice)(void* context, int64_t stage, int member),
              void* context);

// Whether teams are worth making: not for a while after one waited for a thread that the system had put aside.
bool teams_are_welcome();

}  // namespace hotloop
