"""What goes wrong in silence in implicit filters: the window, the features, the layout, what low precision rounds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import archc
from tests.oracles.row import Row, spec


def fresh(d_model: int = 48, context: int = 160, **options: Any) -> Any:
    torch.manual_seed(0)
    row = Row({"bands": 2, "width": 8, **options}, d_model=d_model)
    return archc.load(spec("hyena", row, n_layers=1, context=context)).Model()


@pytest.mark.parametrize("order", [2, 3])
def test_window(order: int) -> None:
    """With every filter 1 the window is left: 1 at lag 0, at the last lag 0.01 to the powers 1 / 1.5 to 1 / 0.3."""
    model = fresh(order=order, context=50)
    tokens = torch.arange(50)[None] % 64
    with torch.no_grad():
        mixer = model.layers[0].mixer
        mixer.freq.zero_()  # sin(0), so the MLP gives its last bias: none
        zero = model(tokens, capture=["*.h"])[1]["layers.0.mixer.h"]
        assert not zero.any()
        window = model(tokens, capture=["*.window"])[1]["layers.0.mixer.window"].double()
    assert window.shape == (50, 48, order - 1)
    flat = window.flatten(1)
    torch.testing.assert_close(flat[0], torch.ones(48 * (order - 1)).double())
    assert float(flat[-1, 0]) == pytest.approx(0.01 ** (1 / 1.5), rel=1e-5)
    assert float(flat[-1, -1]) == pytest.approx(0.01 ** (1 / 0.3), rel=1e-5)
    rates = -flat[-1].log()
    torch.testing.assert_close(rates.diff(), rates.diff().mean().expand(len(rates) - 1), rtol=1e-3, atol=0)


def test_features_of_the_lag() -> None:
    model = fresh(context=40, bands=3)
    z = model(torch.zeros(1, 3, dtype=torch.long), capture=["*.z"])[1]["layers.0.mixer.z"].double()
    t = torch.arange(40).double()
    f = torch.linspace(1e-4, 2, 3, dtype=torch.float64)
    turned = torch.exp(-2j * math.pi * f * t[:, None] / 40)
    want = torch.cat([t[:, None] / 39, turned.real, turned.imag], 1)
    torch.testing.assert_close(z, want, rtol=0, atol=1e-5)


def test_filters_keep_float32() -> None:
    """In bfloat16 a lag of 2,000 tokens would have eight bits: filters are the same in a model of low precision."""
    model = fresh(context=2000)
    tokens = torch.zeros(1, 3, dtype=torch.long)
    with torch.no_grad():
        before = model(tokens, capture=["*.h"])[1]["layers.0.mixer.h"]
        model = model.bfloat16()
        after = model(tokens, capture=["*.h"])[1]["layers.0.mixer.h"]
    assert after.dtype == torch.float32 and torch.equal(before, after)
    free = {id(parameter) for parameter in model.parameter_groups(0.1)[1]["params"]}
    assert all(
        id(parameter) in free
        for name, parameter in model.layers[0].mixer.named_parameters()
        if name.startswith(("filter", "freq", "bias"))
    )


def test_context_is_the_length_of_the_filters() -> None:
    model = fresh(context=96)
    assert model.init_state(1, 96).memory["layers.0.mixer.o1"].shape == (1, 96, 48)
    assert model.init_state(1, 20).memory["layers.0.mixer.o1"].shape == (1, 20, 48)
    state = model.init_state(1, 20)
    with torch.no_grad():
        model(torch.zeros(1, 20, dtype=torch.long), state=state)
        with pytest.raises(RuntimeError, match=r"layers\.0\.mixer\.o1 holds 20 tokens"):
            model(torch.zeros(1, 1, dtype=torch.long), state=state)
