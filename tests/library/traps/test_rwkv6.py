"""RWKV-6's traps: reads before the write, decays of exp(-exp(d)), the token's own share, where everything starts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from tests.library.conftest import captured, observe
from tests.oracles import rwkv6

PARTS = Callable[..., nn.Module]
MIXER = {"use": "rwkv6", "head_dim": 12}
MLP = {"use": "rwkv6_channel_mix"}


def test_three_tokens_by_hand(with_parts: PARTS) -> None:
    """Token t sees k_s v_s with the decays of the tokens between them only, and its own pair times u; scale 1."""
    model = with_parts(MIXER, MLP)
    r, k, v, w, o = captured(model, 3, "r", "k", "v", "w", "o")
    weights = dict(model.get_submodule("layers.0.mixer").named_parameters())
    kept = torch.exp(-torch.exp(weights["w0"].detach() + w))
    u = weights["u"].detach()
    own = [(r[t] * u * k[t]).sum(-1, keepdim=True) * v[t] for t in range(3)]
    torch.testing.assert_close(o[0], own[0])
    torch.testing.assert_close(o[1], (r[1] * k[0]).sum(-1, keepdim=True) * v[0] + own[1])
    last = (r[2] * kept[1] * k[0]).sum(-1, keepdim=True) * v[0] + (r[2] * k[1]).sum(-1, keepdim=True) * v[1]
    torch.testing.assert_close(o[2], last + own[2])


def test_published_start(with_parts: PARTS) -> None:
    n_layers, d_model = 3, 48
    model = with_parts(MIXER, MLP, random=False, n_layers=n_layers)
    n = torch.arange(d_model)
    for layer in range(n_layers):
        weights = {
            name: value.detach().double()
            for name, value in model.get_submodule(f"layers.{layer}").named_parameters()
        }
        depth, rest = layer / (n_layers - 1), 1 - layer / n_layers
        channel = n.double() / d_model
        expected = {
            "mixer.mix_x": 1 - channel**rest,
            "mixer.mix_w": 1 - channel**rest,
            "mixer.mix_k": 1 - channel**rest,
            "mixer.mix_v": 1 - (channel**rest + 0.3 * depth),
            "mixer.mix_r": 1 - channel ** (0.5 * rest),
            "mixer.mix_g": 1 - channel ** (0.5 * rest),
            "mixer.w0": -6 + 5 * (n / (d_model - 1)).double() ** (0.7 + 1.3 * depth),
            "mixer.u": depth * (1 - n / (d_model - 1)) + torch.tensor([0.0, 0.1, -0.1]).repeat(16),
            "mixer.o_norm.weight": torch.full((d_model,), ((1 + layer) / n_layers) ** 0.7),
            "mlp.mix_k": 1 - channel ** (rest**3),
            "mlp.mix_r": 1 - channel ** (rest**3),
        }
        for name, value in expected.items():
            torch.testing.assert_close(
                weights[name].flatten(), value.double(), rtol=1e-5, atol=1e-6, msg=name
            )
        for name in ("mixer.low", "mixer.w_low", "mixer.y", "mlp.r", "mlp.y"):
            assert not weights[f"{name}.weight"].any(), name
        for name in ("mixer.shares", "mixer.w"):
            assert 0.009 < float(weights[f"{name}.weight"].abs().max()) <= 0.01, name
        for name, gain in {"r": 1, "k": 0.1, "v": 1, "gate": 0.1}.items():
            square = weights[f"mixer.{name}.weight"]
            torch.testing.assert_close(
                square @ square.T, gain**2 * torch.eye(d_model).double(), atol=1e-5, rtol=0
            )
    assert model.get_submodule("layers.0.mlp.up").weight.shape == (160, 48)  # 3.5 * 48 = 168, down to 32 * 5


def test_channel_mixing(with_parts: PARTS) -> None:
    seen = observe(with_parts(MIXER, MLP), ["layers.0.mlp"], 9)["layers.0.mlp"]
    expected = rwkv6.channel_mix(
        {name: value.double() for name, value in seen.weights.items()}, seen.x.double()
    )
    torch.testing.assert_close(seen.y.double(), expected, rtol=1e-4, atol=1e-5)
