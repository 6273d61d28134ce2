"""What archc prints before anything runs is what is measured: parameters, bytes of states, FLOPs of matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from archc import pipeline
from tests.laws.measure import sequences_of
from tests.laws.subjects import CORE, CORNERS, EVERY, HYBRIDS, SHIPPED
from tests.support.packages import package
from tests.support.slow import mostly_slow

SPECS = {**EVERY, **{f"shipped {name}": path for name, path in SHIPPED.items()}}
STATES = [name for name in SPECS if name != "bidirectional"]


def quick(name: str) -> bool:
    """The wider library is counted in the slow suite."""
    return name in (*CORE, *CORNERS, *HYBRIDS)


@pytest.mark.parametrize("name", mostly_slow(SPECS, quick))
def test_parameters(name: str, law: Callable[..., None]) -> None:
    law(name, "parameters")
    model = package(SPECS[name]).Model(device="meta")
    measured = {key: tuple(value.shape) for key, value in model.named_parameters()}
    assert pipeline.parameters(SPECS[name]) == measured
    cost = pipeline.cost(SPECS[name])
    assert cost.parameters == sum(value.numel() for value in model.parameters())
    assert cost.parameter_bytes == 2 * cost.parameters


@pytest.mark.parametrize("name", mostly_slow(STATES, quick))
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


class EntryMatrices(TorchFunctionMode):
    """Counts the FLOPs of sums of products with a parameter: what `linear(per=...)` and `linear(blocks=...)` run as."""

    flops = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.einsum and isinstance(args[-1], nn.Parameter):
            inputs, result = args[0].split("->")
            letters = zip(inputs.split(",")[1], args[-1].shape, strict=True)
            summed = [size for letter, size in letters if letter not in result]
            self.flops += 2 * found.numel() * math.prod(summed)
        return found


@pytest.mark.parametrize("name", mostly_slow(SPECS, quick))
def test_flops_of_matrices(name: str, law: Callable[..., None]) -> None:
    """The linear layers and the head: torch's count of `mm` and `addmm`, and of matrices for the entries of an axis."""
    law(name, "FLOPs of matrices")
    model = package(SPECS[name]).Model()
    (tokens,) = sequences_of(24)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, EntryMatrices() as matrices:
        model(tokens[None])
    counts = counter.get_flop_counts()["Global"]
    measured = sum(value for op, value in counts.items() if op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    measured += matrices.flops
    cost = pipeline.cost(SPECS[name])
    assert measured == 24 * cost.matrix_flops_per_token + cost.matrix_flops_per_call
