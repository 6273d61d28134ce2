"""How the elementwise functions of the language print in Triton, and the small functions that kernels share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Zeros = tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class TritonFunction:
    """A format over printed operands that bind at least as tightly as `operand`; `level` is the result's precedence.

    `zero`: whether the result is zero where the operands said so are.
    """

    triton: str
    zero: Callable[[Zeros], bool] = lambda zeros: False
    level: int = 12
    operand: int = 0


def _first(zeros: Zeros) -> bool:
    return zeros[0]


FUNCTIONS: dict[str, TritonFunction] = {
    "exp": TritonFunction("tl.exp({0})"),
    "log": TritonFunction("tl.log({0})"),
    "log1p": TritonFunction("log1p({0})", _first),
    "expm1": TritonFunction("expm1({0})", _first),
    "sqrt": TritonFunction("tl.sqrt({0})", _first),
    "rsqrt": TritonFunction("tl.rsqrt({0})"),
    "abs": TritonFunction("tl.abs({0})", _first),
    "tanh": TritonFunction("tanh({0})", _first),
    "sigmoid": TritonFunction("tl.sigmoid({0})"),
    "logsigmoid": TritonFunction("-softplus(-{0})", level=10, operand=10),
    "softplus": TritonFunction("softplus({0})"),
    "relu": TritonFunction("tl.maximum({0}, 0.0)", _first),
    "silu": TritonFunction("silu({0})", _first),
    "elu": TritonFunction("elu({0})", _first),
    "square": TritonFunction("square({0})", _first),
    "reciprocal": TritonFunction("1.0 / {0}", level=9, operand=10),
    "neg": TritonFunction("-{0}", _first, level=10, operand=10),
    "add": TritonFunction("{0} + {1}", all, level=8, operand=9),
    "sub": TritonFunction("{0} - {1}", all, level=8, operand=9),
    "mul": TritonFunction("{0} * {1}", any, level=9, operand=10),
    "div": TritonFunction("{0} / {1}", level=9, operand=10),
    "min": TritonFunction("tl.minimum({0}, {1})", all),
    "max": TritonFunction("tl.maximum({0}, {1})", all),
    "clip": TritonFunction("tl.minimum(tl.maximum({0}, {1}), {2})"),
    "where": TritonFunction("tl.where({0}, {1}, {2})", lambda zeros: zeros[1] and zeros[2]),
    "less": TritonFunction("{0} < {1}", level=4, operand=8),
    "less_equal": TritonFunction("{0} <= {1}", level=4, operand=8),
    "greater": TritonFunction("{0} > {1}", level=4, operand=8),
    "greater_equal": TritonFunction("{0} >= {1}", level=4, operand=8),
}

# In the order in which they stand in a file: each calls only those before it.
HELPERS: dict[str, str] = {
    "log1p": '''
@triton.jit
def log1p(x):
    """log(1 + x), exact where 1 + x rounds (Goldberg 1991, theorem 4)."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, x * tl.log(u) / tl.where(u == 1.0, 1.0, u - 1.0))
''',
    "expm1": '''
@triton.jit
def expm1(x):
    """exp(x) - 1, exact where exp(x) is near 1; large arguments are left to exp."""
    u = tl.exp(x)
    near = tl.abs(x) < 1.0
    v = tl.where((u == 1.0) | (near == 0), 2.0, u)
    return tl.where(near, tl.where(u == 1.0, x, (v - 1.0) * x / tl.log(v)), u - 1.0)
''',
    "tanh": '''
@triton.jit
def tanh(x):
    """tanh(x) without overflow."""
    u = tl.exp(-2.0 * tl.abs(x))
    y = (1.0 - u) / (1.0 + u)
    return tl.where(x < 0.0, -y, y)
''',
    "softplus": '''
@triton.jit
def softplus(x):
    """log(1 + exp(x)) without overflow, and with every digit of small results."""
    return tl.maximum(x, 0.0) + log1p(tl.exp(-tl.abs(x)))
''',
    "silu": '''
@triton.jit
def silu(x):
    """x sigmoid(x)."""
    return x * tl.sigmoid(x)
''',
    "elu": '''
@triton.jit
def elu(x):
    """x above 0, exp(x) - 1 below."""
    return tl.where(x > 0.0, x, expm1(tl.minimum(x, 0.0)))
''',
    "square": '''
@triton.jit
def square(x):
    """x ** 2."""
    return x * x
''',
    "seen_before": '''
@triton.jit
def seen_before(past, b, at, inside, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
    """The inputs of a convolution before this token, oldest first, each with zeros outside of the mask."""
    seen = ()
    for j in tl.static_range(WIDTH - 1):
        seen = seen + (tl.load(past + (b * (WIDTH - 1) + j) * CHANNELS + at, inside, 0.0),)
    return seen
''',
    "causal_conv": '''
@triton.jit
def causal_conv(x, seen, weight, at, inside, WIDTH: tl.constexpr):
    """A causal depthwise convolution at one token: the last tap meets the token itself."""
    y = x * tl.load(weight + at * WIDTH + WIDTH - 1, inside, 0.0).to(tl.float32)
    for j in tl.static_range(WIDTH - 1):
        y += seen[j].to(tl.float32) * tl.load(weight + at * WIDTH + j, inside, 0.0).to(tl.float32)
    return y
''',
    "shift_in": '''
@triton.jit
def shift_in(x, seen, past, b, at, inside, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
    """Move a convolution's past on by one token, in place."""
    for j in tl.static_range(WIDTH - 2):
        tl.store(past + (b * (WIDTH - 1) + j) * CHANNELS + at, seen[j + 1], inside)
    tl.store(past + (b * (WIDTH - 1) + WIDTH - 2) * CHANNELS + at, x, inside)
''',
}
