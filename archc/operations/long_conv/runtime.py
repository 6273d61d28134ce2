"""Causal convolutions as long as the sequence: by FFT over whole sequences, by a sum for a single token."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .cache import attended, store
from .place import Place

# One package may be imported under several names, and each import registers its own operations.
_NAMESPACE = re.sub(r"\W", "_", __name__)


def long_conv(x: Tensor, kernel: Tensor, place: Place, key: str) -> Tensor:
    """`y_t = sum_{j <= t} kernel[t - j] x_j` for `x [B, T, *axes]`; sums in float32 or wider, y in the dtype of x.

    `kernel [*axes, L]`, where an axis may be 1 or, in front, missing. The state entry is a ring of the last L inputs
    of each sequence, `[N, slots, *axes]`.
    """
    layout, stored = place.layout, place.read(key)
    kernel_GL, repeats = per_channel(kernel, x.shape[2:])
    x_BTGR = x.reshape(*x.shape[:2], kernel_GL.shape[0], repeats)
    if stored is not None and x.shape[1] == 1 and layout.cu_seqlens is None and place.form != "chunk":
        return _step(x_BTGR, kernel_GL, place, key).to(x.dtype).view_as(x)
    past = None
    if stored is not None:
        past = None if layout.fresh else _past(stored, place).flatten(2).unflatten(2, x_BTGR.shape[2:])
        store(place, key, x)
    if place.form == "step":
        y = _plain_sum(x_BTGR, kernel_GL, past, layout.cu_seqlens)
    else:
        y = fft_conv(x_BTGR, kernel_GL, past, layout.cu_seqlens)
    return y.view_as(x)


def per_channel(value: Tensor, axes: torch.Size) -> tuple[Tensor, int]:
    """`value [*axes, n]`, axes of size 1 or missing in front allowed, as `[G, n]`, and how many channels share a row.

    Channel c takes row c // repeats: what differs in the leading axes only is not copied.
    """
    own = (1,) * (len(axes) + 1 - value.dim()) + tuple(value.shape[:-1])
    differs = max([0, *(place + 1 for place, size in enumerate(own) if size != 1)])
    rows = value.reshape(*own[:differs], value.shape[-1]).expand(*axes[:differs], -1)
    return rows.reshape(-1, value.shape[-1]), math.prod(axes[differs:])


def fft_conv(x_BTGR: Tensor, kernel_GL: Tensor, past: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """The convolution of `x_BTGR` with `kernel_GL`, after `past [N, P, G, R]`, which ends right before the call."""
    y: Tensor = _forward(x_BTGR, kernel_GL, past, cu_seqlens)
    return y


def _step(x_BTGR: Tensor, kernel_GL: Tensor, place: Place, key: str) -> Tensor:
    """One token for each sequence: the sum over the history that its ring holds."""
    layout, wide = place.layout, _wide(x_BTGR.dtype)
    assert layout.start_N is not None
    stored = place.read(key)
    assert stored is not None
    seen = attended(place, key, x_BTGR.reshape(*x_BTGR.shape[:2], *stored.shape[2:]), ring=True)
    values = seen.values.reshape(*seen.values.shape[:2], *x_BTGR.shape[2:])
    positions = seen.positions[:1] if layout.uniform else seen.positions
    newest = layout.start_N[: positions.shape[0], None]
    lags = (newest - positions).clamp(min=0, max=kernel_GL.shape[1] - 1)
    held = (positions >= 0) & (positions <= newest)
    taps = kernel_GL.to(wide).t()[lags] * held.unsqueeze(2)  # [N or 1, slots, G]
    return torch.einsum("nsgr,nsg->ngr", values.to(wide), taps.expand(values.shape[0], -1, -1)).unsqueeze(1)


def _past(stored: Tensor, place: Place) -> Tensor:
    """The tokens before the call in order, each sequence's at the end of its row: `[N, P, *axes]`, zeros before."""
    layout = place.layout
    assert layout.start_N is not None
    slots = stored.shape[1]
    held = min(slots, layout.longest)
    position = layout.start_N.unsqueeze(1) + torch.arange(-held, 0, device=stored.device)
    rows = torch.arange(stored.shape[0], device=stored.device).unsqueeze(1)
    exists = (position >= 0).view(*position.shape, *(1,) * (stored.dim() - 2))
    return torch.where(exists, stored[rows, position % slots], 0)


def _plain_sum(x_BTGR: Tensor, kernel_GL: Tensor, past: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """The definition, lag by lag."""
    wide = _wide(x_BTGR.dtype)
    taps = kernel_GL.to(wide)
    parts = []
    borders = _borders(x_BTGR, cu_seqlens)
    for n, (start, stop) in enumerate(borders):
        rows = slice(None) if cu_seqlens is None else slice(n, n + 1)
        extended, offset = _extended(x_BTGR[:, start:stop], past, rows, wide)
        y = torch.zeros_like(extended)
        for lag in range(min(taps.shape[1], extended.shape[1])):
            y[:, lag:] += taps[:, lag, None] * extended[:, : extended.shape[1] - lag]
        parts.append(y[:, offset:])
    parts.append(x_BTGR[:, borders[-1][1] :].to(wide))  # tokens of no sequence: anything finite
    return torch.cat(parts, 1).to(x_BTGR.dtype)


def _borders(x_BTGR: Tensor, cu_seqlens: Tensor | None) -> list[tuple[int, int]]:
    """Where each sequence of a packed row begins and ends; of a dense call, the whole rows."""
    if cu_seqlens is None:
        return [(0, x_BTGR.shape[1])]
    borders = cu_seqlens.tolist()
    return list(zip(borders, borders[1:], strict=False))


def _extended(x_BTGR: Tensor, past: Tensor | None, rows: slice, wide: torch.dtype) -> tuple[Tensor, int]:
    """The tokens with those of the past before them, and how many these are."""
    if past is None:
        return x_BTGR.to(wide), 0
    return torch.cat([past[rows].to(wide), x_BTGR.to(wide)], 1), past.shape[1]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fast_length(least: int) -> int:
    """The smallest product of a power of two and 1, 3, 5, 9 or 15 that is not smaller: transforms of it are fast."""
    return min(odd << max(-(-least // odd) - 1, 0).bit_length() for odd in (1, 3, 5, 9, 15))


@torch.library.custom_op(f"{_NAMESPACE}::fft_conv", mutates_args=())
def _forward(x_BTGR: Tensor, kernel_GL: Tensor, past: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    wide = _wide(x_BTGR.dtype)
    out = x_BTGR.new_zeros(x_BTGR.shape)
    for n, (start, stop) in enumerate(_borders(x_BTGR, cu_seqlens)):
        if start == stop:
            continue
        rows = slice(None) if cu_seqlens is None else slice(n, n + 1)
        extended, offset = _extended(x_BTGR[:, start:stop], past, rows, wide)
        length = extended.shape[1]
        taps = kernel_GL[:, :length].to(wide)
        size = _fast_length(length + taps.shape[1] - 1)
        product = torch.fft.rfft(extended, size, dim=1)
        product *= torch.fft.rfft(taps, size).t().unsqueeze(2)
        out[:, start:stop] = torch.fft.irfft(product, size, dim=1)[:, offset:length]
    return out


@_forward.register_fake
def _(x_BTGR: Tensor, kernel_GL: Tensor, past: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    return x_BTGR.new_empty(x_BTGR.shape)


@torch.library.custom_op(f"{_NAMESPACE}::fft_conv_backward", mutates_args=())
def _backward(
    dy_BTGR: Tensor, x_BTGR: Tensor, kernel_GL: Tensor, past: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, kernel and past (empty where there is none): correlations with dy.

    dx_j = sum_t kernel[t - j] dy_t and dkernel[l] = sum_t dy_t x_{t - l}: products with the conjugate transforms.
    """
    wide = _wide(x_BTGR.dtype)
    dx = x_BTGR.new_zeros(x_BTGR.shape)
    dkernel = kernel_GL.new_zeros(kernel_GL.shape, dtype=wide)
    dpast = x_BTGR.new_zeros(0) if past is None else past.new_zeros(past.shape)
    for n, (start, stop) in enumerate(_borders(x_BTGR, cu_seqlens)):
        if start == stop:
            continue
        rows = slice(None) if cu_seqlens is None else slice(n, n + 1)
        extended, offset = _extended(x_BTGR[:, start:stop], past, rows, wide)
        length = extended.shape[1]
        taps = kernel_GL[:, :length].to(wide)
        size = _fast_length(length + taps.shape[1] - 1)
        dy = torch.nn.functional.pad(dy_BTGR[:, start:stop].to(wide), (0, 0, 0, 0, offset, 0))
        product = torch.fft.rfft(dy, size, dim=1)
        of_taps = (product * torch.fft.rfft(extended, size, dim=1).conj()).sum((0, 3))
        dkernel[:, : taps.shape[1]] += torch.fft.irfft(of_taps, size, dim=0)[: taps.shape[1]].t()
        product *= torch.fft.rfft(taps, size).conj().t().unsqueeze(2)
        dextended = torch.fft.irfft(product, size, dim=1)[:, :length]
        dx[:, start:stop] = dextended[:, offset:]
        if past is not None:
            dpast[rows] = dextended[:, :offset].to(past.dtype)
    return dx, dkernel.to(kernel_GL.dtype), dpast


@_backward.register_fake
def _(
    dy_BTGR: Tensor, x_BTGR: Tensor, kernel_GL: Tensor, past: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    dpast = x_BTGR.new_empty(0) if past is None else past.new_empty(past.shape)
    return x_BTGR.new_empty(x_BTGR.shape), kernel_GL.new_empty(kernel_GL.shape), dpast


def _save(ctx: FunctionCtx, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)  # type: ignore[arg-type]


def _differentiate(ctx: FunctionCtx, dy_BTGR: Tensor) -> tuple[Tensor | None, ...]:
    x_BTGR, kernel_GL, past, cu_seqlens = ctx.saved_tensors  # type: ignore[attr-defined]
    dx, dkernel, dpast = _backward(dy_BTGR.contiguous(), x_BTGR, kernel_GL, past, cu_seqlens)
    return dx, dkernel, None if past is None else dpast, None


_forward.register_autograd(_differentiate, setup_context=_save)
