"""The elementwise recurrence `h_t = exp(g_t) h_{t-1} + b_t` with a vector state, real or complex.

A complex value is a pair of real tensors. Only inside the custom operations are there complex tensors, which
compilers need not see.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .place import Layout, Place

# One package may be imported under several names, and each import registers its own operations.
_NAMESPACE = re.sub(r"\W", "_", __name__)


def scan(x: Tensor, decay: Tensor | float, place: Place, key: str) -> Tensor:
    """`h_t = exp(decay_t) h_{t-1} + x_t` for `x [B, T, ...]`; the log decays, `<= 0`, expand to its shape.

    Computed in float32 or wider; the state entry is h after the last token, `[N, ...]`, in that precision.
    """
    b, layout = x, place.layout
    wide = torch.float64 if b.dtype == torch.float64 else torch.float32
    g_wide, b_wide = _like(b, decay, wide), b.to(wide)
    before = place.read(key)
    if before is not None and b.shape[1] == 1 and layout.cu_seqlens is None:
        after = torch.exp(g_wide[:, 0]) * before + b_wide[:, 0]
        place.write(key, after)
        return after.unsqueeze(1).to(b.dtype)
    if layout.cu_seqlens is not None:
        row, first = _first_tokens(layout, b.dim())
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
        place.write(key, _last_tokens(h, before, layout))
    return h.to(b.dtype)


def complex_scan(
    x: Tensor,
    imag: Tensor | float | None,
    decay: Tensor | float,
    angle: Tensor | float,
    place: Place,
    key: str,
) -> tuple[Tensor, Tensor]:
    """`h_t = exp(decay_t + i angle_t) h_{t-1} + x_t + i imag_t`: real and imaginary part, each as `x [B, T, ...]`.

    Log decays (`<= 0`), angles and `imag` (None: 0) expand to the shape of `x`. Computed in float32 or wider; the
    state entries `key` and `key.imag` are h after the last token, `[N, ...]`, in that precision.
    """
    layout, key_imag = place.layout, f"{key}.imag"
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    g, angle = _like(x, decay, wide), _like(x, angle, wide)
    re = x.to(wide)
    im = torch.zeros_like(re) if imag is None else _like(x, imag, wide)
    before_re, before_im = place.read(key), place.read(key_imag)
    if before_re is not None and before_im is not None:
        if x.shape[1] == 1 and layout.cu_seqlens is None:
            kept_re, kept_im = _turned(g[:, 0], angle[:, 0], before_re, before_im)
            after_re, after_im = kept_re + re[:, 0], kept_im + im[:, 0]
            place.write(key, after_re)
            place.write(key_imag, after_im)
            return after_re.unsqueeze(1).to(x.dtype), after_im.unsqueeze(1).to(x.dtype)
        if layout.cu_seqlens is None:
            held = before_re.to(wide).unsqueeze(1), before_im.to(wide).unsqueeze(1)
            kept_re, kept_im = _turned(g[:, :1], angle[:, :1], *held)
            re = torch.cat([re[:, :1] + kept_re, re[:, 1:]], 1)
            im = torch.cat([im[:, :1] + kept_im, im[:, 1:]], 1)
    if layout.cu_seqlens is not None:
        row, first = _first_tokens(layout, x.dim())
        if before_re is not None and before_im is not None:
            kept_re, kept_im = _turned(g, angle, before_re.to(wide)[row], before_im.to(wide)[row])
            re, im = re + torch.where(first, kept_re, 0), im + torch.where(first, kept_im, 0)
        g = g.masked_fill(first, float("-inf"))
    if place.form == "step":
        h_re, h_im = _complex_loop(g, angle, re, im)
    else:
        flat = complex_elementwise_scan(g.flatten(2), angle.flatten(2), re.flatten(2), im.flatten(2))
        h_re, h_im = flat[0].view(re.shape), flat[1].view(re.shape)
    if before_re is not None and before_im is not None:
        place.write(key, _last_tokens(h_re, before_re, layout))
        place.write(key_imag, _last_tokens(h_im, before_im, layout))
    return h_re.to(x.dtype), h_im.to(x.dtype)


def _like(x: Tensor, value: Tensor | float, wide: torch.dtype) -> Tensor:
    """A value or a plain number in the shape of `x`."""
    if not isinstance(value, Tensor):
        value = x.new_full((), value, dtype=wide)
    return value.to(wide).expand(x.shape)


def _first_tokens(layout: Layout, dim: int) -> tuple[Tensor, Tensor]:
    """Of a packed row: the sequence of each token, `[T]`; and where one begins, `[1, T, 1, ...]` of `dim` axes.

    The first token of a sequence takes its state as input and forgets what stands before it in the row. Tokens
    after the last sequence all count as first ones, so nothing runs on into them.
    """
    assert layout.cu_seqlens is not None and layout.sequence_T is not None
    row = layout.sequence_T.clamp(max=layout.cu_seqlens.shape[0] - 2)
    token = torch.arange(row.shape[0], device=row.device)
    first = (token == layout.cu_seqlens[row]) | (layout.sequence_T > row)
    return row, first.view(1, -1, *(1,) * (dim - 2))


def _last_tokens(h: Tensor, before: Tensor, layout: Layout) -> Tensor:
    """`h [B, T, ...]` at the last token of each sequence, `[N, ...]`; what was there where it has none."""
    if layout.cu_seqlens is None:
        return h[:, -1].clone() if h.shape[1] else before
    last = h[0][(layout.cu_seqlens[1:] - 1).clamp(min=0)]
    some = (layout.cu_seqlens.diff() > 0).view(-1, *(1,) * (h.dim() - 2))
    return torch.where(some, last, before.to(h.dtype))


def _turned(g: Tensor, angle: Tensor, re: Tensor, im: Tensor) -> tuple[Tensor, Tensor]:
    """`exp(g + i angle) (re + i im)`."""
    kept, cos, sin = torch.exp(g), torch.cos(angle), torch.sin(angle)
    return kept * (cos * re - sin * im), kept * (sin * re + cos * im)


def elementwise_scan(g_BTC: Tensor, b_BTC: Tensor) -> Tensor:
    """`h_t = exp(g_t) h_{t-1} + b_t` from h = 0, for `g <= 0` (-inf forgets), in float32 or float64."""
    h: Tensor = _forward(g_BTC, b_BTC)
    return h


def _loop(g: Tensor, b: Tensor) -> Tensor:
    """The definition, token by token."""
    h, states = b.new_zeros(b.shape[0], *b.shape[2:]), []
    for t in range(b.shape[1]):
        h = torch.exp(g[:, t]) * h + b[:, t]
        states.append(h)
    return torch.stack(states, 1) if states else b


def _complex_loop(g: Tensor, angle: Tensor, re: Tensor, im: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, token by token."""
    h_re = h_im = re.new_zeros(re.shape[0], *re.shape[2:])
    states = []
    for t in range(re.shape[1]):
        kept_re, kept_im = _turned(g[:, t], angle[:, t], h_re, h_im)
        h_re, h_im = kept_re + re[:, t], kept_im + im[:, t]
        states.append((h_re, h_im))
    if not states:
        return re, im
    return torch.stack([pair[0] for pair in states], 1), torch.stack([pair[1] for pair in states], 1)


def complex_elementwise_scan(
    g_BTC: Tensor, angle_BTC: Tensor, re_BTC: Tensor, im_BTC: Tensor
) -> tuple[Tensor, Tensor]:
    """`h_t = exp(g_t + i angle_t) h_{t-1} + re_t + i im_t` from h = 0: its real and imaginary part."""
    h: tuple[Tensor, Tensor] = _complex_forward(g_BTC, angle_BTC, re_BTC, im_BTC)
    return h


def _chunked(factor_BTC: Tensor, b_BTC: Tensor) -> Tensor:
    """`h_t = factor_t h_{t-1} + b_t`, real or complex, by chunks that advance side by side.

    Then their ends are chained, and added where they reach. With about sqrt(T) tokens a chunk, 2 sqrt(T) steps;
    factors are multiplied, never divided by.
    """
    batch, length, channels = b_BTC.shape
    size = max(1, math.isqrt(length))
    pad = -length % size
    factor, h = (
        torch.nn.functional.pad(value, (0, 0, 0, pad))
        if pad
        else value.clone(memory_format=torch.contiguous_format)
        for value in (factor_BTC, b_BTC)
    )
    factor, h = factor.view(batch, -1, size, channels), h.view(batch, -1, size, channels)
    for t in range(1, size):
        h[:, :, t].addcmul_(factor[:, :, t], h[:, :, t - 1])
        factor[:, :, t] *= factor[:, :, t - 1]
    for chunk in range(1, h.shape[1]):
        h[:, chunk].addcmul_(factor[:, chunk], h[:, chunk - 1, -1:])
    return h.view(batch, -1, channels)[:, :length].contiguous()


@torch.library.custom_op(f"{_NAMESPACE}::elementwise_scan", mutates_args=())
def _forward(g_BTC: Tensor, b_BTC: Tensor) -> Tensor:
    return _chunked(torch.exp(g_BTC), b_BTC)


@_forward.register_fake
def _(g_BTC: Tensor, b_BTC: Tensor) -> Tensor:
    return b_BTC.new_empty(b_BTC.shape)


@torch.library.custom_op(f"{_NAMESPACE}::elementwise_scan_backward", mutates_args=())
def _backward(dh_BTC: Tensor, g_BTC: Tensor, h_BTC: Tensor) -> tuple[Tensor, Tensor]:
    """The adjoint is the same scan backwards in time, each decay one token later."""
    later = torch.nn.functional.pad(g_BTC[:, 1:], (0, 0, 0, 1))
    db = _chunked(torch.exp(later).flip(1), dh_BTC.flip(1)).flip(1)
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


@torch.library.custom_op(f"{_NAMESPACE}::complex_elementwise_scan", mutates_args=())
def _complex_forward(
    g_BTC: Tensor, angle_BTC: Tensor, re_BTC: Tensor, im_BTC: Tensor
) -> tuple[Tensor, Tensor]:
    return _parts(_chunked(torch.polar(torch.exp(g_BTC), angle_BTC), torch.complex(re_BTC, im_BTC)))


@_complex_forward.register_fake
def _(g_BTC: Tensor, angle_BTC: Tensor, re_BTC: Tensor, im_BTC: Tensor) -> tuple[Tensor, Tensor]:
    return re_BTC.new_empty(re_BTC.shape), re_BTC.new_empty(re_BTC.shape)


@torch.library.custom_op(f"{_NAMESPACE}::complex_elementwise_scan_backward", mutates_args=())
def _complex_backward(
    dre_BTC: Tensor, dim_BTC: Tensor, g_BTC: Tensor, angle_BTC: Tensor, re_BTC: Tensor, im_BTC: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The adjoint is the scan backwards in time with conjugate factors, each one token later.

    With a = exp(g + i angle) and db the gradient of an input, written as a complex number, the loss changes by
    Re(conj(db_t) (dg_t + i dangle_t) a_t h_{t-1}).
    """
    factor = torch.polar(torch.exp(g_BTC), angle_BTC)
    later = torch.nn.functional.pad(factor[:, 1:], (0, 0, 0, 1)).conj().resolve_conj()
    db = _chunked(later.flip(1), torch.complex(dre_BTC, dim_BTC).flip(1)).flip(1)
    earlier = torch.nn.functional.pad(torch.complex(re_BTC, im_BTC)[:, :-1], (0, 0, 1, 0))
    product = db.conj() * factor * earlier
    dg, minus_dangle = _parts(product)
    return dg, -minus_dangle, *_parts(db)


@_complex_backward.register_fake
def _(
    dre_BTC: Tensor, dim_BTC: Tensor, g_BTC: Tensor, angle_BTC: Tensor, re_BTC: Tensor, im_BTC: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = g_BTC.shape
    return (
        g_BTC.new_empty(shape),
        g_BTC.new_empty(shape),
        g_BTC.new_empty(shape),
        g_BTC.new_empty(shape),
    )


def _parts(value: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part, each in storage of its own."""
    return (
        value.real.clone(memory_format=torch.contiguous_format),
        value.imag.clone(memory_format=torch.contiguous_format),
    )


def _save_complex(
    ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]
) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], *output)


def _differentiate_complex(
    ctx: FunctionCtx, dre_BTC: Tensor, dim_BTC: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    saved = ctx.saved_tensors  # type: ignore[attr-defined]
    found: tuple[Tensor, Tensor, Tensor, Tensor] = _complex_backward(
        dre_BTC.contiguous(), dim_BTC.contiguous(), *saved
    )
    return found


_complex_forward.register_autograd(_differentiate_complex, setup_context=_save_complex)
