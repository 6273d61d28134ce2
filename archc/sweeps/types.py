"""What a sweep file says, read and checked: axes with their values, exceptions, a target."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from fractions import Fraction

from archc.spec.diagnostics import Span
from archc.spec.library import Library
from archc.spec.yaml_nodes import YMapping, YNode
from archc.sweeps.places import Place


@dataclass(frozen=True, slots=True)
class Value:
    """One value of an axis: its name, and the node that it puts into the spec."""

    name: str
    span: Span
    node: YNode

    @property
    def word(self) -> str:
        """The name as a part of the name of a model: `24:1` is `24_1`."""
        return re.sub(r"[^A-Za-z0-9]+", "_", self.name).strip("_")


@dataclass(frozen=True, slots=True)
class Axis:
    """Something that varies: where its values go, or none where they are changes of the whole spec."""

    name: str
    span: Span
    places: tuple[Place, ...]
    values: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Rule:
    """What is different at some points: a change of their specs, or that there is no such point."""

    when: Mapping[str, frozenset[str]]
    change: YMapping | None  # None: the point is left out
    span: Span

    def holds(self, values: Mapping[str, Value]) -> bool:
        """Whether the point with these values is one of those."""
        return all(values[axis].name in names for axis, names in self.when.items())


@dataclass(frozen=True, slots=True)
class Target:
    """What every point is matched in, and the number of the spec that is solved for it."""

    parameters: Mapping[str, int]  # by value of `axis`; one entry under "" where all points have the same
    axis: str  # "" without an axis
    places: tuple[Place, ...]
    step: int
    low: int
    high: int
    within: Fraction
    span: Span

    def of(self, values: Mapping[str, Value]) -> int:
        """The parameters that the point with these values should have."""
        return self.parameters[values[self.axis].name if self.axis else ""]


@dataclass(frozen=True, slots=True)
class Sweep:
    """A study as its file says it."""

    name: str
    span: Span
    title: str
    source: str
    spec: YMapping
    axes: tuple[Axis, ...]
    rules: tuple[Rule, ...]
    target: Target | None
    tokens: tuple[int, ...]  # empty: the context of each model
    library: Library
    sources: MutableMapping[str, str] = field(default_factory=dict)
