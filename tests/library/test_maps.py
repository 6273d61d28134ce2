"""The library's feature maps and decays by themselves, against their definitions in float64."""

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
    "dpfp": "dpfp(u, nu=3)",
    "dpfp_4": "dpfp(u, nu=4)",
    "cos_features": "cos_features(u, max_length=20)",
    "lrpe": "lrpe(u)",
    "focused_map": "focused_map(u, p=4)",
    "log_normal_map": "log_normal_map(u, factor=0.7)",
    "log_normal_map_query": "log_normal_map(u, factor=0.7, query=true)",
    "learned_map": "learned_map(u, layers=3, activation=relu, gate=true)",
    "favor": "favor(u, 11)",
    "favor_query": "favor(u, 11, query=true)",
    "relu_features": "relu_features(u, 11)",
    "random_fourier": "random_fourier(u, 11)",
    "alibi_slopes": "u * alibi_slopes(arange(n_heads))",
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
        for key, value in (*model.named_parameters(), *model.named_buffers())
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


def dpfp(u: Tensor, nu: int) -> Tensor:
    """Schlag et al. 2021, equation 37: r_i r_(i - j) with r = [relu(u), relu(-u)], one j after the other."""
    r = torch.cat([u, -u], -1).clamp(min=0)
    n = r.shape[-1]
    return torch.stack([r[..., i] * r[..., (i - j) % n] for j in range(1, nu + 1) for i in range(n)], -1)


def distances() -> Tensor:
    """i - j, `[T, T]`."""
    place = torch.arange(LENGTH, dtype=torch.float64)
    return place[:, None] - place


def favor(u: Tensor, own: Mapping[str, Tensor], query: bool) -> Tensor:
    """exp(omega u' - |u'|^2 / 2) with u' = u / n^(1/4), a query's over its largest, plus 1e-4; over sqrt(features)."""
    scaled = u / WIDTH**0.25
    exponent = scaled @ weight(own, "omega").T - scaled.square().sum(-1, keepdim=True) / 2
    if query:
        exponent = exponent - exponent.amax(-1, keepdim=True)
    return (exponent.exp() + 1e-4) / 11**0.5


def random_fourier(u: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    """[sin, cos] of angles to rows sigma * w, over sqrt(features)."""
    angle = torch.nn.functional.normalize(u, dim=-1) @ (weight(own, "sigma") * weight(own, "w")).T
    return torch.cat([angle.sin(), angle.cos()], -1) / 11**0.5


def learned(u: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    """Three layers with ReLU, times a gate; the heads share the weights."""
    h = u
    for name in ("first", "second", "third"):
        h = (h @ own[f"{name}.weight"].T + own[f"{name}.bias"]).clamp(min=0)
    return h * torch.sigmoid(u @ own["gate.weight"].T + own["gate.bias"])


def focused(u: Tensor, own: Mapping[str, Tensor]) -> Tensor:
    """Han et al. 2023, equation 6, over all heads together."""
    r = (u.clamp(min=0) + 1e-6) / torch.nn.functional.softplus(weight(own, "scale"))
    powers = r**4
    return powers * (r.flatten(2).norm(dim=-1) / powers.flatten(2).norm(dim=-1))[..., None, None]


MAPS: dict[str, Callable[[Tensor, Mapping[str, Tensor]], Tensor]] = {
    "dpfp": lambda u, own: dpfp(u, 3),
    "dpfp_4": lambda u, own: dpfp(u, 4),
    "focused_map": focused,
    "log_normal_map": lambda u, own: torch.exp(0.7 * u),
    "log_normal_map_query": lambda u, own: torch.exp(0.7 * (u - u.amax(-1, keepdim=True))),
    "learned_map": learned,
    "favor": lambda u, own: favor(u, own, False),
    "favor_query": lambda u, own: favor(u, own, True),
    "relu_features": lambda u, own: ((u @ weight(own, "omega").T).clamp(min=0) + 0.001) / 11**0.5,
    "random_fourier": random_fourier,
    "alibi_slopes": lambda u, own: u * torch.tensor([2**-4, 2**-8, 2**-2], dtype=u.dtype)[:, None],
}


@pytest.mark.parametrize("name", MAPS)
def test_map(name: str) -> None:
    u, found, own = seen(name)
    close(found, MAPS[name](u, own), 64)


def test_cosine_of_the_distance() -> None:
    """Products are those of u times cos(pi/2 (i - j) / 20)."""
    u, found, _ = seen("cos_features")
    close(products(found.double()), products(u) * torch.cos(torch.pi / 2 * distances() / 20), 64)


def test_learned_angles() -> None:
    """Products are sum_d u_id u_jd cos(theta_d (i - j))."""
    u, found, own = seen("lrpe")
    turned = torch.cos(weight(own, "theta")[:, None, None] * distances()[..., None])
    close(products(found.double()), torch.einsum("bihn,bjhn,hijn->bhij", u, u, turned), 64)


def test_negative_halves_are_positive_features() -> None:
    """The paper's second half is relu(-u), not -relu(u): no feature is negative, and u = -1 is seen."""
    _, found, _ = seen("dpfp")
    assert float(found.min()) >= 0
    u = torch.tensor([[-1.0, -2.0, 0.0, 0.0]])
    assert float(dpfp(u, 1).sum()) == 2.0


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
