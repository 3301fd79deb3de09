// The cost model: what the parts of a call take, roughly, from sizes and the costs that the instruction set states. Every
// decision about threads follows from it.
#pragma once

#include "dispatch.h"

namespace hotloop {

// What a step of one row takes one thread, in nanoseconds.
struct StepCost {
  double all;         // with the products that are done for many steps at once
  double recurrence;  // what several threads split that share the step
  double read;        // to read the weights of the recurrence, for any number of rows
};

StepCost step_cost(const KernelTable& table, const hotloop_spec& spec, bool backward);

// Whether a call of so many nanoseconds is done sooner by the caller than by the caller and others.
bool runs_alone(const KernelTable& table, double ns, bool others_awake);

// What a step of so many rows takes, of which a thread has some: parts of the rows and of the units, in a team or without.
double split_step_ns(const KernelTable& table, const StepCost& step, double rows, double part_of_rows,
                     double part_of_units, bool team);

// Whether products of so many nanoseconds are worth waking threads that slept while one ran the recurrence of a single row.
bool worth_waking(double ns);

}  // namespace hotloop
