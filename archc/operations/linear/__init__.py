"""linear: a matrix over some axes of a value, `y = x W^T + b`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from archc.graph.calls import Call
from archc.graph.costs import Cost, Sizes
from archc.graph.reach import reached
from archc.graph.types import Node, Ref, Subgraph, ValueType
from archc.graph.values import Value
from archc.operations.base import Operation, Signature
from archc.printing.printer import Code, Printer, call
from archc.spec.axes import Axis

OWNERS = ("param", "buffer", "linear")  # what gives a value of the model the dtype of the weights


class Linear(Operation):
    """Contracts all feature axes, or those named by `over=`; `per=` gives each entry of an axis its own matrix."""

    name = "linear"
    title = "a matrix over the feature axes"
    tokenwise = True
    signature = Signature.parse(
        "x, axes: axes, *, over: axes?, per: axes?, blocks: static?, bias: static?, "
        "init: init?, bias_init: init?"
    )
    weighted = True

    def build(self, call: Call) -> Value:
        """Shapes: x [*kept, *over] -> [*kept, *axes]; the weight is [*per, *axes, *over]."""
        x = call.value("x")
        out = call.axes("axes") or ()
        over = call.axes("over") or tuple(
            axis for axis in x.type.axes if axis not in (call.axes("per") or ())
        )
        per = call.axes("per") or ()
        for axis in (*over, *per):
            if axis not in x.type.axes:
                shape = ", ".join(map(str, x.type.axes))
                call.fail(
                    "E353", f"`{axis}` is not an axis of this value, it has [{shape}]", call.span_of("over")
                )
        kept = tuple(axis for axis in x.type.axes if axis not in over)
        clash = next((axis for axis in out if axis in kept), None)
        if clash is not None:
            call.fail(
                "E340",
                f"the axis `{clash}` would occur twice in the result",
                call.span,
                help="give the new axis a size of its own under `sizes:`",
            )
        blocks = call.static("blocks")
        if blocks is not None:
            count = call.number("blocks")
            for axes, what in ((over, "input"), (out, "output")):
                total = math.prod(int(call.size(axis)) for axis in axes)
                if total % count:
                    call.fail(
                        "E354", f"{count} blocks do not divide the {what} of {total}", call.span_of("blocks")
                    )
        member = call.member()
        attrs = {
            "out": out,
            "over": over,
            "per": per,
            "kept": kept,
            "blocks": blocks,
            "bias": call.flag("bias"),
            "init": call.init("init", (*per, *out, *over)) or call.default_init((*per, *out, *over)),
            "bias_init": call.init("bias_init", (*per, *out)),
            "share": call.word("share", ("none", "mixer", "site", "model")),
        }
        return call.add([x], ValueType((*kept, *out), x.type.rate), attrs, name=member)

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`self.q(x)`, with the axes folded before and unfolded after."""
        axes = printer.type_of(node.inputs[0]).axes
        over, out, per = node.attrs["over"], node.attrs["out"], node.attrs["per"]
        if per:
            return self._per_entry(node, inputs[0], axes, printer)
        if axes[len(axes) - len(over) :] != tuple(over):
            order = [axes.index(axis) for axis in (*node.attrs["kept"], *over)]
            lead = 2 if printer.type_of(node.inputs[0]).rate == "token" else 0
            places = ", ".join(str(p + lead) for p in order)
            inputs = [Code(f"{inputs[0].at(12)}.permute({'0, 1, ' if lead else ''}{places})")]
        x = printer.fold(inputs[0], over)
        if _constant(printer.graph, node.inputs[0]):
            x = Code(f"{x.at(12)}.type_as({printer.member(node)}.weight)")
        return printer.unfold(call(printer.member(node), x), out, typed=False)

    def _per_entry(self, node: Node, x: Code, axes: Sequence[Axis], printer: Printer) -> Code:
        """A matrix for each entry of an axis, as one einsum over letters."""
        letters = dict(zip((*axes, *(a for a in node.attrs["out"] if a not in axes)), "abcdefghijklmnopqrs"))
        if set(node.attrs["out"]) & set(node.attrs["over"]):
            fresh = dict(zip(node.attrs["out"], "uvwxyz"))
        else:
            fresh = {axis: letters[axis] for axis in node.attrs["out"]}
        source = "".join(letters[axis] for axis in axes)
        per = "".join(letters[axis] for axis in node.attrs["per"])
        over = "".join(letters[axis] for axis in node.attrs["over"])
        out = "".join(fresh[axis] for axis in node.attrs["out"])
        kept = "".join(letters[axis] for axis in node.attrs["kept"])
        equation = f'"...{source},{per}{out}{over}->...{kept}{out}"'
        found = call("torch.einsum", equation, x, f"{printer.member(node)}.weight")
        return Code(f"{found.text} + {printer.member(node)}.bias", 8) if node.attrs["bias"] else found

    def declare(self, node: Node, printer: Printer) -> list[str]:
        """`self.q = nn.Linear(...)`."""
        over, out, per = (printer.product(node.attrs[key]) for key in ("over", "out", "per"))
        bias = "True" if node.attrs["bias"] else "False"
        if node.attrs["blocks"] is not None:
            printer.use("linear", "BlockLinear")
            blocks = printer.whole(node.attrs["blocks"]).text
            return [f"self.{node.name} = BlockLinear({over}, {out}, blocks={blocks}, bias={bias})"]
        if node.attrs["per"]:
            printer.use("linear", "PerEntryLinear")
            shapes = [printer.shape(node.attrs[key]) for key in ("per", "over", "out")]
            return [f"self.{node.name} = PerEntryLinear({', '.join(shapes)}, bias={bias})"]
        return [f"self.{node.name} = nn.Linear({over}, {out}, bias={bias})"]

    def initial(self, node: Node) -> list[tuple[str, tuple[Axis, ...], Ref | None]]:
        """The weight `[*per, *out, *over]` and the bias `[*per, *out]`, each with its init."""
        out, over, per = node.attrs["out"], node.attrs["over"], node.attrs["per"]
        found = [(f"{node.name}.weight", (*per, *out, *over), node.attrs["init"])]
        if node.attrs["bias"]:
            found.append((f"{node.name}.bias", (*per, *out), node.attrs["bias_init"]))
        return found

    def parameters(self, node: Node, sizes: Sizes) -> list[tuple[str, tuple[int, ...]]]:
        """`[out, over]` as in torch, `[blocks, out / blocks, over / blocks]`, or an entry's own matrices."""
        attrs = node.attrs
        if attrs["per"]:
            return super().parameters(node, sizes)
        out, over = sizes.product(attrs["out"]), sizes.product(attrs["over"])
        found: list[tuple[str, tuple[int, ...]]]
        if attrs["blocks"] is not None:
            count = int(sizes.number(attrs["blocks"]))
            found = [(f"{node.name}.weight", (count, out // count, over // count))]
        else:
            found = [(f"{node.name}.weight", (out, over))]
        return [*found, (f"{node.name}.bias", (out,))] if attrs["bias"] else found

    def cost(self, node: Node, graph: Subgraph, sizes: Sizes) -> Cost:
        """2 FLOPs for each weight and token; over a value of the model, once a call."""
        over, out, kept, per = (sizes.product(node.attrs[key]) for key in ("over", "out", "kept", "per"))
        blocks = int(sizes.number(node.attrs["blocks"])) if node.attrs["blocks"] is not None else 1
        weights = per * out * over // blocks
        bias = per * out if node.attrs["bias"] else 0
        flops = 2 * out * over * kept // blocks
        if node.type.rate == "model":
            return Cost(parameters=weights + bias, call_matrix_flops=flops)
        return Cost(parameters=weights + bias, matrix_flops=flops, flops=bias)


def _constant(graph: Subgraph, ref: Ref) -> bool:
    """Whether no weight and no token is behind a value, such as `arange(n) / n`: its dtype is nobody's then."""
    nodes = [graph.nodes[number] for number in reached(graph, [ref])]
    return all(node.type.rate in ("static", "model") and node.op not in OWNERS for node in nodes)


OPERATIONS = (Linear(),)
