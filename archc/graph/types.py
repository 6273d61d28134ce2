"""The graph: immutable typed operations on named axes, one subgraph for each distinct body."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from archc.spec import statics
from archc.spec.axes import Axis
from archc.spec.diagnostics import Span
from archc.spec.expressions import Expr
from archc.spec.spec import Body, Settings, Static

if TYPE_CHECKING:
    import networkx as nx

RATES = (
    "static",
    "model",
    "sequence",
    "token",
    "seen",
    "block",
)  # from slow to fast; a slower value lifts to a faster one


@dataclass(frozen=True, slots=True)
class ValueType:
    """What a value is: feature axes in order, how often it changes, and bounds that are proven for it."""

    axes: tuple[Axis, ...]
    rate: str = "token"
    low: float = float("-inf")
    high: float = float("inf")
    block: Expr | None = None  # tokens a block, for values at block rate
    absent: bool = False  # entries may be absent (after `topk`)

    def __str__(self) -> str:
        text = f"{self.rate} [{', '.join(str(axis) for axis in self.axes)}]"
        if self.low > float("-inf") or self.high < float("inf"):
            text += f" in [{self.low:g}, {self.high:g}]"
        return text + (" absent" if self.absent else "")


@dataclass(frozen=True, slots=True)
class Ref:
    """One result of a node."""

    node: int
    index: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """One operation. `name` is the attribute it owns (weights, state); `equation` the equation it stands in."""

    id: int
    op: str
    inputs: tuple[Ref, ...]
    attrs: Mapping[str, Any]
    types: tuple[ValueType, ...]
    span: Span
    name: str = ""
    equation: str = ""

    @property
    def type(self) -> ValueType:
        """The type of the first result."""
        return self.types[0]


@dataclass(frozen=True, slots=True)
class Subgraph:
    """The operations of one body in an order in which inputs come first.

    `inputs`: the body's inputs by name. `equations`: the value of each equation's target that exists here.
    `output`: what the body returns. `exports`: values that later layers may read. `losses`: auxiliary losses.
    `updates`: what buffers become after a training step. `carried`: of a part that is evaluated token by token, the
    equations that the next token reads, in the order of the `before` nodes that read them.
    """

    nodes: tuple[Node, ...]
    inputs: Mapping[str, Ref]
    equations: Mapping[str, Ref]
    output: Ref
    exports: Mapping[str, Ref] = field(default_factory=dict)
    losses: Mapping[str, Ref] = field(default_factory=dict)
    updates: Mapping[str, Ref] = field(default_factory=dict)
    carried: Mapping[str, Ref] = field(default_factory=dict)
    texts: tuple[str, ...] = ()  # the equations that exist here, static conditions taken

    def type_of(self, ref: Ref) -> ValueType:
        """The type of one result."""
        return self.nodes[ref.node].types[ref.index]

    def users(self) -> dict[int, list[int]]:
        """For each node the ids of the nodes that read it."""
        found: dict[int, list[int]] = {node.id: [] for node in self.nodes}
        for node in self.nodes:
            for ref in node.inputs:
                found[ref.node].append(node.id)
        return found

    def roots(self) -> Iterator[Ref]:
        """What must be computed: the output, the exports, the losses, the updates, what the next token reads."""
        yield self.output
        yield from self.exports.values()
        yield from self.losses.values()
        yield from self.updates.values()
        yield from self.carried.values()
        yield from (Ref(node.id) for node in self.nodes if node.op == "before")

    def digraph(self) -> nx.DiGraph:
        """The dependencies as a networkx graph: an edge from each node to its readers."""
        import networkx  # a tenth of a second that `archc check` does not spend

        graph: nx.DiGraph = networkx.DiGraph()
        graph.add_nodes_from(node.id for node in self.nodes)
        graph.add_edges_from((ref.node, node.id) for node in self.nodes for ref in node.inputs)
        return graph


@dataclass(frozen=True, slots=True)
class Decision:
    """A static condition that depends on the layer, and how it was decided in this class of layers."""

    test: Expr  # over the names of the instance, `layer` and `site`
    value: bool


@dataclass(frozen=True, slots=True)
class Module:
    """One class of the generated package: a body bound to its arguments, with its conditions decided.

    `key` names it within the graph; `prefix` names its numbers in the config; `slots` maps a slot or part to the
    key of the module that fills it (several for a shared slot).
    """

    key: str
    prefix: str
    body: Body
    definitions: Mapping[str, Expr]  # parameters and sizes that follow from others
    values: Mapping[str, Any]  # every static name and its value (at the first layer that uses the class)
    subgraph: Subgraph
    decisions: tuple[Decision, ...]
    slots: Mapping[str, tuple[str, ...]]
    shared: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # slots that modules of the model fill, in turn

    def value(self, name: str) -> Static:
        """A static name's value; `rope.theta` is an entry of a mapping, `sizes.0` one of a list."""
        first, *rest = name.split(".")
        value: Static = self.values.get(first)
        for part in rest:
            if isinstance(value, Mapping):
                value = value[part]
            elif isinstance(value, tuple):
                value = value[int(part)]
        return value

    def may_be_exact(self, name: str) -> bool:
        """Whether a number may stand as a Fraction in the configuration: it is one, and others follow from it."""
        value = self.value(name)
        if not isinstance(value, Fraction) or value.denominator == 1 or name in self.definitions:
            return False
        return any(name in statics.free_names(definition) for definition in self.definitions.values())


@dataclass(frozen=True, slots=True)
class Run:
    """`count` layers in a row of the same class."""

    module: str
    count: int


@dataclass(frozen=True, slots=True)
class Graph:
    """A whole model: its classes, and the order of the layers as runs. Depth costs nothing here."""

    name: str
    settings: Settings
    modules: Mapping[str, Module]  # by key, dependencies first
    runs: tuple[Run, ...]  # before the cycle
    cycle: tuple[Run, ...]  # repeated `repeats` times
    repeats: int
    tail: tuple[Run, ...] = ()  # after the cycle
    shared: Mapping[str, str] = field(default_factory=dict)  # shared name -> module key
    init: Expr | None = None
    title: str = ""
    source: str = ""  # where the model is from

    def layers(self) -> Iterator[str]:
        """The module key of each layer."""
        for run in (*self.runs, *(self.cycle * self.repeats), *self.tail):
            for _ in range(run.count):
                yield run.module
