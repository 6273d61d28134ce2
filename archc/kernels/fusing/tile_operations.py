"""Each operation of a mixer as the lines of a tile: what it makes of its operands at a program's places."""

from __future__ import annotations

from archc.graph.types import Node, Ref
from archc.kernels.fusing.tiles import MASKS, At, Tile, Tiles, Unfused, argument
from archc.kernels.triton_functions import FUNCTIONS
from archc.printing.printer import Code, decimal, filled
from archc.spec import expressions as ex
from archc.spec.axes import Axis


class OperationTiles(Tiles):
    """`_of_NAME` of each operation that can stand in a kernel. Raises Unfused where its form here cannot."""

    def _of_linear(self, node: Node, ref: Ref, at: At) -> Tile:
        product = self.products.get(node.name)
        if product is None:
            raise Unfused(f"the matrix of `{node.name}` is not among the first ones")
        width = self._entries(node.type.axes, True) if product.source else "row"
        self.arguments.products[product.variable] = product.variable
        found = self._load(f"{product.variable} + b * {width}", at)
        if not product.bias:
            return found
        bias = self._parameter(f"{node.name}_bias", f"{node.name}.bias")
        return Tile(Code(f"{found.code.text} + {self._load(bias, at).code.text}", 8), at.kind, True)

    def _parameter(self, name: str, attribute: str, float32: bool = False) -> str:
        name = argument(name)
        self.arguments.parameters[name] = f"mixer.{attribute}"
        self.taken.add(name)
        if float32:
            self.arguments.float32.add(name)
        return name

    def _of_param(self, node: Node, ref: Ref, at: At) -> Tile:
        if node.attrs.get("share") not in (None, "none"):
            raise Unfused(f"`{node.name}` is shared")
        return self._load(self._parameter(node.name, node.name, bool(node.attrs.get("float32"))), at)

    def _of_static(self, node: Node, ref: Ref, at: At) -> Tile:
        return Tile(Code(self._number(node.attrs["expr"])), "")

    def _number(self, expr: ex.Expr) -> str:
        """A literal where it is one, else an argument."""
        if isinstance(expr, ex.Number):
            return repr(float(decimal(expr.value)))
        text = self._launched(self.printer.number(expr).text)
        name = next((name for name, known in self.arguments.numbers.items() if known == text), "")
        if not name:
            plain = text.removeprefix("mixer.")
            name = self._fresh(plain if plain.isidentifier() else "number")
            self.arguments.numbers[name] = text
        return name

    def _of_ones(self, node: Node, ref: Ref, at: At) -> Tile:
        return Tile(Code("1.0"), "")

    def _of_cast_like(self, node: Node, ref: Ref, at: At) -> Tile:
        return self._tile(node.inputs[0], at)

    def _of_split(self, node: Node, ref: Ref, at: At) -> Tile:
        """A piece's entries among those of the whole."""
        axes = self.graph.type_of(node.inputs[0]).axes
        if len(axes) != 1:
            raise Unfused("a split of a value with heads")
        pieces = node.attrs["pieces"]
        before = [self._entries(piece, True) for piece in pieces[: ref.index]]
        flat = " + ".join([*before, at.flat])
        return self._tile(node.inputs[0], At(flat, (flat,), at.kind))

    def _of_reshape(self, node: Node, ref: Ref, at: At) -> Tile:
        axes = self.graph.type_of(node.inputs[0]).axes
        return self._tile(node.inputs[0], At(at.flat, (at.flat,) if len(axes) == 1 else None, at.kind))

    def _of_elementwise(self, node: Node, ref: Ref, at: At) -> Tile:
        """The function of its operands, each at the entries of the axes that it has."""
        function = node.attrs["function"]
        if function in ("fp32", "detach"):
            return self._tile(node.inputs[0], at)
        if function not in FUNCTIONS:
            raise Unfused(f"`{function}` stands in no kernel")
        form = FUNCTIONS[function]
        codes, zeros = [], []
        for operand in node.inputs:
            tile = self._tile(operand, self._part(node.type.axes, self.graph.type_of(operand).axes, at))
            code = tile.code
            if at.kind == "KV" and tile.kind in ("K", "P"):
                code = Code(f"{code.at(12)}{'[:, None]' if tile.kind == 'K' else '[None, :]'}")
            codes.append(code.at(form.operand))
            zeros.append(tile.zero or tile.kind == "")
        zero = form.zero(tuple(zeros)) and at.kind != ""
        return Tile(Code(filled(form.triton, *codes), form.level), at.kind, zero)

    def _of_conv1d(self, node: Node, ref: Ref, at: At) -> Tile:
        """The taps over what the sequence's history holds and the token itself."""
        if at.kind not in ("K", "V") or node.attrs["share"] not in (None, "none"):
            raise Unfused("a convolution over heads, or one that is shared")
        x = self._variable(node.inputs[0], self._tile(node.inputs[0], at), f"{node.name}_in")
        reads = self.read_at.setdefault(node.name, [])
        self.taken |= {node.name, f"{node.name}_past"}
        past = f"{node.name}_past" if not reads else f"{node.name}_past_{len(reads) + 1}"
        reads.append((node, at, x))
        weight = self._parameter(f"{node.name}_weight", f"{node.name}.weight")
        self.block.append(f"{past} = seen_before({self._history(node, at)})")
        mask, width = MASKS[at.kind], self._width(node)
        text = f"causal_conv({x}, {past}, {weight}, {at.flat}, {mask}, {width})"
        if not node.attrs["bias"]:
            return Tile(Code(text), at.kind, True)
        bias = self._parameter(f"{node.name}_bias", f"{node.name}.bias")
        return Tile(Code(f"{text} + {self._load(bias, at).code.text}", 8), at.kind, True)

    def _history(self, node: Node, at: At) -> str:
        """The arguments that find the past of these channels."""
        name = argument(node.name)
        self.arguments.histories[name] = node.name
        channels = " * ".join(self._size(axis) for axis in node.type.axes) or "1"
        return f"{name}, b, {at.flat}, {MASKS[at.kind]}, {channels}, {self._width(node)}"

    def _width(self, node: Node) -> str:
        return self._size(Axis.of(node.attrs["width"]))

    def _whole(self, node: Node, at: At) -> None:
        """A norm or a sum needs its last axis whole in the tile."""
        over = tuple(node.attrs["over"])
        axes = self.graph.type_of(node.inputs[0]).axes
        wanted = {"K": self.key, "V": self.value}.get(at.kind)
        if len(over) != 1 or over[0] != axes[-1] or at.index is None or at.index[-1] != f"{at.kind}_":
            raise Unfused(f"`{node.op}` over an axis that no program has whole")
        if wanted is None or self.sizes.axis(over[0]) != self.sizes.axis(wanted):
            raise Unfused(f"`{node.op}` over an axis that no program has whole")

    def _normed(self, node: Node, at: At) -> tuple[str, str]:
        """The operand, zero outside of the mask, and the number of its entries."""
        self._whole(node, at)
        x = self._variable(node.inputs[0], self._clean(self._tile(node.inputs[0], at)), f"{node.equation}_in")
        return x, self._size(node.attrs["over"][0])

    def _of_l2norm(self, node: Node, ref: Ref, at: At) -> Tile:
        x, _ = self._normed(node, at)
        text = f"{x} * tl.rsqrt({_sum(f'{x} * {x}', at.kind)} + {self._number(node.attrs['eps'])})"
        return Tile(Code(text, 9), at.kind, True)

    def _of_rmsnorm(self, node: Node, ref: Ref, at: At) -> Tile:
        x, size = self._normed(node, at)
        text = f"{x} * tl.rsqrt({_sum(f'{x} * {x}', at.kind)} / {size} + {self._number(node.attrs['eps'])})"
        return self._weighted(node, text, at, False)

    def _of_layernorm(self, node: Node, ref: Ref, at: At) -> Tile:
        x, size = self._normed(node, at)
        centred = self._fresh(f"{x.rstrip('_')}_centred")
        self.block.append(f"{centred} = tl.where({MASKS[at.kind]}, {x} - {_sum(x, at.kind)} / {size}, 0.0)")
        eps = self._number(node.attrs["eps"])
        text = f"{centred} * tl.rsqrt({_sum(f'{centred} * {centred}', at.kind)} / {size} + {eps})"
        return self._weighted(node, text, at, bool(node.attrs["bias"]))

    def _weighted(self, node: Node, text: str, at: At, bias: bool) -> Tile:
        """The norm's own weight and bias, over the last axes of the value."""
        axes = node.attrs["weight"]
        if axes is None:
            return Tile(Code(text, 9), at.kind, True)
        if node.attrs["share"] not in (None, "none"):
            raise Unfused("the norm's weight is shared")
        part = self._part(node.type.axes, axes, at)
        weight = self._load(self._parameter(f"{node.name}_weight", f"{node.name}.weight"), part)
        text = f"{text} * {weight.code.text}"
        if not bias:
            return Tile(Code(text, 9), at.kind, True)
        found = self._load(self._parameter(f"{node.name}_bias", f"{node.name}.bias"), part)
        return Tile(Code(f"{text} + {found.code.text}", 8), at.kind, True)

    def _of_sum(self, node: Node, ref: Ref, at: At) -> Tile:
        return self._summed(node, at, "")

    def _of_mean(self, node: Node, ref: Ref, at: At) -> Tile:
        return self._summed(node, at, self._size(node.attrs["over"][0]))

    def _summed(self, node: Node, at: At, size: str) -> Tile:
        over, type_ = node.attrs["over"], self.graph.type_of(node.inputs[0])
        if at.kind or len(over) != 1 or over[0] not in (self.key, self.value) or over[0] != type_.axes[-1]:
            raise Unfused(f"`{node.op}` over an axis that no program has whole")
        inner = self._natural(type_, "K" if over[0] == self.key else "V")
        x = self._clean(self._tile(node.inputs[0], inner))
        text = _sum(x.code.text, inner.kind)
        return Tile(Code(f"{text} / {size}", 9) if size else Code(text), "", False)


def _sum(text: str, kind: str) -> str:
    """The sum over a tile: values stand in blocks."""
    return f"tl.sum({text})" if kind == "V" else f"tl.sum({text}, 0)"
