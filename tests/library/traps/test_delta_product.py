"""DeltaProduct's traps: a token decays once, before its first step; it reads after its last one; one step is known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from tests.library.conftest import captured

PARTS = Callable[..., nn.Module]
MLP = {"use": "swiglu", "d_ff": 48}


def test_two_tokens_by_hand(with_parts: PARTS) -> None:
    model = with_parts({"use": "delta_product", "n_heads": 2, "head_dim": 8, "gated": True}, MLP)
    q, k, v, beta, decay, o = captured(model, 2, "q", "k", "v", "beta", "decay", "o")
    state = torch.zeros(2, 8, 16)
    assert float(beta.max()) > 1
    for t in range(2):
        state = decay[t].exp()[:, None, None] * state
        for j in range(2):
            held = torch.einsum("hkv,hk->hv", state, k[t, j])
            state = state + torch.einsum("h,hk,hv->hkv", beta[t, j], k[t, j], v[t, j] - held)
        torch.testing.assert_close(o[t], torch.einsum("hkv,hk->hv", state, q[t]) / 8**0.5)


def test_one_step_is_gated_deltanet(with_parts: PARTS) -> None:
    options = {"n_heads": 2, "n_v_heads": 4, "head_dim": 8, "negative_eigenvalues": True}
    one = with_parts({"use": "delta_product", "gated": True, "n_factors": 1, **options}, MLP)
    other = with_parts({"use": "gated_deltanet", **options}, MLP)
    other.load_state_dict(one.state_dict())
    tokens = torch.randint(64, (2, 70), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(one(tokens), other(tokens))


def test_layout_of_steps(with_parts: PARTS) -> None:
    """The projections hold the steps of a token one after the other, each with its heads: (n h d)."""
    model = with_parts({"use": "delta_product", "n_heads": 2, "head_dim": 8}, MLP)
    mixer = model.get_submodule("layers.0.mixer")
    with torch.no_grad():
        mixer.k.weight[16:] = 0  # the second step of both heads
    k, beta = captured(model, 5, "k", "beta")
    assert bool(k[:, 0].any()) and not k[:, 1].any()
    assert beta.shape == (5, 2, 2)
