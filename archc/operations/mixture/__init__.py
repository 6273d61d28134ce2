"""mixture: a weighted sum of bodies, each of which sees only the tokens that are sent to it."""

from __future__ import annotations

from collections.abc import Sequence

from archc.graph.costs import Cost, Sizes
from archc.graph.types import Node, Subgraph
from archc.operations.base import Operation, Signature
from archc.printing.printer import Code, Printer


class Mixture(Operation):
    """`mixture(body, x, weights=w)`: sum over m of w_m * body_m(the tokens whose w_m is present, in order).

    The body is a slot or part; w has one entry a body along its last axis. A body with memory keeps it for its own
    tokens only. Built by the reader of expressions, which knows the slots.
    """

    name = "mixture"
    title = "bodies that see only the tokens sent to them"
    signature = Signature.parse("body: word, x, *, weights, name: word?")

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`mixture(self.memory, x, weights, place.at("memory"))`."""
        printer.use("mixture", "mixture")
        extra: Sequence[str] = ()
        if printer.names is not None:
            extra = printer.names.call_arguments(node.attrs["modules"][0], {"mixer": "self", "site": "self"})
        place = f'{printer.place()}.at("{node.name}")'
        arguments = [f"self.{node.name}", inputs[0].text, inputs[1].text, place, *extra]
        return Code(f"mixture({', '.join(arguments)})")

    def cost(self, node: Node, graph: Subgraph, sizes: Sizes) -> Cost:
        """Two operations an entry of each result; the bodies are counted as modules."""
        return Cost(flops=2 * sizes.product(node.type.axes))


OPERATIONS = (Mixture(),)
