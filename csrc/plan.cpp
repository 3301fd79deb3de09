// Sizes are checked here, and everything that follows from them alone is decided: how work may be split, the bytes of
// workspace, and whether these fit on the stack.
#include "plan.h"

#include "schedule.h"
#include "team.h"

namespace hotloop {
namespace {

constexpr int kMaxThreads = 256;
constexpr int64_t kMaxCount = 1 << 20;
constexpr int32_t kAllUses = 2 * HOTLOOP_MASKED - 1;
// A call of a plan whose workspace is on the stack runs to its end without looking at the clock.
constexpr double kStackNs = 2e6;

// Not to be followed: compared with NULL, to say which arrays there are.
void* const kPresent = const_cast<int32_t*>(&kAllUses);

int check_uses(int32_t uses) {
  const bool training = (uses & HOTLOOP_TRAINING) != 0, backward = (uses & HOTLOOP_BACKWARD) != 0;
  const int32_t of_backward = HOTLOOP_GRAD_X | HOTLOOP_GRAD_WEIGHTS | HOTLOOP_RESET_TO_INITIAL | HOTLOOP_ACCUMULATE;
  const bool mixed =
      backward ? training || (uses & (HOTLOOP_PACKED | HOTLOOP_BATCH_FIRST)) != 0 : (uses & of_backward) != 0;
  return uses < 0 || uses > kAllUses || mixed ? HOTLOOP_BAD_ARGUMENT : HOTLOOP_OK;
}

ForwardCall largest_forward(const Plan& plan) {
  ForwardCall call{};
  call.cell = plan.cell;
  call.dtype = plan.dtype;
  call.seq_len = plan.seq_len;
  call.batch_size = plan.batch_size;
  call.input_size = plan.input_size;
  call.hidden_size = plan.hidden_size;
  call.output_size = plan.output_size;
  call.step_ns = plan.step.all;
  if ((plan.uses & HOTLOOP_TRAINING) != 0 && plan.kernels().traits.saved > 0) call.gates = kPresent;
  if ((plan.uses & HOTLOOP_PACKED) != 0) call.packed = kPresent;
  if ((plan.uses & HOTLOOP_MASKED) != 0) call.recurrent_mask = kPresent;
  return call;
}

BackwardCall largest_backward(const Plan& plan) {
  BackwardCall call{};
  call.forward = largest_forward(plan);
  if ((plan.uses & HOTLOOP_GRAD_X) != 0) call.grad_x = kPresent;
  for (void*& gradient : call.grad_parameters) {
    if ((plan.uses & HOTLOOP_GRAD_WEIGHTS) != 0) gradient = kPresent;
  }
  if ((plan.uses & HOTLOOP_ACCUMULATE) != 0) call.accumulate = 1;
  if ((plan.uses & HOTLOOP_RESET_TO_INITIAL) != 0) {
    call.forward.resets = static_cast<const uint8_t*>(kPresent);
    call.forward.reset_to_initial = 1;
  }
  return call;
}

int greatest_common_divisor(int a, int b) { return b == 0 ? a : greatest_common_divisor(b, a % b); }

// Each recurrence has as much of the workspace as it needs however it is split. The split may depend on the lengths of
// rows and on the load, the size may not.
template <class Call>
void measure(Plan& plan, const Phases<Call>& phases, const Call& call) {
  int64_t most = phases.workspace(call, 1);
  for (int members = 1; members <= plan.most_shares; ++members) {
    if (plan.most_shares % members != 0) continue;
    const Split split{ranges_of(plan, plan.batch_size, members), members};
    const int64_t bytes = phases.workspace(call, split.rows);
    const int64_t with_teams = (bytes + 63) / 64 * 64 + (members > 1 ? split.rows * team_stride(split) : 0);
    if (with_teams > most) most = with_teams;
  }
  plan.each = (most + 63) / 64 * 64 + 64;
}

}  // namespace

int check_spec(const hotloop_spec* spec) {
  if (spec == nullptr || spec->cell < 0 || spec->cell >= HOTLOOP_CELL_COUNT || spec->dtype < 0 ||
      spec->dtype >= HOTLOOP_DTYPE_COUNT || spec->input_size < 1 || spec->hidden_size < 1 || spec->output_size < 1) {
    return HOTLOOP_BAD_ARGUMENT;
  }
  const KernelTable* const table = active_table();
  if (table == nullptr) return HOTLOOP_UNKNOWN_ISA;
  const hotloop_cell_traits& traits = table->types[spec->dtype].cells[spec->cell].traits;
  if (!traits.projects && spec->output_size != spec->hidden_size) return HOTLOOP_BAD_ARGUMENT;
  const double G = traits.gates, I = (double)spec->input_size, H = (double)spec->hidden_size;
  const double P = (double)spec->output_size;
  return (G * (H + 64) + P) * (I + H + P + 64) * 8 > kMaxBytes ? HOTLOOP_TOO_LARGE : HOTLOOP_OK;
}

int make_plan(Plan& plan, const hotloop_spec& spec, int32_t uses, int64_t count, int64_t seq_len, int64_t batch_size,
              int32_t threads) {
  if (check_uses(uses) != HOTLOOP_OK || count < 1 || count > kMaxCount || seq_len < 1 || batch_size < 0) {
    return HOTLOOP_BAD_ARGUMENT;
  }
  const double T = (double)seq_len, B = (double)batch_size;
  const double widest = (double)spec.input_size + 4.0 * (double)spec.hidden_size + (double)spec.output_size + 64;
  // Row counts beyond T*B occur where a chunk is rounded up: at most one chunk of rows more.
  if ((T * B + 4096 + T + B) * widest * 8 * 4 > kMaxBytes) return HOTLOOP_TOO_LARGE;
  plan.magic = kPlanMagic;
  plan.table = active_table();
  plan.cell = spec.cell;
  plan.dtype = spec.dtype;
  plan.uses = uses;
  plan.threads = threads <= 1 ? 1 : threads < kMaxThreads ? threads : kMaxThreads;
  plan.count = count;
  plan.seq_len = seq_len;
  plan.batch_size = batch_size;
  plan.input_size = spec.input_size;
  plan.hidden_size = spec.hidden_size;
  plan.output_size = spec.output_size;
  plan.step = step_cost(*plan.table, spec, plan.backward());
  // As few shares of each recurrence as give every thread equally many.
  plan.most_shares = plan.threads / greatest_common_divisor(plan.threads, (int)(count % plan.threads));
  if (plan.backward()) {
    measure(plan, plan.kernels().backward, largest_backward(plan));
  } else {
    measure(plan, plan.kernels().forward, largest_forward(plan));
  }
  if ((double)plan.each * (double)count > kMaxBytes) return HOTLOOP_TOO_LARGE;
  plan.on_stack = plan.workspace_bytes() <= kStackBytes && plan.step.all * T * B * (double)count <= kStackNs;
  return HOTLOOP_OK;
}

const Plan* plan_of(const hotloop_plan* words) {
  const Plan* const plan = reinterpret_cast<const Plan*>(words);
  return plan != nullptr && plan->magic == kPlanMagic && plan->table == active_table() ? plan : nullptr;
}

PackedHeader packed_header(const hotloop_spec& spec) {
  return {kPlanMagic, active_table(), spec.cell, spec.dtype, spec.input_size, spec.hidden_size, spec.output_size};
}

}  // namespace hotloop
