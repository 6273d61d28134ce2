"""long_conv: a causal convolution whose kernel is a value of the model, as long as the longest sequence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from archc.graph.calls import Call, shape
from archc.graph.costs import Cost, Sizes
from archc.graph.types import Node, Subgraph, ValueType
from archc.graph.values import Traced, Value
from archc.operations.base import Operation, Signature, StateSpec
from archc.printing.printer import Code, Printer, call
from archc.spec.axes import Axis


def own_axis(call: Call, name: str, value: Traced, x: Traced, what: str) -> Axis:
    """The one axis of a value of the model that x has not, such as the lag of a kernel."""
    if value.type.rate not in ("model", "static"):
        call.fail(
            "E378",
            f"`{name}` of `{call.operation.name}` depends on the tokens",
            call.span_of(name),
            note="what it stands for is the same at every token",
            help="make it of `param`, `arange` and numbers; `scan` and `recurrence` take values of the tokens",
        )
    extra = [axis for axis in value.type.axes if axis not in x.type.axes]
    if len(extra) != 1:
        call.fail(
            "E350",
            f"`{name}` has one axis beside those of the value, {what}; it has {shape(value.type.axes)}, the value "
            f"{shape(x.type.axes)}",
            call.span_of(name),
        )
    return extra[0]


def fft_flops(sizes: Sizes) -> int:
    """FLOPs of a convolution of one channel by FFT, a token of a sequence as long as the model's context.

    Three real transforms of twice the length, each 2.5 n log2 n as is usual, and a product.
    """
    context = sizes.values.get("context")
    length = int(context) if isinstance(context, Fraction) else 1
    return round(3 * 2.5 * 2 * math.log2(2 * length)) + 6


class LongConv(Operation):
    """y_t = sum_{j <= t} kernel[t - j] x_j, each channel for itself; lags that the kernel has not count nothing.

    The kernel is a value of the model, made by ordinary equations. Its lag is the one axis that x has not. Whole
    sequences are convolved by FFT; a decoded token reads the history of x, up to the longest lag.
    """

    name = "long_conv"
    forms = ("step", "FFT")
    title = "a convolution as long as the sequence"
    signature = Signature.parse("x, kernel, *, name: word?")

    def build(self, call: Call) -> Value:
        """Shapes: x [*axes], kernel [lag and some of axes, in any order] -> [*axes]."""
        x, kernel = call.value("x"), call.value("kernel")
        if x.type.rate != "token":
            call.fail("E358", "long_conv needs a value with tokens", call.span_of("x"))
        lag = own_axis(call, "kernel", kernel, x, "the lag")
        attrs = {"order": ("x", "kernel"), "lag": lag}
        return call.add([x, kernel], ValueType(x.type.axes), attrs, name=call.memory())

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`long_conv(x, kernel, place, "y")`."""
        printer.use("long_conv", "long_conv")
        target = ValueType((*node.type.axes, node.attrs["lag"]), "model")
        kernel = printer.align(inputs[1], printer.type_of(node.inputs[1]), target)
        return call("long_conv", inputs[0], kernel, printer.place(), f'"{node.name}"')

    def states(self, node: Node, graph: Subgraph) -> list[StateSpec]:
        """The last inputs, as many as there are lags."""
        return [StateSpec(node.name, node.type.axes, "compute", node.attrs["lag"])]

    def cost(self, node: Node, graph: Subgraph, sizes: Sizes) -> Cost:
        """Transforms over whole sequences of the model's context; a product and a sum a remembered token after that."""
        channels, lags = sizes.product(node.type.axes), sizes.axis(node.attrs["lag"])
        once = channels * fft_flops(sizes)
        return Cost(chunk_flops=once, chunk_backward_flops=2 * once, step_key_flops=2 * channels, window=lags)


OPERATIONS = (LongConv(),)
