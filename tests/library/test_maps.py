"""The library's feature maps and decays that no mixer's oracle reaches, against their definitions in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import archc
from tests.library.conftest import randomise

HEADS, WIDTH, LENGTH = 3, 8, 11
BOUND = 0.25
EPS = torch.finfo(torch.float32).eps

CALLS = {
    "hedgehog": "hedgehog(u)",
    "rebased": "rebased(u)",
    "taylor_exp": "taylor_exp(u)",
    "lower_bound_decay": f"lower_bound_decay(u, bound={BOUND})",
    "bounded_decay": "bounded_decay(u, bound=4)",
    "logsigmoid_decay": "logsigmoid_decay(u, tau=8)",
}


@cache
def seen(name: str) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
    """What enters and leaves the function in a compiled model, `[B, T, heads, n]`, and its own weights by last name."""
    body = {
        "u": "linear(x, [n_heads, head_dim])",
        "found": CALLS[name],
        "y": "linear(found, d_model, name=out)",
    }
    params = {"n_heads": {"type": "int", "default": HEADS}, "head_dim": {"type": "int", "default": WIDTH}}
    spec = {
        "archc": 1,
        "name": "probe",
        "model": {"vocab_size": 64, "d_model": 48, "n_layers": 1, "context": 128, "norm": "rmsnorm"},
        "mixers": {"own": {"params": params, "body": body}},
        "blocks": {"main": {"mixer": {"use": "own"}, "mlp": {"use": "swiglu", "d_ff": 16}}},
        "layers": ["1 main"],
    }
    model: nn.Module = archc.load(spec).Model()
    randomise(model)
    tokens = torch.randint(0, 64, (2, LENGTH), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        _, kept = model(tokens, capture=["layers.0.mixer.*"])
    own = {
        key.removeprefix("layers.0.mixer.found_"): value.detach().double()
        for key, value in model.named_parameters()
        if key.startswith("layers.0.mixer.found")
    }
    return kept["layers.0.mixer.u"].double(), kept["layers.0.mixer.found"], own


def weight(own: Mapping[str, Tensor], *words: str) -> Tensor:
    """The one weight whose name ends with one of these words."""
    (found,) = [value for key, value in own.items() if key.endswith(words)]
    return found


def close(found: Tensor, exact: Tensor, roundings: int) -> None:
    """So many roundings of the largest value."""
    assert found.shape == exact.shape
    assert float((found - exact).abs().max()) <= roundings * EPS * float(exact.abs().max())


def products(features: Tensor) -> Tensor:
    """All inner products between tokens, `[B, H, T, T]`."""
    return torch.einsum("bihf,bjhf->bhij", features, features)


def test_hedgehog() -> None:
    u, found, own = seen("hedgehog")
    (matrix,) = own.values()
    a = torch.einsum("bthn,hmn->bthm", u, matrix)
    close(found, torch.cat([a.softmax(-1), (-a).softmax(-1)], -1), 32)


def test_rebased() -> None:
    """The features' products are the squares of those of the moved, normalised inputs."""
    u, found, own = seen("rebased")
    centred = u - u.mean(-1, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5)
    moved = normed * weight(own, "gamma") + weight(own, "beta")
    close(products(found.double()), products(moved).square(), 64)


def test_taylor_exp() -> None:
    """The features' products are the first three terms of the exponential of scaled scores."""
    u, found, _ = seen("taylor_exp")
    s = products(u) / WIDTH**0.5
    close(products(found.double()), 1 + s + s.square() / 2, 64)


DECAYS: dict[str, Callable[[Tensor, Mapping[str, Tensor]], Tensor]] = {
    "lower_bound_decay": lambda u, own: torch.log(BOUND + (1 - BOUND) * torch.sigmoid(u)),
    "bounded_decay": lambda u, own: (
        -4 * torch.sigmoid(weight(own, "A_log").exp()[:, None] * (u + weight(own, "dt_bias")))
    ),
    "logsigmoid_decay": lambda u, own: torch.log(torch.sigmoid(u)) / 8,
}


@pytest.mark.parametrize("name", DECAYS)
def test_decay(name: str) -> None:
    u, found, own = seen(name)
    exact = DECAYS[name](u, own)
    close(found, exact, 32)
    assert bool((found <= 0).all())
