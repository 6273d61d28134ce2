"""Computes keys and values again from what `attention(cache=...)` keeps of each token.

    attention(q, k, v, cache=[c])  ->  c' = cached(c);  k' and v' as k and v, over c';  attention(q, k', v')

Where no earlier token is kept, c' is c, and so the second computation is the only one that is left.
"""

from __future__ import annotations

from dataclasses import replace

from archc.graph.types import Node, Ref, Subgraph
from archc.operations.registry import operations
from archc.passes.rebuild import Rebuilder


def cut_caches(graph: Subgraph) -> Subgraph:
    """The same subgraph with the keys and values of such attentions computed from cached values."""
    if not any(node.attrs.get("cut") for node in graph.nodes):
        return graph
    cutter = _Cutter(graph)
    for node in graph.nodes:
        made = cutter.made.copy(node)
        if node.attrs.get("cut"):
            cutter.cut(node, made)
    return cutter.finish()


class _Cutter:
    """The copy being made, and what stands in it for values of all seen tokens, by entries and value."""

    def __init__(self, graph: Subgraph) -> None:
        self.graph = graph
        self.made = Rebuilder(graph)
        self.seen: dict[tuple[object, Ref], Ref] = {}

    def cut(self, node: Node, made: Node) -> None:
        """Bind the attention that was just copied to keys and values of all seen tokens."""
        del self.made.nodes[-1]
        entries = node.attrs["cut"]
        kept = node.inputs[len(node.inputs) - len(entries) :]
        window = node.attrs["window"]
        group = (entries, repr(window))
        for ref, entry in zip(kept, entries):
            if (group, ref) not in self.seen:
                attrs = {"entry": entry, "window": window}
                type_ = replace(self.graph.type_of(ref), rate="seen")
                fresh = self.made.add(
                    "cached", (self.made.refs[ref],), type_, attrs, node.span, node.equation
                )
                self.seen[group, ref] = fresh
        k, v = (self._again(ref, group, entries[0]) for ref in node.inputs[1:3])
        rest = made.inputs[3 : len(made.inputs) - len(entries)]
        fresh_node = replace(made, id=len(self.made.nodes), inputs=(made.inputs[0], k, v, *rest))
        self.made.nodes.append(fresh_node)
        for index in range(len(node.types)):
            self.made.refs[Ref(node.id, index)] = Ref(fresh_node.id, index)

    def _again(self, ref: Ref, group: tuple[object, str], entry: str) -> Ref:
        """The value over all seen tokens. Values of the model are what they are."""
        found = self.seen.get((group, ref))
        if found is not None:
            return found
        node = self.graph.nodes[ref.node]
        if node.types[ref.index].rate in ("static", "model"):
            return self.made.refs[ref]
        inputs = tuple(self._again(given, group, entry) for given in node.inputs)
        attrs = {**node.attrs, "seen": entry} if operations()[node.op].positional else node.attrs
        types = tuple(replace(type_, rate="seen") for type_ in node.types)
        again = replace(node, id=len(self.made.nodes), inputs=inputs, attrs=attrs, types=types)
        self.made.nodes.append(again)
        for index in range(len(types)):
            self.seen[group, Ref(node.id, index)] = Ref(again.id, index)
        return Ref(again.id, ref.index)

    def finish(self) -> Subgraph:
        """The new subgraph; an equation that only keys and values read stands for its second computation."""
        found = self.made.finish()
        reached = _reached(found)
        again = {ref: fresh for (_, ref), fresh in self.seen.items()}
        equations = dict(found.equations)
        for name, ref in self.graph.equations.items():
            if name in equations and equations[name].node not in reached and ref in again:
                equations[name] = again[ref]
        return replace(found, equations=equations)


def _reached(graph: Subgraph) -> set[int]:
    pending = [ref.node for ref in graph.roots()]
    seen: set[int] = set()
    while pending:
        number = pending.pop()
        if number not in seen:
            seen.add(number)
            pending += [ref.node for ref in graph.nodes[number].inputs]
    return seen
