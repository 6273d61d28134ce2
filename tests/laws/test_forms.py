"""Whole = prefill and decode = prefill in pieces = packed = padded; chunk = step: logits and gradients."""

from __future__ import annotations

import pytest
import torch

from tests.laws.measure import distance, gradients, sequences_of, slope_distance, slopes, subject, truth
from tests.laws.subjects import EVERY, EXCEPTIONS, LIBRARY, SHIPPED, SUBJECTS, laws_of
from tests.laws.ways import STATEFUL, WAYS, alone

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
        assert len(laws_of(name)) + len(EXCEPTIONS.get(name, {})) == 16, name
    assert len(laws_of("bidirectional")) == 5
    assert {name for name in EXCEPTIONS if name not in LIBRARY} == {"bidirectional"}
    assert all(reason for reasons in EXCEPTIONS.values() for reason in reasons.values())


@pytest.mark.parametrize("name", EVERY)
def test_logits(name: str) -> None:
    package, model = subject(name)
    expected = truth(name, *RAGGED)
    gaps = {}
    with torch.no_grad():
        for law in laws_of(name):
            gaps[law] = distance(WAYS[law](package, model, sequences_of(*RAGGED)), expected.logits)
    wrong = {law: gap for law, gap in gaps.items() if not gap <= expected.tolerance}
    assert not wrong, f"tolerance {expected.tolerance:.2e}"


@pytest.mark.parametrize("name", EVERY)
def test_gradients(name: str) -> None:
    expected = slopes(name, *STEEP)
    model = subject(name)[1]
    gaps = {
        law: slope_distance(gradients(name, WAYS[law], model, STEEP), expected.gradients, model.float32)
        for law in laws_of(name)
        if law in STEEP_WAYS
    }
    wrong = {law: gap for law, gap in gaps.items() if not gap <= expected.tolerance}
    assert not wrong, f"tolerance {expected.tolerance:.2e}"


@pytest.mark.parametrize("name", [name for name in EVERY if name != "bidirectional"])
def test_lengths_around_chunks(name: str) -> None:
    """A prefix of the tokens gives a prefix of the logits, whatever its length."""
    package, model = subject(name)
    expected = truth(name, max(LENGTHS))
    (tokens,) = sequences_of(max(LENGTHS))
    with torch.no_grad():
        gaps = {
            length: distance(alone(package, model, [tokens[:length]]), expected.logits) for length in LENGTHS
        }
    wrong = {length: gap for length, gap in gaps.items() if not gap <= expected.tolerance}
    assert not wrong, f"tolerance {expected.tolerance:.2e}"


@pytest.mark.parametrize("name", EVERY)
def test_rows_of_a_batch(name: str) -> None:
    """Row i of seven = row i alone."""
    package, model = subject(name)
    lengths = (33,) * 7
    expected = truth(name, *lengths)
    with torch.no_grad():
        rows = model(torch.stack(sequences_of(*lengths)))
    assert distance(list(rows), expected.logits) <= expected.tolerance


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_a_thousand_tokens(name: str) -> None:
    """Long sequences in each way but those that take one token at a time."""
    package, model = subject(name)
    lengths = (1000, 0, 129, 1, 64, 127)
    expected = truth(name, *lengths)
    quick = [
        law for law in laws_of(name) if law not in ("decode_from_nothing", "decode_chunk", "four_and_three")
    ]
    with torch.no_grad():
        gaps = {
            law: distance(WAYS[law](package, model, sequences_of(*lengths)), expected.logits) for law in quick
        }
    wrong = {law: gap for law, gap in gaps.items() if not gap <= expected.tolerance}
    assert not wrong, f"tolerance {expected.tolerance:.2e}"


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("law", ["decode", "decode_chunk", "alone"])
def test_gradients_of_loops(name: str, law: str) -> None:
    if law in EXCEPTIONS.get(name, {}):
        pytest.skip(EXCEPTIONS[name][law])
    lengths = (9, 0, 9) if law == "decode_chunk" else (40, 0, 9)  # it looks at nine tokens only
    expected = slopes(name, *lengths)
    model = subject(name)[1]
    found = gradients(name, WAYS[law], model, lengths)
    assert slope_distance(found, expected.gradients, model.float32) <= expected.tolerance
