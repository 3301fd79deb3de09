// sigmoid and tanh on vectors, both from one expm1 on the negative axis.
//
// With z = -|x| or -2|x|, n = round(z / ln 2), r = z - n ln 2 and p = expm1(r), a polynomial, exp(z) = 2^n (1 + p):
//   sigmoid(x) = 1 / (1 + e)  for x >= 0,  e / (1 + e) for x < 0,  e = exp(-|x|)     relative accuracy in both tails
//   tanh(x)    = -u / (2 + u), with the sign of x,  u = expm1(-2|x|)                 no cancellation near zero
// Nothing overflows, every denominator is in [1, 2], NaN stays NaN. In float the largest errors are 2.50 (tanh) and 2.40
// (sigmoid) units in the last place, over all 2^32 arguments (the long form of tests/test_activations.py). A sixth term of
// q and taking off what the denominator's sum loses bring both below 2, and cost 5 % of LSTM T1000 B32 I8 H64: not done.
// The constants are printed by tools/exp_coefficients.py.
#pragma once

#include "simd.h"

namespace {

template <class T>
struct Exp;

template <>
struct Exp<float> {
  using Int = int32_t;
  static constexpr int kMantissa = 23;
  static constexpr Int kOne = 127 << 23;        // the bits of 1.0
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves round(x) in the low bits
  static constexpr float kLowest = -88.0f;      // exp of less is subnormal
  static constexpr float kLog2e = 1.44269504f;
  static constexpr float kLn2High = 0x1.62e4p-1f;  // n * kLn2High is exact without fma
  static constexpr float kLn2Low = 1.42860682e-6f;
  static constexpr int kTerms = 5;
  static constexpr float kQ[kTerms] = {0.5f, 0.16666577f, 0.0416665547f, 0.00836317307f, 0.00139261761f};
};

template <>
struct Exp<double> {
  using Int = int64_t;
  static constexpr int kMantissa = 52;
  static constexpr Int kOne = (int64_t)1023 << 52;
  static constexpr double kRound = 6755399441055744.0;
  static constexpr double kLowest = -709.0;
  static constexpr double kLog2e = 1.4426950408889634;
  static constexpr double kLn2High = 0x1.62e42fefa38p-1;
  static constexpr double kLn2Low = 5.4979230187083712e-14;
  static constexpr int kTerms = 10;
  static constexpr double kQ[kTerms] = {0.5000000000000001,    0.16666666666666667,   0.041666666666624162,
                                        0.0083333333333300644, 0.0013888888917196719, 0.00019841269863040545,
                                        2.4801521322368693e-5, 2.7557268480310026e-6, 2.7620075879983367e-7,
                                        2.5100375832561234e-8};
};

// exp(z) = scale * (1 + p) for z <= 0. The product is left to the caller, who wants exp(z) or exp(z) - 1.
template <class V>
HOTLOOP_INLINE void exp_parts(V z, V& p, V& scale) {
  using T = Element<V>;
  using E = Exp<T>;
  z = at_least(z, splat<T>(E::kLowest));
  const V shifted = fma(z, splat<T>(E::kLog2e), splat<T>(E::kRound));
  const V n = shifted - splat<T>(E::kRound);
  V r = fnma(n, splat<T>(E::kLn2High), z);
  r = fnma(n, splat<T>(E::kLn2Low), r);
  V q = splat<T>(E::kQ[E::kTerms - 1]);
  unroll<E::kTerms - 1>([&](auto i) HOTLOOP_LAMBDA { q = fma(q, r, splat<T>(E::kQ[E::kTerms - 2 - i.value])); });
  p = fma(r * r, q, r);
  scale = (V)(((Bits<T>)shifted << E::kMantissa) + E::kOne);
}

template <class V>
HOTLOOP_INLINE V sigmoid(V x) {
  using T = Element<V>;
  const V one = splat<T>(1);
  V p, scale;
  exp_parts(-magnitude(x), p, scale);
  const V e = fma(p, scale, scale);
  return (x < splat<T>(0) ? e : one) / (one + e);
}

template <class V>
HOTLOOP_INLINE V tanh(V x) {
  using T = Element<V>;
  V p, scale;
  exp_parts(splat<T>(-2) * magnitude(x), p, scale);
  const V u = fma(p, scale, scale - splat<T>(1));
  return with_sign_of(x, (splat<T>(0) - u) / (splat<T>(2) + u));  // -u of tanh(0) would be -0
}

}  // namespace
