"""Render the torch module of a recurrence class: the public function, its operations, and the forms behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from archc.templates import environment
from archc.tiles.forward import forward
from archc.tiles.kind import RecurrenceKind, form_of
from archc.tiles.program import SEGMENT, Step, TileProgram
from archc.tiles.reverse import reverse
from archc.tiles.schedule import Schedule, schedule
from archc.tiles.token_lines import decode_lines, token_lines
from archc.tiles.torch_lines import Printer
from archc.tiles.triton_elementwise import kept
from archc.tiles.triton_lines import scores_kept
from archc.tiles.views import Argument, arguments, beside_facts, public_facts, steps, wrap

SCAN_CHUNK = 16  # tokens of a chunk of a class that is a scan over tokens


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


def emit(
    kind: RecurrenceKind,
    name: str,
    templates: Path | None = None,
    kernel_sizes: Sequence[tuple[int, int]] | None = None,
    reverse_kernels: bool = False,
    gradients_since: tuple[int, ...] | None = None,
) -> str:
    """The source of the module `<name>.py` that computes recurrences of this class with torch.

    With `kernel_sizes`, which may be empty, decode steps on a GPU run the kernel of `<name>_kernels.py`, and so does
    the form over chunks for heads of these (K, V); `reverse_kernels`: its backward as well, with versions of Triton
    from `gradients_since` on. Raises ValueError, with the reason, for a class that has no form. The module exports
    `name`; see the template's own docstring for its arguments.
    """
    verdict = form_of(kind)
    if verdict.form == "error":
        raise ValueError(verdict.reason)
    shared = environment(templates)
    shared.filters["wrap"] = wrap
    found = arguments(kind)
    view: dict[str, object] = {
        "kind": kind,
        "core": kind.core(),
        "name": name,
        "arguments": found,
        "token": token_lines(kind),
        "decode": decode_lines(kind),
        "on_gpu": kernel_sizes is not None,
        "reverse_kernels": reverse_kernels,
        "gradients_since": gradients_since,
        "segment": SEGMENT,
        # What the module may have to say on a GPU.
        "said": [
            "say_torch_form",
            *(["say_torch_gradients"] if kernel_sizes and not reverse_kernels else []),
        ],
        "kernel_sizes": ", ".join(str(size) for size in kernel_sizes or ()),
    }
    if verdict.form == "scan":
        view |= {"scan_chunk": SCAN_CHUNK, "segment": kept(kind) // SCAN_CHUNK}
        empty = Forms([], [], [], [], [], [], [], [], [], frozenset())
        view["forms"] = empty
        view["facts"] = {**public_facts(kind, found), **chunk_facts(kind, found, empty)}
        return shared.get_template("recurrence/scan.py.jinja").render(view)
    forms = chunk_forms(kind, scores_kept(kind) if reverse_kernels else [])
    if kind.beside:
        view["beside"] = beside_facts(kind, public_facts(kind, found))
    view["forms"] = forms
    view["facts"] = {**public_facts(kind, found), **chunk_facts(kind, found, forms), "steps": steps(kind)}
    return shared.get_template("recurrence/chunk.py.jinja").render(view)


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
    kernel_kept = {"CV": "B, T, H, V", "CC": "B, T, H, CHUNK"}
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
        "kernel_kept": [kernel_kept[name.rsplit("_", 1)[1][1:]] for name in forms.kept],
        "gradients": gradients,
        "helpers": helpers,
    }


def chunk_forms(kind: RecurrenceKind, more: Sequence[str] = ()) -> Forms:
    """Print the forward program and its derived reverse, each phase as numbered lines.

    more: what is kept for the backward besides what it always has.
    """
    core = kind.core()
    program = forward(kind)
    backward = reverse(program)
    ahead = schedule(program, "S", "S_next", stored=True)
    behind = schedule(backward, "dS_next", "dS", stored=False)

    produced = {step.result for step in backward.steps}
    kept = [*(name for name in ("U", "X") if name in program.axes), *more]
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
