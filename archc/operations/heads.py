"""Head axes of attention and recurrences: which one the others are grouped under (rule 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

from archc.graph.calls import Call, shape
from archc.graph.types import ValueType
from archc.graph.values import Traced
from archc.spec import expressions as ex
from archc.spec.axes import Axis
from archc.spec.diagnostics import Label


def split_heads(value: Traced) -> tuple[Axis | None, Axis]:
    """The head axis, if there is one, and the last axis."""
    *heads, last = value.type.axes
    return (heads[-1] if heads else None), last


def fail_operand(call: Call, name: str, type_: ValueType) -> NoReturn:
    """A query, key or value that has no tokens, no axis, or more than two."""
    call.fail(
        "E370",
        f"`{name}` of `{call.operation.name}` needs the axes [heads, size] or [size], this has "
        f"{shape(type_.axes)}"
        if type_.rate == "token"
        else f"`{name}` of `{call.operation.name}` needs a value for each token, this is the same for all",
        call.span_of(name),
        help="linear(x, [n_heads, head_dim]) makes one; reshape folds axes together",
    )


def widest_heads(call: Call, groups: Mapping[str, Sequence[Axis]]) -> Axis | None:
    """The head axis that the others divide. Those that differ must be tied by `divides:`."""
    axes = {name: heads[-1] for name, heads in groups.items() if heads}
    if not axes:
        return None
    by_size = sorted(axes.items(), key=lambda item: -call.size(item[1]))
    name, widest = next(
        (
            item
            for item in by_size
            if all(other == item[1] or divides(call, other, item[1]) for other in axes.values())
        ),
        by_size[0],
    )
    for other_name, other in axes.items():
        if other == widest or divides(call, other, widest):
            continue
        span = call.span_of(other_name)
        labels = [
            Label(param.span, f"`{axis}` declared here")
            for axis in (other, widest)
            for param in [call.scope.body.params.get(str(axis))]
            if param is not None
        ]
        call.fail(
            "E372",
            f"`{other_name}` has the heads `{other}`, `{name}` has `{widest}`",
            span,
            labels=labels,
            note="head counts that differ are grouped only where one is declared to divide the other",
            help=f"declare it: {other}: {{type: int, divides: {widest}}}",
        )
    return widest


def divides(call: Call, small: Axis, wide: Axis) -> bool:
    """Whether a chain of `divides:` leads from one axis to the other."""
    seen: set[str] = set()
    current = str(small)
    while current not in seen:
        seen.add(current)
        param = call.scope.body.params.get(current)
        if param is None or param.divides is None:
            return False
        target = param.divides
        if Axis.of(target) == wide:
            return True
        if not isinstance(target, ex.Name):
            return False
        current = target.id
    return False
