"""dropout: entries set to zero while training."""

from __future__ import annotations

from collections.abc import Sequence

from archc.graph.calls import Call
from archc.graph.types import Node, ValueType
from archc.graph.values import Value
from archc.operations.base import Operation, Signature
from archc.printing.printer import Code, Printer


class Dropout(Operation):
    """`dropout(x, p)`: in training each entry is 0 with probability p, the others are scaled by 1 / (1 - p)."""

    name = "dropout"
    title = "entries set to zero while training"
    signature = Signature.parse("x, p: static")

    def build(self, call: Call) -> Value:
        """Shapes: unchanged."""
        x = call.value("x")
        if not 0 <= call.number("p") < 1:
            call.fail("E321", "the probability of dropout is at least 0 and below 1", call.span_of("p"))
        return call.add([x], ValueType(x.type.axes, x.type.rate), {"p": call.static("p")})

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`F.dropout(x, p, self.training)`."""
        printer.modules_used.add("F")
        return Code(f"F.dropout({inputs[0].text}, {printer.number(node.attrs['p']).text}, self.training)")


OPERATIONS = (Dropout(),)
