"""Print the constants of csrc/kernels/math.h and of src/hotloop/_backends/numba_kernels.py; paste what it prints.

expm1(r) = r + r^2 q(r) on |r| <= ln(2)/2. q is the Chebyshev fit of lowest degree with which the polynomial's own error
is below a quarter of a unit in the last place of exp(r). ln(2) is split so that n * ln2_high is exact without fma for
every n that occurs (8 bits in float, 11 in double).
"""

from __future__ import annotations

import mpmath

mpmath.mp.prec = 200


def q(r: mpmath.mpf) -> mpmath.mpf:
    if abs(r) < mpmath.mpf(2) ** -40:
        return mpmath.mpf(1) / 2 + r / 6
    return (mpmath.expm1(r) - r) / r**2


def fit(precision: int) -> list[mpmath.mpf]:
    """Coefficients of q, lowest power first."""
    edge = mpmath.log(2) / 2
    for terms in range(3, 16):
        coefficients, error = mpmath.chebyfit(q, [-edge, edge], terms, error=True)
        if error * edge**2 * mpmath.sqrt(2) < mpmath.mpf(2) ** -(precision + 2):
            return list(reversed(coefficients))
    raise AssertionError("no polynomial of up to 15 terms is good enough")


def rounded(value: mpmath.mpf, bits: int) -> mpmath.mpf:
    """`value` rounded to that many significant bits."""
    exponent = mpmath.frexp(value)[1]
    scale = mpmath.mpf(2) ** (bits - exponent)
    return mpmath.nint(value * scale) / scale


for name, precision, n_bits, suffix in (("float", 24, 8, "f"), ("double", 53, 11, "")):
    digits = 9 if precision == 24 else 17
    ln2_high = rounded(mpmath.log(2), precision - n_bits)
    print(f"// {name}")
    print("kLog2e  =", mpmath.nstr(1 / mpmath.log(2), digits) + suffix)
    print("kLn2High =", float(ln2_high).hex() + suffix)
    print("kLn2Low  =", mpmath.nstr(mpmath.log(2) - ln2_high, digits) + suffix)
    print("kQ =", ", ".join(mpmath.nstr(c, digits) + suffix for c in fit(precision)))
