"""Causal depthwise convolution over the tokens of each sequence."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from .history import extend, last_tokens, past_rows
from .place import Place

# One package may be imported under several names, and each import registers its own operations.
_NAMESPACE = re.sub(r"\W", "_", __name__)


class CausalConv1d(nn.Module):
    """`y_t = bias + sum_j weight[:, j] x_{t - width + 1 + j}`: the last column meets the current token.

    `weight [channels, width]` is the layout of torch's `Conv1d` without the middle axis. The state entry
    is the last `width - 1` inputs of each sequence, `[N, width - 1, channels]`.
    """

    bias: nn.Parameter  # or None, as in torch's own modules

    def __init__(
        self,
        channels: int,
        width: int,
        bias: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, width, device=device, dtype=dtype))
        found = nn.Parameter(torch.empty(channels, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", found)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within `width ** -0.5`, as torch's own depthwise convolution starts."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, place: Place, key: str) -> Tensor:
        """`x [B, T, ...]`, whose feature axes hold `channels` in all; the result has its shape and dtype."""
        x_BTC = x.flatten(2)
        weight = self.weight.to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        past = place.read(key)
        cu_seqlens = place.layout.cu_seqlens
        if past is not None and past.shape[1] > 0:
            if place.in_place and cu_seqlens is None and x.shape[1] == 1:
                return _step(x_BTC, weight, bias, past).view_as(x)
            y = causal_conv1d(x_BTC, weight, bias, past, cu_seqlens)
            place.write(key, last_tokens(x_BTC, past, cu_seqlens))
            return y.view_as(x)
        return causal_conv1d(x_BTC, weight, bias, None, cu_seqlens).view_as(x)

    def extra_repr(self) -> str:
        channels, width = self.weight.shape
        return f"{channels}, width={width}, bias={self.bias is not None}"


def causal_conv1d(
    x_BTC: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor | None, cu_seqlens: Tensor | None
) -> Tensor:
    """The convolution of `x_BTC` by `weight [C, W]`, after `past [N, W - 1, C]`; sums in float32 or wider."""
    y: Tensor = _forward(x_BTC, weight, bias, past, cu_seqlens)
    return y


def _step(x_BTC: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor) -> Tensor:
    """One token for each sequence; `past` moves on by one token, in place."""
    window = torch.cat([past.to(x_BTC.dtype), x_BTC], 1)
    past.copy_(window[:, 1:])
    wide = _wide(x_BTC.dtype)
    y = (window.to(wide) * weight.t().to(wide)).sum(1, keepdim=True)
    return (y if bias is None else y + bias).to(x_BTC.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@torch.library.custom_op(f"{_NAMESPACE}::causal_conv1d", mutates_args=())
def _forward(
    x_BTC: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor | None, cu_seqlens: Tensor | None
) -> Tensor:
    width = weight.shape[1]
    wide = _wide(x_BTC.dtype)
    extended, rows = extend(x_BTC, past, cu_seqlens, width - 1)
    length = extended.shape[1] - width + 1
    taps = weight.to(wide)
    y = extended[:, :length] * taps[:, 0]
    for j in range(1, width):
        y.addcmul_(extended[:, j : j + length].to(wide), taps[:, j])
    if bias is not None:
        y += bias
    if rows is not None:
        y = y[:, rows - width + 1]
    return y.to(x_BTC.dtype)


@_forward.register_fake
def _(
    x_BTC: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor | None, cu_seqlens: Tensor | None
) -> Tensor:
    return x_BTC.new_empty(x_BTC.shape)


@torch.library.custom_op(f"{_NAMESPACE}::causal_conv1d_backward", mutates_args=())
def _backward(
    dy_BTC: Tensor, x_BTC: Tensor, weight: Tensor, past: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, weight, bias and past; the last is empty where there is none."""
    width = weight.shape[1]
    wide = _wide(x_BTC.dtype)
    extended, rows = extend(x_BTC, past, cu_seqlens, width - 1)
    length = extended.shape[1] - width + 1
    dy_wide = dy_BTC.to(wide)
    dbias = dy_wide.sum((0, 1))
    if rows is not None:
        dy_wide = dy_wide.new_zeros(1, length, weight.shape[0]).index_copy_(1, rows - width + 1, dy_wide)
    taps = weight.to(wide)
    dextended = dy_wide.new_zeros(extended.shape)
    dweight = torch.empty_like(taps)
    for j in range(width):
        dextended[:, j : j + length].addcmul_(dy_wide, taps[:, j])
        dweight[:, j] = (extended[:, j : j + length] * dy_wide).sum((0, 1))
    if rows is None:
        dx, dpast = dextended[:, width - 1 :], dextended[:, : width - 1]
    else:
        assert cu_seqlens is not None
        dx = dextended[:, rows]
        dpast = dextended[0, past_rows(cu_seqlens, width - 1)]
    dpast = x_BTC.new_empty(0) if past is None else dpast.reshape(past.shape).to(past.dtype, copy=True)
    return dx.to(x_BTC.dtype, copy=True), dweight.to(weight.dtype), dbias.to(weight.dtype), dpast


@_backward.register_fake
def _(
    dy_BTC: Tensor, x_BTC: Tensor, weight: Tensor, past: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dpast = x_BTC.new_empty(0) if past is None else past.new_empty(past.shape)
    channels = weight.shape[0]
    return x_BTC.new_empty(x_BTC.shape), weight.new_empty(weight.shape), weight.new_empty(channels), dpast


def _save(ctx: FunctionCtx, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    x_BTC, weight, bias, past, cu_seqlens = inputs
    ctx.save_for_backward(x_BTC, weight, past, cu_seqlens)  # type: ignore[arg-type]
    ctx.has_bias = bias is not None  # type: ignore[attr-defined]


def _differentiate(ctx: FunctionCtx, dy_BTC: Tensor) -> tuple[Tensor | None, ...]:
    x_BTC, weight, past, cu_seqlens = ctx.saved_tensors  # type: ignore[attr-defined]
    dx, dweight, dbias, dpast = _backward(dy_BTC.contiguous(), x_BTC, weight, past, cu_seqlens)
    has_bias = ctx.has_bias  # type: ignore[attr-defined]
    return dx, dweight, dbias if has_bias else None, None if past is None else dpast, None


_forward.register_autograd(_differentiate, setup_context=_save)
