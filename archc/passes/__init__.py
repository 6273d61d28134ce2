"""Passes over the graph: one file each, run in the order of `PASSES`."""

from __future__ import annotations

from collections.abc import Callable

from archc.graph.types import Graph

Pass = Callable[[Graph], Graph]

PASSES: tuple[tuple[str, Pass], ...] = ()


def run_passes(graph: Graph, after: str | None = None) -> Graph:
    """The graph after all passes, or after the one called `after`."""
    for name, change in PASSES:
        graph = change(graph)
        if name == after:
            break
    return graph
