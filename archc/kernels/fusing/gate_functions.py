"""Elementwise functions in Triton beside those that decoding knows, and the texts of all that kernels call."""

from __future__ import annotations

import re
from collections.abc import Iterable

from archc.kernels.triton_functions import HELPERS, TritonFunction

OWN: dict[str, TritonFunction] = {  # beside those that decoding knows
    "gelu": TritonFunction("gelu({0})"),
    "gelu_tanh": TritonFunction("gelu_tanh({0})"),
    "erf": TritonFunction("tl.erf({0})"),
    "equal": TritonFunction("{0} == {1}", level=4, operand=8),
    "not_equal": TritonFunction("{0} != {1}", level=4, operand=8),
    "fp32": TritonFunction("{0}"),
    "detach": TritonFunction("{0}"),
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
}


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
