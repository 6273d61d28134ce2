"""What one launch makes of several equations: convolutions with the activation and the norm that follow each."""

from __future__ import annotations

from dataclasses import dataclass

from archc.graph.reach import reached
from archc.graph.types import Node, Ref, Subgraph
from archc.spec.axes import Axis
from archc.spec.expressions import Expr

ACTIVATIONS = ("silu", "relu", "gelu")  # others are printed as they are, and the norm after them


@dataclass(frozen=True, slots=True)
class Chain:
    """`norm(activation(conv1d(x)))`: its nodes, the last of which has the result, and the eps of the norm."""

    nodes: tuple[Node, ...]
    activation: str = "none"
    norm: str = "none"
    eps: Expr | None = None

    @property
    def conv(self) -> Node:
        """The convolution."""
        return self.nodes[0]

    @property
    def end(self) -> Node:
        """The node whose value the chain gives."""
        return self.nodes[-1]


def conv_groups(graph: Subgraph, among: set[int]) -> list[tuple[Chain, ...]]:
    """The chains of a body, those that one launch computes together, in the order of the nodes.

    Beside each other stand equations of one width whose convolutions all have a bias or all have none, and none of
    which needs another. `among`: the nodes that may be taken.
    """
    if graph.carried:
        return []  # token by token: there is nothing to convolve
    reader = _Reader(graph, among)
    found: list[tuple[Chain, ...]] = []
    waiting: list[Chain] = []
    for node in graph.nodes:
        if node.id not in among:
            continue
        if any(ref.node == chain.end.id for ref in node.inputs for chain in waiting):
            found.append(tuple(waiting))
            waiting = []
        chain = reader.ending_at(node)
        if chain is None:
            continue
        named = Ref(node.id) in reader.named
        if waiting and not (named and _alike(waiting[0].conv, chain.conv)):
            found.append(tuple(waiting))
            waiting = []
        waiting.append(chain)
        if not named:  # printed where it is used
            found.append(tuple(waiting))
            waiting = []
    return [*found, tuple(waiting)] if waiting else found


class _Reader:
    """Reads chains off a body."""

    def __init__(self, graph: Subgraph, among: set[int]) -> None:
        self.graph = graph
        self.named = set(graph.equations.values())
        self.uses: dict[Ref, list[Node]] = {}
        for number in reached(graph, graph.roots()):
            for ref in graph.nodes[number].inputs:
                self.uses.setdefault(ref, []).append(graph.nodes[number])
        self.roots = set(graph.roots())
        self.chains: dict[int, Chain] = {}
        for node in graph.nodes:
            if node.op == "conv1d" and node.id in among:
                chain = self._from(node, among)
                self.chains[chain.end.id] = chain

    def ending_at(self, node: Node) -> Chain | None:
        """The chain whose result the node has."""
        return self.chains.get(node.id)

    def _from(self, conv: Node, among: set[int]) -> Chain:
        nodes, activation = [conv], "none"
        follower = self._only_reader(conv, among)
        if follower is not None and follower.attrs.get("function") in ACTIVATIONS:
            nodes, activation = [conv, follower], follower.attrs["function"]
            follower = self._only_reader(follower, among)
        if follower is not None and _normalises_heads(follower):
            return Chain((*nodes, follower), activation, follower.op, follower.attrs["eps"])
        return Chain(tuple(nodes), activation)

    def _only_reader(self, node: Node, among: set[int]) -> Node | None:
        """The one node that reads a value without a name of its own."""
        ref = Ref(node.id)
        readers = self.uses.get(ref, [])
        if len(readers) != 1 or ref in self.named or ref in self.roots or readers[0].id not in among:
            return None
        return readers[0]


def _normalises_heads(node: Node) -> bool:
    weighted = node.op == "rmsnorm" and node.attrs["weight"] is not None
    return node.op in ("l2norm", "rmsnorm") and not weighted and len(node.attrs["over"]) == 1


def _alike(first: Node, second: Node) -> bool:
    widths = [Axis.of(node.attrs["width"]) for node in (first, second)]
    return widths[0] == widths[1] and bool(first.attrs["bias"]) == bool(second.attrs["bias"])
