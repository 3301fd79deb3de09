// The cell equations and their derivatives, elementwise on vectors. They stand here and in src/hotloop/_backends/cells.py, same
// names, same order, and nowhere else.
//
// a[g] is the pre-activation of gate g, in PyTorch's order; of the gate kApart it is h's share only, and x's share comes
// separately (kApart = -1: no such gate). Gradients of the pre-activations, da, come in the order in which backward keeps
// them: h's side are the first kGates, x's side the kGates from kXSide on, so that either is one contiguous row for a
// matrix product; kHGate[j] is the torch gate of h's side's j-th block, x's side is in order.
//
// A cell whose kOfH is below kGates takes two passes a step: the first kOfH gates multiply h, `gates` makes the reset h of
// them, and the other gates multiply that; `forward` then has their a, and in `saved` what `gates` left. Backward the same
// way around: `backward` gives all of da but the first block, `backward_reset` that one.
#pragma once

#include "math.h"

namespace {

// A vector of units at one step, forward.
template <class Cell, class V>
struct ForwardUnit {
  V a[Cell::kGates];
  V x_apart;  // x's share of the gate kApart
  V h_prev, c_prev;
  V saved[Cell::kSaved + 1];
  V reset_h;
  V h, c;
};

// The same, backward.
template <class Cell, class V>
struct BackwardUnit {
  V saved[Cell::kSaved + 1];
  V h, h_prev, c, c_prev;
  V dh;
  V carry;  // in, of an LSTM: dc of this step's c as far as later steps give it. Out: dc of the step before; of a cell that
            // carries h, the part of dh that reaches h_prev without passing weight_hh
  V dreset_h;  // for backward_reset
  V da[Cell::kGradients];
};

struct RnnTanh {
  static constexpr int kGates = 1, kOfH = 1, kSaved = 0, kApart = -1;
  static constexpr bool kHasC = false, kCarriesH = false, kBackwardReadsH = true;
  static constexpr int kGradients = 1, kXSide = 0, kHGate[] = {0};

  template <class V>
  static HOTLOOP_INLINE void forward(ForwardUnit<RnnTanh, V>& unit) {
    unit.h = tanh(unit.a[0]);
  }
  template <class V>
  static HOTLOOP_INLINE void backward(BackwardUnit<RnnTanh, V>& unit) {
    const V h = unit.h;
    unit.da[0] = unit.dh * fnma(h, h, splat<Element<V>>(1));
  }
};

struct RnnRelu {
  static constexpr int kGates = 1, kOfH = 1, kSaved = 0, kApart = -1;
  static constexpr bool kHasC = false, kCarriesH = false, kBackwardReadsH = true;
  static constexpr int kGradients = 1, kXSide = 0, kHGate[] = {0};

  template <class V>
  static HOTLOOP_INLINE void forward(ForwardUnit<RnnRelu, V>& unit) {
    unit.h = at_least(unit.a[0], V{});
  }
  template <class V>
  static HOTLOOP_INLINE void backward(BackwardUnit<RnnRelu, V>& unit) {
    unit.da[0] = unit.dh * (unit.h > V{} ? splat<Element<V>>(1) : V{});
  }
};

struct Lstm {
  static constexpr int kGates = 4, kOfH = 4, kSaved = 4, kApart = -1;
  static constexpr bool kHasC = true, kCarriesH = false, kBackwardReadsH = false;
  static constexpr int kGradients = 4, kXSide = 0, kHGate[] = {0, 1, 2, 3};

  template <class V>
  static HOTLOOP_INLINE void forward(ForwardUnit<Lstm, V>& unit) {
    const V i = sigmoid(unit.a[0]);
    const V f = sigmoid(unit.a[1]);
    const V g = tanh(unit.a[2]);
    const V o = sigmoid(unit.a[3]);
    const V c = fma(f, unit.c_prev, i * g);
    unit.saved[0] = i;
    unit.saved[1] = f;
    unit.saved[2] = g;
    unit.saved[3] = o;
    unit.c = c;
    unit.h = o * tanh(c);
  }
  template <class V>
  static HOTLOOP_INLINE void backward(BackwardUnit<Lstm, V>& unit) {
    const V one = splat<Element<V>>(1), dh = unit.dh;
    const V i = unit.saved[0], f = unit.saved[1], g = unit.saved[2], o = unit.saved[3];
    const V tanh_c = tanh(unit.c);
    const V dc = fma(dh * o, fnma(tanh_c, tanh_c, one), unit.carry);
    unit.da[0] = dc * g * (i * (one - i));
    unit.da[1] = dc * unit.c_prev * (f * (one - f));
    unit.da[2] = dc * i * fnma(g, g, one);
    unit.da[3] = dh * tanh_c * (o * (one - o));
    unit.carry = dc * f;
  }
};

// Reset after the product: q, h's share of gate n, is kept apart, because r multiplies it alone.
struct Gru {
  static constexpr int kGates = 3, kOfH = 3, kSaved = 4, kApart = 2;
  static constexpr bool kHasC = false, kCarriesH = true, kBackwardReadsH = false;
  static constexpr int kGradients = 4, kXSide = 1, kHGate[] = {2, 0, 1};

  template <class V>
  static HOTLOOP_INLINE void forward(ForwardUnit<Gru, V>& unit) {
    const V r = sigmoid(unit.a[0]);
    const V z = sigmoid(unit.a[1]);
    const V q = unit.a[2];
    const V n = tanh(fma(r, q, unit.x_apart));
    unit.saved[0] = r;
    unit.saved[1] = z;
    unit.saved[2] = n;
    unit.saved[3] = q;
    unit.h = fma(z, unit.h_prev - n, n);
  }
  template <class V>
  static HOTLOOP_INLINE void backward(BackwardUnit<Gru, V>& unit) {
    const V one = splat<Element<V>>(1), dh = unit.dh;
    const V r = unit.saved[0], z = unit.saved[1], n = unit.saved[2], q = unit.saved[3];
    const V dx_n = dh * (one - z) * fnma(n, n, one);
    unit.da[0] = dx_n * r;  // dq
    unit.da[1] = dx_n * q * (r * (one - r));
    unit.da[2] = dh * (unit.h_prev - n) * (z * (one - z));
    unit.da[3] = dx_n;
    unit.carry = dh * z;
  }
};

// Reset before the product: r multiplies h, and gate n multiplies the result.
struct GruResetBefore {
  static constexpr int kGates = 3, kOfH = 2, kSaved = 3, kApart = -1;
  static constexpr bool kHasC = false, kCarriesH = true, kBackwardReadsH = false;
  static constexpr int kGradients = 3, kXSide = 0, kHGate[] = {0, 1, 2};

  template <class V>
  static HOTLOOP_INLINE void gates(ForwardUnit<GruResetBefore, V>& unit) {
    const V r = sigmoid(unit.a[0]);
    const V z = sigmoid(unit.a[1]);
    unit.saved[0] = r;
    unit.saved[1] = z;
    unit.reset_h = r * unit.h_prev;
  }
  template <class V>
  static HOTLOOP_INLINE void forward(ForwardUnit<GruResetBefore, V>& unit) {
    const V z = unit.saved[1];
    const V n = tanh(unit.a[2]);
    unit.saved[2] = n;
    unit.h = fma(z, unit.h_prev - n, n);
  }
  template <class V>
  static HOTLOOP_INLINE void backward(BackwardUnit<GruResetBefore, V>& unit) {
    const V one = splat<Element<V>>(1), dh = unit.dh;
    const V z = unit.saved[1], n = unit.saved[2];
    unit.da[1] = dh * (unit.h_prev - n) * (z * (one - z));
    unit.da[2] = dh * (one - z) * fnma(n, n, one);
    unit.carry = dh * z;
  }
  template <class V>
  static HOTLOOP_INLINE void backward_reset(BackwardUnit<GruResetBefore, V>& unit) {
    const V one = splat<Element<V>>(1);
    const V r = unit.saved[0];
    unit.da[0] = unit.dreset_h * unit.h_prev * (r * (one - r));
    unit.carry = fma(unit.dreset_h, r, unit.carry);
  }
};

}  // namespace
