"""The oracles of the functions against torch's and transformers' own."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.activations import ACT2FN

from tests.oracles.functions import FUNCTIONS

REFERENCES: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "relu2": ACT2FN["relu2"],
    "quick_gelu": ACT2FN["quick_gelu"],
    "mish": F.mish,
    "hard_silu": F.hardswish,
    "leaky_relu": F.leaky_relu,
    "scaled_elu": F.selu,
    "elu1": lambda u: F.elu(u) + 1,
    "logsigmoid_decay": lambda u: F.logsigmoid(u) / 16,
}
POINTS = torch.cat(
    [torch.linspace(-30, 30, 1201), torch.tensor([-1e4, -88.1, -1e-7, 0, 1e-7, 89.0, 1e4])]
).double()
EPS = torch.finfo(torch.float64).eps


@pytest.mark.parametrize("name", REFERENCES)
def test_same_values(name: str) -> None:
    found, expected = FUNCTIONS[name]({}, POINTS), REFERENCES[name](POINTS)
    # A few roundings on either side, and of the argument of a logarithm near 1.
    assert bool(((found - expected).abs() <= 32 * EPS * (1 + expected.abs())).all())


def test_xielu_with_its_published_parameters() -> None:
    published = ACT2FN["xielu"].double()
    with torch.no_grad():
        published.alpha_p.fill_(0.3)
        published.alpha_n.fill_(-0.4)
        weights = {name: getattr(published, name).reshape(()) for name in ("alpha_p", "alpha_n")}
        found, expected = FUNCTIONS["xielu"](weights, POINTS), published._xielu_python(POINTS)
    # Its constants beta and eps lie in bfloat16: 0.5 is exact there, the small bound is not, and moves the
    # exponential of arguments that it replaces by less than its own size.
    assert bool(((found - expected).abs() <= 2e-8 + 32 * EPS * (1 + expected.abs())).all())


def test_golu_with_thirty_digits() -> None:
    with mpmath.workdps(30):
        exact = [float(mpmath.mpf(u) * mpmath.exp(-mpmath.exp(-mpmath.mpf(u)))) for u in POINTS.tolist()]
    found = FUNCTIONS["golu"]({}, POINTS).tolist()
    for u, value, expected in zip(POINTS.tolist(), found, exact, strict=True):
        # exp(-u) carries a rounding of its argument, and the outer exponential multiplies it by exp(-u).
        relative = 8 * EPS * (2 + abs(u) * math.exp(min(-u, 700)))
        assert abs(value - expected) <= min(relative, 1.0) * abs(expected) + 1e-300
