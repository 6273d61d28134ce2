"""torch.compile: one graph without breaks, two at most for twelve lengths, in every small model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.laws.measure import distance, sequences_of, subject, truth
from tests.laws.subjects import CORE, EVERY, HYBRIDS, SHRUNK, others_of

LENGTHS = (2, 3, 5, 8, 15, 16, 17, 33, 64, 65, 96, 129)
FAST = ("mamba2",)
SOME = ("constant_decay", "undecayed_delta", "several_factors", "max_normaliser")  # of the corners
# Between them these reach softmax, a decay per head, a delta rule, a general erase, caches and states that layers share
# and a sequential form; `make library` compiles the others too.
TRAINED = ("two_mixers", "kda_small", "rwkv7_small")
PACKED = ("one_cache", "shared_keys", "xlstm_small")


def models(slow: tuple[str, ...]) -> list[Any]:
    """The published models and the hybrids, all but the slow ones for `make library`."""
    return [
        pytest.param(name, marks=pytest.mark.slow if name in slow else pytest.mark.library)
        for name in (*SHRUNK, *HYBRIDS)
    ]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(name: str, backend: str) -> None:
    """Twelve lengths through one compiled model: the right logits, at most two graphs."""
    _, model = subject(name)
    counter = CompileCounterWithBackend(backend)
    quick = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    expected = truth(name, 129)
    (tokens,) = sequences_of(129)
    with torch.no_grad():
        for length in LENGTHS:
            assert distance([quick(tokens[None, :length])[0]], expected.logits) <= expected.tolerance
    assert 1 <= counter.frame_count <= 2


@pytest.mark.parametrize("name", FAST)
def test_twelve_lengths(name: str, law: Callable[..., None]) -> None:
    law(name, "twelve lengths")
    compiled(name, "aot_eager")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in (*CORE, *SOME) else pytest.mark.library)
        for name in EVERY
        if name not in (*FAST, *SHRUNK) and "twelve lengths" in others_of(name)
    ],
)
def test_twelve_lengths_everywhere(name: str, law: Callable[..., None]) -> None:
    law(name, "twelve lengths")
    compiled(name, "aot_eager")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("attention_small", marks=pytest.mark.library),
        pytest.param("gla_small", marks=pytest.mark.slow),
        pytest.param("windowed_hybrid", marks=pytest.mark.library),
    ],
)
def test_inductor(name: str) -> None:
    compiled(name, "inductor")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", models(TRAINED))
def test_training_compiles(name: str) -> None:
    """Loss and gradients of a compiled model, for several lengths in at most two graphs."""
    _, model = subject(name)
    counter = CompileCounterWithBackend("aot_eager")
    loss = torch.compile(model.loss, fullgraph=True, dynamic=True, backend=counter)
    parameters = list(model.parameters())
    for length in (9, 17, 40, 65):
        rows = torch.stack(sequences_of(length, length))
        plain, quick = model.loss(rows).total, loss(rows).total
        torch.testing.assert_close(quick, plain)
        for one, other in zip(
            torch.autograd.grad(quick, parameters), torch.autograd.grad(plain, parameters), strict=True
        ):
            # The same kernels in the same order, but for what the compiler fuses: sixteen roundings. A window is a
            # band of blocks in eager and a mask over all keys in a graph, which sums in another order: four times that.
            roundings = 64 if name in ("windowed_hybrid", "shared_keys") else 16
            limit = roundings * torch.finfo(torch.float32).eps * float(other.abs().max())
            torch.testing.assert_close(one, other, rtol=0, atol=limit)
    assert 1 <= counter.frame_count <= 2


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", models(PACKED))
def test_packed_rows_compile(name: str) -> None:
    package, model = subject(name)
    counter = CompileCounterWithBackend("aot_eager")
    quick = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    with torch.no_grad():
        for lengths in ((5, 4, 9), (17, 3, 40), (30, 1, 2), (65, 9, 9)):
            rows = torch.cat(sequences_of(*lengths))[None]
            borders = torch.tensor([0, *lengths]).cumsum(0)
            expected = truth(name, *lengths)
            found = list(quick(rows, cu_seqlens=borders)[0].split(list(lengths)))
            assert distance(found, expected.logits) <= expected.tolerance
    assert 1 <= counter.frame_count <= 2
