"""topk: keeps the largest entries of an axis; the others are absent (language rule 16)."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from archc.graph.calls import Call, shape
from archc.graph.costs import Cost, Sizes
from archc.graph.types import Node, Subgraph, ValueType
from archc.graph.values import Traced, Value
from archc.operations.base import Operation, Signature
from archc.operations.blocks.rate import KEYS, blocks_of
from archc.printing.printer import Code, Printer, call


class TopK(Operation):
    """`topk(x, k)` keeps the k largest entries of the last axis, chosen `by=` another value if given.

    Absent entries are minus infinity at run time: softmax gives them 0, sums and mixtures pass over them.
    """

    name = "topk"
    title = "the largest entries of an axis; the others are absent"
    signature = Signature.parse("x, k: static, *, by?, over: word?, force: pair?")

    def build(self, call: Call) -> Value:
        """Shapes: unchanged."""
        x, by = call.value("x"), call.optional("by")
        if call.word("over", ("keys",)) is not None:
            return self._over_keys(call, x)
        if call.has("force"):
            call.fail("E313", "force= is for a choice over keys", call.span_of("force"), help="add over=keys")
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

    def _over_keys(self, call: Call, x: Traced) -> Value:
        """Which blocks each query looks at: for `attention(select=)`. `force(i, j)` always chooses a block."""
        if x.type.axes[-1:] != (KEYS,):
            call.fail(
                "E353",
                f"this value has {shape(x.type.axes)}, and no axis `keys`",
                call.span_of("x"),
                help="attention(..., outputs=[out, probs]) gives weights over keys",
            )
        if call.has("by"):
            call.fail("E312", "a choice over keys is by the weights themselves", call.span_of("by"))
        number = call.number("k")
        if not (isinstance(number, Fraction) and number.denominator == 1 and number >= 1):
            call.fail("E321", f"k must be a whole number of at least 1, this is {number}", call.span_of("k"))
        force = call.pair("force")
        if force is not None and force.values:
            call.fail("E380", "force= sees `i`, `j` and numbers only", call.span_of("force"))
        attrs = {"k": call.static("k"), "force": force, "blocks": blocks_of(call, x)}
        return call.add([x], ValueType(x.type.axes, "token", 0.0, 1.0), attrs)

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """The run-time function."""
        if "blocks" in node.attrs:
            printer.use("blocks", "top_blocks")
            force = node.attrs["force"]
            return call(
                "top_blocks",
                inputs[0],
                printer.whole(node.attrs["k"]),
                printer.place(),
                printer.whole(node.attrs["blocks"].width),
                force=None if force is None else f"lambda i, j: {printer.pair(force.expr, {})}",
            )
        printer.use("topk", "topk")
        return call(
            "topk", inputs[0], printer.whole(node.attrs["k"]), by=inputs[1] if len(inputs) > 1 else None
        )

    def cost(self, node: Node, graph: Subgraph, sizes: Sizes) -> Cost:
        """One comparison an entry, and as many again."""
        if "blocks" in node.attrs:
            per_key = 2 * sizes.product(node.type.axes[:-1]) / sizes.number(node.attrs["blocks"].stride)
            return Cost(key_flops=max(1, int(per_key)))
        return Cost(flops=2 * sizes.product(node.type.axes))


OPERATIONS = (TopK(),)
