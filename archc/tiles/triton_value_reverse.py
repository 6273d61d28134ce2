"""Print the reverse of a tile program with a decay per value channel as three Triton kernels.

It is the backward of a decay per key channel with keys and values exchanged: there scores decay channel by channel and
their gradients do not, here it is the other way round. What pairs of a chunk give to values and decays, and the
gradient of their scores, needs no state: `prepare_back` makes it for all chunks at once. `walk_back` carries dS from
the end of a sequence to its start and makes the gradients of keys, and those of values as far as they come through dS;
`walk_again` carries S from the start of every segment and makes all else.

A decay receives what is read through it, less what pairs write from its token on, writes into the state before it,
and e^G_end <S, dS_next>, channel by channel, as where keys decay.
"""

from __future__ import annotations

from dataclasses import dataclass

from archc.templates import environment
from archc.tiles.forward import forward
from archc.tiles.kind import RecurrenceKind, form_of
from archc.tiles.reverse import reverse
from archc.tiles.triton_spans import Ahead
from archc.tiles.views import arguments, public_facts


@dataclass(frozen=True, slots=True)
class ValueLaunch:
    """How the kernels are cut.

    columns: value columns of a program of a walk. inside: of `prepare_back`, those at once, its warps and stages.
    back, again: warps and stages of the walks.
    """

    columns: int
    inside: tuple[int, int, int]
    back: tuple[int, int]
    again: tuple[int, int]


def has_value_reverse(kind: RecurrenceKind) -> bool:
    """Whether a class has these kernels."""
    return form_of(kind).form == "chunk" and kind.core().decay == "value" and kind.normalize == "none"


def value_reverse_source(kind: RecurrenceKind, launch: ValueLaunch, ahead: Ahead | None = None) -> str:
    """The text of the kernels and their launcher `chunk_backward`, for the module of the forward kernels.

    `chunk_backward` has the arguments and results of that of the torch form, with the states that the forward kernels
    keep. ahead: what finds how spans follow each other, without which sequences are walked whole. Raises ValueError for
    a class without these kernels.
    """
    if not has_value_reverse(kind):
        raise ValueError(f"no reverse kernels by value channel for a decay of the class {kind.core().decay}")
    found = arguments(kind)
    facts = public_facts(kind, found)
    inputs = [argument.name for argument in found]
    heads = [f"{name}_heads" for name in inputs]
    walked = ["H", *heads, "K", "BLOCK_K", "V", "COLUMNS", "C", "PACKED"]
    steps = {step.operation: step.number for step in forward(kind).steps}
    undone = {step.number for step in reverse(forward(kind)).steps}
    assert undone == set(steps.values())  # each step of the forward is undone by one of the lines
    view = {
        "launch": launch,
        "ahead": ahead,
        "before": kind.read == "exclusive",
        "halvings": kind.chunk.bit_length() - 1,
        "together": False,
        "number": {"scores": steps["pair"], "written": steps["update"], "read": steps["read"]},
        "inputs": inputs,
        "typed": facts["typed"],
        "heads": facts["heads"],
        "contiguous": {
            # Rows that meet in a product have one type.
            name: f"{name}{'.to(q.dtype)' if name in ('do', 'k', 'v') else ''}.contiguous()"
            for name in ("do", "dfinal", *inputs)
        },
        "constants": {
            "prepare_back": walked,
            "walk_back": [*walked, "SEGMENT"],
            "walk_again": [*walked, "SEGMENT"],
        },
        "given": _given,
    }
    return environment().get_template("recurrence/kernels_value_reverse.py.jinja").render(view)


def _given(name: str) -> str:
    """The value of a compile-time argument at the launch."""
    text = {"C": "CHUNK", "COLUMNS": "BACK_COLUMNS", "PACKED": "cu_seqlens is not None"}
    return f"{name.removesuffix('_heads')}.shape[2]" if name.endswith("_heads") else text.get(name, name)
