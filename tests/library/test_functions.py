"""The library's activations in a compiled MLP: values and gradients, also where exponentials overflow."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from tests.oracles.functions import FUNCTIONS

ACTIVATIONS = (
    "golu",
    "relu2",
    "quick_gelu",
    "swish",
    "mish",
    "hard_silu",
    "leaky_relu",
    "scaled_elu",
    "xielu",
    "elu1",
    "positive_linear",
)
EXTREMES = [0.0, 1e-30, 1e-7, 1e-3, 5.0, 20.0, 88.0, 89.0, 104.0, 710.0, 1e4]
POINTS = torch.cat([torch.linspace(-12, 12, 481), torch.tensor(EXTREMES), -torch.tensor(EXTREMES)])
EPS = torch.finfo(torch.float32).eps


def derivatives(function: Callable[[Tensor], Tensor], u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The value, the first and the second derivative at each point."""
    u = u.clone().requires_grad_()
    value = function(u)
    (first,) = torch.autograd.grad(value.sum(), u, create_graph=True)
    if not first.requires_grad:
        return value.detach(), first.detach(), torch.zeros_like(u)
    (second,) = torch.autograd.grad(first.sum(), u, allow_unused=True)
    return value.detach(), first.detach(), torch.zeros_like(u) if second is None else second.detach()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_value_and_gradient(activation: str, with_parts: Callable[..., nn.Module]) -> None:
    mixer = {"use": "attention", "n_heads": 4}
    model = with_parts(mixer, {"use": "plain_mlp", "activation": activation, "d_ff": 48})
    mlp = model.get_submodule("layers.0.mlp")
    with torch.no_grad():  # the activation alone: one channel of 48, in and out
        for name in ("up", "y"):
            weight = mlp.get_submodule(name).weight
            weight.copy_(torch.eye(48))
    own = {
        name.removeprefix("y_"): p.detach().double() for name, p in mlp.named_parameters() if "." not in name
    }
    value, first, second = derivatives(lambda u: FUNCTIONS[activation](own, u), POINTS.double())

    x = torch.zeros(1, len(POINTS), 48)
    x[0, :, 0] = POINTS
    x.requires_grad_()
    found = mlp(x, SimpleNamespace(patterns=()))[0, :, 0]
    (gradient,) = torch.autograd.grad(found.sum(), x)
    gradient = gradient[0, :, 0]

    # A few roundings of the result, of the argument, and of intermediate values of the size of 1 or the argument.
    size = POINTS.double().abs()
    small = 8 * size.clamp(max=1)
    assert bool(torch.isfinite(found).all())
    assert bool(torch.isfinite(gradient).all())
    error = (found.double() - value).abs()
    assert bool((error <= EPS * (32 * value.abs() + 8 * size * first.abs() + small) + 1e-38).all())
    smooth = size > 1e-6  # at a kink either slope is right
    error = (gradient.double() - first).abs()[smooth]
    assert bool((error <= EPS * (32 * first.abs() + 8 * size * second.abs() + 8)[smooth]).all())
