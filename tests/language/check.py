"""One mixer in a small model: its result against a definition, and every way of asking against the whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.laws.ways import WAYS, alone
from tests.support.imports import imported
from tests.support.packages import in_float64, package, random_model

RAGGED = (17, 0, 1, 41, 6, 23)  # an empty one between others
# Orders of sums differ between the ways; in float64 what that costs is below this by orders of magnitude.
ROUNDING = 1e-9
# Values that masks and scores read are kept in float32: its rounding, times the terms of a score.
KEPT_IN_FLOAT32 = 64 * torch.finfo(torch.float32).eps


def spec_of(
    name: str,
    body: Mapping[str, str],
    params: Mapping[str, object] | None = None,
    *,
    n_layers: int = 1,
    model: Mapping[str, object] | None = None,
    **sections: object,
) -> dict[str, Any]:
    """A model whose every layer has a mixer with this body; `sections` are others of the mixer, such as `parts`."""
    return {
        "archc": 1,
        "name": name,
        "model": {"vocab_size": 64, "d_model": 32, "context": 96, "n_layers": n_layers, **(model or {})},
        "mixers": {"own": {"params": dict(params or {}), **sections, "body": dict(body)}},
        "blocks": {"main": {"mixer": {"use": "own"}, "mlp": {"use": "swiglu", "d_ff": 32}}},
        "layers": ["1 main"],
    }


def exact(spec: Mapping[str, Any]) -> nn.Module:
    """The model in float64 with random weights."""
    return in_float64(spec, random_model(spec))


def mixer_result(spec: Mapping[str, Any], x: Tensor) -> tuple[nn.Module, Tensor]:
    """The first layer's mixer, and what it gives for `x [B, T, D]`."""
    found = package(spec)
    mixer = exact(spec).layers[0].mixer
    place = _module(found, "place")
    with torch.no_grad():
        return mixer, mixer(x, place.Place(place.dense_layout(x)))


def _module(found: Any, name: str) -> Any:
    return imported(f"{found.__name__}.{name}")


def inputs(length: int, width: int = 32, rows: int = 1) -> Tensor:
    """Random activations in float64."""
    generator = torch.Generator().manual_seed(length)
    return torch.randn(rows, length, width, generator=generator, dtype=torch.float64)


def linear(module: nn.Module, name: str, x: Tensor, *shape: int) -> Tensor:
    """A linear map of the mixer by name, unfolded."""
    return nn.functional.linear(x, module.get_parameter(f"{name}.weight")).unflatten(-1, shape)


def worst_way(
    spec: Mapping[str, Any], lengths: Sequence[int] = RAGGED, skip: Sequence[str] = ()
) -> tuple[float, str, int]:
    """The largest difference of any way from each sequence alone, over the largest logit; and how many ways."""
    found, model = package(spec), exact(spec)
    generator = torch.Generator().manual_seed(7)
    sequences = [torch.randint(0, 64, (length,), generator=generator) for length in lengths]
    with torch.no_grad():
        whole = alone(found, model, sequences)
        scale = max(float(logits.abs().max()) for logits in whole if logits.numel())
        worst, name, count = 0.0, "", 0
        for way_name, way in WAYS.items():
            if way_name in skip:
                continue
            count += 1
            for got, expected in zip(way(found, model, sequences), whole, strict=True):
                assert got.isfinite().all(), way_name
                gap = float((got - expected[: len(got)]).abs().max()) / scale if got.numel() else 0.0
                if gap > worst:
                    worst, name = gap, way_name
    return worst, name, count


Definition = Callable[[nn.Module, Tensor], Tensor]  # (mixer, x [T, D]) -> [T, D]


def distance(spec: Mapping[str, Any], definition: Definition, length: int) -> float:
    """How far the mixer is from its definition, over the largest result."""
    x = inputs(length)
    mixer, got = mixer_result(spec, x)
    with torch.no_grad():
        expected = definition(mixer, x[0])
    return float((got[0] - expected).abs().max() / expected.abs().max())
