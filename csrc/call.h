// One recurrence of a running call as kernels read it: what the plan says, and what the buffers of the call say.
// Kernels include this: declarations only.
#pragma once

#include "hotloop.h"

namespace hotloop {

// Fields are those of hotloop_spec, hotloop_weights and hotloop_buffers.
struct ForwardCall {
  int32_t cell, dtype, reverse, reset_to_initial;
  int64_t seq_len, batch_size, input_size, hidden_size, output_size;
  double step_ns;  // what a step of one row takes one thread, by the cost model
  const void* parameters[HOTLOOP_PARAMETER_COUNT];
  const void* packed;
  const void* x;
  int64_t x_stride_t, x_stride_b;
  const void *h0, *c0;
  void* output;
  int64_t output_stride_t, output_stride_b;
  void *h_n, *c_n, *gates, *c;
  int64_t c_stride_t, c_stride_b;
  const int64_t *lengths, *offsets;
  const uint8_t* resets;
  int64_t resets_stride_t, resets_stride_b;
  int64_t cursor;
  const void* recurrent_mask;
  const int64_t* ranks;  // backward: of hotloop_gradients
};

struct BackwardCall : hotloop_gradients {
  ForwardCall forward;  // its cursor counts from the last step
};

// NOLINTNEXTLINE(bugprone-return-const-ref-from-parameter): of the caller's array, never of a temporary
inline const ForwardCall& forward_of(const ForwardCall& call) { return call; }
inline const ForwardCall& forward_of(const BackwardCall& call) { return call.forward; }
inline ForwardCall& forward_of(ForwardCall& call) { return call; }
inline ForwardCall& forward_of(BackwardCall& call) { return call.forward; }

}  // namespace hotloop
