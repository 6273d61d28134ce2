"""rmsnorm, layernorm, l2norm: normalisations over the last axis or those named by `over=`."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from archc.graph.calls import Call
from archc.graph.costs import Cost, Sizes
from archc.graph.types import Node, Ref, Subgraph, ValueType
from archc.graph.values import Value
from archc.operations.base import Operation, Signature
from archc.printing.printer import Code, Printer, call
from archc.spec import expressions as ex
from archc.spec.axes import Axis


class Norm(Operation):
    """What the normalisations share: the axes they run over must stand last."""

    tokenwise = True

    suffix = "norm"
    module = ""

    def axes_over(self, call: Call, x: ValueType) -> tuple[Axis, ...]:
        """The axes that the statistics run over."""
        over = call.axes("over") or x.axes[-1:]
        if not x.axes or tuple(x.axes[len(x.axes) - len(over) :]) != tuple(over):
            shape = ", ".join(map(str, x.axes))
            call.fail(
                "E353",
                f"`{self.name}` runs over the last axes of a value, this has [{shape}]",
                call.span_of("over") if call.has("over") else call.span_of("x"),
                help="name the last axis, or the last few in their order",
            )
        return tuple(over)

    def eps(self, call: Call, default: Fraction) -> ex.Expr:
        """The number added to the statistics: given, or the model's."""
        found = call.static("eps")
        return found if found is not None else ex.Number(call.span, default)

    def cost(self, node: Node, graph: Subgraph, sizes: Sizes) -> Cost:
        """About five operations an entry, and the weights."""
        weight = sizes.product(node.attrs["weight"]) if node.attrs.get("weight") is not None else 0
        bias = weight if node.attrs.get("bias") else 0
        return Cost(parameters=weight + bias, flops=5 * sizes.product(node.type.axes))


class WeightedNorm(Norm):
    """rmsnorm and layernorm: `weight=` names the weight's axes (default: `over`), `weight=none` leaves it out."""

    weighted = True

    def build(self, call: Call) -> Value:
        """Shapes: unchanged."""
        x = call.value("x")
        over = self.axes_over(call, x.type)
        without = "weight" in call.given and not call.has("weight")
        weight = None if without else (call.axes("weight") or over)
        if weight is not None and tuple(x.type.axes[len(x.type.axes) - len(weight) :]) != tuple(weight):
            shape = ", ".join(map(str, x.type.axes))
            call.fail(
                "E353",
                f"the weight must have the last axes of the value, which has [{shape}]",
                call.span_of("weight"),
            )
        bias = self.name == "layernorm" and weight is not None and call.flag("bias", True)
        attrs = {
            "over": over,
            "weight": weight,
            "bias": bias,
            "eps": self.eps(call, Fraction(call.scope.settings.norm_eps)),
            "init": call.init("init", weight or ()),
            "share": call.word("share", ("none", "mixer", "site", "model")),
        }
        name = call.member() if weight is not None else ""
        return call.add([x], ValueType(x.type.axes, x.type.rate), attrs, name=name)

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`self.y_norm(x)`, or the function where there is no weight."""
        return self._emit(node, inputs[0], printer)

    def _emit(self, node: Node, x: Code, printer: Printer, **more: str | Code | None) -> Code:
        if node.attrs["weight"] is not None:
            return call(printer.member(node), x, **more)
        printer.use("norms", self.name)
        dims = len(node.attrs["over"])
        named = f"({', '.join(str(d) for d in range(-dims, 0))})" if dims > 1 else None
        return call(self.name, x, eps=printer.number(node.attrs["eps"]), dims=named, **more)

    def declare(self, node: Node, printer: Printer) -> list[str]:
        """`self.y_norm = RMSNorm((n,), eps)`."""
        if node.attrs["weight"] is None:
            return []
        printer.use("norm_modules", self.module)
        dims = len(node.attrs["over"])
        text = call(
            self.module,
            printer.shape(node.attrs["weight"]),
            eps=printer.number(node.attrs["eps"]),
            dims=None if dims == 1 else str(dims),
            bias="False" if self.name == "layernorm" and not node.attrs["bias"] else None,
        )
        return [f"self.{node.name} = {text.text}"]

    def initial(self, node: Node) -> list[tuple[str, tuple[Axis, ...], Ref | None]]:
        """The weight, where it has an init of its own."""
        if node.attrs["weight"] is None:
            return []
        return [(f"{node.name}.weight", node.attrs["weight"], node.attrs["init"])]

    def parameters(self, node: Node, sizes: Sizes) -> list[tuple[str, tuple[int, ...]]]:
        """Weight and bias."""
        found = super().parameters(node, sizes)
        return [*found, (f"{node.name}.bias", found[0][1])] if node.attrs["bias"] else found


class RmsNorm(WeightedNorm):
    """x / sqrt(mean(x^2) + eps) * weight."""

    name = "rmsnorm"
    kernel_files = {"fused_norms": "fused.py", "norm_kernels": "kernels.py"}
    with_kernels = {
        ("norms", "rmsnorm"): ("fused_norms", "rmsnorm"),
        ("norm_modules", "RMSNorm"): ("fused_norms", "RMSNorm"),
    }
    title = "x / sqrt(mean(x^2) + eps) * weight"
    module = "RMSNorm"
    signature = Signature.parse("x, *, over: axes?, weight: axes?, eps: static?, init: init?")

    def emit_gated(self, node: Node, x: Code, gate: Code, activation: str, printer: Printer) -> Code:
        """`self.y_norm(x, gate=gate, activation="silu")`: times the activated gate, in packages with kernels."""
        name = None if activation == "none" else f'"{activation}"'
        return self._emit(node, x, printer, gate=gate, activation=name)


class LayerNorm(WeightedNorm):
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias."""

    name = "layernorm"
    title = "(x - mean(x)) / sqrt(var(x) + eps) * weight + bias"
    module = "LayerNorm"
    signature = Signature.parse("x, *, over: axes?, weight: axes?, bias: static?, eps: static?, init: init?")


class L2Norm(Norm):
    """x / sqrt(sum(x^2) + eps); no weight."""

    name = "l2norm"
    title = "x / sqrt(sum(x^2) + eps)"
    signature = Signature.parse("x, *, over: axes?, eps: static?")

    def build(self, call: Call) -> Value:
        """Shapes: unchanged."""
        x = call.value("x")
        attrs = {"over": self.axes_over(call, x.type), "eps": self.eps(call, Fraction(1, 1_000_000))}
        return call.add([x], ValueType(x.type.axes, x.type.rate, -1.0, 1.0), attrs)

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """The run-time function."""
        printer.use("norms", "l2norm")
        dims = len(node.attrs["over"])
        named = f"({', '.join(str(d) for d in range(-dims, 0))})" if dims > 1 else None
        return call("l2norm", inputs[0], eps=printer.number(node.attrs["eps"]), dims=named)


OPERATIONS = (RmsNorm(), LayerNorm(), L2Norm())
