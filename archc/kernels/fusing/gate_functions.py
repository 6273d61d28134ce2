"""Elementwise functions in Triton beside those that decoding knows, and the texts of all that kernels call."""

from __future__ import annotations

import re
from collections.abc import Iterable

from archc.graph.types import Node, Subgraph
from archc.kernels.triton_derivatives import PRODUCT, Slope, slopes
from archc.kernels.triton_functions import FUNCTIONS, HELPERS, TritonFunction
from archc.spec import expressions as ex

OWN: dict[str, TritonFunction] = {  # beside those that decoding knows
    "gelu": TritonFunction("gelu({0})"),
    "gelu_tanh": TritonFunction("gelu_tanh({0})"),
    "erf": TritonFunction("tl.erf({0})"),
    "sin": TritonFunction("tl.sin({0})"),
    "cos": TritonFunction("tl.cos({0})"),
    "sign": TritonFunction("sign({0})"),
    "inverse_softplus": TritonFunction("inverse_softplus({0})"),
    "pow": TritonFunction("power({0}, {1})"),
    "logaddexp": TritonFunction("logaddexp({0}, {1})"),
    "atan2": TritonFunction("atan2({0}, {1})"),
    "logical_and": TritonFunction("{0} & {1}", level=7, operand=8),
    "logical_or": TritonFunction("{0} | {1}", level=5, operand=7),
    "logical_not": TritonFunction("~{0}", level=10, operand=12),
    "equal": TritonFunction("{0} == {1}", level=4, operand=8),
    "not_equal": TritonFunction("{0} != {1}", level=4, operand=8),
    "fp32": TritonFunction("{0}"),
    "detach": TritonFunction("{0}"),
}
# Powers whose exponent is written as a number: exact where a logarithm would round, and cheap.
POWERS: dict[float, tuple[TritonFunction, Slope]] = {
    2.0: (TritonFunction("square({0})"), Slope("{d} * (2.0 * {0})", PRODUCT)),
    3.0: (TritonFunction("cube({0})"), Slope("{d} * (3.0 * square({0}))", PRODUCT)),
    4.0: (TritonFunction("square(square({0}))"), Slope("{d} * (4.0 * cube({0}))", PRODUCT)),
    0.5: (TritonFunction("tl.sqrt({0})"), Slope("{d} / (2.0 * {y})", PRODUCT)),
    -0.5: (TritonFunction("tl.rsqrt({0})"), Slope("-0.5 * {d} * {y} * {y} * {y}", PRODUCT)),
    -1.0: (TritonFunction("1.0 / {0}", level=9, operand=10), Slope("-{d} * {y} * {y}", PRODUCT)),
    -2.0: (TritonFunction("1.0 / square({0})", level=9), Slope("-2.0 * {d} * ({y} / {0})", PRODUCT)),
}
OWN_HELPERS: dict[str, str] = {
    "silu_slope": '''
@triton.jit
def silu_slope(x):
    """The derivative of x sigmoid(x)."""
    s = tl.sigmoid(x)
    return s * (1.0 + x * (1.0 - s))
''',
    "gelu": '''
@triton.jit
def gelu(x):
    """x times the normal distribution."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
''',
    "gelu_slope": '''
@triton.jit
def gelu_slope(x):
    """The derivative of x times the normal distribution."""
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
''',
    "gelu_tanh": '''
@triton.jit
def gelu_tanh(x):
    """x (1 + tanh(u / 2)) / 2 = x sigmoid(u)."""
    return x * tl.sigmoid(1.5957691216057308 * x * (1.0 + 0.044715 * x * x))
''',
    "gelu_tanh_slope": '''
@triton.jit
def gelu_tanh_slope(x):
    """The derivative of x sigmoid(u)."""
    u = 1.5957691216057308 * x * (1.0 + 0.044715 * x * x)
    s = tl.sigmoid(u)
    return s + x * s * tl.sigmoid(-u) * 1.5957691216057308 * (1.0 + 0.134145 * x * x)
''',
    "sign": '''
@triton.jit
def sign(x):
    """-1, 0 or 1."""
    return tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, 0.0))
''',
    "cube": '''
@triton.jit
def cube(x):
    """x ** 3."""
    return x * x * x
''',
    "inverse_softplus": '''
@triton.jit
def inverse_softplus(x):
    """y with softplus(y) = x, for x above 0."""
    return x + tl.log(-expm1(-x))
''',
    "inverse_softplus_slope": '''
@triton.jit
def inverse_softplus_slope(x):
    """The derivative of x + log(1 - exp(-x))."""
    v = expm1(-x)
    return 1.0 + (v + 1.0) / -v
''',
    "logaddexp": '''
@triton.jit
def logaddexp(a, b):
    """log(exp(a) + exp(b)) without overflow; equal operands may be infinite."""
    larger = tl.maximum(a, b) + log1p(tl.exp(-tl.abs(a - b)))
    return tl.where(a == b, a + 0.6931471805599453, larger)
''',
    "power": '''
@triton.jit
def power(x, y):
    """x ** y; of a negative x for whole y only. Its error grows with the logarithm of the result."""
    size = tl.where(tl.abs(x) == 1.0, 1.0, tl.exp2(y * tl.log2(tl.abs(x))))
    size = tl.where(y == 0.0, 1.0, size)
    below = tl.where(tl.floor(0.5 * y) * 2.0 == y, size, -size)  # of odd y
    below = tl.where(tl.floor(y) == y, below, float("nan"))
    return tl.where(x < 0.0, below, size)
''',
    "power_slope": '''
@triton.jit
def power_slope(x, y):
    """The derivative of x ** y by x, 0 for y = 0."""
    return tl.where(y == 0.0, 0.0, y * power(x, y - 1.0))
''',
    "power_growth": '''
@triton.jit
def power_growth(x, y, z):
    """The derivative of z = x ** y by y, 0 where x and z are."""
    growth = z * tl.log(x)
    return tl.where(x == 0.0, tl.where(y >= 0.0, 0.0, growth), growth)
''',
    "atan2": '''
@triton.jit
def atan2(y, x):
    """The angle of (x, y): a polynomial (Cephes, atanf) below tan(pi / 8), to which other angles are turned."""
    steep = tl.abs(y) > tl.abs(x)
    low, high = tl.where(steep, tl.abs(x), tl.abs(y)), tl.where(steep, tl.abs(y), tl.abs(x))
    ratio = tl.where(high == 0.0, 0.0, tl.where(low == high, 1.0, low / high))
    far = ratio > 0.4142135623730950
    u = tl.where(far, (ratio - 1.0) / (ratio + 1.0), ratio)
    v = u * u
    series = ((8.05374449538e-2 * v - 1.38776856032e-1) * v + 1.99777106478e-1) * v - 3.33329491539e-1
    angle = u + u * v * series + tl.where(far, 0.7853981633974483, 0.0)
    angle = tl.where(steep, 1.5707963267948966 - angle, angle)
    angle = tl.where(x.to(tl.int32, bitcast=True) < 0, 3.141592653589793 - angle, angle)  # -0.0, too
    return tl.where(y.to(tl.int32, bitcast=True) < 0, -angle, angle)
''',
    "atan2_slope": '''
@triton.jit
def atan2_slope(y, x):
    """The derivative of the angle by y, 0 at the origin."""
    slope = x / (x * x + y * y)
    return tl.where(x == 0.0, tl.where(y == 0.0, 0.0, slope), slope)
''',
}


def exponent_of(node: Node, graph: Subgraph) -> float | None:
    """The exponent of a power that is written as a number."""
    if node.attrs.get("function") != "pow":
        return None
    exponent, type_ = graph.nodes[node.inputs[1].node], graph.type_of(node.inputs[1])
    if exponent.op != "static" or type_.low != type_.high:
        return None
    named = any(isinstance(part, (ex.Name, ex.Attribute)) for part in exponent.attrs["expr"].walk())
    return None if named else type_.low


def form_of(node: Node, graph: Subgraph) -> TritonFunction | None:
    """How an elementwise node prints; None where it stays with torch."""
    power = POWERS.get(exponent_of(node, graph) or 0.0)
    function = node.attrs["function"]
    return power[0] if power else FUNCTIONS.get(function) or OWN.get(function)


def slopes_of(node: Node, graph: Subgraph) -> tuple[Slope | None, ...] | None:
    """What reaches each operand of an elementwise node; None where there is no rule."""
    power = POWERS.get(exponent_of(node, graph) or 0.0)
    static = [graph.type_of(ref).rate == "static" for ref in node.inputs]
    return (power[1], None) if power else slopes(node.attrs["function"], static)


def helpers_of(lines: Iterable[str]) -> list[str]:
    """The texts of the small functions that lines call, each after those that it calls."""
    known = HELPERS | OWN_HELPERS
    used = "\n".join(lines)
    needed = {name for name in known if re.search(rf"\b(?<!\.){name}\(", used)}
    while True:
        inner = {n for n in known for name in needed if re.search(rf"\b(?<!\.){n}\(", _body(known[name]))}
        if inner <= needed:
            return [known[name].strip() for name in known if name in needed]
        needed |= inner


def _body(function: str) -> str:
    return function.split('"""')[-1]
