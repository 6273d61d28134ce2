"""The points of a sweep: every choice of values, as a spec; points that come to one model are one point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

from archc.spec.diagnostics import Diagnostic, Label, Reporter
from archc.spec.extends import merge
from archc.spec.names import check_name
from archc.spec.resolve import resolve_node
from archc.spec.resolved_text import resolved_text
from archc.spec.spec import Spec
from archc.spec.yaml_nodes import YMapping
from archc.sweeps.places import put_everywhere
from archc.sweeps.types import Sweep, Value

MAX_POINTS = 1_000
NO_LAYER = "E244"  # a block that no layer uses


@dataclass(frozen=True, slots=True)
class Candidate:
    """A point before it is matched and counted.

    `values` are its values by axis, without the axes that make no difference to it. `node` is its spec as text
    with places, `spec` what that came to; None after errors.
    """

    name: str
    values: Mapping[str, Value]
    node: YMapping
    spec: Spec | None
    target: int | None
    errors: tuple[Diagnostic, ...] = ()


def resolve_at(sweep: Sweep, node: YMapping, report: Reporter) -> Spec | None:
    """The spec of a point. Blocks that its layers do not name are left out of it."""
    return resolve_node(
        node, sweep.name, sweep.library.fork(report), sweep.sources, report, spare_blocks=True
    )


def candidates(sweep: Sweep, report: Reporter) -> list[Candidate]:
    """Every point of a sweep, in the order of its axes, the last one fastest.

    What is wrong with single points is in their `errors`; what is wrong with the sweep goes to `report`.
    """
    count = 1
    for axis in sweep.axes:
        count *= max(1, len(axis.values))
    if count > MAX_POINTS:
        report.error(
            "E408",
            f"the axes have {count:,} points, more than {MAX_POINTS:,}",
            sweep.axes[-1].span,
            help="make it several sweeps",
        )
        return []
    found = [_candidate(sweep, values) for values in _choices(sweep)]
    if not found:
        report.error("E408", "`where` leaves out every point", sweep.rules[-1].span)
        return []
    merged = _merge_equal(sweep, found)
    _check_blocks(sweep, merged, report)
    for point in merged:
        if not check_name(point.name, sweep.span, report, what="model"):
            break
    return merged


def _choices(sweep: Sweep) -> Iterator[dict[str, Value]]:
    for chosen in product(*(axis.values.values() for axis in sweep.axes)):
        values = {axis.name: value for axis, value in zip(sweep.axes, chosen, strict=True)}
        if not any(rule.change is None and rule.holds(values) for rule in sweep.rules):
            yield values


def _candidate(sweep: Sweep, values: Mapping[str, Value]) -> Candidate:
    """The spec at one choice: the axes' changes in their order, then the exceptions."""
    report = Reporter()
    node = sweep.spec
    for axis in sweep.axes:
        content = values[axis.name].node
        if axis.places:
            node = put_everywhere(node, axis.places, content, report)
        elif isinstance(content, YMapping):
            node = merge(node, content, report)
    for rule in sweep.rules:
        if rule.change is not None and rule.holds(values):
            node = merge(node, rule.change, report)
    target = None
    if sweep.target is not None:
        target = sweep.target.of(values)
    spec = resolve_at(sweep, node, report) if not report.diagnostics else None
    return Candidate(_name(sweep, values), values, node, spec, target, tuple(report.diagnostics))


def _name(sweep: Sweep, values: Mapping[str, Value]) -> str:
    return "_".join([sweep.name, *(value.word for value in values.values())])


def _merge_equal(sweep: Sweep, found: list[Candidate]) -> list[Candidate]:
    """One point for each model: an axis with all of whose values a model is the same is left out of its name.

    That is how a study has one baseline: without linear layers, it does not matter which mixer they would have.
    Two values that come to the same model while a third does not are a mistake.
    """
    groups: dict[object, list[Candidate]] = {}
    for index, point in enumerate(found):
        # The knob is put in later, so points are one only if they would be solved alike as well.
        key = (_text(point.spec), point.target) if point.spec is not None else index
        groups.setdefault(key, []).append(point)
    merged = []
    for group in groups.values():
        first = group[0]
        varying = [axis for axis in sweep.axes if len({point.values[axis.name].name for point in group}) > 1]
        free = {
            axis.name
            for axis in varying
            if {point.values[axis.name].name for point in group} == _possible(axis.name, found, first)
        }
        values = {name: value for name, value in first.values.items() if name not in free}
        merged.append(replace(first, name=_name(sweep, values), values=values))
        for point in group[1:]:
            different = [axis for axis in varying if axis.name not in free]
            clash = next((a for a in different if point.values[a.name] is not first.values[a.name]), None)
            if clash is not None:
                merged.append(_same(point, first, clash.name))
    order = {id(point.node): index for index, point in enumerate(found)}
    return sorted(merged, key=lambda point: order[id(point.node)])


def _text(spec: Spec) -> str:
    """What a model is, whichever way its layers were listed."""
    return resolved_text(replace(spec, layers=replace(spec.layers, cycle=())))


def _possible(axis: str, found: list[Candidate], point: Candidate) -> set[str]:
    """The values of an axis at which there are points that agree with `point` in all other axes."""
    others = {name: value for name, value in point.values.items() if name != axis}
    return {
        each.values[axis].name
        for each in found
        if all(each.values[name] is value for name, value in others.items())
    }


def _same(point: Candidate, other: Candidate, axis: str) -> Candidate:
    ours, theirs = point.values[axis], other.values[axis]
    error = Diagnostic(
        "E402",
        f"`{ours.name}` and `{theirs.name}` of `{axis}` come to the same model",
        ours.span,
        note="layers, blocks and sizes are equal",
        help="see whether one of them does not do what it says; otherwise remove it",
        labels=(Label(theirs.span, "the same as this"),),
    )
    return replace(point, errors=(error,), spec=None)


def _check_blocks(sweep: Sweep, points: list[Candidate], report: Reporter) -> None:
    """A block that no point uses is a mistake, as it is one in a single model; points left out may have used it."""
    if any(point.spec is None for point in points) or any(rule.change is None for rule in sweep.rules):
        return
    used = {name for point in points if point.spec is not None for name in point.spec.layers.names}
    lent = {use.body.name for point in points if point.spec for use in point.spec.blocks.values()}
    blocks = sweep.spec.get("blocks")
    for key, _ in blocks.entries if isinstance(blocks, YMapping) else ():
        if key.text not in used | lent:
            report.error(
                NO_LAYER,
                f"no layer of any point uses block `{key.text}`",
                key.span,
                help="name it in `layers:`, or remove it",
            )
