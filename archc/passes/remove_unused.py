"""Leaves out what neither the output nor a weight's start needs."""

from __future__ import annotations

from archc.graph.types import Subgraph
from archc.passes.rebuild import Rebuilder, reached


def remove_unused(graph: Subgraph) -> Subgraph:
    """The same subgraph without nodes that nothing reads."""
    keep = reached(graph)
    made = Rebuilder(graph)
    for node in graph.nodes:
        if node.id in keep:
            made.copy(node)
    return made.finish()
