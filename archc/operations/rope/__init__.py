"""rope: rotates pairs of entries of each head by angles that grow with the token's position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from archc.graph.calls import Call
from archc.graph.costs import Cost, Sizes
from archc.graph.types import Node, Subgraph, ValueType
from archc.graph.values import Value
from archc.operations.base import Operation, Signature
from archc.printing.printer import Code, Printer, call

LAYOUTS = ("half", "interleaved")


class Rope(Operation):
    """Su et al. 2021: entry pairs (i, i + n/2), or (2i, 2i + 1) if interleaved, turn by position * theta^(-2i/n)."""

    name = "rope"
    title = "rotary position embedding"
    positional = True
    signature = Signature.parse("x, theta: static, fraction: static?, *, layout: word?, scaling: static?")

    def build(self, call: Call) -> Value:
        """Shapes: unchanged; the last axis is rotated, or its first `fraction`."""
        x = call.value("x")
        if x.type.rate != "token" or not x.type.axes:
            call.fail("E358", "rope needs a value with tokens and at least one axis", call.span_of("x"))
        fraction = call.number("fraction", None) if call.has("fraction") else 1
        size = call.size(x.type.axes[-1])
        if size * fraction % 2:
            call.fail("E359", f"rope turns pairs, {size * fraction} entries are not even", call.span)
        if call.number("theta") <= 1:
            call.fail("E321", "theta must be above 1", call.span_of("theta"))
        scaling = call.scope.evaluate(call.static("scaling") or call.none()) if call.has("scaling") else None
        if scaling is not None and not isinstance(scaling, Mapping):
            call.fail(
                "E321", "scaling is a mapping such as {type: llama3, factor: 8}", call.span_of("scaling")
            )
        attrs = {
            "theta": call.static("theta"),
            "fraction": call.static("fraction") if fraction != 1 else None,
            "layout": call.word("layout", LAYOUTS) or "half",
            "scaling": scaling,
        }
        return call.add([x], ValueType(x.type.axes), attrs)

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`rope(x, place, theta)`."""
        printer.use("rope", "rope")
        fraction, scaling = node.attrs["fraction"], node.attrs["scaling"]
        return call(
            "rope",
            inputs[0],
            self._place(node, printer),
            printer.number(node.attrs["theta"]),
            fraction=None if fraction is None else printer.number(fraction),
            layout=None if node.attrs["layout"] == "half" else '"interleaved"',
            scaling=None if scaling is None else printer.constant(scaling),
        )

    def _place(self, node: Node, printer: Printer) -> str:
        """Where the tokens stand: those of the call, or all that a cached value was kept of."""
        key = node.attrs.get("seen")
        if key is None:
            return printer.place()
        printer.use("cache", "seen_tokens")
        return f'seen_tokens({printer.place()}, "{key}")'

    def cost(self, node: Node, graph: Subgraph, sizes: Sizes) -> Cost:
        """Three operations an entry."""
        return Cost(flops=3 * sizes.product(node.type.axes))


OPERATIONS = (Rope(),)
