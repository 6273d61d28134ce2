"""Checks a spec's text alone: YAML, names, equations, and sizes over literal defaults."""

from __future__ import annotations

from archc.spec import statics
from archc.spec.diagnostics import Reporter, SpecError
from archc.spec.names import check_name, parse_targets
from archc.spec.parser import parse_equation
from archc.spec.spec import Static
from archc.spec.yaml_nodes import YMapping, YNode, YScalar, YSequence, core_value
from archc.spec.yaml_reader import parse


def check_text(text: str, path: str) -> None:
    """Raise SpecError with every mistake that the text level finds."""
    report = Reporter()
    root = parse(text, path, report)
    pending = [root] if root is not None else []
    while pending:
        node = pending.pop()
        if isinstance(node, YMapping):
            _mapping(node, report)
            pending.extend(value for _, value in node.entries)
        elif isinstance(node, YSequence):
            pending.extend(node.items)
    report.raise_if_any()


def _mapping(node: YMapping, report: Reporter) -> None:
    names: dict[str, Static] = {"d_model": statics.Fraction(64), "n_layers": statics.Fraction(2)}
    for section in ("params", "sizes", "body"):
        inner = node.get(section)
        if not isinstance(inner, YMapping):
            continue
        for key, value in inner.entries:
            if section == "params":
                if check_name(key.text, key.span, report, what="parameter"):
                    names[key.text] = _default(value, report)
            elif section == "sizes":
                size = parse_equation(value, report)
                if size is not None:
                    names[key.text] = statics.evaluate(size, names, report)
            else:
                parse_targets(key, report)
                parse_equation(value, report)


def _default(node: YNode, report: Reporter) -> Static:
    found = node.get("default") if isinstance(node, YMapping) else node
    if isinstance(found, YSequence):
        return tuple(core_value(item) for item in found.items if isinstance(item, YScalar))
    if not isinstance(found, YScalar):
        return None
    value = core_value(found)
    if isinstance(value, str) and value not in ("none",):
        parse_equation(found, report, quoted_ok=True)
    return value


def diagnostics_of(text: str, path: str) -> list[object]:
    """The mistakes of a text, ordered by place; empty for a good one."""
    try:
        check_text(text, path)
    except SpecError as error:
        return list(error.diagnostics)
    return []
