"""scan: a vector state, h_t = exp(decay_t) h_{t-1} + x_t, entry by entry."""

from __future__ import annotations

from collections.abc import Sequence

from archc.codegen.printer import Code, Printer, call
from archc.graph.calls import Call
from archc.graph.costs import Cost, Sizes
from archc.graph.types import Node, Subgraph, ValueType
from archc.graph.values import Value
from archc.operations.base import Operation, Signature, StateSpec


class Scan(Operation):
    """h_t = exp(decay_t) * h_{t-1} + x_t; the decay is a logarithm, at most 0."""

    name = "scan"
    title = "a vector state that decays entry by entry"
    signature = Signature.parse("x, *, decay, name: word?")

    def build(self, call: Call) -> Value:
        """Shapes: x [*axes], decay the same or fewer axes -> [*axes]."""
        x, decay = call.value("x"), call.value("decay")
        if x.type.rate != "token":
            call.fail("E358", "scan needs a value with tokens", call.span_of("x"))
        if decay.type.high > 0:
            call.fail(
                "E375",
                "this decay is not known to be at most 0, so the state could grow without bound",
                call.span_of("decay"),
                note="decay is the logarithm of what is kept",
                help="-exp(...) * softplus(...), logsigmoid(...), or min(..., 0)",
            )
        extra = [axis for axis in decay.type.axes if axis not in x.type.axes]
        if extra:
            call.fail(
                "E350", f"the decay has the axis `{extra[0]}`, the value has not", call.span_of("decay")
            )
        name = call.word("name") or call.scope.local or call.scope.equation
        name = f"{call.scope.prefix}_{name}" if call.scope.prefix else name
        return call.add([x, decay], ValueType(x.type.axes), {}, name=call.scope.state_name(call, name))

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`scan(x, decay, place, "h")`."""
        printer.use("scan", "scan")
        decay = printer.align(inputs[1], printer.type_of(node.inputs[1]), node.type)
        return call("scan", inputs[0], decay, printer.place(), f'"{node.name}"')

    def states(self, node: Node, graph: Subgraph) -> list[StateSpec]:
        """The last state, float32."""
        return [StateSpec(node.name, node.type.axes, "float32")]

    def cost(self, node: Node, graph: Subgraph, sizes: Sizes) -> Cost:
        """An exponential, a product and a sum an entry."""
        return Cost(
            chunk_flops=6 * sizes.product(node.type.axes),
            step_flops=6 * sizes.product(node.type.axes),
            chunk_backward_flops=12 * sizes.product(node.type.axes),
        )


OPERATIONS = (Scan(),)
