"""sum and mean over tokens: of the whole call in a loss, of a sequence in models that are not causal."""

from __future__ import annotations

from collections.abc import Sequence

from archc.graph.calls import Call
from archc.graph.costs import Cost, Sizes
from archc.graph.types import Node, Subgraph, ValueType
from archc.graph.values import Traced, Value
from archc.operations.base import Operation, Signature
from archc.printing.printer import Code, Printer, call


class OverTokens(Operation):
    """What `sum(x, over=tokens)` and `mean(x, over=tokens)` become; never called by this name."""

    name = "over_tokens"
    title = "sums and means over tokens"
    signature = Signature.parse("")

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`mean_of_call(x, place)`."""
        function = f"{node.attrs['method']}_of_{node.attrs['of']}"
        printer.use("over_tokens", function)
        return call(function, inputs[0], printer.place())

    def cost(self, node: Node, graph: Subgraph, sizes: Sizes) -> Cost:
        """One sum an entry."""
        return Cost(flops=sizes.product(node.type.axes))


def over_tokens(call: Call, x: Traced, method: str) -> Value:
    """Add the node: at model rate in a loss; at each token in a model that is not causal; else an error."""
    scope = call.scope
    if x.type.rate != "token":
        call.fail("E358", f"`{method}` over tokens needs a value with tokens", call.span_of("x"))
    if scope.in_losses:
        type_ = ValueType(x.type.axes, "model", *_bounds(x, method))
        return call.add([x], type_, {"method": method, "of": "call"}, op="over_tokens")
    if scope.settings.causal:
        call.fail(
            "E383",
            "tokens are summed over only in `losses:`",
            call.span_of("over"),
            note="the sum would hold tokens that come later, which a causal model may not see",
            help="a sum over earlier tokens is a scan or a recurrence; `model: {causal: false}` lifts the ban",
        )
    type_ = ValueType(x.type.axes, "token", *_bounds(x, method))
    return call.add([x], type_, {"method": method, "of": "sequence"}, op="over_tokens")


def _bounds(x: Traced, method: str) -> tuple[float, float]:
    low, high = x.type.low, x.type.high
    if method == "mean":
        return min(low, 0.0), max(high, 0.0)
    return (0.0 if low >= 0 else float("-inf")), (0.0 if high <= 0 else float("inf"))


OPERATIONS = (OverTokens(),)
__all__ = ["OPERATIONS", "over_tokens"]
