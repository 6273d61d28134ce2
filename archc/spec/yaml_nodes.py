"""YAML text as nodes with places: scalars keep their text, nothing is converted, keys stay in order."""

from __future__ import annotations

from dataclasses import dataclass

from archc.spec.diagnostics import Span


@dataclass(frozen=True, slots=True)
class YScalar:
    """One scalar. `text` is its value after folding and unescaping; `raw` is the slice of the file."""

    span: Span
    text: str
    raw: str
    style: str  # "plain", "quoted" or "block"


@dataclass(frozen=True, slots=True)
class YSequence:
    """A list, in block or flow style."""

    span: Span
    items: tuple[YNode, ...]
    flow: bool


@dataclass(frozen=True, slots=True)
class YMapping:
    """A mapping: pairs in the order of the file, keys unique by text."""

    span: Span
    entries: tuple[tuple[YScalar, YNode], ...]
    flow: bool

    def get(self, name: str) -> YNode | None:
        """The value under `name`, or None."""
        return next((value for key, value in self.entries if key.text == name), None)


YNode = YScalar | YSequence | YMapping
