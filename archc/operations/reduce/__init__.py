"""sum, mean, max_over, softmax, cumsum: over the last axis or the one named by `over=`."""

from __future__ import annotations

from collections.abc import Sequence

from archc.graph.calls import Call
from archc.graph.costs import Cost, Sizes
from archc.graph.types import Node, Subgraph, ValueType
from archc.graph.values import Value
from archc.operations.base import Operation, Signature
from archc.operations.over_tokens import over_tokens
from archc.printing.printer import Code, Printer
from archc.spec import expressions as ex
from archc.spec.axes import Axis


class Reduction(Operation):
    """What they share: the axes, counted from the end of the value."""

    tokenwise = True
    signature = Signature.parse("x, *, over: axes?")
    keeps = False
    method = ""

    def build(self, call: Call) -> Value:
        """Shapes: [.., over, ..] -> [.., ..], or unchanged for softmax and cumsum."""
        x = call.value("x")
        if self.method in ("sum", "mean") and is_tokens(call.given.get("over")):
            return over_tokens(call, x, self.method)
        over = call.axes("over") or x.type.axes[-1:]
        missing = next((axis for axis in over if axis not in x.type.axes), None)
        if missing is not None or not x.type.axes:
            shape = ", ".join(map(str, x.type.axes))
            call.fail(
                "E353",
                f"`{missing or 'over'}` is not an axis of this value, it has [{shape}]",
                call.span_of("over") if call.has("over") else call.span,
            )
        if self.keeps and len(over) != 1:
            call.fail("E353", f"`{self.name}` runs over one axis", call.span_of("over"))
        axes = x.type.axes if self.keeps else tuple(axis for axis in x.type.axes if axis not in over)
        low, high = self.bounds(x.type, over, call)
        return call.add([x], ValueType(axes, x.type.rate, low, high), {"over": tuple(over)})

    def bounds(self, type_: ValueType, over: Sequence[Axis], call: Call) -> tuple[float, float]:
        """Bounds of the result."""
        return type_.low, type_.high

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """A method of the tensor."""
        axes = printer.type_of(node.inputs[0]).axes
        dims = [axes.index(axis) - len(axes) for axis in node.attrs["over"]]
        dim = str(dims[0]) if len(dims) == 1 else f"({', '.join(map(str, dims))})"
        x = inputs[0]
        if printer.type_of(node.inputs[0]).absent and self.method == "sum":
            printer.use("topk", "present")
            x = Code(f"present({x.text})")
        return Code(f"{x.at(12)}.{self.method}({dim})")

    def cost(self, node: Node, graph: Subgraph, sizes: Sizes) -> Cost:
        """One operation an entry read; softmax costs six."""
        if node.type.rate == "model":
            return Cost()
        entries = sizes.product(graph.type_of(node.inputs[0]).axes)
        return Cost(flops=entries * (6 if self.name == "softmax" else 1))


def is_tokens(over: ex.Expr | None) -> bool:
    """Whether `over=` is the axis of tokens, which no value lists among its own."""
    return isinstance(over, ex.Name) and over.id == "tokens"


class Sum(Reduction):
    """The sum."""

    name = "sum"
    title = "the sum over an axis"
    method = "sum"

    def bounds(self, type_: ValueType, over: Sequence[Axis], call: Call) -> tuple[float, float]:
        """The operand's bounds times the number of entries."""
        count = 1.0
        for axis in over:
            count *= float(call.size(axis))
        return type_.low * count, type_.high * count


class Mean(Reduction):
    """The mean."""

    name = "mean"
    title = "the mean over an axis"
    method = "mean"


class MaxOver(Reduction):
    """The largest entry."""

    name = "max_over"
    title = "the largest entry of an axis"
    method = "amax"


class Softmax(Reduction):
    """exp(x) / sum(exp(x)), in float32."""

    name = "softmax"
    title = "exp(x) / sum(exp(x))"
    keeps = True
    method = "softmax"

    def bounds(self, type_: ValueType, over: Sequence[Axis], call: Call) -> tuple[float, float]:
        """Between 0 and 1."""
        return 0.0, 1.0


class Cumsum(Reduction):
    """Running sums along an axis that is not the tokens."""

    name = "cumsum"
    title = "running sums along an axis"
    keeps = True
    method = "cumsum"

    def bounds(self, type_: ValueType, over: Sequence[Axis], call: Call) -> tuple[float, float]:
        """The sign stays."""
        low = 0.0 if type_.low >= 0 else float("-inf")
        return low, 0.0 if type_.high <= 0 else float("inf")


OPERATIONS = (Sum(), Mean(), MaxOver(), Softmax(), Cumsum())
