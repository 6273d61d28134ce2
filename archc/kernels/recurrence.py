"""The kernels of a model's recurrences: which sizes they are made for, their source, and how each is compiled."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from archc.graph.costs import Sizes
from archc.graph.types import Graph, Node
from archc.kernels.decode import decode_kernel
from archc.kernels.elementwise import WIDEST, token_launches
from archc.kernels.kernel import Constant, Kernel
from archc.kernels.targets import Target, Tile
from archc.spec.diagnostics import Span
from archc.tiles.kind import RecurrenceKind, form_of
from archc.tiles.program import SEGMENT
from archc.tiles.triton_channel_reverse import ChannelLaunch, channel_reverse_source, has_channel_reverse
from archc.tiles.triton_decode import decode_source
from archc.tiles.triton_elementwise import GROUP, TokenLaunch, elementwise_source, kept
from archc.tiles.triton_halves import has_halves
from archc.tiles.triton_normaliser import VECTOR_CHANNELS
from archc.tiles.triton_reverse import ReverseLaunch, reverse_source
from archc.tiles.triton_source import Launch, Walk, kernels, walk_form
from archc.tiles.triton_spans_back import ahead_by_channel, ahead_by_head, ahead_by_value
from archc.tiles.triton_value_reverse import ValueLaunch, has_value_reverse, value_reverse_source
from archc.tiles.views import arguments

# Tensors that are float32 whatever the model's type: gates of a decay, sums of it, states.
FLOAT32 = (
    "decay",
    "rate",
    "G_end",
    "inside",
    "state",
    "states",
    "final",
    "ends",
    "decays",
    "starts",
    "dfinal",
    "dstates",
    "dinitial",
    "written",
    "anchors",
    "ddecay_inside",
    "ddecay",
    "dbeta",
    "weight",
    "floor",
    "normaliser",
    "normalisers",
    "last",
    "z",
    "dlast",
    "dnormalisers",
    "vectors",
    "vector_ends",
    "vector_starts",
    "dfirst",
    "dz",
    "ddecay",
    "dbeta",
    "dweight",
    "drate",
)
# Key channels that the walk carries a normaliser beside, half of them with a decay: as many as fitted on Hopper where
# the state is whole.
BESIDE = 128
# Rows of the least product of a warp group.
WARP_GROUP = 64
# Key channels of a state beside which tensor memory has room for the accumulators of a whole loop.
WIDE_STATE = 128
# Rows of a tensor begin at multiples of 16 bytes, or descriptors cannot read them.
ROW_BYTES = 16


@dataclass(frozen=True, slots=True)
class Use:
    """One recurrence of a model: the sizes of a head, the head count of the state and of each operand, its line."""

    K: int
    V: int
    H: int
    heads: Mapping[str, int]
    span: Span | None


def uses_of(graph: Graph) -> dict[RecurrenceKind, list[Use]]:
    """The recurrences of a model by class."""
    found: dict[RecurrenceKind, list[Use]] = {}
    for module in graph.modules.values():
        sizes = Sizes(module.values)
        for node in module.subgraph.nodes:
            if node.op == "recurrence":
                found.setdefault(node.attrs["kind"], []).append(_use(node, sizes))
    return found


def _use(node: Node, sizes: Sizes) -> Use:
    kind: RecurrenceKind = node.attrs["kind"]
    widest = 1 if node.attrs["heads"] is None else sizes.axis(node.attrs["heads"])
    held = 1 if node.attrs["state_heads"] is None else sizes.axis(node.attrs["state_heads"])
    named = {"erase_write": "w", "erase_read": "r", "decay_v": "decay", "decay_rate": "rate"}
    heads = {
        named.get(name, name): 1 if axis is None else sizes.axis(axis)
        for name, axis in node.attrs["grouped"].items()
    }
    for argument in arguments(kind):
        heads.setdefault(argument.name, held)
    if kind.normalize == "max":  # the running maximum joins decay and input
        joined = max(heads["decay"] if node.attrs["decay"] else 1, heads["log_input"])
        heads |= dict.fromkeys(("decay", "weight", "floor"), joined)
    return Use(
        sizes.axis(node.attrs["key"]), sizes.axis(node.attrs["value"]), held if kind.grouped else widest, heads,
        node.span,
    )  # fmt: skip


def chunked(kind: RecurrenceKind, use: Use, target: Target) -> str:
    """Why a recurrence runs over chunks in its torch form; empty if it has kernels."""
    if form_of(kind).form == "scan":
        few = use.K <= WIDEST
        return "" if few else "a state with so many key channels does not fit the registers"
    if kind.normalize != "none" and not kind.beside:
        return (
            "under an erase, or with factors, the normaliser is one more column of V, whose rows do not align"
        )
    most = BESIDE if kind.core().decay == "none" else BESIDE // 2
    walk = target.tile("walk", **tile_facts(kind, use.K, use.V))
    if kind.beside and use.K > most and not _has_halves(kind, use.K, walk):
        return "beside a normaliser, a state with so many key channels does not fit the registers"
    if use.K * 2 % ROW_BYTES or use.V * 2 % ROW_BYTES:
        return "rows of K and V must be multiples of 16 bytes, which are 8 channels in bfloat16"
    return ""


def launches(kind: RecurrenceKind, sizes: Sequence[tuple[int, int]], target: Target) -> dict[str, Launch]:
    """The tiles of a class on a target; of several sizes, those of the largest."""
    K, V = max(sizes)
    facts = tile_facts(kind, K, V)
    found = {}
    for role in ("prepare", "walk"):
        tile = target.tile(role, **facts)
        if tile is None:
            raise ValueError(f"{target.name} has no tile for {role} with {facts}")
        columns, channels = min(tile.columns, max(16, _power(V))), min(tile.channels, max(16, _power(K)))
        halves = role == "walk" and _has_halves(kind, K, tile)
        found[role] = Launch(columns, tile.num_warps, tile.num_stages, channels, halves)
    carry = target.tile("carry", **facts)
    whole = kind.beside and kind.core().decay == "key"
    if carry is not None and not whole:  # else sequences are walked whole
        found["carry"] = Launch(carry.columns, carry.num_warps, carry.num_stages)
    return found


def tile_facts(kind: RecurrenceKind, K: int, V: int) -> dict[str, object]:
    """What rows of a target's tiles may ask for."""
    return {"decay": kind.core().decay, "erase": kind.erase, "normalize": kind.normalize, "K": K, "V": V}


def _has_halves(kind: RecurrenceKind, K: int, tile: Tile | None) -> bool:
    """Whether the walk has its state in two halves: where a row's tiles have not all key channels."""
    return tile is not None and has_halves(kind) and tile.channels < _power(K)


def sizes_of(kind: RecurrenceKind, uses: Sequence[Use], target: Target) -> list[tuple[int, int]]:
    """The (K, V) for which a class has kernels over chunks; its decode step has one for all."""
    return sorted({(use.K, use.V) for use in uses if not chunked(kind, use, target)})


def has_reverse(kind: RecurrenceKind, sizes: Sequence[tuple[int, int]], target: Target) -> bool:
    """Whether the backward has kernels as well; without, it runs in the torch form."""
    if sizes and form_of(kind).form == "scan":
        return "walk_back" in token_launches(kind, sizes, target)
    return bool(sizes) and reverse_launch(kind, sizes, target) is not None


def reverse_launch(
    kind: RecurrenceKind, sizes: Sequence[tuple[int, int]], target: Target
) -> ReverseLaunch | ChannelLaunch | ValueLaunch | None:
    """The tiles of the backward, or None where the target has no rows that were seen to fit."""
    K, V = max(sizes)
    facts = tile_facts(kind, K, V)
    back, again = target.tile("walk_back", **facts), target.tile("walk_again", **facts)
    if back is None or again is None:
        return None
    columns = min(back.columns, max(16, _power(V)))
    cuts = (back.num_warps, back.num_stages), (again.num_warps, again.num_stages)
    # Accumulators moved out of a loop keep their places: beside a state of so many channels there is no room for that,
    # nor where two rows write and two read.
    wide = _power(K) > WIDE_STATE
    guarded = target.tensor_memory > 0 and (wide or kind.erase == "pair")
    if has_channel_reverse(kind):
        # An exclusive read has pairs of neighbours, whose registers fewer key channels leave free.
        channels = max(16, again.channels // 2) if kind.read == "exclusive" else again.channels
        return ChannelLaunch(columns, min(channels, max(16, _power(K))), *cuts, guarded=guarded)
    if has_value_reverse(kind):
        pairs = target.tile("prepare_back", **facts)
        inside = pairs and (min(pairs.columns, columns), pairs.num_warps, pairs.num_stages)
        return ValueLaunch(columns, inside, *cuts) if inside else None
    if kind.core().decay not in ("none", "head"):
        return None
    channels = min(again.channels, max(16, _power(K)))
    several = any(V > columns for _, V in sizes)
    # The walk ahead holds less, and its products are those of a warp group only with as many value columns as that has.
    ahead = min(WARP_GROUP, max(16, _power(V))) if kind.beside else 0
    ahead = ahead if ahead > columns else 0
    return ReverseLaunch(
        columns, *cuts, channels, again.columns, several, guarded, wide and not guarded, ahead
    )


def gradients_since(kind: RecurrenceKind, target: Target) -> tuple[int, ...] | None:
    """The first version of Triton whose kernels for the backward are right on a target, None if all may be."""
    gated = kind.core().decay != "none" and form_of(kind).form == "chunk"
    return target.gated_gradients_since if gated else None


def source_of(kind: RecurrenceKind, name: str, sizes: Sequence[tuple[int, int]], target: Target) -> str:
    """The text of `<name>_kernels.py`: the form over chunks for heads of these (K, V), if any, and the decode step."""
    if sizes and form_of(kind).form == "scan":
        walks = token_launches(kind, sizes, target)
        return elementwise_source(kind, name, walks["walk"], walks.get("walk_back"))
    precision = "tf32x3" if target.backend == "cuda" else "ieee"
    cut = launches(kind, sizes, target) if sizes else {}
    back = reverse_launch(kind, sizes, target) if sizes else None
    reverse, spans = "", "carry" in cut
    if isinstance(back, ChannelLaunch):
        reverse = channel_reverse_source(kind, back, ahead_by_channel(kind) if spans else None)
    elif isinstance(back, ValueLaunch):
        reverse = value_reverse_source(kind, back, ahead_by_value(kind) if spans else None)
    elif back is not None:
        columns = "AHEAD_COLUMNS" if back.ahead else "BACK_COLUMNS"
        reverse = reverse_source(kind, back, ahead_by_head(kind, columns) if spans else None)
    return kernels(
        kind, name, cut, precision, multiprocessors=target.multiprocessors, reverse=reverse,
        decode=decode_source(kind),
    )  # fmt: skip


def recurrence_kernels(
    kind: RecurrenceKind, name: str, uses: Sequence[Use], target: Target, dtype: str = "bf16"
) -> Iterator[Kernel]:
    """What a class launches, for each of its sizes."""
    sizes = sizes_of(kind, uses, target)
    source, file = source_of(kind, name, sizes, target), f"{name}_kernels.py"
    by_token = form_of(kind).form == "scan"
    form = walk_form(kind) if sizes and not by_token else None
    back = reverse_launch(kind, sizes, target) if sizes and not by_token else None
    for use in uses:
        queries = use.heads["q"] // use.H if kind.grouped else 1
        for V in (use.V, 1) if kind.normalize != "none" else (use.V,):  # the normaliser decodes as one column
            step = decode_kernel(
                kind, use.K, V, dtype, heads=use.H, queries=queries, file=file, source=source
            )
            yield replace(step, span=use.span, case="normaliser" if V != use.V else "")
        if by_token and not chunked(kind, use, target):
            for role, walk in token_launches(kind, sizes, target).items():
                yield from with_packed(walk_by_token(source, file, role, kind, use, walk, dtype))
        if form is None or chunked(kind, use, target):
            continue
        tiles = launches(kind, sizes, target)
        columns = tiles["walk"].columns
        for role in ("prepare", "walk") if form.prepare is not None else ("walk",):
            yield from with_packed(
                described(source, file, role, role, kind, use, tiles[role], dtype, columns)
            )
        if "carry" in tiles:
            ahead = described(
                source, file, "walk_ahead", "walk_ahead", kind, use, tiles["walk"], dtype, columns
            )
            yield packed(ahead)
            yield carry_of(source, file, form, kind, use, tiles["carry"], dtype, columns)
        if back is not None:
            for role, cut in _reverse_cuts(back):
                columns = back.columns if isinstance(back, ReverseLaunch) else cut.columns
                kernel = described(source, file, role, role, kind, use, cut, dtype, columns)
                if use.V > back.columns:
                    sums = {name: "*fp32" for name in _summed(source, back) if name in kernel.signature}
                    kernel = replace(kernel, signature={**kernel.signature, **sums})
                yield from with_packed(kernel)
            if "carry" in tiles:
                columns = isinstance(back, ReverseLaunch) and back.ahead or back.columns
                cut = Launch(columns, *back.back)
                ahead = described(
                    source, file, "walk_back_ahead", "walk_back_ahead", kind, use, cut, dtype, columns
                )
                yield packed(ahead)
                carry = carry_of(source, file, form, kind, use, tiles["carry"], dtype, columns)
                yield replace(carry, constants={**carry.constants, "BACK": True}, case="back")


def carry_of(
    source: str, file: str, form: Walk, kind: RecurrenceKind, use: Use, cut: Launch, dtype: str, columns: int
) -> Kernel:
    """What takes a state from span to span. columns: of values that a program of the walk ahead has."""
    carry = described(source, file, "carry", "carry", kind, use, cut, dtype, cut.columns)
    values = {"VALUES": -(-use.V // columns) * columns} if form.solved else {}
    # What products it has are small: any matrix instructions will do.
    return packed(replace(carry, constants={**carry.constants, **values}, matrix=False))


def _summed(source: str, back: ReverseLaunch | ChannelLaunch | ValueLaunch) -> tuple[str, ...]:
    """Gradients whose parts, one of each block of value columns, are float32."""
    if isinstance(back, ReverseLaunch):
        return ()
    if isinstance(back, ValueLaunch):
        return "dq", "dk"
    made = (name for name in _arguments(source, "walk_back") if name.startswith("d"))
    return tuple(name for name in made if name not in ("do", "dv", "dE"))


def _reverse_cuts(back: ReverseLaunch | ChannelLaunch | ValueLaunch) -> Iterator[tuple[str, Launch]]:
    """The kernels of a backward, and how each is cut."""
    if isinstance(back, ValueLaunch):
        yield "prepare_back", Launch(*back.inside)
    channels = 0 if isinstance(back, ValueLaunch) else back.channels
    summed = back.summed if isinstance(back, ReverseLaunch) else back.columns
    yield "walk_back", Launch(back.columns, *back.back, channels)
    yield "walk_again", Launch(summed, *back.again, channels)


def walk_by_token(
    source: str, file: str, role: str, kind: RecurrenceKind, use: Use, launch: TokenLaunch, dtype: str
) -> Kernel:
    """A walk over tokens as it is compiled. Sums over value columns are float32 where there are several blocks."""
    cut = Launch(launch.columns, launch.num_warps, launch.num_stages)
    kernel = described(source, file, role, role, kind, use, cut, dtype, launch.columns)
    sums = {name: "*fp32" for name in ("dq", "dk") if name in kernel.signature and use.V > launch.columns}
    return replace(kernel, signature={**kernel.signature, **sums}, matrix=False)


def with_packed(kernel: Kernel) -> Iterator[Kernel]:
    """A kernel for rows of a batch that begin with no state, and the same for packed sequences that continue."""
    yield kernel
    yield replace(packed(kernel), case="packed")


def packed(kernel: Kernel) -> Kernel:
    """A kernel for packed sequences that continue; for rows that begin with no state it does less."""
    more = {name: True for name in ("PACKED", "INITIAL") if name in kernel.constants}
    return replace(kernel, constants={**kernel.constants, **more})


def described(
    source: str,
    file: str,
    function: str,
    role: str,
    kind: RecurrenceKind,
    use: Use,
    launch: Launch,
    dtype: str,
    columns: int,
) -> Kernel:
    """A kernel of a class as it is compiled: the types of its arguments follow from their names."""
    BLOCK_K = max(_power(use.K), 16)
    known: dict[str, Constant] = {
        "H": use.H, "K": use.K, "V": use.V, "BLOCK_K": BLOCK_K, "COLUMNS": columns,
        "CHANNELS": min(launch.channels, BLOCK_K), "BLOCK_V": max(_power(use.V), 16), "VALUES": 0,
        "PART_K": min(VECTOR_CHANNELS, BLOCK_K),
        "BLOCKS": -(-use.V // columns), "PART_V": min(launch.columns, max(_power(use.V), 16)),
        "C": kind.chunk, "SEGMENT": SEGMENT, "PACKED": False, "INITIAL": False, "BACK": False,
        "GROUP": GROUP, "KEPT": kept(kind),
        **{f"{name}_heads": count for name, count in use.heads.items()},
    }  # fmt: skip
    signature, constants = {}, {}
    for name in _arguments(source, function):
        if name in known:
            constants[name] = known[name]
        elif name in ("sequences", "length", "slots", "span", "spans", "total"):
            signature[name] = "i32"
        elif name in ("scale", "eps"):
            signature[name] = "fp32"
        else:
            signature[name] = "*i64" if name == "cu_seqlens" else "*fp32" if name in FLOAT32 else f"*{dtype}"
    aligned = tuple(name for name, type_ in signature.items() if type_.startswith("*"))
    return Kernel(
        file,
        source,
        function,
        role,
        signature,
        constants,
        aligned,
        launch.num_warps,
        launch.num_stages,
        True,
        use.span,
    )


@cache
def _arguments(source: str, function: str) -> tuple[str, ...]:
    """The names of a function's arguments."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return tuple(argument.arg for argument in node.args.args)
    raise KeyError(function)


def _power(n: int) -> int:
    """The power of two from n on."""
    return 1 << (n - 1).bit_length()
