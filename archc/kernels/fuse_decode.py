"""One decoded token of a mixer as three or four launches: products, one kernel, product.

takes                       gives
a module of the graph       what lies between its first matrices and its last one, as the lines of one Triton kernel
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from archc.codegen.printer import Code, Printer, decimal
from archc.data import data_folder
from archc.graph.costs import Sizes
from archc.graph.types import Module, Node, Ref, ValueType
from archc.kernels.triton_functions import FUNCTIONS, HELPERS
from archc.spec import expressions as ex
from archc.spec.axes import Axis
from archc.tiles.kind import RecurrenceKind
from archc.tiles.triton_decode import read_line, state_lines

GROUP = 32768  # elements of a state that several queries read: they are held at once
TILE = 16384  # elements of any other state that are held at once: 64 a thread of 8 warps
MASKS = {"K": "in_K", "V": "in_V", "P": "in_P", "KV": "in_KV", "C": "in_C"}


class Unfused(Exception):
    """A module that keeps its torch form, with the reason."""


@dataclass(frozen=True, slots=True)
class At:
    """Which entries of a value a program has.

    `flat`: their places among all entries of a token. `index`: the same for each axis, None where the places are not
    those of whole axes. `kind`: the axes of the tile: "" for a number, "K", "V" for all values in blocks, "P" for those
    of one block, "KV" for a block of the state, "C" for channels.
    """

    flat: str
    index: tuple[str, ...] | None
    kind: str


@dataclass(frozen=True, slots=True)
class Tile:
    """A value in the kernel. `zero`: places outside of the mask hold zero."""

    code: Code
    kind: str
    zero: bool = False


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix of the mixer: its attribute, its entries as an expression of the mixer's numbers, its bias."""

    name: str
    entries: str
    size: int
    bias: bool
    source: str = ""  # the product that it multiplies; empty for the mixer's input
    inputs: int = 0


@dataclass(slots=True)
class Arguments:
    """What one kernel takes, in order: each name with what the launcher passes for it."""

    products: dict[str, str] = field(default_factory=dict)
    histories: dict[str, str] = field(default_factory=dict)  # the pasts of convolutions
    parameters: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, str] = field(default_factory=dict)  # in float32
    sizes: dict[str, str] = field(default_factory=dict)  # constexpr


@dataclass(slots=True)
class Fused:
    """What the template shows."""

    name: str
    title: str
    kind: RecurrenceKind
    first: list[Product] = field(default_factory=list)  # of the input, as one matrix
    second: list[list[Product]] = field(default_factory=list)  # of those, each group as one batched product
    last: str = ""  # the output's matrix
    token: Arguments = field(default_factory=Arguments)
    shift: Arguments = field(default_factory=Arguments)
    lines: list[str] = field(default_factory=list)
    shift_lines: list[str] = field(default_factory=list)
    channels: str = ""  # of the largest history that several heads read
    state: str = ""
    heads: str = ""  # of the state
    key: str = ""
    value: str = ""
    output: str = ""  # entries of a token of the kernel's result
    helpers: list[str] = field(default_factory=list)
    launches: int = 0


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
    environment = Environment(
        loader=FileSystemLoader(data_folder("templates")), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    batched = [number for number, group in enumerate(found.second) if len(group) > 1]
    batches = {
        number: place for place, number in enumerate(batched, 1)
    }  # joined matrices after the first ones
    return environment.get_template("kernels/decode_token.py.jinja").render(
        view=found, helpers=HELPERS, batches=batches, tile=TILE
    )


def joined_names(found: Fused) -> list[list[str]]:
    """The matrices that become one each: those over the input first, then every batch of the second ones."""
    batches = [[product.name for product in group] for group in found.second if len(group) > 1]
    return [[product.name for product in found.first], *batches]


class _Writer:
    """Writes the kernel of one module, from its last product back to its first ones."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.graph = module.subgraph
        self.sizes = Sizes(module.values)
        self.printer = Printer(module, {}, lambda kind: "")
        self.labels: dict[Ref, str] = {}
        for name, ref in self.graph.equations.items():
            self.labels.setdefault(ref, name)
        self.uses = {number: len(users) for number, users in self.graph.users().items()}
        self.tiles: dict[tuple[Ref, At], Tile] = {}
        self.taken = {*"bhgij", "S", "at_S", "S_KV", "o_V", "row", "result", "scale", "seen_V", "u_V"}
        self.read_at: dict[
            str, list[tuple[Node, At, str]]
        ] = {}  # of each convolution: where, and its input there
        self.functions: dict[str, None] = {}
        self.block: list[str] = []
        self.places: dict[str, str] = {}  # of a head's entries: expression -> name
        self.shared: list[Node] = []

    # -- the whole ------------------------------------------------------------------------------------------

    def fused(self) -> Fused:
        """Raises Unfused where the module has something that stands in no kernel."""
        graph = self.graph
        if graph.exports or graph.losses or graph.updates or graph.carried or self.module.slots:
            raise Unfused("other layers or a loss read values of this mixer")
        found = [node for node in graph.nodes if node.op == "recurrence"]
        if len(found) != 1:
            raise Unfused(f"{len(found)} recurrences, not one")
        self.recurrence = found[0]
        self.kind: RecurrenceKind = self.recurrence.attrs["kind"]
        if self.kind.factors or self.kind.normalize != "none":
            raise Unfused("factors and normalisers take several steps a token")
        attrs = self.recurrence.attrs
        self.key, self.value = attrs["key"], attrs["value"]
        self.state_heads, self.heads = attrs["state_heads"], attrs["heads"]
        count = 1 if self.state_heads is None else self.sizes.axis(self.state_heads)
        rows, columns = (1 << (self.sizes.axis(axis) - 1).bit_length() for axis in (self.key, self.value))
        if rows * (columns if self.kind.grouped else 16) > (GROUP if self.kind.grouped else TILE):
            raise Unfused(f"a state of {rows} x {columns} does not fit the registers of one program")
        self.count = count
        self.view = view = Fused(
            self.recurrence.name, self.module.body.title or self.module.body.name, self.kind
        )
        self.arguments = view.token
        view.heads = "1" if self.state_heads is None else self._size(self.state_heads)
        view.key, view.value = self._size(self.key), self._size(self.value)
        self.taken |= set(view.token.sizes)
        self._find_products()
        self._kernel()
        self._shifts()
        return self._close()

    def _find_products(self) -> None:
        """The matrices over the input, those over their results, and the last one."""
        self.products: dict[str, Product] = {}
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
        self.taken |= set(self.products)

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
        if grouped:
            count = f"{self._entries((self.heads,))} // {self._entries((self.state_heads,))}"
            self.view.token.sizes["QUERIES"] = count
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
            self.arguments.numbers["scale"] = f"{self._launched(self.printer.size(self.key).at(12))} ** -0.5"
        else:
            self.arguments.numbers["scale"] = self._launched(self.printer.number(scale).text)
        return self._variable(self.query, q, "q")

    def _shifts(self) -> None:
        """Who moves each history on: its only reader, after everything is read, or a launch of its own."""
        own: list[str] = []
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
        for node in self.shared:
            self._shift(node)

    def _shift(self, node: Node) -> None:
        """The lines that move one history on, channel by channel."""
        axes = node.type.axes
        self.block.append(f"in_C = C_ < {self._entries(axes, True)}")
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

    # -- numbers --------------------------------------------------------------------------------------------

    def _launched(self, text: str) -> str:
        """A number of the module as the launcher reads it."""
        return text.replace("self.", "mixer.")

    def _size(self, axis: Axis) -> str:
        """A size inside the kernel: a constexpr of the axis's name."""
        if axis.constant is not None:
            return str(int(axis.constant))
        text = str(axis)
        name = text if text.isidentifier() else "n_" + "".join(c if c.isalnum() else "_" for c in text)
        self.arguments.sizes[name] = self._launched(self.printer.size(axis).text)
        return name

    def _entries(self, axes: Sequence[Axis], inside: bool = False) -> str:
        """The product of sizes, in the launcher or inside the kernel."""
        if inside:
            text = " * ".join(self._size(axis) for axis in axes) or "1"
            return f"({text})" if len(axes) > 1 else text
        return self._launched(self.printer.product(axes))

    def _natural(self, type_: ValueType, kind: str) -> At:
        """The entries of a value that belong to the program's head and tile."""
        index: list[str] = []
        last = {"K": (self.key,), "V": (self.value,), "KV": (self.key, self.value), "": ()}[kind]
        left = list(last)
        for axis in reversed(type_.axes):
            if left and axis == left[-1]:
                letter = ("K", "V")[len(left) - 1] if kind == "KV" else kind
                index.append(
                    f"{letter}_" if kind != "KV" else {"K": "K_[:, None]", "V": "P_[None, :]"}[letter]
                )
                left.pop()
            else:
                index.append(self._head(axis))
        if left and kind != "KV":
            kind = ""  # the same for all entries of the axis
        index.reverse()
        if kind == "KV" and left:
            raise Unfused("a decay for each entry without both axes")
        return self._at(type_.axes, tuple(index), kind)

    def _head(self, axis: Axis) -> str:
        """The program's place along an axis of heads."""
        if axis == self.state_heads:
            return "h"
        if self.kind.grouped and axis == self.heads:
            return "g"
        count = self.sizes.axis(axis)
        if count == 1:
            return "0"
        if self.count % count or axis in (self.key, self.value):
            raise Unfused(f"`{axis}` is no axis of heads")
        return f"h * {self._size(axis)} // {self.view.heads}"

    def _at(self, axes: Sequence[Axis], index: tuple[str, ...], kind: str) -> At:
        flat = ""
        for axis, at in zip(axes, index):
            flat = at if flat in ("", "0") else f"{flat} * {self._size(axis)} + {at}"
            if "+" in flat and axis != axes[-1]:
                flat = f"({flat})"
        return At(self._named(flat or "0", axes, kind), index, kind)

    def _named(self, flat: str, axes: Sequence[Axis], kind: str) -> str:
        """A name for the places of a head's entries, which several values share."""
        if kind not in ("K", "V") or len(axes) < 2:
            return flat
        if flat not in self.places:
            wish = f"at_{self._size(axes[0])}_{kind}" if len(axes) == 2 else f"at_{kind}"
            self.places[flat] = self._fresh(wish)
            self.block.append(f"{self.places[flat]} = {flat}")
        return self.places[flat]

    # -- tiles ----------------------------------------------------------------------------------------------

    def _tile(self, ref: Ref, at: At) -> Tile:
        """The value's entries at these places; the lines that it takes stand in the current block."""
        known = self.tiles.get((ref, at))
        if known is not None:
            return known
        node = self.graph.nodes[ref.node]
        method = getattr(self, f"_of_{node.op}", None)
        if method is None:
            raise Unfused(f"`{node.op}` stands in no kernel")
        tile: Tile = method(node, ref, at)
        named = ref in self.labels or self.uses[ref.node] > 1
        if named and not tile.code.text.isidentifier() and node.op not in ("static", "split", "reshape"):
            tile = Tile(Code(self._variable(ref, tile, "")), tile.kind, tile.zero)
        self.tiles[ref, at] = tile
        return tile

    def _variable(self, ref: Ref, tile: Tile, fallback: str) -> str:
        """A name for the tile: its own, or that of its equation and axes."""
        if tile.code.text.isidentifier():
            return tile.code.text
        node = self.graph.nodes[ref.node]
        label = self.labels.get(ref) or fallback or f"{node.equation}_{node.attrs.get('function', node.op)}"
        name = self._fresh(f"{label}_{tile.kind}")
        self.block.append(f"{name} = {tile.code.text}")
        return name

    def _fresh(self, wish: str) -> str:
        name, number = wish, 2
        while name in self.taken:
            name, number = f"{wish}_{number}", number + 1
        self.taken.add(name)
        return name

    def _clean(self, tile: Tile) -> Tile:
        """Zero outside of the mask."""
        if tile.zero or tile.kind not in MASKS:
            return tile
        return Tile(Code(f"tl.where({MASKS[tile.kind]}, {tile.code.text}, 0.0)"), tile.kind, True)

    def _load(self, pointer: str, at: At) -> Tile:
        where = f"{pointer} + {at.flat}" if at.flat != "0" else pointer
        text = f"tl.load({where}, {MASKS[at.kind]}, 0.0)" if at.kind else f"tl.load({where})"
        return Tile(Code(f"{text}.to(tl.float32)"), at.kind, True)

    def _of_linear(self, node: Node, ref: Ref, at: At) -> Tile:
        product = self.products.get(node.name)
        if product is None:
            raise Unfused(f"the matrix of `{node.name}` is not among the first ones")
        width = self._entries(node.type.axes, True) if product.source else "row"
        self.arguments.products[node.name] = node.name
        found = self._load(f"{node.name} + b * {width}", at)
        if not product.bias:
            return found
        bias = self._parameter(f"{node.name}_bias", f"{node.name}.bias")
        return Tile(Code(f"{found.code.text} + {self._load(bias, at).code.text}", 8), at.kind, True)

    def _parameter(self, name: str, attribute: str) -> str:
        self.arguments.parameters[name] = f"mixer.{attribute}"
        self.taken.add(name)
        return name

    def _of_param(self, node: Node, ref: Ref, at: At) -> Tile:
        if node.attrs.get("share") not in (None, "none"):
            raise Unfused(f"`{node.name}` is shared")
        return self._load(self._parameter(node.name, node.name), at)

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
        return Tile(Code(form.triton.format(*codes), form.level), at.kind, zero)

    def _part(self, axes: Sequence[Axis], own: Sequence[Axis], at: At) -> At:
        """The entries of an operand that has some of the axes."""
        if tuple(own) == tuple(axes):
            return at
        if not own:
            return At("0", (), "")
        if at.index is None:
            raise Unfused("operands of different axes among channels")
        index = tuple(at.index[axes.index(axis)] for axis in own)
        letters = {"KV": "KP", "": ""}.get(at.kind, at.kind)
        kind = "".join(letter for letter in letters if any(f"{letter}_" in part for part in index))
        kind = {"KP": "KV"}.get(kind, kind)
        return self._at(own, tuple(self._alone_in_tile(part, kind, at.kind) for part in index), kind)

    def _alone_in_tile(self, part: str, kind: str, whole: str) -> str:
        """An index of a tile of two axes as that of one."""
        if whole == "KV" and kind != "KV":
            return part.replace("[:, None]", "").replace("[None, :]", "")
        return part

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
        self.arguments.histories[node.name] = node.name
        channels = self._entries(node.type.axes, True)
        return f"{node.name}, b, {at.flat}, {MASKS[at.kind]}, {channels}, {self._width(node)}"

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
