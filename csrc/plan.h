// What hotloop_make_plan decides, once for many calls.
#pragma once

#include "cost.h"
#include "dispatch.h"

namespace hotloop {

struct Plan {
  uint64_t magic;  // kPlanMagic: of this version of the ABI
  const KernelTable* table;
  int32_t cell, dtype, uses, threads;
  int64_t count, seq_len, batch_size, input_size, hidden_size, output_size;
  int64_t each;  // bytes of workspace of each recurrence: what its kernels need, and then its teams
  StepCost step;
  int32_t most_shares;  // of one recurrence
  bool on_stack;        // the workspace

  bool backward() const { return (uses & HOTLOOP_BACKWARD) != 0; }
  const TypeKernels& type() const { return table->types[dtype]; }
  const CellKernels& kernels() const { return type().cells[cell]; }
  // The calls' descriptions stand at its start, then what each recurrence needs.
  int64_t calls_bytes() const {
    const int64_t one = backward() ? sizeof(BackwardCall) : sizeof(ForwardCall);
    return (count * one + 63) / 64 * 64;
  }
  int64_t workspace_bytes() const { return calls_bytes() + count * each + 64; }
};
static_assert(sizeof(Plan) <= sizeof(hotloop_plan));

constexpr uint64_t kPlanMagic = 0x686f746c6f6f7000 + HOTLOOP_ABI_VERSION;  // "hotloop"
#ifndef HOTLOOP_STACK_BYTES  // 0 where a sanitizer is to watch the workspace: the caller's begins and ends somewhere
#define HOTLOOP_STACK_BYTES 65536
#endif
constexpr int64_t kStackBytes = HOTLOOP_STACK_BYTES;
// Every array of a call, and the workspace, must be shorter than this. Products of sizes are formed in double, whose
// rounding is far below the distance to where int64 overflows.
constexpr double kMaxBytes = 4.0e18 / 16;

// HOTLOOP_OK, or what is wrong with the spec.
int check_spec(const hotloop_spec* spec);
int make_plan(Plan& plan, const hotloop_spec& spec, int32_t uses, int64_t count, int64_t seq_len, int64_t batch_size,
              int32_t threads);
// The plan that these words are, or NULL where they are none of this version and of the instruction set in use.
const Plan* plan_of(const hotloop_plan* words);

// What the packed weights' first line says they are.
struct PackedHeader {
  uint64_t magic;
  const KernelTable* table;
  int32_t cell, dtype;
  int64_t input_size, hidden_size, output_size;
};
static_assert(sizeof(PackedHeader) <= kPackedHeaderBytes);
PackedHeader packed_header(const hotloop_spec& spec);

}  // namespace hotloop
