"""Leaves out operations that change nothing: `x * 1`, `x + 0`, `x / 1`, `-(-x)`, `x ** 1`."""

from __future__ import annotations

from archc.graph.types import Node, Ref, Subgraph
from archc.passes.rebuild import Rebuilder, rebuild
from archc.spec.expressions import Number

NEUTRAL = {"mul": (1, True), "add": (0, True), "sub": (0, False), "div": (1, False), "pow": (1, False)}


def simplify(graph: Subgraph) -> Subgraph:
    """The same subgraph without neutral operations."""
    return rebuild(graph, _change)


def _change(node: Node, made: Rebuilder) -> Ref | None:
    if node.op != "elementwise":
        return None
    inputs = [made.refs[ref] for ref in node.inputs]
    name = node.attrs["function"]
    if name == "neg":
        inner = made.nodes[inputs[0].node]
        return inner.inputs[0] if inner.op == "elementwise" and inner.attrs["function"] == "neg" else None
    if name not in NEUTRAL:
        return None
    value, either = NEUTRAL[name]
    for place in (1, 0) if either else (1,):
        found = made.nodes[inputs[place].node]
        neutral = (
            found.op == "static"
            and isinstance(found.attrs["expr"], Number)
            and found.attrs["expr"].value == value
        )
        if neutral and made.type_of(inputs[1 - place]).axes == node.type.axes:
            return inputs[1 - place]
    return None
