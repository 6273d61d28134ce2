"""Makes equal expressions one: the same operation on the same values, where it owns nothing."""

from __future__ import annotations

from archc.graph.types import Node, Ref, Subgraph
from archc.passes.rebuild import Rebuilder, rebuild
from archc.spec.unparse import unparse

MERGED = (
    "elementwise",
    "static",
    "arange",
    "ones",
    "zeros",
    "embedding",
    "earlier",
    "l2norm",
    "rope",
    "position",
    "roll",
    "reshape",
    "select",
    "repeat",
)
WEIGHTS = ("param", "buffer")  # calls of one name are one weight (language rule 9)


def merge_equal(graph: Subgraph) -> Subgraph:
    """The same subgraph with each pure expression computed once."""
    known: dict[object, Ref] = {}

    def once(key: object, made: Rebuilder) -> Ref | None:
        """The value that was kept under `key`; None for the first one, which is kept."""
        if key in known:
            return known[key]
        known[key] = Ref(len(made.nodes))
        return None

    def change(node: Node, made: Rebuilder) -> Ref | None:
        if node.op in WEIGHTS:
            return once((node.op, node.name), made)
        if node.op not in MERGED or len(node.types) > 1:
            return None
        inputs = tuple(made.refs[ref] for ref in node.inputs)
        key = (
            node.op,
            inputs,
            repr(sorted(node.attrs.items(), key=lambda item: item[0]))
            if node.op != "static"
            else unparse(node.attrs["expr"]),
            node.types[0].axes,
        )
        return once(key, made)

    return rebuild(graph, change)
