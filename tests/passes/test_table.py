"""The table of elementwise functions: declared bounds hold, values and derivatives are right at extremes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from archc.graph.functions import FUNCTIONS, infer
from archc.graph.types import ValueType
from tests.passes.reading import apply

ENDS = (-math.inf, -1e4, -30.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 30.0, 1e4, math.inf)
EPS = torch.finfo(torch.float32).eps
LARGEST = torch.finfo(torch.float32).max


def points(low: float, high: float, generator: torch.Generator) -> Tensor:
    """Numbers between the bounds, the bounds among them where they are finite."""
    near, far = max(low, -2e4), min(high, 2e4)
    inside = near + (far - near) * torch.rand(40, generator=generator, dtype=torch.float64)
    small = torch.randn(40, generator=generator, dtype=torch.float64) * 3
    return torch.cat([inside, small.clamp(near, far), torch.tensor([near, far], dtype=torch.float64)])


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=15)
@given(data=st.data())
def test_bounds_hold(name: str, data: st.DataObject) -> None:
    function = FUNCTIONS[name]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    types, operands = [], []
    for _ in range(data.draw(st.integers(function.least, function.most))):
        low, high = sorted(data.draw(st.tuples(st.sampled_from(ENDS[:-1]), st.sampled_from(ENDS[1:]))))
        if low == math.inf or high == -math.inf:
            low, high = -math.inf, math.inf
        types.append(ValueType((), "token", low, high))
        value = points(low, high, generator)
        operands.append(value[torch.randperm(len(value), generator=generator)])
    if name == "where" or name.startswith("logical"):
        operands = [o > 0 if index == 0 or name != "where" else o for index, o in enumerate(operands)]
    found = infer(name, types)
    assert found.low <= found.high
    value = apply(name, *operands).double()
    value = value[~value.isnan()]  # outside of the function's domain there is no bound
    slack = (1e-12 * value.abs()).nan_to_num(posinf=0)
    assert bool((value >= found.low - slack).all()), f"{value.min()} below {found.low} for {types}"
    assert bool((value <= found.high + slack).all()), f"{value.max()} above {found.high} for {types}"


SIZES = [1e-30, 1e-7, 1e-3, 0.3, 1.0, 5.0, 20.0, 88.0, 89.0, 104.0, 710.0, 1e4]
GRID = torch.tensor([-s for s in SIZES] + [0.0] + SIZES, dtype=torch.float64)
SMOOTH = sorted(
    name
    for name in FUNCTIONS
    if not FUNCTIONS[name].boolean and name not in ("where", "floordiv", "mod", "detach")
)


def slopes(name: str, operands: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The value and the derivative for each operand."""
    leaves = [operand.clone().requires_grad_() for operand in operands]
    value = apply(name, *leaves)
    found = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
    return value.detach(), [torch.zeros_like(o) if g is None else g for g, o in zip(found, operands)]


@pytest.mark.parametrize("name", SMOOTH)
def test_value_and_derivative_at_extremes(name: str) -> None:
    """Wherever float64 has a value and a derivative that float32 can hold, float32 has them too."""
    count = FUNCTIONS[name].least
    if count == 1:
        operands = [GRID]
    else:
        left, right = torch.meshgrid(GRID, GRID, indexing="ij")
        operands = [left.flatten(), right.flatten(), torch.full((left.numel(),), 7.0, dtype=torch.float64)][
            :count
        ]
    operands = [operand.float().double() for operand in operands]  # the same numbers in both
    value, exact = slopes(name, operands)
    found, gradients = slopes(name, [operand.float() for operand in operands])
    fits = value.abs().le(LARGEST / 2) & torch.stack([g.abs().le(LARGEST / 2) for g in exact]).all(0)
    fits &= torch.stack([g.isfinite() for g in exact]).all(0) & value.isfinite()
    assert int(fits.sum()) >= len(GRID) // 3
    assert bool(torch.isfinite(found[fits]).all())
    moved = sum((o.abs() * g.abs() for o, g in zip(operands, exact)), torch.zeros_like(value))
    allowed = EPS * (32 * value.abs() + 8 * moved + 8) + 1e-37
    assert bool((found.double() - value).abs()[fits].le(allowed[fits]).all())
    for gradient in gradients:
        assert bool(torch.isfinite(gradient[fits]).all()), operands[0][fits][~torch.isfinite(gradient[fits])]


def test_a_detached_value_has_no_derivative() -> None:
    u = GRID.clone().requires_grad_()
    value = apply("detach", u)
    assert torch.equal(value, GRID) and not value.requires_grad
