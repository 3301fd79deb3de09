// Where the rows of a step lie: the batch's rows by length, longest first, each with a place in every sequence. A batch of
// one length is the simplest case of a ragged one, and takes the same way.
#pragma once

#include "../dispatch.h"
#include "../ragged.h"
#include "simd.h"

namespace {

// Cuts arrays out of the caller's workspace, each starting a cache line. With a null start it only counts.
class Carver {
 public:
  HOTLOOP_INLINE explicit Carver(const void* start)
      : start_((reinterpret_cast<uintptr_t>(start) + 63) & ~static_cast<uintptr_t>(63)) {}
  template <class T>
  HOTLOOP_INLINE T* take(int64_t count) {
    T* const taken = reinterpret_cast<T*>(start_ + (uintptr_t)used_);
    used_ += (count * (int64_t)sizeof(T) + 63) & ~(int64_t)63;
    return taken;
  }
  HOTLOOP_INLINE int64_t bytes() const { return used_ + 64; }

 private:
  uintptr_t start_;
  int64_t used_ = 0;
};

// Some rows at one step. The places are looked up, not computed: they follow no rule in a ragged batch, and a load costs
// what the multiplication by a stride does.
template <class T>
struct StepRows {
  T* start = nullptr;
  const int64_t* places = nullptr;

  HOTLOOP_INLINE T* operator[](int64_t row) const { return start + places[row]; }
};

// What an episode begins with that begins inside a sequence; and where the gradient of that is summed, if it is h0 and c0.
template <class T>
struct Episodes {
  StepRows<const T> h, c;
  StepRows<T> dh, dc;
};

// A sequence in the order of processing: its row at step s. `reverse` is a negative step, and places at the rows' ends.
template <class T>
struct Sequence {
  T* start;
  int64_t step;
  const int64_t* places;

  HOTLOOP_INLINE StepRows<T> rows(int64_t s) const { return {start + s * step, places}; }
  HOTLOOP_INLINE T* at(int64_t s, int64_t row) const { return start + s * step + places[row]; }
};

// The rows of one share: row k of it is in the tables at begin + k, and in the canonical order first + k * every.
struct ShareRows {
  int64_t begin, count, first, every;
};

// The rows of a batch in the canonical order, and the tables of places, those of a share side by side.
struct Rows {
  const hotloop::ForwardCall& args;
  int64_t *order = nullptr, *lengths = nullptr, *sums = nullptr;
  bool ragged = false;

  HOTLOOP_INLINE explicit Rows(const hotloop::ForwardCall& args)
      : args(args), ragged(args.lengths != nullptr || args.offsets != nullptr) {}

  HOTLOOP_INLINE void carve(Carver& carver) {
    int64_t* const all = carver.take<int64_t>(3 * args.batch_size + 1);
    order = all;
    lengths = all + args.batch_size;
    sums = all + 2 * args.batch_size;
  }

  HOTLOOP_INLINE bool flat() const { return args.offsets != nullptr; }

  void sort() const { hotloop::sort_rows(args, order, lengths, sums); }

  void place(int64_t stride_t, int64_t stride_b, int shares, int64_t* places) const {
    hotloop::place_rows(args, order, lengths, shares, stride_t, stride_b, places);
  }

  // States have one place a row, wherever it ends.
  void place_states(int64_t stride, int shares, int64_t* places) const {
    int64_t at = 0;
    for (int share = 0; share < (ragged ? shares : 1); ++share) {
      for (int64_t row = share; row < args.batch_size; row += ragged ? shares : 1) places[at++] = order[row] * stride;
    }
  }

  // How many rows have a step s.
  HOTLOOP_INLINE int64_t active(int64_t s) const {
    if (!ragged) return args.batch_size;
    int64_t low = 0, high = args.batch_size;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (lengths[middle] > s) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  // Steps of all rows from step s on.
  HOTLOOP_INLINE int64_t steps_from(int64_t s) const {
    if (!ragged) return (args.seq_len - s) * args.batch_size;
    const int64_t rows = active(s);
    return sums[rows] - s * rows;
  }

  HOTLOOP_INLINE ShareRows share(int index, int count) const {
    const int64_t B = args.batch_size;
    if (!ragged) {
      const int64_t begin = B * index / count;
      return {begin, B * (index + 1) / count - begin, begin, 1};
    }
    // Shares before this one have each B / count rows, or one more.
    const int64_t each = B / count, more = B % count;
    return {index * each + (index < more ? index : more), each + (index < more ? 1 : 0), index, count};
  }

  HOTLOOP_INLINE int64_t active(const ShareRows& share, int64_t s) const {
    if (!ragged) return share.count;
    const int64_t all = active(s);
    return all <= share.first ? 0 : (all - share.first + share.every - 1) / share.every;
  }

  HOTLOOP_INLINE int64_t length(const ShareRows& share, int64_t row) const {
    return lengths[share.first + row * share.every];
  }
};

// Rows of step s of which an episode begins in one of the first `count`; none else.
HOTLOOP_INLINE StepRows<const uint8_t> resets_at(const Sequence<const uint8_t>& resets, int64_t s, int64_t count) {
  if (resets.start == nullptr) return {};
  const StepRows<const uint8_t> rows = resets.rows(s);
  for (int64_t row = 0; row < count; ++row) {
    if (*rows[row] != 0) return rows;
  }
  return {};
}

// Rows of some steps that have equally many, the batch row running fastest, and where each lies.
template <class T>
struct ChunkRows {
  Sequence<T> sequence;
  int64_t first_step, rows_a_step;

  HOTLOOP_INLINE T* at(int64_t row) const { return sequence.at(first_step + row / rows_a_step, row % rows_a_step); }
};

// Zeros behind the ends of the caller's rows first..last-1: elements from..to-1 of the places that no step has. In the order
// of memory: row by row of the batch, RNN forward T200 B32 H128, half of it padding, took 0.24 of 1.5 ms for it.
template <class T>
HOTLOOP_INLINE void clear_padding(const hotloop::ForwardCall& args, void* sequence, int64_t stride_t, int64_t stride_b,
                                  int64_t first, int64_t last, int64_t from, int64_t to) {
  T* const start = static_cast<T*>(sequence) + from;
  const size_t bytes = (size_t)(to - from) * sizeof(T);
  const bool by_row = (stride_t < 0 ? -stride_t : stride_t) < (stride_b < 0 ? -stride_b : stride_b);
  int64_t shortest = args.seq_len;
  for (int64_t row = first; row < last; ++row) {
    const int64_t length = args.lengths[row];
    if (length < shortest) shortest = length;
    for (int64_t time = length; by_row && time < args.seq_len; ++time) {
      __builtin_memset(start + time * stride_t + row * stride_b, 0, bytes);
    }
  }
  for (int64_t time = shortest; !by_row && time < args.seq_len; ++time) {
    for (int64_t row = first; row < last; ++row) {
      if (args.lengths[row] <= time) __builtin_memset(start + time * stride_t + row * stride_b, 0, bytes);
    }
  }
}

}  // namespace
