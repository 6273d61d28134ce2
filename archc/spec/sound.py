"""What can still be checked of a spec with errors: the layers whose blocks, bodies and functions have none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from archc.spec import expressions as ex
from archc.spec.diagnostics import Reporter, Span
from archc.spec.spec import Body, Shared, Spec, Use
from archc.spec.yaml_nodes import YMapping

SECTIONS = ("mixers", "mlps", "functions", "blocks", "shared")


def sound_part(spec: Spec, node: YMapping, report: Reporter) -> list[Spec]:
    """The spec with its sound layers only, or nothing. `node` is the text of the model, which has errors."""
    regions = _Regions(node, report)
    functions = {name for name, body in spec.functions.items() if not regions.broken("functions", name, body)}
    sound = {
        name
        for name, use in spec.blocks.items()
        if not regions.broken("blocks", name)
        and all(regions.is_sound(inner, spec, functions) for inner in _uses(use, spec))
    }
    names = tuple(name for name in spec.layers.names if name in sound)
    if not names:
        return []
    blocks = {name: use for name, use in spec.blocks.items() if name in sound}
    return [replace(spec, blocks=blocks, layers=replace(spec.layers, names=names, cycle=()))]


def _uses(use: Use, spec: Spec) -> Iterator[Use]:
    """A use and those in its slots, shared ones included."""
    yield use
    for filler in use.slots.values():
        inner = [filler] if isinstance(filler, Use) else [spec.shared.get(name) for name in filler.names]
        for each in inner:
            if each is not None:
                yield from _uses(each, spec)


class _Regions:
    """Which stretches of text hold errors."""

    def __init__(self, node: YMapping, report: Reporter) -> None:
        self.errors = [found.span for found in report.diagnostics]
        self.entries: dict[tuple[str, str], tuple[Span, int]] = {}
        for section in SECTIONS:
            inner = node.get(section)
            for key, value in inner.entries if isinstance(inner, YMapping) else ():
                self.entries[section, key.text] = (key.span, value.span.end_line)

    def broken(self, section: str, name: str, body: Body | None = None) -> bool:
        """Whether an error lies in an entry of the model; for a body of another file, anywhere in that file."""
        start, end = self.entries.get((section, name), (None, 0))
        if start is not None and (body is None or start == body.span):
            return any(e.path == start.path and start.line <= e.line <= end for e in self.errors)
        return body is not None and any(e.path == body.span.path for e in self.errors)

    def is_sound(self, use: Use, spec: Spec, functions: set[str]) -> bool:
        """Whether the body of a use, what it calls and what fills its slots can be read."""
        body = use.body
        if any(isinstance(f, Shared) and not set(f.names) <= set(spec.shared) for f in use.slots.values()):
            return False
        if body.kind != "block" and self.broken(f"{body.kind}s", body.name, body):
            return False
        parts = (body, *body.parts.values())
        called = {
            node.function
            for part in parts
            for equation in part.equations
            for node in equation.expr.walk()
            if isinstance(node, ex.Call)
        }
        if not body.slots.keys() <= use.slots.keys():
            return False
        declared = {name for section, name in self.entries if section == "functions"}
        return not (called & (declared | spec.functions.keys())) - functions
