"""diagonal_ssm: a linear state space with a diagonal matrix that is the same at every token."""

from __future__ import annotations

from collections.abc import Sequence

from archc.graph.calls import Call, shape
from archc.graph.costs import Cost, Sizes
from archc.graph.types import Node, Subgraph, ValueType
from archc.graph.values import Traced, Value
from archc.operations.base import Operation, Signature, StateSpec
from archc.operations.long_conv import fft_flops, own_axis
from archc.printing.printer import Code, Printer, call
from archc.spec.axes import Axis


class DiagonalSSM(Operation):
    """h_t = exp(decay + i angle) h_{t-1} + x_t,  y_t = sum_n Re((read + i read_imag) h_t), each channel for itself.

    Decay, angle and read are values of the model; without an angle everything is real. The input matrix and the step
    of a discretisation belong into the read (Gupta et al. 2022, arXiv 2203.14343; Gu et al. 2022, arXiv 2206.11893).
    Whole sequences are convolved with the kernel by FFT; a decoded token needs the state alone.
    """

    name = "diagonal_ssm"
    title = "a time-invariant linear state space, diagonal"
    signature = Signature.parse("x, *, decay, angle?, read, read_imag?, name: word?")

    def build(self, call: Call) -> Value:
        """Shapes: x [*axes]; decay, angle, read [n and some of axes, in any order] -> [*axes]."""
        x = call.value("x")
        if x.type.rate != "token":
            call.fail("E358", "diagonal_ssm needs a value with tokens", call.span_of("x"))
        operands: dict[str, Traced] = {}
        states: Axis | None = None
        for name in ("decay", "angle", "read", "read_imag"):
            value = call.optional(name)
            if value is None:
                continue
            own = own_axis(call, name, value, x, "that of the states")
            if states is not None and own != states:
                call.fail(
                    "E350",
                    f"`{name}` has the states `{own}`, the decay has `{states}`: {shape(value.type.axes)}",
                    call.span_of(name),
                )
            operands[name], states = value, own
        if operands["decay"].type.high > 0:
            call.fail(
                "E375",
                "this decay is not known to be at most 0, so the state could grow without bound",
                call.span_of("decay"),
                note="decay is the logarithm of what is kept",
                help="write what cannot be positive: -exp(...) * dt, logsigmoid(...), or min(..., 0)",
            )
        if "read_imag" in operands and "angle" not in operands:
            call.fail(
                "E313",
                "the states are real without an angle, so there is nothing for read_imag to read",
                call.span_of("read_imag"),
                help="give an angle, or leave out read_imag",
            )
        attrs = {"order": ("x", *operands), "states": states}
        inputs = [x, *operands.values()]
        return call.add(inputs, ValueType(x.type.axes), attrs, name=call.memory())

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`diagonal_ssm(x, place, "h", decay=decay, angle=angle, read=C)`."""
        printer.use("diagonal_ssm", "diagonal_ssm")
        target = ValueType((*node.type.axes, node.attrs["states"]), "model")
        named = {
            name: printer.align(code, printer.type_of(ref), target)
            for name, code, ref in zip(node.attrs["order"][1:], inputs[1:], node.inputs[1:])
        }
        return call("diagonal_ssm", inputs[0], printer.place(), f'"{node.name}"', **named)

    def states(self, node: Node, graph: Subgraph) -> list[StateSpec]:
        """The last state, float32; its last axis is the real part, and the imaginary one if there is an angle."""
        parts = Axis.number(2 if "angle" in node.attrs["order"] else 1)
        return [StateSpec(node.name, (*node.type.axes, node.attrs["states"], parts), "float32")]

    def cost(self, node: Node, graph: Subgraph, sizes: Sizes) -> Cost:
        """A convolution and, for a state, a product over each chunk; while decoding the recurrence."""
        channels, n = sizes.product(node.type.axes), sizes.axis(node.attrs["states"])
        parts = 2 if "angle" in node.attrs["order"] else 1
        chunk = channels * (fft_flops(sizes) + 4 * parts * n)  # the kernel's table, the state's
        return Cost(
            chunk_flops=chunk,
            chunk_backward_flops=2 * chunk,
            step_flops=channels * n * (12 if parts == 2 else 5),
        )


OPERATIONS = (DiagonalSSM(),)
