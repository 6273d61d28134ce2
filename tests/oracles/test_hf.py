"""The oracles against published implementations that hold the same random weights."""

from __future__ import annotations

import importlib

import pytest
import torch

from tests.oracles.hf_models import CASES, run

LENGTH = 37  # longer than every window and convolution, no multiple of a chunk


@pytest.mark.parametrize("name", CASES)
def test_oracle_agrees_with_the_published_layer(name: str) -> None:
    case = CASES[name]
    forward = importlib.import_module(f"tests.oracles.{case.oracle}").forward
    weights, x, theirs = run(case, LENGTH)
    exact_weights = {key: value.double() for key, value in weights.items()}
    with torch.no_grad():
        exact = forward(exact_weights, case.sizes, x.double())
        single = forward(weights, case.sizes, x)

    # Their layer runs in float32: it may err by what this one errs in float32, and by ten times that because
    # it sums in another order (chunks against tokens).
    tolerance = 10 * float((single - exact).abs().max())
    assert tolerance < 1e-4 * float(exact.abs().max()), "float32 is too coarse here to tell anything"
    assert float((theirs - exact).abs().max()) <= tolerance

    generator = torch.Generator().manual_seed(2)
    for key, value in exact_weights.items():  # a weight that went to the wrong place would be seen
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            moved = forward({**exact_weights, key: value * (1 + 0.02 * noise)}, case.sizes, x.double())
        assert float((moved - exact).abs().max()) > tolerance, key
