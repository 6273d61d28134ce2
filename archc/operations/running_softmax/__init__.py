"""running_softmax: the softmax over the tokens so far, entry by entry, as what a recurrence takes."""

from __future__ import annotations

from collections.abc import Sequence

from archc.graph.calls import Call
from archc.graph.costs import Cost, Sizes
from archc.graph.types import Node, Subgraph, ValueType
from archc.graph.values import Value
from archc.operations.base import Operation, Signature, StateSpec
from archc.printing.printer import Code, Printer, call


class RunningSoftmax(Operation):
    """w_t = exp(x_t - z_t), decay_t = z_{t-1} - z_t, with z_t = log of the sum of exp(x_s) over the tokens s <= t.

    Two results, of every entry by itself: `recurrence(q, w, v, decay=decay)` is the mean of v under a softmax over
    the tokens so far (Qin et al. 2024, arXiv 2405.21022), since w_t times the decays after t is exp(x_t) over the
    sum. The decay is 0 at the first token of a sequence, where w is 1, and never above 0.
    """

    name = "running_softmax"
    forms = ("scan",)
    title = "a softmax over the tokens so far, as a weight and a decay"
    signature = Signature.parse("x, *, name: word?")

    def build(self, call: Call) -> Value:
        """Shapes: [*axes] -> [*axes], [*axes]."""
        x = call.value("x")
        if x.type.rate != "token":
            call.fail("E358", "running_softmax needs a value with tokens", call.span_of("x"))
        weight = ValueType(x.type.axes, "token", 0.0, 1.0)
        decay = ValueType(x.type.axes, "token", float("-inf"), 0.0)
        return call.add_several([x], [weight, decay], name=call.memory())

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`running_softmax(x, place, "w")`."""
        printer.use("running_softmax", "running_softmax")
        return call("running_softmax", inputs[0], printer.place(), f'"{node.name}"')

    def states(self, node: Node, graph: Subgraph) -> list[StateSpec]:
        """z after the last token, float32; minus infinity before the first one."""
        return [StateSpec(node.name, node.type.axes, "float32", fill="-inf")]

    def cost(self, node: Node, graph: Subgraph, sizes: Sizes) -> Cost:
        """A logaddexp, a sigmoid and a logsigmoid an entry; back two sigmoids, two exponentials and a scan."""
        entries = sizes.product(node.type.axes)
        return Cost(chunk_flops=24 * entries, step_flops=24 * entries, chunk_backward_flops=28 * entries)


OPERATIONS = (RunningSoftmax(),)
