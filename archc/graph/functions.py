"""The elementwise functions: how each prints, what it keeps of its operands' bounds, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from archc.graph.types import ValueType

INF = float("inf")
Interval = tuple[float, float]
ANY: Interval = (-INF, INF)


@dataclass(frozen=True, slots=True)
class Function:
    """One elementwise function.

    `torch`: a format over the printed operands, `{0}`, `{1}`; `level` its precedence as a Python expression.
    `bounds`: the interval of the result from those of the operands. `static`: can be computed at build time.
    `flops`: operations an element.
    """

    torch: str
    bounds: Callable[..., Interval]
    least: int = 1
    most: int = 1
    static: bool = False
    flops: int = 1
    level: int = 12
    boolean: bool = False


def increasing(function: Callable[[float], float], limits: Interval) -> Callable[[Interval], Interval]:
    """Bounds of an increasing function; `limits` are its values at minus and plus infinity."""

    def at(value: float, limit: float) -> float:
        if math.isinf(value):
            return limit
        try:
            return function(value)
        except (OverflowError, ValueError):
            return limit

    return lambda a: (at(a[0], limits[0]), at(a[1], limits[1]))


def _product(a: Interval, b: Interval) -> Interval:
    corners = [0.0 if 0.0 in (x, y) else x * y for x in a for y in b]
    return min(corners), max(corners)


def _quotient(a: Interval, b: Interval) -> Interval:
    if b[0] <= 0 <= b[1]:
        if b[0] == 0:
            return (0.0 if a[0] >= 0 else -INF), (0.0 if a[1] <= 0 else INF)
        return ANY
    return _product(a, (1 / b[1] if not math.isinf(b[1]) else 0.0, 1 / b[0] if not math.isinf(b[0]) else 0.0))


def _power(a: Interval, b: Interval) -> Interval:
    if a[0] >= 0 and b[0] == b[1] and b[0] > 0:
        return a[0] ** b[0], (INF if math.isinf(a[1]) else a[1] ** b[0])
    if b[0] == b[1] and b[0] % 2 == 0:
        return 0.0, INF
    return (0.0, INF) if a[0] >= 0 else ANY


def _hull(*intervals: Interval) -> Interval:
    return min(i[0] for i in intervals), max(i[1] for i in intervals)


def _square(a: Interval) -> Interval:
    return 0.0, max(a[0] * a[0], a[1] * a[1])


def _absolute(a: Interval) -> Interval:
    return (0.0 if a[0] <= 0 <= a[1] else min(abs(a[0]), abs(a[1]))), max(abs(a[0]), abs(a[1]))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -INF


def _logaddexp(a: Interval, b: Interval) -> Interval:
    high, low = max(a[1], b[1]), min(a[1], b[1])
    top = high if math.isinf(high) or math.isinf(low) else high + math.log1p(math.exp(low - high))
    return max(a[0], b[0]), 0.0 if abs(top) < 1e-12 else top  # log(p + (1 - p)) rounds to either side of 0


def _clip(a: Interval, low: Interval, high: Interval) -> Interval:
    return min(max(a[0], low[0]), high[0]), min(max(a[1], low[1]), high[1])


FUNCTIONS: dict[str, Function] = {
    "exp": Function("torch.exp({0})", increasing(math.exp, (0.0, INF)), static=True, flops=4),
    "log": Function("torch.log({0})", increasing(_log, (-INF, INF)), static=True, flops=4),
    "log1p": Function("torch.log1p({0})", increasing(math.log1p, (-INF, INF)), flops=4),
    "expm1": Function("torch.expm1({0})", increasing(math.expm1, (-1.0, INF)), flops=4),
    "sqrt": Function("torch.sqrt({0})", increasing(lambda x: math.sqrt(max(x, 0)), (0.0, INF)), static=True),
    "rsqrt": Function("torch.rsqrt({0})", lambda a: (0.0, INF)),
    "abs": Function("torch.abs({0})", _absolute, static=True),
    "sign": Function("torch.sign({0})", lambda a: (-1.0, 1.0)),
    "tanh": Function("torch.tanh({0})", increasing(math.tanh, (-1.0, 1.0)), flops=6),
    "sigmoid": Function("torch.sigmoid({0})", increasing(_sigmoid, (0.0, 1.0)), flops=6),
    "logsigmoid": Function("F.logsigmoid({0})", increasing(lambda x: -_softplus(-x), (-INF, 0.0)), flops=8),
    "softplus": Function("F.softplus({0})", increasing(_softplus, (0.0, INF)), flops=8),
    "relu": Function("F.relu({0})", lambda a: (max(a[0], 0.0), max(a[1], 0.0))),
    "silu": Function("F.silu({0})", lambda a: (-0.2785 if a[0] < 0 else 0.0, max(a[1], 0.0)), flops=7),
    "gelu": Function("F.gelu({0})", lambda a: (-0.17 if a[0] < 0 else 0.0, max(a[1], 0.0)), flops=8),
    "gelu_tanh": Function(
        'F.gelu({0}, approximate="tanh")', lambda a: (-0.1701 if a[0] < 0 else 0.0, max(a[1], 0.0)), flops=10
    ),
    "elu": Function("F.elu({0})", increasing(lambda x: x if x > 0 else math.expm1(x), (-1.0, INF)), flops=5),
    "inverse_softplus": Function("inverse_softplus({0})", lambda a: ANY, flops=8),
    "erf": Function("torch.erf({0})", increasing(math.erf, (-1.0, 1.0)), flops=8),
    "sin": Function("torch.sin({0})", lambda a: (-1.0, 1.0), flops=4),
    "cos": Function("torch.cos({0})", lambda a: (-1.0, 1.0), flops=4),
    "square": Function("{0} ** 2", _square, level=11),
    "reciprocal": Function("torch.reciprocal({0})", lambda a: _quotient((1.0, 1.0), a)),
    "neg": Function("-{0}", lambda a: (-a[1], -a[0]), level=10),
    "add": Function("{0} + {1}", lambda a, b: (a[0] + b[0], a[1] + b[1]), 2, 2, level=8),
    "sub": Function("{0} - {1}", lambda a, b: (a[0] - b[1], a[1] - b[0]), 2, 2, level=8),
    "mul": Function("{0} * {1}", _product, 2, 2, level=9),
    "div": Function("{0} / {1}", _quotient, 2, 2, level=9),
    "floordiv": Function("{0} // {1}", lambda a, b: ANY, 2, 2, level=9),
    "mod": Function("{0} % {1}", lambda a, b: ANY, 2, 2, level=9),
    "pow": Function("{0} ** {1}", _power, 2, 2, level=11, flops=8),
    "min": Function(
        "torch.minimum({0}, {1})", lambda a, b: (min(a[0], b[0]), min(a[1], b[1])), 2, 2, static=True
    ),
    "max": Function(
        "torch.maximum({0}, {1})", lambda a, b: (max(a[0], b[0]), max(a[1], b[1])), 2, 2, static=True
    ),
    "logaddexp": Function("torch.logaddexp({0}, {1})", _logaddexp, 2, 2, flops=10),
    "clip": Function("torch.clamp({0}, {1}, {2})", _clip, 3, 3, flops=2),
    "where": Function("torch.where({0}, {1}, {2})", lambda c, a, b: _hull(a, b), 3, 3),
    "atan2": Function("torch.atan2({0}, {1})", lambda a, b: (-math.pi, math.pi), 2, 2, flops=8),
    "detach": Function("{0}.detach()", lambda a: a, flops=0),
    "fp32": Function("wide({0})", lambda a: a, flops=0),
    "less": Function("{0} < {1}", lambda a, b: (0.0, 1.0), 2, 2, level=4, boolean=True),
    "less_equal": Function("{0} <= {1}", lambda a, b: (0.0, 1.0), 2, 2, level=4, boolean=True),
    "greater": Function("{0} > {1}", lambda a, b: (0.0, 1.0), 2, 2, level=4, boolean=True),
    "greater_equal": Function("{0} >= {1}", lambda a, b: (0.0, 1.0), 2, 2, level=4, boolean=True),
    "equal": Function("{0} == {1}", lambda a, b: (0.0, 1.0), 2, 2, level=4, boolean=True),
    "not_equal": Function("{0} != {1}", lambda a, b: (0.0, 1.0), 2, 2, level=4, boolean=True),
    "logical_and": Function("{0} & {1}", lambda a, b: (0.0, 1.0), 2, 2, level=7, boolean=True),
    "logical_or": Function("{0} | {1}", lambda a, b: (0.0, 1.0), 2, 2, level=5, boolean=True),
    "logical_not": Function("~{0}", lambda a: (0.0, 1.0), level=10, boolean=True),
}

OPERATORS = {"+": "add", "-": "sub", "*": "mul", "/": "div", "//": "floordiv", "%": "mod", "**": "pow"}
COMPARISONS = {
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
    "==": "equal",
    "!=": "not_equal",
}
RATE_ORDER = ("static", "model", "sequence", "token")


def infer(name: str, types: Sequence[ValueType]) -> ValueType:
    """The type of an elementwise result: the widest operand's axes, the fastest rate, the function's bounds."""
    widest = max(types, key=lambda t: len(t.axes))
    block = next((t for t in types if t.rate == "block"), None)
    rate = "block" if block else max((t.rate for t in types), key=RATE_ORDER.index)
    rate = "model" if rate == "static" else rate
    try:
        low, high = FUNCTIONS[name].bounds(*((t.low, t.high) for t in types))
    except (OverflowError, ValueError, ZeroDivisionError):
        low, high = ANY
    if math.isnan(low) or math.isnan(high):
        low, high = ANY
    absent = any(t.absent for t in types) and not FUNCTIONS[name].boolean
    return ValueType(widest.axes, rate, low, high, block.block if block else None, absent)
