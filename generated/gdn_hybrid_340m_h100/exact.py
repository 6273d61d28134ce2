"""Exact arithmetic on sizes; where a result is irrational, the nearest double, the same on every machine."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_EVEN, Context, Decimal, Overflow
from fractions import Fraction

Number = int | Fraction

_MAX_BITS = 8_192  # an exact fractional power has at most so many, so that none takes long
# Enough digits that rounding twice, to these and then to a double, is rounding once.
_CONTEXT = Context(prec=60, rounding=ROUND_HALF_EVEN, Emin=-999_999, Emax=999_999)


def square_root(x: Number) -> Fraction:
    """The square root of a number that is not negative: exact if it is rational, else the nearest double."""
    exact = _root(Fraction(x), 2)
    return exact if exact is not None else _double(_CONTEXT.sqrt(_decimal(x)))


def exponential(x: Number) -> Fraction:
    """e to the power of x as the nearest double, exactly 1 at 0. Raises OverflowError beyond doubles."""
    if x == 0:
        return Fraction(1)
    if abs(Fraction(x)) > 800:
        if Fraction(x) > 0:
            raise OverflowError("the result is larger than any double")
        return Fraction(0)
    return _double(_CONTEXT.exp(_decimal(x)))


def logarithm(x: Number) -> Fraction:
    """The natural logarithm of a positive number as the nearest double; exactly 0 at 1."""
    return Fraction(0) if x == 1 else _double(_CONTEXT.ln(_decimal(x)))


def power(base: Number, exponent: Number) -> Fraction:
    """A power, exact where it is rational: `power(8, Fraction(2, 3))` is 4; else the nearest double.

    Raises ZeroDivisionError for a negative power of zero, ValueError for a root of a negative number, and
    OverflowError for a result beyond the doubles where it is not exact.
    """
    base, exponent = Fraction(base), Fraction(exponent)
    if exponent.denominator == 1:
        return base ** int(exponent)
    if base < 0:
        raise ValueError("a root of a negative number")
    if base == 0:
        if exponent < 0:
            raise ZeroDivisionError("a negative power of zero")
        return Fraction(0)
    root = _root(base, exponent.denominator)
    if root is not None and abs(exponent.numerator) * _bits(root) <= _MAX_BITS:
        return root**exponent.numerator
    try:
        return _double(_CONTEXT.power(_decimal(base), _decimal(exponent)))
    except Overflow:
        raise OverflowError("the result is larger than any double") from None


def round_up(x: Number, multiple: Number) -> Fraction:
    """The smallest multiple of `multiple` that is not below x."""
    return Fraction(math.ceil(Fraction(x) / multiple) * multiple)


def round_down(x: Number, multiple: Number) -> Fraction:
    """The largest multiple of `multiple` that is not above x."""
    return Fraction(math.floor(Fraction(x) / multiple) * multiple)


def _bits(x: Fraction) -> int:
    return max(x.numerator.bit_length(), x.denominator.bit_length())


def _decimal(x: Number) -> Decimal:
    fraction = Fraction(x)
    return _CONTEXT.divide(Decimal(fraction.numerator), Decimal(fraction.denominator))


def _double(x: Decimal) -> Fraction:
    nearest = float(x)
    if math.isinf(nearest):
        raise OverflowError("the result is larger than any double")
    return Fraction(nearest)


def _root(x: Fraction, degree: int) -> Fraction | None:
    """The rational root of a number that is not negative, or None if there is none."""
    top, bottom = _whole_root(x.numerator, degree), _whole_root(x.denominator, degree)
    return None if top is None or bottom is None else Fraction(top, bottom)


def _whole_root(x: int, degree: int) -> int | None:
    """The whole root of a whole number, by bisection."""
    if degree == 2:
        found = math.isqrt(x)
        return found if found * found == x else None
    if degree > 64:
        return x if x in (0, 1) else None
    low, high = 0, 1 << (x.bit_length() // degree + 1)
    while low < high:
        middle = (low + high) // 2
        if middle**degree < x:
            low = middle + 1
        else:
            high = middle
    return low if low**degree == x else None
