"""contract: products summed over an axis; orthogonal_normal: rows that are orthogonal in blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from archc.pipeline import check
from tests.language.check import ROUNDING, distance, linear, spec_of, worst_way
from tests.support import packages

PARAMS = {"n_heads": 2, "head_dim": 8, "n_features": 20}
PROJECTED = spec_of(
    "projected",
    {
        "u": "linear(x, [n_heads, head_dim])",
        "w": "linear(x, [n_heads, head_dim])",
        "far": "contract(u, buffer(omega, [n_features, head_dim], init=orthogonal_normal), over=head_dim)",
        "both": "contract(u, w, over=head_dim)",
        "mixed": "contract(param(blend, [n_heads, head_dim], init=normal(0, 1)), u, over=n_heads)",
        "y": "linear(far, d_model) + linear(both, d_model, name=two) + linear(mixed, d_model, name=three)",
    },
    PARAMS,
)


def by_hand(mixer: nn.Module, x: Tensor) -> Tensor:
    """Each contraction as sums of products."""
    u, w = linear(mixer, "u", x, 2, 8), linear(mixer, "w", x, 2, 8)
    far = (u[:, :, None, :] * mixer.omega).sum(-1).flatten(1)
    mixed = (mixer.blend[None] * u).sum(1)
    pieces = ((mixer.y, far), (mixer.two, (u * w).sum(-1)), (mixer.three, mixed))
    return sum(piece @ layer.weight.T for layer, piece in pieces)  # type: ignore[return-value, union-attr, operator]


def test_values_and_every_way() -> None:
    assert distance(PROJECTED, by_hand, 9) < ROUNDING
    worst, way, _ = worst_way(PROJECTED)
    assert worst < ROUNDING, way


def test_two_dtypes(package: Any) -> None:
    a, b = torch.randn(2, 3, 4), torch.randn(5, 4, dtype=torch.bfloat16)
    found = package.axes_ops.contract("...a,ba->...b", a, b)
    torch.testing.assert_close(found, a @ b.float().T)


def test_places_through_a_matrix_in_half_precision() -> None:
    """A contraction of float32 places is float32, and ends where it meets activations."""
    spec = spec_of(
        "places",
        {
            "angle": "position() * exp(-arange(head_dim))",
            "far": "contract(sin(angle), param(omega, [n_features, head_dim], init=normal(0, 1)), over=head_dim)",
            "y": "linear(far * linear(x, n_features, name=u), d_model) + linear(far, d_model, name=second)",
        },
        PARAMS,
    )

    def definition(mixer: nn.Module, x: Tensor) -> Tensor:
        far = (torch.arange(len(x))[:, None] * torch.exp(-torch.arange(8))).sin().double() @ mixer.omega.T
        return (far * linear(mixer, "u", x, 20)) @ mixer.y.weight.T + far @ mixer.second.weight.T

    assert distance(spec, definition, 20) < 1e-6  # angles are float32 in a float64 model too
    half = packages.random_model(spec).bfloat16()
    assert half(torch.randint(64, (2, 9))).dtype == torch.bfloat16


def test_gradients(package: Any) -> None:
    a = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: package.axes_ops.contract("...a,ba->...b", a, b), (a, b))


@pytest.mark.parametrize("rows", [3, 8, 20])
def test_orthogonal_rows(package: Any, rows: int) -> None:
    """Orthogonal within blocks of eight; lengths as of normal rows, whose squares are 8 on average."""
    found = package.initial.orthogonal_normal(torch.empty(500, rows, 8, dtype=torch.float64))
    assert found.shape == (500, rows, 8)
    for start in range(0, rows, 8):
        block = found[:, start : start + 8]
        products = block @ block.transpose(1, 2)
        off = products - torch.diag_embed(products.diagonal(dim1=1, dim2=2))
        assert float(off.abs().max()) < 1e-4
    squares = found.square().sum(-1)
    assert abs(float(squares.mean()) - 8) < 5 * 4 / (500 * rows) ** 0.5
    assert abs(float(found.mean())) < 5 / (500 * rows * 8) ** 0.5


def test_buffers_are_drawn_once() -> None:
    torch.manual_seed(0)
    model = package_model()
    omega = model.get_buffer("layers.0.mixer.omega")
    assert omega.shape == (20, 8) and float(omega.std()) > 0.5
    assert not any(name.endswith("omega") for name, _ in model.named_parameters())


def package_model() -> nn.Module:
    """The model as it starts."""
    found: nn.Module = packages.package(PROJECTED).Model()
    return found


@pytest.mark.parametrize("call", ["contract(x, u, over=head_dim)", "contract(u, x, over=head_dim)"])
def test_axes_must_be_shared(call: str) -> None:
    spec = spec_of(
        "wrong", {"u": "linear(x, [n_heads, head_dim])", "y": f"linear({call}, d_model, name=o)"}, PARAMS
    )
    assert {one.code for one in check(spec)} == {"E353"}
