"""Reads `match:`, what all points of a sweep are matched in, and the number that is solved for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from archc.spec.diagnostics import Reporter
from archc.spec.fields import Fields, describe, read_whole
from archc.spec.yaml_nodes import YMapping, YNode, YScalar, core_value
from archc.sweeps.axes import look_up
from archc.sweeps.places import read_places
from archc.sweeps.types import Axis, Target

KEYS = ("parameters", "by", "step", "from", "to", "within")
MAX_NUMBER = 2**20
WITHIN = Fraction(2, 100)

_COUNT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,12})?)([KMBT])\Z", re.ASCII)
_SHARE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?) ?%\Z", re.ASCII)
_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def read_target(node: YMapping | None, axes: Sequence[Axis], report: Reporter) -> Target | None:
    """What all points are matched in, or None where they are not."""
    if node is None:
        return None
    fields = Fields(node, "`match:`", report)
    for name, what in (("parameters", "340M"), ("by", "blocks.*.mlp.d_ff")):
        if name not in fields:
            report.error("E203", f"`match:` needs `{name}`", node.span, help=f"add `{name}: {what}`")
    axis, parameters = _parameters(fields.take("parameters"), axes, report)
    by = fields.take("by")
    places = read_places(by, "by", report) if by is not None else ()
    step = _whole(fields, report, "step", 1, MAX_NUMBER) or 1
    low = _whole(fields, report, "from", 1, MAX_NUMBER) or step
    high = _whole(fields, report, "to", 1, MAX_NUMBER) or MAX_NUMBER
    low, high = -(-low // step) * step, high // step * step
    if low > high:
        report.error("E206", f"no multiple of {step} lies between `from` and `to`", node.span)
    within = _share(fields.take_scalar("within", "a share, such as `1%`"), report)
    fields.finish(KEYS)
    return Target(parameters, axis, places, step, low, high, within, node.span)


def _whole(fields: Fields, report: Reporter, name: str, low: int, high: int) -> int | None:
    node = fields.take_scalar(name, "a whole number")
    return read_whole(node, name, low, high, report) if node is not None else None


def _parameters(node: YNode | None, axes: Sequence[Axis], report: Reporter) -> tuple[str, dict[str, int]]:
    """A number for all points, or `{AXIS: {VALUE: NUMBER}}` with a number for each value of one axis."""
    if node is None:
        return "", {}
    if not isinstance(node, YMapping):
        count = _count(node, report)
        return "", {"": count} if count else {}
    if len(node.entries) != 1 or not isinstance(node.entries[0][1], YMapping):
        report.error(
            "E204",
            "`parameters` needs a number, or one axis with a number for each of its values",
            node.span,
            help="for example `parameters: 340M` or `parameters: {size: {small: 340M, large: 1.3B}}`",
        )
        return "", {}
    key, numbers = node.entries[0]
    assert isinstance(numbers, YMapping)
    axis = look_up(key, {axis.name: axis for axis in axes}, "the sweep has no axis", report)
    if axis is None:
        return "", {}
    found: dict[str, int] = {}
    for name, number in numbers.entries:
        known = look_up(name, axis.values, f"`{axis.name}` has no value", report)
        count = _count(number, report)
        if known is not None and count is not None:
            found[name.text] = count
    missing = [name for name in axis.values if numbers.get(name) is None]
    if missing:
        report.error(
            "E203",
            f"`parameters` has no number for `{'`, `'.join(missing[:5])}` of `{key.text}`",
            numbers.span,
        )
    return key.text, found


def _count(node: YNode, report: Reporter) -> int | None:
    """A whole number above zero, also as `340M` or `1.3B`."""
    value: object = None
    if isinstance(node, YScalar):
        match = _COUNT.match(node.text)
        value = Fraction(match[1]) * _UNITS[match[2]] if match else core_value(node)
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 < value <= 10**15:
        report.error(
            "E205",
            f"`parameters` needs a whole number above zero, not {describe(node)}",
            node.span,
            help="write it out, or as `340M`, `1.3B`",
        )
        return None
    return int(value)


def _share(node: YScalar | None, report: Reporter) -> Fraction:
    if node is None:
        return WITHIN
    match = _SHARE.match(node.text)
    if match is None or not 0 < Fraction(match[1]) <= 100:
        report.error(
            "E205",
            f"`within` needs a share between 0 and 100%, not {describe(node)}",
            node.span,
            help="for example `within: 1%`",
        )
        return WITHIN
    return Fraction(match[1]) / 100
