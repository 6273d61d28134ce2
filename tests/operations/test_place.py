"""Layouts, padding and states."""

from __future__ import annotations

from typing import Any

import pytest
import torch


def test_padding_moves_there_and_back(package: Any) -> None:
    mask = torch.tensor([[0, 1, 1], [0, 0, 0], [1, 1, 0], [1, 1, 1]])
    x = torch.arange(24).view(4, 3, 2)
    padding = package.place.pack_padding(mask)
    assert padding.cu_seqlens.tolist() == [0, 2, 2, 4, 7]
    row = padding.pack(x)
    assert row.shape == (1, 12, 2)
    assert row[0, :7].tolist() == x[mask.bool()].tolist()
    assert torch.equal(padding.unpack(row), x)
    many = torch.rand(40, 100) < torch.rand(40, 1)
    many = many.sort(1).values  # padding on the left
    rows = package.place.pack_padding(many).pack(torch.arange(4000).view(40, 100))[0]
    assert torch.equal(rows[: many.sum()], torch.arange(4000).view(40, 100)[many])
    with pytest.raises(ValueError, match="hole in row 1"):
        package.place.pack_padding(torch.tensor([[1, 1, 0], [1, 0, 1]]))


def test_packed_layout(package: Any) -> None:
    layout = package.place.packed_layout(torch.tensor([0, 0, 3, 3, 4], dtype=torch.int32), 6)
    assert layout.sequence_T.tolist() == [1, 1, 1, 3, 4, 4]
    assert layout.positions_BT[0, :4].tolist() == [0, 1, 2, 0]
    assert (layout.longest, layout.longest_new, layout.fresh) == (3, 3, True)
    for borders in ([0, 3, 2], [1, 3], [0, 7]):
        with pytest.raises(ValueError, match="must rise from 0 to at most 6"):
            package.place.packed_layout(torch.tensor(borders), 6)
    with pytest.raises(ValueError, match="two entries"):
        package.place.packed_layout(torch.tensor([0]), 6)


def test_places(package: Any) -> None:
    stored = torch.zeros(2, 3)
    state = package.state.State.empty({"layers.0.mixer.q": stored}, 2, 8)
    layout = package.place.dense_layout(torch.zeros(2, 4), state)
    with torch.no_grad():
        place = package.state.open_place(layout, state).at("layers").at("0").at("mixer")
    assert place.read("q") is stored
    with pytest.raises(KeyError):
        place.read("k")
    place.write("q", torch.ones(2, 3))
    assert stored.sum() == 6
    anew = package.state.open_place(layout, state, return_state=True)
    anew.at("layers").at("0").at("mixer").write("q", torch.zeros(2, 3))
    after = package.state.close_place(anew, state)
    assert stored.sum() == 6 and not after.memory["layers.0.mixer.q"].any()
    assert after.length.tolist() == [4, 4] and state.length.tolist() == [0, 0]


def test_captures(package: Any) -> None:
    layout = package.place.dense_layout(torch.zeros(1, 2))
    root = package.state.open_place(layout, patterns=("layers.*.mixer.beta",))
    value = torch.ones(1)
    for index in range(2):
        place = root.at("layers").at(str(index)).at("mixer")
        assert place.keep("beta", value) is value
        place.keep("gate", value)
    assert list(root.captured) == ["layers.0.mixer.beta", "layers.1.mixer.beta"]


def test_states(package: Any) -> None:
    memory = {"a": torch.arange(6.0).view(3, 2).requires_grad_()}
    state = package.state.State(memory, torch.tensor([3, 1, 2]), 8, "a", 3, False)
    assert list(state.tensors()) == ["length", "a"]
    chosen = state.select([2, 2, 0, 1])
    assert chosen.length.tolist() == [2, 2, 3, 1] and chosen.memory["a"].tolist()[:2] == [[4, 5], [4, 5]]
    assert (chosen.longest, chosen.limited_by, chosen.uniform) == (3, "a", False)
    copy = state.clone().detach()
    assert not copy.memory["a"].requires_grad
    copy.memory["a"][0] = 9
    assert memory["a"][0, 0] == 0
    assert state.to("meta").memory["a"].is_meta


def test_uniform_follows_the_calls(package: Any) -> None:
    state = package.state.State.empty({}, 2, 8)
    with torch.no_grad():
        for packed_call in (False, True):
            if packed_call:
                layout = package.place.packed_layout(torch.tensor([0, 1, 3]), 3, state)
            else:
                layout = package.place.dense_layout(torch.zeros(2, 3), state)
            assert layout.uniform == (layout.cu_seqlens is None)
            package.state.close_place(package.state.open_place(layout, state), state)
    assert state.length.tolist() == [4, 5] and not state.uniform
    layout = package.place.dense_layout(torch.zeros(2, 2), state)
    assert layout.positions_BT.tolist() == [[4, 5], [5, 6]] and not layout.uniform
    packed = package.place.packed_layout(torch.tensor([0, 2, 3]), 3, state)
    assert packed.positions_BT.tolist() == [[4, 5, 5]] and packed.longest == 7
