"""A decay in every element of the state that is a product: a step of the token times a rate of the model."""

from __future__ import annotations

from archc.graph.calls import Call
from archc.graph.types import ValueType
from archc.graph.values import Traced
from archc.spec.axes import Axis


def step_and_rate(call: Call, decay: Traced, key: Axis, value: Axis) -> tuple[Traced, Traced] | None:
    """The decay `[H, K, V]` as a step `[H, V]` of the token and a rate `[H, K, V]` of the model, or None.

    So `-exp(A_log) * dt` never exists for all tokens at once (Gu, Dao 2023, arXiv 2312.00752, section 3.3.2). Products,
    quotients and signs are looked through, in whatever order they are written.
    """
    found = _split(call, decay, key)
    step, rate = found or (None, None)
    if rate is None:
        return None
    if step is None:  # the same at every token
        step = call.scope.add("ones", [], (ValueType((value,), "model", 1.0, 1.0),), {}, call.span)[0]
    return _widened(call, step, (value,)), _widened(call, rate, (key, value))


Parts = tuple[Traced | None, Traced | None]  # what changes with the token, and what does not


def _split(call: Call, value: Traced, key: Axis) -> Parts | None:
    """The factors of a value, those of the token without the key's axis; None if it is no such product."""
    if value.type.rate in ("static", "model"):
        return None, value
    if key not in value.type.axes:
        return value, None
    nodes = call.scope.nodes
    node = nodes[value.ref.node]
    function = str(node.attrs.get("function")) if node.op == "elementwise" else node.op
    if function not in ("mul", "outer", "div", "neg"):
        return None
    steps: list[Traced | None] = []
    rates: list[Traced | None] = []
    for ref in node.inputs:
        parts = _split(call, Traced(ref, nodes[ref.node].types[ref.index]), key)
        if parts is None:
            return None
        steps.append(parts[0])
        rates.append(parts[1])
    if function == "neg":
        return steps[0], rates[0] and call.scope.elementwise("neg", [rates[0]], call.span)
    if not (_aligned(*steps) and _aligned(*rates)):
        return None
    operation = "div" if function == "div" else "mul"
    return _joined(call, operation, *steps), _joined(call, operation, *rates)


def _aligned(a: Traced | None, b: Traced | None) -> bool:
    """Whether one has all axes of the other, as a product needs it."""
    if a is None or b is None:
        return True
    axes = set(a.type.axes), set(b.type.axes)
    return axes[0] <= axes[1] or axes[1] <= axes[0]


def _joined(call: Call, operation: str, a: Traced | None, b: Traced | None) -> Traced | None:
    """The product or quotient of two factors; a factor that is not there is 1."""
    if b is None:
        return a
    if a is None:
        return call.scope.elementwise("reciprocal", [b], call.span) if operation == "div" else b
    return call.scope.elementwise(operation, [a, b], call.span)


def _widened(call: Call, value: Traced, axes: tuple[Axis, ...]) -> Traced:
    """The value repeated along those of the axes that it lacks."""
    if all(axis in value.type.axes for axis in axes):
        return value
    own = tuple(axis for axis in value.type.axes if axis not in axes)
    ones = call.scope.add("ones", [], (ValueType((*own, *axes), "model", 1.0, 1.0),), {}, call.span)[0]
    return call.scope.elementwise("mul", [value, ones], call.span)
