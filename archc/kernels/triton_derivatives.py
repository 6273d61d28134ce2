"""How each elementwise function passes a slope back to its operands, as Triton prints it.

The derivatives are those of torch, with what it does where two branches meet: half of the slope to each of two equal
operands of `min`, all of it to a value that is held against a number, none to the value of `relu` at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SUM, PRODUCT, SIGN, ATOM = 8, 9, 10, 12  # how tightly an expression's outermost operator binds


@dataclass(frozen=True, slots=True)
class Slope:
    """What reaches one operand: a format over the operands `{0}`, `{1}`, the result `{y}` and the slope `{d}`.

    What is filled in binds at least as tightly as a sign. An empty `text` is the slope itself.
    """

    text: str = ""
    level: int = ATOM


ITSELF = Slope()
# Function -> for each operand what reaches it; None where nothing does. A function that is not here is not fused:
# torch has no derivative of `//`, and its `%` is exact for quotients that float32 cannot hold.
SLOPES: dict[str, tuple[Slope | None, ...]] = {
    "exp": (Slope("{d} * {y}", PRODUCT),),
    "log": (Slope("{d} / {0}", PRODUCT),),
    "log1p": (Slope("{d} / (1.0 + {0})", PRODUCT),),
    "expm1": (Slope("{d} * ({y} + 1.0)", PRODUCT),),
    "sqrt": (Slope("{d} / (2.0 * {y})", PRODUCT),),
    "rsqrt": (Slope("-0.5 * {d} * {y} * {y} * {y}", PRODUCT),),
    "abs": (Slope("tl.where({0} > 0.0, {d}, tl.where({0} < 0.0, -{d}, 0.0))"),),
    "tanh": (Slope("{d} * (1.0 - {y} * {y})", PRODUCT),),
    "sigmoid": (Slope("{d} * {y} * (1.0 - {y})", PRODUCT),),
    "logsigmoid": (Slope("{d} * tl.sigmoid(-{0})", PRODUCT),),
    "softplus": (Slope("{d} * tl.sigmoid({0})", PRODUCT),),
    "relu": (Slope("tl.where({0} > 0.0, {d}, 0.0)"),),
    "silu": (Slope("{d} * silu_slope({0})", PRODUCT),),
    "gelu": (Slope("{d} * gelu_slope({0})", PRODUCT),),
    "gelu_tanh": (Slope("{d} * gelu_tanh_slope({0})", PRODUCT),),
    "elu": (Slope("tl.where({0} > 0.0, {d}, {d} * tl.exp(tl.minimum({0}, 0.0)))"),),
    "erf": (Slope("{d} * 1.1283791670955126 * tl.exp(-{0} * {0})", PRODUCT),),
    "sin": (Slope("{d} * tl.cos({0})", PRODUCT),),
    "cos": (Slope("-{d} * tl.sin({0})", PRODUCT),),
    "inverse_softplus": (Slope("{d} * inverse_softplus_slope({0})", PRODUCT),),
    "square": (Slope("{d} * (2.0 * {0})", PRODUCT),),
    "reciprocal": (Slope("-{d} * {y} * {y}", PRODUCT),),
    "neg": (Slope("-{d}", SIGN),),
    "add": (ITSELF, ITSELF),
    "sub": (ITSELF, Slope("-{d}", SIGN)),
    "mul": (Slope("{d} * {1}", PRODUCT), Slope("{d} * {0}", PRODUCT)),
    "div": (Slope("{d} / {1}", PRODUCT), Slope("-{d} * ({y} / {1})", PRODUCT)),
    "pow": (
        Slope("{d} * power_slope({0}, {1})", PRODUCT),
        Slope("{d} * power_growth({0}, {1}, {y})", PRODUCT),
    ),
    "logaddexp": (
        Slope("{d} * tl.sigmoid({0} - {1})", PRODUCT),
        Slope("{d} * tl.sigmoid({1} - {0})", PRODUCT),
    ),
    "atan2": (
        Slope("{d} * atan2_slope({0}, {1})", PRODUCT),
        Slope("-{d} * atan2_slope({1}, {0})", PRODUCT),
    ),
    "min": (
        Slope("tl.where({0} < {1}, {d}, tl.where({0} == {1}, 0.5 * {d}, 0.0))"),
        Slope("tl.where({1} < {0}, {d}, tl.where({0} == {1}, 0.5 * {d}, 0.0))"),
    ),
    "max": (
        Slope("tl.where({0} > {1}, {d}, tl.where({0} == {1}, 0.5 * {d}, 0.0))"),
        Slope("tl.where({1} > {0}, {d}, tl.where({0} == {1}, 0.5 * {d}, 0.0))"),
    ),
    "clip": (Slope("tl.where(({0} >= {1}) & ({0} <= {2}), {d}, 0.0)"), None, None),
    "where": (None, Slope("tl.where({0}, {d}, 0.0)"), Slope("tl.where({0}, 0.0, {d})")),
    "detach": (None,),
    "fp32": (ITSELF,),
    "sign": (None,),
    "less": (None, None),
    "less_equal": (None, None),
    "greater": (None, None),
    "greater_equal": (None, None),
    "equal": (None, None),
    "not_equal": (None, None),
    "logical_and": (None, None),
    "logical_or": (None, None),
    "logical_not": (None,),
}
# The same against a static number, which torch's `clamp` does not share the slope with.
_HELD = {
    "min": (
        Slope("tl.where({0} <= {1}, {d}, 0.0)"),
        Slope("tl.where({1} <= {0}, {d}, 0.0)"),
    ),
    "max": (
        Slope("tl.where({0} >= {1}, {d}, 0.0)"),
        Slope("tl.where({1} >= {0}, {d}, 0.0)"),
    ),
}


def slopes(function: str, static: Sequence[bool]) -> tuple[Slope | None, ...] | None:
    """What reaches each operand of a function, of which some are static numbers; None where there is no rule."""
    if function == "clip" and not (static[1] and static[2]):
        return None
    if function in _HELD and any(static):
        return _HELD[function]
    return SLOPES.get(function)
