"""Whole = prefill and decode = prefill in pieces = packed = padded; chunk = step: logits and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.laws.measure import distance, gradients, sequences_of, slope_distance, slopes, subject, truth
from tests.laws.subjects import (
    CORE,
    CORNERS,
    EVERY,
    EXCEPTIONS,
    LIBRARY,
    OTHER_LAWS,
    SHIPPED,
    SHRUNK,
    SUBJECTS,
    laws_of,
    others_of,
)
from tests.laws.ways import STATEFUL, WAYS, alone

Law = Callable[..., None]

# The narrowed published models have the same mixers as the library's rows: laws of forms need them once.
FORMS = [name for name in EVERY if name not in SHRUNK]
# Operations that no mixer of the core has.
FURTHER = ("fox", "hyena", "mom")


def subjects(quick: tuple[str, ...], slow: tuple[str, ...]) -> list[Any]:
    """All of them: those of nobody's library are slow at the latest, the others are left to `make library`."""

    def marks(name: str) -> Any:
        if name in quick:
            return ()
        return pytest.mark.slow if name in slow or name not in LIBRARY else pytest.mark.library

    return [pytest.param(name, marks=marks(name)) for name in FORMS]


FIRST = (*CORE, *CORNERS, "windowed_hybrid")
LOGITS = subjects(FIRST, tuple(LIBRARY))
LATER = subjects(FIRST, FURTHER)
GRADIENTS = subjects((*CORE, "windowed_hybrid"), FURTHER)
LONG = subjects((), CORE)

# One longer than a chunk, one shorter than every convolution, an empty one between others.
RAGGED = (17, 0, 1, 65, 3, 34)
STEEP = (5, 0, 1, 66, 3)
LENGTHS = (1, 15, 16, 17, 63, 64, 65, 127, 129)
# The backward of calls with one token each is slow: the slow suite has it.
STEEP_WAYS = (
    "batch",
    "packed",
    "packed_step",
    "left_padded",
    "fifteen_and_one",
    "packed_pieces",
    "packed_then_decode",
    "padded_pieces",
    "selected",
)


def test_laws_are_counted() -> None:
    assert len(WAYS) == 16 and len(STATEFUL) == 10
    assert len(SHIPPED) >= 6 and set(SHIPPED) <= set(SUBJECTS)
    assert len(LIBRARY) >= 6
    for name in EVERY:
        reasons = EXCEPTIONS.get(name, {})
        assert set(reasons) <= {*WAYS, *OTHER_LAWS}, name
        assert len(laws_of(name)) + len(others_of(name)) + len(reasons) == 16 + len(OTHER_LAWS), name
    assert len(laws_of("bidirectional")) == 5
    assert {name for name in EXCEPTIONS if name not in LIBRARY} == {"bidirectional"}
    assert all(reason for reasons in EXCEPTIONS.values() for reason in reasons.values())


@pytest.mark.parametrize("name", LOGITS)
def test_logits(name: str, law: Law) -> None:
    law(name, *laws_of(name))
    package, model = subject(name)
    expected = truth(name, *RAGGED)
    gaps = {}
    with torch.no_grad():
        for way in laws_of(name):
            gaps[way] = distance(WAYS[way](package, model, sequences_of(*RAGGED)), expected.logits)
    wrong = {way: gap for way, gap in gaps.items() if not gap <= expected.tolerance}
    assert not wrong, f"tolerance {expected.tolerance:.2e}"


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name: str, law: Law) -> None:
    law(name, "gradients")
    expected = slopes(name, *STEEP)
    model = subject(name)[1]
    gaps = {
        way: slope_distance(gradients(name, WAYS[way], model, STEEP), expected.gradients, model.float32)
        for way in laws_of(name)
        if way in STEEP_WAYS
    }
    wrong = {way: gap for way, gap in gaps.items() if not gap <= expected.tolerance}
    assert not wrong, f"tolerance {expected.tolerance:.2e}"


@pytest.mark.parametrize(
    "name", [one for one in LATER if "lengths around chunks" in others_of(one.values[0])]
)
def test_lengths_around_chunks(name: str, law: Law) -> None:
    """A prefix of the tokens gives a prefix of the logits, whatever its length."""
    law(name, "lengths around chunks")
    package, model = subject(name)
    expected = truth(name, max(LENGTHS))
    (tokens,) = sequences_of(max(LENGTHS))
    with torch.no_grad():
        gaps = {
            length: distance(alone(package, model, [tokens[:length]]), expected.logits) for length in LENGTHS
        }
    wrong = {length: gap for length, gap in gaps.items() if not gap <= expected.tolerance}
    assert not wrong, f"tolerance {expected.tolerance:.2e}"


@pytest.mark.parametrize("name", LATER)
def test_rows_of_a_batch(name: str, law: Law) -> None:
    """Row i of seven = row i alone."""
    law(name, "rows of a batch")
    package, model = subject(name)
    lengths = (33,) * 7
    expected = truth(name, *lengths)
    with torch.no_grad():
        rows = model(torch.stack(sequences_of(*lengths)))
    assert distance(list(rows), expected.logits) <= expected.tolerance


@pytest.mark.parametrize("name", LONG)
def test_a_thousand_tokens(name: str, law: Law) -> None:
    """Long sequences in each way but those that take one token at a time."""
    law(name, "a thousand tokens")
    package, model = subject(name)
    lengths = (1000, 0, 129, 1, 64, 127)
    expected = truth(name, *lengths)
    loops = ("decode", "decode_from_nothing", "decode_chunk", "four_and_three")
    quick = [way for way in laws_of(name) if way not in loops]
    with torch.no_grad():
        gaps = {
            way: distance(WAYS[way](package, model, sequences_of(*lengths)), expected.logits) for way in quick
        }
    wrong = {way: gap for way, gap in gaps.items() if not gap <= expected.tolerance}
    assert not wrong, f"tolerance {expected.tolerance:.2e}"


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("way", ["decode", "decode_chunk", "alone"])
def test_gradients_of_loops(name: str, way: str, law: Law) -> None:
    if not {way, f"gradients of {way}"}.isdisjoint(EXCEPTIONS.get(name, {})):
        pytest.skip("see EXCEPTIONS")
    law(name, f"gradients of {way}")
    lengths = (9, 0, 9) if way == "decode_chunk" else (20, 0, 9)  # it looks at nine tokens only
    expected = slopes(name, *lengths)
    model = subject(name)[1]
    found = gradients(name, WAYS[way], model, lengths)
    assert slope_distance(found, expected.gradients, model.float32) <= expected.tolerance
