// The kernel table of one instruction set: every cell, every type, no holes. A constant: nothing runs when it is loaded.
#pragma once

#include "backward.h"
#include "hash_block.h"
#include "probe.h"

namespace {

template <class T, Vector<T> (*function)(Vector<T>)>
void elementwise(const void* x, void* result, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const Part<T> part(count - i);
    part.store(static_cast<T*>(result) + i, function(part.load(static_cast<const T*>(x) + i)));
  }
}

template <class Cell, class T>
constexpr hotloop::CellKernels cell_kernels() {
  return {{Cell::kGates, kStages<Cell>, kSaved<Cell>, Cell::kHasC, Cell::kProjects},
          packed_bytes<Cell, T>,
          pack<Cell, T>,
          {forward_most_steps<Cell, T>, forward_workspace<Cell, T>, forward_start<Cell, T>, forward_rows<Cell, T>,
           nullptr, nullptr},
          {backward_most_steps<Cell, T>, backward_workspace<Cell, T>, backward_start<Cell, T>, backward_rows<Cell, T>,
           backward_products<Cell, T>, backward_finish<Cell, T>},
          probe_forward<Cell, T>,
          probe_backward<Cell, T>};
}

template <class T>
constexpr hotloop::TypeKernels type_kernels() {
  return {kLanes<T>,
          {cell_kernels<RnnTanh, T>(), cell_kernels<RnnRelu, T>(), cell_kernels<Lstm, T>(), cell_kernels<Gru, T>(),
           cell_kernels<GruResetBefore, T>(), cell_kernels<LstmProjected, T>()},
          probe_fma<T>,
          probe_read<T>,
          probe_copy<T>,
          elementwise<T, tanh<Vector<T>>>,
          elementwise<T, sigmoid<Vector<T>>>};
}

constexpr hotloop::KernelTable kernel_table() {
  return {Isa::kTraits, hash_block, {type_kernels<float>(), type_kernels<double>()}};
}

}  // namespace
