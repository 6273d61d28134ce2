"""One decoded token of a mixer as three or four launches: products, one kernel, product.

takes                       gives
a module of the graph       what lies between its first matrices and its last one, as the lines of one Triton kernel
"""

from __future__ import annotations

from itertools import groupby

from archc.graph.types import Graph, Module, Node, Ref
from archc.kernels.fusing.tile_operations import OperationTiles
from archc.kernels.fusing.tiles import At, Fused, Product, Tile, Unfused, argument
from archc.kernels.kernel import Constant, Kernel
from archc.kernels.triton_functions import HELPERS
from archc.printing.printer import Code
from archc.templates import environment
from archc.tiles.triton_decode import read_line, state_lines

GROUP = 32768  # elements of a state that several queries read: they are held at once
TILE = 16384  # elements of any other state that are held at once: 64 a thread of 8 warps

_HEADER = """# mypy: disable-error-code="import,no-untyped-def,no-untyped-call,untyped-decorator,misc,assignment"
\"\"\"One decoded token of a mixer in a few launches.

Axes: B sequences, D width of the model, K and V the two axes of a head's state S. b is the program's
sequence, h its head; K_ and V_ are the places of a tile, in_K and in_V whether they exist.
\"\"\"

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from .place import Place


"""


def fuse_decode(module: Module) -> Fused | None:
    """The fused decode step of a mixer, or None where something in it needs its torch form."""
    try:
        return _Writer(module).fused()
    except Unfused:
        return None


def why_not(module: Module) -> str:
    """Why a mixer has no fused decode step; empty if it has one."""
    try:
        _Writer(module).fused()
    except Unfused as reason:
        return str(reason)
    return ""


def fused_source(found: Fused) -> str:
    """The text of the kernels and of `decode_token(mixer, x_BTD, place)`, for a module that imported triton."""
    batched = [number for number, group in enumerate(found.second) if len(group) > 1]
    batches = {
        number: place for place, number in enumerate(batched, 1)
    }  # joined matrices after the first ones
    return (
        environment()
        .get_template("kernels/decode_token.py.jinja")
        .render(view=found, helpers=HELPERS, batches=batches, tile=TILE, argument=argument)
    )


def joined_names(found: Fused) -> list[list[str]]:
    """The matrices that become one each: those over the input first, then every batch of the second ones."""
    batches = [[product.name for product in group] for group in found.second if len(group) > 1]
    return [[product.name for product in found.first], *batches]


def module_file(module: Module) -> str:
    """The file of a package that holds a mixer's fused token."""
    return f"{module.key}_token_kernels"


def module_source(found: Fused) -> str:
    """The whole text of that file."""
    return _HEADER + fused_source(found)


def token_kernels(graph: Graph, dtype: str = "bf16") -> list[Kernel]:
    """The kernels of all fused tokens of a model, as they are compiled ahead of time."""
    kernels = []
    for module in graph.modules.values():
        found = fuse_decode(module)
        if found is None:
            continue
        span = next(node.span for node in module.subgraph.nodes if node.op == "recurrence")
        source, file = module_source(found), f"{module_file(module)}.py"
        rows, width = (
            1 << (found.token.values.get(name, 1) - 1).bit_length() for name in (found.key, found.value)
        )
        columns = width if found.kind.grouped else min(width, max(TILE // rows, 16))
        cut: dict[str, Constant] = {"BLOCK_K": rows, "BLOCKS": width // columns, "COLUMNS": columns}
        warps = min(16, max(4, rows * columns // 2048))
        ragged = {product.variable for product in found.first if product.size % 16}
        for name, arguments, constants, num_warps in (
            ("token_kernel", found.token, cut, warps),
            ("shift_kernel", found.shift, {"BLOCK": 256}, 2),
        ):
            if name == "shift_kernel" and not found.shift_lines:
                continue
            pointers = [*arguments.products, *arguments.histories, *arguments.parameters]
            signature = {
                **dict.fromkeys(pointers, f"*{dtype}"),
                **dict.fromkeys(arguments.float32, "*fp32"),
                "row": "i32",
                **({"S": "*fp32", "result": f"*{dtype}"} if name == "token_kernel" else {}),
                **dict.fromkeys(arguments.numbers, "fp32"),
            }
            aligned = tuple(key for key in signature if signature[key] != "fp32" and key not in ragged)
            kernels.append(
                Kernel(
                    file,
                    source,
                    name,
                    "decode",
                    signature,
                    {**arguments.values, **constants},
                    aligned,
                    num_warps,
                    1,
                    matrix=False,
                    span=span,
                )  # fmt: skip
            )
    return kernels


class _Writer(OperationTiles):
    """Writes the kernel of one module, from its last product back to its first ones."""

    def fused(self) -> Fused:
        """Raises Unfused where the module has something that stands in no kernel."""
        rows, columns = (1 << (self.sizes.axis(axis) - 1).bit_length() for axis in (self.key, self.value))
        if rows * (columns if self.kind.grouped else 16) > (GROUP if self.kind.grouped else TILE):
            raise Unfused(f"a state of {rows} x {columns} does not fit the registers of one program")
        self._find_products()
        self._kernel()
        self._shifts()
        return self._close()

    def _find_products(self) -> None:
        """The matrices over the input, those over their results, and the last one."""
        inputs = set(self.graph.inputs.values())
        if len(inputs) != 1:
            raise Unfused("the mixer has several inputs")
        out = self.graph.nodes[self.graph.output.node]
        self.last = out
        self._plain(out)
        self.view.last = out.name
        level: dict[Ref, str] = {}
        firsts, seconds = [], []
        for node in self.graph.nodes:
            if node.op != "linear" or node is out or node.type.rate != "token":
                continue
            self._plain(node)
            source = node.inputs[0]
            if source not in inputs and source not in level:
                raise Unfused(f"the matrix of `{node.name}` stands between other operations")
            if node.name in self.products:
                continue
            made = Product(
                node.name, self._entries(node.type.axes), self.sizes.product(node.type.axes),
                bool(node.attrs["bias"]), level.get(source, ""), self.sizes.product(node.attrs["over"]),
            )  # fmt: skip
            self.products[node.name] = made
            if source in inputs:
                level[Ref(node.id)] = node.name
                firsts.append(made)
            else:
                seconds.append(made)
        if any(self.products[product.source].bias for product in seconds):
            raise Unfused("a bias stands between two matrices")
        # Sources of batched products lie side by side, and what has few columns comes last, for aligned rows.
        seconds.sort(key=lambda p: (p.inputs, p.size))
        groups = [list(group) for _, group in groupby(seconds, key=lambda p: (p.inputs, p.size))]
        for group in groups:  # a source that is read twice does not lie beside itself
            names = [product.source for product in group]
            self.view.second += [group] if len(set(names)) == len(names) else [[product] for product in group]
        order = [product.source for group in self.view.second for product in group]
        rest = sorted((p for p in firsts if p.name not in order), key=lambda p: -p.size)
        wide = [p for p in rest if p.size % 16 == 0]
        self.view.first = [
            *wide, *(self.products[name] for name in dict.fromkeys(order)), *(p for p in rest if p not in wide)
        ]  # fmt: skip
        self.taken |= {product.variable for product in self.products.values()}

    def _plain(self, node: Node) -> None:
        attrs = node.attrs
        if node.op != "linear" or attrs["per"] or attrs["blocks"] is not None or attrs["kept"]:
            raise Unfused(f"`{node.name or node.op}` is no plain matrix")
        if attrs["share"] not in (None, "none") or attrs.get("float32"):
            raise Unfused(f"the matrix of `{node.name}` is shared or kept in float32")
        axes = self.graph.type_of(node.inputs[0]).axes
        if tuple(attrs["over"]) != tuple(axes):
            raise Unfused(f"the matrix of `{node.name}` reads axes in another order")

    def _kernel(self) -> None:
        """All lines of the kernel: operands, the state block by block, what follows the read.

        Where a group of queries reads one state, it is one block, and what follows stands in a loop over them.
        """
        grouped = self.kind.grouped
        inner = self._operands()
        if not grouped:
            read = [f"o_V = tl.where(N_ == j, ({read_line(self._query())} * scale)[None, :], o_V)"]
            self.block.append("o_V = tl.zeros([BLOCKS, COLUMNS], tl.float32)")
        before, self.block = self.block, []
        if grouped:
            self.block.append("g = h * QUERIES + i")
            self.block.append(f"o_V = ({read_line(self._query())} * scale)[None, :]")
        tail = self._result()
        if grouped and self.heads is not None and self.state_heads is not None:
            count = f"{self._entries((self.heads,))} // {self._entries((self.state_heads,))}"
            self.view.token.sizes["QUERIES"] = count
            self.view.token.values["QUERIES"] = self.sizes.product((self.heads,)) // self.count
            head = "for i in range(QUERIES):  # the queries of a group read one state"
            read, tail = [head, *(f"    {line}" for line in tail)], []
        update = [*inner, *state_lines(self.kind, self.names)]
        walk = [
            f"P_ = {'' if grouped else 'j * COLUMNS + '}tl.arange(0, COLUMNS)",
            f"in_P = P_ < {self.view.value}",
            "in_KV = in_K[:, None] & in_P[None, :]",
            f"at_KV = at_S + (K_[:, None] * {self.view.value} + P_[None, :])",
            "S_KV = tl.load(at_KV, in_KV, 0.0)",
            *(read + update if self.kind.read == "exclusive" else update + read),
            "tl.store(at_KV, S_KV, in_KV)",
        ]
        if not grouped:
            head = "for j in range(BLOCKS):  # as many columns of the state as registers hold"
            walk = [head, *(f"    {line}" for line in walk)]
        self.view.lines = [*before, *walk, *tail]

    def _result(self) -> list[str]:
        """What follows the read, up to the operand of the last product."""
        ref = Ref(self.recurrence.id)
        self.tiles[ref, self._natural(self.recurrence.type, "V")] = Tile(Code("o_V"), "V", True)
        source = self.last.inputs[0]
        type_ = self.graph.type_of(source)
        at = self._natural(type_, "V")
        if at.kind != "V":
            raise Unfused("the last product reads no values of the state")
        result = self._variable(source, self._tile(source, at), "result")
        self.view.output = self._entries(type_.axes)
        width = self._entries(type_.axes, True)
        return [*self.block, f"tl.store(result + b * {width} + {at.flat}, {result}, in_V)"]

    def _operands(self) -> list[str]:
        """Tiles of what the recurrence changes its state with; gives the lines that belong to a block of it."""
        attrs = self.recurrence.attrs
        decay = {"key": "K", "value": "V", "elementwise": "V" if self.kind.decay_rate else "KV"}
        kinds = {"k": "K", "v": "V", "beta": "", "erase_write": "K", "erase_read": "K", "decay_rate": "KV"}
        kinds |= dict.fromkeys(("decay", "decay_v"), decay.get(self.kind.decay, ""))
        short = {"erase_write": "w", "erase_read": "r", "decay_rate": "rate", "decay_v": "decay"}
        self.names: dict[str, str] = {}
        inner: list[str] = []
        outer = self.block
        for name, ref in zip(attrs["order"], self.recurrence.inputs):
            if name == "q":
                self.query = ref
                continue
            kind = kinds[name]
            self.block = inner if kind == "KV" else outer
            tile = self._tile(ref, self._natural(self.graph.type_of(ref), kind))
            if tile.kind != kind:
                raise Unfused(f"`{name}` is the same along an axis of the state")
            if name in ("k", "v", "erase_write", "erase_read"):
                tile = self._clean(tile)
            variable = self._variable(ref, tile, name)
            if kind == "V":
                block = self._fresh(f"{variable.removesuffix('_V')}_P")
                one = variable if self.kind.grouped else f"tl.where(N_ == j, {variable}, 0.0)"
                inner.append(f"{block} = tl.sum({one}, 0)")
                variable = block
            self.names[short.get(name, name)] = variable
        self.block = outer
        return inner

    def _query(self) -> str:
        """The tile that reads the state; its scale becomes an argument."""
        q = self._clean(self._tile(self.query, self._natural(self.graph.type_of(self.query), "K")))
        scale = self.recurrence.attrs["scale"]
        if scale is None:
            self.arguments.numbers["scale"] = f"{self._launched(self.printer.size(self.key).at(12))}**-0.5"
        else:
            self.arguments.numbers["scale"] = self._launched(self.printer.number(scale).text)
        return self._variable(self.query, q, "q")

    def _shifts(self) -> None:
        """Who moves each history on: its only reader, after everything is read, or a launch of its own."""
        own: list[str] = []
        self.shared: list[Node] = []
        for name, reads in self.read_at.items():
            node, at, x = reads[0]
            if self.sizes.number(node.attrs["width"]) < 2:
                continue
            if len(reads) == 1 and self._alone(node, at):
                own.append(f"shift_in({x}, {name}_past, {self._history(node, at)})")
            else:
                self.shared.append(node)
        if own:
            self.view.lines += [
                "tl.debug_barrier()  # every read of a history lies before the first write",
                *own,
            ]
        self.arguments, self.block = self.view.shift, self.view.shift_lines
        for channels, nodes in groupby(self.shared, key=lambda node: self._entries(node.type.axes, True)):
            self.block.append(f"in_C = C_ < {channels}")
            for node in nodes:
                self._shift(node)

    def _shift(self, node: Node) -> None:
        """The lines that move one history on, channel by channel."""
        axes = node.type.axes
        at = At("C_", ("C_",) if len(axes) == 1 else None, "C")
        x = self._variable(node.inputs[0], self._tile(node.inputs[0], at), f"{node.name}_in")
        self.block.append(f"{node.name}_past = seen_before({self._history(node, at)})")
        self.block.append("tl.debug_barrier()")
        self.block.append(f"shift_in({x}, {node.name}_past, {self._history(node, at)})")
        largest = max(self.shared, key=lambda found: self.sizes.product(found.type.axes))
        self.view.channels = self._entries(largest.type.axes)

    def _alone(self, node: Node, at: At) -> bool:
        """Whether each channel of a convolution is read by one program."""
        heads = node.type.axes[:-1]
        if at.index is None or len(heads) > 1 or at.kind not in ("K", "V") or "g" in at.index:
            return False
        count = self.sizes.product(heads)
        last = self.key if at.kind == "K" else self.value
        whole = self.sizes.axis(node.type.axes[-1]) == self.sizes.axis(last) and at.index[-1] == f"{at.kind}_"
        return whole and count == self.count

    def _close(self) -> Fused:
        view = self.view
        used = "\n".join((*view.lines, *view.shift_lines))
        order = list(HELPERS)
        needed = {name for name in order if f"{name}(" in used}
        while True:
            inner = {n for n in order for name in needed if n != name and f"{n}(" in HELPERS[name]}
            if inner <= needed:
                break
            needed |= inner
        view.helpers = [name for name in order if name in needed]
        view.state = self.recurrence.name
        view.launches = 3 + len(view.second) + bool(self.shared)
        return view
