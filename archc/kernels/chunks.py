"""Smaller chunks on targets where the kernels of a class need them."""

from __future__ import annotations

from dataclasses import replace

from archc.graph.types import Graph, Module, Node
from archc.kernels.recurrence import sizes_of, tile_facts, uses_of
from archc.kernels.targets import Target
from archc.tiles.kind import RecurrenceKind


def fit_chunks(graph: Graph, target: Target) -> Graph:
    """The graph with each recurrence's chunk as large as the target's tiles have it, and never larger than it was."""
    chunks: dict[RecurrenceKind, int] = {}
    for kind, uses in uses_of(graph).items():
        if sizes := sizes_of(kind, uses, target):
            K, V = max(sizes)
            tile = target.tile("walk", **tile_facts(kind, K, V))
            if tile is not None and tile.chunk is not None and tile.chunk < kind.chunk:
                chunks[kind] = tile.chunk
    if not chunks:
        return graph

    def node_of(node: Node) -> Node:
        kind = node.attrs.get("kind") if node.op == "recurrence" else None
        if kind not in chunks:
            return node
        return replace(node, attrs={**node.attrs, "kind": replace(kind, chunk=chunks[kind])})

    def module_of(module: Module) -> Module:
        nodes = tuple(node_of(node) for node in module.subgraph.nodes)
        return replace(module, subgraph=replace(module.subgraph, nodes=nodes))

    return replace(graph, modules={key: module_of(module) for key, module in graph.modules.items()})
