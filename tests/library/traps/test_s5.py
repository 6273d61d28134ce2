"""S5's traps: conjugate pairs, the discretisation of small steps, initial values, resets inside a row."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import archc
from tests.oracles.row import Row, spec
from tests.oracles.s5 import discretized

OPTIONS = {"d_state": 32, "n_blocks": 2, "activation": "none"}


def build(**options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    package = archc.load(spec("s5", Row({**OPTIONS, **options})))
    return package, package.Model().double()


def run(package: Any, mixer: Any, x: Tensor, borders: Tensor | None = None) -> Tensor:
    """The mixer alone: `x, y [1, T, 48]`, packed where borders are given."""
    layout = (
        package.place.dense_layout(x) if borders is None else package.place.packed_layout(borders, x.shape[1])
    )
    with torch.no_grad():
        y: Tensor = mixer(x, package.state.open_place(layout).at("layers.0.mixer"))
    return y


@pytest.mark.parametrize("spectrum", ["inverse", "linear"])
def test_initial_values(spectrum: str) -> None:
    """S4D-Inv and S4D-Lin for each block of N = 16 states, of which 8 are kept; steps log-uniform."""
    _, model = build(spectrum=spectrum)
    mixer = model.layers[0].mixer
    n, size = torch.arange(8, dtype=torch.float64), 16
    block = size / math.pi * (size / (2 * n + 1) - 1) if spectrum == "inverse" else math.pi * n
    torch.testing.assert_close(mixer.Lambda_im.detach(), block.repeat(2), rtol=1e-6, atol=1e-6)
    assert bool((mixer.Lambda_re == -0.5).all())
    assert bool(
        (mixer.log_step >= math.log(0.001) - 1e-5).all() and (mixer.log_step <= math.log(0.1) + 1e-5).all()
    )
    for name, deviation in {
        "B_re": (2 * 32) ** -0.5,
        "B_im": (2 * 32) ** -0.5,
        "C_re": 32**-0.5,
        "C_im": 32**-0.5,
    }.items():
        weight = getattr(mixer, name).weight
        assert abs(float(weight.detach().std()) / deviation - 1) <= 5 / math.sqrt(2 * weight.numel())


def test_kept_states_stand_for_conjugate_pairs() -> None:
    """y = C x of all states, each with its conjugate: the imaginary parts cancel, the real ones double."""
    package, model = build()
    mixer = model.layers[0].mixer
    weights = {name: value.detach() for name, value in mixer.named_parameters()}
    factor, B = discretized(weights)
    C = torch.complex(weights["C_re.weight"], weights["C_im.weight"])
    factor, B, C = torch.cat([factor, factor.conj()]), torch.cat([B, B.conj()]), torch.cat([C, C.conj()], 1)
    x = torch.randn(1, 20, 48, dtype=torch.float64)
    state, wanted = torch.zeros(len(factor), dtype=B.dtype), []
    for t in range(20):
        state = factor * state + B @ x[0, t].to(B.dtype)
        y = C @ state
        assert float(y.imag.abs().max()) < 1e-12
        wanted.append(y.real + weights["D"] * x[0, t])
    torch.testing.assert_close(run(package, mixer, x)[0], torch.stack(wanted))


@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
def test_small_steps_do_not_cancel(discretization: str) -> None:
    """B_bar of a step of 1e-6 to float32's last digits: exp(z) - 1 of a small complex z keeps them."""
    package, model = build(discretization=discretization, dt_min=1e-6, dt_max=2e-6)
    exact = discretized(
        {n: p.detach().double() for n, p in model.layers[0].mixer.named_parameters()},
        discretization == "bilinear",
    )
    mixer = model.float().layers[0].mixer
    x = torch.randn(1, 1, 48)
    C = torch.complex(mixer.C_re.weight, mixer.C_im.weight).detach().to(torch.complex128)
    y = run(package, mixer, x)[0, 0].double() - (mixer.D * x[0, 0]).detach().double()
    want = 2 * (C @ (exact[1] @ x[0, 0].to(torch.complex128))).real
    assert float((y - want).abs().max()) <= 1e-5 * float(want.abs().max()) + 2**-22 * float(x.abs().max())


def test_the_real_part_is_clipped() -> None:
    """Growing states do not exist: Re Lambda is at most -1e-4, whatever the parameter."""
    package, model = build()
    mixer = model.layers[0].mixer
    x = torch.zeros(1, 3000, 48, dtype=torch.float64)
    x[:, 0] = 1
    with torch.no_grad():
        mixer.Lambda_re.fill_(3.0)
    y = run(package, mixer, x)[0]
    assert float(y[1000:].abs().max()) <= float(y[1:1000].abs().max())


def reset_operator(
    first: tuple[Tensor, Tensor, float], second: tuple[Tensor, Tensor, float]
) -> tuple[Tensor, Tensor, float]:
    """The associative operator of Lu et al. 2023 (arXiv 2303.03982, section 4): elements (a, b, reset)."""
    (a_i, b_i, c_i), (a_j, b_j, c_j) = first, second
    return (
        (1 - c_j) * a_j * a_i + c_j * a_j,
        (1 - c_j) * (a_j * b_i + b_j) + c_j * b_j,
        c_i * (1 - c_j) + c_j,
    )


def test_packed_rows_are_resets() -> None:
    """Documents in one row are what the operator with a reset bit gives, whatever way it is bracketed."""
    package, model = build()
    mixer = model.layers[0].mixer
    lengths = [5, 1, 0, 9, 4]
    length = sum(lengths)
    borders = torch.tensor([0, *lengths]).cumsum(0)
    x = torch.randn(1, length, 48, dtype=torch.float64)
    weights = {name: value.detach() for name, value in mixer.named_parameters()}
    factor, B = discretized(weights)
    C = torch.complex(weights["C_re.weight"], weights["C_im.weight"])
    starts = set(borders[:-1].tolist()) - {length}
    elements = [(factor, B @ x[0, t].to(B.dtype), float(t in starts)) for t in range(length)]

    def reduced(items: list[tuple[Tensor, Tensor, float]]) -> tuple[Tensor, Tensor, float]:
        """The product as a balanced tree, as a parallel scan would bracket it."""
        if len(items) == 1:
            return items[0]
        half = len(items) // 2
        return reset_operator(reduced(items[:half]), reduced(items[half:]))

    wanted = []
    for t in range(length):
        state = reduced(elements[: t + 1])[1]
        wanted.append(2 * (C @ state).real + weights["D"] * x[0, t])
    torch.testing.assert_close(run(package, mixer, x, borders)[0], torch.stack(wanted))
