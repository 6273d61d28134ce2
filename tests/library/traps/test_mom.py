"""Mixture of memories' traps: renormalised weights, memories that only their own tokens touch, the balancing loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import archc
from tests.library.conftest import randomise
from tests.oracles.row import Row, spec


@pytest.fixture
def model() -> Any:
    found = archc.load(spec("mom", Row({"n_heads": 2, "head_dim": 8}), n_layers=1)).Model()
    randomise(found)
    return found


def tokens(length: int) -> Tensor:
    return torch.randint(64, (1, length), generator=torch.Generator().manual_seed(6))


def test_weights_of_the_chosen_add_up_to_one(model: Any) -> None:
    with torch.no_grad():
        _, found = model(tokens(12), capture=["layers.0.mixer.p", "layers.0.mixer.w"])
    p, w = found["layers.0.mixer.p"][0], found["layers.0.mixer.w"][0]
    chosen = w > 0
    assert chosen.sum(1).tolist() == [2] * 12
    torch.testing.assert_close(w.masked_fill(~chosen, 0).sum(1), torch.ones(12))
    pairs = p[chosen].view(12, 2)
    torch.testing.assert_close(w[chosen].view(12, 2), pairs / pairs.sum(1, keepdim=True))
    assert bool((pairs.amin(1) >= p[~chosen].view(12, 2).amax(1)).all())


def test_only_routed_tokens_update_a_memory(model: Any) -> None:
    """One token changes the state, the convolutions' past and the count of two memories, and of no others."""
    state = model.init_state(1, 40)
    for token in tokens(9)[0]:
        before = {name: value.clone() for name, value in state.tensors().items()}
        with torch.no_grad():
            _, found = model(token.view(1, 1), state=state, capture=["layers.0.mixer.w"])
        after = state.tensors()
        for m, weight in enumerate(found["layers.0.mixer.w"][0, 0].tolist()):
            for entry in ("y", "q_conv", "k_conv", "v_conv", "length"):
                name = f"layers.0.mixer.memory.{m}.{entry}"
                assert torch.equal(before[name], after[name]) == (weight <= 0), name
        assert not torch.equal(before["layers.0.mixer.shared.y"], after["layers.0.mixer.shared.y"])


def test_balancing_loss(model: Any) -> None:
    """0.01 M sum_m f_m P_m: the share of tokens that chose memory m, and its mean probability before the choice."""
    rows = torch.randint(64, (3, 11))
    with torch.no_grad():
        _, found = model(rows, capture=["layers.0.mixer.p"])
    p = found["layers.0.mixer.p"].flatten(0, 1)
    f = F.one_hot(p.topk(2).indices, 4).sum(1).float().mean(0)
    torch.testing.assert_close(model.loss(rows).aux, 0.01 * 4 * (f * p.mean(0)).sum())


def test_what_is_shared(model: Any) -> None:
    """One projection of queries, one of each convolution, one A and one bias of dt; keys, values and gates are own."""
    names = {name for name, _ in model.layers[0].mixer.named_parameters()}
    own = {
        f"{m}.{part}.weight" for m in ("memory.0", "memory.3", "shared") for part in ("k", "v", "beta", "dt")
    }
    once = {
        "q.weight",
        "q_conv.weight",
        "k_conv.weight",
        "v_conv.weight",
        "A_log",
        "dt_bias",
        "router.weight",
    }
    assert own | once < names and len(names) == 4 * 5 + len(once) + len(("gate", "y_norm", "y"))
    A = archc.load(spec("mom", Row({"n_heads": 6, "head_dim": 8}))).Model().layers[0].mixer.A_log
    assert float(A.detach().max()) <= math.log(16) and len(set(A.tolist())) == 6
