#include "cost.h"

namespace hotloop {
namespace {

int64_t blocks_of(const KernelTable& table, const hotloop_spec& spec) {
  const int64_t lanes = table.types[spec.dtype].lanes;
  return (spec.hidden_size + lanes - 1) / lanes;
}

// What a step forward takes in flops of products. Lanes beyond the last unit cost as much as those that are used.
double flops(const KernelTable& table, const hotloop_spec& spec, int64_t input_size) {
  const double units = (double)(blocks_of(table, spec) * table.types[spec.dtype].lanes);
  const double gates = table.types[spec.dtype].cells[spec.cell].traits.gates;
  return units * (2 * gates * (double)(input_size + spec.hidden_size) + table.traits.cell_flops);
}

}  // namespace

StepCost step_cost(const KernelTable& table, const hotloop_spec& spec, bool backward) {
  const hotloop_isa_traits& isa = table.traits;
  const int64_t lanes = table.types[spec.dtype].lanes;
  const double flops_ns = isa.lane_flops_ns * (double)lanes;
  const double forward = flops(table, spec, spec.input_size) / flops_ns;
  const int64_t weights =
      table.types[spec.dtype].cells[spec.cell].traits.gates * spec.hidden_size * blocks_of(table, spec) * lanes;
  const double bytes = (double)weights * (spec.dtype == HOTLOOP_FLOAT64 ? 8 : 4);
  // Backward does each product of a step twice, for the state or x and for the weights; its recurrence is one of the four.
  return {backward ? 2 * forward : forward, backward ? flops(table, spec, 0) / flops_ns : forward,
          bytes / isa.read_bytes_ns};
}

// Two threads save half the time at most. With 48 us in place of 24 a step of GRU B32 I64 H128 stayed on one thread, 31 us;
// split it takes 21 us.
bool runs_alone(const KernelTable& table, double ns, bool others_awake) {
  return ns < 2 * (others_awake ? table.traits.handover_ns : table.traits.wake_ns);
}

// A thread's part takes as long as its products or as reading its weights, whichever is longer.
double split_step_ns(const KernelTable& table, const StepCost& step, double rows, double part_of_rows,
                     double part_of_units, bool team) {
  const double products = step.recurrence * rows * part_of_rows * part_of_units, read = step.read * part_of_units;
  return (products > read ? products : read) + (team ? table.traits.exchange_ns : 0);
}

bool worth_waking(double ns) { return ns >= 2e6; }

}  // namespace hotloop
