"""Initial values of weights: random draws, which take the shape of the weight, and numbers."""

from __future__ import annotations

from collections.abc import Sequence

from archc.elaboration.scope import Scope
from archc.graph.calls import counted, shape
from archc.graph.types import Ref, ValueType
from archc.graph.values import StaticValue, Traced
from archc.spec import expressions as ex
from archc.spec.axes import Axis
from archc.spec.diagnostics import Span

DRAWS = {
    "uniform": (2, 2),
    "log_uniform": (2, 2),
    "normal": (2, 2),
    "truncated_normal": (2, 2),
    "orthogonal": (0, 1),
    "orthogonal_normal": (0, 0),
    "eye": (0, 0),
    "zeros": (0, 0),
    "ones": (0, 0),
}  # random and constant weights, with their arguments


def initial(scope: Scope, expr: ex.Expr, axes: tuple[Axis, ...]) -> Ref:
    """Read an init equation: random draws take the shape of the weight, the rest aligns by axis names."""
    scope.drawing = True
    try:
        value = scope.traced(scope.read(expr), expr.span)
    finally:
        scope.drawing = False
    if value.type.rate not in ("static", "model"):
        raise scope.fail(
            "E323",
            "an initial value cannot depend on the tokens",
            expr.span,
            help="it may hold numbers, parameters, arange(...) and draws such as normal(0, 0.02)",
        )
    extra = [axis for axis in value.type.axes if axis not in axes]
    if extra:
        raise scope.fail(
            "E350",
            f"the initial value has the axis `{extra[0]}`, the weight has {shape(axes)}",
            expr.span,
            help="an initial value has axes of its weight, or none",
        )
    return value.ref


def draw(scope: Scope, name: str, args: Sequence[ex.Expr], span: Span) -> Traced:
    least, most = DRAWS[name]
    if not least <= len(args) <= most:
        wanted = counted(most, "number") if least == most else f"{least} to {counted(most, 'number')}"
        raise scope.fail("E314", f"`{name}` takes {wanted} in an init, {len(args)} are given", span)
    found = [scope.read(arg) for arg in args]
    if not all(isinstance(value, StaticValue) for value in found):
        raise scope.fail("E320", f"the arguments of `{name}` must be known before the model runs", span)
    exprs = tuple(value.expr for value in found if isinstance(value, StaticValue))
    return scope.add("draw", (), (ValueType((), "model"),), {"kind": name, "args": exprs}, span)[0]
