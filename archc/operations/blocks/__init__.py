"""blocks, group, regroup: values once every n tokens, and attention's weights over them (language rule 13)."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from archc.graph.calls import Call, shape
from archc.graph.costs import Cost, Sizes
from archc.graph.types import Node, Subgraph, ValueType
from archc.graph.values import Value
from archc.operations.base import Operation, Signature, StateSpec
from archc.operations.blocks.rate import KEYS, BlockRate, blocks_of
from archc.printing.printer import Code, Printer, call
from archc.spec.axes import Axis


class Blocks(Operation):
    """`blocks(x, n)`: the tokens of each whole block side by side; `stride=` lets blocks overlap.

    Block b of a sequence holds its tokens b * stride to b * stride + n - 1; incomplete blocks are not there.
    """

    name = "blocks"
    title = "the tokens of whole blocks side by side"
    signature = Signature.parse("x, n: axes, *, stride: static?, name: word?")
    suffix = "blocks"

    def build(self, call: Call) -> Value:
        """Shapes: tokens [*axes] -> blocks [n, *axes]."""
        x, n = call.value("x"), call.one_axis("n")
        if x.type.rate != "token":
            call.fail("E358", "blocks are made of a value with tokens", call.span_of("x"))
        if n in x.type.axes:
            call.fail(
                "E340",
                f"the axis `{n}` would occur twice in the result",
                call.span_of("n"),
                help="give the length of a block a parameter of its own",
            )
        width = n.expr()
        stride = call.static("stride") or width
        number = call.number("stride", call.size(n))
        if not (isinstance(number, Fraction) and number.denominator == 1 and 1 <= number <= call.size(n)):
            call.fail(
                "E321",
                f"blocks of {call.size(n)} tokens begin every 1 to {call.size(n)} tokens, this is {number}",
                call.span_of("stride"),
            )
        type_ = ValueType((n, *x.type.axes), "block", x.type.low, x.type.high)
        return call.add([x], type_, {"blocks": BlockRate(width, stride)}, name=call.member())

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`blocks(x, place, "kc_blocks", Blocks(n, stride))`."""
        printer.use("blocks", "blocks")
        return call(
            "blocks", inputs[0], printer.place(), f'"{node.name}"', printed(node.attrs["blocks"], printer)
        )

    def states(self, node: Node, graph: Subgraph) -> list[StateSpec]:
        """The last n - 1 tokens: those of blocks that are not whole yet."""
        rate: BlockRate = node.attrs["blocks"]
        kept = Axis.of(rate.width) - Axis.number(1)
        return [StateSpec(node.name, (kept, *node.type.axes[1:]), "compute")]


def printed(rate: BlockRate, printer: Printer) -> str:
    """`Blocks(self.length, self.stride)`."""
    printer.use("cache", "Blocks")
    return f"Blocks({printer.whole(rate.width).text}, {printer.whole(rate.stride).text})"


class Group(Operation):
    """`group(x, n)`: the first axis as n groups of neighbours, such as the query heads of each key head."""

    name = "group"
    title = "the first axis as groups of neighbours"
    tokenwise = True
    signature = Signature.parse("x, n: axes")

    def build(self, call: Call) -> Value:
        """Shapes: [a, *rest] -> [n, a / n, *rest]."""
        x, n = call.value("x"), call.one_axis("n")
        if not x.type.axes or x.type.axes[0] == KEYS:
            call.fail("E353", f"group needs a first axis, this has {shape(x.type.axes)}", call.span_of("x"))
        first, *rest = x.type.axes
        if call.size(first) % call.size(n):
            call.fail("E354", f"{call.size(n)} groups do not divide {call.size(first)}", call.span_of("n"))
        type_ = ValueType((n, first / n, *rest), x.type.rate, x.type.low, x.type.high, absent=x.type.absent)
        return call.add([x], type_, {})

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`unflatten` of that axis."""
        sizes = printer.shape(node.type.axes[:2])
        return Code(f"{inputs[0].at(12)}.unflatten({1 - len(node.type.axes)}, {sizes})")


class Regroup(Operation):
    """`regroup(p, n)`: weights over keys or blocks, counted in blocks of n tokens.

    A weight goes to each block of n tokens times the tokens that both hold over the stride of the old blocks
    (Yuan et al. 2025, arXiv 2502.11089, equation 9).
    """

    name = "regroup"
    title = "weights over keys counted in other blocks"
    signature = Signature.parse("x, n: static")

    def build(self, call: Call) -> Value:
        """Shapes: [*rest, keys] -> [*rest, keys]."""
        x, n = call.value("x"), call.static("n")
        assert n is not None
        if x.type.axes[-1:] != (KEYS,):
            call.fail(
                "E353",
                f"regroup needs the last axis `keys`, this has {shape(x.type.axes)}",
                call.span_of("x"),
            )
        number = call.number("n")
        if not (isinstance(number, Fraction) and number.denominator == 1 and number >= 1):
            call.fail("E321", f"a block has a whole number of tokens, this is {number}", call.span_of("n"))
        attrs = {"blocks": BlockRate(n, n), "before": blocks_of(call, x)}
        return call.add([x], ValueType(x.type.axes, x.type.rate), attrs)

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`regroup(p, place, Blocks(length, stride), block)`."""
        printer.use("blocks", "regroup")
        before = printed(node.attrs["before"], printer)
        return call("regroup", inputs[0], printer.place(), before, printer.whole(node.attrs["blocks"].width))

    def cost(self, node: Node, graph: Subgraph, sizes: Sizes) -> Cost:
        """A product and a sum for each old block that a new one touches."""
        before: BlockRate = node.attrs["before"]
        touched = (sizes.number(node.attrs["blocks"].width) + sizes.number(before.width)) / sizes.number(
            before.stride
        )
        per_key = touched / sizes.number(node.attrs["blocks"].width)
        return Cost(key_flops=max(1, int(2 * per_key * sizes.product(node.type.axes[:-1]))))


OPERATIONS = (Blocks(), Group(), Regroup())
__all__ = ["KEYS", "OPERATIONS", "BlockRate", "blocks_of", "printed"]
