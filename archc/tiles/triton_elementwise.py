"""Print a recurrence whose state decays entry by entry as Triton kernels: a loop over tokens, forward and back.

No chunk has a form as products: each entry of the state keeps its own share. So a program holds the state of a block
of value columns in registers and takes token by token, with the lines of the decode step. The backward needs the state
before a token and the gradient of the one after it at once. From a state that was kept it makes those at groups of
tokens again and then, group by group from the end, those at the tokens of a group.
"""

from __future__ import annotations

from dataclasses import dataclass

from archc.templates import environment
from archc.tiles.kind import RecurrenceKind
from archc.tiles.triton_decode import decode_source, read_line, state_lines
from archc.tiles.views import TITLES, arguments, definition, public_facts

GROUP = 4  # tokens that are loaded at once, and whose states the backward holds at once
# Tokens between two states that are kept, in torch's chunks of 16; the latter where decays are as large as states. The
# backward holds KEPT / GROUP + GROUP states at once: with 64 tokens those of 128 key channels spilled.
KEPT, KEPT_FULL = 48, 16


@dataclass(frozen=True, slots=True)
class TokenLaunch:
    """How a walk is cut: value columns of a program, warps and stages."""

    columns: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """A row of a token: the tensor, the name of its tile and where its entries lie."""

    name: str
    tile: str
    axes: str


def kept(kind: RecurrenceKind) -> int:
    """Tokens between two states that are kept for the backward."""
    return KEPT if kind.decay_rate else KEPT_FULL


def elementwise_source(
    kind: RecurrenceKind,
    name: str,
    walk: TokenLaunch,
    back: TokenLaunch | None,
    kept_tokens: int | None = None,
) -> str:
    """The text of `<name>_kernels.py`: the walks over tokens and the decode step; no gradients without `back`.

    kept_tokens: between two states that are kept, instead of what the class has.
    """
    rows, found = token_rows(kind), arguments(kind)
    names = [row.name for row in rows]
    inputs = [argument.name for argument in found]
    view = {
        "title": TITLES[kind.core().decay, kind.erase],
        "definition": definition(kind.core()),
        "name": name,
        "facts": public_facts(kind, found),
        "inputs": inputs,
        "rows": rows,
        "writes": [row for row in rows if row.name != "q"],
        "per_token": names,
        "rate": kind.decay_rate,
        "gradients": [f"d{name}" for name in inputs],
        "group": GROUP,
        "kept": kept_tokens or kept(kind),
        "walk": walk,
        "back": back,
        "lines": walk_lines(kind),
        "state_lines": _state_lines(kind),
        "reverse": reverse_lines(kind) if back is not None else [],
        "constants": [
            "H", *(f"{name}_heads" for name in inputs), "K", "BLOCK_K", "V", "COLUMNS", "GROUP", "KEPT", "PACKED",
        ],
        "contiguous": ", ".join(f"{name}.contiguous()" for name in inputs),
        "decode": decode_source(kind).rstrip("\n"),
    }  # fmt: skip
    return environment().get_template("recurrence/kernels_elementwise.py.jinja").render(view)


def token_rows(kind: RecurrenceKind) -> list[Loaded]:
    """What a token has: rows of q, k and v, and its decay or the step of it."""
    axes = {"q": "K", "k": "K", "v": "V", "decay": "V" if kind.decay_rate else "KV"}
    return [Loaded(name, f"{name}_{axis}", axis) for name, axis in axes.items()]


def _tiles(kind: RecurrenceKind) -> dict[str, str]:
    return {row.name: row.tile for row in token_rows(kind)} | {"rate": "rate_KV"}


def _state_lines(kind: RecurrenceKind) -> list[str]:
    """From a state to the next."""
    return state_lines(kind, _tiles(kind))


def walk_lines(kind: RecurrenceKind) -> list[str]:
    """From a state to the next and what the token reads."""
    read = [f"o_V = {read_line('q_K')} * scale"]
    return [*read, *_state_lines(kind)] if kind.read == "exclusive" else [*_state_lines(kind), *read]


def reverse_lines(kind: RecurrenceKind) -> list[str]:
    """The gradients of a token from the state before it, `S_KV`, and the gradient of the state after it, `dS_KV`."""
    exponent = "decay_V[None, :] * rate_KV" if kind.decay_rate else "decay_KV"
    read = "dS_KV += q_K[:, None] * do_V[None, :]"
    lines = [f"share_KV = tl.exp({exponent})"]
    if kind.read == "exclusive":
        lines += ["dq_K = tl.sum(S_KV * do_V[None, :], 1)", "S_KV *= share_KV"]
    else:
        lines += ["S_KV *= share_KV", read]
        lines += ["dq_K = tl.sum((S_KV + k_K[:, None] * v_V[None, :]) * do_V[None, :], 1)"]
    lines += ["dk_K = tl.sum(dS_KV * v_V[None, :], 1)", "dv_V = tl.sum(dS_KV * k_K[:, None], 0)"]
    if kind.decay_rate:
        lines += ["dexponent_KV = dS_KV * S_KV"]
        lines += [
            "ddecay_V = tl.sum(dexponent_KV * rate_KV, 0)",
            "drate_of_group_KV += dexponent_KV * decay_V[None, :]",
        ]
    else:
        lines += ["ddecay_KV = dS_KV * S_KV"]
    return [*lines, "dS_KV *= share_KV", *([read] if kind.read == "exclusive" else [])]
