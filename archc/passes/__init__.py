"""Passes over the graph: one file each, run in the order of `PASSES`; the graph is checked before every one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from archc.graph.types import Graph, Subgraph
from archc.passes.cut_caches import cut_caches
from archc.passes.invariants import check_graph
from archc.passes.merge_equal import merge_equal
from archc.passes.precision import keep_float32
from archc.passes.remove_unused import remove_unused
from archc.passes.safe_expressions import make_safe
from archc.passes.share_caches import share_caches
from archc.passes.simplify import simplify

SubgraphPass = Callable[[Subgraph], Subgraph]


@dataclass(frozen=True, slots=True)
class AcrossLayers:
    """A pass that looks at several modules at once."""

    change: Callable[[Graph], Graph]


PASSES: tuple[tuple[str, SubgraphPass | AcrossLayers], ...] = (
    ("cut_caches", cut_caches),
    ("remove_unused", remove_unused),
    ("safe_expressions", make_safe),
    ("simplify", simplify),
    ("merge_equal", merge_equal),
    ("precision", keep_float32),
    ("tidy", remove_unused),
    ("share_caches", AcrossLayers(share_caches)),
)


def run_passes(graph: Graph, after: str | None = None) -> Graph:
    """The graph after all passes, or after the one called `after` ("build": before all of them)."""
    check_graph(graph)
    if after == "build":
        return graph
    for name, change in PASSES:
        graph = change.change(graph) if isinstance(change, AcrossLayers) else _in_each(graph, change)
        check_graph(graph)
        if name == after:
            break
    return graph


def _in_each(graph: Graph, change: SubgraphPass) -> Graph:
    modules = {
        key: replace(module, subgraph=change(module.subgraph)) for key, module in graph.modules.items()
    }
    return replace(graph, modules=modules)
