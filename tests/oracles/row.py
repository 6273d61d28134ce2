"""One way of using a mixer of the library in tests: the options of its `use:`, and what its oracle is told."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

HERE = Path(__file__).resolve().parent
MIXERS = HERE.parents[1] / "specs" / "mixers"

Forward = Callable[[Mapping[str, Tensor], Mapping[str, Any], Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """A mixer with options, in every layer of a model of width `d_model`.

    `options`: beside `use:`. `sizes`: handed to the oracle, with norm_eps, d_model, context, layer and n_layers
    beside them, `first`, the weights and the input of layer 0, and `model`, the weights of the model itself.
    `layers`: those that are compared. `scale`: random weights are this many times as large. `exceptions`: laws that
    cannot hold, with the reason.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[int, ...] = (0, 1)
    d_model: int = 48
    scale: float = 1.0
    exceptions: Mapping[str, str] = field(default_factory=dict)


@cache
def rows() -> dict[str, dict[str, Row]]:
    """The rows of each mixer: `tests/oracles/<mixer>.py` holds `ROWS` and `forward`; the first row has the laws."""
    names = sorted(path.stem for path in MIXERS.glob("*.yaml"))
    return {name: oracle(name).ROWS for name in names if (HERE / f"{name}.py").exists()}


def oracle(mixer: str) -> Any:
    """The module with the rows and the token loop of a mixer."""
    return importlib.import_module(f"tests.oracles.{mixer}")


def spec(mixer: str, row: Row, n_layers: int = 2, context: int = 160) -> dict[str, Any]:
    """A model whose every layer has this mixer."""
    return {
        "archc": 1,
        "name": mixer,
        "model": {
            "vocab_size": 64,
            "d_model": row.d_model,
            "n_layers": n_layers,
            "context": context,
            "norm": "rmsnorm",
        },
        "blocks": {"main": {"mixer": {"use": mixer, **row.options}, "mlp": {"use": "swiglu", "d_ff": 64}}},
        "layers": ["1 main"],
    }


def reference(mixer: str, weights: Mapping[str, Tensor], sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """What the oracle of a mixer makes of `x [B, T, d_model]`, in the precision of `x`."""

    def as_x(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: value.to(x.dtype) if value.is_floating_point() else value for name, value in values.items()
        }

    if "first" in sizes:
        first_weights, first_x = sizes["first"]
        sizes = {**sizes, "first": (as_x(first_weights), first_x.to(x.dtype))}
    if "model" in sizes:
        sizes = {**sizes, "model": as_x(sizes["model"])}
    forward: Forward = oracle(mixer).forward
    return forward(as_x(weights), sizes, x)
