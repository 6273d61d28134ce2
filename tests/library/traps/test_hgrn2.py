"""HGRN2's traps: lower bounds that are one parameter of the model, the tied key, decays that are never above 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import archc
from tests.oracles.row import Row, spec

LAYERS = 4


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return archc.load(spec("hgrn2", Row({"expand_ratio": 16}), n_layers=LAYERS)).Model()


def decays(model: nn.Module) -> list[torch.Tensor]:
    tokens = torch.randint(64, (2, 11))
    with torch.no_grad():
        _, found = model(tokens, capture=["layers.*.mixer.decay"])
    return [found[f"layers.{layer}.mixer.decay"] for layer in range(LAYERS)]


def test_one_parameter_that_starts_from_nothing(model: Any) -> None:
    """[layers, d_model], zeros: layer l starts with the bound l / L."""
    assert model.decay_lower_bounds.shape == (LAYERS, 3, 16)
    assert not model.decay_lower_bounds.any()
    with torch.no_grad():
        for layer in model.layers:
            layer.mixer.decay.weight.mul_(1e4)  # gates at 0 or 1: what is left is the bound
    for layer, decay in enumerate(decays(model)):
        least = decay.exp().amin(dim=(0, 1))
        torch.testing.assert_close(least, torch.full_like(least, layer / LAYERS), atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", [1.0, 30.0, 1e4])
def test_bounds_rise_and_decays_stay_below_one(model: Any, size: float) -> None:
    """Whatever the parameter, also where a softmax over layers is 0 or 1 to the last digit; gradients are finite."""
    with torch.no_grad():
        model.decay_lower_bounds.copy_(size * torch.randn_like(model.decay_lower_bounds))
        for layer in model.layers:
            layer.mixer.decay.weight.mul_(100)
    for decay in decays(model):
        assert bool((decay <= 0).all()) and bool(decay.isfinite().all())
    loss = model.loss(torch.randint(64, (2, 20))).total
    for slope in torch.autograd.grad(loss, list(model.parameters())):
        assert bool(slope.isfinite().all())


def test_precision_and_weight_decay(model: Any) -> None:
    """The model's own parameter of a decay keeps float32 and has no weight decay, as those of layers do."""
    free = {id(p) for p in model.parameter_groups(0.1)[1]["params"]}
    assert id(model.decay_lower_bounds) in free
    assert model.to(torch.bfloat16).decay_lower_bounds.dtype == torch.float32


def test_key_is_what_is_forgotten(with_parts: Callable[..., nn.Module]) -> None:
    """o_1 = (1 - alpha_1) q_1 / sqrt(K) times v_1."""
    model = with_parts({"use": "hgrn2", "expand_ratio": 16}, {"use": "swiglu", "d_ff": 48})
    with torch.no_grad():
        _, found = model(torch.tensor([[5]]), capture=["layers.0.mixer.*"])
    q, v, o, alpha = (found[f"layers.0.mixer.{n}"][0, 0] for n in ("q", "v", "o", "decay"))
    torch.testing.assert_close(o, ((1 - alpha.exp()) * q).sum(-1, keepdim=True) / 4 * v)
