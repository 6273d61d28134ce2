"""Writes static expressions as Python source that computes the same exact values."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

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

# How tightly each form binds in Python, loosest first.
_CONDITIONAL, _OR, _AND, _NOT, _COMPARE, _SUM, _PRODUCT, _SIGN, _POWER, _ATOM = range(10)
_BINDS = {"+": _SUM, "-": _SUM, "*": _PRODUCT, "//": _PRODUCT, "%": _PRODUCT}
_WORDS = {"true": "True", "false": "False", "none": "None"}
_FUNCTIONS = {
    "ceil": "math.ceil",
    "floor": "math.floor",
    "round": "round",
    "min": "min",
    "max": "max",
    "abs": "abs",
    "round_up": "round_up",
    "round_down": "round_down",
    "sqrt": "square_root",
    "exp": "exponential",
    "log": "logarithm",
}


def to_python(expr: Expr, rename: Callable[[str], str]) -> str:
    """The expression as Python source, with the fewest parentheses.

    The source computes what `archc.spec.statics.evaluate` does when the names hold ints, Fractions, bools,
    strings, None, tuples or infinite floats. `rename` gives the source of a name; entries of mappings are
    asked for whole, as "rope.theta". `python_names` says what the source needs to have imported.
    """
    return _write(expr, rename)[0]


def python_names(expr: Expr) -> frozenset[str]:
    """What the source of `to_python` uses: "Fraction", "math", functions of `archc/spec/exact.py`."""
    used: set[str] = set()
    for node in expr.walk():
        if (
            isinstance(node, Number)
            and node.value.denominator != 1
            or isinstance(node, Binary)
            and node.op == "/"
        ):
            used.add("Fraction")
        elif isinstance(node, Binary) and node.op == "**" and not _plain_power(node):
            used.add("power")
        elif isinstance(node, Call) and node.function in _FUNCTIONS:
            word = _FUNCTIONS[node.function]
            used |= {"math"} if word.startswith("math.") else {word} if word != node.function else set()
            used |= {word} if word in ("round_up", "round_down") else set()
    return frozenset(used)


def _plain_power(expr: Binary) -> bool:
    """Whether `**` of Python is exact here: the exponent is a whole number that is not negative."""
    right = expr.right
    return isinstance(right, Number) and right.value.denominator == 1 and right.value >= 0


def _write(expr: Expr, rename: Callable[[str], str]) -> tuple[str, int]:
    """Source and how tightly it binds."""

    def inside(part: Expr, least: int) -> str:
        text, binds = _write(part, rename)
        return text if binds >= least else f"({text})"

    def joined(part: Boolean) -> tuple[str, int]:
        level = _AND if part.op == "and" else _OR
        return f" {part.op} ".join(test(value, level + 1) for value in part.values), level

    def test(part: Expr, least: int) -> str:
        """A part of which only the truth counts."""
        if not isinstance(part, Boolean):
            return inside(part, least)
        text, binds = joined(part)
        return text if binds >= least else f"({text})"

    match expr:
        case Number():
            return _number(expr.value)
        case Text():
            return f'"{expr.value}"', _ATOM
        case Name():
            return _WORDS.get(expr.id) or rename(expr.id), _ATOM
        case Attribute():
            return rename(_dotted(expr)), _ATOM
        case Subscript():
            return f"{inside(expr.value, _ATOM)}[{inside(expr.index, _CONDITIONAL)}]", _ATOM
        case ListExpr():
            items = ", ".join(inside(item, _CONDITIONAL) for item in expr.items)
            return f"({items},)" if len(expr.items) == 1 else f"({items})", _ATOM
        case Unary(op="not"):
            return f"not {test(expr.operand, _NOT)}", _NOT
        case Unary():
            return f"-{inside(expr.operand, _SIGN)}", _SIGN
        case Boolean():
            parts, level = joined(expr)
            return (
                (parts, level) if all(_is_truth(part) for part in expr.values) else (f"bool({parts})", _ATOM)
            )
        case Compare():
            text = inside(expr.operands[0], _COMPARE + 1)
            for op, before, operand in zip(expr.ops, expr.operands, expr.operands[1:], strict=False):
                none = _is_none(before) or _is_none(operand)
                python_op = {"==": "is", "!=": "is not"}.get(op, op) if none else op
                text += f" {python_op} {inside(operand, _COMPARE + 1)}"
            return text, _COMPARE
        case Conditional():
            return (
                f"{inside(expr.then, _OR)} if {test(expr.test, _OR)} else "
                f"{inside(expr.otherwise, _CONDITIONAL)}"
            ), _CONDITIONAL
        case Binary():
            return _binary(expr, inside)
        case Call() if expr.function in _FUNCTIONS:
            arguments = ", ".join(inside(argument, _CONDITIONAL) for argument in expr.args)
            return f"{_FUNCTIONS[expr.function]}({arguments})", _ATOM
    raise ValueError(f"not a static expression: {type(expr).__name__}")


def _binary(expr: Binary, inside: Callable[[Expr, int], str]) -> tuple[str, int]:
    if expr.op == "/":
        return f"Fraction({inside(expr.left, _CONDITIONAL)}, {inside(expr.right, _CONDITIONAL)})", _ATOM
    if expr.op == "**":
        if _plain_power(expr):
            return f"{inside(expr.left, _ATOM)} ** {inside(expr.right, _SIGN)}", _POWER
        return f"power({inside(expr.left, _CONDITIONAL)}, {inside(expr.right, _CONDITIONAL)})", _ATOM
    level = _BINDS[expr.op]
    return f"{inside(expr.left, level)} {expr.op} {inside(expr.right, level + 1)}", level


def _number(value: Fraction) -> tuple[str, int]:
    if value.denominator != 1:
        return f"Fraction({value.numerator}, {value.denominator})", _ATOM
    return str(value), _ATOM if value >= 0 else _SIGN


def _is_truth(expr: Expr) -> bool:
    return (
        isinstance(expr, Compare | Boolean)
        or isinstance(expr, Unary)
        and expr.op == "not"
        or isinstance(expr, Name)
        and expr.id in ("true", "false")
    )


def _is_none(expr: Expr) -> bool:
    return isinstance(expr, Name) and expr.id == "none"


def _dotted(expr: Expr) -> str:
    if isinstance(expr, Attribute):
        return f"{_dotted(expr.value)}.{expr.name}"
    if isinstance(expr, Name):
        return expr.id
    raise ValueError("only a name has entries")
