"""Inputs that break chunk forms: nearly equal keys, reflections, no decay and full decay, long sequences."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from archc.tiles.emulate import run
from archc.tiles.kind import RecurrenceKind
from tests.support.slow import mostly_slow
from tests.tiles.cases import Case, all_kinds, compare, defined, difference, emitted, gradients, label, make

KINDS = [
    RecurrenceKind("none", "delta"),
    RecurrenceKind("head", "delta"),
    RecurrenceKind("key", "delta"),
    RecurrenceKind("head", "pair", "previous"),
    RecurrenceKind("key", "pair", "previous"),
]
HARD = [(0.5, 1.0), (0.99, 1.0), (1.0, 1.0), (0.0, 1.99), (0.5, 1.99), (0.99, 1.99), (1.0, 1.99)]
DECAYS = [0.0, -0.001, -50.0]


def decays(kind: RecurrenceKind) -> list[float | None]:
    return [None] if kind.decay == "none" else list(DECAYS)


@pytest.mark.parametrize("kind", KINDS, ids=label)
@pytest.mark.parametrize(("cosine", "beta"), mostly_slow(HARD, 3))
def test_double(
    kind: RecurrenceKind, cosine: float, beta: float, load: Callable[[RecurrenceKind], ModuleType]
) -> None:
    """In float64 nothing is lost: an inverse by powers of A would be off by 1e10 * 1e-16 and more here."""
    for decay in decays(kind):
        case = make(kind, 130, K=16, V=4, cosine=cosine, beta=beta, decay=decay, batch=1)
        found = compare(load(kind), case)
        assert max(found.values()) < 1e-12, (decay, found)


def rounded(case: Case) -> Case:
    """The same case in float32, and the float64 one moved to the same values."""
    small = make(case.kind, 1)
    small.tensors = {n: x.detach().float().requires_grad_() for n, x in case.tensors.items()}
    small.memory = {n: x.detach().float().requires_grad_() for n, x in case.memory.items()}
    for name, x in case.tensors.items():
        x.data.copy_(small.tensors[name].data)
    for name, x in case.memory.items():
        x.data.copy_(small.memory[name].data)
    return small


@pytest.mark.parametrize("kind", KINDS, ids=label)
@pytest.mark.parametrize(("cosine", "beta"), mostly_slow(HARD, 3))
def test_single(
    kind: RecurrenceKind, cosine: float, beta: float, load: Callable[[RecurrenceKind], ModuleType]
) -> None:
    """In float32 the emitted form errs like the tile program itself, run with float32 at every point.

    Two orders of summation of the same products differ by up to the number of halvings of a chunk, log2(64) = 6.
    """
    for decay in decays(kind):
        case = make(kind, 192, K=16, V=16, cosine=cosine, beta=beta, decay=decay, batch=1)
        small = rounded(case)
        expected, memory = defined(case)
        o, _ = emitted(load(kind), small)
        program = run(kind, small.tensors, torch.float32, scale=case.scale, state=small.memory["s"])
        limit = 6 * difference(program.o.double(), expected) + 2**-24
        assert difference(o.double(), expected) < limit, decay


def test_run_of_equal_keys_among_others(load: Callable[[RecurrenceKind], ModuleType]) -> None:
    """Thirty equal tokens in the middle of random ones, writing with beta 1."""
    kind = RecurrenceKind("head", "delta")
    case = make(kind, 100, K=16, V=4)
    case.tensors["k"].data[:, 20:50] = case.tensors["k"].data[:, 20:21]
    case.tensors["beta"].data[:] = 1
    assert max(compare(load(kind), case).values()) < 1e-12


@pytest.mark.parametrize("decay", ["head", "key", "value"])
def test_mixed_decays(decay: str, load: Callable[[RecurrenceKind], ModuleType]) -> None:
    """Tokens that wipe the state beside tokens that keep it all, one sequence of a single token among long ones."""
    kind = RecurrenceKind(decay)  # type: ignore[arg-type]
    case = make(kind, 200, (0, 1, 120, 121, 200))
    case.tensors["decay"].data[:, ::7] = -50
    case.tensors["decay"].data[:, 1::5] = 0
    assert max(compare(load(kind), case).values()) < 1e-12


@pytest.mark.parametrize("kind", [RecurrenceKind("head"), RecurrenceKind("key", "delta")], ids=label)
def test_decay_gradient_of_a_long_sequence(
    kind: RecurrenceKind, load: Callable[[RecurrenceKind], ModuleType]
) -> None:
    """16,384 tokens in float32: the decay's gradient is summed within chunks, so its error does not grow with T.

    It is the difference of two sums over a chunk of 64 tokens, each rounded: 64 * 2^-24 of the largest summand.
    """
    torch.manual_seed(0)
    case = make(kind, 16_384, batch=1, heads=(1, 1, 1), K=4, V=4, decay=-0.001)
    small = rounded(case)
    o, memory = emitted(load(kind), case)
    exact = gradients(o, memory, case)[case.names().index("decay")]
    o, memory = emitted(load(kind), small)
    found = gradients(o, memory, small)[case.names().index("decay")]
    error = (found.double() - exact).abs().max() / exact.abs().max()
    assert error < 64 * 2**-24


@pytest.mark.parametrize("decay", mostly_slow([-5.0, -1.0, -15.0], 3))
@pytest.mark.parametrize(
    "kind",
    [kind for kind in all_kinds() if kind == kind.core() and kind.decay in ("head", "key", "value")],
    ids=label,
)
def test_decay_gradient_of_heads_that_forget_at_once(
    kind: RecurrenceKind, decay: float, load: Callable[[RecurrenceKind], ModuleType]
) -> None:
    """The gradient shrinks like e^decay, down to 1e-7, and keeps its digits: no difference of large numbers.

    Float32 rounds each of some 16 products and sums that make up an entry by 2^-24.
    """
    case = make(kind, 100, batch=1, K=8, V=8, decay=decay)
    small = rounded(case)
    index = case.names().index("decay")
    exact = gradients(*defined(case), case)[index]
    found = gradients(*emitted(load(kind), small), small)[index]
    assert (found.double() - exact).abs().max() < 16 * 2**-24 * exact.abs().max()


def test_decay_gradient_agrees_with_the_definition_over_many_chunks(
    load: Callable[[RecurrenceKind], ModuleType],
) -> None:
    kind = RecurrenceKind("head")
    case = make(kind, 2_048, batch=1, heads=(1, 1, 1), K=3, V=3, decay=-0.001)
    assert max(compare(load(kind), case).values()) < 1e-11
