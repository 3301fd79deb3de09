#include "cost.h"

namespace hotloop {
namespace {

// Units, and the lanes beyond the last one, which cost as much.
double with_lanes(int64_t units, int64_t lanes) {
  const int64_t vectors = (units + lanes - 1) / lanes;
  return (double)(vectors * lanes);
}

}  // namespace

StepCost step_cost(const KernelTable& table, const hotloop_spec& spec, bool backward) {
  const hotloop_isa_traits& isa = table.traits;
  const TypeKernels& type = table.types[spec.dtype];
  const hotloop_cell_traits& cell = type.cells[spec.cell].traits;
  const double units = with_lanes(spec.hidden_size, type.lanes), rows = cell.gates * units;
  double weights = rows * (double)spec.output_size;  // packed, of the recurrence
  if (cell.projects) weights += with_lanes(spec.output_size, type.lanes) * (double)spec.hidden_size;
  const double flop_ns = 1 / (isa.lane_flops_ns * type.lanes);
  const double recurrence = (2 * weights + units * isa.cell_flops) * flop_ns;
  const double forward = recurrence + 2 * rows * (double)spec.input_size * flop_ns;
  const double read = weights * (spec.dtype == HOTLOOP_FLOAT64 ? 8 : 4) / isa.read_bytes_ns;
  // Backward does each product of a step twice, for the state or x and for the weights; its recurrence is one of the four.
  return {backward ? 2 * forward : forward, backward ? recurrence : forward, read};
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
