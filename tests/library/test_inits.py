"""How weights start, where a paper or its code says so."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import archc
from tests.library.conftest import SPECS
from tests.oracles.row import Row, spec


def fresh(name: str) -> dict[str, torch.Tensor]:
    """The parameters of a small model as they start."""
    torch.manual_seed(0)
    model: Any = archc.load(SPECS / "models" / f"{name}_small.yaml").Model()
    return {name: value.detach() for name, value in model.named_parameters()}


MANY_HEADS: dict[str, dict[str, Any]] = {
    "mamba2": {"head_dim": 2, "d_state": 4},
    "gated_deltanet": {"n_heads": 128, "head_dim": 2, "expand_v": 1},
    "kda": {"n_heads": 128, "head_dim": 2, "rank": 4},
}


@pytest.mark.parametrize(
    ("name", "prefix", "lowest", "highest"),
    [("mamba2", "", 1, 16), ("gated_deltanet", "decay_", 0, 16), ("kda", "decay_", 1, 16)],
)
def test_decays_start_at_the_published_rates(name: str, prefix: str, lowest: float, highest: float) -> None:
    torch.manual_seed(0)
    model: Any = archc.load(spec(name, Row(MANY_HEADS[name], d_model=128), n_layers=4)).Model()
    weights = {key: value.detach() for key, value in model.named_parameters()}
    rates = torch.cat(
        [w.flatten() for key, w in weights.items() if key.endswith(f"mixer.{prefix}A_log")]
    ).exp()
    steps = F.softplus(
        torch.cat([w.flatten() for key, w in weights.items() if key.endswith(f"mixer.{prefix}dt_bias")])
    )
    assert float(rates.min()) >= lowest * (1 - 1e-6)
    assert float(rates.max()) <= highest * (1 + 1e-6)
    edge = 20 * (highest - lowest) / len(rates)  # of so many draws one comes as close but for exp(-20)
    assert float(rates.min()) < lowest + edge < 1 + lowest and float(rates.max()) > highest - edge
    assert float(steps.min()) >= 0.001 * (1 - 1e-4)
    assert float(steps.max()) <= 0.1 * (1 + 1e-4)
    # Uniform, and uniform in the logarithm: means within five standard errors.
    spread = (highest - lowest) / math.sqrt(12 * len(rates))
    assert abs(float(rates.mean()) - (lowest + highest) / 2) <= 5 * spread
    spread = math.log(100) / math.sqrt(12 * len(steps))
    assert abs(float(steps.log().mean()) - math.log(0.01)) <= 5 * spread


def test_rwkv7_starts_as_its_training_code_says() -> None:
    weights = fresh("rwkv7")
    n_layers, d_model, head_dim = 4, 192, 32
    n = torch.arange(d_model, dtype=torch.float64)
    lin = n / (d_model - 1) - 0.5
    u = (n % head_dim - (head_dim - 1) / 2) / ((head_dim - 1) / 2)
    zigzag = u * u.abs()
    for layer in range(n_layers):
        depth, rest = layer / (n_layers - 1), 1 - layer / n_layers
        expected = {f"mix_{letter}": 1 - (n / d_model) ** (power * rest) for letter, power in
                    {"r": 0.2, "g": 0.2, "w": 0.9, "a": 0.9, "k": 0.7, "v": 0.7}.items()}  # fmt: skip
        expected |= {
            "w.bias": -6 + 6 * (n / (d_model - 1)) ** (1 + depth**0.3) + 0.5 + 2.5 * zigzag,
            "a.bias": -0.19 + 0.3 * zigzag + 0.4 * lin,
            "k_k": 0.71 - 0.1 * lin,
            "k_a": torch.full_like(n, 1.02),
            "r_k": torch.full_like(n, -0.04),
            "o_norm.weight": torch.full_like(n, ((layer + 1) / n_layers) ** 0.7),
            "o_norm.bias": torch.zeros_like(n),
        }
        expected |= {"mu.bias": 0.73 - 0.4 * lin} if layer else {}
        for name, value in expected.items():
            found = weights[f"layers.{layer}.mixer.{name}"].double().flatten()
            assert float((found - value).abs().max()) <= 1e-5, (
                f"{name} of layer {layer}"
            )  # float32 powers of n
        for name in ("y", "w_low", "a_low", "g_low"):
            assert not weights[f"layers.{layer}.mixer.{name}.weight"].any()
        for name, gain in {"r": 1, "v0": 1, "k0": 0.1}.items():
            matrix = weights[f"layers.{layer}.mixer.{name}.weight"].double() / gain
            assert torch.allclose(matrix @ matrix.T, torch.eye(d_model, dtype=torch.float64), atol=1e-5)
        mlp = {"mix_k": 1 - (n / d_model) ** (rest**4), "y.weight": torch.zeros(d_model, 4 * d_model)}
        for name, value in mlp.items():
            found = weights[f"layers.{layer}.mlp.{name}"].double()
            assert float((found - value).abs().max()) <= 1e-5, f"{name} of layer {layer}"
