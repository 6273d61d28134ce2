"""Rotary positions: angles in float32 from the tokens' places, shared by all layers of a call."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .place import Place


def rope(
    x: Tensor,
    place: Place,
    theta: float,
    fraction: float = 1.0,
    layout: str = "half",
    scaling: Mapping[str, Any] | None = None,
) -> Tensor:
    """`x [B, T, ..., K]` with its first `fraction * K` channels turned by the token's place. Su et al. 2021.

    `layout`: "half" pairs channel j with j + dims / 2, "interleaved" pairs neighbours. `scaling`: see
    `frequencies`. The tables are computed once a call for each set of arguments.
    """
    name = "rope", x.dim(), x.shape[-1], fraction, theta, layout, scaling and _hashable(scaling)
    if name not in place.memo:
        positions = place.layout.positions_BT
        if place.layout.uniform:
            positions = positions[:1]
        dims, longest = int(x.shape[-1] * fraction), place.layout.longest
        cos, sin = rope_tables(positions, dims, theta, scaling, longest, x.shape[-1])
        heads = cos.shape[:2] + (1,) * (x.dim() - 3)
        place.memo[name] = tuple(
            table.view(*heads, table.shape[-1]) for table in _per_channel(cos, sin, layout)
        )
    cos, sin = place.memo[name]
    return rotate(x, cos, sin, layout)


def _hashable(scaling: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in scaling.items())


def rope_tables(
    positions_BT: Tensor,
    dims: int,
    theta: float,
    scaling: Mapping[str, Any] | None = None,
    longest: int = 0,
    head_dim: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[B, T, dims / 2]`, float32, with the scaling's attention factor multiplied in.

    `longest` is the length that "dynamic" and "longrope" adapt to; `head_dim` is needed by "proportional".
    """
    inverse, factor = frequencies(dims, theta, scaling, longest, head_dim, positions_BT.device)
    angles = positions_BT.unsqueeze(-1).float() * inverse
    cos, sin = angles.cos(), angles.sin()
    return (cos, sin) if factor == 1 else (cos * factor, sin * factor)


def _per_channel(cos: Tensor, sin: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """Both tables with an entry for each channel: the sine's sign is that of its partner in the channel's sum."""
    if layout == "half":
        return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
    if layout == "interleaved":
        return cos.repeat_interleave(2, -1), torch.stack([-sin, sin], -1).flatten(-2)
    raise ValueError(f'rope layout {layout!r}: "half" or "interleaved"')


def rotate(x: Tensor, cos: Tensor, sin: Tensor, layout: str) -> Tensor:
    """Turn the first channels of `x [..., K]`, as many as the tables have; products are float32 or wider."""
    dims, wide = cos.shape[-1], x if x.dtype in (torch.float32, torch.float64) else x.float()
    turned = wide if dims == x.shape[-1] else wide[..., :dims]
    if layout == "half":
        partner = turned.roll(dims // 2, -1)
    else:
        partner = turned.reshape(*turned.shape[:-1], dims // 2, 2).flip(-1).flatten(-2)
    turned = (turned * cos).addcmul_(partner, sin)
    if dims != x.shape[-1]:
        turned = torch.cat([turned, wide[..., dims:]], -1)
    return turned if turned.dtype == x.dtype else turned.to(x.dtype)


def frequencies(
    dims: int,
    theta: float,
    scaling: Mapping[str, Any] | None = None,
    longest: int = 0,
    head_dim: int | None = None,
    device: torch.device | None = None,
) -> tuple[Tensor, float]:
    """Angles per token `[dims / 2]`, float32, and the factor on cosines and sines.

    `scaling["type"]` and the other keys it reads (`original`: the context before scaling):
    "linear" factor (Chen et al. 2023). "ntk" factor. "dynamic" factor, original. "yarn" factor, original,
    beta_fast, beta_slow, truncate, mscale, mscale_all_dim, attention_factor (Peng et al. 2023). "llama3"
    factor, original, low_freq_factor, high_freq_factor. "longrope" factor, original, long_factor,
    short_factor, attention_factor (Ding et al. 2024). "proportional" factor: exponents count the whole head,
    whose other pairs stand still, `[head_dim / 2]`.
    "dynamic" and "longrope" turn by the call's longest length: tokens cached before keep their old angles.
    """
    given = dict(scaling or {"type": "none"})
    kind = given.pop("type")
    factor = float(given.get("factor", 1))
    original = given.get("original")
    base = theta
    if kind in ("ntk", "dynamic"):
        stretch = factor
        if kind == "dynamic":
            stretch = factor * max(longest, original or 0) / _need(original, kind) - (factor - 1)
        base = theta * stretch ** (dims / (dims - 2))
    steps = torch.arange(0, dims, 2, device=device).float()
    inverse = 1.0 / base ** (steps / (head_dim or dims if kind == "proportional" else dims))
    if kind in ("none", "ntk", "dynamic"):
        return inverse, 1.0
    if kind == "proportional":
        still = (head_dim or dims) // 2 - inverse.shape[0]
        return torch.nn.functional.pad(inverse / factor, (0, still)), 1.0
    if kind == "linear":
        return inverse / factor, 1.0
    if kind == "llama3":
        low, high = float(given.get("low_freq_factor", 1)), float(given.get("high_freq_factor", 4))
        turns = _need(original, kind) * inverse / (2 * math.pi)
        smooth = ((turns - low) / (high - low)).clamp(0, 1)
        return torch.lerp(inverse / factor, inverse, smooth), 1.0
    if kind == "yarn":
        return _yarn(inverse, dims, theta, factor, _need(original, kind), given)
    if kind == "longrope":
        start = _need(original, kind)
        per_channel = given["long_factor"] if longest > start else given["short_factor"]
        attention = given.get("attention_factor")
        if attention is None:
            attention = math.sqrt(1 + math.log(factor) / math.log(start)) if factor > 1 else 1.0
        return inverse / torch.tensor(per_channel, dtype=torch.float32, device=device), float(attention)
    raise ValueError(f"unknown rope scaling {kind!r}")


def _yarn(
    inverse: Tensor, dims: int, theta: float, factor: float, original: float, given: dict[str, Any]
) -> tuple[Tensor, float]:
    """Slow channels are interpolated, fast ones kept, with a ramp between."""

    def channel(turns: float) -> float:
        return dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    low, high = channel(float(given.get("beta_fast", 32))), channel(float(given.get("beta_slow", 1)))
    if given.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    width = high - low or 0.001
    ramp = ((torch.arange(dims // 2, device=inverse.device).float() - low) / width).clamp(0, 1)
    attention = given.get("attention_factor")
    if attention is None:
        if given.get("mscale") and given.get("mscale_all_dim"):
            attention = temperature(float(given["mscale"])) / temperature(float(given["mscale_all_dim"]))
        else:
            attention = temperature(1)
    return torch.lerp(inverse, inverse / factor, ramp), float(attention)


def _need(original: float | None, kind: str) -> float:
    if original is None:
        raise ValueError(f"rope scaling {kind!r} needs `original`, the context before scaling")
    return original
