"""Render the torch module of a recurrence class: the public function, its operations, and the forms behind them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from archc.tiles.forward import forward
from archc.tiles.kind import RecurrenceKind, form_of
from archc.tiles.program import Step, TileProgram
from archc.tiles.reverse import reverse
from archc.tiles.schedule import Schedule, schedule
from archc.tiles.token_lines import decode_lines, token_lines
from archc.tiles.torch_lines import Printer

_SHAPES = {"q": "BTHK", "k": "BTHK", "v": "BTHV", "beta": "BTH", "w": "BTHK", "r": "BTHK"}
_DECAY_SHAPES = {"head": "BTH", "key": "BTHK", "value": "BTHV", "elementwise": "BTHKV"}


@dataclass(frozen=True, slots=True)
class Argument:
    """One tensor argument: its name in the operation, its axes there, and its name for callers."""

    name: str
    axes: str
    public: str

    @property
    def full(self) -> str:
        return f"{self.name}_{self.axes}"

    @property
    def tile(self) -> str:
        return f"{self.name}_M{self.axes.replace('BTH', 'C')}"

    @property
    def token(self) -> str:
        return f"{self.name}_{self.axes.replace('T', '')}"

    @property
    def flat(self) -> str:
        return f"{self.name}_A{self.axes.replace('B', '').replace('T', '').replace('H', '')}"

    @property
    def per_token(self) -> bool:
        return "T" in self.axes

    @property
    def head_axis(self) -> int:
        return self.axes.index("H")

    def at(self, index: str) -> str:
        return f"{self.full}[:, {index}]" if self.per_token else self.full


@dataclass(frozen=True, slots=True)
class Forms:
    """The lines of the chunk form: forward and backward, each in its three phases, and what is kept between them."""

    prepare: list[str]
    walk: list[str]
    finish: list[str]
    walk_buffers: list[str]
    kept: list[str]
    back_prepare: list[str]
    back_walk: list[str]
    back_finish: list[str]
    back_buffers: list[str]
    helpers: frozenset[str]


def arguments(kind: RecurrenceKind) -> list[Argument]:
    """The tensor arguments of a class's operation, in order."""
    core = kind.core()
    found = [Argument(name, _SHAPES[name], name) for name in ("q", "k", "v")]
    if core.decay != "none":
        found.append(Argument("decay", "BTHV" if kind.decay_rate else _DECAY_SHAPES[core.decay], "decay"))
    if kind.decay_rate:
        found.append(Argument("rate", "HKV", "decay_rate"))
    if core.erase == "delta":
        found.append(Argument("beta", "BTH", "beta"))
    if core.erase == "pair":
        found.append(Argument("w", "BTHK", "erase_write"))
        found.append(Argument("r", "BTHK", "erase_read"))
    return found


def emit(kind: RecurrenceKind, name: str, templates: Path | None = None) -> str:
    """The source of the module `<name>.py` that computes recurrences of this class with torch alone.

    Raises ValueError, with the reason, for a class that has no form. The module exports `name`; see the
    template's own docstring for its arguments.
    """
    verdict = form_of(kind)
    if verdict.form == "error":
        raise ValueError(verdict.reason)
    root = templates or Path(__file__).resolve().parents[2] / "templates"
    environment = Environment(
        loader=FileSystemLoader(root), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["wrap"] = _wrap
    found = arguments(kind)
    view: dict[str, object] = {
        "kind": kind,
        "core": kind.core(),
        "name": name,
        "arguments": found,
        "token": token_lines(kind),
        "decode": decode_lines(kind),
    }
    if verdict.form == "scan":
        empty = Forms([], [], [], [], [], [], [], [], [], frozenset())
        view["forms"] = empty
        view["facts"] = {**public_facts(kind, found), **chunk_facts(kind, found, empty)}
        return environment.get_template("recurrence/scan.py.jinja").render(view)
    forms = chunk_forms(kind)
    view["forms"] = forms
    view["facts"] = {**public_facts(kind, found), **chunk_facts(kind, found, forms)}
    return environment.get_template("recurrence/chunk.py.jinja").render(view)


def _wrap(text: str, indent: int = 0) -> str:
    """Fill a paragraph of prose to the width of the emitted code, later lines indented."""
    joined = " ".join(text.split())
    return textwrap.fill(joined, 108 - indent, break_long_words=False).replace("\n", "\n" + " " * indent)


def public_facts(kind: RecurrenceKind, found: list[Argument]) -> dict[str, object]:
    """What the public function and the token forms show: names, shapes and calls."""
    spaced = {"B": "B", "T": "T", "F": "n", "H": "H", "K": "K", "V": "V"}
    factors = kind.factors
    parameters = []
    for argument in found:
        axes = argument.axes
        if argument.name == "decay":
            if kind.decay == "none":
                continue
            axes = "H" if kind.decay == "constant" else axes
        elif argument.name != "q" and factors:
            axes = axes.replace("BTH", "BTFH")
        parameters.append(Argument(argument.name, axes, argument.public))
    if kind.log_input:
        parameters.append(Argument("log_input", "BTH", "log_input"))
    shown = {argument.name: argument for argument in parameters}
    passed = {argument.name: argument.full for argument in found}
    if kind.normalize != "none":
        passed["v"] = "wide_BTHV"
    unroll = []
    if factors:
        edge = "0, n - 1" if kind.read == "exclusive" else "n - 1, 0"
        unroll.append(f"q_BTHK = F.pad(q_BTHK[:, :, None], (0, 0, 0, 0, {edge})).flatten(1, 2)")
        for argument in found[1:]:
            if argument.name == "decay":
                zeros = "0, 0, " * (len(argument.axes) - 2)
                unroll.append(
                    f"{argument.full} = F.pad({argument.full}[:, :, None], ({zeros}0, n - 1)).flatten(1, 2)"
                )
            else:
                before = shown[argument.name].full
                if argument.name == "v" and kind.normalize != "none":
                    unroll.append("wide_BTHV = wide_BTFHV.flatten(1, 2)")
                else:
                    unroll.append(f"{argument.full} = {before}.flatten(1, 2)")

    def tokens(index: str, v: str = "v_BTHV") -> str:
        return ", ".join(f"{v}[:, {index}]" if a.name == "v" else a.at(index) for a in found)

    heads = [f"{argument.name}.shape[{argument.head_axis}]" for argument in found]
    return {
        "title": TITLES[kind.decay, kind.erase],
        "definition": definition(kind),
        "legend": legend(kind),
        "axes": "Axes: B rows of the batch, T tokens, H heads, K and V the two axes of the state S, N sequences, "
        "C tokens of a chunk" + (", F factors of a token." if factors else "."),
        "summary": "The recurrence over all tokens of the call: prefill, continuation or one decode step.",
        "shapes": ", ".join(
            f"{argument.name} [{', '.join(spaced[axis] for axis in argument.axes)}]"
            for argument in parameters
        )
        + ".",
        "memory": "`key`: S [N, H, K, V]"
        + (", `key.normaliser` [N, H, K]" if kind.normalize != "none" else "")
        + (", `key.maximum` [N, H]" if kind.normalize == "max" else ""),
        "parameters": parameters,
        "v_axes": shown["v"].axes,
        "unroll": unroll,
        "call": ", ".join(passed[argument.name] for argument in found),
        "names": ", ".join(argument.full for argument in found),
        "spans": ", ".join(argument.at("span") for argument in found),
        "tokens": tokens("0"),
        "tokens_t": tokens("t"),
        "tokens_s": tokens("t").replace("v_BTHV[:, t]", "v_BTHV[:, t, :, :-1]"),
        "tokens_n": tokens("t").replace("v_BTHV[:, t]", "v_BTHV[:, t, :, -1:]"),
        "heads": f"max({', '.join(heads)})",
        "heads_full": f"max({', '.join(f'{argument.full}.shape[{argument.head_axis}]' for argument in found)})",
        "typed": ", ".join(f"{argument.name}: Tensor" for argument in found),
        "typed_full": ", ".join(f"{argument.full}: Tensor" for argument in found),
        "typed_tokens": ", ".join(f"{argument.token}: Tensor" for argument in found),
        "typed_parameters": ", ".join(f"{parameter.full}: Tensor" for parameter in parameters),
        "short": ", ".join(argument.name for argument in found),
        "decay_m": "decay_MCV[m], rate, tiling.heads" if kind.decay_rate else "decay_MCKV[m]",
        "schema": ", ".join(f"Tensor {argument.name}" for argument in found),
    }


def chunk_facts(kind: RecurrenceKind, found: list[Argument], forms: Forms) -> dict[str, object]:
    """What the chunk form shows beside its lines: buffers, shapes of what is kept, which helpers it calls."""
    sizes = {"C": "CHUNK", "K": "q_MCK.shape[2]", "V": "v_MCV.shape[2]"}
    empty = {}
    for buffer in (*forms.walk_buffers, *forms.back_buffers):
        axes = buffer.rsplit("_", 1)[1][1:]
        empty[buffer] = "torch.empty_like(v_MCV)" if axes == "CV" else (
            f"q_MCK.new_empty({', '.join(['tiling.tiles', *(sizes[axis] for axis in axes)])})"
        )  # fmt: skip
    lengths = {"C": "CHUNK", "K": "K", "V": "V"}
    gradients = {argument.name: f"d{argument.tile}" for argument in found}
    if kind.erase == "delta":
        gradients["v"] = "dE_MCV"
    helpers = [name for name in ("between", "inverse") if f"_{name}" in forms.helpers]
    if forms.helpers & {"_pair", "_apply", "_apply_transposed"}:
        helpers.append("channels")
    return {
        "empty": empty,
        "kept_padded": [f"tiling.padded({name})" for name in forms.kept],
        "kept_schema": "".join(f"Tensor {name.rsplit('_', 1)[0]}, " for name in forms.kept),
        "kept_shapes": [
            ", ".join(["M", *(lengths[axis] for axis in name.rsplit("_", 1)[1][1:])]) for name in forms.kept
        ],
        "gradients": gradients,
        "helpers": helpers,
    }


TITLES = {
    (decay, erase): text
    for decay, what in (
        ("none", "without decay"),
        ("constant", "with a constant decay per head"),
        ("head", "with a decay per head"),
        ("key", "with a decay per key channel"),
        ("value", "with a decay per value channel"),
        ("elementwise", "with a decay per element of the state"),
    )
    for erase, text in (
        ("none", f"Linear recurrence {what}."),
        ("delta", f"Delta rule {what}."),
        ("pair", f"Recurrence {what} and a general rank-one erase."),
    )
}


def definition(kind: RecurrenceKind) -> str:
    """The recurrence in one line of mathematics."""
    decayed = {
        "none": "S",
        "value": "S Diag(exp(decay))",
        "key": "Diag(exp(decay)) S",
        "elementwise": "exp(decay) * S",
    }.get(kind.core().decay, "exp(decay) S")
    erase = {
        "none": "k v^T",
        "delta": "beta k (v - S'^T k)^T",
        "pair": f"erase_write (erase_read^T {'S' if kind.erase_from == 'previous' else chr(83) + chr(39)}) + k v^T",
    }[kind.erase]
    read = "o = scale S_next^T q" if kind.read == "inclusive" else "o = scale S^T q"
    return f"S' = {decayed};  S_next = S' + {erase};  {read}."


def legend(kind: RecurrenceKind) -> str:
    """What the decay tiles are called."""
    if kind.core().decay == "none":
        return "here there is none."
    return "`in` is e^G, `out` is e^(G_end - G), `all` is e^G_end."


def chunk_forms(kind: RecurrenceKind) -> Forms:
    """Print the forward program and its derived reverse, each phase as numbered lines."""
    core = kind.core()
    program = forward(kind)
    backward = reverse(program)
    ahead = schedule(program, "S", "S_next", stored=True)
    behind = schedule(backward, "dS_next", "dS", stored=False)

    produced = {step.result for step in backward.steps}
    kept = [name for name in ("U", "X") if name in program.axes]
    again = _recomputed(program, backward, produced, {*program.inputs, "S", *kept})
    scores = {
        f"d{step.result}": step.operands[0].exponent for step in program.steps if step.operation == "pair"
    }

    first = _Phases(core.decay, program.axes, ahead, (), scores)
    second = _Phases(core.decay, backward.axes, behind, again, scores)
    text = "\n".join(line for lines in (*first.lines.values(), *second.lines.values()) for line in lines)
    helpers = frozenset(
        name
        for name in ("_between", "_inverse", "_pair", "_apply", "_apply_transposed")
        if f"{name}(" in text
    )
    return Forms(
        first.lines["prepare"], first.lines["walk"], first.lines["finish"], first.buffers,
        [f"{name}_M{program.axes[name]}" for name in kept],
        second.lines["prepare"], second.lines["walk"], second.lines["finish"], second.buffers,
        helpers,
    )  # fmt: skip


def _recomputed(
    program: TileProgram, backward: TileProgram, produced: set[str], known: set[str]
) -> tuple[Step, ...]:
    """The forward steps whose results the backward needs and that were not kept."""
    wanted = {row.base for step in backward.steps for row in step.operands} - produced - known
    if "decay" in program.inputs:
        wanted.add("G")
    while True:
        needed = {
            row.base for step in program.steps if step.result in wanted for row in step.operands
        } - known - produced - wanted  # fmt: skip
        if not needed:
            break
        wanted |= needed
    return tuple(step for step in program.steps if step.result in wanted)


class _Phases:
    """The printed phases of one program, with the decay tiles ahead of their first use."""

    def __init__(
        self,
        decay: str,
        axes: Mapping[str, str],
        split: Schedule,
        again: tuple[Step, ...],
        scores: Mapping[str, str],
    ) -> None:
        buffers = split.buffers | {step.result for step in again} | {"q", "k", "v", "w", "r", "X", "G", "S"}
        printer = Printer(decay, dict(axes), buffers)
        printer.exponent_of = dict(scores)
        first = (*again, *split.prepare)
        cumulative = [step for step in first if step.operation == "cumulative"]
        others = [step for step in first if step.operation != "cumulative"]
        prepare = _numbered(printer, others)
        printer.walking = True
        walk = _numbered(printer, list(split.walk))
        printer.walking = False
        finish = _numbered(printer, list(split.finish))
        head = _numbered(printer, cumulative)
        head += [f"{tile} = {text}" for tile, text in printer.factors.items()]
        self.lines = {"prepare": head + prepare, "walk": walk, "finish": finish}
        born = [step for step in split.walk if not step.adds and step.result in split.buffers]
        self.buffers = [
            f"{step.result}_M{'' if axes[step.result] == '1' else axes[step.result]}"
            for step in born
            if axes[step.result] != "KV"
        ]


def _numbered(printer: Printer, steps: list[Step]) -> list[str]:
    """Lines with the number of their step as a comment on the first line of each."""
    lines: list[str] = []
    for step in steps:
        text = printer.lines(step)
        number = f"  # {step.number}" if step.number else ""
        lines.append(text[0] + number)
        lines += text[1:]
    return lines
