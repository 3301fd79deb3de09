// What this machine can do with this instruction set: the roof that benchmarks are held against. Each returns the work
// done; the caller takes the time.
#pragma once

#include "cells.h"

namespace {

template <class V>
HOTLOOP_INLINE void keep(V& value) {
#if defined(__x86_64__)
  __asm__ __volatile__("" : "+v"(value));
#else
  __asm__ __volatile__("" : "+w"(value));
#endif
}

template <class T>
double probe_fma(void* buffer, int64_t, int64_t repeats) {
  constexpr int kChains = 12;  // of latency 4 on two ports: 8 would do
  const Vector<T> a = splat(*static_cast<T*>(buffer)), b = splat<T>((T)0.5);
  Vector<T> acc[kChains] = {};
  for (int64_t i = 0; i < repeats; ++i) {
    for (int c = 0; c < kChains; ++c) acc[c] = fma(a, b, acc[c]);
    for (int c = 0; c < kChains; ++c) keep(acc[c]);
  }
  return 2.0 * kChains * kLanes<T> * (double)repeats;
}

// Pages up and down in turn: what the last pass left in a nearer cache is what this one starts with, as no loop that always
// goes up can have it. Within a page always up, as the prefetcher likes it.
template <class T>
double probe_read(void* buffer, int64_t bytes, int64_t repeats) {
  constexpr int kWide = 8, kPage = 4096 / sizeof(T);
  const T* const data = static_cast<const T*>(buffer);
  const int64_t pages = bytes / 4096;
  Vector<T> acc[kWide] = {};
  for (int64_t i = 0; i < repeats; ++i) {
    for (int64_t page = 0; page < pages; ++page) {
      const T* const at = data + (i % 2 == 0 ? page : pages - 1 - page) * kPage;
      for (int64_t v = 0; v < kPage; v += kWide * kLanes<T>) {
        for (int w = 0; w < kWide; ++w) acc[w] = acc[w] + load(at + v + w * kLanes<T>);
      }
    }
    for (int w = 0; w < kWide; ++w) keep(acc[w]);
  }
  return (double)pages * 4096 * (double)repeats;
}

// The first half of the buffer to the second; counts what is read and what is written.
template <class T>
double probe_copy(void* buffer, int64_t bytes, int64_t repeats) {
  constexpr int kWide = 4;
  T* const data = static_cast<T*>(buffer);
  const int64_t vectors = bytes / 2 / Isa::kVectorBytes / kWide * kWide;
  for (int64_t i = 0; i < repeats; ++i) {
    for (int64_t v = 0; v < vectors; v += kWide) {
      for (int w = 0; w < kWide; ++w) {
        Vector<T> value = load(data + (v + w) * kLanes<T>);
        keep(value);
        store(data + (vectors + v + w) * kLanes<T>, value);
      }
    }
  }
  return 2.0 * (double)vectors * Isa::kVectorBytes * (double)repeats;
}

// The cell's forward equations on data in L1: gates in, gates, c and h out. Counts vectors of units.
template <class Cell, class T>
double probe_forward(void* buffer, int64_t bytes, int64_t repeats) {
  constexpr int kArrays = Cell::kGates + 3, kL = kLanes<T>;
  T* const data = static_cast<T*>(buffer);
  const int64_t sets = bytes / Isa::kVectorBytes / kArrays;
  for (int64_t i = 0; i < repeats; ++i) {
    for (int64_t set = 0; set < sets; ++set) {
      T* const at = data + set * kArrays * kL;
      ForwardUnit<Vector<T>> unit;
      unit.c = unit.c_prev = load(at + Cell::kGates * kL);
      unit.operand = unit.h_prev = load(at + (Cell::kGates + 1) * kL);
      unit.x_apart = load(at + (Cell::kGates + 2) * kL);
      each_stage<Cell>([&](auto stage) HOTLOOP_LAMBDA {
        using S = decltype(stage);
        if (S::kOfOutput) return;  // no arithmetic
        for (int g = 0; g < S::kGates; ++g) unit.a[g] = load(at + (S::kFirst + g) * kL);
        S::forward(unit);
        keep(unit.out);
      });
      keep(unit.c);
      for (int s = 0; s < kSaved<Cell>; ++s) keep(unit.saved[s]);
    }
  }
  return (double)sets * (double)repeats;
}

template <class Cell, class T>
double probe_backward(void* buffer, int64_t bytes, int64_t repeats) {
  constexpr int kArrays = kSaved<Cell> + 6, kL = kLanes<T>;
  T* const data = static_cast<T*>(buffer);
  const int64_t sets = bytes / Isa::kVectorBytes / kArrays;
  for (int64_t i = 0; i < repeats; ++i) {
    for (int64_t set = 0; set < sets; ++set) {
      const T* const at = data + set * kArrays * kL;
      BackwardUnit<Vector<T>> unit;
      for (int s = 0; s < kSaved<Cell>; ++s) unit.saved[s] = load(at + s * kL);
      const T* const rest = at + kSaved<Cell> * kL;
      unit.out = load(rest);
      unit.operand = unit.mask = unit.h_prev = load(rest + kL);
      unit.c_prev = load(rest + 2 * kL);
      unit.c = load(rest + 3 * kL);
      unit.d_out = load(rest + 4 * kL);
      unit.carry = load(rest + 5 * kL);
      unroll<kStages<Cell>>([&](auto index) HOTLOOP_LAMBDA {
        using S = At<Cell, kStages<Cell> - 1 - decltype(index)::value>;
        if (S::kOfOutput) return;
        S::backward(unit);
        for (int j = 0; j < S::kGiven; ++j) keep(unit.da[j]);
        unit.d_out = load(rest);
      });
      keep(unit.carry);
    }
  }
  return (double)sets * (double)repeats;
}

}  // namespace
