"""Logits and gradients of one model in one way, and how far float32 may take them from the truth.

The truth is the step form in float64. What float32 costs is measured where nothing but the precision differs: the
step form again. How large the largest error comes out is luck where one token is more sensitive than all others, as
a read near zero before a norm; so it is the largest of three draws, two of them with every weight moved by less than
one rounding. Another form adds the same terms in another order, so its own rounding is a draw of the same
size; over thousands of numbers the largest ones of two such measures are within a factor of four of each other. A
wrong term, decay or border is larger by orders of magnitude.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tests.laws.subjects import EVERY
from tests.laws.ways import Way, step
from tests.support.packages import in_float64, package, random_model

ANOTHER_ORDER = 4
CHUNK = 64  # tokens


@dataclass(frozen=True)
class Truth:
    """Per sequence the logits `[T, vocabulary]` in float64, and the largest error that float32 may have."""

    logits: list[Tensor]
    tolerance: float


@dataclass(frozen=True)
class Slopes:
    """Gradients by parameter in float64, and the largest error over the parameter's largest gradient."""

    gradients: dict[str, Tensor]
    tolerance: float


def sequences_of(*lengths: int, vocabulary: int = 64, seed: int = 0) -> tuple[Tensor, ...]:
    """Random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, vocabulary, (length,), generator=generator) for length in lengths)


@cache
def subject(name: str) -> tuple[ModuleType, nn.Module]:
    """The package and the float32 model of a subject."""
    return package(EVERY[name]), random_model(EVERY[name])


@cache
def exact_model(name: str) -> nn.Module:
    """The same weights in float64."""
    return in_float64(EVERY[name], subject(name)[1])


def draws(name: str) -> Iterator[nn.Module]:
    """The float32 model, and twice the same with every weight moved by less than one rounding."""
    model = subject(name)[1]
    yield model
    generator = torch.Generator().manual_seed(5)
    for _ in range(2):
        moved = copy.deepcopy(model)
        for parameter in moved.parameters():
            step_size = torch.finfo(parameter.dtype).eps * (
                2 * torch.rand(parameter.shape, generator=generator) - 1
            )
            parameter.data.mul_(1 + step_size.double())
        yield moved


@cache
def truth(name: str, *lengths: int) -> Truth:
    """The step form in float64, and what float32 costs it."""
    found = subject(name)[0]
    sequences = sequences_of(*lengths)
    with torch.no_grad():
        exact = step(found, exact_model(name), sequences)
        floor = max(distance(step(found, model, sequences), exact) for model in draws(name))
    scale = max(float(logits.abs().max()) for logits in exact if logits.numel())
    assert floor < 1e-4 * scale, "float32 is too coarse here to tell anything"
    return Truth(exact, ANOTHER_ORDER * max(floor, torch.finfo(torch.float32).eps * scale))


def distance(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest difference of any number. Shapes must agree, but for calls that looked at a part only."""
    gaps = [0.0]
    for value, expected in zip(found, exact, strict=True):
        assert value.shape[1:] == expected.shape[1:] and len(value) <= len(expected)
        if value.numel():
            assert value.isfinite().all()  # a NaN is smaller than nothing and larger than nothing
            gaps.append(float((value - expected[: len(value)]).abs().max()))
    return max(gaps)


def gradients(name: str, way: Way, model: nn.Module, lengths: Sequence[int]) -> dict[str, Tensor]:
    """Gradients of a fixed random combination of all logits, in one way."""
    logits = way(subject(name)[0], model, sequences_of(*lengths))
    generator = torch.Generator().manual_seed(3)
    total = torch.zeros(())
    for value in logits:
        total = total + (value * torch.randn(value.shape, generator=generator)).sum()
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    idle = [parameter for parameter, slope in zip(parameters, found, strict=True) if slope is None]
    if idle:  # what an auxiliary loss alone trains; what nothing trains raises here
        torch.autograd.grad(model.loss(sequences_of(9)[0][None]).aux, idle)
    return {name: slope for name, slope in zip(names, found, strict=True) if slope is not None}


@cache
def slopes(name: str, *lengths: int) -> Slopes:
    """Gradients of the step form in float64, and what float32 costs them."""
    exact = gradients(name, step, exact_model(name), lengths)
    floor = max(slope_distance(gradients(name, step, model, lengths), exact) for model in draws(name))
    assert floor < 1e-3, "float32 is too coarse here to tell anything"
    return Slopes(exact, ANOTHER_ORDER * floor)


def slope_distance(
    found: Mapping[str, Tensor], exact: Mapping[str, Tensor], decays: tuple[str, ...] = ()
) -> float:
    """The largest difference over the largest gradient of the same parameter.

    `decays`: ends of the names of parameters that feed decays. Over chunks their gradient is the difference of two
    running sums, whose rounding grows with the root of their length: it counts less by as much.
    """
    assert found.keys() == exact.keys() and all(value.isfinite().all() for value in found.values())
    gaps = []
    for name, value in exact.items():
        gap = float((found[name] - value).abs().max() / value.abs().max())
        gaps.append(gap / CHUNK**0.5 if decays and name.endswith(decays) else gap)
    return max(gaps)


def tensors_of(state: Any) -> dict[str, Tensor]:
    """Copies of everything that a state holds."""
    return {name: tensor.detach().clone() for name, tensor in state.tensors().items()}
