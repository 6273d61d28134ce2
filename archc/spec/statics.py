"""Evaluates static expressions exactly: rational numbers, words and conditions."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from fractions import Fraction

from archc.spec import exact
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
from archc.spec.python_source import python_names, to_python
from archc.spec.spec import Static

__all__ = ["FUNCTIONS", "Failed", "evaluate", "free_names", "is_true", "python_names", "show", "to_python"]

MAX_BITS = 4_096  # of numerators and denominators, about 1,200 digits

WORDS: Mapping[str, Static] = {"true": True, "false": False, "none": None}
Lookup = Mapping[str, Static] | Callable[[str], Static]

# The functions of static arithmetic, with the number of their arguments (None: two or more).
FUNCTIONS: Mapping[str, int | None] = {
    "ceil": 1,
    "floor": 1,
    "round": 1,
    "round_up": 2,
    "round_down": 2,
    "min": None,
    "max": None,
    "abs": 1,
    "sqrt": 1,
    "exp": 1,
    "log": 1,
}


class Failed(Exception):
    """The expression has no value and the reason is reported. A lookup may raise it as well."""


def evaluate(expr: Expr, names: Lookup, report: Reporter) -> Static:
    """The exact value of a static expression; None after an error has been reported (`none` is None as well).

    `names` gives the values of names: a mapping, or a function that raises KeyError for a name it does not
    know. Numbers are rational; `round` goes to the even neighbour from halfway; `sqrt`, `exp`, `log` and
    powers give the exact result where it is rational and else the double nearest to it. Numerators and
    denominators have at most 4,096 bits, so that no expression takes long.
    """
    try:
        return _Evaluator(names, report).value(expr)
    except Failed:
        return None


def free_names(expr: Expr) -> frozenset[str]:
    """The names that an expression looks up: not its functions, nor `true`, `false` and `none`."""
    return frozenset(node.id for node in expr.walk() if isinstance(node, Name) and node.id not in WORDS)


def is_true(value: Static) -> bool:
    """Whether a condition holds: `none` (also as a choice), `false`, zero, the empty text and list do not."""
    return bool(value) and value != "none"


class _Evaluator:
    def __init__(self, names: Lookup, report: Reporter) -> None:
        self.names = names
        self.report = report

    def fail(self, code: str, message: str, expr: Expr, *, note: str = "", help: str = "") -> Failed:
        self.report.error(code, message, expr.span, note=note, help=help)
        return Failed()

    def value(self, expr: Expr) -> Static:
        match expr:
            case Number():
                return expr.value
            case Text():
                return expr.value
            case Name():
                return self._name(expr)
            case Attribute():
                return self._attribute(expr)
            case Subscript():
                return self._subscript(expr)
            case ListExpr():
                return tuple(self.value(item) for item in expr.items)
            case Unary(op="not"):
                return not self._condition(expr.operand)
            case Unary():
                return -self._number(expr.operand)
            case Binary():
                return self._binary(expr)
            case Boolean():
                return self._boolean(expr)
            case Compare():
                return self._compare(expr)
            case Conditional():
                return self.value(expr.then if self._condition(expr.test) else expr.otherwise)
            case Call():
                return self._call(expr)
        raise TypeError(f"no node of the language: {type(expr).__name__}")

    def _name(self, expr: Name) -> Static:
        if expr.id in WORDS:
            return WORDS[expr.id]
        try:
            return self.names(expr.id) if callable(self.names) else self.names[expr.id]
        except KeyError:
            known = [] if callable(self.names) else list(self.names)
            near = difflib.get_close_matches(expr.id, known, 1)
            raise self.fail(
                "E160",
                f"`{expr.id}` is not a static name here",
                expr,
                note="" if near else "parameters, sizes and the place in the stack are static",
                help=f"did you mean `{near[0]}`?" if near else "",
            ) from None

    def _attribute(self, expr: Attribute) -> Static:
        whole = self.value(expr.value)
        if not isinstance(whole, Mapping):
            raise self.fail(
                "E161", f"`.{expr.name}` reads an entry of a mapping, and this is {show(whole)}", expr.value
            )
        if expr.name not in whole:
            near = difflib.get_close_matches(expr.name, list(whole), 1)
            raise self.fail(
                "E166",
                f"there is no entry `{expr.name}`",
                expr,
                help=f"did you mean `{near[0]}`?"
                if near
                else f"entries: {', '.join(f'`{key}`' for key in whole)}",
            )
        return whole[expr.name]

    def _subscript(self, expr: Subscript) -> Static:
        whole, index = self.value(expr.value), self._number(expr.index)
        if not isinstance(whole, tuple):
            raise self.fail(
                "E161", f"`[...]` takes an entry of a list, and this is {show(whole)}", expr.value
            )
        if isinstance(index, float) or index.denominator != 1 or not 0 <= index < len(whole):
            count = f"the list has {len(whole)} entries" + (f", 0 to {len(whole) - 1}" if whole else "")
            raise self.fail("E166", f"there is no entry {show(index)}", expr.index, note=count)
        return whole[int(index)]

    def _number(self, expr: Expr) -> Fraction | float:
        found = self.value(expr)
        if isinstance(found, bool) or not isinstance(found, Fraction | float):
            raise self.fail(
                "E161",
                f"a number is needed here, and this is {show(found)}",
                expr,
                help="a choice gives numbers: `2 if condition else 1`" if isinstance(found, bool) else "",
            )
        return found

    def _finite(self, expr: Expr) -> Fraction:
        found = self._number(expr)
        if isinstance(found, float):
            raise self.fail(
                "E165",
                f"{show(found)} has no exact arithmetic here",
                expr,
                note="infinities are only compared, and passed to `min`, `max` and operations",
            )
        return found

    def _condition(self, expr: Expr) -> bool:
        found = self.value(expr)
        if isinstance(found, str):
            raise self.fail(
                "E161",
                f"a condition is needed here, and this is the word {show(found)}",
                expr,
                help=f'compare it: `... == "{found}"`',
            )
        return is_true(found)

    def _boolean(self, expr: Boolean) -> bool:
        for part in expr.values:
            if self._condition(part) is (expr.op == "or"):
                return expr.op == "or"
        return expr.op == "and"

    def _compare(self, expr: Compare) -> bool:
        left, before = self.value(expr.operands[0]), expr.operands[0]
        for op, operand in zip(expr.ops, expr.operands[1:], strict=True):
            right = self.value(operand)
            if not self._holds(op, left, right, before, operand):
                return False
            left, before = right, operand
        return True

    def _holds(self, op: str, left: Static, right: Static, before: Expr, after: Expr) -> bool:
        if op not in ("==", "!="):
            for side, expr in ((left, before), (right, after)):
                if isinstance(side, bool) or not isinstance(side, Fraction | float):
                    raise self.fail("E161", f"`{op}` compares numbers, and this is {show(side)}", expr)
            assert isinstance(left, Fraction | float) and isinstance(right, Fraction | float)
            return {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[op]
        if left is not None and right is not None and _kind(left) != _kind(right):
            raise self.fail(
                "E161",
                f"{show(left)} and {show(right)} are never equal",
                after,
                note="one is a " + _kind(left) + ", the other a " + _kind(right),
            )
        return (left == right) is (op == "==")

    def _binary(self, expr: Binary) -> Fraction:
        left, right = self._finite(expr.left), self._finite(expr.right)
        if expr.op in ("/", "//", "%") and right == 0:
            raise self.fail("E162", "division by zero", expr.right)
        if expr.op == "**":
            return self._power(left, right, expr)
        result = {
            "+": lambda: left + right,
            "-": lambda: left - right,
            "*": lambda: left * right,
            "/": lambda: left / right,
            "//": lambda: Fraction(left // right),
            "%": lambda: left % right,
        }[expr.op]()
        return self._bounded(result, expr)

    def _power(self, base: Fraction, exponent: Fraction, expr: Binary) -> Fraction:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length()) - 1
        if exponent.denominator == 1 and abs(base) not in (0, 1) and max(bits, 1) * abs(exponent) > MAX_BITS:
            raise self.fail("E163", "the result has too many digits", expr, note=f"at most {MAX_BITS:,} bits")
        if abs(exponent.numerator) > 10**9:
            exponent = self._bounded(exponent, expr)
            if abs(base) in (0, 1) and exponent > 0 and exponent.denominator == 1:
                return base if exponent % 2 else abs(base)
        try:
            return self._bounded(exact.power(base, exponent), expr)
        except ZeroDivisionError:
            raise self.fail("E162", "a negative power of zero", expr) from None
        except ValueError:
            raise self.fail("E165", f"{show(base)} has no root", expr.left, note="numbers are real") from None
        except OverflowError:
            raise self.fail("E163", "the result is larger than any number of 64 bits", expr) from None

    def _bounded(self, value: Fraction, expr: Expr) -> Fraction:
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
            raise self.fail("E163", "the result has too many digits", expr, note=f"at most {MAX_BITS:,} bits")
        return value

    def _call(self, expr: Call) -> Static:
        name = expr.function
        if name not in FUNCTIONS:
            near = difflib.get_close_matches(name, FUNCTIONS, 1)
            raise self.fail(
                "E164",
                f"`{name}` is not a function of static arithmetic",
                expr,
                note="functions: " + ", ".join(f"`{each}`" for each in FUNCTIONS),
                help=f"did you mean `{near[0]}`?" if near else "",
            )
        count = FUNCTIONS[name]
        if expr.keywords or (len(expr.args) != count if count is not None else len(expr.args) < 2):
            needed = "two numbers or more" if count is None else "one number" if count == 1 else "two numbers"
            raise self.fail("E164", f"`{name}` takes {needed}", expr)
        if name in ("min", "max", "abs"):
            numbers = [self._number(argument) for argument in expr.args]
            if name == "abs":
                return -numbers[0] if numbers[0] < 0 else numbers[0]
            chosen = numbers[0]
            for number in numbers[1:]:
                chosen = number if (number < chosen) is (name == "min") and number != chosen else chosen
            return chosen
        return self._bounded(
            self._apply(name, [self._finite(argument) for argument in expr.args], expr), expr
        )

    def _apply(self, name: str, values: list[Fraction], expr: Call) -> Fraction:
        x = values[0]
        if name == "round":
            return Fraction(round(x))
        if name in ("ceil", "floor"):
            return Fraction(math.ceil(x) if name == "ceil" else math.floor(x))
        if name in ("round_up", "round_down"):
            if values[1] <= 0:
                raise self.fail(
                    "E165", f"`{name}` needs a positive multiple, not {show(values[1])}", expr.args[1]
                )
            return (exact.round_up if name == "round_up" else exact.round_down)(x, values[1])
        if (name == "sqrt" and x < 0) or (name == "log" and x <= 0):
            raise self.fail("E165", f"`{name}` of {show(x)} is not a real number", expr.args[0])
        try:
            return {"sqrt": exact.square_root, "exp": exact.exponential, "log": exact.logarithm}[name](x)
        except OverflowError:
            raise self.fail("E163", "the result is larger than any number of 64 bits", expr) from None


def _kind(value: Static) -> str:
    if isinstance(value, bool):
        return "truth value"
    if isinstance(value, Fraction | float):
        return "number"
    return "word" if isinstance(value, str) else "list" if isinstance(value, tuple) else "mapping"


def show(value: Static) -> str:
    """How an error names a value: as a spec would write it, shortened."""
    if value is None or isinstance(value, bool):
        text = {None: "none", True: "true", False: "false"}[value]
    elif isinstance(value, float):
        text = ".inf" if value > 0 else "-.inf"
    elif isinstance(value, Fraction):
        text = (
            str(value)
            if max(value.numerator.bit_length(), value.denominator.bit_length()) < 200
            else "a long number"
        )
    elif isinstance(value, str):
        text = f'"{value}"'
    elif isinstance(value, tuple):
        return "a list"
    else:
        return "a mapping"
    return f"`{text}`" if len(text) <= 60 else f"`{text[:57]}...`"
