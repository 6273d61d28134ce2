"""What is known of one body while its equations are read: its arguments, its nodes so far, its slots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from archc.graph.calls import Call
from archc.graph.types import Decision, Node, ValueType
from archc.operations import registry
from archc.spec import expressions as ex
from archc.spec.axes import Axis
from archc.spec.diagnostics import Reporter, Span
from archc.spec.spec import Body, Settings, Static

MAX_DEPTH = 20  # of functions that call functions, and of sizes defined by sizes


@dataclass(frozen=True, slots=True)
class Interface:
    """What a slot or part takes and gives, in the names of the body that calls it."""

    inputs: tuple[tuple[Axis, ...], ...]
    output: ValueType
    modules: tuple[str, ...]  # keys; several for a shared slot
    shared: tuple[str, ...] = ()  # names under `shared:`, in turn over the sites
    result: Span | None = None  # where the body that fills the slot defines its result
    tokenwise: bool = False  # each token's result depends on that token alone
    carries: bool = False  # its equations read their own values of the token before


class Builder:
    """The nodes of one subgraph, in order, with what was decided while reading its equations."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.decisions: dict[ex.Expr, bool] = {}
        self.members: dict[str, Span] = {}
        self.owners: dict[str, int] = {}  # the first node of each name that owns weights
        self.slots: dict[str, tuple[str, ...]] = {}

    def decision_list(self) -> tuple[Decision, ...]:
        """The layer-dependent conditions met, in order."""
        return tuple(Decision(test, value) for test, value in self.decisions.items())

    def same_weights(self, node: Node) -> bool:
        """Whether a node that owns weights agrees with an earlier one of the same name."""
        operation = registry.operations().get(node.op)
        if operation is None or not operation.owns(node):
            return True
        first = self.owners.setdefault(node.name, node.id)
        if first == node.id:
            return True
        other = self.nodes[first]

        def weights(of: Node) -> list[object]:
            found: list[object] = [(path, axes) for path, axes, _ in operation.initial(of)]
            return [*found, *(str(of.attrs.get(key)) for key in ("blocks", "share"))]

        return node.op == other.op and weights(node) == weights(other)


@dataclass(slots=True)
class Context:
    """One body, bound to its arguments, at one layer.

    `statics`: its static names as expressions over the names of the instance. `sizes`: what of these follows from
    others. `environment`: their values at this layer. `exported`: values of earlier layers. `base`: the body before
    equations were replaced in a use of it. `texts`: the equations that exist here. `carried`: equations that `before`
    reads, with the first call that does. `in_losses`: sums over tokens may stand where we are.
    """

    body: Body
    settings: Settings
    functions: Mapping[str, Body]
    statics: Mapping[str, ex.Expr]
    sizes: Mapping[str, ex.Expr]
    environment: Mapping[str, Static]
    slots: Mapping[str, Interface]
    exported: Mapping[str, ValueType]
    report: Reporter
    default_init: ex.Expr | None = None
    base: Body | None = None
    builder: Builder = field(default_factory=Builder)
    texts: list[str] = field(default_factory=list)
    carried: dict[str, Call] = field(default_factory=dict)
    in_losses: bool = False

    def expand(self, axis: Axis) -> Axis:
        """An axis with declared sizes and defaults replaced by their definitions, as far as they go."""
        for _ in range(MAX_DEPTH):
            definitions = {name: Axis.of(expr) for name, expr in self.sizes.items()}
            wider = axis.substitute(definitions)
            if wider == axis:
                return axis
            axis = wider
        return axis
