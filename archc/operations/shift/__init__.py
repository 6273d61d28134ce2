"""shift: the value at an earlier token of the same sequence."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from archc.graph.calls import Call
from archc.graph.types import Node, Subgraph, ValueType
from archc.graph.values import Value
from archc.operations.base import Operation, Signature, StateSpec
from archc.printing.printer import Code, Printer, call
from archc.spec import expressions as ex
from archc.spec.axes import Axis


class Shift(Operation):
    """`shift(x)` is x one token earlier, zero before the first; `shift(x, n)` n tokens earlier."""

    name = "shift"
    title = "the value at an earlier token"
    signature = Signature.parse("x, steps: static?, *, name: word?")
    suffix = "shift"

    def build(self, call: Call) -> Value:
        """Shapes: unchanged."""
        x = call.value("x")
        if x.type.rate != "token":
            call.fail("E358", "shift needs a value with tokens", call.span_of("x"))
        steps = call.static("steps") or ex.Number(call.span, Fraction(1))
        if call.number("steps", Fraction(1)) < 1:
            call.fail("E321", "shift looks back by at least one token", call.span_of("steps"))
        low, high = min(x.type.low, 0.0), max(x.type.high, 0.0)
        return call.add([x], ValueType(x.type.axes, "token", low, high), {"steps": steps}, name=call.member())

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`shift(x, place, "past")`."""
        printer.use("shift", "shift")
        steps = printer.whole(node.attrs["steps"])
        return call(
            "shift", inputs[0], printer.place(), f'"{node.name}"', None if steps.text == "1" else steps
        )

    def states(self, node: Node, graph: Subgraph) -> list[StateSpec]:
        """The last values."""
        return [StateSpec(node.name, (Axis.of(node.attrs["steps"]), *node.type.axes), "compute")]


OPERATIONS = (Shift(),)
