"""topk: keeps the largest entries of an axis; the others are absent (language rule 16)."""

from __future__ import annotations

from collections.abc import Sequence

from archc.codegen.printer import Code, Printer, call
from archc.graph.calls import Call, shape
from archc.graph.costs import Cost, Sizes
from archc.graph.types import Node, Subgraph, ValueType
from archc.graph.values import Value
from archc.operations.base import Operation, Signature


class TopK(Operation):
    """`topk(x, k)` keeps the k largest entries of the last axis, chosen `by=` another value if given.

    Absent entries are minus infinity at run time: softmax gives them 0, sums and mixtures pass over them.
    """

    name = "topk"
    title = "the largest entries of an axis; the others are absent"
    signature = Signature.parse("x, k: static, *, by?")

    def build(self, call: Call) -> Value:
        """Shapes: unchanged."""
        x, by = call.value("x"), call.optional("by")
        if not x.type.axes:
            call.fail("E353", "topk chooses along the last axis, this value has none", call.span_of("x"))
        number = call.number("k")
        size = call.size(x.type.axes[-1])
        if not 1 <= number <= size:
            call.fail(
                "E321", f"k must be between 1 and {size}, the size of `{x.type.axes[-1]}`", call.span_of("k")
            )
        if by is not None and by.type.axes != x.type.axes:
            call.fail(
                "E350",
                f"`by` has {shape(by.type.axes)}, the value has {shape(x.type.axes)}",
                call.span_of("by"),
                help="what the entries are chosen by has an entry for each of them",
            )
        inputs = [x] if by is None else [x, by]
        type_ = ValueType(x.type.axes, x.type.rate, x.type.low, x.type.high, absent=True)
        return call.add(inputs, type_, {"k": call.static("k")})

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """The run-time function."""
        printer.use("topk", "topk")
        return call(
            "topk", inputs[0], printer.whole(node.attrs["k"]), by=inputs[1] if len(inputs) > 1 else None
        )

    def cost(self, node: Node, graph: Subgraph, sizes: Sizes) -> Cost:
        """One comparison an entry, and as many again."""
        return Cost(flops=2 * sizes.product(node.type.axes))


OPERATIONS = (TopK(),)
