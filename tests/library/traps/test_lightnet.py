"""LightNet's traps: the first token keeps an empty state, weights add up to 1, the softmax is over tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def seen(model: nn.Module, tokens: Tensor, *names: str) -> list[Tensor]:
    """Values of the mixer's equations for one sequence, `[T, ...]`."""
    with torch.no_grad():
        _, found = model(tokens, capture=[f"layers.0.mixer.{name}" for name in names])
    return [found[f"layers.0.mixer.{name}"][0] for name in names]


def test_running_softmax_of_the_keys(with_parts: Callable[..., nn.Module]) -> None:
    model = with_parts({"use": "lightnet", "expand_ratio": 16, "gate_rank": 8}, {"use": "swiglu", "d_ff": 48})
    tokens = torch.randint(64, (1, 12), generator=torch.Generator().manual_seed(4))
    q, k, v, k_hat, decay, o = seen(model, tokens, "q", "k", "v", "k_hat", "decay", "o")
    # The first token: nothing decays, and the state is v_1 in every row, with no 1 + exp(k) below it.
    assert torch.equal(decay[0], torch.zeros(3, 16)) and torch.equal(k_hat[0], torch.ones(3, 16))
    torch.testing.assert_close(o[0], q[0].sum(-1, keepdim=True) / 4 * v[0])
    # The last one: what the decays leave of each token's weight is a softmax over tokens, channel by channel.
    left = torch.stack([k_hat[s] * decay[s + 1 :].sum(0).exp() for s in range(12)])
    torch.testing.assert_close(left, torch.softmax(k, 0))
    torch.testing.assert_close(left.sum(0), torch.ones(3, 16))
    # Equal keys: a plain mean over the tokens so far.
    k_hat, decay = seen(model, torch.full((1, 5), 7), "k_hat", "decay")
    torch.testing.assert_close(k_hat[:, 0, 0], 1 / torch.arange(1.0, 6))
    torch.testing.assert_close(decay[1:, 0, 0].exp(), torch.arange(1.0, 5) / torch.arange(2.0, 6))
