// The kernel table of one instruction set, and the choice among them. The only header of this folder, with threads.h,
// that kernels/ may include: no standard header with inline functions here either.
#pragma once

#include <stddef.h>

#include "hotloop.h"

namespace hotloop {

// Packed weights begin with a line that abi.cpp writes and reads; CellKernels::pack is given what follows it.
constexpr int64_t kPackedHeaderBytes = 64;

// Sizes have been checked: no product of dimensions and element size overflows.
struct CellKernels {
  int gates, saved;  // G and S of hotloop_decls.h
  bool has_c;
  int64_t (*packed_bytes)(const hotloop_forward_args& args);
  void (*pack)(const hotloop_forward_args& args, void* packed);
  int64_t (*forward_workspace)(const hotloop_forward_args& args, int threads);
  int (*forward)(hotloop_forward_args& args, int threads, int64_t deadline);  // HOTLOOP_OK or HOTLOOP_AGAIN
  int64_t (*backward_workspace)(const hotloop_backward_args& args, int threads);
  int (*backward)(hotloop_backward_args& args, int threads, int64_t deadline);
  double (*probe_forward)(void* buffer, int64_t bytes, int64_t repeats);
  double (*probe_backward)(void* buffer, int64_t bytes, int64_t repeats);
};

struct TypeKernels {
  CellKernels cells[HOTLOOP_CELL_COUNT];
  double (*probe_fma)(void* buffer, int64_t bytes, int64_t repeats);
  double (*probe_read)(void* buffer, int64_t bytes, int64_t repeats);
  double (*probe_copy)(void* buffer, int64_t bytes, int64_t repeats);
  void (*tanh)(const void* x, void* result, int64_t count);
  void (*sigmoid)(const void* x, void* result, int64_t count);
};

struct KernelTable {
  const char* name;
  TypeKernels types[HOTLOOP_DTYPE_COUNT];
};

// The table in use, or NULL where HOTLOOP_ISA names none that this processor can run.
const KernelTable* active_table();
bool use_table(const char* name);
const KernelTable* table_at(int index);

}  // namespace hotloop
