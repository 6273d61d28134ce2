"""The diagonal linear state space `h_t = exp(decay + i angle) h_{t-1} + x_t`, `y_t = sum_n Re(C h_t)`.

Whole sequences: y is a convolution with `k[l] = Re sum_n C_n exp(l a_n)`, a = decay + i angle. With l = 64 c + r the
kernel is a product of two small tables, `C_n exp(64 c a_n)` and `exp(r a_n)`, summed over n; what the state before the
call adds, and the state after it, are products with the same tables.

A complex number is a last axis of two entries, a real one of a single entry. T = 64 c + r, Q for r, G rows of
coefficients, R channels that share one, S states.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .cache import gather_back
from .long_conv import fft_conv, per_channel
from .place import Place

# One package may be imported under several names, and each import registers its own operations.
_NAMESPACE = re.sub(r"\W", "_", __name__)

CHUNK = 64  # tokens a table holds; the other table has one entry for so many


def diagonal_ssm(
    x: Tensor,
    place: Place,
    key: str,
    *,
    decay: Tensor,
    angle: Tensor | None = None,
    read: Tensor,
    read_imag: Tensor | None = None,
) -> Tensor:
    """`x [B, T, *axes]`, the others `[*axes, S]` where axes may be 1 or, in front, missing; y as x.

    Computed in float32 or wider; the state entry is h after the last token, `[N, *axes, S, 1 or 2]`.
    """
    layout, before = place.layout, place.read(key)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    coefficients = [value for value in (decay, angle, read, read_imag) if value is not None]
    rows, repeats = per_channel(
        torch.stack(torch.broadcast_tensors(*coefficients), -1).flatten(-2), x.shape[2:]
    )
    a_GSP, C_GSP = _complex(rows.to(wide).unflatten(-1, (-1, len(coefficients))), angle is not None)
    x_BTGR = x.to(wide).reshape(*x.shape[:2], rows.shape[0], repeats)
    h_NGRSP = None if before is None else before.to(wide).reshape(-1, *x_BTGR.shape[2:], *a_GSP.shape[1:])
    if h_NGRSP is not None and x.shape[1] == 1 and layout.cu_seqlens is None and place.form != "chunk":
        y, h_NGRSP = _loop(x_BTGR, a_GSP, C_GSP, h_NGRSP)
    elif place.form == "step":
        y, h_NGRSP = _loops(x_BTGR, a_GSP, C_GSP, h_NGRSP, layout.cu_seqlens)
    else:
        kernel_GT = expand(C_GSP.unsqueeze(1).unsqueeze(0), a_GSP, x.shape[1])[0, ..., 0].t()
        y = fft_conv(x_BTGR, kernel_GT, None, layout.cu_seqlens)
        if h_NGRSP is not None:
            y_before, h_NGRSP = _continued(x_BTGR, a_GSP, C_GSP, h_NGRSP, place)
            y = y + y_before
    if before is not None and h_NGRSP is not None:
        place.write(key, h_NGRSP.reshape(before.shape))
    return y.to(x.dtype).view_as(x)


def _complex(rows_GSK: Tensor, complex_: bool) -> tuple[Tensor, Tensor]:
    """The exponent and the read of each state: `[G, S, 1]`, or `[G, S, 2]` with imaginary parts (0 if not given)."""
    if not complex_:
        return rows_GSK[..., :1], rows_GSK[..., 1:]
    if rows_GSK.shape[-1] == 3:
        rows_GSK = torch.nn.functional.pad(rows_GSK, (0, 1))
    return rows_GSK[..., :2], rows_GSK[..., 2:]


def _times(a: Tensor, b: Tensor) -> Tensor:
    """The product of two numbers that are the last axis."""
    if a.shape[-1] == 1:
        return a * b
    real = a[..., 0] * b[..., 0] - a[..., 1] * b[..., 1]
    return torch.stack([real, a[..., 0] * b[..., 1] + a[..., 1] * b[..., 0]], -1)


def _conjugate(a: Tensor) -> Tensor:
    """Its products with another number, summed over the last axis, are the real part of the product of both."""
    return a if a.shape[-1] == 1 else torch.stack([a[..., 0], -a[..., 1]], -1)


def _powers(a_GSP: Tensor, lags: Tensor) -> Tensor:
    """`exp(lag a)` for each lag: `[*lags, G, S, P]`.

    The phase `lag * angle` counts modulo 2 pi, so its rounding would grow with the lag: it is reduced in float64.
    """
    lags = lags.view(*lags.shape, 1, 1)
    size = torch.exp(lags.to(a_GSP.dtype) * a_GSP[..., 0])
    if a_GSP.shape[-1] == 1:
        return size.unsqueeze(-1)
    phase = lags.double() * a_GSP[..., 1].double()
    if a_GSP.dtype != torch.float64:
        phase = phase.remainder(2 * math.pi).to(a_GSP.dtype)
    return torch.stack([size * torch.cos(phase), size * torch.sin(phase)], -1)


def _continued(
    x_BTGR: Tensor, a_GSP: Tensor, C_GSP: Tensor, h_NGRSP: Tensor, place: Place
) -> tuple[Tensor, Tensor]:
    """What the state before the call adds to y, and the state after it.

    The first is `Re sum_n C_n exp((t + 1) a_n) h_n`, the second `sum_j exp((T - 1 - j) a) x_j + exp(T a) h`.
    """
    cu_seqlens, longest = place.layout.cu_seqlens, place.layout.longest_new
    first = _times(C_GSP, _powers(a_GSP, torch.ones((), device=a_GSP.device))).unsqueeze(1)
    read = _times(first.expand_as(h_NGRSP), h_NGRSP)
    if cu_seqlens is None:
        lengths = torch.full((1,), x_BTGR.shape[1], device=x_BTGR.device)
        y, rows = expand(read, a_GSP, x_BTGR.shape[1]), x_BTGR.flip(1)
    else:
        # Each sequence backwards in a row of its own, then zeros: lags count from its last token.
        lengths = cu_seqlens.diff()
        y = gather_back(place, expand(read, a_GSP, max(longest, 1)))
        token = cu_seqlens[1:].unsqueeze(1) - 1 - torch.arange(longest, device=x_BTGR.device)
        own = (token >= cu_seqlens[:-1].unsqueeze(1)).view(*token.shape, 1, 1)
        rows = torch.where(own, x_BTGR[0][token.clamp(min=0)], 0)
    kept = _powers(a_GSP, lengths).unsqueeze(2).expand_as(h_NGRSP)
    return y, collect(rows, a_GSP) + _times(kept, h_NGRSP)


def expand(g_NGRSP: Tensor, a_GSP: Tensor, length: int) -> Tensor:
    """`y_t = Re sum_n g_n exp(t a_n)`: `[N, length, G, R]`, in float32 or float64."""
    y: Tensor = _expand(g_NGRSP, a_GSP, length)
    return y


def collect(x_NTGR: Tensor, a_GSP: Tensor) -> Tensor:
    """`sum_t exp(t a_n) x_t`: `[N, G, R, S, P]`, in float32 or float64."""
    h: Tensor = _collect(x_NTGR, a_GSP)
    return h


def _tables(a_GSP: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """`exp(64 c a)` `[C, G, S, P]` and `exp(r a)` `[64, G, S, P]` for all lags 64 c + r below the length."""
    coarse = torch.arange((length + CHUNK - 1) // CHUNK, device=a_GSP.device) * CHUNK
    return _powers(a_GSP, coarse), _powers(a_GSP, torch.arange(CHUNK, device=a_GSP.device))


@torch.library.custom_op(f"{_NAMESPACE}::expand", mutates_args=())
def _expand(g_NGRSP: Tensor, a_GSP: Tensor, length: int) -> Tensor:
    coarse, fine = _tables(a_GSP, length)
    shape = (g_NGRSP.shape[0], coarse.shape[0], *g_NGRSP.shape[1:])
    both = _times(coarse.unsqueeze(2).expand(shape), g_NGRSP.unsqueeze(1).expand(shape))
    with torch.autocast(a_GSP.device.type, enabled=False):
        y = torch.einsum("ncgrsp,qgsp->ncqgr", _conjugate(both), fine)
    return y.flatten(1, 2)[:, :length].contiguous()


@_expand.register_fake
def _(g_NGRSP: Tensor, a_GSP: Tensor, length: int) -> Tensor:
    return g_NGRSP.new_empty(g_NGRSP.shape[0], length, *g_NGRSP.shape[1:3])


@torch.library.custom_op(f"{_NAMESPACE}::collect", mutates_args=())
def _collect(x_NTGR: Tensor, a_GSP: Tensor) -> Tensor:
    length = x_NTGR.shape[1]
    if length == 0:
        return x_NTGR.new_zeros(x_NTGR.shape[0], *x_NTGR.shape[2:], *a_GSP.shape[1:])
    coarse, fine = _tables(a_GSP, length)
    padded = torch.nn.functional.pad(x_NTGR, (0, 0, 0, 0, 0, -length % CHUNK)).unflatten(1, (-1, CHUNK))
    with torch.autocast(a_GSP.device.type, enabled=False):
        inner = torch.einsum("ncqgr,qgsp->ncgrsp", padded, fine)
    return _times(coarse.unsqueeze(2).expand(inner.shape), inner).sum(1)


@_collect.register_fake
def _(x_NTGR: Tensor, a_GSP: Tensor) -> Tensor:
    return x_NTGR.new_empty(x_NTGR.shape[0], *x_NTGR.shape[2:], *a_GSP.shape[1:])


def _moments(x_NTGR: Tensor, a_GSP: Tensor) -> tuple[Tensor, Tensor]:
    """`sum_t exp(t a) x_t`, and the same times t, its derivative with respect to a."""
    t = torch.arange(x_NTGR.shape[1], device=x_NTGR.device).view(-1, 1, 1)
    zeroth, first = collect(torch.cat([x_NTGR, t * x_NTGR]), a_GSP).chunk(2)
    return zeroth, first


def _exponent_gradient(g_NGRSP: Tensor, first_NGRSP: Tensor) -> Tensor:
    """The gradient of a, where g weighs the exponentials and the first moment is that of what they weigh."""
    return _conjugate(_times(g_NGRSP, first_NGRSP)).sum((0, 2))


# The two operations are each other's transpose: dg = conj(collect(dy)), dx = expand(conj(dh)).


def _save_expand(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])


def _differentiate_expand(ctx: FunctionCtx, dy_NTGR: Tensor) -> tuple[Tensor, Tensor, None]:
    g_NGRSP, a_GSP = ctx.saved_tensors  # type: ignore[attr-defined]
    zeroth, first = _moments(dy_NTGR, a_GSP)
    return _conjugate(zeroth), _exponent_gradient(g_NGRSP, first), None


def _save_collect(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_collect(ctx: FunctionCtx, dh_NGRSP: Tensor) -> tuple[Tensor, Tensor]:
    x_NTGR, a_GSP = ctx.saved_tensors  # type: ignore[attr-defined]
    weights = _conjugate(dh_NGRSP)
    _, first = _moments(x_NTGR, a_GSP)
    return expand(weights, a_GSP, x_NTGR.shape[1]), _exponent_gradient(weights, first)


_expand.register_autograd(_differentiate_expand, setup_context=_save_expand)
_collect.register_autograd(_differentiate_collect, setup_context=_save_collect)


def _loop(x_BTGR: Tensor, a_GSP: Tensor, C_GSP: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, token by token, from the state `h [B, G, R, S, P]`."""
    kept = torch.exp(a_GSP[..., :1])
    if a_GSP.shape[-1] == 2:
        kept = kept * torch.cat([torch.cos(a_GSP[..., 1:]), torch.sin(a_GSP[..., 1:])], -1)
    kept, read = kept.unsqueeze(1).expand_as(h), _conjugate(C_GSP).unsqueeze(1)
    outputs = []
    for token in x_BTGR.unbind(1):
        h = _times(kept, h)
        h = torch.cat([h[..., :1] + token[..., None, None], h[..., 1:]], -1)
        outputs.append((read * h).sum((-2, -1)))
    return torch.stack(outputs, 1) if outputs else x_BTGR, h


def _loops(
    x_BTGR: Tensor, a_GSP: Tensor, C_GSP: Tensor, h: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The definition for each sequence of a packed row, or for the rows of a dense call."""
    rows = x_BTGR.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    start = x_BTGR.new_zeros(rows, *x_BTGR.shape[2:], *a_GSP.shape[1:]) if h is None else h
    if cu_seqlens is None:
        y, after = _loop(x_BTGR, a_GSP, C_GSP, start)
        return y, None if h is None else after
    borders = cu_seqlens.tolist()
    parts, states = [], []
    for n, (left, right) in enumerate(zip(borders, borders[1:], strict=False)):
        y, after = _loop(x_BTGR[:, left:right], a_GSP, C_GSP, start[n : n + 1])
        parts.append(y)
        states.append(after)
    parts.append(x_BTGR[:, borders[-1] :])  # tokens of no sequence: anything finite
    return torch.cat(parts, 1), None if h is None else torch.cat(states)
