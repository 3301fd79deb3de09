// The extern "C" boundary: what a call's own arguments could break is refused here, then one indirect call a sequence. Nothing
// is allocated and nothing throws.
#include <math.h>
#include <string.h>

#include "dispatch.h"
#include "float_control.h"
#include "hash.h"
#include "hotloop.h"
#include "plan.h"
#include "schedule.h"
#include "threads.h"

namespace {

using hotloop::BackwardCall;
using hotloop::CellKernels;
using hotloop::ForwardCall;
using hotloop::KernelTable;
using hotloop::kMaxBytes;
using hotloop::PackedHeader;
using hotloop::Plan;

bool missing(const void* pointer, int64_t count) { return pointer == nullptr && count > 0; }

// What there is to say of a parameter, of every cell of these sizes; rows 0 where the cell has none of it.
hotloop_parameter_traits parameter_traits(const hotloop_cell_traits& cell, int64_t input_size, int64_t hidden_size,
                                          int64_t output_size, int32_t parameter) {
  const int64_t rows = cell.gates * hidden_size;
  switch (parameter) {
    case HOTLOOP_WEIGHT_IH: return {"weight_ih", rows, input_size, 0};
    case HOTLOOP_WEIGHT_HH: return {"weight_hh", rows, output_size, 0};
    case HOTLOOP_BIAS_IH: return {"bias_ih", rows, 1, 1};
    case HOTLOOP_BIAS_HH: return {"bias_hh", rows, 1, 1};
    default: return {"weight_hr", cell.projects ? output_size : 0, hidden_size, 0};
  }
}

// Whether a weight that the cell has is missing, or one is there that it has not.
bool misses_weights(const hotloop_cell_traits& cell, const hotloop_weights& weights) {
  for (int32_t i = 0; i < HOTLOOP_PARAMETER_COUNT; ++i) {
    const hotloop_parameter_traits parameter = parameter_traits(cell, 1, 1, 1, i);
    if (parameter.rows == 0 ? weights.parameters[i] != nullptr
                            : !parameter.is_bias && weights.parameters[i] == nullptr) {
      return true;
    }
  }
  return false;
}

// Rows lie where lengths and offsets say, so they are read before anything is computed with them.
int check_lengths(const hotloop_buffers& buffers) {
  if (buffers.lengths != nullptr && buffers.offsets != nullptr) return HOTLOOP_BAD_ARGUMENT;
  if (buffers.lengths != nullptr) {
    for (int64_t row = 0; row < buffers.batch_size; ++row) {
      if (buffers.lengths[row] < 0 || buffers.lengths[row] > buffers.seq_len) return HOTLOOP_BAD_ARGUMENT;
    }
  }
  if (buffers.offsets != nullptr) {
    if (buffers.offsets[0] != 0) return HOTLOOP_BAD_ARGUMENT;
    for (int64_t row = 0; row < buffers.batch_size; ++row) {
      const int64_t from = buffers.offsets[row], to = buffers.offsets[row + 1];
      if (to < from || to - from > buffers.seq_len) return HOTLOOP_BAD_ARGUMENT;
    }
  }
  return HOTLOOP_OK;
}

// Whether addresses in a sequence with these strides cannot be computed.
bool too_far(const hotloop_buffers& buffers, int64_t stride_t, int64_t stride_b) {
  const double steps = (double)(buffers.offsets != nullptr ? buffers.offsets[buffers.batch_size] : buffers.seq_len);
  return fabs((double)stride_t * (steps + 1)) * 8 > kMaxBytes ||
         fabs((double)stride_b * (double)buffers.batch_size) * 8 > kMaxBytes;
}

int check_weights(const Plan& plan, const hotloop_weights* weights) {
  if (weights == nullptr) return HOTLOOP_BAD_ARGUMENT;
  if (plan.backward() || weights->packed == nullptr) {
    const bool here = !misses_weights(plan.kernels().traits, *weights);
    return here && (plan.uses & HOTLOOP_PACKED) == 0 ? HOTLOOP_OK : HOTLOOP_BAD_ARGUMENT;
  }
  if (reinterpret_cast<uintptr_t>(weights->packed) % 64 != 0) return HOTLOOP_PACKED_ELSEWHERE;
  const PackedHeader& header = *static_cast<const PackedHeader*>(weights->packed);
  const bool same = header.magic == plan.magic && header.table == plan.table && header.cell == plan.cell &&
                    header.dtype == plan.dtype && header.input_size == plan.input_size &&
                    header.hidden_size == plan.hidden_size && header.output_size == plan.output_size;
  return same ? HOTLOOP_OK : HOTLOOP_PACKED_ELSEWHERE;
}

// What both directions of time read of the buffers.
int check_buffers(const Plan& plan, const hotloop_buffers& buffers) {
  const hotloop_cell_traits& cell = plan.kernels().traits;
  const int64_t T = buffers.seq_len, B = buffers.batch_size;
  if (T < 1 || T > plan.seq_len || B < 0 || B > plan.batch_size || buffers.cursor < 0 || buffers.cursor > T ||
      (plan.on_stack && buffers.cursor != 0) ||
      ((plan.uses & HOTLOOP_MASKED) == 0 && buffers.recurrent_mask != nullptr) || missing(buffers.x, B) ||
      missing(buffers.output, B)) {
    return HOTLOOP_BAD_ARGUMENT;
  }
  // What training saves is there in training and backward, and nowhere else.
  const bool saves = (plan.uses & (HOTLOOP_TRAINING | HOTLOOP_BACKWARD)) != 0;
  if ((saves && cell.saved > 0 ? missing(buffers.gates, B) : buffers.gates != nullptr) ||
      (cell.has_c ? saves && missing(buffers.c, B) : buffers.c != nullptr || buffers.c0 != nullptr)) {
    return HOTLOOP_BAD_ARGUMENT;
  }
  const int status = check_lengths(buffers);
  if (status != HOTLOOP_OK) return status;
  const bool far = too_far(buffers, buffers.x_stride_t, buffers.x_stride_b) ||
                   too_far(buffers, buffers.output_stride_t, buffers.output_stride_b) ||
                   too_far(buffers, buffers.c_stride_t, buffers.c_stride_b) ||
                   too_far(buffers, buffers.resets_stride_t, buffers.resets_stride_b);
  return far ? HOTLOOP_TOO_LARGE : check_weights(plan, buffers.weights);
}

int check_call(const Plan& plan, const hotloop_buffers& buffers) {
  const int status = check_buffers(plan, buffers);
  if (status != HOTLOOP_OK) return status;
  const int64_t B = buffers.batch_size;
  return missing(buffers.h_n, B) || (plan.kernels().traits.has_c != 0 && missing(buffers.c_n, B)) ? HOTLOOP_BAD_ARGUMENT
                                                                                                  : HOTLOOP_OK;
}

int check_gradients(const Plan& plan, const hotloop_buffers& buffers, const hotloop_gradients& gradients) {
  bool unplanned =
      ((plan.uses & HOTLOOP_GRAD_X) == 0 && gradients.grad_x != nullptr) ||
      ((plan.uses & HOTLOOP_ACCUMULATE) == 0 && gradients.accumulate != 0) ||
      ((plan.uses & HOTLOOP_RESET_TO_INITIAL) == 0 && buffers.resets != nullptr && buffers.reset_to_initial != 0);
  for (int32_t i = 0; i < HOTLOOP_PARAMETER_COUNT; ++i) {
    if (gradients.grad_parameters[i] == nullptr) continue;
    const hotloop_parameter_traits parameter = parameter_traits(plan.kernels().traits, 1, 1, 1, i);
    unplanned |= parameter.rows == 0 || (!parameter.is_bias && (plan.uses & HOTLOOP_GRAD_WEIGHTS) == 0);
  }
  const int64_t B = buffers.batch_size;
  if (unplanned || missing(gradients.grad_h0, B) ||
      (plan.kernels().traits.has_c
           ? missing(gradients.grad_c0, B)
           : gradients.grad_c_n != nullptr || gradients.grad_c != nullptr || gradients.grad_c0 != nullptr)) {
    return HOTLOOP_BAD_ARGUMENT;
  }
  const bool far = too_far(buffers, gradients.grad_output_stride_t, gradients.grad_output_stride_b) ||
                   too_far(buffers, gradients.grad_c_stride_t, gradients.grad_c_stride_b) ||
                   too_far(buffers, gradients.grad_x_stride_t, gradients.grad_x_stride_b);
  return far ? HOTLOOP_TOO_LARGE : HOTLOOP_OK;
}

void use_parameters(const hotloop_weights& weights, ForwardCall& call) {
  for (int32_t i = 0; i < HOTLOOP_PARAMETER_COUNT; ++i) call.parameters[i] = weights.parameters[i];
}

void describe(const Plan& plan, const hotloop_buffers& buffers, ForwardCall& call) {
  const hotloop_weights& weights = *buffers.weights;
  call = {plan.cell,
          plan.dtype,
          buffers.reverse,
          buffers.reset_to_initial,
          buffers.seq_len,
          buffers.batch_size,
          plan.input_size,
          plan.hidden_size,
          plan.output_size,
          plan.step.all,
          {},
          weights.packed,
          buffers.x,
          buffers.x_stride_t,
          buffers.x_stride_b,
          buffers.h0,
          buffers.c0,
          buffers.output,
          buffers.output_stride_t,
          buffers.output_stride_b,
          buffers.h_n,
          buffers.c_n,
          buffers.gates,
          buffers.c,
          buffers.c_stride_t,
          buffers.c_stride_b,
          buffers.lengths,
          buffers.offsets,
          buffers.resets,
          buffers.resets_stride_t,
          buffers.resets_stride_b,
          buffers.cursor,
          buffers.recurrent_mask,
          nullptr};
  use_parameters(weights, call);
}

ForwardCall call_to_pack(const hotloop_spec& spec) {
  ForwardCall call{};
  call.input_size = spec.input_size;
  call.hidden_size = spec.hidden_size;
  call.output_size = spec.output_size;
  return call;
}

int check_call(const Plan& plan, const hotloop_buffers& buffers, const hotloop_gradients& gradients) {
  const int status = check_buffers(plan, buffers);
  return status != HOTLOOP_OK ? status : check_gradients(plan, buffers, gradients);
}

int run_forward(const Plan& plan, hotloop_buffers* buffers, const hotloop_executor* executor, void* memory) {
  ForwardCall* const calls = static_cast<ForwardCall*>(memory);
  for (int64_t i = 0; i < plan.count; ++i) {
    describe(plan, buffers[i], calls[i]);  // NOLINT(clang-analyzer-security.ArrayBound): hotloop_step's count is 1
  }
  return hotloop::run(plan, calls, buffers, executor, static_cast<char*>(memory) + plan.calls_bytes());
}

int run_backward(const Plan& plan, hotloop_buffers* buffers, const hotloop_gradients* gradients,
                 const hotloop_executor* executor, void* memory) {
  BackwardCall* const calls = static_cast<BackwardCall*>(memory);
  for (int64_t i = 0; i < plan.count; ++i) {
    static_cast<hotloop_gradients&>(calls[i]) = gradients[i];
    describe(plan, buffers[i], calls[i].forward);
    calls[i].forward.ranks = gradients[i].ranks;
  }
  return hotloop::run(plan, calls, buffers, executor, static_cast<char*>(memory) + plan.calls_bytes());
}

// Calls run(memory) with the workspace from a cache line on: the caller's, or one on the stack.
template <class F>
int with_workspace(const Plan& plan, void* workspace, int64_t bytes, F&& run) {
  const hotloop::ExceptionsKept exceptions_kept;
  if (plan.on_stack) {
    alignas(64) char memory[hotloop::kStackBytes + 64];
    return run(static_cast<void*>(memory));
  }
  if (workspace == nullptr || bytes < plan.workspace_bytes()) return HOTLOOP_WORKSPACE_TOO_SMALL;
  return run(static_cast<void*>(static_cast<char*>(workspace) + (-reinterpret_cast<uintptr_t>(workspace) & 63)));
}

}  // namespace

extern "C" {

int32_t hotloop_abi_version(void) { return HOTLOOP_ABI_VERSION; }

int32_t hotloop_make_plan(hotloop_plan* plan, const hotloop_spec* spec, int32_t uses, int64_t count, int64_t seq_len,
                          int64_t batch_size, int32_t threads) {
  const hotloop::ExceptionsKept exceptions_kept;
  if (plan == nullptr) return HOTLOOP_BAD_ARGUMENT;
  int status = hotloop::check_spec(spec);
  Plan made{};
  if (status == HOTLOOP_OK) status = hotloop::make_plan(made, *spec, uses, count, seq_len, batch_size, threads);
  if (status == HOTLOOP_OK) memcpy(plan, &made, sizeof made);
  return status;
}

int64_t hotloop_workspace_bytes(const hotloop_plan* plan) {
  const Plan* const decided = hotloop::plan_of(plan);
  return decided == nullptr ? -1 : decided->on_stack ? 0 : decided->workspace_bytes();
}

int32_t hotloop_forward(const hotloop_plan* plan, hotloop_buffers* buffers, const hotloop_executor* executor,
                        void* workspace, int64_t workspace_bytes) {
  const Plan* const decided = hotloop::plan_of(plan);
  if (decided == nullptr) return HOTLOOP_PLANNED_ELSEWHERE;
  if (buffers == nullptr || decided->backward()) return HOTLOOP_BAD_ARGUMENT;
  for (int64_t i = 0; i < decided->count; ++i) {
    const int status = check_call(*decided, buffers[i]);
    if (status != HOTLOOP_OK) return status;
  }
  return with_workspace(*decided, workspace, workspace_bytes,
                        [&](void* memory) { return run_forward(*decided, buffers, executor, memory); });
}

int32_t hotloop_backward(const hotloop_plan* plan, hotloop_buffers* buffers, const hotloop_gradients* gradients,
                         const hotloop_executor* executor, void* workspace, int64_t workspace_bytes) {
  const Plan* const decided = hotloop::plan_of(plan);
  if (decided == nullptr) return HOTLOOP_PLANNED_ELSEWHERE;
  if (buffers == nullptr || gradients == nullptr || !decided->backward()) return HOTLOOP_BAD_ARGUMENT;
  for (int64_t i = 0; i < decided->count; ++i) {
    const int status = check_call(*decided, buffers[i], gradients[i]);
    if (status != HOTLOOP_OK) return status;
  }
  return with_workspace(*decided, workspace, workspace_bytes,
                        [&](void* memory) { return run_backward(*decided, buffers, gradients, executor, memory); });
}

int32_t hotloop_step(const hotloop_plan* plan, const hotloop_weights* weights, int64_t seq_len, int64_t batch_size,
                     const void* x, const void* h0, const void* c0, void* output, void* h_n, void* c_n,
                     const hotloop_executor* executor, void* workspace, int64_t workspace_bytes) {
  const Plan* const decided = hotloop::plan_of(plan);
  if (decided == nullptr) return HOTLOOP_PLANNED_ELSEWHERE;
  // Sizes first: the strides are products of them.
  if (decided->count != 1 || (decided->uses & (HOTLOOP_TRAINING | HOTLOOP_BACKWARD)) != 0 || seq_len < 1 ||
      seq_len > decided->seq_len || batch_size < 0 || batch_size > decided->batch_size) {
    return HOTLOOP_BAD_ARGUMENT;
  }
  const bool batch_first = (decided->uses & HOTLOOP_BATCH_FIRST) != 0;
  const int64_t rows_t = batch_first ? 1 : batch_size, rows_b = batch_first ? seq_len : 1;
  hotloop_buffers buffers{};
  buffers.weights = weights;
  buffers.seq_len = seq_len;
  buffers.batch_size = batch_size;
  buffers.x = x;
  buffers.x_stride_t = rows_t * decided->input_size;
  buffers.x_stride_b = rows_b * decided->input_size;
  buffers.h0 = h0;
  buffers.c0 = c0;
  buffers.output = output;
  buffers.output_stride_t = rows_t * decided->output_size;
  buffers.output_stride_b = rows_b * decided->output_size;
  buffers.h_n = h_n;
  buffers.c_n = c_n;
  const int status = check_call(*decided, buffers);
  if (status != HOTLOOP_OK) return status;
  return with_workspace(*decided, workspace, workspace_bytes, [&](void* memory) {
    int now;
    do {
      now = run_forward(*decided, &buffers, executor, memory);
    } while (now == HOTLOOP_AGAIN);
    return now;
  });
}

int64_t hotloop_packed_bytes(const hotloop_spec* spec) {
  if (hotloop::check_spec(spec) != HOTLOOP_OK) return -1;
  const CellKernels& cell = hotloop::active_table()->types[spec->dtype].cells[spec->cell];
  return hotloop::kPackedHeaderBytes + cell.packed_bytes(call_to_pack(*spec));
}

int32_t hotloop_pack(const hotloop_spec* spec, const hotloop_weights* weights, void* packed, int64_t bytes) {
  const int status = hotloop::check_spec(spec);
  if (status != HOTLOOP_OK) return status;
  const CellKernels& cell = hotloop::active_table()->types[spec->dtype].cells[spec->cell];
  if (packed == nullptr || reinterpret_cast<uintptr_t>(packed) % 64 != 0 || weights == nullptr ||
      misses_weights(cell.traits, *weights)) {
    return HOTLOOP_BAD_ARGUMENT;
  }
  if (bytes < hotloop_packed_bytes(spec)) return HOTLOOP_WORKSPACE_TOO_SMALL;
  *static_cast<PackedHeader*>(packed) = hotloop::packed_header(*spec);
  ForwardCall call = call_to_pack(*spec);
  use_parameters(*weights, call);
  cell.pack(call, static_cast<char*>(packed) + hotloop::kPackedHeaderBytes);
  return HOTLOOP_OK;
}

int32_t hotloop_hash(const void* const* arrays, const int64_t* bytes, int64_t count, uint64_t seed, uint64_t* result) {
  if (count < 0 || result == nullptr || (count > 0 && (arrays == nullptr || bytes == nullptr))) {
    return HOTLOOP_BAD_ARGUMENT;
  }
  for (int64_t i = 0; i < count; ++i) {
    if (bytes[i] < 0 || missing(arrays[i], bytes[i])) return HOTLOOP_BAD_ARGUMENT;
  }
  if (hotloop::active_table() == nullptr) return HOTLOOP_UNKNOWN_ISA;
  hotloop::hash(arrays, bytes, count, seed, result);
  return HOTLOOP_OK;
}

const char* hotloop_isa(void) {
  const KernelTable* const table = hotloop::active_table();
  return table != nullptr ? table->traits.name : nullptr;
}

const char* hotloop_isa_at(int32_t index) {
  const KernelTable* const table = index < 0 ? nullptr : hotloop::table_at(index);
  return table != nullptr ? table->traits.name : nullptr;
}

int32_t hotloop_use_isa(const char* name) {
  return name != nullptr && hotloop::use_table(name) ? HOTLOOP_OK : HOTLOOP_UNKNOWN_ISA;
}

int32_t hotloop_describe_isa(hotloop_isa_traits* traits) {
  const KernelTable* const table = hotloop::active_table();
  if (traits == nullptr) return HOTLOOP_BAD_ARGUMENT;
  if (table == nullptr) return HOTLOOP_UNKNOWN_ISA;
  *traits = table->traits;
  return HOTLOOP_OK;
}

int32_t hotloop_describe_cell(int32_t cell, hotloop_cell_traits* traits) {
  const KernelTable* const table = hotloop::active_table();
  if (traits == nullptr || cell < 0 || cell >= HOTLOOP_CELL_COUNT) return HOTLOOP_BAD_ARGUMENT;
  if (table == nullptr) return HOTLOOP_UNKNOWN_ISA;
  *traits = table->types[HOTLOOP_FLOAT32].cells[cell].traits;
  return HOTLOOP_OK;
}

int32_t hotloop_describe_parameter(const hotloop_spec* spec, int32_t parameter, hotloop_parameter_traits* traits) {
  if (traits == nullptr || parameter < 0 || parameter >= HOTLOOP_PARAMETER_COUNT) return HOTLOOP_BAD_ARGUMENT;
  const int status = hotloop::check_spec(spec);
  if (status != HOTLOOP_OK) return status;
  const hotloop_cell_traits& cell = hotloop::active_table()->types[spec->dtype].cells[spec->cell].traits;
  *traits = parameter_traits(cell, spec->input_size, spec->hidden_size, spec->output_size, parameter);
  return HOTLOOP_OK;
}

int32_t hotloop_processors(void) { return hotloop::processors(); }

void hotloop_use_processors(int32_t count) { hotloop::use_processors(count); }

const char* hotloop_status_string(int32_t status) {
  switch (status) {
    case HOTLOOP_OK: return "success";
    case HOTLOOP_AGAIN: return "not finished: call again";
    case HOTLOOP_BAD_ARGUMENT: return "a bad argument";
    case HOTLOOP_TOO_LARGE: return "sizes whose byte count overflows";
    case HOTLOOP_WORKSPACE_TOO_SMALL: return "the workspace is too small";
    case HOTLOOP_UNKNOWN_ISA: return "HOTLOOP_ISA is unknown or not supported by this processor";
    case HOTLOOP_PACKED_ELSEWHERE: return "weights were packed for another shape, type, instruction set or version";
    case HOTLOOP_PLANNED_ELSEWHERE: return "the plan is of another instruction set or version";
    default: return "unknown status";
  }
}

double hotloop_probe(int32_t probe, int32_t cell, int32_t dtype, void* buffer, int64_t bytes, int64_t repeats) {
  const KernelTable* const table = hotloop::active_table();
  if (table == nullptr || cell < 0 || cell >= HOTLOOP_CELL_COUNT || dtype < 0 || dtype >= HOTLOOP_DTYPE_COUNT ||
      buffer == nullptr || bytes < 4096 || repeats < 0) {
    return -1;
  }
  const uintptr_t start = (reinterpret_cast<uintptr_t>(buffer) + 63) & ~static_cast<uintptr_t>(63);
  void* const aligned = reinterpret_cast<void*>(start);
  const hotloop::TypeKernels& type = table->types[dtype];
  switch (probe) {
    case HOTLOOP_PROBE_FMA: return type.probe_fma(aligned, bytes, repeats);
    case HOTLOOP_PROBE_READ: return type.probe_read(aligned, bytes, repeats);
    case HOTLOOP_PROBE_COPY: return type.probe_copy(aligned, bytes, repeats);
    case HOTLOOP_PROBE_CELL_FORWARD: return type.cells[cell].probe_forward(aligned, bytes, repeats);
    case HOTLOOP_PROBE_CELL_BACKWARD: return type.cells[cell].probe_backward(aligned, bytes, repeats);
    default: return -1;
  }
}

int32_t hotloop_activation(int32_t function, int32_t dtype, const void* x, void* result, int64_t count) {
  const KernelTable* const table = hotloop::active_table();
  if (table == nullptr) return HOTLOOP_UNKNOWN_ISA;
  if (function < 0 || function > 1 || dtype < 0 || dtype >= HOTLOOP_DTYPE_COUNT || count < 0 || missing(x, count) ||
      missing(result, count)) {
    return HOTLOOP_BAD_ARGUMENT;
  }
  const hotloop::TypeKernels& type = table->types[dtype];
  (function == 0 ? type.tanh : type.sigmoid)(x, result, count);
  return HOTLOOP_OK;
}

}  // extern "C"
