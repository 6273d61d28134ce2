"""Every class: the form over chunks against the token loop, values and all gradients, in float64."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from archc.tiles.kind import RecurrenceKind
from tests.support.slow import mostly_slow
from tests.tiles.cases import all_kinds, compare, defined, difference, emitted, gradients, label, layout, make

# float64 carries 1e-16; sums of up to 3 * 193 products and one triangular solve lose at most 1e4 of it.
TOLERANCE = 1e-12
# The normaliser's quotient magnifies: o / (n + eps) with n near 0 by 1 / eps, in gradients twice.
QUOTIENT = 1e-10

KINDS = all_kinds()
CORES = [kind for kind in KINDS if kind.normalize == "none" and not kind.factors and kind.decay != "constant"]


def tolerance(kind: RecurrenceKind) -> float:
    return TOLERANCE if kind.normalize == "none" else QUOTIENT


def within(found: dict[str, float], limit: float) -> None:
    over = {name: value for name, value in found.items() if not value < limit}
    assert not over, over


@pytest.mark.parametrize("kind", mostly_slow(KINDS, 9), ids=label)
def test_class(kind: RecurrenceKind, load: Callable[[RecurrenceKind], ModuleType]) -> None:
    """Dense over a border, and packed with an empty sequence, a single token and tokens of no sequence."""
    module = load(kind)
    within(compare(module, make(kind, 65)), tolerance(kind))
    within(compare(module, make(kind, 90, (0, 1, 1, 69, 85))), tolerance(kind))


@pytest.mark.parametrize("kind", CORES, ids=label)
@pytest.mark.parametrize("length", mostly_slow([129, 1, 2, 15, 16, 17, 63, 64, 193], 9))
def test_lengths(kind: RecurrenceKind, length: int, load: Callable[[RecurrenceKind], ModuleType]) -> None:
    within(compare(load(kind), make(kind, length, batch=1, seed=length)), tolerance(kind))


@pytest.mark.parametrize("kind", CORES, ids=label)
@pytest.mark.parametrize(
    "heads",
    [
        pytest.param((4, 2, 1)),
        *(pytest.param(heads, marks=pytest.mark.slow) for heads in [(1, 1, 4), (2, 4, 2), (1, 2, 4)]),
    ],
    ids=str,
)
def test_grouped_heads(
    kind: RecurrenceKind, heads: tuple[int, int, int], load: Callable[[RecurrenceKind], ModuleType]
) -> None:
    within(compare(load(kind), make(kind, 70, batch=1, heads=heads)), tolerance(kind))
    within(compare(load(kind), make(kind, 70, (0, 66, 70), heads=heads)), tolerance(kind))


@pytest.mark.parametrize("kind", mostly_slow(KINDS, 9), ids=label)
def test_step_form(kind: RecurrenceKind, load: Callable[[RecurrenceKind], ModuleType]) -> None:
    """The token loop that goes into packages is the oracle's."""
    case = make(kind, 20, (0, 3, 3, 18))
    within(compare(load(kind), case, form="step"), tolerance(kind))


@pytest.mark.parametrize("kind", KINDS, ids=label)
def test_decode(kind: RecurrenceKind, load: Callable[[RecurrenceKind], ModuleType]) -> None:
    """Tokens one by one, in place and not, give the outputs and the memory of the whole."""
    module = load(kind)
    case = make(kind, 5)
    with torch.no_grad():
        expected, final = defined(case)
        for in_place in (False, True):
            memory = {name: value.detach().clone() for name, value in case.memory.items()}
            given = {name: value.clone() for name, value in memory.items()}
            held = dict(memory)
            outputs = []
            for t in range(5):
                token = make(kind, 5)
                token.tensors = {
                    name: value if name == "decay_rate" or (name == "decay" and kind.decay == "constant")
                    else value[:, t : t + 1]
                    for name, value in case.tensors.items()
                }  # fmt: skip
                place = module.Place(layout(module, token), held, in_place=in_place)
                extra = {} if kind.normalize == "none" else {"eps": case.eps}
                function = getattr(module, module.__name__.rsplit(".", 1)[1])
                outputs.append(
                    function(*token.tensors.values(), scale=case.scale, place=place, key="s", **extra)
                )
                held = place.memory
            assert difference(torch.cat(outputs, 1), expected) < tolerance(kind)
            for name, value in final.items():
                assert difference(held[name], value) < tolerance(kind)
                assert torch.equal(memory[name], given[name]) is not in_place


@pytest.mark.parametrize("kind", CORES, ids=label)
def test_pieces(kind: RecurrenceKind, load: Callable[[RecurrenceKind], ModuleType]) -> None:
    """A prefill of 70 and a continuation of 60 tokens give the gradients of the whole 130."""
    module = load(kind)
    case = make(kind, 130, batch=1)
    expected, final = emitted(module, case)
    pieces = []
    held = case.memory
    for start, stop in ((0, 70), (70, 130)):
        part = make(kind, 1)
        part.memory = held
        part.tensors = {
            name: value if name == "decay_rate" else value[:, start:stop]
            for name, value in case.tensors.items()
        }
        o, held = emitted(module, part)
        pieces.append(o)
    found = torch.cat(pieces, 1)
    assert difference(found, expected) < TOLERANCE
    for one, other in zip(gradients(found, held, case), gradients(expected, final, case), strict=True):
        assert difference(one, other) < TOLERANCE


def test_one_token_among_long_ones(load: Callable[[RecurrenceKind], ModuleType]) -> None:
    """A sequence costs the chunks that it fills: lengths 300 and 30 times 1 are 5 + 30 chunks, walked in 5 steps."""
    module = load(RecurrenceKind("head", "delta"))
    borders = (0, *range(1, 31), 330)
    case = make(RecurrenceKind("head", "delta"), 330, borders)
    tiling = module.tiling_of(case.tensors["v"], 2, torch.tensor(borders), 64)
    assert len(tiling.walk) == 5
    assert tiling.tiles == 2 * (30 + 5)
    within(compare(module, case), TOLERANCE)


def test_without_state(load: Callable[[RecurrenceKind], ModuleType]) -> None:
    """No memory: sequences start from zero and nothing is stored."""
    for kind in (
        RecurrenceKind("head", "delta"),
        RecurrenceKind("key", "pair", "previous"),
        RecurrenceKind("value"),
    ):
        case = make(kind, 70)
        o, memory = emitted(load(kind), case, state=False)
        assert memory == {}
        assert difference(o, defined(case, state=False)[0]) < TOLERANCE


def test_tokens_of_no_sequence_have_no_gradient(load: Callable[[RecurrenceKind], ModuleType]) -> None:
    """What stands after the last border may be anything finite and changes nothing."""
    kind = RecurrenceKind("key", "delta")
    module = load(kind)
    case = make(kind, 40, (0, 20, 30))
    o, memory = emitted(module, case)
    for gradient in torch.autograd.grad(o.sum() + memory["s"].sum(), list(case.tensors.values())):
        assert not gradient[:, 30:].any()
    changed = make(kind, 40, (0, 20, 30))
    for value in changed.tensors.values():
        value.data[:, 30:] = 1e6
    other, _ = emitted(module, changed)
    assert torch.equal(o[:, :30], other[:, :30])
    assert other.isfinite().all()
