"""param: a free parameter of the model; arange, ones, zeros: constant values."""

from __future__ import annotations

from collections.abc import Sequence

from archc.graph.calls import Call
from archc.graph.costs import Cost, Sizes
from archc.graph.types import Node, Ref, Subgraph, ValueType
from archc.graph.values import Value
from archc.operations.base import Operation, Signature
from archc.printing.printer import Code, Printer
from archc.spec.axes import Axis


class Param(Operation):
    """`param(A_log, [n_heads], init=...)`: its name is the first argument, its start an equation."""

    name = "param"
    title = "a free parameter"
    tokenwise = True
    signature = Signature.parse("label: word, axes: axes, *, init: init?, weight_decay: static?")
    weighted = True

    def build(self, call: Call) -> Value:
        """Shapes: a value of the model, `axes`."""
        axes = call.axes("axes") or ()
        label = call.word("label")
        member = call.scope.member_name(call, label, "")
        attrs = {
            "init": call.init("init", axes),
            "weight_decay": call.flag("weight_decay", True) if call.has("weight_decay") else None,
            "share": call.word("share", ("none", "mixer", "site", "model")),
        }
        return call.add([], ValueType(axes, "model"), attrs, name=member)

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """The attribute."""
        return Code(printer.member(node))

    def declare(self, node: Node, printer: Printer) -> list[str]:
        """`self.A_log = nn.Parameter(torch.empty(...))`."""
        return [f"self.{node.name} = nn.Parameter(torch.empty({printer.sizes(node.type.axes) or '()'}))"]

    def initial(self, node: Node) -> list[tuple[str, tuple[Axis, ...], Ref | None]]:
        """The parameter with its init."""
        return [(node.name, node.type.axes, node.attrs["init"])]

    def cost(self, node: Node, graph: Subgraph, sizes: Sizes) -> Cost:
        """Its entries."""
        return Cost(parameters=sizes.product(node.type.axes))


class Buffer(Param):
    """`buffer(correction, [n_experts], init=0)`: part of the state dict, without a gradient, not a parameter.

    An equation of the same name under `updates:` gives its value after a training step.
    """

    name = "buffer"
    title = "a tensor that training updates without a gradient"
    signature = Signature.parse("label: word, axes: axes, *, init: init")

    def declare(self, node: Node, printer: Printer) -> list[str]:
        """`self.register_buffer("correction", torch.empty(...))`."""
        sizes = printer.sizes(node.type.axes) or "()"
        return [f"self.{node.name}: Tensor", f'self.register_buffer("{node.name}", torch.empty({sizes}))']

    def parameters(self, node: Node, sizes: Sizes) -> list[tuple[str, tuple[int, ...]]]:
        """None."""
        return []

    def cost(self, node: Node, graph: Subgraph, sizes: Sizes) -> Cost:
        """No parameters."""
        return Cost()


class Arange(Operation):
    """0, 1, 2, ... over all entries of the axes, the last one fastest."""

    name = "arange"
    title = "0, 1, 2, ... over the axes"
    tokenwise = True
    signature = Signature.parse("axes: axes")

    def build(self, call: Call) -> Value:
        """Shapes: a value of the model, `axes`."""
        axes = call.axes("axes") or ()
        top = 1.0
        for axis in axes:
            top *= float(call.size(axis))
        return call.add([], ValueType(axes, "model", 0.0, top - 1), {})

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`torch.arange(n)`, on the device of the module."""
        text = f"torch.arange({printer.product(node.type.axes)}, device={printer.device()})"
        several = len(node.type.axes) > 1
        return Code(f"{text}.view({printer.sizes(node.type.axes)})") if several else Code(text)


class Filled(Operation):
    """The same number everywhere."""

    title = "the same number everywhere"
    tokenwise = True
    signature = Signature.parse("axes: axes")

    def build(self, call: Call) -> Value:
        """Shapes: a value of the model, `axes`."""
        value = 1.0 if self.name == "ones" else 0.0
        return call.add([], ValueType(call.axes("axes") or (), "model", value, value), {})

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`torch.ones(n)`, on the device of the module."""
        return Code(f"torch.{self.name}({printer.sizes(node.type.axes) or '()'}, device={printer.device()})")


class Ones(Filled):
    """1 everywhere."""

    name = "ones"


class Zeros(Filled):
    """0 everywhere."""

    name = "zeros"


OPERATIONS = (Param(), Buffer(), Arange(), Ones(), Zeros())
