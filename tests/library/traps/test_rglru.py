"""The RG-LRU's traps: the first token's factor, the root's derivative, initial values, block-diagonal gates."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import archc
from tests.library.conftest import randomise
from tests.oracles.row import Row, spec

LAYERS = 3


def build(**options: Any) -> Any:
    torch.manual_seed(0)
    return archc.load(spec("rglru", Row({"n_heads": 4, **options}), n_layers=LAYERS)).Model()


def seen(model: Any, tokens: Tensor, **layout: Any) -> dict[str, Tensor]:
    _, found = model(tokens, capture=["layers.0.mixer.*"], **layout)
    return {name.removeprefix("layers.0.mixer."): value for name, value in found.items()}


def test_the_first_token_of_each_document_is_taken_whole() -> None:
    """h = i * u there, not sqrt(1 - a^2) i * u: at the start of every document of a row, and nowhere else."""
    model = build()
    randomise(model)
    tokens, borders = torch.randint(64, (1, 14)), torch.tensor([0, 5, 5, 6, 14])
    with torch.no_grad():
        found = seen(model, tokens, cu_seqlens=borders)
    h, written, a = (found[n][0] for n in ("h", "u", "decay"))
    gated, a = found["input_gate"][0] * written, a.exp()
    for t in range(14):
        first = t in (0, 5, 6)
        want = gated[t] if first else a[t] * h[t - 1] + torch.sqrt(1 - a[t] ** 2) * gated[t]
        torch.testing.assert_close(h[t], want, rtol=1e-4, atol=1e-6)


def test_a_continued_document_has_no_second_first_token() -> None:
    model = build()
    randomise(model)
    tokens = torch.randint(64, (1, 9))
    with torch.no_grad():
        whole = seen(model, tokens)["h"]
        state = model.init_state(1, 9)
        parts = [seen(model, piece, state=state)["h"] for piece in tokens.split([4, 1, 4], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_initial_values() -> None:
    """exp(-softplus(Lambda)) ** 2 is uniform between 0.9 ** 2 and 0.999 ** 2; deviations as in the published code."""
    model = build(width=4096, n_heads=16)
    rad = torch.cat(
        [torch.exp(-torch.nn.functional.softplus(m.mixer.Lambda.double())) for m in model.layers]
    ).detach()
    assert float(rad.min()) >= 0.9 - 1e-6 and float(rad.max()) <= 0.999 + 1e-6
    low, high = 0.9**2, 0.999**2
    assert abs(float((rad**2).mean()) - (low + high) / 2) <= 5 * (high - low) / math.sqrt(12 * len(rad))
    mixer = model.layers[0].mixer
    deviations = {
        "recurrent_gate": math.sqrt(0.01 / 256),
        "input_gate": math.sqrt(0.01 / 256),
        "u_conv": math.sqrt(0.01 / 4),
        "u0": 48**-0.5,
        "branch": 48**-0.5,
        "y": math.sqrt(2 / LAYERS / 4096),
    }
    for name, deviation in deviations.items():
        module = getattr(mixer, name)
        assert abs(float(module.weight.detach().std()) / deviation - 1) <= 5 / math.sqrt(
            2 * module.weight.numel()
        ), name
        assert not module.bias.any()
    assert mixer.recurrent_gate.weight.shape == (16, 256, 256)


@pytest.mark.parametrize("size", [-1e4, -30.0, -9.0, 0.0, 1e4])
def test_gradients_where_nothing_decays(size: float) -> None:
    """a = 1 to the last digit has an infinite derivative of sqrt(1 - a^2), which is cut off; a = 0 has none."""
    model = build()
    randomise(model)
    with torch.no_grad():
        for layer in model.layers:
            layer.mixer.recurrent_gate.bias.fill_(size)
    loss = model.loss(torch.randint(64, (2, 20))).total
    for slope in torch.autograd.grad(loss, list(model.parameters())):
        assert bool(slope.isfinite().all())


def test_the_root_is_exact_and_its_derivative_bounded() -> None:
    """The value is sqrt(u); the derivative 1 / (2 sqrt(u)) where that is below 1000, else 1000."""
    body = {"u": "exp(linear(x, d_model))", "y": "bounded_sqrt(u)"}
    own = {
        "mixers": {"own": {"body": body}},
        "blocks": {"main": {"mixer": {"use": "own"}, "mlp": {"use": "swiglu"}}},
    }
    package = archc.load({**spec("rglru", Row()), **own})
    model = package.Model().double()
    mixer = model.layers[0].mixer
    with torch.no_grad():
        mixer.u.weight.copy_(torch.eye(48))
    x = torch.linspace(-40, 3, 48, dtype=torch.float64).view(1, 1, 48).requires_grad_()
    y = mixer(x, package.state.open_place(package.place.dense_layout(x)))
    u = x.detach().exp()
    torch.testing.assert_close(y.detach(), u.sqrt())
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, u * (0.5 / u.sqrt()).clamp(max=1000))
