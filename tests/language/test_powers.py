"""Powers of numbers: what is a whole number in Python is none in an equation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.language.check import distance, linear, spec_of


@pytest.mark.parametrize("base", ["2", "0.5", "base", "(base - 1)", "(-2)"])
def test_negative_powers_of_whole_numbers(base: str) -> None:
    """torch computes 2 ** -1 in whole numbers, which gives 0."""
    spec = spec_of(
        "powers",
        {"u": "linear(x, width)", "y": f"linear(u * {base} ** (-arange(width)), d_model, name=out)"},
        {"width": 4, "base": 3},
    )
    number = {"2": 2.0, "0.5": 0.5, "base": 3.0, "(base - 1)": 2.0, "(-2)": -2.0}[base]
    exponents = torch.arange(4, dtype=torch.float64)

    def definition(mixer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        found = linear(mixer, "u", x, 4) * number**-exponents
        return found @ mixer.out.weight.T  # type: ignore[union-attr, operator]

    assert distance(spec, definition, 3) < 1e-7  # constants are float32
