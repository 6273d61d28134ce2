"""What holds of every graph, between any two passes. A table of checks, which is also the documentation."""

from __future__ import annotations

from collections.abc import Callable

from archc.graph.types import Graph, Module
from archc.operations.registry import operations

Check = Callable[[Module, Graph], bool]

INVARIANTS: tuple[tuple[str, Check], ...] = (
    ("a node's number is its place", lambda m, g: all(n.id == i for i, n in enumerate(m.subgraph.nodes))),
    (
        "inputs come before their readers",
        lambda m, g: all(ref.node < n.id for n in m.subgraph.nodes for ref in n.inputs),
    ),
    (
        "every input is a result of its node",
        lambda m, g: all(
            ref.index < len(m.subgraph.nodes[ref.node].types) for n in m.subgraph.nodes for ref in n.inputs
        ),
    ),
    ("every operation is known", lambda m, g: all(n.op in operations() for n in m.subgraph.nodes)),
    (
        "no value has an axis twice",
        lambda m, g: all(len(set(t.axes)) == len(t.axes) for n in m.subgraph.nodes for t in n.types),
    ),
    ("bounds are in order", lambda m, g: all(t.low <= t.high for n in m.subgraph.nodes for t in n.types)),
    (
        "elementwise operands fit in the result",
        lambda m, g: all(
            set(m.subgraph.type_of(ref).axes) <= set(n.type.axes)
            for n in m.subgraph.nodes
            if n.op == "elementwise"
            for ref in n.inputs
        ),
    ),
    (
        "what is read of the token before is carried, in order",
        lambda m, g: (
            [n.attrs["equation"] for n in m.subgraph.nodes if n.op == "before"] == list(m.subgraph.carried)
        ),
    ),
    (
        "slots are filled by modules of the graph",
        lambda m, g: all(key in g.modules for keys in m.slots.values() for key in keys),
    ),
)


class InvariantError(Exception):
    """A graph that cannot be: a mistake in archc, not in a spec."""


def check_graph(graph: Graph) -> None:
    """Raise InvariantError naming the module and the first invariant that does not hold."""
    for module in graph.modules.values():
        for name, holds in INVARIANTS:
            if not holds(module, graph):
                raise InvariantError(f"{module.key}: {name}")
    for key in set(graph.layers()):
        if key not in graph.modules:
            raise InvariantError(f"no module {key!r} for a layer")
