"""The language model's loss, some tokens at a time: the logits of all tokens never exist at once."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

# One package may be imported under several names, and each import registers its own operations.
_NAMESPACE = re.sub(r"\W", "_", __name__)

IGNORED = -100


class Loss(NamedTuple):
    """`total = main + aux`: the mean cross entropy, and whatever is added to it. Float32 scalars."""

    total: Tensor
    main: Tensor
    aux: Tensor


def chunked_loss(
    hidden_BTD: Tensor,
    weight: Tensor,
    targets_BT: Tensor,
    chunk: int = 1024,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    aux: Tensor | None = None,
) -> Loss:
    """Mean cross entropy of `targets [B, T]` (see `next_tokens`), over those that are not -100.

    Logits are `logit_scale * hidden @ weight.T` (`weight [vocab, D]`), then
    `softcap * tanh(logits / softcap)`. `z_loss` weighs the mean squared log of the softmax's denominator
    (Chowdhery et al. 2022); it and `aux` make up `Loss.aux`.
    """
    targets = targets_BT.flatten()
    losses, log_sums = token_losses(hidden_BTD.flatten(0, 1), weight, targets, chunk, logit_scale, softcap)
    counted = targets != IGNORED
    count = counted.sum().clamp(min=1)
    main = losses.sum() / count
    extra = main.new_zeros(()) if aux is None else aux.to(main.dtype)
    if z_loss:
        extra = extra + z_loss * log_sums.masked_fill(~counted, 0).square().sum() / count
    return Loss(main + extra, main, extra)


def next_tokens(labels_BT: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """What each position is asked for: `labels`, which are the tokens themselves, moved one to the left.

    The last token of a sequence has no target (-100), nor has anything after the last sequence.
    """
    moved = torch.nn.functional.pad(labels_BT[:, 1:], (0, 1), value=IGNORED)
    if cu_seqlens is None:
        return moved
    token = torch.arange(1, labels_BT.shape[1] + 1, device=labels_BT.device)
    # Token t + 1 belongs to the same sequence unless a border lies between, or no sequence is left.
    after = torch.searchsorted(cu_seqlens[1:].contiguous(), token, right=True)
    before = torch.searchsorted(cu_seqlens[1:].contiguous(), token - 1, right=True)
    ended = (after != before) | (token >= cu_seqlens[-1])
    return moved.masked_fill(ended, IGNORED)


def token_losses(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    chunk: int,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Cross entropy (0 where the target is -100) and log of the softmax's denominator: `[M]` each.

    `hidden [M, D]`, `weight [V, D]`, `targets [M]` int64. Float32 or wider.

    The backward computes each chunk's logits again.
    """
    losses, log_sums = _forward(hidden, weight.to(hidden.dtype), targets, chunk, logit_scale, softcap or 0.0)
    return losses, log_sums


def _logits(hidden: Tensor, weight: Tensor, logit_scale: float, softcap: float) -> Tensor:
    logits = hidden @ weight.t()
    logits = logit_scale * (logits if logits.dtype == torch.float64 else logits.float())
    return softcap * torch.tanh(logits / softcap) if softcap else logits


@torch.library.custom_op(f"{_NAMESPACE}::token_losses", mutates_args=())
def _forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, logit_scale: float, softcap: float
) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    losses = hidden.new_zeros(hidden.shape[0], dtype=wide)
    log_sums = hidden.new_zeros(hidden.shape[0], dtype=wide)
    for start in range(0, hidden.shape[0], chunk):
        part = slice(start, start + chunk)
        with torch.autocast(hidden.device.type, enabled=False):
            logits = _logits(hidden[part], weight, logit_scale, softcap)
        log_sums[part] = logits.logsumexp(1)
        chosen = logits.gather(1, targets[part].clamp(min=0).unsqueeze(1)).squeeze(1)
        losses[part] = (log_sums[part] - chosen).masked_fill(targets[part] == IGNORED, 0)
    return losses, log_sums


@_forward.register_fake
def _(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, logit_scale: float, softcap: float
) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    shape = hidden.shape[:1]
    return hidden.new_empty(shape, dtype=wide), hidden.new_empty(shape, dtype=wide)


@torch.library.custom_op(f"{_NAMESPACE}::token_losses_backward", mutates_args=())
def _backward(
    dlosses: Tensor,
    dlog_sums: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    log_sums: Tensor,
    chunk: int,
    logit_scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    dhidden = torch.empty_like(hidden)
    dweight = torch.zeros_like(weight, dtype=log_sums.dtype)
    dlosses = dlosses.masked_fill(targets == IGNORED, 0)
    for start in range(0, hidden.shape[0], chunk):
        part = slice(start, start + chunk)
        with torch.autocast(hidden.device.type, enabled=False):
            logits = _logits(hidden[part], weight, logit_scale, softcap)
            dlogits = torch.exp(logits - log_sums[part, None]) * (dlosses + dlog_sums)[part, None]
            dlogits.scatter_add_(1, targets[part].clamp(min=0).unsqueeze(1), -dlosses[part, None])
            if softcap:
                dlogits *= 1 - (logits / softcap).square()
            dlogits = (logit_scale * dlogits).to(hidden.dtype)
            dhidden[part] = dlogits @ weight
            dweight += dlogits.t() @ hidden[part]
    return dhidden, dweight.to(weight.dtype)


@_backward.register_fake
def _(
    dlosses: Tensor,
    dlog_sums: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    log_sums: Tensor,
    chunk: int,
    logit_scale: float,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(hidden), torch.empty_like(weight)


def _save(
    ctx: FunctionCtx,
    inputs: tuple[Tensor, Tensor, Tensor, int, float, float],
    output: tuple[Tensor, Tensor],
) -> None:
    hidden, weight, targets, *settings = inputs
    ctx.save_for_backward(hidden, weight, targets, output[1])
    ctx.settings = settings  # type: ignore[attr-defined]


def _differentiate(
    ctx: FunctionCtx, dlosses: Tensor, dlog_sums: Tensor
) -> tuple[Tensor, Tensor, None, None, None, None]:
    saved = ctx.saved_tensors  # type: ignore[attr-defined]
    settings = ctx.settings  # type: ignore[attr-defined]
    dhidden, dweight = _backward(dlosses, dlog_sums, *saved, *settings)
    return dhidden, dweight, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
