// How the work of a call is cut into rounds and shares: the one cost model.
#pragma once

#include "dispatch.h"

namespace hotloop {

// NOLINTNEXTLINE(bugprone-return-const-ref-from-parameter): of the caller's array, never of a temporary
inline const hotloop_forward_args& forward_of(const hotloop_forward_args& args) { return args; }
inline const hotloop_forward_args& forward_of(const hotloop_backward_args& args) { return args.forward; }

// Bytes of workspace for each of `count` recurrences, at least one, and the call itself: HOTLOOP_OK, or HOTLOOP_AGAIN after
// some 50 ms, but never of one that was found to be short. Sizes have been checked.
int64_t workspace_of(const hotloop_forward_args* args, int64_t count, int threads);
int64_t workspace_of(const hotloop_backward_args* args, int64_t count, int threads);
// Whether one thread does the call soonest, however many there are.
bool is_short(const hotloop_forward_args* args, int64_t count);
bool is_short(const hotloop_backward_args* args, int64_t count);
int run(hotloop_forward_args* args, int64_t count, int threads, void* workspace, bool short_call);
int run(hotloop_backward_args* args, int64_t count, int threads, void* workspace, bool short_call);

}  // namespace hotloop
