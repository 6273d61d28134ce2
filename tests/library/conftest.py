"""Builds a model with random weights and records what enters and leaves its layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import archc

SPECS = Path(__file__).resolve().parents[2] / "specs"


@dataclass(frozen=True)
class Seen:
    """One module in one call: its weights by their names in it, what entered and left: `[B, T, d_model]`."""

    weights: dict[str, Tensor]
    x: Tensor
    y: Tensor


def randomise(model: nn.Module, scale: float = 1.0) -> None:
    """Give each parameter random values: none may stay where it has no effect, such as 0 or 1."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2 and name.endswith(".weight") and "_conv." not in name:
                parameter.copy_(noise * scale * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.3 * scale * noise)


def captured(model: nn.Module, length: int, *names: str) -> list[Tensor]:
    """Values of equations of the first mixer for random tokens of one sequence: `[T, ...]`, or those of the model."""
    tokens = torch.randint(64, (1, length), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        _, found = model(tokens, capture=[f"layers.0.mixer.{name}" for name in names])
    values = [found[f"layers.0.mixer.{name}"] for name in names]
    return [value[0] if value.shape[:2] == (1, length) else value for value in values]


def observe(model: nn.Module, paths: list[str], length: int) -> dict[str, Seen]:
    """Run random tokens through the model and record the modules at `paths`."""
    found: dict[str, Seen] = {}

    def hook(path: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
            tensors = (*module.named_parameters(), *module.named_buffers())
            weights = {name: value.detach() for name, value in tensors}
            found[path] = Seen(weights, args[0], result[0] if isinstance(result, tuple) else result)

        return keep

    handles = [model.get_submodule(path).register_forward_hook(hook(path)) for path in paths]
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        model(torch.randint(0, 64, (2, length), generator=generator))
    for handle in handles:
        handle.remove()
    assert set(found) == set(paths)
    return found


@cache
def _small(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = archc.load(SPECS / "models" / f"{name}_small.yaml").Model()
    randomise(model)
    return model


@pytest.fixture
def small() -> Callable[[str], nn.Module]:
    """The small model of a mixer with random weights."""
    return _small


@pytest.fixture
def with_parts() -> Callable[..., nn.Module]:
    """A model of one layer with a given mixer and MLP, and random weights; `random=False`: as they start."""

    def build(
        mixer: Mapping[str, Any], mlp: Mapping[str, Any], *, random: bool = True, n_layers: int = 1
    ) -> nn.Module:
        sizes = {"vocab_size": 64, "d_model": 48, "n_layers": n_layers, "context": 128, "norm": "rmsnorm"}
        spec = {"archc": 1, "name": "probe", "model": sizes, "layers": ["1 main"],
                "blocks": {"main": {"mixer": dict(mixer), "mlp": dict(mlp)}}}  # fmt: skip
        torch.manual_seed(0)
        model: nn.Module = archc.load(spec).Model()
        if random:
            randomise(model)
        return model

    return build
