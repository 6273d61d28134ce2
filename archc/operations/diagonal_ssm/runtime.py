"""The diagonal linear state space `h_t = exp(decay + i angle) h_{t-1} + x_t`, `y_t = sum_n Re(C h_t)`.

Whole sequences: y is a convolution with `k[l] = Re sum_n C_n exp(l a_n)`, a = decay + i angle. With l = 64 c + r the
kernel is a product of two small tables, `C_n exp(64 c a_n)` and `exp(r a_n)`, summed over n; what the state before the
call adds, and the state after it, are products with the same tables.

A complex number is a last axis of two entries, a real one of a single entry. T = 64 c + r, Q for r, G rows of
coefficients, R channels that share one, S states.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cache import gather_back, spread
from .long_conv import fft_conv, per_channel
from .place import Place

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
        with torch.autocast(x.device.type, enabled=False):
            y = fft_conv(x_BTGR, _kernel(a_GSP, C_GSP, x.shape[1]), None, layout.cu_seqlens)
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

    In float64: the phase `lag * angle` counts modulo 2 pi, so its rounding grows with the lag.
    """
    exponent = lags.double().view(*lags.shape, 1, 1, 1) * a_GSP.double()
    size = torch.exp(exponent[..., :1])
    if a_GSP.shape[-1] == 2:
        size = size * torch.cat([torch.cos(exponent[..., 1:]), torch.sin(exponent[..., 1:])], -1)
    return size.to(a_GSP.dtype)


def _tables(a_GSP: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """`exp(64 c a)` `[C, G, S, P]` and `exp(r a)` `[64, G, S, P]` for all lags 64 c + r below the length."""
    coarse = torch.arange((length + CHUNK - 1) // CHUNK, device=a_GSP.device) * CHUNK
    return _powers(a_GSP, coarse), _powers(a_GSP, torch.arange(CHUNK, device=a_GSP.device))


def _kernel(a_GSP: Tensor, C_GSP: Tensor, length: int) -> Tensor:
    """`k[l] = Re sum_n C_n exp(l a_n)`, `[G, length]`."""
    coarse, fine = _tables(a_GSP, length)
    left = _conjugate(_times(C_GSP.expand_as(coarse), coarse)).flatten(2).permute(1, 0, 2)  # [G, C, S P]
    kernel = left @ fine.flatten(2).permute(1, 2, 0)
    return kernel.flatten(1)[:, :length]


def _continued(
    x_BTGR: Tensor, a_GSP: Tensor, C_GSP: Tensor, h_NGRSP: Tensor, place: Place
) -> tuple[Tensor, Tensor]:
    """What the state before the call adds to y, and the state after it."""
    cu_seqlens = place.layout.cu_seqlens
    if cu_seqlens is None:
        length = x_BTGR.shape[1]
        kept = _powers(a_GSP, torch.full((1,), length, device=x_BTGR.device)).unsqueeze(2)
        return _read_out(h_NGRSP, a_GSP, C_GSP, length), _last_state(x_BTGR, a_GSP) + _times(
            kept.expand_as(h_NGRSP), h_NGRSP
        )
    longest = place.layout.longest_new
    y_NQGR = _read_out(h_NGRSP, a_GSP, C_GSP, max(longest, 1))
    # Each sequence at the end of a row of its own, after zeros: lags count from its last token.
    back = torch.arange(-longest, 0, device=x_BTGR.device)
    token = cu_seqlens[1:].unsqueeze(1) + back
    own = (token >= cu_seqlens[:-1].unsqueeze(1)).view(*token.shape, 1, 1)
    rows = torch.where(own, x_BTGR[0][token.clamp(min=0)], 0) if longest else spread(place, x_BTGR)
    kept = _powers(a_GSP, cu_seqlens.diff()).unsqueeze(2)
    return gather_back(place, y_NQGR), _last_state(rows, a_GSP) + _times(kept.expand_as(h_NGRSP), h_NGRSP)


def _read_out(h_NGRSP: Tensor, a_GSP: Tensor, C_GSP: Tensor, length: int) -> Tensor:
    """`Re sum_n C_n exp((t + 1) a_n) h_n` for the first tokens after h: `[N, length, G, R]`."""
    coarse, fine = _tables(a_GSP, length)
    first = _times(C_GSP, _powers(a_GSP, torch.ones((), device=a_GSP.device)))
    left = _times(first.expand_as(coarse), coarse).unsqueeze(2)  # [C, G, 1, S, P]
    shape = (h_NGRSP.shape[0], *left.shape[:2], *h_NGRSP.shape[2:])
    both = _times(left.expand(shape), h_NGRSP.unsqueeze(1).expand(shape))
    y = torch.einsum("ncgrsp,qgsp->ncqgr", _conjugate(both), fine)
    return y.flatten(1, 2)[:, :length]


def _last_state(x_BTGR: Tensor, a_GSP: Tensor) -> Tensor:
    """`sum_j exp((T - 1 - j) a) x_j`, the state after the tokens from zero: `[B, G, R, S, P]`."""
    length = x_BTGR.shape[1]
    coarse, fine = _tables(a_GSP, length)
    padded = torch.nn.functional.pad(x_BTGR.flip(1), (0, 0, 0, 0, 0, -length % CHUNK))
    inner = torch.einsum("bcqgr,qgsp->bcgrsp", padded.unflatten(1, (-1, CHUNK)), fine) if length else None
    if inner is None:
        return x_BTGR.new_zeros(*x_BTGR.shape[:1], *x_BTGR.shape[2:], *a_GSP.shape[1:])
    return _times(coarse.unsqueeze(2).expand(inner.shape), inner).sum(1)


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
