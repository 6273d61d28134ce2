"""Expressions as text of the language: what comes out parses to the same tree."""

from __future__ import annotations

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

# How tightly each form binds; an operand that binds less than its place asks for stands in parentheses.
_CHOICE, _OR, _AND, _NOT, _COMPARE, _SUM, _PRODUCT, _SIGN, _POWER, _ATOM = range(10)
_BINARY = {"+": _SUM, "-": _SUM, "*": _PRODUCT, "/": _PRODUCT, "//": _PRODUCT, "%": _PRODUCT, "**": _POWER}


def unparse(expr: Expr) -> str:
    """The text of an expression, with no more parentheses than it needs. Numbers must be decimal literals."""
    return _text(expr, _CHOICE)


def _text(expr: Expr, place: int) -> str:
    text, strength = _form(expr)
    return f"({text})" if strength < place else text


def _form(expr: Expr) -> tuple[str, int]:
    match expr:
        case Number(value=value):
            return decimal(value), _ATOM
        case Text(value=value):
            return f'"{value}"', _ATOM
        case Name(id=name):
            return name, _ATOM
        case Attribute(value=value, name=name):
            return f"{_text(value, _ATOM)}.{name}", _ATOM
        case Subscript(value=value, index=index):
            return f"{_text(value, _ATOM)}[{_text(index, _CHOICE)}]", _ATOM
        case ListExpr(items=items):
            return f"[{', '.join(_text(item, _CHOICE) for item in items)}]", _ATOM
        case Call(function=function, args=args, keywords=keywords):
            given = [_text(argument, _CHOICE) for argument in args]
            given += [f"{keyword.name}={_text(keyword.value, _CHOICE)}" for keyword in keywords]
            return f"{function}({', '.join(given)})", _ATOM
        case Unary(op="not", operand=operand):
            return f"not {_text(operand, _NOT)}", _NOT
        case Unary(operand=operand):
            return f"-{_text(operand, _SIGN)}", _SIGN
        case Binary(op="**", left=left, right=right):
            return f"{_text(left, _ATOM)} ** {_text(right, _SIGN)}", _POWER
        case Binary(op=op, left=left, right=right):
            strength = _BINARY[op]
            return f"{_text(left, strength)} {op} {_text(right, strength + 1)}", strength
        case Boolean(op=op, values=values):
            strength = _AND if op == "and" else _OR
            return f" {op} ".join(_text(value, strength + 1) for value in values), strength
        case Compare(ops=ops, operands=operands):
            text = _text(operands[0], _SUM)
            for op, operand in zip(ops, operands[1:], strict=True):
                text += f" {op} {_text(operand, _SUM)}"
            return text, _COMPARE
        case Conditional(test=test, then=then, otherwise=otherwise):
            return f"{_text(then, _OR)} if {_text(test, _OR)} else {_text(otherwise, _CHOICE)}", _CHOICE
    raise TypeError(f"no text for {type(expr).__name__}")


def decimal(value: Fraction) -> str:
    """The shortest decimal literal of a number that came from one."""
    if value.denominator == 1:
        digits = str(value.numerator)
        zeros = len(digits) - len(digits.rstrip("0"))
        return digits if len(digits) <= 21 else f"{digits[: -zeros or None]}e{zeros}"
    shift = 0
    rest = value.denominator
    while rest % 10 == 0:
        rest, shift = rest // 10, shift + 1
    for prime in (2, 5):
        while rest % prime == 0:
            rest, shift = rest // prime, shift + 1
    if rest != 1:
        raise ValueError(f"{value} is no decimal number")
    digits = str(abs(value.numerator) * 10**shift // value.denominator)
    sign = "-" if value < 0 else ""
    if shift > 30:
        return f"{sign}{digits}e-{shift}"
    digits = digits.rjust(shift + 1, "0")
    return f"{sign}{digits[:-shift]}.{digits[-shift:]}"
