// The kernel table of one instruction set, and the choice among them. Of this folder kernels/ may include this and team.h: no standard header with inline functions here either.
#pragma once

#include <stddef.h>

#include "call.h"
#include "team.h"

namespace hotloop {

// Packed weights begin with a line that plan.cpp writes and reads; CellKernels::pack is given what follows it.
constexpr int64_t kPackedHeaderBytes = 64;

// What one thread does of a round's recurrence: range `index` of `count` of the batch's rows, and of the units, in a team of
// `members` that does these rows together, slice `member`. `team` is null where it would have one member.
struct Share {
  int index, count;
  int member = 0, members = 1;
  Team* team = nullptr;
};

// One recurrence, forward or backward, in rounds of some steps; schedule.cpp decides how many steps a round takes and in
// how many shares, which run side by side, each phase of it is done. Sizes have been checked: no product of dimensions
// and element size overflows.
template <class Args>
struct Phases {
  int64_t (*most_steps)(const Args& args, void* workspace);  // of a round, once started
  int64_t (*workspace)(const Args& args, int shares);        // bytes for calls of at most these steps and rows
  void (*start)(const Args& args, void* workspace, int shares);
  // The recurrence itself: steps cursor .. cursor+steps.
  void (*rows)(const Args& args, void* workspace, int64_t steps, const Share& share);
  // Backward: what follows from all rows of the round, any number of shares; and what is left after the last round.
  void (*products)(const Args& args, void* workspace, int64_t steps, int index, int shares);
  void (*finish)(const Args& args, void* workspace);
};

struct CellKernels {
  hotloop_cell_traits traits;
  // Of a call these read the sizes and the parameters.
  int64_t (*packed_bytes)(const ForwardCall& args);
  void (*pack)(const ForwardCall& args, void* packed);
  Phases<ForwardCall> forward;
  Phases<BackwardCall> backward;
  double (*probe_forward)(void* buffer, int64_t bytes, int64_t repeats);
  double (*probe_backward)(void* buffer, int64_t bytes, int64_t repeats);
};

struct TypeKernels {
  int lanes;  // units in a vector
  CellKernels cells[HOTLOOP_CELL_COUNT];
  double (*probe_fma)(void* buffer, int64_t bytes, int64_t repeats);
  double (*probe_read)(void* buffer, int64_t bytes, int64_t repeats);
  double (*probe_copy)(void* buffer, int64_t bytes, int64_t repeats);
  void (*tanh)(const void* x, void* result, int64_t count);
  void (*sigmoid)(const void* x, void* result, int64_t count);
};

// hash_block takes a multiple of so many words, and a key more for each of so many.
constexpr int kHashWords = 16, kHashShift = 8;

struct KernelTable {
  hotloop_isa_traits traits;
  void (*hash_block)(const void* bytes, const uint64_t* keys, int64_t words, uint64_t* sums);
  TypeKernels types[HOTLOOP_DTYPE_COUNT];
};

// The table in use, or NULL where HOTLOOP_ISA names none that this processor can run.
const KernelTable* active_table();
bool use_table(const char* name);
const KernelTable* table_at(int index);

}  // namespace hotloop
