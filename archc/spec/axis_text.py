"""Axes as expressions, and static expressions as text in the language's own syntax."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Protocol

from archc.spec.diagnostics import NOWHERE
from archc.spec.expressions import (
    Attribute,
    Binary,
    Boolean,
    Call,
    Compare,
    Conditional,
    Expr,
    ListExpr,
    Name,
    Number,
    Subscript,
    Text,
    Unary,
)

_CONDITIONAL, _OR, _AND, _NOT, _COMPARE, _SUM, _PRODUCT, _SIGN, _POWER, _ATOM = range(10)
_BINDS = {"+": _SUM, "-": _SUM, "*": _PRODUCT, "/": _PRODUCT, "//": _PRODUCT, "%": _PRODUCT, "**": _POWER}
_COMPARISONS = frozenset({"<", "<=", ">", ">=", "==", "!="})


class Factor(Protocol):
    """An atom of an axis: a declared name, or an operation on axes."""

    @property
    def text(self) -> str:
        """The name."""

    @property
    def operation(self) -> str:
        """ "name", or what is done with the parts."""

    @property
    def parts(self) -> Sequence[Sum]:
        """The axes that the operation takes."""


class Sum(Protocol):
    """An axis: a sum of products of powers of atoms."""

    def for_reading(self) -> Sequence[tuple[Sequence[tuple[Factor, int]], Fraction]]:
        """Terms and their factors in the order in which they are written."""


def expression(axis: Sum) -> Expr:
    """An axis as an expression: a sum of products, divided by what has negative powers."""
    total: Expr | None = None
    terms = axis.for_reading()
    if terms and terms[0][1] < 0:
        terms = sorted(terms, key=lambda term: term[1] < 0)
    for monomial, coefficient in terms:
        term = _term(monomial, abs(coefficient))
        if total is None:
            total = term if coefficient > 0 else _negative(term)
        else:
            total = Binary(NOWHERE, "+" if coefficient > 0 else "-", total, term)
    return total if total is not None else Number(NOWHERE, Fraction(0))


def _negative(term: Expr) -> Expr:
    return Unary(NOWHERE, "-", term)


def _term(monomial: Sequence[tuple[Factor, int]], coefficient: Fraction) -> Expr:
    above: list[Expr] = []
    below: list[Expr] = []
    for atom, exponent in monomial:
        inverse = atom.operation == "1/"
        base = expression(atom.parts[0]) if inverse else _atom(atom)
        power = (
            base
            if abs(exponent) == 1
            else Binary(NOWHERE, "**", base, Number(NOWHERE, Fraction(abs(exponent))))
        )
        (below if (exponent < 0) is not inverse else above).append(power)
    if coefficient.numerator != 1 or not above:
        above.insert(0, Number(NOWHERE, Fraction(coefficient.numerator)))
    if coefficient.denominator != 1:
        below.insert(0, Number(NOWHERE, Fraction(coefficient.denominator)))
    top = _product(above)
    return Binary(NOWHERE, "/", top, _product(below)) if below else top


def _product(factors: list[Expr]) -> Expr:
    product = factors[0]
    for factor in factors[1:]:
        product = Binary(NOWHERE, "*", product, factor)
    return product


def _atom(atom: Factor) -> Expr:
    operation = atom.operation
    if operation == "name":
        return _dotted(atom.text)
    if operation.startswith("text:"):
        return Text(NOWHERE, operation.removeprefix("text:"))
    parts = tuple(expression(part) for part in atom.parts)
    if operation in ("*", "//", "%", "**"):
        return Binary(NOWHERE, operation, parts[0], parts[1])
    if operation == "not":
        return Unary(NOWHERE, "not", parts[0])
    if operation in ("and", "or"):
        return Boolean(NOWHERE, operation, parts)
    if operation == "if":
        return Conditional(NOWHERE, *parts)
    if operation == "[]":
        return Subscript(NOWHERE, parts[0], parts[1])
    if operation.split(" ")[0] in _COMPARISONS:
        return Compare(NOWHERE, tuple(operation.split(" ")), parts)
    return Call(NOWHERE, operation, NOWHERE, parts, ())


def _dotted(name: str) -> Expr:
    first, *rest = name.split(".")
    found: Expr = Name(NOWHERE, first)
    for entry in rest:
        found = Attribute(NOWHERE, found, entry)
    return found


def text(expr: Expr) -> str:
    """An expression in the language's syntax, with the fewest parentheses; parsing it gives the same tree.

    Fractions that no decimal writes come out as quotients, `8 / 3`; pipes come out as calls.
    """
    return _write(expr)[0]


def _write(expr: Expr) -> tuple[str, int]:
    match expr:
        case Number():
            return _number(expr.value)
        case Text():
            return f'"{expr.value}"', _ATOM
        case Name():
            return expr.id, _ATOM
        case Attribute():
            return f"{_inside(expr.value, _ATOM)}.{expr.name}", _ATOM
        case Subscript():
            return f"{_inside(expr.value, _ATOM)}[{text(expr.index)}]", _ATOM
        case ListExpr():
            return f"[{', '.join(text(item) for item in expr.items)}]", _ATOM
        case Call():
            keywords = [f"{keyword.name}={text(keyword.value)}" for keyword in expr.keywords]
            return (
                f"{expr.function}({', '.join([text(argument) for argument in expr.args] + keywords)})",
                _ATOM,
            )
        case Unary():
            level = _SIGN if expr.op == "-" else _NOT
            return ("-" if expr.op == "-" else "not ") + _inside(expr.operand, level), level
        case Binary():
            level = _BINDS[expr.op]
            if expr.op == "**":
                return f"{_inside(expr.left, _ATOM)} ** {_inside(expr.right, _SIGN)}", level
            return f"{_inside(expr.left, level)} {expr.op} {_inside(expr.right, level + 1)}", level
        case Boolean():
            level = _AND if expr.op == "and" else _OR
            return f" {expr.op} ".join(_inside(part, level + 1) for part in expr.values), level
        case Compare():
            parts = [_inside(operand, _COMPARE + 1) for operand in expr.operands]
            return parts[0] + "".join(
                f" {op} {part}" for op, part in zip(expr.ops, parts[1:], strict=True)
            ), _COMPARE
        case Conditional():
            return (
                f"{_inside(expr.then, _OR)} if {_inside(expr.test, _OR)} else "
                f"{_inside(expr.otherwise, _CONDITIONAL)}"
            ), _CONDITIONAL
    raise ValueError(f"not an expression of the language: {type(expr).__name__}")


def _inside(expr: Expr, least: int) -> str:
    written, binds = _write(expr)
    return written if binds >= least else f"({written})"


def _number(value: Fraction) -> tuple[str, int]:
    """A decimal where there is a short one, else a quotient."""
    level = _SIGN if value < 0 else _ATOM
    if value.denominator == 1:
        return str(value), level
    for places in range(1, 13):
        scaled = value * 10**places
        if scaled.denominator == 1:
            digits = str(abs(scaled.numerator)).rjust(places + 1, "0")
            sign = "-" if value < 0 else ""
            return f"{sign}{digits[:-places]}.{digits[-places:]}", level
    return f"{value.numerator} / {value.denominator}", _PRODUCT
