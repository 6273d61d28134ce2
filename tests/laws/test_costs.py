"""What archc prints before anything runs is what is measured: parameters, bytes of states, FLOPs of matrices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from archc import pipeline
from tests.laws.measure import sequences_of
from tests.laws.subjects import EVERY, SHIPPED
from tests.support.packages import package

SPECS = {**EVERY, **{f"shipped {name}": path for name, path in SHIPPED.items()}}
STATES = [name for name in SPECS if name != "bidirectional"]


@pytest.mark.parametrize("name", SPECS)
def test_parameters(name: str, law: Callable[..., None]) -> None:
    law(name, "parameters")
    model = package(SPECS[name]).Model(device="meta")
    measured = {key: tuple(value.shape) for key, value in model.named_parameters()}
    assert pipeline.parameters(SPECS[name]) == measured
    cost = pipeline.cost(SPECS[name])
    assert cost.parameters == sum(value.numel() for value in model.parameters())
    assert cost.parameter_bytes == 2 * cost.parameters


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize(("rows", "length"), [(1, 128), (3, 50)])
def test_bytes_of_states(name: str, rows: int, length: int, law: Callable[..., None]) -> None:
    """A state of a bfloat16 model, by tensors that grow with the length, rings, and the rest."""
    law(name, "bytes of states")
    model = package(SPECS[name]).Model(dtype=torch.bfloat16, device="meta")
    cost = pipeline.cost(SPECS[name], batch_size=rows, tokens=length)
    state = model.init_state(rows, length)
    total = sum(value.numel() * value.element_size() for key, value in state.memory.items())
    grown = sum(
        value.numel() * value.element_size() for value in model.init_state(rows, length + 1).memory.values()
    )
    assert grown - total == rows * cost.cache_bytes_per_token
    assert cost.cache_bytes == rows * length * cost.cache_bytes_per_token
    assert total == cost.cache_bytes + cost.window_bytes + cost.state_bytes


@pytest.mark.parametrize("name", SPECS)
def test_flops_of_matrices(name: str, law: Callable[..., None]) -> None:
    """What torch counts in `mm` and `addmm`: the linear layers and the head, whose count is exact."""
    law(name, "FLOPs of matrices")
    model = package(SPECS[name]).Model()
    (tokens,) = sequences_of(24)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(tokens[None])
    counts = counter.get_flop_counts()["Global"]
    measured = sum(value for op, value in counts.items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    cost = pipeline.cost(SPECS[name])
    assert measured == 24 * cost.matrix_flops_per_token + cost.matrix_flops_per_call
