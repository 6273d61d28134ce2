"""scan: a vector state, h_t = exp(decay_t) h_{t-1} + x_t, entry by entry, real or complex."""

from __future__ import annotations

from collections.abc import Sequence

from archc.graph.calls import Call
from archc.graph.costs import Cost, Sizes
from archc.graph.types import Node, Subgraph, ValueType
from archc.graph.values import Value
from archc.operations.base import Operation, Signature, StateSpec
from archc.printing.printer import Code, Printer, call


class Scan(Operation):
    """h_t = exp(decay_t) * h_{t-1} + x_t; the decay is a logarithm, at most 0.

    With `angle=` the state is complex, h_t = exp(decay_t + i angle_t) h_{t-1} + x_t + i imag_t, and there are two
    results, its real and its imaginary part.
    """

    name = "scan"
    kernel_files = {"fused_scan": "fused.py", "scan_kernels": "kernels.py"}
    with_kernels = {("scan", "scan"): ("fused_scan", "scan")}
    forms = ("step", "scan")
    title = "a vector state that decays entry by entry"
    signature = Signature.parse("x, *, decay, angle?, imag?, name: word?")

    def build(self, call: Call) -> Value:
        """Shapes: x [*axes]; decay, angle and imag the same or fewer axes -> [*axes], twice with an angle."""
        x, decay = call.value("x"), call.value("decay")
        if x.type.rate != "token":
            call.fail("E358", "scan needs a value with tokens", call.span_of("x"))
        if decay.type.high > 0:
            call.fail(
                "E375",
                "this decay is not known to be at most 0, so the state could grow without bound",
                call.span_of("decay"),
                note="decay is the logarithm of what is kept",
                help="write what cannot be positive: -exp(...) * softplus(...), logsigmoid(...), or min(..., 0)",
            )
        order, inputs = ["x", "decay"], [x, decay]
        for name in ("angle", "imag"):
            if (value := call.optional(name)) is not None:
                order.append(name)
                inputs.append(value)
        for name, value in zip(order[1:], inputs[1:]):
            extra = [axis for axis in value.type.axes if axis not in x.type.axes]
            if extra:
                what = {"decay": "the decay", "angle": "the angle", "imag": "the imaginary part"}[name]
                call.fail("E350", f"{what} has the axis `{extra[0]}`, the value has not", call.span_of(name))
        if "imag" in order and "angle" not in order:
            call.fail(
                "E313",
                "`imag` of `scan` needs `angle`",
                call.span_of("imag"),
                note="without an angle the state is real, and so is what is added to it",
                help="give angle=, or write a second scan for the other part",
            )
        name = call.memory()
        type_, attrs = ValueType(x.type.axes), {"order": tuple(order)}
        if "angle" in order:
            return call.add_several(inputs, [type_, type_], attrs, name=name)
        return call.add(inputs, type_, attrs, name=name)

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`scan(x, decay, place, "h")`, or `complex_scan(x, imag, decay, angle, place, "h")`."""
        codes = {
            name: printer.align(code, printer.type_of(ref), node.type) if name != "x" else code
            for name, code, ref in zip(node.attrs["order"], inputs, node.inputs)
        }
        key = f'"{node.name}"'
        if "angle" in codes:
            printer.use("scan", "complex_scan")
            imag = codes.get("imag", "None")
            return call(
                "complex_scan", codes["x"], imag, codes["decay"], codes["angle"], printer.place(), key
            )
        printer.use("scan", "scan")
        return call("scan", codes["x"], codes["decay"], printer.place(), key)

    def states(self, node: Node, graph: Subgraph) -> list[StateSpec]:
        """The last state, float32; with an angle also its imaginary part."""
        found = [StateSpec(node.name, node.type.axes, "float32")]
        if "angle" in node.attrs["order"]:
            found.append(StateSpec(f"{node.name}.imag", node.type.axes, "float32"))
        return found

    def cost(self, node: Node, graph: Subgraph, sizes: Sizes) -> Cost:
        """An entry: an exponential (4 FLOPs), a product and a sum; complex also sine, cosine, and 8 for the sum."""
        entries = sizes.product(node.type.axes)
        flops = (12 + 2 + 8 if "angle" in node.attrs["order"] else 4 + 2) * entries
        return Cost(chunk_flops=flops, step_flops=flops, chunk_backward_flops=2 * flops)


OPERATIONS = (Scan(),)
