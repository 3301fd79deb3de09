// Rows of different lengths. Sorted by length, longest first, those that still have a step are always the first few.
// Kernels include this: declarations only.
#pragma once

#include "call.h"

namespace hotloop {

// Steps of all rows together.
int64_t row_steps(const ForwardCall& args);

// Sorts the rows by length, those of one length by rank, or by number where they have none: order[j] is the caller's number of row j, lengths[j] its steps,
// sums[j] the steps of the rows before it; [B], [B], [B+1]. This order is the canonical one.
void sort_rows(const ForwardCall& args, int64_t* order, int64_t* lengths, int64_t* sums);

// Where the row's first step in processing order lies in a sequence with these strides, in elements from its start, for
// all rows, [B], dealt to `shares`: those of one share side by side. Rows of one length are dealt in blocks, so that no
// two threads write to one cache line; others in turn, so that every share has as much to do.
void place_rows(const ForwardCall& args, const int64_t* order, const int64_t* lengths, int shares, int64_t stride_t,
                int64_t stride_b, int64_t* places);

}  // namespace hotloop
