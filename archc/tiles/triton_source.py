"""Render the Triton kernels of a recurrence class: what is parallel over chunks, and the walk from chunk to chunk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from archc.printing.unused import without_unused
from archc.templates import environment, packed
from archc.tiles.forward import forward
from archc.tiles.kind import RecurrenceKind, form_of
from archc.tiles.program import SEGMENT, Step, TileProgram, leading_to
from archc.tiles.triton_functions import Function
from archc.tiles.triton_halves import HalvedLines, guarded
from archc.tiles.triton_lines import (
    BEFORE,
    Lines,
    buffer_name,
    load_line,
    prepared,
    scores_kept,
    walks_decay_rows,
)
from archc.tiles.triton_normaliser import VECTOR_CHANNELS, Normaliser, normaliser, vector_ahead
from archc.tiles.triton_spans import Ahead, ahead_of
from archc.tiles.triton_squares import LAST, shares_squares, square_lines, square_of
from archc.tiles.views import TITLES, definition, kernel_arguments, public_facts

INPUTS = ("q", "k", "v", "decay", "beta", "w", "r", "weight", "floor")


@dataclass(frozen=True, slots=True)
class Launch:
    """How a kernel is cut: columns of values a program, warps and stages; key channels that `prepare` has at once.

    halves: whether the walk has its state in two halves of the key channels.
    """

    columns: int
    num_warps: int
    num_stages: int
    channels: int = 256
    halves: bool = False


@dataclass(frozen=True, slots=True)
class KernelView:
    """What the template shows of one kernel."""

    arguments: list[str]  # tensors of its own
    constants: list[str]
    opening: list[str]  # descriptors of the tensors
    lines: list[str]
    update: list[str]
    value_blocks: bool = False
    functions: Sequence[Function] = ()

    @property
    def masks(self) -> bool:
        """Whether tokens behind the end of a sequence are hidden one by one."""
        return self._uses("inside_C")

    @property
    def scores(self) -> bool:
        """Whether scores are hidden by who writes and who reads."""
        return self._uses("j_J1")

    def _uses(self, name: str) -> bool:
        return any(name in line for line in (*self.lines, *self.update))


@dataclass(frozen=True, slots=True)
class Walk:
    """The forward form of a class: the kernels `prepare` (or none) and `walk`, and the buffers between them.

    buffers: name -> axes, of what `prepare` writes for the walk: "CC" scores, "CK" rows, "CV" values, "K" a chunk.
    typed_by: the tensor whose type is that of the products. kept: what the backward needs besides the states;
    scores: what its kernels need besides that, where a decay along K makes scores dear.
    halves: whether the state is in two halves of the key channels.
    """

    prepare: KernelView | None
    walk: KernelView
    buffers: dict[str, str]
    kept: list[str]
    scores: list[str]
    solved: bool
    helpers: list[str]
    normaliser: Normaliser
    typed_by: str
    ahead: Ahead
    halves: bool


def kernels(
    kind: RecurrenceKind,
    name: str,
    launches: dict[str, Launch],
    precision: str = "tf32x3",
    segment: int = SEGMENT,
    *,
    multiprocessors: int = 1,
    reverse: str = "",
    decode: str = "",
    templates: Path | None = None,
) -> str:
    """The source of `<name>_kernels.py`: the form over chunks as `launches` cuts it, and the decode step.

    `launches` has "prepare" and "walk", and "carry" where long sequences are cut into spans if there are fewer programs
    than `multiprocessors`; without it there is the decode step alone. `reverse`, `decode`: the text of those kernels.
    Raises ValueError, with the reason, for a class that has no such form.
    """
    verdict = form_of(kind)
    if verdict.form == "error" or (launches and verdict.form != "chunk"):
        raise ValueError(verdict.reason)
    view = {
        "title": TITLES[kind.core().decay, kind.erase],
        "definition": definition(kind.core()),
        "name": name,
        "chunked": bool(launches),
        "decode": decode.rstrip("\n"),
        "multiprocessors": multiprocessors,
        **(_chunk_view(kind, launches, precision, segment, reverse.rstrip("\n")) if launches else {}),
    }
    return without_unused(environment(templates).get_template("recurrence/kernels.py.jinja").render(view))


def _chunk_view(
    kind: RecurrenceKind, launches: dict[str, Launch], precision: str, segment: int, reverse: str
) -> dict[str, object]:
    """What the template shows of the form over chunks."""
    found = kernel_arguments(kind)
    facts = public_facts(kind, found)
    core = kind.core()
    form = walk_form(kind, launches["walk"].halves)
    kept = form.kept + (form.scores if reverse else [])
    return {
        "core": core,
        "segment": segment,
        "launches": _launch_constants(kind, launches),
        "precision": precision,
        "together": any(
            len(group) == 2 for group in _groups(prepared(kind, forward(kind)), core.decay == "key")
        ),
        "reverse": reverse,
        "back": "carry[" in reverse,  # whether that walks in spans as well
        "helpers": form.helpers,
        "prepare": form.prepare,
        "walk": form.walk,
        "halves": form.halves,
        "guarded": form.halves and guarded(kind),
        "solved": form.solved,
        "normaliser": form.normaliser,
        "vector_channels": VECTOR_CHANNELS,
        "kept": kept,
        "kept_names": "".join(f", {n}" for n in kept),
        "typed": facts["typed"],
        "short": facts["short"],
        "heads": facts["heads"],
        "contiguous": ", ".join(
            # Rows that meet in a product have one type.
            f"{argument.name}{'.to(q.dtype)' if argument.name in ('k', 'w', 'r') else ''}.contiguous()"
            for argument in found
        ),
        "buffers": [
            *(["U = q.new_empty(B, T, H, V)"] if form.solved else []),
            *(buffer_line(buffer, axes) for buffer, axes in form.buffers.items()),
        ],
        "typed_by": form.typed_by,
        "decays_rows": walks_decay_rows(kind),
        "squares": shares_squares(kind),
        "prepare_launch": _prepare_launch(form),
        "walk_launch": _walk_launch(form),
        "ahead": form.ahead if "carry" in launches else None,
    }


def walk_form(kind: RecurrenceKind, halves: bool = False) -> Walk:
    """Print the forward program as the kernels `prepare` and `walk`, whose state may be in two halves."""
    core = kind.core()
    program = forward(kind, weighted=kind.beside and kind.normalize == "max")
    ahead = prepared(kind, program, halves)
    # With a decay along K the walk's scores come from `prepare`; else what X was made of is not needed again.
    made_ahead = {(step.result, step.operation) for step in ahead}
    rest = [step for step in program.steps if (step.result, step.operation) not in made_ahead]
    walk = HalvedLines(kind, program) if halves else Lines(kind, program, "walk")
    if any(step.result == "o" for step in ahead):
        walk.load("o_VC")
        walk.made.add("o")
    others = [step for step in rest if step.operation != "update"]
    halved = walk if isinstance(walk, HalvedLines) else None
    body = walk.of(_short_lives(others)) if halved is None else halved.scored(others)
    rest_of_body = halved.body(others) if halved else []
    update = walk.of([step for step in rest if step.operation == "update"])
    names = [argument.name for argument in kernel_arguments(kind)]
    beside = normaliser(kind, program, walk)
    if halved:
        halved.scoring += beside.ahead
    body = [*beside.ahead, *body, *beside.divisor, *rest_of_body, *beside.lines]
    update += beside.update

    first = Lines(kind, program, "prepare")
    written = [tile for tile in walk.loaded if tile.rsplit("_", 1)[0] not in names]
    lines = _prepare_lines(first, ahead, written)
    letters = {"JC": "CC", "CK": "CK", "VC": "CV", "K": "K"}
    buffers = {buffer_name(tile): letters[tile.rsplit("_", 1)[1]] for tile in written}
    walk_inputs = [name for name in names if any(tile.rsplit("_", 1)[0] == name for tile in walk.loaded)]
    prepare = None
    if lines:
        reads = [name for name in names if any(tile.rsplit("_", 1)[0] == name for tile in first.loaded)]
        value_blocks = core.decay == "value"
        prepare = KernelView(
            [*reads, *buffers],
            constants_of(reads, value_blocks, first.blocked),
            open_lines([*first.loaded, *written], "CHANNELS" if first.blocked else "BLOCK_K"),
            [*(["dtype: tl.constexpr = q.dtype.element_ty"] if value_blocks else []), *lines],
            [],
            value_blocks,
        )
    heading = halved.heading() if halved else _heading(walk)
    text = "\n".join([*lines, *body])
    helpers = [helper for helper in ("inverse", "pair", "apply") if f" {helper}(" in text]
    solved = "U" in program.axes
    shown, functions = [*heading, *body], list[Function]()
    if halved:
        carried = [*halved.states, *(f"n{part}_K" for part in halved.parts if kind.beside)]
        shown, update, functions = halved.in_functions(shown, update, carried)
    return Walk(
        prepare,
        KernelView(
            [*walk_inputs, *buffers],
            [*constants_of(walk_inputs, True), "SEGMENT: tl.constexpr", "INITIAL: tl.constexpr"],
            open_lines([*walk.loaded, "out_VC", *(["U_VC"] if solved else [])], walk.keys),
            shown,
            update,
            functions=functions,
        ),
        buffers,
        [square_of(kind, name) for name in ("U", "X") if name in program.axes],
        [square_of(kind, name) for name in scores_kept(kind)],
        solved,
        helpers,
        beside,
        "q" if "q" in walk_inputs else next(name for name, axes in buffers.items() if axes == "CK"),
        _ahead(kind, program, rest),
        halves,
    )


def _ahead(kind: RecurrenceKind, program: TileProgram, rest: Sequence[Step]) -> Ahead:
    """The walk of which only the next state is wanted."""
    steps = leading_to("S_next", rest)
    walk = Lines(kind, program, "walk")
    body = walk.of(_short_lives([step for step in steps if step.operation != "update"]))
    body += walk.of([step for step in steps if step.operation == "update"])
    vector = None
    if kind.beside and kind.core().decay in ("none", "head"):
        k, given_C = walk.row(next(step for step in steps if step.operation == "update").operands[1])
        vector = vector_ahead(k.removesuffix("_CK"), given_C, kind.core().decay == "head")
    body = [*_heading(walk), *body]
    inputs = [argument.name for argument in kernel_arguments(kind)]
    tensors = list(dict.fromkeys(buffer_name(tile) for tile in walk.loaded))
    given = [name for name in inputs if name in tensors]
    rows = next(buffer_name(tile) for tile in walk.loaded if tile.endswith("_CK"))
    tensors = [*given, *(name for name in tensors if name not in given)]
    constants = constants_of(given, True)
    opening = open_lines(walk.loaded)
    return ahead_of(kind, tensors, rows, constants, values_of(constants), opening, body, vector=vector)


def _heading(walk: Lines) -> list[str]:
    """What a chunk begins with: loads, unless they stand where a tile is used first, and factors."""
    loads = [] if walk.decays_rows else [load_line(tile) for tile in walk.loaded]
    return [*loads, *(f"{name} = {text}" for name, text in walk.factors.items())]


def _ordered(groups: Sequence[list[Step]], sources: set[str], shared: bool) -> list[list[Step]]:
    """Groups of `prepare`: what the inverse needs, the inverse, the rest.

    The rest comes first where the square of the inverse has a diagonal from there.
    """

    def place(group: list[Step]) -> int:
        if group[0].operation == "invert":
            return 1
        return 0 if sources & {step.result for step in group} else -1 if shared else 2

    return sorted(groups, key=place)


def _prepare_lines(first: Lines, steps: Sequence[Step], written: Sequence[str]) -> list[str]:
    """The lines of `prepare`: what the inverse needs comes first, and each tile is loaded late and written early.

    With a decay along K they go through blocks of key channels, several times rather than holding tiles in registers:
    scores are sums over blocks. Afterwards `first.loaded` holds all tiles that the lines load.
    """
    sources = {row.base for step in steps if step.operation == "invert" for row in step.operands}
    shared = shares_squares(first.kind)
    groups = _ordered(_groups(steps, first.blocked), sources, shared)
    lines: list[str] = []
    sums: list[str] = []
    inside: list[str] = []  # for each block of key channels
    behind: list[str] = []  # after all of them, or without such blocks all there is
    shown: set[str] = set()
    loaded: dict[str, None] = {}

    def show(text: Sequence[str], to: list[str]) -> None:
        """Lines, with the tiles and factors that they are the first to use ahead of them."""
        for tile in first.loaded:
            if tile not in shown:
                (inside if first.blocked and tile.endswith("CK") else behind).append(
                    load_line(tile, first.blocked)
                )
        for name, value in first.factors.items():
            if name not in shown:
                (inside if first.blocked and name.endswith("CK") else behind).append(f"{name} = {value}")
        to.extend(text)
        shown.update(first.loaded, first.factors)
        loaded.update(first.loaded)

    def end_pass() -> None:
        """What was shown is one pass; the next one reads again."""
        lines.extend(f"{name} = tl.zeros([C, C], tl.float32)" for name in sums)
        if inside:
            lines.extend(["for channel in range(0, K, CHANNELS):", *(f"    {line}" for line in inside)])
        lines.extend(behind)
        for each in (sums, inside, behind, first.loaded, first.factors, shown):
            each.clear()

    for group in groups:
        names = {step.result for step in group}
        if first.blocked and group[0].operation == "pair":
            sums.extend(f"{step.result}_JC" for step in group)
            show(first.pair_calls(group), inside)
            for step in group:
                show(first.with_scalar(step), behind)
        else:
            show(first.of(group), behind)
        for tile in written:
            base = tile.rsplit("_", 1)[0]
            if (LAST.get(base) if shared else base) in names:
                show(_store(first, tile), behind)
        if group[0].operation == "invert" or (group[0].operation == "pair" and not names & sources):
            end_pass()
    made = {square_of(first.kind, step.result) for step in steps}
    for tile in written:
        if tile.rsplit("_", 1)[0] not in made:
            show(_store(first, tile), inside)
    end_pass()
    first.loaded.update(loaded)
    return lines


def _groups(steps: Sequence[Step], blocked: bool) -> list[list[Step]]:
    """Steps that are made at once: by blocks of key channels two scores whose rows that read decay alike."""
    groups: list[list[Step]] = []
    for step in steps:
        last = groups[-1] if groups else []
        alike = last and {s.operation for s in (*last, step)} == {"pair"} and len(last) < 2
        if blocked and alike and last[0].operands[0].exponent == step.operands[0].exponent:
            last.append(step)
        else:
            groups.append([step])
    return groups


def _short_lives(steps: Sequence[Step]) -> list[Step]:
    """The same steps so that few tiles live at once: what reads the state first, scores right before their use."""
    ordered = [step for step in steps if step.operation == "read"]
    waiting = {step.result: step for step in steps if step.operation == "pair"}
    for step in steps:
        if step.operation not in ("read", "pair"):
            ordered += [waiting.pop(row.base) for row in step.operands if row.base in waiting]
            ordered.append(step)
    return ordered


def _prepare_launch(form: Walk) -> str:
    if form.prepare is None:
        return ""
    grid = "pieces, H, blocks" if form.prepare.value_blocks else "pieces, H"
    given = [*form.prepare.arguments, "cu_seqlens", "N", "T", *constants_given(form.prepare)]
    return _launched("prepare", grid, given)


def _walk_launch(form: Walk) -> str:
    solved = ["U"] if form.solved else []
    given = [
        *form.walk.arguments,
        "state",
        "o",
        *solved,
        "states",
        "final",
        *form.normaliser.tensors,
        "cu_seqlens",
        "N",
        "slots",
        "T",
        "span",
        "scale",
        *form.normaliser.numbers,
        *constants_given(form.walk),
    ]
    return _launched("walk", "blocks, H, spans", given)


def _launched(name: str, grid: str, given: Sequence[str]) -> str:
    """A launch in the body of a function."""
    cut = [f"num_warps={name.upper()}_WARPS", f"num_stages={name.upper()}_STAGES"]
    return f"{name}[{grid}](\n        {packed([*given, *cut], 8)},\n    )  # fmt: skip"


def constants_given(view: KernelView) -> list[str]:
    """The constants of a launch by name."""
    return values_of(view.constants)


def values_of(constants: Sequence[str]) -> list[str]:
    """Constants with the names that they have where a kernel is launched."""
    text = {
        "C": "CHUNK",
        "CHANNELS": "min(CHANNELS, BLOCK_K)",
        "PACKED": "cu_seqlens is not None",
        "INITIAL": "state is not None",
    }
    found = []
    for constant in constants:
        name = constant.partition(":")[0]
        heads = f"{name.removesuffix('_heads')}.shape[2]" if name.endswith("_heads") else name
        found.append(f"{name}={text.get(name, heads)}")
    return found


def _launch_constants(kind: RecurrenceKind, launches: dict[str, Launch]) -> list[str]:
    lines = [f"COLUMNS = {launches['walk'].columns}  # value columns of a program"]
    if kind.core().decay == "key":
        lines.append(f"CHANNELS = {launches['prepare'].channels}  # key channels at once")
    for role, launch in launches.items():
        lines.append(f"{role.upper()}_WARPS, {role.upper()}_STAGES = {launch.num_warps}, {launch.num_stages}")
    if "carry" in launches:
        lines.append(f"CARRY_COLUMNS = {launches['carry'].columns}")
    return lines


def constants_of(inputs: Sequence[str], values: bool, blocked: bool = False) -> list[str]:
    names = [
        "H",
        *(f"{name}_heads" for name in inputs),
        "K",
        "CHANNELS" if blocked else "BLOCK_K",
        *(["V", "COLUMNS"] if values else []),
        "C",
    ]
    return [f"{name}: tl.constexpr" for name in [*names, "PACKED"]]


def buffer_line(name: str, axes: str) -> str:
    """Make a buffer between the kernels."""
    if axes == "K":
        return f"{name} = v.new_empty(pieces, H, K, dtype=torch.float32)"
    return f"{name} = q.new_empty(B, T, H, { {'CC': 'CHUNK', 'CK': 'K', 'CV': 'V'}[axes] })"


def open_lines(tiles: Iterable[str], keys: str = "BLOCK_K") -> list[str]:
    """Descriptors of the tensors that tiles come from or go to, one for each, with so many key channels at once."""
    lines = []
    for tile in tiles:
        base, axes = tile.rsplit("_", 1)
        if axes in ("C", "K"):
            continue
        many = f"{base}_heads" if base in INPUTS else "H"
        width, block = {"CK": ("K", keys), "VC": ("V", "COLUMNS"), "JC": ("C", "C")}[axes]
        name = buffer_name(tile)
        lines.append(f"{name}_tiles = tokens({name}, end, h, H, {many}, {width}, C, {block})")
    return lines


def _store(first: Lines, tile: str) -> list[str]:
    """The lines of `prepare` that make a tile for the walk, if it has not been made, and write it."""
    base, axes = tile.rsplit("_", 1)
    if axes == "K":
        first.load("decay_CK")
        return [
            "channel_K = channel + tl.arange(0, CHANNELS)",
            f"at_K = {base} + (tl.program_id(0).to(tl.int64) * H + h) * K + channel_K",
            "tl.store(at_K, tl.sum(decay_CK, 0), mask=channel_K < K)",
        ]
    name = buffer_name(tile)
    squares = square_lines(first.kind, base) if base in LAST else []
    if axes == "CK":
        row, factor = base.rsplit("_", 1)
        first.load(f"{row}_CK")
        first.load("decay_CK")
        exponent = BEFORE.get(factor, "tl.sum({0}, 0)[None, :] - tl.cumsum({0}, 0)").format("decay_CK")
        made = first.factor(f"{factor}_CK", f"tl.exp({exponent})")
        return [f"{name}_tiles.store([start, channel], ({row}_CK * {made}).to({row}_CK.dtype))"]
    column = "column" if axes == "VC" else "0"
    return [
        *squares,
        f"{name}_tiles.store([start, {column}], tl.trans({tile}).to({name}.dtype.element_ty))",
    ]
