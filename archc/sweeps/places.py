"""Places in a spec, as `blocks.linear.mixer`: how a sweep says what varies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from archc.spec.diagnostics import Reporter, Span
from archc.spec.extends import merge
from archc.spec.fields import WORD, describe, items_of, shorten, suggestion
from archc.spec.yaml_nodes import YMapping, YNode, YScalar

MAX_PARTS = 16
ALL = "*"  # every entry of the mapping there


@dataclass(frozen=True, slots=True)
class Place:
    """A path of keys into a spec; `*` stands for every key that leads on."""

    span: Span
    parts: tuple[str, ...]

    def __str__(self) -> str:
        return ".".join(self.parts)


def read_places(node: YNode, what: str, report: Reporter) -> tuple[Place, ...]:
    """The places that a scalar or a list names, without faulty ones. `what` is the key that they stand under."""
    if not items_of(node):
        report.error("E204", f"`{what}` needs a place in the spec, not an empty list", node.span)
    found = [_read_place(item, what, report) for item in items_of(node)]
    return tuple(place for place in found if place is not None)


def _read_place(node: YNode, what: str, report: Reporter) -> Place | None:
    if not isinstance(node, YScalar):
        report.error(
            "E204",
            f"`{what}` needs a place in the spec, not {describe(node)}",
            node.span,
            help="a place is a path of keys, such as `blocks.linear.mixer` or `model.d_model`",
        )
        return None
    parts = tuple(node.text.split("."))
    good = 0 < len(parts) <= MAX_PARTS and all(WORD.match(part) or part == ALL for part in parts)
    if not good or parts[0] == ALL or parts[-1] == ALL:
        report.error(
            "E208",
            f"`{shorten(node.text)}` is not a place in a spec",
            node.span,
            note="a place is a path of keys with dots between them; `*` inside it stands for every key",
            help="for example `blocks.linear.mixer`, `blocks.*.mlp.d_ff`, `layers`",
        )
        return None
    if parts[0] == "extends":
        report.error("E401", "`extends` is read before anything varies", node.span)
        return None
    return Place(node.span, parts)


def put(spec: YMapping, place: Place, value: YNode, report: Reporter) -> YMapping:
    """`spec` with `value` at a place, merged there as an extending file would; errors go to `report`."""
    return _put(spec, place, 0, value, report)


def put_everywhere(spec: YMapping, places: Iterable[Place], value: YNode, report: Reporter) -> YMapping:
    """`spec` with the same value at several places."""
    for place in places:
        spec = put(spec, place, value, report)
    return spec


def _put(node: YMapping, place: Place, at: int, value: YNode, report: Reporter) -> YMapping:
    part = place.parts[at]
    if at == len(place.parts) - 1:
        key = YScalar(place.span, part, part, "plain")
        return merge(node, YMapping(place.span, ((key, value),), node.flow), report)
    if part == ALL:
        chosen = {key.text for key, child in node.entries if _leads_on(child, place.parts[at + 1 :])}
        if not chosen:
            _missing(node, place, at, report)
    else:
        chosen = {part}
        if not isinstance(node.get(part), YMapping):
            _missing(node, place, at, report)
            return node
    entries = tuple(
        (key, _put(child, place, at + 1, value, report))
        if key.text in chosen and isinstance(child, YMapping)
        else (key, child)
        for key, child in node.entries
    )
    return YMapping(node.span, entries, node.flow)


def _leads_on(node: YNode, parts: tuple[str, ...]) -> bool:
    """Whether a value can be put below a node at these parts; the last one need not be there yet."""
    if not isinstance(node, YMapping):
        return False
    if len(parts) == 1:
        return True
    if parts[0] == ALL:
        return any(_leads_on(child, parts[1:]) for _, child in node.entries)
    child = node.get(parts[0])
    return child is not None and _leads_on(child, parts[1:])


def _missing(node: YMapping, place: Place, at: int, report: Reporter) -> None:
    part = place.parts[at]
    found = node.get(part)
    above = ".".join(place.parts[:at])
    where = f"`{above}` of the spec" if above else "the spec"
    keys = [key.text for key, child in node.entries if isinstance(child, YMapping)]
    if part == ALL:
        message = f"no entry of {where} has `{'.'.join(place.parts[at + 1 : -1]) or place.parts[-1]}`"
    elif found is None:
        message = f"{where} has no `{part}`"
    else:
        message = f"`{part}` in {where} is {describe(found)}, and nothing lies below it"
    report.error(
        "E401",
        message,
        place.span,
        note=f"the place `{place}` leads nowhere",
        help=suggestion(part, keys, "there are") if part != ALL else "",
    )
