"""The softmax over the tokens so far, entry by entry."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from .place import Place
from .scan import elementwise_scan

# One package may be imported under several names, and each import registers its own operations.
_NAMESPACE = re.sub(r"\W", "_", __name__)
_EMPTY = float("-inf")  # the logarithm of a sum over no token


def running_softmax(x: Tensor, place: Place, key: str) -> tuple[Tensor, Tensor]:
    """`exp(x_t - z_t)` and `z_(t-1) - z_t`, z_t the logarithm of the sum of exp(x_s) over s <= t: `[B, T, ...]` each.

    Both are functions of `x_t - z_(t-1)` alone, a sigmoid and a logsigmoid: the weight of the token and what is
    kept of the earlier ones add up to 1 whatever the rounding of z, and no large logarithms cancel. At the first
    token of a sequence they are 1 and 0. The weight has the dtype of x, all else is float32 or wider; the state
    entry is z after the last token, `[N, ...]`.
    """
    layout, before = place.layout, place.read(key)
    wide = x.double() if x.dtype == torch.float64 else x.float()
    token = torch.arange(x.shape[1], device=x.device)
    start = wide.new_full((), _EMPTY)  # z before the first token
    if layout.cu_seqlens is None:
        first = token == 0
        if before is not None:
            start = before.to(wide.dtype).unsqueeze(1)
    else:
        assert layout.sequence_T is not None
        row = layout.sequence_T.clamp(max=layout.cu_seqlens.shape[0] - 2)
        # A token that belongs to no sequence is one of its own.
        first = (token == layout.cu_seqlens[row]) | (layout.sequence_T > row)
        if before is not None:
            start = before.to(wide.dtype)[row].unsqueeze(0)
    first = first.view(1, -1, *(1,) * (x.dim() - 2))
    entered = wide if before is None else torch.where(first, torch.logaddexp(wide, start), wide)
    if x.shape[1] <= 1:
        z = entered
    elif place.form == "step":
        z = _loop(entered, first)
    else:
        z = running_logsumexp(entered.flatten(2), first.flatten()).view(wide.shape)
    earlier = torch.where(first, start, z.roll(1, 1))  # token 0 is a first one, so nothing comes round
    if before is not None:  # not sooner: in place, this overwrites what `start` is a view of
        place.write(key, _last(z, before.to(wide.dtype), layout.cu_seqlens))
    alone = earlier == _EMPTY
    ahead = (wide - earlier).masked_fill(alone, 0)
    weight = torch.sigmoid(ahead).masked_fill(alone, 1)
    return weight.to(x.dtype), F.logsigmoid(-ahead).masked_fill(alone, 0)


def running_logsumexp(x_BTC: Tensor, first_T: Tensor) -> Tensor:
    """`z_t = log(exp(z_(t-1)) + exp(x_t))`, but x_t at first tokens (token 0 is one), in float32 or float64."""
    z: Tensor = _forward(x_BTC, first_T)
    return z


def _last(z: Tensor, before: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """z after the last token of each sequence, `[N, ...]`; what was before where a sequence has no token."""
    if cu_seqlens is None:
        return z[:, -1].clone() if z.shape[1] else before
    if not z.shape[1]:
        return before
    some = (cu_seqlens.diff() > 0).view(-1, *(1,) * (z.dim() - 2))
    return torch.where(some, z[0][(cu_seqlens[1:] - 1).clamp(min=0)], before)


def _loop(x: Tensor, first: Tensor) -> Tensor:
    """The definition, token by token."""
    z, sums = torch.full_like(x[:, 0], _EMPTY), []
    for t in range(x.shape[1]):
        z = torch.logaddexp(x[:, t], z.masked_fill(first[:, t], _EMPTY))
        sums.append(z)
    return torch.stack(sums, 1)


@torch.library.custom_op(f"{_NAMESPACE}::running_logsumexp", mutates_args=())
def _forward(x_BTC: Tensor, first_T: Tensor) -> Tensor:
    """All chunks advance side by side; then their ends are chained: with sqrt(T) tokens a chunk, 2 sqrt(T) steps."""
    batch, length, channels = x_BTC.shape
    size = max(1, math.isqrt(length))
    pad = -length % size
    z = F.pad(x_BTC, (0, 0, 0, pad)).view(batch, -1, size, channels)
    if not pad:
        z = z.clone()
    first = F.pad(first_T, (0, pad)).view(-1, size, 1)
    begun = first.cumsum(1) > 0  # a sequence began since the chunk did: no chunk before reaches the token
    for t in range(1, size):
        z[:, :, t] = torch.logaddexp(z[:, :, t], z[:, :, t - 1].masked_fill(first[:, t], _EMPTY))
    for chunk in range(1, z.shape[1]):
        z[:, chunk] = torch.logaddexp(z[:, chunk], z[:, chunk - 1, -1:].masked_fill(begun[chunk], _EMPTY))
    return z.view(batch, -1, channels)[:, :length].contiguous()


@_forward.register_fake
def _(x_BTC: Tensor, first_T: Tensor) -> Tensor:
    return x_BTC.new_empty(x_BTC.shape)


def _save(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs, output)


def _differentiate(ctx: FunctionCtx, dz_BTC: Tensor) -> tuple[Tensor, None]:
    """dz_t/dx_s = exp(x_s - z_t) for s <= t: what reaches x_s decays backwards in time from token to token."""
    x_BTC, first_T, z_BTC = ctx.saved_tensors  # type: ignore[attr-defined]
    change = (z_BTC - z_BTC.roll(-1, 1)).clamp(max=0).masked_fill(first_T.roll(-1)[:, None], _EMPTY)
    reach = elementwise_scan(change.flip(1), dz_BTC.flip(1)).flip(1)
    return torch.exp(x_BTC - z_BTC) * reach, None


_forward.register_autograd(_differentiate, setup_context=_save)
