"""The elementwise recurrence `h_t = exp(g_t) h_{t-1} + b_t` with a vector state."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .place import Place

# One package may be imported under several names, and each import registers its own operations.
_NAMESPACE = re.sub(r"\W", "_", __name__)


def scan(x: Tensor, decay: Tensor, place: Place, key: str) -> Tensor:
    """`h_t = exp(decay_t) h_{t-1} + x_t` for `x [B, T, ...]`; the log decays, `<= 0`, expand to its shape.

    Computed in float32 or wider; the state entry is h after the last token, `[N, ...]`, in that precision.
    """
    b, layout = x, place.layout
    wide = torch.float64 if b.dtype == torch.float64 else torch.float32
    g_wide, b_wide = decay.to(wide).expand(b.shape), b.to(wide)
    before = place.read(key)
    if before is not None and b.shape[1] == 1 and layout.cu_seqlens is None:
        after = torch.exp(g_wide[:, 0]) * before + b_wide[:, 0]
        place.write(key, after)
        return after.unsqueeze(1).to(b.dtype)
    if layout.cu_seqlens is not None:
        assert layout.sequence_T is not None
        # The first token of a sequence takes its state as input and forgets what stands before it in the row.
        row = layout.sequence_T.clamp(max=layout.cu_seqlens.shape[0] - 2)
        token = torch.arange(b.shape[1], device=b.device)
        is_tail = layout.sequence_T > row
        first = ((token == layout.cu_seqlens[row]) | is_tail).view(1, -1, *(1,) * (b.dim() - 2))
        if before is not None:
            b_wide = b_wide + torch.where(first, torch.exp(g_wide) * before.to(wide)[row], 0)
        g_wide = g_wide.masked_fill(first, float("-inf"))
    elif before is not None:
        first_input = b_wide[:, :1] + torch.exp(g_wide[:, :1]) * before.to(wide).unsqueeze(1)
        b_wide = torch.cat([first_input, b_wide[:, 1:]], 1)
    if place.form == "step":
        h = _loop(g_wide, b_wide)
    else:
        h = elementwise_scan(g_wide.flatten(2), b_wide.flatten(2)).view(b_wide.shape)
    if before is not None:
        if layout.cu_seqlens is None:
            place.write(key, h[:, -1].clone() if h.shape[1] else before)
        else:
            last = h[0][(layout.cu_seqlens[1:] - 1).clamp(min=0)]
            some = (layout.cu_seqlens.diff() > 0).view(-1, *(1,) * (b.dim() - 2))
            place.write(key, torch.where(some, last, before.to(wide)))
    return h.to(b.dtype)


def elementwise_scan(g_BTC: Tensor, b_BTC: Tensor) -> Tensor:
    """`h_t = exp(g_t) h_{t-1} + b_t` from h = 0, for `g <= 0` (-inf forgets), in float32 or float64."""
    h: Tensor = _forward(g_BTC, b_BTC)
    return h


def _loop(g: Tensor, b: Tensor) -> Tensor:
    """The definition, token by token."""
    h, states = torch.zeros_like(b[:, 0]), []
    for t in range(b.shape[1]):
        h = torch.exp(g[:, t]) * h + b[:, t]
        states.append(h)
    return torch.stack(states, 1)


def _chunked(g_BTC: Tensor, b_BTC: Tensor) -> Tensor:
    """All chunks advance side by side from zero; then their ends are chained, and added where they reach.

    With about sqrt(T) tokens a chunk, 2 sqrt(T) steps; decays are multiplied, never divided by.
    """
    batch, length, channels = b_BTC.shape
    size = max(1, math.isqrt(length))
    pad = -length % size
    g = torch.nn.functional.pad(g_BTC, (0, 0, 0, pad)).view(batch, -1, size, channels)
    h = torch.nn.functional.pad(b_BTC, (0, 0, 0, pad)).view(batch, -1, size, channels)
    if not pad:
        h = h.clone()
    factor = torch.exp(g)
    for t in range(1, size):
        h[:, :, t].addcmul_(factor[:, :, t], h[:, :, t - 1])
        factor[:, :, t] *= factor[:, :, t - 1]
    for chunk in range(1, h.shape[1]):
        h[:, chunk].addcmul_(factor[:, chunk], h[:, chunk - 1, -1:])
    return h.view(batch, -1, channels)[:, :length].contiguous()


@torch.library.custom_op(f"{_NAMESPACE}::elementwise_scan", mutates_args=())
def _forward(g_BTC: Tensor, b_BTC: Tensor) -> Tensor:
    return _chunked(g_BTC, b_BTC)


@_forward.register_fake
def _(g_BTC: Tensor, b_BTC: Tensor) -> Tensor:
    return b_BTC.new_empty(b_BTC.shape)


@torch.library.custom_op(f"{_NAMESPACE}::elementwise_scan_backward", mutates_args=())
def _backward(dh_BTC: Tensor, g_BTC: Tensor, h_BTC: Tensor) -> tuple[Tensor, Tensor]:
    """The adjoint is the same scan backwards in time, each decay one token later."""
    later = torch.nn.functional.pad(g_BTC[:, 1:], (0, 0, 0, 1))
    db = _chunked(later.flip(1), dh_BTC.flip(1)).flip(1)
    earlier = torch.nn.functional.pad(h_BTC[:, :-1], (0, 0, 1, 0))
    return db * torch.exp(g_BTC) * earlier, db


@_backward.register_fake
def _(dh_BTC: Tensor, g_BTC: Tensor, h_BTC: Tensor) -> tuple[Tensor, Tensor]:
    return g_BTC.new_empty(g_BTC.shape), g_BTC.new_empty(g_BTC.shape)


def _save(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], output)


def _differentiate(ctx: FunctionCtx, dh_BTC: Tensor) -> tuple[Tensor, Tensor]:
    g_BTC, h_BTC = ctx.saved_tensors  # type: ignore[attr-defined]
    dg, db = _backward(dh_BTC.contiguous(), g_BTC, h_BTC)
    return dg, db


_forward.register_autograd(_differentiate, setup_context=_save)
