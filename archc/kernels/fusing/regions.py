"""Which elementwise equations of a body one launch computes: gates, decays, mixes of a token with the one before.

A region is what can be read once and written once: elementwise nodes over the same axes, what they are made of alone,
and the values of the model that only they read. It replaces two operations of torch at least. What several launches
would read is a region of several results; a lone operation joins one over the same axes, or one whose axes of heads are
its own, which saves its launch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from archc.graph.costs import Sizes
from archc.graph.functions import FUNCTIONS as TABLE
from archc.graph.reach import reached
from archc.graph.types import Node, Ref, Subgraph
from archc.kernels.fusing.gate_functions import form_of, slopes_of
from archc.spec.axes import Axis
from archc.spec.spec import Static

WIDEST = 2048  # entries that a program holds of one token where it sums over them
RESULTS, OPERANDS = 8, 14  # of one launch
NO_OPERANDS = ("position", "arange", "ones", "zeros", "draw", "buffer", "before", "topk")  # no plain tensors
LIMIT = 400  # nodes of a body beyond which nobody looks for regions


@dataclass(frozen=True, slots=True)
class Region:
    """Elementwise nodes that one launch computes.

    `nodes`: by id, conversions to float32 that others read, too, among them. `results`: those that others read.
    `operands`: what the nodes read. `axes`: of the results; the first `outer` of them count the heads of a program, and
    some results may have those alone.
    """

    nodes: tuple[Node, ...]
    results: tuple[Ref, ...]
    operands: tuple[Ref, ...]
    axes: tuple[Axis, ...]
    outer: int

    @property
    def at(self) -> int:
        """The node in whose place the launch stands: all operands are there, and nobody has read a result."""
        return max(ref.node for ref in self.results)


def regions(graph: Subgraph, among: set[int], values: Mapping[str, Static]) -> list[Region]:
    """The regions of a body in the order of their launches.

    `among`: the nodes that may be taken. `values`: the numbers of the module.
    """
    if graph.carried or len(graph.nodes) > LIMIT:
        return []
    return _Finder(graph, among, Sizes(values)).found()


class _Finder:
    """Grows sets of nodes, each of which stays a region."""

    def __init__(self, graph: Subgraph, among: set[int], sizes: Sizes) -> None:
        self.graph = graph
        self.sizes = sizes
        self.by_head = False  # whether results may be numbers of a head
        self.roots = set(graph.roots())
        self.readers: dict[int, set[int]] = {}
        for number in reached(graph, self.roots):
            for ref in graph.nodes[number].inputs:
                self.readers.setdefault(ref.node, set()).add(number)
        self.able = {number for number in among if self._able(graph.nodes[number])}
        self.starts = [
            n
            for n in sorted(self.able)
            if graph.nodes[n].type.rate == "token" and not self._converts(graph.nodes[n])
        ]

    def found(self) -> list[Region]:
        """Pairs of a node and its reader first, then regions that read the same, then lone operations."""
        groups = self._seeds()
        groups = self._joined(groups, self._feeds)
        groups = self._joined(groups, self._share)
        self.by_head = True
        groups = self._joined(groups, lambda a, b: min(len(a), len(b)) == 1 < max(len(a), len(b)))
        made = [(self.region(group), group) for group in groups]
        kept = [region for region, group in made if region is not None and self._pays(region)]
        return sorted(kept, key=lambda region: region.at)

    def _seeds(self) -> list[set[int]]:
        """Each node alone, but what is true or false with all that read it: neither is kept in memory."""
        groups = {number: {number} for number in self.starts}
        for number in self.starts:
            if _boolean(self.graph.nodes[number]):
                for reader in self.readers.get(number, set()) & set(self.starts):
                    whole = groups[number] | groups[reader]
                    groups |= dict.fromkeys(whole, whole)
        return sorted({id(group): group for group in groups.values()}.values(), key=min)

    def _joined(self, groups: list[set[int]], wanted: Callable[[set[int], set[int]], bool]) -> list[set[int]]:
        """The groups, two of them made one where that is wanted and gives a region, until nothing changes."""
        pending, done = list(groups), list[set[int]]()
        while pending:
            group = pending.pop(0)
            for other in [*pending, *done]:
                if wanted(group, other) and self.region(group | other) is not None:
                    (pending if other in pending else done).remove(other)
                    pending.insert(0, group | other)
                    break
            else:
                done.append(group)
        return sorted(done, key=min)

    def _feeds(self, a: set[int], b: set[int]) -> bool:
        """Whether a node of one group reads one of the other."""
        nodes = self.graph.nodes
        pairs = ((a, b), (b, a))
        return any(self._plain(ref).node in x for x, y in pairs for n in y for ref in nodes[n].inputs)

    def _share(self, a: set[int], b: set[int]) -> bool:
        """Whether both read a value that tokens have."""
        first, second = (self._tokens(group) for group in (a, b))
        return bool(first & second)

    def _tokens(self, group: Iterable[int]) -> set[Ref]:
        """The operands of a group that tokens have, as they are before a conversion to float32."""
        refs = {self._plain(ref) for number in group for ref in self.graph.nodes[number].inputs}
        return {r for r in refs if r.node not in group and self.graph.type_of(r).rate == "token"}

    def _plain(self, ref: Ref) -> Ref:
        node = self.graph.nodes[ref.node]
        return node.inputs[0] if self._converts(node) else ref

    def _converts(self, node: Node) -> bool:
        return node.op == "elementwise" and node.attrs["function"] == "fp32" and node.id in self.able

    def _able(self, node: Node) -> bool:
        """Whether a kernel can compute a node and its derivative."""
        if node.op not in ("elementwise", "cast_like") or len(node.types) != 1:
            return False
        if node.type.rate not in ("token", "model") or node.type.absent:
            return False
        types = [self.graph.type_of(ref) for ref in node.inputs]
        if any(t.rate not in ("token", "model", "static") or t.absent for t in types):
            return False
        if any(self.graph.nodes[ref.node].op in NO_OPERANDS for ref in node.inputs):
            return False
        if node.op == "cast_like":
            return True
        return form_of(node, self.graph) is not None and slopes_of(node, self.graph) is not None

    def region(self, group: set[int]) -> Region | None:
        """A group with what only it reads of the model, or None where it is no region."""
        nodes = self.graph.nodes
        inside = {*group, *self._conversions(group), *self._of_the_model(group)}
        results = [
            Ref(n)
            for n in sorted(group)
            if Ref(n) in self.roots or not self.readers.get(n, set()) <= inside or n not in self.readers
        ]
        if not 0 < len(results) <= RESULTS:
            return None
        axes = max((nodes[ref.node].type.axes for ref in results), key=len)
        last = max(ref.node for ref in results)
        for ref in results:
            outside = self.readers.get(ref.node, set()) - inside
            own = nodes[ref.node].type.axes
            if own != axes and not self.by_head or any(reader <= last for reader in outside):
                return None
        ordered = tuple(nodes[n] for n in sorted(inside))
        operands = tuple(
            dict.fromkeys(
                ref
                for node in ordered
                for ref in node.inputs
                if ref.node not in inside and self.graph.type_of(ref).rate != "static"
            )
        )
        if not operands or len(operands) > OPERANDS:
            return None
        if any(_boolean(nodes[ref.node]) for ref in (*operands, *results)):
            return None
        types = [self.graph.type_of(ref) for ref in operands]
        if not any(t.rate == "token" and t.axes == axes for t in types):
            return None  # nothing has the shape of a result
        outer = self._outer(axes, [*operands, *(Ref(node.id) for node in ordered)])
        return None if outer is None else Region(ordered, tuple(results), operands, axes, outer)

    def _conversions(self, group: set[int]) -> set[int]:
        """Conversions to float32 that a group reads: each launch makes its own."""
        refs = {ref.node for number in group for ref in self.graph.nodes[number].inputs}
        return {n for n in refs - group if self._converts(self.graph.nodes[n])}

    def _of_the_model(self, group: set[int]) -> set[int]:
        """Values of the model that nobody but the group reads."""
        found: set[int] = set()
        pending = list(group)
        while pending:
            for ref in self.graph.nodes[pending.pop()].inputs:
                number = ref.node
                if number in found | group or number not in self.able or Ref(number) in self.roots:
                    continue
                if self.graph.nodes[number].type.rate == "model" and self.readers[number] <= found | group:
                    found.add(number)
                    pending.append(number)
        return found

    def _outer(self, axes: tuple[Axis, ...], refs: Iterable[Ref]) -> int | None:
        """How many leading axes count heads, so that each operand has the heads, their channels, or both; or None."""
        types = [self.graph.type_of(ref) for ref in refs]
        own = {t.axes for t in types if t.rate == "token" and t.axes != axes}
        shared = {t.axes for t in types if t.rate == "model" and t.axes not in (axes, ())}
        entries = self.sizes.product(axes)
        for outer in range(len(axes) + 1):
            heads, channels = axes[:outer], axes[outer:]
            if not own <= {heads} or not shared <= {heads, channels}:
                continue
            if (own or outer) and self.sizes.product(channels) > WIDEST:
                continue
            return outer if entries else None
        return None

    def _pays(self, region: Region) -> bool:
        """Whether two operations of torch over tokens become one launch."""
        own = [n for n in region.nodes if n.type.rate == "token" and n.attrs.get("function") != "detach"]
        return len(own) > 1


def _boolean(node: Node) -> bool:
    """Whether a value is true or false."""
    return node.op == "elementwise" and TABLE[node.attrs["function"]].boolean
