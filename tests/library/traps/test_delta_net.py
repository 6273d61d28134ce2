"""DeltaNet's traps: a scaled query, keys of length 1, reads of what was there before the write."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.library.conftest import captured

PARTS = Callable[..., nn.Module]
MLP = {"use": "swiglu", "d_ff": 48}


@pytest.mark.parametrize("negative", [False, True])
def test_two_tokens_by_hand(negative: bool, with_parts: PARTS) -> None:
    model = with_parts({"use": "delta_net", "n_heads": 3, "negative_eigenvalues": negative}, MLP)
    q, k, v, beta, o = captured(model, 2, "q", "k", "v", "beta", "o")
    beta = beta[..., None]
    assert float(beta.max()) > (1 if negative else 0) and float(beta.max()) <= (2 if negative else 1)
    for rows in (q, k):
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(2, 3), rtol=1e-3, atol=0)
    first = beta[0] * v[0]
    torch.testing.assert_close(o[0], (q[0] * k[0]).sum(-1, keepdim=True) * first / 4)
    second = beta[1] * (v[1] - (k[1] * k[0]).sum(-1, keepdim=True) * first)
    parts = [(q[1] * k[0]).sum(-1, keepdim=True) * first, (q[1] * k[1]).sum(-1, keepdim=True) * second]
    torch.testing.assert_close(o[1], sum(parts) / 4)


def test_published_defaults(with_parts: PARTS) -> None:
    """Four heads, no gate, convolutions of four tokens on q, k and v."""
    mixer = with_parts({"use": "delta_net"}, MLP).get_submodule("layers.0.mixer")
    assert {name: tuple(p.shape) for name, p in mixer.named_parameters()} == {
        **{f"{name}.weight": (48, 48) for name in ("q", "k", "v", "y")},
        **{f"{name}_conv.weight": (48, 4) for name in ("q", "k", "v")},
        "beta.weight": (4, 48),
        "y_norm.weight": (12,),
    }
