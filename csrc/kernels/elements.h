// Parts of vectors for families without cheap masks: a masked AVX2 store costs some 20 micro-operations on AMD, a loop over
// the elements no more.
#pragma once

#include "vectors.h"

namespace {

// The first `count` elements, the others zero; and to store as many. Nothing else is touched. Whole vectors take the branch.
template <class T>
HOTLOOP_INLINE Vector<T> load_part(const T* from, int64_t count) {
  if (count == kLanes<T>) return load(from);
  Vector<T> value{};
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    if (lane < count) value[lane] = from[lane];
  }
  return value;
}

template <class T>
HOTLOOP_INLINE void store_part(T* to, int64_t count, Vector<T> value) {
  if (count == kLanes<T>) return store(to, value);
  for (int lane = 0; lane < kLanes<T>; ++lane) {
    if (lane < count) to[lane] = value[lane];
  }
}

}  // namespace
