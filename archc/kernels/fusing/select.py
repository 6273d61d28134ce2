"""What packages for a GPU take instead of the torch form: functions with kernels, and products in one launch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from archc.graph.reach import reached
from archc.graph.types import Node, Ref, Subgraph

OF_NORMS = ("silu", "sigmoid")  # activations that the kernels know
OF_VALUES = ("silu", "gelu", "gelu_tanh", "relu", "sigmoid")
READERS = ("linear", "rmsnorm", "layernorm", "reshape", "dropout")


@dataclass(frozen=True, slots=True)
class Product:
    """`norm(value) * activation(gate)`, or without a norm `activation(gate) * value`, as one launch.

    `inside`: the nodes whose values the launch makes and keeps to itself.
    """

    value: Ref
    gate: Ref
    activation: str
    norm: Node | None
    inside: tuple[Node, ...]


def products(graph: Subgraph, among: set[int]) -> dict[int, Product]:
    """The products of a body that one launch computes, by the node that multiplies.

    `among`: the nodes that may be taken. What is inside is read by the product alone; an equation may be inside, and
    is computed only where somebody looks at it.
    """
    if graph.carried:
        return {}  # token by token, a cell for itself
    readers: dict[Ref, list[Node]] = {}
    for number in reached(graph, graph.roots()):
        for ref in graph.nodes[number].inputs:
            readers.setdefault(ref, []).append(graph.nodes[number])
    roots = set(graph.roots())

    def alone(ref: Ref) -> Node | None:
        """The node of a value that only one other reads."""
        once = len(readers.get(ref, ())) == 1 and ref not in roots and ref.node in among
        return graph.nodes[ref.node] if once else None

    found: dict[int, Product] = {}
    taken: set[int] = set()
    for node in graph.nodes:
        if node.id not in among or not _multiplies(node, graph):
            continue
        product = _with_norm(node, alone)
        if product is None and all(reader.op in READERS for reader in readers.get(Ref(node.id), ())):
            product = _of_values(node, alone)
        if product is not None and not taken & {inner.id for inner in product.inside}:
            found[node.id] = product
            taken |= {node.id, *(inner.id for inner in product.inside)}
    return found


def _multiplies(node: Node, graph: Subgraph) -> bool:
    """Whether a node multiplies two values of one shape that every token has."""
    if node.op != "elementwise" or node.attrs["function"] != "mul":
        return False
    types = [graph.type_of(ref) for ref in node.inputs]
    return all(t.rate == "token" and not t.absent and t.axes == node.type.axes != () for t in types)


def _orders(node: Node) -> Iterator[tuple[Ref, Ref]]:
    """The two factors, each as the first one once."""
    a, b = node.inputs
    yield a, b
    if a != b:
        yield b, a


def _activation(node: Node | None, known: tuple[str, ...]) -> str | None:
    function = None if node is None or node.op != "elementwise" else node.attrs["function"]
    return function if function in known else None


def _with_norm(node: Node, alone: Callable[[Ref], Node | None]) -> Product | None:
    """`rmsnorm(value) * gate`, the gate's activation inside where nothing else reads its result."""
    for first, second in _orders(node):
        norm, gate = alone(first), alone(second)
        if norm is None or norm.op != "rmsnorm":
            continue
        activation = _activation(gate, OF_NORMS)
        if gate is None or activation is None:
            return Product(norm.inputs[0], second, "none", norm, (norm,))
        return Product(norm.inputs[0], gate.inputs[0], activation, norm, (norm, gate))
    return None


def _of_values(node: Node, alone: Callable[[Ref], Node | None]) -> Product | None:
    """`activation(gate) * value`."""
    for first, second in _orders(node):
        gate = alone(first)
        activation = _activation(gate, OF_VALUES)
        if gate is not None and activation is not None:
            return Product(second, gate.inputs[0], activation, None, (gate,))
    return None
