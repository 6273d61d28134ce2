"""HGRN's traps: bounds that are one parameter of the model and rise with the layer, the tied input, the angles."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import archc
from tests.oracles.row import Row, spec

LAYERS = 4


def build(**options: Any) -> Any:
    torch.manual_seed(0)
    return archc.load(spec("hgrn", Row(options), n_layers=LAYERS)).Model()


def test_one_parameter_that_starts_from_nothing() -> None:
    """[layers, channels], zeros: softmax gives each layer 1 / L, so layer l starts with the bound l / L."""
    model = build(expand=2)
    assert model.lower_bounds.shape == (LAYERS, 96) and not model.lower_bounds.any()
    with torch.no_grad():
        for layer in model.layers:
            layer.mixer.f.weight.mul_(1e4)  # gates at 0 or 1: what is left is the bound
        _, found = model(torch.randint(64, (2, 11)), capture=["layers.*.mixer.decay"])
    for layer in range(LAYERS):
        least = found[f"layers.{layer}.mixer.decay"].exp().amin(dim=(0, 1))
        torch.testing.assert_close(least, torch.full_like(least, layer / LAYERS), atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
def test_bounds_rise_and_decays_stay_below_one(size: float) -> None:
    model = build(numbers="complex")
    with torch.no_grad():
        model.lower_bounds.copy_(size * torch.randn_like(model.lower_bounds))
        for layer in model.layers:
            layer.mixer.f.weight.mul_(100)
    tokens = torch.randint(64, (2, 20))
    _, found = model(tokens, capture=["layers.*.mixer.decay"])
    assert all(bool((decay <= 0).all() and decay.isfinite().all()) for decay in found.values())
    for slope in torch.autograd.grad(model.loss(tokens).total, list(model.parameters())):
        assert bool(slope.isfinite().all())


def test_what_is_written_is_what_is_forgotten() -> None:
    """A constant candidate is a fixed point: h stays c where it has come to c, whatever the gate."""
    model = build()
    tokens = torch.full((1, 40), 5)
    with torch.no_grad():
        _, found = model(tokens, capture=["layers.0.mixer.*"])
    h, c, decay = (found[f"layers.0.mixer.{name}"][0].double() for name in ("h", "c", "decay"))
    torch.testing.assert_close(h, c * (1 - torch.exp(decay.cumsum(0))), rtol=1e-5, atol=1e-7)


def test_angles_start_as_those_of_rotary_positions() -> None:
    mixer = build(numbers="complex").layers[1].mixer
    n = torch.arange(48, dtype=torch.float64)
    torch.testing.assert_close(mixer.theta.detach().double(), 10000 ** (-2 * n / 48), rtol=1e-6, atol=0)


def test_precision() -> None:
    model = build(numbers="complex").to(torch.bfloat16)
    assert model.lower_bounds.dtype == torch.float32
    assert model.layers[2].mixer.theta.dtype == torch.float32
