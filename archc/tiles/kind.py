"""The classes of recurrence, and which of them have a form parallel over chunks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Decay = Literal["none", "constant", "head", "key", "value", "elementwise"]
Erase = Literal["none", "delta", "pair"]
EraseFrom = Literal["previous", "decayed"]
Read = Literal["inclusive", "exclusive"]
Normalize = Literal["none", "sum", "max"]
Form = Literal["chunk", "scan", "error"]

DECAYS: tuple[Decay, ...] = ("none", "constant", "head", "key", "value", "elementwise")
ERASES: tuple[Erase, ...] = ("none", "delta", "pair")


@dataclass(frozen=True, slots=True)
class RecurrenceKind:
    """What distinguishes one class of recurrence from another; sizes are not part of it.

    decay: on which axes of the state the log decay differs ("constant": per head, the same for every token).
    erase: "delta" is `beta=`, "pair" is `erase_write=, erase_read=`.
    erase_from: whether the erase reads the state before ("previous") or after ("decayed") the decay.
    read: whether token t reads the state after it wrote ("inclusive") or before it came ("exclusive").
    normalize: divide by the sum of weights ("sum"), or keep a running maximum as well ("max").
    log_input: the write is scaled by `exp(log_input)`, needs normalize "max".
    factors: k, v and the erase have an axis of several factors a token.
    chunk: tokens per chunk, a multiple of 16 that is 16 times a power of two.
    decay_bounded: every log decay lies in [-5, 0], so that exponents over 16 tokens do not overflow.
    decay_rate: an elementwise decay is the product of a step `[B, T, H, V]` and a rate `[H, K, V]` without tokens.
    grouped: q has several heads for each of the others', which are those of the state.
    """

    decay: Decay = "none"
    erase: Erase = "none"
    erase_from: EraseFrom = "decayed"
    read: Read = "inclusive"
    normalize: Normalize = "none"
    log_input: bool = False
    factors: bool = False
    chunk: int = 64
    decay_bounded: bool = False
    decay_rate: bool = False
    grouped: bool = False

    def core(self) -> RecurrenceKind:
        """The class that does the work once factors, groups, normalisers and constant decays are rewritten.

        Factors are time unrolled, and so are the queries of a group; "sum" is one more column of V; "max" scales k
        and the decay by a maximum that is known beforehand; a constant decay is a decay per head that is the same
        everywhere.
        """
        decay: Decay = self.decay
        if decay == "constant" or self.normalize == "max":
            decay = "head"
        return replace(self, decay=decay, normalize="none", log_input=False, factors=False, grouped=False)

    @property
    def beside(self) -> bool:
        """Whether kernels carry the normaliser as a vector `[K]` beside the state, rather than as a column of it.

        Under an erase that vector has a triangular system of its own.
        """
        return self.normalize != "none" and self.erase == "none" and not self.factors


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a class can be computed: parallel over chunks, by a scan over time, or not at all and why."""

    form: Form
    reason: str = ""


# (decay, erase) -> the schedule of that cell. Everything else about a class is in `_REFUSALS`.
FORMS: dict[tuple[Decay, Erase], Verdict] = {
    **{(decay, erase): Verdict("chunk") for decay in DECAYS[:4] for erase in ERASES},
    ("value", "none"): Verdict("chunk"),
    ("value", "delta"): Verdict(
        "error", "an erase under a decay along V needs one triangular system per value channel"
    ),
    ("value", "pair"): Verdict(
        "error", "an erase under a decay along V needs one triangular system per value channel"
    ),
    ("elementwise", "none"): Verdict("scan", "the decay differs in every element of the state"),
    ("elementwise", "delta"): Verdict("error", "an erase mixes rows of the state that decay differently"),
    ("elementwise", "pair"): Verdict("error", "an erase mixes rows of the state that decay differently"),
}


def form_of(kind: RecurrenceKind) -> Verdict:
    """The schedule of a class. An "error" verdict says why; nothing raises."""
    cell = FORMS[kind.decay, kind.erase]
    if cell.form == "error":
        return cell
    for refused, reason in (
        (
            kind.erase == "delta" and kind.erase_from == "previous",
            "beta= erases from the decayed state; write erase_write= and erase_read= to erase from the previous",
        ),
        (kind.erase == "none" and kind.erase_from == "previous", "erase_from= without an erase"),
        (
            kind.normalize != "none" and kind.decay in ("value", "elementwise"),
            "the normaliser has no V axis to decay along",
        ),
        (kind.log_input and kind.normalize != "max", "log_input= overflows without normalize=max"),
        (
            kind.normalize == "max" and not kind.log_input,
            "normalize=max needs log_input=; without it write normalize=sum",
        ),
        (
            kind.normalize == "max" and (kind.decay == "key" or kind.erase != "none" or kind.factors),
            "normalize=max needs one weight per token: a decay per head, no erase, no factors",
        ),
        (
            kind.normalize == "max" and kind.read == "exclusive",
            "normalize=max divides by a maximum that includes the token itself",
        ),
        (kind.decay_rate and kind.decay != "elementwise", "a decay rate belongs to an elementwise decay"),
        (kind.factors and kind.decay == "elementwise", "factors need a schedule over chunks"),
        (
            kind.chunk < 16 or kind.chunk & (kind.chunk - 1) != 0,
            f"a chunk is a power of two of at least 16 tokens, not {kind.chunk}",
        ),
    ):
        if refused:
            return Verdict("error", reason)
    return cell


def recurrence_name(kind: RecurrenceKind) -> str:
    """What a class of recurrence is called in a package: `head_decay_delta`."""
    parts = [] if kind.decay == "none" else [f"{kind.decay}_decay"]
    parts += {"none": [], "delta": ["delta"], "pair": [f"erase_{kind.erase_from}"]}[kind.erase]
    parts += ["rate"] if kind.decay_rate else []
    parts += ["grouped"] if kind.grouped else []
    parts += ["factors"] if kind.factors else []
    parts += ["exclusive"] if kind.read == "exclusive" else []
    parts += [f"normalized_{kind.normalize}"] if kind.normalize != "none" else []
    parts += ["log_input"] if kind.log_input else []
    parts += ["bounded"] if kind.decay_bounded and kind.decay == "key" else []
    parts += [f"chunk_{kind.chunk}"] if kind.chunk != 64 else []
    return "_".join(parts) if parts else "no_decay"
