"""Traps of constant decays: three tables under one name, heads that are no power of two, retention's rates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import archc
from tests.oracles.row import Row, spec

# ln lambda for 8 heads in 4 layers, by hand: the slopes 2^-1 ... 2^-8 with the factor 1 - l / 3 of each layer,
# -h (1 - l / 4) from h = 1, and the same from h = 0.
BY_HAND = {
    "alibi_layer": [
        [-0.5, -0.25, -0.125, -0.0625, -0.03125, -0.015625, -0.0078125, -0.00390625],
        [-0.333333, -0.166667, -0.0833333, -0.0416667, -0.0208333, -0.0104167, -0.00520833, -0.00260417],
        [-0.166667, -0.0833333, -0.0416667, -0.0208333, -0.0104167, -0.00520833, -0.00260417, -0.00130208],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ],
    "tnl_paper": [
        [-1, -2, -3, -4, -5, -6, -7, -8],
        [-0.75, -1.5, -2.25, -3, -3.75, -4.5, -5.25, -6],
        [-0.5, -1, -1.5, -2, -2.5, -3, -3.5, -4],
        [-0.25, -0.5, -0.75, -1, -1.25, -1.5, -1.75, -2],
    ],
    "fla_lightning": [
        [0, -1, -2, -3, -4, -5, -6, -7],
        [0, -0.75, -1.5, -2.25, -3, -3.75, -4.5, -5.25],
        [0, -0.5, -1, -1.5, -2, -2.5, -3, -3.5],
        [0, -0.25, -0.5, -0.75, -1, -1.25, -1.5, -1.75],
    ],
}


def rates(options: dict[str, Any], n_layers: int, d_model: int = 48) -> Tensor:
    """-ln lambda of each layer and head, as the model computes it."""
    row = Row({"first_layer_angles": False, **options}, d_model=d_model)
    model = archc.load(spec("lightning", row, n_layers=n_layers)).Model()
    with torch.no_grad():
        _, found = model(torch.zeros(1, 2, dtype=torch.int64), capture=["layers.*.mixer.rate"])
    return torch.stack([found[f"layers.{layer}.mixer.rate"] for layer in range(n_layers)])


@pytest.mark.parametrize("table", BY_HAND)
def test_table(table: str) -> None:
    """2e-5 covers the 1e-5 that the published code adds twice."""
    found = rates({"n_heads": 8, "decay_table": table}, 4)
    assert float((found + torch.tensor(BY_HAND[table])).abs().max()) <= (
        2e-5 if table == "alibi_layer" else 1e-6
    )


def test_last_layer_keeps_almost_everything() -> None:
    """1 - l / (L - 1 + 1e-5) + 1e-5 is 1.33e-5 for l = 3 of L = 4: not 0, and above all not below."""
    last = rates({"n_heads": 8}, 4)[3]
    expected = (1 - 3 / (3 + 1e-5) + 1e-5) * 2.0 ** -torch.arange(1, 9, dtype=torch.float64)
    torch.testing.assert_close(last.double(), expected, rtol=1e-6, atol=0)


def test_the_default_is_what_checkpoints_have() -> None:
    torch.testing.assert_close(
        rates({"n_heads": 8}, 4), rates({"n_heads": 8, "decay_table": "alibi_layer"}, 4)
    )


@pytest.mark.parametrize(
    ("n_heads", "slopes"),
    [
        (1, [2**-8]),
        (2, [2**-4, 2**-8]),
        (3, [2**-4, 2**-8, 2**-2]),
        (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]),
        (12, [*(2**-h for h in range(1, 9)), 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]),
    ],
)
def test_slopes_of_other_head_counts(n_heads: int, slopes: list[float]) -> None:
    """ALiBi's fill up: the slopes of the power of two below, then every other one of the power above."""
    torch.testing.assert_close(rates({"n_heads": n_heads}, 2)[0], torch.tensor(slopes) * (1 + 1e-5))


def test_one_layer() -> None:
    """L = 1: the published code divides by 1e-5, and 0 / 1e-5 is 0."""
    torch.testing.assert_close(rates({"n_heads": 2}, 1)[0], torch.tensor([2**-4, 2**-8]) * (1 + 1e-5))


def test_rates_of_retention() -> None:
    """gamma = 1 - 2^(-5 - h): from 0.96875 on; exact also where 1 - gamma is below float32's resolution of 1."""
    row = Row({"n_heads": 24}, d_model=48)
    model = archc.load(spec("retnet", row)).Model()
    with torch.no_grad():
        _, found = model(torch.zeros(1, 2, dtype=torch.int64), capture=["layers.0.mixer.decay"])
    decay = found["layers.0.mixer.decay"].double()
    gammas = [0.96875, 0.984375, 0.9921875, 0.99609375, 0.998046875, 0.9990234375]
    torch.testing.assert_close(decay[:6].exp(), torch.tensor(gammas, dtype=torch.float64), rtol=1e-7, atol=0)
    expected = torch.log1p(-(2.0 ** -(5 + torch.arange(24, dtype=torch.float64))))
    torch.testing.assert_close(decay, expected, rtol=1e-6, atol=0)


def test_angles_in_the_first_layer_only() -> None:
    """theta of every head and channel starts at 10000^(-2 d / D), d counted over all heads."""
    model = archc.load(spec("lightning", Row({"n_heads": 3}), n_layers=3)).Model()
    names = [name for name, _ in model.named_parameters() if "theta" in name]
    assert names == ["layers.0.mixer.angles_theta"]
    expected = 10000 ** (-2 * torch.arange(48, dtype=torch.float64) / 48)
    torch.testing.assert_close(
        model.layers[0].mixer.angles_theta.double().flatten(), expected, rtol=1e-5, atol=0
    )
