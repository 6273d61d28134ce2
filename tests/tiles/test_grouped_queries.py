"""Queries in groups over fewer heads: the state has those heads, in every form, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from archc.tiles.costs import count
from archc.tiles.kind import RecurrenceKind
from tests.tiles.cases import GROUPED, compare, defined, difference, emitted, label, layout, make
from tests.tiles.test_forms import tolerance, within

Load = Callable[[RecurrenceKind], ModuleType]
HEADS = [(4, 2, 1), (6, 2, 2), (3, 1, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", GROUPED, ids=label)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_forms(kind: RecurrenceKind, heads: tuple[int, int, int], load: Load) -> None:
    """Chunks and the loop against the definition, values and gradients, dense and packed, from a state."""
    module = load(kind)
    for case in (make(kind, 37, heads=heads), make(kind, 50, (0, 1, 1, 33, 45), heads=heads)):
        within(compare(module, case), tolerance(kind))
        within(compare(module, case, form="step"), tolerance(kind))
    assert case.memory["s"].shape[1] == max(heads[1:])


@pytest.mark.parametrize("kind", GROUPED, ids=label)
def test_the_same_as_with_a_state_a_query(kind: RecurrenceKind, load: Load) -> None:
    """Outputs are those of the class that keeps a state for each query head, started from copies."""
    case = make(kind, 37, heads=(6, 2, 2))
    o, _ = defined(case)
    memory = {name: value.repeat_interleave(3, 1) for name, value in case.memory.items()}
    other = replace(case, kind=replace(kind, grouped=False), memory=memory)
    assert difference(o, defined(other)[0]) < tolerance(kind)


@pytest.mark.parametrize("kind", GROUPED, ids=label)
def test_decode(kind: RecurrenceKind, load: Load) -> None:
    """Tokens one by one in place, and pieces of 3, 1 and 4, give the outputs and the memory of the whole."""
    module = load(kind)
    case = make(kind, 8, heads=(4, 2, 2))
    constant = ("decay_rate",) if kind.decay != "constant" else ("decay_rate", "decay")
    with torch.no_grad():
        expected, final = defined(case)
        for pieces in ((1,) * 8, (3, 1, 4)):
            held = {name: value.detach().clone() for name, value in case.memory.items()}
            storage = held["s"]
            outputs, start = [], 0
            for piece in pieces:
                span = slice(start, start + piece)
                tensors = {
                    name: value if name in constant else value[:, span]
                    for name, value in case.tensors.items()
                }
                part = replace(case, tensors=tensors)
                place = module.Place(layout(module, part), held, in_place=True)
                extra = {} if kind.normalize == "none" else {"eps": case.eps}
                function = getattr(module, label(kind))
                outputs.append(function(*tensors.values(), scale=case.scale, place=place, key="s", **extra))
                start += piece
            assert difference(torch.cat(outputs, 1), expected) < tolerance(kind)
            assert held["s"] is storage
            for name, value in final.items():
                assert difference(held[name], value) < tolerance(kind)


@pytest.mark.parametrize("kind", [GROUPED[2], GROUPED[10]], ids=label)
def test_opcheck(kind: RecurrenceKind, load: Load) -> None:
    """Schema, fake and autograd of the decode step, whose outputs have more heads than its state."""
    module = load(kind)
    case = make(kind, 1, heads=(4, 2, 2), dtype=torch.float32)
    tokens = [x.detach() if name == "decay_rate" else x.detach()[:, 0] for name, x in case.tensors.items()]
    torch.library.opcheck(module.decode, (*tokens, case.memory["s"].detach(), 0.5))


def test_no_heads_at_all(load: Load) -> None:
    """As many heads of q as of the others is a group of one: sizes may be changed after a build."""
    kind = RecurrenceKind("key", "delta", grouped=True)
    case = make(kind, 20, heads=(2, 2, 2))
    plain = replace(case, kind=replace(kind, grouped=False))
    assert difference(emitted(load(kind), case)[0], defined(plain)[0]) < 1e-12


@pytest.mark.parametrize("kind", [RecurrenceKind("head", "delta"), RecurrenceKind("elementwise")], ids=label)
def test_costs(kind: RecurrenceKind) -> None:
    """A group of g costs over chunks what g heads did; a decode step writes once and reads g times; one state."""
    one, four = count(kind, 32, 16), count(replace(kind, grouped=True), 32, 16, queries=4)
    assert four.forward.flops == 4 * one.forward.flops and four.backward.flops == 4 * one.backward.flops
    assert four.decode.flops == one.decode.flops + 3 * 2 * 32 * 16
    assert four.decode.bytes == one.decode.bytes + 3 * 2 * (32 + 16)
    assert four.state_bytes == one.state_bytes == 4 * 32 * 16
