"""Generated mixers in float64 against the independent oracles, as a whole and in pieces with a state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.laws.subjects import SHRUNK
from tests.oracles import attention, gated_deltanet, gla, kda, mamba2, rwkv7
from tests.support.packages import in_float64, random_model

Oracle = Callable[[Mapping[str, Tensor], Mapping[str, Any], Tensor], Tensor]

WIDTH = 96
LENGTH = 80  # a chunk of 64 and a part of another; windows of 48 are passed

# The sizes that the small specs come to at a width of 96, worked out by hand.
CASES: dict[str, tuple[Oracle, dict[str, Any]]] = {
    "attention_small": (
        attention.forward,
        {"n_heads": 6, "n_kv_heads": 2, "head_dim": 16, "theta": 10000.0, "fraction": 0.5, "window": 48,
         "qk_norm": "head", "output_gate": "element"},
    ),
    "gated_deltanet_small": (
        gated_deltanet.forward,
        {"n_heads": 3, "n_v_heads": 6, "head_dim": 32, "v_dim": 32, "negative_eigenvalues": True},
    ),
    "gla_small": (
        gla.forward,
        {"n_heads": 3, "n_kv_heads": 3, "head_dim": 16, "v_dim": 32, "gate_rank": 16, "tau": 16},
    ),
    "kda_small": (kda.forward, {"n_heads": 6, "head_dim": 32, "v_dim": 32, "rank": 32}),
    "mamba2_small": (mamba2.forward, {"n_heads": 6, "head_dim": 32, "d_state": 32, "n_groups": 2}),
    "rwkv7_small": (
        rwkv7.forward,
        {"n_heads": 3, "head_dim": 32, "decay_rank": 32, "a_rank": 32, "value_rank": 32, "gate_rank": 64},
    ),
}  # fmt: skip

# Regions that the language declares float32 round there, in a float64 model too: once to an input of a decay.
SINGLE = torch.finfo(torch.float32).eps


def mixer_of(name: str) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    """The float64 model of a small spec, its first mixer, and that mixer's weights by name."""
    model = in_float64(SHRUNK[name], random_model(SHRUNK[name]))
    mixer = model.layers[0].mixer
    return model, mixer, {key: value.detach() for key, value in mixer.named_parameters()}


def run(model: nn.Module, mixer: nn.Module, tokens: Tensor, pieces: list[int]) -> tuple[Tensor, Tensor]:
    """What enters and leaves the mixer, in calls of so many tokens."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = mixer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    with torch.no_grad():
        state = model.init_state(len(tokens), tokens.shape[1])
        for piece in tokens.split(pieces, 1):
            model(piece, state=state)
    handle.remove()
    return torch.cat([x for x, _ in seen], 1), torch.cat([y for _, y in seen], 1)


@pytest.mark.parametrize(
    "pieces", [[80], [15, 1, 47, 1, 16], [60, *[1] * 20]], ids=["whole", "pieces", "decode"]
)
@pytest.mark.parametrize("name", CASES)
def test_mixer(name: str, pieces: list[int]) -> None:
    model, mixer, weights = mixer_of(name)
    oracle, sizes = CASES[name]
    tokens = torch.randint(0, 64, (2, LENGTH), generator=torch.Generator().manual_seed(2))
    x, y = run(model, mixer, tokens, pieces)
    assert x.dtype == y.dtype == torch.float64
    expected = oracle(weights, {**sizes, "norm_eps": 1e-5}, x)
    # One float32 rounding of each input of a decay, times what the decay's own rounding may do over its memory.
    assert float((y - expected).abs().max()) <= 64 * SINGLE * float(expected.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str) -> None:
    """The derived backward against autograd through the oracle's loop."""
    model, mixer, weights = mixer_of(name)
    oracle, sizes = CASES[name]
    tokens = torch.randint(0, 64, (2, LENGTH), generator=torch.Generator().manual_seed(2))
    seen: list[tuple[Tensor, Tensor]] = []
    handle = mixer.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    model(tokens)
    handle.remove()
    x, y = seen[0]
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(4), dtype=y.dtype)
    # What a first layer does not use has no gradient.
    names, own = zip(*mixer.named_parameters(), strict=True)
    found = torch.autograd.grad((y * direction).sum(), own)
    leaves = {key: weights[key].clone().requires_grad_() for key in names}
    expected = oracle(leaves, {**sizes, "norm_eps": 1e-5}, x.detach())
    exact = torch.autograd.grad((expected * direction).sum(), [leaves[key] for key in names])
    for key, value, truth in zip(names, found, exact, strict=True):
        assert float((value - truth).abs().max()) <= 64 * SINGLE * float(truth.abs().max()), key
