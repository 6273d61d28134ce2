"""conv1d: a causal depthwise convolution over the tokens of a sequence."""

from __future__ import annotations

from collections.abc import Sequence

from archc.graph.calls import Call
from archc.graph.costs import Cost, Sizes
from archc.graph.types import Node, Ref, Subgraph, ValueType
from archc.graph.values import Value
from archc.operations.axes_ops import total
from archc.operations.base import Operation, Signature, StateSpec
from archc.printing.printer import Code, Printer, call
from archc.spec import expressions as ex
from archc.spec.axes import Axis


class Conv1d(Operation):
    """y_t = sum_j weight[:, width - 1 - j] x_{t - j} (+ bias), each channel for itself."""

    name = "conv1d"
    kernel_files = {"fused_conv": "fused.py", "conv_kernels": "kernels.py"}
    title = "a causal depthwise convolution over the tokens"
    signature = Signature.parse("x, width: static, *, bias: static?, init: init?, bias_init: init?")
    suffix = "conv"
    weighted = True

    def build(self, call: Call) -> Value:
        """Shapes: unchanged; the weight is `[channels, width]` over all feature axes."""
        x = call.value("x")
        if x.type.rate != "token":
            call.fail("E358", "conv1d needs a value with tokens", call.span_of("x"))
        if call.number("width") < 1:
            call.fail("E321", "the width of a convolution is at least 1", call.span_of("width"))
        name = call.member()
        attrs = {
            "width": call.static("width"),
            "bias": call.flag("bias"),
            "init": call.init("init", x.type.axes),
            "bias_init": call.init("bias_init", x.type.axes),
            "share": call.word("share", ("none", "mixer", "site", "model")),
        }
        return call.add([x], ValueType(x.type.axes), attrs, name=name)

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`self.q_conv(x, place, "q_conv")`."""
        return call(printer.member(node), inputs[0], printer.place(), f'"{node.name}"')

    def emit_branch(
        self, node: Node, x: Code, printer: Printer, activation: str, norm: str, eps: ex.Expr | None
    ) -> Code:
        """`Conv(self.q_conv, "q_conv", x, "silu", l2norm=1e-06)`, an argument of `conv_act_norm`."""
        printer.use("fused_conv", "Conv", "conv_act_norm")
        return call(
            "Conv",
            printer.member(node),
            f'"{node.name}"',
            x,
            None if activation == "none" else f'"{activation}"',
            **{} if eps is None else {norm: printer.number(eps)},
        )

    def declare(self, node: Node, printer: Printer) -> list[str]:
        """`self.q_conv = CausalConv1d(channels, width)`."""
        printer.use("conv1d", "CausalConv1d")
        width: ex.Expr = node.attrs["width"]
        text = call(
            "CausalConv1d",
            printer.product(node.type.axes),
            printer.whole(width),
            bias="True" if node.attrs["bias"] else None,
        )
        return [f"self.{node.name} = {text.text}"]

    def initial(self, node: Node) -> list[tuple[str, tuple[Axis, ...], Ref | None]]:
        """Weight and bias, where they have inits of their own."""
        found = [(f"{node.name}.weight", node.type.axes, node.attrs["init"])]
        if node.attrs["bias"]:
            found.append((f"{node.name}.bias", node.type.axes, node.attrs["bias_init"]))
        return found

    def parameters(self, node: Node, sizes: Sizes) -> list[tuple[str, tuple[int, ...]]]:
        """`[channels, width]`, as in torch's Conv1d without its middle axis."""
        channels, width = sizes.product(node.type.axes), int(sizes.number(node.attrs["width"]))
        found: list[tuple[str, tuple[int, ...]]] = [(f"{node.name}.weight", (channels, width))]
        return [*found, (f"{node.name}.bias", (channels,))] if node.attrs["bias"] else found

    def states(self, node: Node, graph: Subgraph) -> list[StateSpec]:
        """The last width - 1 inputs."""
        return [
            StateSpec(
                node.name, (Axis.of(node.attrs["width"]) - Axis.number(1), total(node.type.axes)), "compute"
            )
        ]

    def cost(self, node: Node, graph: Subgraph, sizes: Sizes) -> Cost:
        """2 FLOPs for each weight."""
        channels, width = sizes.product(node.type.axes), int(sizes.number(node.attrs["width"]))
        bias = channels if node.attrs["bias"] else 0
        return Cost(parameters=channels * width + bias, flops=2 * channels * width + bias)


OPERATIONS = (Conv1d(),)
