// The extern "C" boundary: whatever would corrupt memory is refused here, then one indirect call a sequence. Nothing is
// allocated and nothing throws.
#include <math.h>

#include "dispatch.h"
#include "float_control.h"
#include "hash.h"
#include "hotloop.h"
#include "schedule.h"
#include "threads.h"

namespace {

using hotloop::CellKernels;
using hotloop::KernelTable;

constexpr int kMaxThreads = 256;
constexpr int64_t kMaxCount = 1 << 20;
constexpr int64_t kStepWorkspace = 16 * 1024;  // on the stack
constexpr int64_t kStepRows = 4096;
// Every array of a call, and the workspace, must be shorter than this. Products of sizes are formed in double, whose
// rounding is far below the distance to where int64 overflows.
constexpr double kMaxBytes = 4.0e18 / 16;

// What the packed weights' first line says they are.
struct PackedHeader {
  const KernelTable* table;
  int64_t cell, dtype, input_size, hidden_size;
};
static_assert(sizeof(PackedHeader) <= hotloop::kPackedHeaderBytes);

const CellKernels& kernels_of(const KernelTable& table, const hotloop_forward_args& args) {
  return table.types[args.dtype].cells[args.cell];
}

int check_weights(const hotloop_forward_args* args) {
  if (args == nullptr || args->cell < 0 || args->cell >= HOTLOOP_CELL_COUNT || args->dtype < 0 ||
      args->dtype >= HOTLOOP_DTYPE_COUNT || args->input_size < 1 || args->hidden_size < 1) {
    return HOTLOOP_BAD_ARGUMENT;
  }
  const KernelTable* const table = hotloop::active_table();
  if (table == nullptr) return HOTLOOP_UNKNOWN_ISA;
  const double G = kernels_of(*table, *args).gates, I = (double)args->input_size, H = (double)args->hidden_size;
  if (G * (H + 64) * (I + H + 64) * 8 > kMaxBytes) return HOTLOOP_TOO_LARGE;
  return HOTLOOP_OK;
}

// Rows lie where lengths and offsets say, so they are read before anything is computed with them.
int check_lengths(const hotloop_forward_args& args) {
  if (args.lengths != nullptr && args.offsets != nullptr) return HOTLOOP_BAD_ARGUMENT;
  if (args.lengths != nullptr) {
    for (int64_t row = 0; row < args.batch_size; ++row) {
      if (args.lengths[row] < 0 || args.lengths[row] > args.seq_len) return HOTLOOP_BAD_ARGUMENT;
    }
  }
  if (args.offsets != nullptr) {
    if (args.offsets[0] != 0) return HOTLOOP_BAD_ARGUMENT;
    for (int64_t row = 0; row < args.batch_size; ++row) {
      const int64_t from = args.offsets[row], to = args.offsets[row + 1];
      if (to < from || to - from > args.seq_len) return HOTLOOP_BAD_ARGUMENT;
    }
  }
  return HOTLOOP_OK;
}

// Whether addresses in a sequence with these strides cannot be computed.
bool too_far(const hotloop_forward_args& args, int64_t stride_t, int64_t stride_b) {
  const double steps = (double)(args.offsets != nullptr ? args.offsets[args.batch_size] : args.seq_len);
  return fabs((double)stride_t * (steps + 1)) * 8 > kMaxBytes ||
         fabs((double)stride_b * (double)args.batch_size) * 8 > kMaxBytes;
}

int check_sizes(const hotloop_forward_args* args) {
  const int status = check_weights(args);
  if (status != HOTLOOP_OK) return status;
  if (args->seq_len < 1 || args->batch_size < 0) return HOTLOOP_BAD_ARGUMENT;
  const double T = (double)args->seq_len, B = (double)args->batch_size;
  const double widest = (double)args->input_size + 4.0 * (double)args->hidden_size + 64;
  // Row counts beyond T*B occur where a chunk is rounded up: at most one chunk of rows more.
  if ((T * B + 4096 + B) * widest * 8 * 4 > kMaxBytes) return HOTLOOP_TOO_LARGE;
  const int lengths = check_lengths(*args);
  if (lengths != HOTLOOP_OK) return lengths;
  const int64_t strides[][2] = {{args->x_stride_t, args->x_stride_b},
                                {args->output_stride_t, args->output_stride_b},
                                {args->c_stride_t, args->c_stride_b},
                                {args->resets_stride_t, args->resets_stride_b}};
  for (const auto& [stride_t, stride_b] : strides) {
    if (too_far(*args, stride_t, stride_b)) return HOTLOOP_TOO_LARGE;
  }
  return HOTLOOP_OK;
}

bool missing(const void* pointer, int64_t count) { return pointer == nullptr && count > 0; }

int check_call(const hotloop_forward_args& args) {
  const KernelTable& table = *hotloop::active_table();
  const CellKernels& cell = kernels_of(table, args);
  const int64_t B = args.batch_size;
  if (args.cursor < 0 || args.cursor > args.seq_len || missing(args.x, B) || missing(args.output, B) ||
      missing(args.h_n, B) || (cell.has_c && missing(args.c_n, B))) {
    return HOTLOOP_BAD_ARGUMENT;
  }
  // In training a cell with c keeps both its gates and c.
  if ((args.gates != nullptr && cell.saved == 0) ||
      (cell.has_c ? args.gates != nullptr && args.c == nullptr && B > 0 : args.c != nullptr || args.c0 != nullptr)) {
    return HOTLOOP_BAD_ARGUMENT;
  }
  if (args.packed != nullptr) {
    if (reinterpret_cast<uintptr_t>(args.packed) % 64 != 0) return HOTLOOP_PACKED_ELSEWHERE;
    const PackedHeader& header = *static_cast<const PackedHeader*>(args.packed);
    if (header.table != &table || header.cell != args.cell || header.dtype != args.dtype ||
        header.input_size != args.input_size || header.hidden_size != args.hidden_size) {
      return HOTLOOP_PACKED_ELSEWHERE;
    }
  } else if (args.weight_ih == nullptr || args.weight_hh == nullptr) {
    return HOTLOOP_BAD_ARGUMENT;
  }
  return HOTLOOP_OK;
}

int check_call(const hotloop_backward_args& args) {
  const hotloop_forward_args& forward = args.forward;
  const CellKernels& cell = kernels_of(*hotloop::active_table(), forward);
  const int64_t B = forward.batch_size;
  if (args.cursor < 0 || args.cursor > forward.seq_len || missing(forward.x, B) || missing(forward.output, B) ||
      forward.weight_ih == nullptr || forward.weight_hh == nullptr || missing(args.grad_h0, B) ||
      (cell.saved > 0 && missing(forward.gates, B)) ||
      (cell.has_c ? missing(forward.c, B) || missing(args.grad_c0, B)
                  : args.grad_c_n != nullptr || args.grad_c != nullptr || args.grad_c0 != nullptr)) {
    return HOTLOOP_BAD_ARGUMENT;
  }
  if (too_far(forward, args.grad_output_stride_t, args.grad_output_stride_b) ||
      too_far(forward, args.grad_c_stride_t, args.grad_c_stride_b) ||
      too_far(forward, args.grad_x_stride_t, args.grad_x_stride_b)) {
    return HOTLOOP_TOO_LARGE;
  }
  return HOTLOOP_OK;
}

int clamp_threads(int32_t threads) { return threads <= 1 ? 1 : threads < kMaxThreads ? threads : kMaxThreads; }

template <class Args>
int64_t workspace_of(const Args* args, int64_t count, int32_t threads) {
  const hotloop::ExceptionsKept exceptions_kept;
  if (args == nullptr || count < 0 || count > kMaxCount) return -1;
  for (int64_t i = 0; i < count; ++i) {
    if (check_sizes(&hotloop::forward_of(args[i])) != HOTLOOP_OK) return -1;
  }
  if (count == 0) return 0;
  const int64_t each = hotloop::workspace_of(args, count, clamp_threads(threads));
  return (double)each * (double)count > kMaxBytes ? -1 : each * count;
}

template <class Args>
int run(Args* args, int64_t count, int32_t threads, void* workspace, int64_t workspace_bytes, bool if_short = false) {
  const hotloop::ExceptionsKept exceptions_kept;
  if (args == nullptr || count < 0 || count > kMaxCount) return HOTLOOP_BAD_ARGUMENT;
  for (int64_t i = 0; i < count; ++i) {
    int status = check_sizes(&hotloop::forward_of(args[i]));
    if (status == HOTLOOP_OK) status = check_call(args[i]);
    if (status != HOTLOOP_OK) return status;
  }
  if (count == 0) return HOTLOOP_OK;
  threads = clamp_threads(threads);
  if (if_short && !hotloop::is_short(args, count)) return HOTLOOP_WORKSPACE_TOO_SMALL;
  if (workspace == nullptr || workspace_bytes / count < hotloop::workspace_of(args, count, threads)) {
    return HOTLOOP_WORKSPACE_TOO_SMALL;
  }
  return hotloop::run(args, count, threads, workspace, if_short);
}

// Sizes as the flat functions take them.
hotloop_forward_args sized(int32_t cell, int32_t dtype, int32_t reverse, int64_t seq_len, int64_t batch_size,
                           int64_t input_size, int64_t hidden_size) {
  hotloop_forward_args args{};
  args.cell = cell;
  args.dtype = dtype;
  args.reverse = reverse;
  args.seq_len = seq_len;
  args.batch_size = batch_size;
  args.input_size = input_size;
  args.hidden_size = hidden_size;
  return args;
}

// The rest of what they take, and where a contiguous c lies; sizes are checked later, so the product may wrap around.
void set_ragged(hotloop_forward_args& args, void* c, const int64_t* lengths, const int64_t* offsets,
                const uint8_t* resets, int64_t resets_stride_t, int64_t resets_stride_b, int32_t reset_to_initial) {
  args.c = c;
  args.c_stride_b = args.hidden_size;
  args.c_stride_t =
      offsets != nullptr ? args.hidden_size : (int64_t)((uint64_t)args.batch_size * (uint64_t)args.hidden_size);
  args.lengths = lengths;
  args.offsets = offsets;
  args.resets = resets;
  args.resets_stride_t = resets_stride_t;
  args.resets_stride_b = resets_stride_b;
  args.reset_to_initial = reset_to_initial;
}

template <class Args>
int run_to_the_end(Args& args, int32_t threads, void* workspace, int64_t workspace_bytes) {
  int status;
  do {
    status = run(&args, 1, threads, workspace, workspace_bytes);
  } while (status == HOTLOOP_AGAIN);
  return status;
}

}  // namespace

extern "C" {

int64_t hotloop_forward_workspace(const hotloop_forward_args* args, int64_t count, int32_t threads) {
  return workspace_of(args, count, threads);
}

int64_t hotloop_backward_workspace(const hotloop_backward_args* args, int64_t count, int32_t threads) {
  return workspace_of(args, count, threads);
}

int32_t hotloop_forward(hotloop_forward_args* args, int64_t count, int32_t threads, void* workspace,
                        int64_t workspace_bytes) {
  return run(args, count, threads, workspace, workspace_bytes);
}

int32_t hotloop_backward(hotloop_backward_args* args, int64_t count, int32_t threads, void* workspace,
                         int64_t workspace_bytes) {
  return run(args, count, threads, workspace, workspace_bytes);
}

int32_t hotloop_forward_short(hotloop_forward_args* args, int64_t count, void* workspace, int64_t workspace_bytes) {
  return run(args, count, 1, workspace, workspace_bytes, true);
}

int32_t hotloop_backward_short(hotloop_backward_args* args, int64_t count, void* workspace, int64_t workspace_bytes) {
  return run(args, count, 1, workspace, workspace_bytes, true);
}

int32_t hotloop_forward_step(const hotloop_forward_args* like, int64_t seq_len, int64_t batch_size, const void* x,
                             const void* h0, const void* c0, void* output, void* h_n, void* c_n) {
  const int status = check_weights(like);
  if (status != HOTLOOP_OK) return status;
  // Before the products below, which must not overflow: check_weights has bounded the other factors.
  if (like->packed == nullptr || batch_size < 0) return HOTLOOP_BAD_ARGUMENT;
  if (batch_size > kStepRows) return HOTLOOP_WORKSPACE_TOO_SMALL;
  hotloop_forward_args args = *like;
  args.seq_len = seq_len;
  args.batch_size = batch_size;
  args.x = x;
  args.x_stride_b = args.input_size;
  args.x_stride_t = batch_size * args.input_size;
  args.h0 = h0;
  args.c0 = c0;
  args.output = output;
  args.output_stride_b = args.hidden_size;
  args.output_stride_t = batch_size * args.hidden_size;
  args.h_n = h_n;
  args.c_n = c_n;
  args.gates = args.c = nullptr;
  args.lengths = args.offsets = nullptr;
  args.resets = nullptr;
  args.cursor = 0;
  alignas(64) char workspace[kStepWorkspace];
  return run(&args, 1, 1, workspace, kStepWorkspace, true);
}

int64_t hotloop_forward_flat_workspace(int32_t cell, int32_t dtype, int64_t seq_len, int64_t batch_size,
                                       int64_t input_size, int64_t hidden_size, int32_t threads) {
  const hotloop_forward_args args = sized(cell, dtype, 0, seq_len, batch_size, input_size, hidden_size);
  return workspace_of(&args, 1, threads);
}

int64_t hotloop_backward_flat_workspace(int32_t cell, int32_t dtype, int64_t seq_len, int64_t batch_size,
                                        int64_t input_size, int64_t hidden_size, int32_t threads) {
  hotloop_backward_args args{};
  args.forward = sized(cell, dtype, 0, seq_len, batch_size, input_size, hidden_size);
  // Wanted: only compared with null here.
  args.grad_x = args.grad_weight_ih = args.grad_weight_hh = &args;
  args.forward.resets = reinterpret_cast<const uint8_t*>(&args);
  args.forward.reset_to_initial = 1;
  return workspace_of(&args, 1, threads);
}

int32_t hotloop_forward_flat(int32_t cell, int32_t dtype, int32_t reverse, int64_t seq_len, int64_t batch_size,
                             int64_t input_size, int64_t hidden_size, const void* x, int64_t x_stride_t,
                             int64_t x_stride_b, const void* weight_ih, const void* weight_hh, const void* bias_ih,
                             const void* bias_hh, const void* h0, const void* c0, void* output, int64_t output_stride_t,
                             int64_t output_stride_b, void* h_n, void* c_n, void* gates, void* c,
                             const int64_t* lengths, const int64_t* offsets, const uint8_t* resets,
                             int64_t resets_stride_t, int64_t resets_stride_b, int32_t reset_to_initial,
                             int32_t threads, void* workspace, int64_t workspace_bytes) {
  hotloop_forward_args args = sized(cell, dtype, reverse, seq_len, batch_size, input_size, hidden_size);
  args.x = x;
  args.x_stride_t = x_stride_t;
  args.x_stride_b = x_stride_b;
  args.weight_ih = weight_ih;
  args.weight_hh = weight_hh;
  args.bias_ih = bias_ih;
  args.bias_hh = bias_hh;
  args.h0 = h0;
  args.c0 = c0;
  args.output = output;
  args.output_stride_t = output_stride_t;
  args.output_stride_b = output_stride_b;
  args.h_n = h_n;
  args.c_n = c_n;
  args.gates = gates;
  set_ragged(args, c, lengths, offsets, resets, resets_stride_t, resets_stride_b, reset_to_initial);
  return run_to_the_end(args, threads, workspace, workspace_bytes);
}

int32_t hotloop_backward_flat(int32_t cell, int32_t dtype, int32_t reverse, int64_t seq_len, int64_t batch_size,
                              int64_t input_size, int64_t hidden_size, const void* x, int64_t x_stride_t,
                              int64_t x_stride_b, const void* weight_ih, const void* weight_hh, const void* h0,
                              const void* c0, const void* output, int64_t output_stride_t, int64_t output_stride_b,
                              const void* gates, const void* c, const int64_t* lengths, const int64_t* offsets,
                              const uint8_t* resets, int64_t resets_stride_t, int64_t resets_stride_b,
                              int32_t reset_to_initial, const void* grad_output, int64_t grad_output_stride_t,
                              int64_t grad_output_stride_b, const void* grad_h_n, const void* grad_c_n,
                              const void* grad_c, void* grad_x, int64_t grad_x_stride_t, int64_t grad_x_stride_b,
                              void* grad_weight_ih, void* grad_weight_hh, void* grad_bias_ih, void* grad_bias_hh,
                              void* grad_h0, void* grad_c0, int32_t threads, void* workspace, int64_t workspace_bytes) {
  hotloop_backward_args args{};
  hotloop_forward_args& forward = args.forward;
  forward = sized(cell, dtype, reverse, seq_len, batch_size, input_size, hidden_size);
  forward.x = x;
  forward.x_stride_t = x_stride_t;
  forward.x_stride_b = x_stride_b;
  forward.weight_ih = weight_ih;
  forward.weight_hh = weight_hh;
  forward.h0 = h0;
  forward.c0 = c0;
  forward.output = const_cast<void*>(output);
  forward.output_stride_t = output_stride_t;
  forward.output_stride_b = output_stride_b;
  forward.gates = const_cast<void*>(gates);
  set_ragged(forward, const_cast<void*>(c), lengths, offsets, resets, resets_stride_t, resets_stride_b,
             reset_to_initial);
  args.grad_output = grad_output;
  args.grad_output_stride_t = grad_output_stride_t;
  args.grad_output_stride_b = grad_output_stride_b;
  args.grad_h_n = grad_h_n;
  args.grad_c_n = grad_c_n;
  args.grad_c = grad_c;
  args.grad_c_stride_t = forward.c_stride_t;
  args.grad_c_stride_b = forward.c_stride_b;
  args.grad_x = grad_x;
  args.grad_x_stride_t = grad_x_stride_t;
  args.grad_x_stride_b = grad_x_stride_b;
  args.grad_weight_ih = grad_weight_ih;
  args.grad_weight_hh = grad_weight_hh;
  args.grad_bias_ih = grad_bias_ih;
  args.grad_bias_hh = grad_bias_hh;
  args.grad_h0 = grad_h0;
  args.grad_c0 = grad_c0;
  return run_to_the_end(args, threads, workspace, workspace_bytes);
}

int64_t hotloop_packed_bytes(const hotloop_forward_args* args) {
  if (check_weights(args) != HOTLOOP_OK) return -1;
  return hotloop::kPackedHeaderBytes + kernels_of(*hotloop::active_table(), *args).packed_bytes(*args);
}

int32_t hotloop_pack(const hotloop_forward_args* args, void* packed, int64_t bytes) {
  const int status = check_weights(args);
  if (status != HOTLOOP_OK) return status;
  if (packed == nullptr || reinterpret_cast<uintptr_t>(packed) % 64 != 0 || args->weight_ih == nullptr ||
      args->weight_hh == nullptr) {
    return HOTLOOP_BAD_ARGUMENT;
  }
  if (bytes < hotloop_packed_bytes(args)) return HOTLOOP_WORKSPACE_TOO_SMALL;
  const KernelTable* const table = hotloop::active_table();
  *static_cast<PackedHeader*>(packed) = {table, args->cell, args->dtype, args->input_size, args->hidden_size};
  kernels_of(*table, *args).pack(*args, static_cast<char*>(packed) + hotloop::kPackedHeaderBytes);
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
  return table != nullptr ? table->name : nullptr;
}

const char* hotloop_isa_at(int32_t index) {
  const KernelTable* const table = index < 0 ? nullptr : hotloop::table_at(index);
  return table != nullptr ? table->name : nullptr;
}

int32_t hotloop_use_isa(const char* name) {
  return name != nullptr && hotloop::use_table(name) ? HOTLOOP_OK : HOTLOOP_UNKNOWN_ISA;
}

int32_t hotloop_processors(void) { return hotloop::processors(); }

void hotloop_borrow_threads(void (*parallel)(void (*task)(void*), void* data, unsigned threads, unsigned flags),
                            int (*max_threads)(void)) {
  hotloop::borrow_threads(parallel, max_threads);
}

const char* hotloop_status_string(int32_t status) {
  switch (status) {
    case HOTLOOP_OK: return "success";
    case HOTLOOP_AGAIN: return "not finished: call again";
    case HOTLOOP_BAD_ARGUMENT: return "a bad argument";
    case HOTLOOP_TOO_LARGE: return "sizes whose byte count overflows";
    case HOTLOOP_WORKSPACE_TOO_SMALL: return "the workspace is too small";
    case HOTLOOP_UNKNOWN_ISA: return "HOTLOOP_ISA is unknown or not supported by this processor";
    case HOTLOOP_PACKED_ELSEWHERE: return "weights were packed for another shape, type or instruction set";
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
