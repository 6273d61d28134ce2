"""Lets attention over keys and values of an earlier layer read that layer's cache instead of keeping a second one.

    layer 3:  attention(q, k, v)                      keeps k, v      exports k, v
    layer 4:  attention(q, first(k), first(v))        keeps nothing: it reads what layer 3 keeps

Every layer that may be the exporting one must keep both values under the same names, in full or for the same window.
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
    apart = set(_apart(graph))
    modules = {
        key: module if key in apart else _shared(graph, module, apart)
        for key, module in graph.modules.items()
    }
    return replace(graph, modules=modules)


def _shared(graph: Graph, module: Module, apart: set[str]) -> Module:
    changed: dict[int, Node] = {}
    for node in module.subgraph.nodes:
        if node.op != "attention" or not _plain(node) or node.attrs["pair_entries"]:
            continue
        sources = [module.subgraph.nodes[ref.node] for ref in node.inputs[1:3]]
        if any(source.op != "earlier" for source in sources):
            continue
        (which, k), (other, v) = ((source.attrs["which"], source.attrs["export"]) for source in sources)
        kept = _kept_by_exporters(graph, k, v, apart) if which == other else None
        if kept is None or kept.window is not None and kept.window != _window(module, node):
            continue
        attrs = {**node.attrs, "keys": kept.keys, "values": kept.values, "kept_by": (which, k)}
        changed[node.id] = replace(node, attrs=attrs)
    if not changed:
        return module
    nodes = tuple(changed.get(node.id, node) for node in module.subgraph.nodes)
    return replace(module, subgraph=replace(module.subgraph, nodes=nodes))


def _kept_by_exporters(graph: Graph, k: str, v: str, apart: set[str]) -> Kept | None:
    """What all layers that export both values keep of them; None if one keeps something else."""
    found: set[Kept | None] = set()
    for key, module in graph.modules.items():
        exports = module.subgraph.exports
        if not {k, v} & set(exports):
            continue
        if not {k, v} <= set(exports) or key in apart:
            return None
        if all(_passed_on(module, exports[name], name) for name in (k, v)):
            continue
        found.add(_kept(module, exports, k, v))
    return found.pop() if len(found) == 1 else None


def _kept(module: Module, exports: Mapping[str, Ref], k: str, v: str) -> Kept | None:
    for node in module.subgraph.nodes:
        if node.op == "attention" and _plain(node) and node.inputs[1:3] == (exports[k], exports[v]):
            return Kept(node.attrs["keys"], node.attrs["values"], _window(module, node))
    return None


def _plain(node: Node) -> bool:
    """Whether an attention keeps its keys and values as they are, one a token."""
    return bool(node.attrs["causal"]) and not node.attrs["cut"] and not node.attrs["in_blocks"]


def _passed_on(module: Module, ref: Ref, name: str) -> bool:
    """Whether an export is the same export of an earlier layer."""
    node = module.subgraph.nodes[ref.node]
    return node.op == "earlier" and node.attrs["export"] == name


def _window(module: Module, node: Node) -> int | None:
    window = node.attrs["window"]
    return None if window is None else int(Sizes(module.values).number(window))


def _apart(graph: Graph) -> Iterator[str]:
    """The modules inside bodies that see tokens of their own."""
    for module in graph.modules.values():
        for node in module.subgraph.nodes:
            if node.op in APART:
                for key in node.attrs["modules"]:
                    yield from _inside(graph, key)


def _inside(graph: Graph, key: str) -> Iterator[str]:
    yield key
    for keys in graph.modules[key].slots.values():
        for inner in keys:
            yield from _inside(graph, inner)
