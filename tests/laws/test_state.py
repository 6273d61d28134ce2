"""What a state promises: old ones stay, rows can be picked, a full cache says so before anything is written."""

from __future__ import annotations

import pytest
import torch

from tests.laws.measure import distance, sequences_of, subject, tensors_of, truth
from tests.laws.subjects import EXCEPTIONS, SUBJECTS
from tests.laws.ways import pack

CAUSAL = [name for name in SUBJECTS if name not in EXCEPTIONS]


def same(state: object, before: dict[str, torch.Tensor]) -> bool:
    after = tensors_of(state)
    return after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in after)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("length", [1, 9])
@pytest.mark.parametrize("grad", [False, True])
def test_a_new_state_leaves_the_old_one(name: str, length: int, grad: bool) -> None:
    _, model = subject(name)
    (tokens,) = sequences_of(40)
    with torch.set_grad_enabled(grad):
        _, first = model(tokens[None, :30], state=model.init_state(1, 64), return_state=True)
        before = tensors_of(first)
        once, second = model(tokens[None, 30 : 30 + length], state=first, return_state=True)
        assert same(first, before) and not same(second, before)
        again, _ = model(tokens[None, 30 : 30 + length], state=first, return_state=True)
    assert torch.equal(once, again)
    assert int(first.length) == 30 and int(second.length) == 30 + length


@pytest.mark.parametrize("name", CAUSAL)
def test_a_state_in_place_needs_grad_off(name: str) -> None:
    package, model = subject(name)
    state = model.init_state(1, 8)
    before = tensors_of(state)
    with pytest.raises(RuntimeError, match="return_state=True"):
        model(torch.tensor([[1, 2]]), state=state)
    assert same(state, before)


@pytest.mark.parametrize("name", CAUSAL)
def test_copies_and_rows(name: str) -> None:
    _, model = subject(name)
    rows = torch.stack(sequences_of(20, 20, 20))
    with torch.no_grad():
        state = model.init_state(3, 32)
        model(rows[:, :12], state=state)
        copy, cut, moved = state.clone(), state.detach(), state.to("cpu")
        picked = state.select([2, 0, 0])
        expected = model(rows[:, 12:], state=state.clone())
        assert (
            same(copy, tensors_of(state)) and same(cut, tensors_of(state)) and same(moved, tensors_of(state))
        )
        assert all(tensor.shape[0] == 3 for tensor in copy.tensors().values())
        found = model(rows[[2, 0, 0]][:, 12:], state=picked)
        before = tensors_of(copy)
        model(rows[:, 12:], state=state)
        assert same(copy, before), "a clone has storage of its own"
    limit = truth(name, 20, 20, 20).tolerance
    assert distance(list(found), list(expected[[2, 0, 0]])) <= limit


def test_cut_states_stop_gradients() -> None:
    _, model = subject("windowed_hybrid")
    (tokens,) = sequences_of(12)
    _, state = model(tokens[None, :8], return_state=True)
    assert any(tensor.requires_grad for tensor in state.tensors().values())
    assert not any(tensor.requires_grad for tensor in state.detach().tensors().values())


def test_a_call_of_other_rows() -> None:
    package, model = subject("gla_small")
    with torch.no_grad(), pytest.raises(RuntimeError, match="holds 2 sequences, the call has 3"):
        model(torch.zeros(3, 4, dtype=torch.long), state=model.init_state(2, 8))


@pytest.mark.parametrize("layout", ["dense", "token", "packed", "padded"])
@pytest.mark.parametrize("name", ["windowed_hybrid", "two_mixers"])
def test_overflow_names_the_layer(name: str, layout: str) -> None:
    """A cache of ten tokens takes ten; the eleventh is refused, and nothing of its call is written."""
    _, model = subject(name)
    full = "layers.4.mixer.k_turned" if name == "windowed_hybrid" else "layers.0.second_mixer.k_turned"
    rows = torch.stack(sequences_of(11, 11))
    with torch.no_grad():
        state = model.init_state(2, 10)
        model(rows[:, :8], state=state)
        calls = {
            "dense": (rows[:, 8:], {}),
            "token": (rows[:, 10:], {}),
            "packed": (pack([rows[0, 8:9], rows[1, 8:]])[0][None], {"cu_seqlens": torch.tensor([0, 1, 4])}),
            "padded": (rows[:, 8:], {"attention_mask": torch.tensor([[0, 0, 1], [1, 1, 1]])}),
        }
        if layout == "token":
            model(rows[:, 8:10], state=state)
        before = tensors_of(state)
        tokens, options = calls[layout]
        with pytest.raises(RuntimeError, match=f"{full} holds 10 tokens, .* to 11") as caught:
            model(tokens, state=state, **options)
        assert type(caught.value).__name__ == "StateError"
        assert same(state, before)
        if layout != "token":
            model(rows[:, 8:10], state=state)  # what fits still goes in
            assert state.length.tolist() == [10, 10]


def test_windows_and_recurrences_have_no_end() -> None:
    _, model = subject("gated_deltanet_small")
    (tokens,) = sequences_of(40)
    with torch.no_grad():
        state = model.init_state(1, 2)
        model(tokens[None], state=state)
        assert int(state.length) == 40


@pytest.mark.parametrize("name", ["windowed_hybrid", "mamba2_small"])
def test_masks_with_a_hole(name: str) -> None:
    _, model = subject(name)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1]])
    with pytest.raises(ValueError, match="hole in row 1"):
        model(torch.zeros(2, 4, dtype=torch.long), attention_mask=mask)


@pytest.mark.parametrize(
    ("borders", "message"),
    [([0, 5, 3], "rise"), ([1, 5], "rise"), ([0, 9], "at most 8"), ([0], "two entries")],
)
def test_borders_that_cannot_be(borders: list[int], message: str) -> None:
    _, model = subject("mamba2_small")
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(1, 8, dtype=torch.long), cu_seqlens=torch.tensor(borders))


def test_what_lies_behind_the_last_border_is_nobodys() -> None:
    """Other tokens there change nothing, not even a state."""
    for name in CAUSAL:
        _, model = subject(name)
        (tokens,) = sequences_of(24)
        cu_seqlens = torch.tensor([0, 7, 7, 20])
        with torch.no_grad():
            first, one = model(tokens[None], cu_seqlens=cu_seqlens, return_state=True)
            other = torch.cat([tokens[:20], 1 + tokens[20:] % 60])
            second, two = model(other[None], cu_seqlens=cu_seqlens, return_state=True)
            expected, three = model(tokens[None, :20], cu_seqlens=cu_seqlens, return_state=True)
        assert torch.equal(first[:, :20], second[:, :20]), name
        assert same(one, tensors_of(two)), name
        assert distance([first[0, :20]], [expected[0]]) <= truth(name, 7, 0, 13).tolerance, name
        assert first.isfinite().all(), name
