"""Copies a subgraph while nodes are replaced: what passes are written with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from archc.graph.types import Node, Ref, Subgraph, ValueType
from archc.spec.diagnostics import Span

REF_ATTRS = ("init", "bias_init")


class Rebuilder:
    """The copy being made. `refs` maps values of the old subgraph to values of the new one."""

    def __init__(self, old: Subgraph) -> None:
        self.old = old
        self.nodes: list[Node] = []
        self.refs: dict[Ref, Ref] = {}

    def add(
        self,
        op: str,
        inputs: Sequence[Ref],
        type_: ValueType,
        attrs: Mapping[str, Any],
        span: Span,
        equation: str,
    ) -> Ref:
        """A new node; inputs are values of the new subgraph."""
        self.nodes.append(Node(len(self.nodes), op, tuple(inputs), attrs, (type_,), span, "", equation))
        return Ref(len(self.nodes) - 1)

    def copy(self, node: Node) -> Node:
        """The node over the new values of its inputs."""
        attrs = {
            key: self.refs.get(value, value) if key in REF_ATTRS and isinstance(value, Ref) else value
            for key, value in node.attrs.items()
        }
        made = replace(
            node, id=len(self.nodes), inputs=tuple(self.refs[ref] for ref in node.inputs), attrs=attrs
        )
        self.nodes.append(made)
        for index in range(len(node.types)):
            self.refs[Ref(node.id, index)] = Ref(made.id, index)
        return made

    def type_of(self, ref: Ref) -> ValueType:
        """The type of a new value."""
        return self.nodes[ref.node].types[ref.index]

    def finish(self) -> Subgraph:
        """The new subgraph, with the names of the old one."""

        def moved(names: Mapping[str, Ref]) -> dict[str, Ref]:
            return {name: self.refs[ref] for name, ref in names.items() if ref in self.refs}

        old = self.old
        return replace(
            old,
            nodes=tuple(self.nodes),
            inputs=moved(old.inputs),
            equations=moved(old.equations),
            output=self.refs[old.output],
            exports=moved(old.exports),
            losses=moved(old.losses),
            updates=moved(old.updates),
            carried=moved(old.carried),
        )


def rebuild(old: Subgraph, change: Callable[[Node, Rebuilder], Ref | None]) -> Subgraph:
    """A copy in which `change` may give another value for a node (None: keep it)."""
    made = Rebuilder(old)
    for node in old.nodes:
        found = change(node, made)
        if found is None:
            made.copy(node)
        else:
            made.refs[Ref(node.id)] = found
    return made.finish()


def reached(graph: Subgraph) -> set[int]:
    """The nodes that the roots need, inits of the weights included."""
    pending = [ref.node for ref in graph.roots()] + [ref.node for ref in graph.inputs.values()]
    seen: set[int] = set()
    while pending:
        number = pending.pop()
        if number not in seen:
            seen.add(number)
            node = graph.nodes[number]
            pending += [ref.node for ref in node.inputs]
            pending += [value.node for key in REF_ATTRS if isinstance(value := node.attrs.get(key), Ref)]
    return seen
