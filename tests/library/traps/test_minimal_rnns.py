"""minGRU and minLSTM: the same as the published forms in log space, positive states, gates that add up to 1."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import archc
from tests.library.conftest import randomise
from tests.oracles.row import Row, spec


def seen(mixer: str, scale: float, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = archc.load(spec(mixer, Row(options), n_layers=1)).Model()
    randomise(model, scale)
    with torch.no_grad():
        _, found = model(torch.randint(64, (2, 30)), capture=["layers.0.mixer.*"])
    return {name.removeprefix("layers.0.mixer."): value.double() for name, value in found.items()}


def in_log_space(log_kept: Tensor, log_written: Tensor, log_start: float | None) -> Tensor:
    """log h = a* + logcumsumexp(log b - a*) with a* the sums of log_kept (appendix B of the paper)."""
    a = log_kept.cumsum(1)
    terms = log_written - a
    if log_start is not None:
        terms = torch.cat([torch.full_like(terms[:, :1], log_start), terms], 1)
    total = terms.logcumsumexp(1)
    return torch.exp(a + (total if log_start is None else total[:, 1:]))


def log_positive(u: Tensor) -> Tensor:
    """log g(u), as published."""
    return torch.where(u >= 0, (F.relu(u) + 0.5).log(), -F.softplus(-u))


@pytest.mark.parametrize("scale", [1.0, 8.0])
@pytest.mark.parametrize("start", [0, 0.5])
def test_minimal_gru_is_its_form_in_log_space(scale: float, start: float) -> None:
    found = seen("mingru", scale, start=start, expand=2)
    k = found["k"]
    log_start = None if start == 0 else float(log_positive(torch.zeros(1)))
    want = in_log_space(-F.softplus(k), -F.softplus(-k) + log_positive(found["candidate"]), log_start)
    torch.testing.assert_close(found["h"], want, rtol=1e-5, atol=1e-7)
    assert bool((found["h"] > 0).all())


@pytest.mark.parametrize("scale", [1.0, 8.0])
@pytest.mark.parametrize("start", [0, 0.5])
def test_minimal_lstm_is_its_form_in_log_space(scale: float, start: float) -> None:
    found = seen("minlstm", scale, start=start, expand=2)
    odds = F.softplus(-found["forget"]) - F.softplus(-found["write"])
    log_start = None if start == 0 else float(log_positive(torch.zeros(1)))
    want = in_log_space(-F.softplus(odds), -F.softplus(-odds) + log_positive(found["candidate"]), log_start)
    torch.testing.assert_close(found["h"], want, rtol=1e-4, atol=1e-7)
    assert bool((found["h"] > 0).all())


@pytest.mark.parametrize("mixer", ["mingru", "minlstm"])
def test_a_matrix_follows_where_the_width_differs(mixer: str) -> None:
    """As in the published code, which can be told otherwise."""
    for options, has in (({}, False), ({"expand": 2}, True), ({"output": True}, True)):
        model = archc.load(spec(mixer, Row(options))).Model()
        assert any(name.endswith("mixer.y.weight") for name, _ in model.named_parameters()) == has
