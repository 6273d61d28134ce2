"""Mamba's traps: Euler for B and exact for A, a scale of 1, where everything starts, what does not decay."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from tests.library.conftest import captured

PARTS = Callable[..., nn.Module]
MLP = {"use": "swiglu", "d_ff": 48}


def test_two_tokens_by_hand(with_parts: PARTS) -> None:
    """Token 0 writes dt B x, not the integral of exp(A s) over dt; token 1 keeps exp(dt A); C reads without a scale."""
    model = with_parts({"use": "mamba", "d_state": 4}, MLP)
    q, k, v, dt, A, o = captured(model, 2, "q0", "k0", "v", "dt", "A", "o")
    first = dt[0, :, None] * v[0, :, None] * k[0]
    torch.testing.assert_close(o[0], (first * q[0]).sum(-1))
    second = torch.exp(dt[1, :, None] * A) * first + dt[1, :, None] * v[1, :, None] * k[1]
    torch.testing.assert_close(o[1], (second * q[1]).sum(-1))


def test_published_start(with_parts: PARTS) -> None:
    mixer = with_parts({"use": "mamba"}, MLP, random=False).get_submodule("layers.0.mixer")
    weights = {name: value.detach() for name, value in mixer.named_parameters()}
    d_inner, dt_rank, n_layers = 96, 3, 1
    start = torch.log(torch.arange(1.0, 17)).expand(d_inner, 16)
    # A vector unit may round a logarithm otherwise than what it leaves over to single steps.
    torch.testing.assert_close(weights["A_log"], start, rtol=torch.finfo(torch.float32).eps, atol=0)
    assert torch.equal(weights["D"], torch.ones(d_inner))
    steps = F.softplus(weights["dt_bias"])
    assert 0.001 * (1 - 1e-4) <= float(steps.min()) < 0.002 and 0.05 < float(steps.max()) <= 0.1 * (1 + 1e-4)
    bounds = {
        "in_proj.weight": 48**-0.5,
        "v_conv.weight": 0.5,
        "v_conv.bias": 0.5,
        "x_proj.weight": d_inner**-0.5,
        "dt.weight": dt_rank**-0.5,
        "y.weight": (d_inner * n_layers) ** -0.5,
    }
    for name, bound in bounds.items():
        assert 0.9 * bound < float(weights[name].abs().max()) <= bound, name
    assert set(weights) == {*bounds, "A_log", "D", "dt_bias"}


def test_what_weight_decay_leaves_alone(with_parts: PARTS) -> None:
    model = with_parts({"use": "mamba"}, MLP)
    decayed, plain = model.parameter_groups(weight_decay=0.1)  # type: ignore[operator]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    left = {names[id(parameter)].removeprefix("layers.0.mixer.") for parameter in plain["params"]}
    assert decayed["weight_decay"] == 0.1 and plain["weight_decay"] == 0
    assert {"A_log", "D", "dt_bias", "v_conv.bias"} <= left


def test_a_step_is_not_rounded(with_parts: PARTS) -> None:
    """What makes up dt A stays float32 in a bfloat16 model, the bias of dt included."""
    model = with_parts({"use": "mamba"}, MLP).to(torch.bfloat16)
    wide = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    assert wide == {"layers.0.mixer.A_log", "layers.0.mixer.dt_bias"}
