"""position: where a token stands in its own sequence."""

from __future__ import annotations

from collections.abc import Sequence

from archc.graph.calls import Call
from archc.graph.types import Node, ValueType
from archc.graph.values import Value
from archc.operations.base import Operation, Signature
from archc.printing.printer import Code, Printer


class Position(Operation):
    """`position()`: 0 at the first token of each sequence, 1 at the second, ...; float32 in models of any dtype.

    Tokens that a state has seen count. What is computed from positions and parameters alone stays float32: a
    bfloat16 holds no whole number above 256 exactly.
    """

    name = "position"
    title = "the token's index in its sequence"
    positional = True
    signature = Signature.parse("")

    def build(self, call: Call) -> Value:
        """Shapes: a value of tokens without feature axes."""
        return call.add([], ValueType((), "token", low=0.0), {})

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`place.layout.positions_BT.float()`, or the positions of all tokens that a cached value was kept of."""
        key, place = node.attrs.get("seen"), printer.place()
        if key is not None:
            printer.use("cache", "seen_tokens")
            place = f'seen_tokens({place}, "{key}")'
        return Code(f"{place}.layout.positions_BT.float()")


OPERATIONS = (Position(),)
