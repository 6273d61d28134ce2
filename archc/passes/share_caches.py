"""Lets attention over keys and values of an earlier layer read that layer's cache instead of keeping a second one.

    layer 3:  attention(q, k, v)                      keeps k, v      exports k, v
    layer 4:  attention(q, first(k), first(v))        keeps nothing: it reads what layer 3 keeps

In all layers of a class, those that are read must keep both values under the same names, in full or for the window of
the reader.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from archc.graph.costs import Sizes
from archc.graph.types import Graph, Module, Node, Ref

# Bodies of these see other tokens than the layers around them.
APART = ("mixture", "sequential")


@dataclass(frozen=True, slots=True)
class Kept:
    """What a layer keeps of the values that it exports: the entries' names, and for how many tokens (None: all)."""

    keys: str
    values: str
    window: int | None


def share_caches(graph: Graph) -> Graph:
    """The same graph with `kept_by` at each attention that reads the cache of an earlier layer."""
    if not any(_readers(module) for module in graph.modules.values()):
        return graph
    sources = _Sources(graph)
    modules = {key: _shared(graph, key, sources) for key in graph.modules}
    return replace(graph, modules=modules)


def _readers(module: Module) -> Iterator[tuple[Node, str, str, str]]:
    """Attentions over exported keys and values: with which layer's they are, and the two exports' names."""
    nodes = module.subgraph.nodes
    for node in nodes:
        if node.op != "attention" or not _plain(node) or node.attrs["pair_entries"]:
            continue
        k, v = (nodes[ref.node] for ref in node.inputs[1:3])
        if k.op == v.op == "earlier" and k.attrs["which"] == v.attrs["which"]:
            yield node, k.attrs["which"], k.attrs["export"], v.attrs["export"]


def _shared(graph: Graph, key: str, sources: _Sources) -> Module:
    module = graph.modules[key]
    changed: dict[int, Node] = {}
    for node, which, k, v in _readers(module):
        found = sources.of.get((key, which, k), set())
        if module.slots or not found or found != sources.of.get((key, which, v)):
            continue
        kept = {None if source is None else _kept(graph.modules[source], k, v) for source in found}
        one = kept.pop() if len(kept) == 1 else None
        if one is not None and one.window in (None, _window(module, node)):
            attrs = {**node.attrs, "keys": one.keys, "values": one.values, "kept_by": (which, k)}
            changed[node.id] = replace(node, attrs=attrs)
    if not changed:
        return module
    nodes = tuple(changed.get(node.id, node) for node in module.subgraph.nodes)
    return replace(module, subgraph=replace(module.subgraph, nodes=nodes))


class _Sources:
    """Walks the layers. `of`: for a class, `first` or `previous`, and an export, the classes that it comes from.

    None among them stands for a body that sees other tokens, inside a mixture.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.of: dict[tuple[str, str, str], set[str | None]] = {}
        self.current: dict[tuple[str, str], str | None] = {}
        for key in graph.layers():
            self._walk(key, apart=False)

    def _walk(self, key: str, apart: bool) -> None:
        subgraph = self.graph.modules[key].subgraph
        for node in subgraph.nodes:
            if node.op == "earlier":
                place = node.attrs["which"], node.attrs["export"]
                self.of.setdefault((key, *place), set()).add(None if apart else self.current.get(place))
            for inner in node.attrs.get("modules", ()):
                self._walk(inner, apart or node.op in APART)
        for name, ref in subgraph.exports.items():
            source: str | None = None if apart else key
            node = subgraph.nodes[ref.node]
            if passed_on(node, name) and not apart:
                source = self.current.get((node.attrs["which"], name))
            self.current.setdefault(("first", name), source)
            self.current["previous", name] = source


def passed_on(node: Node, name: str) -> bool:
    """Whether the value of an export is the same export of an earlier layer."""
    return node.op == "earlier" and bool(node.attrs["export"] == name)


def _kept(module: Module, k: str, v: str) -> Kept | None:
    exports: Mapping[str, Ref] = module.subgraph.exports
    for node in module.subgraph.nodes:
        if node.op == "attention" and _plain(node) and node.inputs[1:3] == (exports.get(k), exports.get(v)):
            return Kept(node.attrs["keys"], node.attrs["values"], _window(module, node))
    return None


def _plain(node: Node) -> bool:
    """Whether an attention keeps its keys and values as they are, one a token."""
    return bool(node.attrs["causal"]) and not node.attrs["cut"] and not node.attrs["in_blocks"]


def _window(module: Module, node: Node) -> int | None:
    window = node.attrs["window"]
    return None if window is None else int(Sizes(module.values).number(window))
