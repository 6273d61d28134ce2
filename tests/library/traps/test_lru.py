"""LRU's traps: the ring that eigenvalues start on, the factor of the input, angles that keep float32."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import archc
from tests.oracles.row import Row, spec


def mixers(options: dict[str, Any], **model: Any) -> list[Any]:
    torch.manual_seed(0)
    return [layer.mixer for layer in archc.load(spec("lru", Row(options), n_layers=8)).Model(**model).layers]


@pytest.mark.parametrize(("r_min", "r_max", "max_phase"), [(0, 1, 6.28), (0.9, 0.999, 0.314)])
def test_eigenvalues_start_on_a_ring(r_min: float, r_max: float, max_phase: float) -> None:
    """|lambda|^2 and the angle are uniform, gamma = sqrt(1 - |lambda|^2) (sections 3.3 and 3.4 of the paper)."""
    options = {"d_state": 512, "r_min": r_min, "r_max": r_max, "max_phase": max_phase}
    with torch.no_grad():
        found = mixers(options)
        nu, theta, gamma = (
            torch.cat([getattr(m, n) for m in found]).double().exp()
            for n in ("nu_log", "theta_log", "gamma_log")
        )
    squared = torch.exp(-2 * nu)
    for value, low, high in ((squared, r_min**2, r_max**2), (theta, 0.0, max_phase)):
        assert float(value.min()) >= low - 1e-6 and float(value.max()) <= high * (1 + 1e-6)
        assert abs(float(value.mean()) - (low + high) / 2) <= 5 * (high - low) / math.sqrt(12 * len(value))
    torch.testing.assert_close(gamma, torch.sqrt(1 - squared), rtol=1e-4, atol=1e-6)


def test_matrices_start_as_in_the_published_code() -> None:
    for mixer in mixers({"d_state": 512})[:2]:
        for name, deviation in {
            "B_re": (2 * 48) ** -0.5,
            "B_im": (2 * 48) ** -0.5,
            "C_re": 512**-0.5,
            "C_im": 512**-0.5,
        }.items():
            weight = getattr(mixer, name).weight
            assert abs(float(weight.detach().std()) / deviation - 1) <= 5 / math.sqrt(2 * weight.numel())
        assert 0.4 < float(mixer.D.detach().std()) < 1.8


def test_eigenvalues_keep_float32() -> None:
    """A rounded angle is off by a whole turn after a few hundred tokens."""
    for mixer in mixers({}, dtype=torch.bfloat16):
        assert mixer.nu_log.dtype == mixer.theta_log.dtype == torch.float32
        assert mixer.B_re.weight.dtype == torch.bfloat16


def test_long_memory() -> None:
    """An impulse 150 tokens ago is read as Re(C lambda^150 gamma B x)."""
    (mixer, *_) = mixers({"r_min": 0.99, "r_max": 0.999, "activation": "none"})
    mixer = mixer.double()
    x = torch.zeros(1, 151, 48, dtype=torch.float64)
    x[0, 0] = torch.randn(48, dtype=torch.float64)
    package = archc.load(spec("lru", Row({"r_min": 0.99, "r_max": 0.999, "activation": "none"}), n_layers=8))
    with torch.no_grad():
        place = package.state.open_place(package.place.dense_layout(x))
        y = mixer(x, place.at("layers.0.mixer"))[0, -1]
        factor = torch.polar(torch.exp(-torch.exp(mixer.nu_log)), torch.exp(mixer.theta_log))
        B = torch.complex(mixer.B_re.weight, mixer.B_im.weight) * torch.exp(mixer.gamma_log)[:, None]
        C = torch.complex(mixer.C_re.weight, mixer.C_im.weight)
        want = (C @ (factor**150 * (B @ x[0, 0].to(B.dtype)))).real
    torch.testing.assert_close(y, want)
