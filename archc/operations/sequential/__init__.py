"""sequential and before: a cell evaluated token by token, which reads its own values of the token before."""

from __future__ import annotations

from collections.abc import Sequence

from archc.graph.calls import Call, shape
from archc.graph.costs import Cost
from archc.graph.types import Node, Subgraph, ValueType
from archc.graph.values import Value
from archc.operations.base import Operation, Signature, StateSpec
from archc.printing.printer import Code, Printer
from archc.spec import expressions as ex


class Before(Operation):
    """`before(h, [n_heads, head_dim])`: what the equation `h` of this part was at the token before, float32.

    `start`: what it is at the first token of a sequence, a number or `-inf`; 0 without it.
    """

    name = "before"
    title = "an equation of a part at the token before"
    tokenwise = True
    signature = Signature.parse("equation: word, axes: axes, *, start: static?")

    def build(self, call: Call) -> Value:
        """Shapes: `axes`, which the equation must have too. One memory for all calls with the same name."""
        name, axes = call.word("equation"), call.axes("axes") or ()
        given = call.given.get("start")
        inner = given.operand if isinstance(given, ex.Unary) and given.op == "-" else None
        lowest = isinstance(inner, ex.Name) and inner.id == "inf"
        if not lowest and call.has("start"):
            call.number("start")
        start = "-inf" if lowest else call.static("start") or "zeros"
        attrs = {"equation": str(name), "start": start}
        return call.scope.before(call, attrs, ValueType(axes))

    def states(self, node: Node, graph: Subgraph) -> list[StateSpec]:
        """The value after the last token, float32."""
        return [StateSpec(node.attrs["equation"], node.type.axes, "float32", fill=node.attrs["start"])]


class Sequential(Operation):
    """`sequential(cell, u, ...)`: the part `cell` at each token, one after the other.

    For recurrences that no parallel form computes: those whose gates read the state, in the part's equations by
    `before`. What does not depend on the token before is best computed outside and handed over.
    """

    name = "sequential"
    title = "a part evaluated token by token"
    forms = ("sequential",)
    signature = Signature.parse("part: word, inputs: values, *, name: word?")

    def build(self, call: Call) -> Value:
        """Shapes: those that the part declares for its inputs -> that of its `y`."""
        values = call.values()
        for value, expr in zip(values, call.rest):
            if value.type.rate != "token":
                call.fail(
                    "E358",
                    f"sequential needs values with tokens, this has {shape(value.type.axes)}",
                    expr.span,
                )
        return call.scope.sequential(call, values)

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`sequential(self.cell, (u,), place.at("cell"))`."""
        printer.use("sequential", "sequential")
        given = ", ".join(code.text for code in inputs) + ("," if len(inputs) == 1 else "")
        return Code(f'sequential(self.{node.name}, ({given}), {printer.place()}.at("{node.name}"))')

    def cost(self, node: Node, graph: Subgraph, sizes: object) -> Cost:
        """Nothing beside the part's own equations, which are counted for each token."""
        return Cost()


OPERATIONS = (Before(), Sequential())
