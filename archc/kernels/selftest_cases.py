"""What the self-test of a package checks: its recurrences as the model calls them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from archc.graph.costs import Sizes
from archc.graph.types import Graph, Node
from archc.tiles.kind import RecurrenceKind
from archc.tiles.views import arguments


@dataclass(frozen=True, slots=True)
class RecurrenceCase:
    """One class with one set of sizes.

    shapes: of each argument of the operation behind batch and tokens. queries: heads of q in a decode step; in `shapes`
    q has the heads of the state, since the queries of a group are tokens there. wide: arguments that are float32 in
    every model.
    """

    module: str
    shapes: dict[str, tuple[int, ...]]
    queries: int
    wide: tuple[str, ...]
    bounded: bool


def recurrence_cases(graph: Graph, name_of: Callable[[RecurrenceKind], str]) -> list[RecurrenceCase]:
    """Every class of a model with every set of sizes that it has there, in the order of the layers' modules."""
    found: list[RecurrenceCase] = []
    for module in graph.modules.values():
        sizes = Sizes(module.values)
        for node in module.subgraph.nodes:
            if node.op == "recurrence":
                case = _case(node, sizes, name_of)
                found += [case] if case not in found else []
    return found


def _case(node: Node, sizes: Sizes, name_of: Callable[[RecurrenceKind], str]) -> RecurrenceCase:
    attrs = node.attrs
    kind: RecurrenceKind = attrs["kind"]

    def count(axis: object) -> int:
        return sizes.axis(axis) if axis is not None else 1  # type: ignore[arg-type]

    heads = {name: count(axis) for name, axis in attrs["grouped"].items()}
    heads["decay"] = heads.get(attrs["decay"], 1)
    queries = max(heads.values())
    if kind.normalize == "max":  # the maximum joins decay and input, and v is scaled by it
        heads["decay"] = max(heads["decay"], heads["log_input"])
        heads["v"] = max(heads["v"], heads["decay"])
    if kind.grouped:
        heads["q"] = count(attrs["state_heads"])
    else:
        queries = heads["q"]
    lengths = {"K": sizes.axis(attrs["key"]), "V": sizes.axis(attrs["value"]) + (kind.normalize != "none")}
    shapes = {
        a.name: (heads[a.public], *(lengths[axis] for axis in a.axes.replace("BT", "")[1:]))
        for a in arguments(kind)
    }
    wide = tuple(n for n in shapes if n in ("decay", "rate") or n == "v" and kind.normalize != "none")
    return RecurrenceCase(name_of(kind), shapes, queries, wide, kind.decay_bounded)
