"""Print the reverse of a tile program as two Triton kernels: one walks back with dS, one forth again with S.

`walk_back` carries dS from the end of a sequence to its start and makes all gradients of what writes into the state:
of values, and of the rows that they are written with. It needs no states. Where a segment of chunks starts it writes
dS. `walk_again` carries the state once more, from the one that the forward kept at the start of its segment, so
segments run beside each other; it makes the gradients of what reads the state.

A decay's gradient is the sum over all that it reaches: pairs of tokens of a chunk (`met`, score times gradient of the
score), reads of the state, writes into it, and e^G_end <S, dS_next>. The last is known exactly where a segment starts,
and is carried from there: <S, dS> less what the chunk reads from S is e^G_end <S, dS_next>; with what it writes it is
<S_next, dS_next>. Where nothing is left of S it is zero, not a difference. Pairs that no decay touches are left out of
`met`, so nothing of their size has to cancel.
"""

from __future__ import annotations

from dataclasses import dataclass

from archc.templates import environment
from archc.tiles.forward import forward
from archc.tiles.kind import RecurrenceKind, form_of
from archc.tiles.triton_gradients import View
from archc.tiles.triton_spans import Ahead
from archc.tiles.triton_walk_again import Again
from archc.tiles.triton_walk_back import Back
from archc.tiles.views import kernel_arguments, public_facts


@dataclass(frozen=True, slots=True)
class ReverseLaunch:
    """How the two kernels are cut: warps and stages of each.

    columns: value columns of a program of `walk_back`. channels: key channels of a program of `walk_again`, which has
    all value columns and sums over `summed` of them at once: fewer than there are, or it is no loop. several: whether
    some head has more value columns than `columns`. guarded: whether a chunk of `walk_back` stands in a condition, out
    of which Triton moves no accumulator: for a wide state in tensor memory. wide: whether such a state is in registers.
    ahead: value columns of a program of `walk_back_ahead` where that is more than `columns`, else 0.
    """

    columns: int
    back: tuple[int, int]
    again: tuple[int, int]
    channels: int
    summed: int = 64
    several: bool = False
    guarded: bool = False
    wide: bool = False
    ahead: int = 0


# Axes of what the kernels make: "CV" values, "CK" rows, "C" a number a token. All but values are sums over a block of
# value columns, where `walk_back` makes them; where `walk_again` does, numbers are sums over one of key channels.
_AXES = {"dv": "CV", "dE": "CV", "written": "C", "dbeta": "C", "dweight": "C", "ddecay": "C", "dz": "C"}


def reverse_source(kind: RecurrenceKind, launch: ReverseLaunch, ahead: Ahead | None = None) -> str:
    """The text of `walk_back`, `walk_again` and their launcher `chunk_backward`, for the module of the forward kernels.

    `chunk_backward` has the arguments and results of that of the torch form, with the states that the forward kernels
    keep. ahead: what finds how spans follow each other, without which sequences are walked whole. Raises ValueError for
    a class without these kernels.
    """
    core = kind.core()
    if form_of(kind).form != "chunk" or core.decay not in ("none", "head"):
        raise ValueError(f"no reverse kernels for a decay of the class {core.decay}")
    program = forward(kind, weighted=kind.beside and kind.normalize == "max")
    back = Back(kind, program, launch.wide, spans=ahead is not None).view()
    again = Again(kind, program, launch.several).view()
    found = kernel_arguments(kind)
    facts = public_facts(kind, found)
    inputs = [argument.name for argument in found]
    made = [*back.made, *again.made]
    parts = [name for name in back.made if launch.several and name in again.loaded and name not in _AXES]
    kept = [name for name in ("U", "X") if name in program.axes]
    view = {
        "core": core,
        "launch": launch,
        "ahead": ahead,
        "kernels": {"walk_back": back, "walk_again": again},
        "constants": {
            "walk_back": _constants(
                inputs, back, ["K", "BLOCK_K", *(["PART_K"] if kind.beside else []), "V", "COLUMNS"]
            ),
            "walk_again": _constants(
                inputs, again, [*(["BLOCKS"] if parts else []), "K", "CHANNELS", "V", "BLOCK_V", "PART_V"]
            ),
        },
        "again_made": again.made,
        "summed_first": [
            name
            for name in (*back.made, *back.normaliser.made)
            if name in (*again.loaded, *again.normaliser.given) and name not in ("dE", *parts)
        ],
        "parts": parts,
        "axes": {name: _AXES.get(name, "CK") for name in made},
        "inputs": [name for name in inputs if name != "floor"],
        "beside": kind.beside,
        "kept": kept,
        "typed": facts["typed"],
        "typed_kept": "".join(f"{name}: Tensor, " for name in kept),
        "given": _given,
        "heads": facts["heads"],
        "short": ", ".join(("do", *inputs)),
        "gradient": {name: "dE" if name == "v" and "dv" not in made else f"d{name}" for name in inputs},
    }
    return environment().get_template("recurrence/kernels_reverse.py.jinja").render(view)


def _constants(inputs: list[str], view: View, sizes: list[str]) -> list[str]:
    """The compile-time arguments of a kernel."""
    heads = [f"{name}_heads" for name in inputs if name in view.loaded]
    return ["H", *heads, *sizes, "C", "PACKED", "SEGMENT"]


def _given(name: str) -> str:
    """The value of a compile-time argument at the launch."""
    text = {"BLOCKS": "blocks", "C": "CHUNK", "COLUMNS": "BACK_COLUMNS", "PACKED": "cu_seqlens is not None"}
    text |= {"PART_K": "min(VECTOR_CHANNELS, BLOCK_K)"}
    text |= {"CHANNELS": "min(AGAIN_CHANNELS, BLOCK_K)", "PART_V": "min(AGAIN_COLUMNS, BLOCK_V)"}
    return f"{name.removesuffix('_heads')}.shape[2]" if name.endswith("_heads") else text.get(name, name)
