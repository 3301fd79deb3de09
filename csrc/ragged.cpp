#include "ragged.h"

#include <algorithm>

namespace hotloop {
namespace {

int64_t length_of(const ForwardCall& args, int64_t row) {
  if (args.offsets != nullptr) return args.offsets[row + 1] - args.offsets[row];
  return args.lengths != nullptr ? args.lengths[row] : args.seq_len;
}

}  // namespace

int64_t row_steps(const ForwardCall& args) {
  if (args.offsets != nullptr) return args.offsets[args.batch_size] - args.offsets[0];
  if (args.lengths == nullptr) return args.batch_size * args.seq_len;
  int64_t sum = 0;
  for (int64_t row = 0; row < args.batch_size; ++row) sum += args.lengths[row];
  return sum;
}

void sort_rows(const ForwardCall& args, int64_t* order, int64_t* lengths, int64_t* sums) {
  const int64_t B = args.batch_size;
  for (int64_t row = 0; row < B; ++row) order[row] = row;
  if (args.lengths != nullptr || args.offsets != nullptr) {
    std::sort(order, order + B, [&args](int64_t a, int64_t b) {
      const int64_t of_a = length_of(args, a), of_b = length_of(args, b);
      if (of_a != of_b) return of_a > of_b;
      if (args.ranks != nullptr && args.ranks[a] != args.ranks[b]) return args.ranks[a] < args.ranks[b];
      return a < b;
    });
  }
  sums[0] = 0;
  for (int64_t row = 0; row < B; ++row) {
    lengths[row] = length_of(args, order[row]);
    sums[row + 1] = sums[row] + lengths[row];
  }
}

void place_rows(const ForwardCall& args, const int64_t* order, const int64_t* lengths, int shares, int64_t stride_t,
                int64_t stride_b, int64_t* places) {
  const bool flat = args.offsets != nullptr, ragged = flat || args.lengths != nullptr;
  const auto place = [&](int64_t row) {
    const int64_t start = flat ? args.offsets[order[row]] * stride_t : order[row] * stride_b;
    return start + (args.reverse != 0 ? (lengths[row] - 1) * stride_t : 0);
  };
  for (int share = 0; share < (ragged ? shares : 1); ++share) {
    for (int64_t row = share; row < args.batch_size; row += ragged ? shares : 1) *places++ = place(row);
  }
}

}  // namespace hotloop
