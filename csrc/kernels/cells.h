// The cell equations and their derivatives, elementwise on vectors. They stand here and in src/hotloop/_backends/cells.py, same
// names, same order, and nowhere else.
//
// a[g] is the pre-activation of gate g, in PyTorch's order; of the gate kApart it is h's share only, and x's share comes
// separately (kApart = -1: no such gate). `state` is c for an LSTM. Gradients of the pre-activations, da, come in the
// order in which backward keeps them: h's side are the first kGates, x's side the kGates from kXSide on, so that either is
// one contiguous row for a matrix product; kHGate[j] is the torch gate of h's side's j-th block, x's side is in order.
//
// A cell whose kOfH is below kGates takes two passes a step: the first kOfH gates multiply h, `gates` makes the reset h of
// them, and the other gates multiply that; `forward` then has their a, and in `saved` what `gates` left. Backward the same
// way around: `backward` gives all of da but the first block, `backward_reset` that one.
#pragma once

#include "math.h"

namespace {

struct RnnTanh {
  static constexpr int kGates = 1, kOfH = 1, kSaved = 0, kApart = -1;
  static constexpr bool kHasC = false, kCarriesH = false, kBackwardReadsH = true;
  static constexpr int kGradients = 1, kXSide = 0, kHGate[] = {0};

  template <class V>
  static HOTLOOP_INLINE V forward(const V* a, V, V, V&, V*) {
    return tanh(a[0]);
  }
  template <class V>
  static HOTLOOP_INLINE void backward(const V*, V h, V, V, V, V dh, V&, V* da) {
    da[0] = dh * fnma(h, h, splat<Element<V>>(1));
  }
};

struct RnnRelu {
  static constexpr int kGates = 1, kOfH = 1, kSaved = 0, kApart = -1;
  static constexpr bool kHasC = false, kCarriesH = false, kBackwardReadsH = true;
  static constexpr int kGradients = 1, kXSide = 0, kHGate[] = {0};

  template <class V>
  static HOTLOOP_INLINE V forward(const V* a, V, V, V&, V*) {
    return at_least(a[0], V{});
  }
  template <class V>
  static HOTLOOP_INLINE void backward(const V*, V h, V, V, V, V dh, V&, V* da) {
    da[0] = dh * (h > V{} ? splat<Element<V>>(1) : V{});
  }
};

struct Lstm {
  static constexpr int kGates = 4, kOfH = 4, kSaved = 4, kApart = -1;
  static constexpr bool kHasC = true, kCarriesH = false, kBackwardReadsH = false;
  static constexpr int kGradients = 4, kXSide = 0, kHGate[] = {0, 1, 2, 3};

  template <class V>
  static HOTLOOP_INLINE V forward(const V* a, V, V, V& c, V* saved) {
    const V i = sigmoid(a[0]);
    const V f = sigmoid(a[1]);
    const V g = tanh(a[2]);
    const V o = sigmoid(a[3]);
    c = fma(f, c, i * g);
    saved[0] = i;
    saved[1] = f;
    saved[2] = g;
    saved[3] = o;
    return o * tanh(c);
  }
  // carry is dc: in, of this step's c as far as later steps give it; out, of the step before.
  template <class V>
  static HOTLOOP_INLINE void backward(const V* saved, V, V, V c_prev, V c, V dh, V& carry, V* da) {
    const V one = splat<Element<V>>(1);
    const V i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    const V tanh_c = tanh(c);
    const V dc = fma(dh * o, fnma(tanh_c, tanh_c, one), carry);
    da[0] = dc * g * (i * (one - i));
    da[1] = dc * c_prev * (f * (one - f));
    da[2] = dc * i * fnma(g, g, one);
    da[3] = dh * tanh_c * (o * (one - o));
    carry = dc * f;
  }
};

// Reset after the product: q, h's share of gate n, is kept apart, because r multiplies it alone.
struct Gru {
  static constexpr int kGates = 3, kOfH = 3, kSaved = 4, kApart = 2;
  static constexpr bool kHasC = false, kCarriesH = true, kBackwardReadsH = false;
  static constexpr int kGradients = 4, kXSide = 1, kHGate[] = {2, 0, 1};

  template <class V>
  static HOTLOOP_INLINE V forward(const V* a, V x_n, V h_prev, V&, V* saved) {
    const V r = sigmoid(a[0]);
    const V z = sigmoid(a[1]);
    const V q = a[2];
    const V n = tanh(fma(r, q, x_n));
    saved[0] = r;
    saved[1] = z;
    saved[2] = n;
    saved[3] = q;
    return fma(z, h_prev - n, n);
  }
  // carry is the part of dh that reaches h_prev without passing weight_hh.
  template <class V>
  static HOTLOOP_INLINE void backward(const V* saved, V, V h_prev, V, V, V dh, V& carry, V* da) {
    const V one = splat<Element<V>>(1);
    const V r = saved[0], z = saved[1], n = saved[2], q = saved[3];
    const V dx_n = dh * (one - z) * fnma(n, n, one);
    da[0] = dx_n * r;  // dq
    da[1] = dx_n * q * (r * (one - r));
    da[2] = dh * (h_prev - n) * (z * (one - z));
    da[3] = dx_n;
    carry = dh * z;
  }
};

// Reset before the product: r multiplies h, and gate n multiplies the result.
struct GruResetBefore {
  static constexpr int kGates = 3, kOfH = 2, kSaved = 3, kApart = -1;
  static constexpr bool kHasC = false, kCarriesH = true, kBackwardReadsH = false;
  static constexpr int kGradients = 3, kXSide = 0, kHGate[] = {0, 1, 2};

  // Returns the reset h.
  template <class V>
  static HOTLOOP_INLINE V gates(const V* a, V h_prev, V* saved) {
    const V r = sigmoid(a[0]);
    const V z = sigmoid(a[1]);
    saved[0] = r;
    saved[1] = z;
    return r * h_prev;
  }
  template <class V>
  static HOTLOOP_INLINE V forward(const V* a, V, V h_prev, V&, V* saved) {
    const V z = saved[1];
    const V n = tanh(a[0]);
    saved[2] = n;
    return fma(z, h_prev - n, n);
  }
  template <class V>
  static HOTLOOP_INLINE void backward(const V* saved, V, V h_prev, V, V, V dh, V& carry, V* da) {
    const V one = splat<Element<V>>(1);
    const V z = saved[1], n = saved[2];
    da[1] = dh * (h_prev - n) * (z * (one - z));
    da[2] = dh * (one - z) * fnma(n, n, one);
    carry = dh * z;
  }
  template <class V>
  static HOTLOOP_INLINE V backward_reset(const V* saved, V h_prev, V dreset_h, V& carry) {
    const V one = splat<Element<V>>(1);
    const V r = saved[0];
    carry = fma(dreset_h, r, carry);
    return dreset_h * h_prev * (r * (one - r));  // da_r
  }
};

}  // namespace
