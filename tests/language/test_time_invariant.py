"""long_conv and diagonal_ssm in equations: axes in any order, shared kernels, values of the model, float64, costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import archc
from archc import pipeline
from tests.language.check import ROUNDING, distance, linear, spec_of, worst_way

HEADS = {"n_heads": {"type": "int", "default": 4}, "lags": {"type": "int", "default": 20}}
SIZES = {"head_dim": "d_model / n_heads"}


def convolved(x: Tensor, kernel: Tensor) -> Tensor:
    """`x [T, ...]`, `kernel [L, ...]`."""
    y = torch.zeros_like(x)
    for lag in range(min(len(kernel), len(x))):
        y[lag:] += kernel[lag] * x[: len(x) - lag]
    return y


# Equations of the kernel, and where its axes stand: `[lags, n_heads, head_dim]` or 1.
KERNELS: dict[str, tuple[str, Any]] = {
    "of each channel": (
        "param(k, [n_heads, head_dim, lags], init=normal(0, 1))",
        lambda k: k.permute(2, 0, 1),
    ),
    "lag first": ("param(k, [lags, n_heads, head_dim], init=normal(0, 1))", lambda k: k),
    "in another order": (
        "param(k, [head_dim, lags, n_heads], init=normal(0, 1))",
        lambda k: k.permute(1, 2, 0),
    ),
    "of a head": ("param(k, [n_heads, lags], init=normal(0, 1))", lambda k: k.t()[..., None]),
    "of the last axis": ("param(k, [lags, head_dim], init=normal(0, 1))", lambda k: k[:, None]),
    "of all": ("param(k, [lags], init=normal(0, 1))", lambda k: k[:, None, None]),
}


@pytest.mark.parametrize("name", KERNELS)
def test_axes_of_a_kernel(name: str) -> None:
    text, arranged = KERNELS[name]
    body = {
        "v": "linear(x, [n_heads, head_dim])",
        "o": f"long_conv(v, {text})",
        "y": "linear(o, d_model)",
    }
    spec = spec_of("kernels", body, HEADS, sizes=SIZES)

    def definition(mixer: nn.Module, x: Tensor) -> Tensor:
        v = linear(mixer, "v", x, 4, 8)
        return linear(mixer, "y", convolved(v, arranged(mixer.get_parameter("k"))).flatten(1), -1)

    assert distance(spec, definition, 33) < ROUNDING
    assert worst_way(spec)[0] < ROUNDING


def test_state_spaces_of_a_head_and_of_the_last_axis() -> None:
    body = {
        "v": "linear(x, [n_heads, head_dim])",
        "a": "-exp(param(A_log, [n_heads, lags], init=log(uniform(0.01, 1))))",
        "theta": "param(turn, [lags, head_dim], init=uniform(0, 3))",
        "o": "diagonal_ssm(v, decay=a, angle=theta, read=param(C, [lags], init=normal(0, 1)))",
        "y": "linear(o, d_model)",
    }
    spec = spec_of("state_spaces", body, HEADS, sizes=SIZES)

    def definition(mixer: nn.Module, x: Tensor) -> Tensor:
        v = linear(mixer, "v", x, 4, 8)
        real = -mixer.get_parameter("A_log").exp()[:, None, :].expand(4, 8, -1)
        imaginary = mixer.get_parameter("turn").t()[None].expand(4, 8, -1)
        powers = torch.exp(torch.arange(len(x))[:, None, None, None] * torch.complex(real, imaginary))
        kernel = (mixer.get_parameter("C") * powers.real).sum(-1)
        return linear(mixer, "y", convolved(v, kernel).flatten(1), -1)

    assert distance(spec, definition, 70) < ROUNDING
    assert worst_way(spec)[0] < ROUNDING


FILTER = {
    "t": "arange(lags) / lags",
    "h": "sin(linear(outer(t, arange(6)), 16, over=6, bias=true))",
    "k": "linear(h, d_model, over=16)",
    "o": "long_conv(x, k)",
    "y": "linear(o, d_model)",
}


def test_matrices_over_values_of_the_model() -> None:
    """They cost once a call, keep float32, and take constants in the dtype of their weights."""
    spec = spec_of("filters", FILTER, HEADS, model={"context": 64})
    cost = pipeline.cost(spec)
    assert cost.matrix_flops_per_call == 2 * 20 * 16 * (6 + 32)
    model = archc.load(spec).Model()
    tokens = torch.arange(9)[None]
    for dtype, kept in ((torch.float32, torch.float32), (torch.bfloat16, torch.float32)):
        _, seen = model.to(dtype)(tokens, capture=["*.k"])
        assert seen["layers.0.mixer.k"].dtype == kept
    _, seen = archc.load(spec).Model().double()(tokens, capture=["*.k", "*.o"])
    assert {value.dtype for value in seen.values()} == {torch.float64}


def test_decoding_costs_what_it_remembers() -> None:
    """Two FLOPs an entry of the history, no more of it than there are lags; a state space costs the same anywhere."""
    spec = spec_of("filters", FILTER, HEADS, model={"context": 64})
    steps = [pipeline.cost(spec, tokens=tokens).decode_flops for tokens in (10, 11, 20, 50)]
    assert steps[1] - steps[0] == 2 * 32 and steps[2] == steps[3]


@pytest.mark.parametrize("operation", ["attention", "long_conv"])
def test_a_window_that_a_state_cannot_hold(operation: str) -> None:
    """A ring shorter than its window does not turn: it would forget tokens that the window sees."""
    own = {
        "attention": "attention(linear(x, 16, name=q), linear(x, 16, name=k), x, mask=i - j < lags)",
        "long_conv": "long_conv(x, param(k, [d_model, lags], init=normal(0, 1)))",
    }
    spec = spec_of("window", {"o": own[operation], "y": "linear(o, d_model)"}, HEADS)
    model, tokens = archc.load(spec).Model().eval(), torch.arange(30)[None]
    with torch.no_grad():
        whole = model(tokens)
        state = model.init_state(1, 20)
        pieces = torch.cat([model(piece, state=state) for piece in tokens.split(7, 1)], 1)
        torch.testing.assert_close(pieces, whole)
        state = model.init_state(1, 19)
        model(tokens[:, :19], state=state)
        with pytest.raises(RuntimeError, match=r"layers\.0\.mixer\.\w+ holds 19 tokens"):
            model(tokens[:, 19:20], state=state)
