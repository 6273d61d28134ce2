"""What goes wrong in silence in diagonal state spaces: starts, the discretisation, the factor of conjugate pairs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import archc
from tests.oracles.row import Row, spec
from tests.support.imports import imported

N = 16  # states, 8 pairs


def fresh(**options: Any) -> Any:
    torch.manual_seed(0)
    return archc.load(spec("s4d", Row({"d_state": N, **options}), n_layers=1)).Model()


@pytest.mark.parametrize("start", ["lin", "inv", "real"])
def test_initial_values(start: str) -> None:
    named = fresh(start=start).layers[0].mixer.named_parameters()
    weights = {name: parameter.detach() for name, parameter in named}
    n = torch.arange(N // 2).double()
    imaginary = {"lin": math.pi * n, "inv": N / math.pi * (N / (2 * n + 1) - 1), "real": 0 * n}[start]
    real = 1 + n if start == "real" else 0.5 + 0 * n
    assert weights["o_C"].shape == (48, N // 2, 2)
    for name, want in {"o_log_A_real": real.log(), "o_A_imag": imaginary}.items():
        torch.testing.assert_close(weights[name].double(), want.expand(48, -1), rtol=1e-6, atol=1e-6)
    steps = weights["o_log_dt"].exp()
    assert 0.001 * (1 - 1e-4) <= float(steps.min()) and float(steps.max()) <= 0.1 * (1 + 1e-4)
    assert abs(float(weights["o_log_dt"].mean()) - math.log(0.01)) <= 5 * math.log(100) / math.sqrt(12 * 48)
    # A complex number of variance 1 is two real ones of variance 1/2.
    entries = weights["o_C"].numel()
    assert abs(float(weights["o_C"].var()) - 0.5) <= 5 * 0.5 * math.sqrt(2 / entries)


def test_no_weight_decay_of_the_state_space() -> None:
    model = fresh()
    free = {id(parameter) for parameter in model.parameter_groups(0.1)[1]["params"]}
    named = dict(model.layers[0].mixer.named_parameters())
    assert all(id(named[name]) in free for name in ("o_log_dt", "o_log_A_real", "o_A_imag", "o_D"))
    assert id(named["out.weight"]) not in free


def test_response_to_a_pulse() -> None:
    """2 Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(l dt A_n), the published kernel, in complex float64."""
    model = fresh().double()
    mixer = model.layers[0].mixer
    pulse = torch.zeros(1, 100, 48, dtype=torch.float64)
    pulse[0, 0] = 1
    with torch.no_grad():
        mixer.out.weight.zero_()
        mixer.out.weight[:48] = torch.eye(48)
        mixer.out.bias.fill_(0)
        mixer.out.bias[48:] = 50  # an open gate
        place = place_of(model, pulse)
        found = mixer(pulse, place)[0]
        A = torch.complex(-mixer.o_log_A_real.exp(), mixer.o_A_imag)
        dt = mixer.o_log_dt.exp()[:, None]
        C = torch.view_as_complex(mixer.o_C) * (torch.exp(dt * A) - 1) / A
        lags = torch.arange(100)
        kernel = 2 * torch.einsum("hn,hnl->lh", C, torch.exp((dt * A)[..., None] * lags)).real
        kernel[0] += mixer.o_D
    torch.testing.assert_close(found, torch.nn.functional.gelu(kernel), rtol=1e-9, atol=1e-12)


def place_of(model: Any, x: torch.Tensor) -> Any:
    """The place of a dense call, for a module by itself."""
    package = type(model).__module__.rpartition(".")[0]
    place = imported(f"{package}.place")
    return place.Place(place.dense_layout(x))
