"""Rewrites keep the value, and make value and derivative right where the plain expression breaks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from archc.graph.types import Ref, Subgraph
from archc.pipeline import graph_of
from tests.passes.reading import evaluate

SIZES = torch.tensor(
    [0.0, 1e-30, 1e-8, 1e-4, 0.1, 1.0, 5.0, 20.0, 87.0, 89.0, 104.0, 711.0, 1e4], dtype=torch.float64
)
POINTS = torch.cat([-SIZES.flip(0), SIZES[1:]])
EPS = torch.finfo(torch.float32).eps
LARGEST = torch.finfo(torch.float32).max


def gompertz(u: Tensor) -> Tensor:
    """exp(-exp(-u)); below -7 it is under 1e-300 and its derivative with it."""
    inner = torch.exp(-u.clamp(min=-6.5))
    return torch.where(u > -6.5, torch.exp(-inner), torch.zeros_like(u))


# What a spec says -> the same function in float64, written so that it does not break.
REWRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "1 - exp(x)": lambda u: -torch.expm1(u),
    "exp(x) - 1": torch.expm1,
    "log(1 + exp(x))": lambda u: torch.logaddexp(u, torch.zeros_like(u)),
    "log(exp(x) + 1)": lambda u: torch.logaddexp(u, torch.zeros_like(u)),
    "log(1 + x * x)": lambda u: torch.log1p(u * u),
    "log(sigmoid(x))": lambda u: -torch.logaddexp(-u, torch.zeros_like(u)),
    "exp(-exp(x))": lambda u: gompertz(-u),
    "exp(-exp(-x))": gompertz,
    "x * exp(-exp(-x))": lambda u: u * gompertz(u),
    "golu(x)": lambda u: u * gompertz(u),
    "-exp(-exp(x)) * 1 + 0": lambda u: -gompertz(-u),
    "1 - exp(-softplus(x))": lambda u: torch.sigmoid(u),
}


@cache
def subgraph(text: str, after: str | None = None) -> tuple[Subgraph, Ref]:
    """The body `h: text`, after all passes or one of them."""
    mixer = {"body": {"h": text, "y": "linear(h, d_model)"}}
    spec = {
        "archc": 1,
        "name": "rewrite",
        "model": {"vocab_size": 32, "d_model": 8, "n_layers": 1, "context": 32},
        "mixers": {"mine": mixer},
        "blocks": {"main": {"mixer": {"use": "mine"}}},
    }
    graph = next(m.subgraph for m in graph_of(spec, after).modules.values() if m.body.name == "mine")
    return graph, graph.equations["h"]


def slopes(function: Callable[[Tensor], Tensor], u: Tensor) -> tuple[Tensor, Tensor]:
    """The value and the derivative at each point."""
    u = u.clone().requires_grad_()
    value = function(u)
    (slope,) = torch.autograd.grad(value.sum(), u)
    return value.detach(), slope


@pytest.mark.parametrize("text", REWRITES)
def test_value_and_derivative_at_extremes(text: str) -> None:
    graph, place = subgraph(text)
    value, slope = slopes(REWRITES[text], POINTS)
    found, gradient = slopes(lambda u: evaluate(graph, u, place), POINTS.float())
    fits = value.abs().le(LARGEST / 2) & slope.abs().le(LARGEST / 2)
    assert int(fits.sum()) >= len(POINTS) - 4  # exp itself leaves float32 at three of the points
    assert bool(torch.isfinite(found[fits]).all()), found
    assert bool(torch.isfinite(gradient[fits]).all()), gradient
    # A few roundings of the result, and those of the argument of an exponential, of which |u| are amplified.
    allowed = EPS * (16 * value.abs() + 4 * POINTS.abs() * slope.abs()) + 1e-37
    assert bool((found.double() - value).abs()[fits].le(allowed[fits]).all())
    # The derivative of expm1 is its value plus 1 in torch, rounded at the size of 1 where the value is about -1.
    curve = (4 * POINTS.abs() + 32) * slope.abs() + 0.5
    assert bool((gradient.double() - slope).abs()[fits].le((EPS * curve + 1e-37)[fits]).all())


@pytest.mark.parametrize("text", ["1 - exp(x)", "log(1 + exp(x))", "log(sigmoid(x))", "x * exp(-exp(-x))"])
def test_the_plain_expression_breaks(text: str) -> None:
    """What the rewrites are for: without them these are wrong at some point, in value or derivative."""
    graph, place = subgraph(text, "build")
    value, _ = slopes(REWRITES[text], POINTS)
    found, gradient = slopes(lambda u: evaluate(graph, u, place), POINTS.float())
    wrong = (found.double() - value).abs() > 1e-5 * value.abs() + 1e-37
    assert bool(wrong.any()) or not bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("text", REWRITES)
def test_each_rewrite_keeps_the_value_in_float64(text: str) -> None:
    points = torch.linspace(-3, 3, 61, dtype=torch.float64)
    plain, place = subgraph(text, "build")
    rewritten, moved = subgraph(text)
    before, after = evaluate(plain, points, place), evaluate(rewritten, points, moved)
    assert torch.allclose(before, after, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("text", REWRITES)
def test_bounds_hold_after_the_rewrites(text: str) -> None:
    graph, _ = subgraph(text)
    for node in graph.nodes:
        if node.op == "elementwise" and all(ref.node < node.id for ref in node.inputs):
            value = evaluate(graph, POINTS, Ref(node.id))
            value = value[~value.isnan()]
            assert bool((value >= node.type.low).all() and (value <= node.type.high).all()), node


def test_softplus_is_the_function_of_torch() -> None:
    graph, place = subgraph("log(1 + exp(x))")
    assert torch.equal(evaluate(graph, POINTS.float(), place), F.softplus(POINTS.float()))
