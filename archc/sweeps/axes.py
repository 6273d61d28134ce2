"""Reads what varies in a sweep: `over:` with its axes, `where:` with the exceptions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from archc.spec.diagnostics import Label, Reporter, Span
from archc.spec.fields import Fields, describe, items_of, shorten, suggestion
from archc.spec.names import check_name
from archc.spec.yaml_nodes import YMapping, YNode, YScalar, YSequence, core_value
from archc.sweeps.places import read_places
from archc.sweeps.types import Axis, Rule, Value

AXIS_KEYS = ("at", "values")
RULE_KEYS = ("when", "set", "skip")
MAX_AXES = 8

Entry = TypeVar("Entry")

_VALUE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+-]{0,39}\Z", re.ASCII)


def read_axes(sweep: YMapping, node: YMapping | None, place: Span, report: Reporter) -> tuple[Axis, ...]:
    """The axes under `over:`. `sweep` is the whole file, `place` where it begins."""
    if node is None:
        if sweep.get("over") is None:
            report.error(
                "E203",
                "the sweep has no `over:`",
                place,
                help="add `over: {NAME: {at: PLACE, values: {...}}}`",
            )
        return ()
    axes = [axis for key, value in node.entries if (axis := _axis(key, value, report)) is not None]
    if not node.entries or len(node.entries) > MAX_AXES:
        report.error("E206", f"`over` has {len(node.entries)} axes, outside 1 to {MAX_AXES}", node.span)
    return tuple(axes)


def _axis(key: YScalar, node: YNode, report: Reporter) -> Axis | None:
    check_name(key.text, key.span, report, what="axis")
    if not isinstance(node, YMapping):
        report.error(
            "E204",
            f"the axis `{shorten(key.text)}` needs a mapping, not {describe(node)}",
            node.span,
            help="write `{at: PLACE, values: {NAME: VALUE, ...}}`",
        )
        return None
    fields = Fields(node, f"the axis `{shorten(key.text)}`", report)
    at = fields.take("at")
    places = read_places(at, "at", report) if at is not None else ()
    found = fields.take("values")
    if found is None:
        if "values" not in {name.text for name, _ in node.entries}:
            report.error(
                "E203",
                f"the axis `{shorten(key.text)}` has no `values:`",
                key.span,
                help="add `values: {NAME: VALUE, ...}`",
            )
        values: dict[str, Value] = {}
    else:
        values = _values(key, found, report, whole=at is None)
    fields.finish(AXIS_KEYS)
    return Axis(key.text, key.span, places, values)


def _values(axis: YScalar, node: YNode, report: Reporter, *, whole: bool) -> dict[str, Value]:
    """Values by name; those of a list have their own text as name. `whole`: each changes the whole spec."""
    listed: list[tuple[YScalar, YNode]]
    if isinstance(node, YSequence):
        listed = [(item, item) for item in node.items if isinstance(item, YScalar)]
        for item in node.items:
            if not isinstance(item, YScalar):
                report.error(
                    "E204",
                    f"a list of values holds numbers and words, not {describe(item)}",
                    item.span,
                    help="give it a name: `values: {NAME: VALUE, ...}`",
                )
    elif isinstance(node, YMapping):
        taken = Fields(node, f"the values of `{shorten(axis.text)}`", report)
        listed = list(taken.rest())
    else:
        report.error("E204", f"`values` needs a mapping or a list, not {describe(node)}", node.span)
        return {}
    if not listed:
        report.error("E203", f"the axis `{shorten(axis.text)}` has no values", node.span)
    found: dict[str, Value] = {}
    words: dict[str, Value] = {}
    for key, content in listed:
        value = Value(key.text, key.span, content)
        if not _VALUE_NAME.match(key.text):
            report.error(
                "E208",
                f"`{shorten(key.text)}` is not a name of a value",
                key.span,
                note="ASCII letters, digits and `_ . : + -`, at most 40, beginning with a letter or a digit",
            )
        elif (other := words.setdefault(value.word.lower(), value)) is not value:
            report.error(
                "E407",
                f"`{other.name}` and `{value.name}` give models of the same name",
                key.span,
                note=f"in the names of models and files both are `{value.word.lower()}`",
                help="rename one of them",
                labels=[Label(other.span, "the other one")],
            )
        elif whole and not isinstance(content, YMapping):
            report.error(
                "E204",
                f"`{value.name}` needs a mapping of what it changes in the spec, not {describe(content)}",
                content.span,
                help=f"say where it goes: `{axis.text}: {{at: PLACE, values: ...}}`",
            )
        elif not _extends(content if whole else None, report):
            found[key.text] = value
    return found


def _extends(node: YNode | None, report: Reporter) -> bool:
    """Whether a change names another file, which is an error: the spec is read once."""
    found = (
        next((key for key, _ in node.entries if key.text == "extends"), None)
        if isinstance(node, YMapping)
        else None
    )
    if found is not None:
        report.error(
            "E202",
            "`extends` cannot vary",
            found.span,
            help="write `extends:` into `spec:`, once for all points",
        )
    return found is not None


def read_rules(node: YNode | None, axes: Sequence[Axis], report: Reporter) -> tuple[Rule, ...]:
    """The exceptions under `where:`, in their order."""
    if node is None:
        return ()
    if not isinstance(node, YSequence):
        report.error(
            "E204",
            f"`where` needs a list, not {describe(node)}",
            node.span,
            help="each entry begins with `- when: {AXIS: VALUE}` and has `set:` or `skip: true`",
        )
        return ()
    return tuple(rule for item in node.items if (rule := _rule(item, axes, report)) is not None)


def _rule(node: YNode, axes: Sequence[Axis], report: Reporter) -> Rule | None:
    if not isinstance(node, YMapping):
        report.error("E204", f"an entry of `where` is a mapping, not {describe(node)}", node.span)
        return None
    fields = Fields(node, "an entry of `where`", report)
    if "when" not in fields:
        report.error("E203", "this entry of `where` has no `when:`", node.span)
    condition = fields.take_mapping("when", "axes with the values that are meant")
    known = {axis.name: axis for axis in axes}
    when: dict[str, frozenset[str]] = {}
    for key, value in condition.entries if condition is not None else ():
        axis = look_up(key, known, "the sweep has no axis", report)
        names = set()
        for item in items_of(value):
            if not isinstance(item, YScalar):
                report.error("E204", f"`when` needs names of values, not {describe(item)}", item.span)
            elif (
                axis is not None
                and look_up(item, axis.values, f"`{axis.name}` has no value", report) is not None
            ):
                names.add(item.text)
        when[key.text] = frozenset(names)
    if ("set" in fields) == ("skip" in fields):
        report.error(
            "E203",
            "this entry of `where` needs one of `set:` and `skip: true`",
            node.span,
            note="`set:` changes the specs of these points, `skip: true` leaves the points out",
        )
    change = fields.take_mapping("set", "a change of the spec")
    skip = fields.take_scalar("skip", "`true`")
    if skip is not None and core_value(skip) is not True:
        report.error("E222", f"`skip` needs `true`, not {describe(skip)}", skip.span)
    fields.finish(RULE_KEYS)
    return None if _extends(change, report) else Rule(when, change, node.span)


def look_up(key: YScalar, known: Mapping[str, Entry], what: str, report: Reporter) -> Entry | None:
    """The axis or value that a key names, or None after an error. `what` says whose: "`size` has no value"."""
    if key.text not in known:
        report.error(
            "E406",
            f"{what} `{shorten(key.text)}`",
            key.span,
            help=suggestion(key.text, known, "there are"),
        )
    return known.get(key.text)
