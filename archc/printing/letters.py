"""Gives every axis of a model a letter, for names such as `q_BTHK`."""

from __future__ import annotations

import string
from collections.abc import Iterable

from archc.graph.types import Graph
from archc.spec.axes import Axis

# The field's usual letters; the others are found from the axis's own words.
USUAL = {
    "d_model": "D",
    "n_heads": "H",
    "n_kv_heads": "G",
    "head_dim": "K",
    "v_dim": "V",
    "d_ff": "F",
    "d_state": "N",
    "d_inner": "E",
    "n_v_heads": "W",
    "vocab_size": "V",
    "keys": "S",
    "blocks": "M",
}
TAKEN = "BT"  # batch and tokens
# What stands in the place of tokens in values that come at another rate.
RATE_AXES = {"seen": Axis.named("keys"), "block": Axis.named("blocks")}


def assign_letters(graph: Graph) -> dict[Axis, str]:
    """A letter for each axis, the same in all modules; axes beyond the alphabet get none."""
    found: dict[Axis, str] = {}
    free = [letter for letter in string.ascii_uppercase if letter not in TAKEN]
    axes = list(dict.fromkeys(_axes(graph)))
    named = [axis for axis in axes if str(axis) in USUAL]
    for axis in [*named, *(a for a in axes if a not in named and a.constant is None)]:
        for letter in _wishes(axis):
            if letter in free:
                free.remove(letter)
                found[axis] = letter
                break
    return found


def _axes(graph: Graph) -> Iterable[Axis]:
    for module in graph.modules.values():
        for node in module.subgraph.nodes:
            for type_ in node.types:
                if type_.rate in RATE_AXES:
                    yield RATE_AXES[type_.rate]
                yield from type_.axes


def _wishes(axis: Axis) -> list[str]:
    text = str(axis)
    usual = [USUAL[text]] if text in USUAL else []
    words = [letter.upper() for letter in text if letter.isalpha()]
    return [*usual, *words, *reversed(string.ascii_uppercase)]
