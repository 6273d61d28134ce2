"""split, concat, reshape, repeat, roll, select, outer, contract, tensor_square: the operations that change axes."""

from __future__ import annotations

from collections.abc import Sequence

from archc.graph.calls import Call, lift, shape
from archc.graph.costs import Cost, Sizes
from archc.graph.functions import infer
from archc.graph.types import Node, Subgraph, ValueType
from archc.graph.values import Value
from archc.operations.base import Operation, Signature
from archc.printing.printer import Code, Printer, call
from archc.spec.axes import Axis


def total(axes: Sequence[Axis]) -> Axis:
    """The product of axes as one."""
    found = Axis.number(1)
    for axis in axes:
        found = found * axis
    return found


class Split(Operation):
    """Cuts the last axis into pieces; a piece given as a list is unfolded into its axes."""

    name = "split"
    title = "pieces of the last axis"
    tokenwise = True
    signature = Signature.parse("x, sizes: pieces")

    def build(self, call: Call) -> Value:
        """Shapes: [*rest, n] -> [*rest, *piece] for each piece; the pieces must add up to n."""
        x = call.value("x")
        pieces = call.pieces()
        if not x.type.axes:
            call.fail("E353", "this value has no axis that could be split", call.span_of("x"))
        *rest, last = x.type.axes
        whole = Axis.number(0)
        for axes, _ in pieces:
            whole = whole + total(axes)
        if call.expand(whole) != call.expand(last) and call.size(whole) != call.size(last):
            call.fail(
                "E355",
                f"the pieces come to {call.size(whole)}, the axis `{last}` to {call.size(last)}",
                call.span,
                help="the pieces of a split must add up to its last axis",
            )
        types = [ValueType((*rest, *axes), x.type.rate, x.type.low, x.type.high) for axes, _ in pieces]
        return call.add_several([x], types, {"pieces": tuple(axes for axes, _ in pieces)})

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`torch.split(x, [a, b], dim=-1)`; unfolding follows where a piece is used."""
        sizes = ", ".join(printer.product(axes) for axes in node.attrs["pieces"])
        return Code(f"torch.split({inputs[0].text}, [{sizes}], dim=-1)")


class Concat(Operation):
    """Joins values along the last axis; the other axes broadcast by name."""

    name = "concat"
    title = "values joined along the last axis"
    tokenwise = True
    signature = Signature.parse("parts: values")

    def build(self, call: Call) -> Value:
        """Shapes: [*rest, a], [*rest, b] -> [*rest, a + b]."""
        parts = call.values()
        for part, expr in zip(parts, call.rest):
            if not part.type.axes:
                call.fail("E353", "this value has no axis along which it could be joined", expr.span)
        rests = [part.type.axes[:-1] for part in parts]
        widest = max(rests, key=len)
        for rest, expr in zip(rests, call.rest):
            if any(axis not in widest for axis in rest):
                call.fail(
                    "E350",
                    f"this part has {shape(rest)} before its last axis, another part has {shape(widest)}",
                    expr.span,
                    note="`concat` joins along the last axis; the axes before it must be the same or fewer",
                )
        last = Axis.number(0)
        for part in parts:
            last = last + part.type.axes[-1]
        rate = lift(*(part.type.rate for part in parts))
        bounds = min(p.type.low for p in parts), max(p.type.high for p in parts)
        return call.add(parts, ValueType((*widest, last), rate, *bounds), {})

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`torch.cat`, parts expanded where they lack axes."""
        found = []
        for code, ref in zip(inputs, node.inputs):
            type_ = printer.type_of(ref)
            target = ValueType((*node.type.axes[:-1], type_.axes[-1]), node.type.rate)
            aligned = printer.align(code, type_, target)
            if type_.axes[:-1] != node.type.axes[:-1] or type_.rate != node.type.rate:
                sizes = printer.sizes(target.axes)
                if node.type.rate in ("token", "seen", "block"):
                    widest = max(
                        zip(inputs, node.inputs), key=lambda pair: len(printer.type_of(pair[1]).axes)
                    )
                    lead = (
                        f"*{printer.example() if node.type.rate == 'token' else widest[0].at(12)}.shape[:2]"
                    )
                    aligned = Code(f"{aligned.at(12)}.expand({lead}, {sizes})")
                else:
                    aligned = Code(f"{aligned.at(12)}.expand({sizes})")
            found.append(aligned.text)
        return Code(f"torch.cat(({', '.join(found)}), dim=-1)")


class Reshape(Operation):
    """The same entries in other axes, in the same order."""

    name = "reshape"
    title = "the same entries in other axes"
    tokenwise = True
    signature = Signature.parse("x, axes: axes")

    def build(self, call: Call) -> Value:
        """Shapes: [*old] -> [*new]; the products must agree."""
        x, axes = call.value("x"), call.axes("axes") or ()
        before, after = total(x.type.axes), total(axes)
        if call.expand(before) != call.expand(after) and call.size(before) != call.size(after):
            call.fail(
                "E356",
                f"{call.size(before)} entries cannot be read as {call.size(after)}",
                call.span,
                note=f"{shape(x.type.axes)} against {shape(axes)}",
                help="a reshape keeps every entry: the products of the sizes must be equal",
            )
        return call.add([x], ValueType(axes, x.type.rate, x.type.low, x.type.high), {})

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """Folded to one axis, then unfolded."""
        axes = printer.type_of(node.inputs[0]).axes
        shared = 0
        while shared < min(len(axes), len(node.type.axes)) - 1 and axes[shared] == node.type.axes[shared]:
            shared += 1
        folded = printer.fold(inputs[0], axes[shared:])
        return printer.unfold(folded, node.type.axes[shared:])


class Repeat(Operation):
    """Each entry of an axis several times: `repeat(k, n_kv_heads, n_heads)`."""

    name = "repeat"
    title = "entries of an axis repeated"
    tokenwise = True
    signature = Signature.parse("x, old: axes, new: axes")

    def build(self, call: Call) -> Value:
        """Shapes: [.., old, ..] -> [.., new, ..]; entry i of the new axis is entry floor(i * old / new)."""
        x = call.value("x")
        old, new = call.one_axis("old"), call.one_axis("new")
        if old not in x.type.axes:
            call.fail(
                "E353",
                f"`{old}` is not an axis of this value, it has {shape(x.type.axes)}",
                call.span_of("old"),
            )
        if call.size(new) % call.size(old):
            call.fail(
                "E354",
                f"the {call.size(old)} entries of `{old}` cannot be repeated to {call.size(new)}",
                call.span_of("new"),
                help=f"the new size must be a multiple of {call.size(old)}",
            )
        if new != old and new in x.type.axes:
            call.fail("E340", f"the axis `{new}` would occur twice in the result", call.span_of("new"))
        axes = tuple(new if axis == old else axis for axis in x.type.axes)
        return call.add([x], ValueType(axes, x.type.rate, x.type.low, x.type.high), {"old": old, "new": new})

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`repeat_interleave` along that axis."""
        axes = printer.type_of(node.inputs[0]).axes
        place = axes.index(node.attrs["old"]) - len(axes)
        times = f"{printer.size(node.attrs['new']).at(9)} // {printer.size(node.attrs['old']).at(10)}"
        return Code(f"{inputs[0].at(12)}.repeat_interleave({times}, dim={place})")


class Roll(Operation):
    """The entries of an axis moved on in a circle: entry i of the result is entry i - steps, modulo their number."""

    name = "roll"
    title = "entries of an axis moved on in a circle"
    tokenwise = True
    signature = Signature.parse("x, steps: static, *, over: axes?")

    def build(self, call: Call) -> Value:
        """Shapes: unchanged."""
        x = call.value("x")
        if not x.type.axes:
            call.fail("E353", "roll works along an axis, this value has none", call.span_of("x"))
        over = call.one_axis("over") if call.has("over") else x.type.axes[-1]
        if over not in x.type.axes:
            call.fail(
                "E353",
                f"`{over}` is not an axis of this value, it has {shape(x.type.axes)}",
                call.span_of("over"),
            )
        steps = call.number("steps")
        if steps % 1 != 0:
            call.fail("E321", f"roll takes whole steps, this is {float(steps):g}", call.span_of("steps"))
        return call.add([x], x.type, {"steps": call.static("steps"), "over": over})

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`x.roll(steps, dim)`."""
        place = node.type.axes.index(node.attrs["over"]) - len(node.type.axes)
        return Code(f"{inputs[0].at(12)}.roll({printer.whole(node.attrs['steps']).text}, {place})")


class Select(Operation):
    """One entry of an axis: `select(bound, n_layers, layer)`."""

    name = "select"
    title = "one entry of an axis"
    tokenwise = True
    signature = Signature.parse("x, axis: axes, index: static")

    def build(self, call: Call) -> Value:
        """Shapes: [.., axis, ..] -> [.., ..]."""
        x = call.value("x")
        axis = call.one_axis("axis")
        if axis not in x.type.axes:
            call.fail(
                "E353",
                f"`{axis}` is not an axis of this value, it has {shape(x.type.axes)}",
                call.span_of("axis"),
            )
        index = call.static("index")
        number = call.number("index")
        if not 0 <= number < call.size(axis) or number != int(number):
            call.fail(
                "E357",
                f"`{axis}` has {call.size(axis)} entries, {number} is none of them",
                call.span_of("index"),
                help=f"the first is 0, the last {call.size(axis) - 1}",
            )
        axes = tuple(a for a in x.type.axes if a != axis)
        return call.add(
            [x], ValueType(axes, x.type.rate, x.type.low, x.type.high), {"axis": axis, "index": index}
        )

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`x.select(dim, index)`."""
        axes = printer.type_of(node.inputs[0]).axes
        place = axes.index(node.attrs["axis"]) - len(axes)
        return Code(f"{inputs[0].at(12)}.select({place}, {printer.number(node.attrs['index']).text})")


class Outer(Operation):
    """The product of values over different axes."""

    name = "outer"
    title = "products over different axes"
    tokenwise = True
    signature = Signature.parse("a, b")

    def build(self, call: Call) -> Value:
        """Shapes: [*kept, a], [*kept, b] -> [*kept, a, b] where the leading axes that agree are shared."""
        a, b = call.value("a"), call.value("b")
        kept = tuple(axis for axis in a.type.axes if axis in b.type.axes)
        own = tuple(axis for axis in b.type.axes if axis not in kept)
        if not own or tuple(a.type.axes[: len(kept)]) != kept or tuple(b.type.axes[: len(kept)]) != kept:
            call.fail(
                "E350",
                f"outer takes values that share their leading axes and differ in the last ones, not "
                f"{shape(a.type.axes)} and {shape(b.type.axes)}",
                call.span,
            )
        bounds = infer("mul", [a.type, b.type])
        type_ = ValueType((*a.type.axes, *own), lift(a.type.rate, b.type.rate), bounds.low, bounds.high)
        return call.add([a, b], type_, {})

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """A product of operands indexed apart."""
        aligned = [
            printer.align(code, printer.type_of(ref), node.type) for code, ref in zip(inputs, node.inputs)
        ]
        return Code(f"{aligned[0].at(9)} * {aligned[1].at(10)}", 9)

    def cost(self, node: Node, graph: Subgraph, sizes: Sizes) -> Cost:
        """One product an entry."""
        return Cost(flops=sizes.product(node.type.axes))


class Contract(Operation):
    """The product of two values summed over an axis that both have: a matrix of the model that is no `linear`'s."""

    name = "contract"
    title = "products summed over a shared axis"
    tokenwise = True
    signature = Signature.parse("a, b, *, over: axes")

    def build(self, call: Call) -> Value:
        """Shapes: [*a], [*b] -> [*a without over, *axes that only b has]; other axes of both are kept once."""
        a, b, over = call.value("a"), call.value("b"), call.one_axis("over")
        for name, value in (("a", a), ("b", b)):
            if over not in value.type.axes:
                call.fail(
                    "E353",
                    f"`{over}` is not an axis of this value, it has {shape(value.type.axes)}",
                    call.span_of(name),
                )
        kept = tuple(axis for axis in a.type.axes if axis != over)
        own = tuple(axis for axis in b.type.axes if axis not in a.type.axes)
        rate = lift(a.type.rate, b.type.rate)
        return call.add([a, b], ValueType((*kept, *own), rate), {"over": over})

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`contract("...hk,mk->...hm", a, b)`."""
        printer.use("axes_ops", "contract")
        types = [printer.type_of(ref) for ref in node.inputs]
        letters = dict(zip(dict.fromkeys((*types[0].axes, *types[1].axes)), "abcdefghijklmnopqrstuvwxyz"))

        def names(type_: ValueType) -> str:
            text = "".join(letters[axis] for axis in type_.axes)
            return text if type_.rate in ("static", "model") else f"...{text}"

        equation = f"{names(types[0])},{names(types[1])}->{names(node.type)}"
        return call("contract", f'"{equation}"', *inputs)

    def cost(self, node: Node, graph: Subgraph, sizes: Sizes) -> Cost:
        """A multiplication and an addition for each product."""
        if node.type.rate in ("static", "model"):
            return Cost()
        return Cost(flops=2 * sizes.product((*node.type.axes, node.attrs["over"])))


class TensorSquare(Operation):
    """n (n + 1) / 2 products such that <ts(a), ts(b)> = <a, b>^2."""

    name = "tensor_square"
    title = "features whose products are squared"
    tokenwise = True
    signature = Signature.parse("x")

    def build(self, call: Call) -> Value:
        """Shapes: [*rest, n] -> [*rest, n (n + 1) / 2]."""
        x = call.value("x")
        if not x.type.axes:
            call.fail(
                "E353", "tensor_square works along the last axis, this value has none", call.span_of("x")
            )
        *rest, last = x.type.axes
        axis = last * (last + Axis.number(1)) / Axis.number(2)
        return call.add([x], ValueType((*rest, axis), x.type.rate), {})

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """The run-time function."""
        printer.use("axes_ops", "tensor_square")
        return call("tensor_square", inputs[0])

    def cost(self, node: Node, graph: Subgraph, sizes: Sizes) -> Cost:
        """Two products an entry."""
        return Cost(flops=2 * sizes.product(node.type.axes))


OPERATIONS = (Split(), Concat(), Reshape(), Repeat(), Roll(), Select(), Outer(), Contract(), TensorSquare())
__all__ = ["OPERATIONS", "total"]
