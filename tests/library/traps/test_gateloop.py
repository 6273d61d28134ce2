"""GateLoop's traps: the closed form, the real part, and the slower derivative of the transition."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import archc
from tests.library.conftest import randomise
from tests.oracles.row import Row, spec


def build(**options: Any) -> Any:
    torch.manual_seed(0)
    model = archc.load(spec("gateloop", Row(options), n_layers=1)).Model()
    randomise(model)
    return model


def test_closed_form() -> None:
    """o_t = Re sum_{s <= t} q_t k_s v_s prod_{s < r <= t} a_r (equation 9 of the paper, one channel a head)."""
    model = build(output_gate=False).double()
    tokens = torch.randint(64, (1, 12))
    with torch.no_grad():
        _, found = model(tokens, capture=["layers.0.mixer.*"])
    q, k, v, gamma, theta, o = (
        found[f"layers.0.mixer.{n}"][0] for n in ("q", "k", "v", "gamma", "theta", "o")
    )
    a = torch.polar(torch.sigmoid(gamma), theta)
    for t in range(12):
        total = sum(a[s + 1 : t + 1].prod(0) * k[s] * v[s] for s in range(t + 1))
        torch.testing.assert_close(o[t], (q[t] * total).real)


def test_slower_transition() -> None:
    """The same logits; the derivative with respect to gamma and theta is scaled, the others are not."""
    tokens = torch.randint(64, (2, 12))
    plain, slow = build(), build(transition_slope=0.25)
    assert torch.equal(plain(tokens), slow(tokens))

    def slopes(model: Any) -> dict[str, Tensor]:
        mixer = model.layers[0].mixer
        names = [name for name, _ in mixer.named_parameters()]
        loss = model(tokens).square().sum()
        return dict(zip(names, torch.autograd.grad(loss, list(mixer.parameters())), strict=True))

    expected, found = slopes(plain), slopes(slow)
    for name, slope in expected.items():
        factor = 0.25 if name in ("gamma.weight", "theta.weight") else 1.0
        torch.testing.assert_close(found[name], factor * slope)


def test_real_form_has_no_angles() -> None:
    assert not any("theta" in name for name, _ in build(numbers="real").named_parameters())
