"""Which nodes a value needs, and which static names a node reads."""

from __future__ import annotations

from collections.abc import Iterable

from archc.graph.types import Node, Ref, Subgraph
from archc.spec import statics
from archc.spec.axes import Axis
from archc.spec.expressions import Expr


def reached(graph: Subgraph, roots: Iterable[Ref]) -> set[int]:
    """The nodes that the roots need; the starts of weights do not count."""
    pending = [ref.node for ref in roots]
    seen: set[int] = set()
    while pending:
        number = pending.pop()
        if number not in seen:
            seen.add(number)
            pending += [ref.node for ref in graph.nodes[number].inputs]
    return seen


def static_names(node: Node) -> set[str]:
    """Static names that an operation's attributes read."""
    found: set[str] = set()
    for value in node.attrs.values():
        for entry in value if isinstance(value, tuple) else (value,):
            if isinstance(entry, Expr):
                found |= statics.free_names(entry)
            elif isinstance(entry, Axis):
                found |= entry.names()
    return found
