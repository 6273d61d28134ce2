"""Sparse state expansion's traps: only the chosen partition's state changes; weights, losses, what is shared."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

import archc
from tests.library.conftest import randomise
from tests.oracles.row import Row, spec


def model_of(name: str, **options: object) -> Any:
    found = archc.load(spec(name, Row({"n_heads": 2, "head_dim": 8, **options}), n_layers=1)).Model()
    randomise(found)
    return found


@pytest.mark.parametrize("name", ["sse_gla", "sse_gdn"])
def test_only_the_chosen_partition_changes(name: str) -> None:
    model = model_of(name)
    state = model.init_state(1, 40)
    used = set()
    for token in torch.arange(12):
        before = state.tensors()["layers.0.mixer.routed"].clone().unflatten(1, (4, 2))
        with torch.no_grad():
            _, found = model(token.view(1, 1), state=state, capture=["layers.0.mixer.p"])
        after = state.tensors()["layers.0.mixer.routed"].unflatten(1, (4, 2))
        best = int(found["layers.0.mixer.p"].argmax())
        used.add(best)
        assert [n for n in range(4) if not torch.equal(before[:, n], after[:, n])] == [best]
    assert len(used) > 1


def test_weights_of_reads_and_writes() -> None:
    """The first token reads e k^T q v from its partition times e, with the router's probability as it is."""
    model = model_of("sse_gla")
    with torch.no_grad():
        _, found = model(torch.tensor([[11]]), capture=["layers.0.mixer.*"])
    got = {key.removeprefix("layers.0.mixer."): value[0, 0] for key, value in found.items()}
    e = got["p"].max()
    q, k = F.silu(got["q1"]), torch.softmax(got["k1"], -1)
    routed = e**2 * (q * k).sum(-1, keepdim=True) * got["v"] / 8**0.5
    shared = (F.silu(got["q0"]) * torch.softmax(got["k0"], -1)).sum(-1, keepdim=True) * got["v"] / 8**0.5
    torch.testing.assert_close(got["o"], routed + shared)


@pytest.mark.parametrize(("name", "top_k"), [("sse_gla", 1), ("sse_gdn", 2)])
def test_balancing_loss(name: str, top_k: int) -> None:
    """N / K sum_n f_n P_n, so that it is 1 where tokens are spread evenly."""
    model = model_of(name, top_k=top_k, balance_weight=0.5)
    rows = torch.randint(64, (3, 11))
    with torch.no_grad():
        _, found = model(rows, capture=["layers.0.mixer.p"])
    p = found["layers.0.mixer.p"].flatten(0, 1)
    f = F.one_hot(p.topk(top_k).indices, 4).sum(1).float().mean(0)
    torch.testing.assert_close(model.loss(rows).aux, 0.5 * 4 / top_k * (f * p.mean(0)).sum())


@pytest.mark.parametrize("name", ["sse_gla", "sse_gdn"])
def test_bfloat16_trains(name: str) -> None:
    """The choice is made in float32; gradients are finite, those of the router too."""
    model = model_of(name).to(torch.bfloat16)
    loss = model.loss(torch.randint(64, (2, 40))).total
    for key, slope in zip(
        dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters()))
    ):
        assert bool(slope.isfinite().all()), key


def test_parameters_hardly_grow_with_partitions() -> None:
    """A partition costs a row of the router: all projections are shared."""
    few, many = (model_of("sse_gdn", n_partitions=n) for n in (2, 8))
    sizes = [sum(p.numel() for p in model.layers[0].mixer.parameters()) for model in (few, many)]
    assert sizes[1] - sizes[0] == 6 * 48
