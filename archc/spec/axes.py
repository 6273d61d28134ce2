"""The identity of an axis: a polynomial normal form, in which `a * b` and `b * a` are one axis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from archc.spec import statics
from archc.spec.axis_text import expression, text
from archc.spec.diagnostics import Reporter
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
from archc.spec.spec import Static

# A product of powers of atoms, sorted by atom; the constant 1 is empty.
Monomial = tuple[tuple["Atom", int], ...]

MAX_TERMS = 200  # beyond this a product stays an atom of its own, so that no spec expands for long
MAX_POWER = 16


@dataclass(frozen=True, slots=True, order=True)
class Atom:
    """What is not taken apart: a declared name, or an operation such as `ceil` on axes."""

    text: str  # canonical: equal exactly for equal atoms
    operation: str = field(default="name", compare=False)
    parts: tuple[Axis, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Axis:
    """A Laurent polynomial over atoms with rational coefficients; equality and hash go by it alone."""

    terms: tuple[tuple[Monomial, Fraction], ...]  # sorted, no zero coefficients
    order: tuple[str, ...] = field(default=(), compare=False)  # atoms as they were first written, for `str()`

    @staticmethod
    def named(name: str) -> Axis:
        """The axis of a declared name."""
        return _of_atom(Atom(name))

    @staticmethod
    def number(value: Fraction | int) -> Axis:
        """The axis of a plain number."""
        return _axis({(): Fraction(value)}, ())

    @staticmethod
    def of(expr: Expr) -> Axis:
        """The axis that an expression over static names describes. Raises ValueError for anything else."""
        return _read(expr)

    def __add__(self, other: Axis) -> Axis:
        terms = dict(self.terms)
        for monomial, coefficient in other.terms:
            terms[monomial] = terms.get(monomial, Fraction(0)) + coefficient
        return _axis(terms, self.order + other.order)

    def __neg__(self) -> Axis:
        return _axis({monomial: -coefficient for monomial, coefficient in self.terms}, self.order)

    def __sub__(self, other: Axis) -> Axis:
        return self + (-other)

    def __mul__(self, other: Axis) -> Axis:
        if len(self.terms) * len(other.terms) > MAX_TERMS:
            return _of_atom(_atom("*", tuple(sorted((self, other), key=_canonical))))
        terms: dict[Monomial, Fraction] = {}
        for left, a in self.terms:
            for right, b in other.terms:
                monomial = _times(left, right)
                terms[monomial] = terms.get(monomial, Fraction(0)) + a * b
        return _axis(terms, self.order + other.order)

    def __truediv__(self, other: Axis) -> Axis:
        """The quotient: exact where one polynomial divides the other. Raises ZeroDivisionError."""
        if not other.terms:
            raise ZeroDivisionError("an axis divided by zero")
        if len(other.terms) == 1:
            return self * _invert(other)
        ratio = other.terms[0][1]
        divisor = other * Axis.number(1 / ratio)
        exact = _divide(self, divisor)
        quotient = exact if exact is not None else self * _of_atom(_atom("1/", (divisor,)))
        return quotient * Axis.number(1 / ratio)

    def __pow__(self, exponent: int) -> Axis:
        if exponent < 0:
            return Axis.number(1) / self**-exponent
        if exponent > MAX_POWER:
            return _of_atom(_atom("**", (self, Axis.number(exponent))))
        result = Axis.number(1)
        for _ in range(exponent):
            result = result * self
        return result

    @property
    def constant(self) -> Fraction | None:
        """The number that this axis is, or None if a name occurs in it."""
        if not self.terms:
            return Fraction(0)
        return self.terms[0][1] if len(self.terms) == 1 and not self.terms[0][0] else None

    def names(self) -> frozenset[str]:
        """The declared names that occur, also inside operations."""
        return frozenset(
            name for monomial, _ in self.terms for atom, _ in monomial for name in _atom_names(atom)
        )

    def substitute(self, mapping: Mapping[str, Axis]) -> Axis:
        """This axis with names replaced by other axes, all at once."""
        if not self.names() & mapping.keys():
            return self
        total = Axis.number(0)
        for monomial, coefficient in self.for_reading():
            product = Axis.number(coefficient)
            for atom, exponent in monomial:
                product = product * _substituted(atom, mapping) ** exponent
            total = total + product
        return total

    def evaluate(self, mapping: Mapping[str, Static]) -> Fraction:
        """The number that this axis is. Raises KeyError for an unknown name, ValueError if it is none."""
        missing = sorted(
            name for name in self.names() if name.split(".")[0] not in mapping and name not in mapping
        )
        if missing:
            raise KeyError(missing[0])
        report = Reporter()
        found = statics.evaluate(self.expr(), mapping, report)
        if report.diagnostics or isinstance(found, bool) or not isinstance(found, Fraction):
            raise ValueError(
                report.diagnostics[0].message if report.diagnostics else f"`{self}` is not a number"
            )
        return found

    def for_reading(self) -> list[tuple[Monomial, Fraction]]:
        """Terms and their factors in the order in which their atoms were first written, the constant last."""
        place = {name: position for position, name in enumerate(self.order)}

        def key(term: tuple[Monomial, Fraction]) -> tuple[bool, list[int]]:
            return not term[0], sorted(place.get(atom.text, 0) for atom, _ in term[0])

        return [
            (tuple(sorted(monomial, key=lambda factor: place.get(factor[0].text, 0))), coefficient)
            for monomial, coefficient in sorted(self.terms, key=key)
        ]

    def expr(self) -> Expr:
        """The axis as an expression, in the order in which it was first written."""
        return expression(self)

    def __str__(self) -> str:
        return text(self.expr())


def _axis(terms: Mapping[Monomial, Fraction], order: Iterable[str]) -> Axis:
    kept = tuple(sorted((monomial, coefficient) for monomial, coefficient in terms.items() if coefficient))
    used = {atom.text for monomial, _ in kept for atom, _ in monomial}
    return Axis(kept, tuple(name for name in dict.fromkeys(order) if name in used))


def _of_atom(atom: Atom) -> Axis:
    return Axis(((((atom, 1),), Fraction(1)),), (atom.text,))


def _canonical(axis: Axis) -> str:
    return "+".join(
        f"{coefficient}" + "".join(f"*{atom.text}^{exponent}" for atom, exponent in monomial)
        for monomial, coefficient in axis.terms
    )


def _atom(operation: str, parts: tuple[Axis, ...]) -> Atom:
    return Atom(f"{operation}({','.join(_canonical(part) for part in parts)})", operation, parts)


def _atom_names(atom: Atom) -> frozenset[str]:
    if atom.operation == "name":
        return frozenset((atom.text,))
    if atom.operation.startswith("text:"):
        return frozenset()
    return frozenset(name for part in atom.parts for name in part.names())


def _times(left: Monomial, right: Monomial) -> Monomial:
    powers = dict(left)
    for atom, exponent in right:
        powers[atom] = powers.get(atom, 0) + exponent
    return tuple(sorted((atom, exponent) for atom, exponent in powers.items() if exponent))


def _invert(axis: Axis) -> Axis:
    """One over a single term."""
    ((monomial, coefficient),) = axis.terms
    return _axis({tuple((atom, -exponent) for atom, exponent in monomial): 1 / coefficient}, axis.order)


def _divide(axis: Axis, divisor: Axis) -> Axis | None:
    """The quotient of two polynomials if it is a polynomial, else None; by long division."""
    atoms = sorted({atom for part in (axis, divisor) for monomial, _ in part.terms for atom, _ in monomial})

    def degrees(monomial: Monomial) -> tuple[int, ...]:
        powers = dict(monomial)
        return tuple(powers.get(atom, 0) for atom in atoms)

    def leading(part: Axis) -> tuple[Monomial, Fraction]:
        return max(part.terms, key=lambda term: degrees(term[0]))

    rest, quotient = axis, Axis.number(0)
    divisor_lead = _axis(dict([leading(divisor)]), ())
    lowest = (
        [
            min(degrees(monomial)[k] for monomial, _ in axis.terms)
            - min(degrees(monomial)[k] for monomial, _ in divisor.terms)
            for k in range(len(atoms))
        ]
        if axis.terms
        else []
    )
    for _ in range(MAX_TERMS):
        if not rest.terms:
            return _axis(dict(quotient.terms), axis.order + divisor.order)
        step = _axis(dict([leading(rest)]), ()) * _invert(divisor_lead)
        if any(degree < bound for degree, bound in zip(degrees(step.terms[0][0]), lowest, strict=True)):
            return None
        quotient, rest = quotient + step, rest - step * divisor
    return None


def _substituted(atom: Atom, mapping: Mapping[str, Axis]) -> Axis:
    if atom.operation == "name":
        return mapping.get(atom.text, _of_atom(atom))
    return _apply(atom.operation, tuple(part.substitute(mapping) for part in atom.parts))


def _apply(operation: str, parts: tuple[Axis, ...]) -> Axis:
    """An operation that is no polynomial: computed on numbers, else an atom."""
    if operation == "*":
        return parts[0] * parts[1]
    if operation == "1/":
        return Axis.number(1) / parts[0]
    if operation == "**" and (exponent := parts[1].constant) is not None and exponent.denominator == 1:
        return parts[0] ** int(exponent) if abs(exponent) <= MAX_POWER else _of_atom(_atom(operation, parts))
    if operation in ("min", "max"):
        parts = tuple(sorted(dict.fromkeys(parts), key=_canonical))
        if len(parts) == 1:
            return parts[0]
    atom = _of_atom(_atom(operation, parts))
    if all(part.constant is not None for part in parts) and not operation.startswith("text:"):
        report = Reporter()
        found = statics.evaluate(atom.expr(), {}, report)
        if isinstance(found, Fraction) and not report.diagnostics:
            return Axis.number(found)
    return atom


def _read(expr: Expr) -> Axis:
    match expr:
        case Number():
            return Axis.number(expr.value)
        case Name():
            return Axis.named(expr.id)
        case Attribute():
            inner = _read(expr.value)
            return Axis.named(f"{inner}.{expr.name}")
        case Unary(op="-"):
            return -_read(expr.operand)
        case Unary():
            return _apply("not", (_read(expr.operand),))
        case Binary(op="+"):
            return _read(expr.left) + _read(expr.right)
        case Binary(op="-"):
            return _read(expr.left) - _read(expr.right)
        case Binary(op="*"):
            return _read(expr.left) * _read(expr.right)
        case Binary(op="/"):
            divisor = _read(expr.right)
            if not divisor.terms:
                raise ValueError("an axis divided by zero")
            return _read(expr.left) / divisor
        case Binary():
            return _apply(expr.op, (_read(expr.left), _read(expr.right)))
        case Call() if expr.function in statics.FUNCTIONS and not expr.keywords:
            return _apply(expr.function, tuple(_read(argument) for argument in expr.args))
        case Conditional():
            return _apply("if", (_read(expr.test), _read(expr.then), _read(expr.otherwise)))
        case Boolean():
            return _apply(expr.op, tuple(_read(part) for part in expr.values))
        case Compare():
            return _apply(" ".join(expr.ops), tuple(_read(operand) for operand in expr.operands))
        case Subscript():
            return _apply("[]", (_read(expr.value), _read(expr.index)))
        case Text():
            return _of_atom(Atom(f'"{expr.value}"', f"text:{expr.value}"))
        case Call() | ListExpr():
            raise ValueError("not arithmetic on sizes")
    raise ValueError("not arithmetic on sizes")
