"""The values of a mixer as tiles of a kernel: which entries a program has, and the lines that make them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from archc.graph.costs import Sizes
from archc.graph.types import Module, Node, Ref, ValueType
from archc.kernels.triton_functions import HELPERS
from archc.printing.printer import Code, Printer
from archc.spec.axes import Axis
from archc.tiles.kind import RecurrenceKind

# Names that kernels and launchers have already; an argument that is called so gets another name.
RESERVED = frozenset(
    "b h g i j row result scale S S_KV at_S at_KV o_V seen_V u_V K_ V_ N_ P_ C_ in_K in_V in_P in_C in_KV "
    "BLOCK BLOCKS BLOCK_K COLUMNS QUERIES B products mixer place x_BD x_BTD y side_by_side block_K block_V columns "
    "torch triton tl F Any Tensor Place token_kernel shift_kernel decode_token".split()
).union(HELPERS)
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

    @property
    def variable(self) -> str:
        """What it gave, in the kernel and in the launcher."""
        return argument(self.name)


@dataclass(slots=True)
class Arguments:
    """What one kernel takes, in order: each name with what the launcher passes for it."""

    products: dict[str, str] = field(default_factory=dict)
    histories: dict[str, str] = field(default_factory=dict)  # the pasts of convolutions
    parameters: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, str] = field(default_factory=dict)  # in float32
    sizes: dict[str, str] = field(default_factory=dict)  # constexpr
    values: dict[str, int] = field(default_factory=dict)  # what those come to
    float32: set[str] = field(default_factory=set)  # parameters that are kept so


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


def argument(name: str) -> str:
    """What an argument of a kernel is called."""
    return f"{name}_given" if name in RESERVED else name


class Tiles:
    """Writes the values of one module as tiles of a program that has one head of one sequence.

    `_of_NAME` of a subclass makes the tile of each operation.
    """

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
        self.taken = set(RESERVED)
        # Of each convolution: where it is read, and the name of its input there.
        self.read_at: dict[str, list[tuple[Node, At, str]]] = {}
        self.block: list[str] = []
        self.places: dict[str, str] = {}  # of a head's entries: expression -> name
        self.products: dict[str, Product] = {}
        self.recurrence = self._recurrence()
        attrs = self.recurrence.attrs
        self.kind: RecurrenceKind = attrs["kind"]
        self.key: Axis = attrs["key"]
        self.value: Axis = attrs["value"]
        self.heads: Axis | None = attrs["heads"]
        self.state_heads: Axis | None = attrs["state_heads"]
        self.count = 1 if self.state_heads is None else self.sizes.axis(self.state_heads)
        self.view = Fused(self.recurrence.name, module.body.title or module.body.name, self.kind)
        self.arguments = self.view.token
        self.view.heads = "1" if self.state_heads is None else self._size(self.state_heads)
        self.view.key, self.view.value = self._size(self.key), self._size(self.value)
        self.taken |= set(self.arguments.sizes)

    def _recurrence(self) -> Node:
        """The one recurrence of the module."""
        graph = self.graph
        if graph.exports or graph.losses or graph.updates or graph.carried or self.module.slots:
            raise Unfused("other layers or a loss read values of this mixer")
        found = [node for node in graph.nodes if node.op == "recurrence"]
        if len(found) != 1:
            raise Unfused(f"{len(found)} recurrences, not one")
        kind: RecurrenceKind = found[0].attrs["kind"]
        if kind.factors or kind.normalize != "none":
            raise Unfused("factors and normalisers take several steps a token")
        return found[0]

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
        name = argument(name)
        self.arguments.sizes[name] = self._launched(self.printer.size(axis).text)
        self.arguments.values[name] = self.sizes.axis(axis)
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
