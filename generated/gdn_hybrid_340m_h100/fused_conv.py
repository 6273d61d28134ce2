"""Causal convolutions with the activation and the norm that follow them: one kernel for several on a GPU."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from .conv1d import CausalConv1d, causal_conv1d
from .conv1d import _backward as conv_backward
from .history import last_tokens
from .norms import l2norm, rmsnorm
from .place import Place

if TYPE_CHECKING:
    from .conv_kernels import Branches

WIDEST, LARGEST_HEAD = 8, 1024  # of the kernels: taps, and entries of a norm

# One package may be imported several times, and each import registers its own operations.
_NAMESPACE = re.sub(r"\W", "_", __name__)
while hasattr(getattr(torch.ops, _NAMESPACE), "conv_act_norm"):
    _NAMESPACE += "_"


class Conv(NamedTuple):
    """`norm(activation(conv(x)))` of `x [B, T, ...]`, the norm over the last axis, by its eps.

    key: of the convolution's memory. activation: silu, relu, gelu or none.
    """

    conv: CausalConv1d
    key: str
    x: Tensor
    activation: str = "none"
    l2norm: float | None = None
    rmsnorm: float | None = None

    def torch_form(self, place: Place) -> Tensor:
        """Step by step."""
        y: Tensor = _activate(self.conv(self.x, place, self.key), self.activation)
        if self.l2norm is not None:
            return l2norm(y, eps=self.l2norm)
        return y if self.rmsnorm is None else rmsnorm(y, eps=self.rmsnorm)


def conv_act_norm(place: Place, *branches: Conv) -> tuple[Tensor, ...]:
    """Each branch's result, with the shape and dtype of its x. The convolutions have the same width."""
    if not all(_has_kernel(branch) for branch in branches):
        return tuple(branch.torch_form(place) for branch in branches)
    cu_seqlens, sequence = place.layout.cu_seqlens, place.layout.sequence_T
    x = [branch.x.flatten(2) for branch in branches]
    weight = [branch.conv.weight.to(branch.x.dtype) for branch in branches]
    bias = [branch.conv.bias.to(branch.x.dtype) for branch in branches if branch.conv.bias is not None]
    kept = [place.read(branch.key) for branch in branches]
    past = [before for before in kept if before is not None]
    heads = [branch.x.shape[-1] for branch in branches]
    steps = ", ".join(f"{branch.activation} {_norm(branch)}" for branch in branches)
    eps = [branch.l2norm or branch.rmsnorm or 0.0 for branch in branches]
    y = _forward(x, weight, bias, past, sequence, cu_seqlens, heads, steps, eps)
    if past:
        if torch.is_grad_enabled():  # the next call may be differentiated to here
            last = [last_tokens(piece, before, cu_seqlens) for piece, before in zip(x, past, strict=True)]
        else:
            last = _last(x, past, cu_seqlens)
        for branch, tokens in zip(branches, last, strict=True):
            place.write(branch.key, tokens)
    return tuple(result.view_as(branch.x) for result, branch in zip(y, branches, strict=True))


def _has_kernel(branch: Conv) -> bool:
    wide = branch.x.dtype == torch.float64 or _norm(branch) != "none" and branch.x.shape[-1] > LARGEST_HEAD
    return branch.x.is_cuda and not wide and 1 < branch.conv.weight.shape[1] <= WIDEST


def _norm(branch: Conv) -> str:
    return "l2norm" if branch.l2norm is not None else "none" if branch.rmsnorm is None else "rmsnorm"


def _activate(x: Tensor, activation: str) -> Tensor:
    if activation == "silu":
        return F.silu(x)
    if activation == "relu":
        return F.relu(x)
    return F.gelu(x) if activation == "gelu" else x


# -- the operation ----------------------------------------------------------------------------------------------------


@torch.library.custom_op(f"{_NAMESPACE}::conv_act_norm", mutates_args=())
def _forward(
    x: Sequence[Tensor],
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    past: Sequence[Tensor],
    sequence: Tensor | None,
    cu_seqlens: Tensor | None,
    heads: Sequence[int],
    steps: str,
    eps: Sequence[float],
) -> list[Tensor]:
    """Branches side by side: `x [B, T, C]` in heads of `heads` entries; `steps` is "silu l2norm, silu none".

    `bias` and `past` are empty where there are none; `sequence [T]` goes with `cu_seqlens`.
    """
    found = []
    for b, step in enumerate(steps.split(", ")):
        activation, norm = step.split()
        y = _activate(_convolved(x, weight, bias, past, cu_seqlens, b), activation)
        found.append(_normed(y, norm, heads[b], eps[b]).to(x[b].dtype))
    return found


@_forward.register_fake
def _(x: Sequence[Tensor], *_: Any) -> list[Tensor]:
    return [piece.new_empty(piece.shape) for piece in x]


@_forward.register_kernel("cuda")
def _(x: Sequence[Tensor], weight: Sequence[Tensor], *given: Any) -> list[Tensor]:
    from .conv_kernels import launch_conv

    bias, past, sequence, cu_seqlens, *of = given
    with torch.cuda.device(x[0].get_device()):  # launches go to the current one
        return launch_conv(x, weight, bias, past, sequence, cu_seqlens, _branches(x, weight, *of))


@torch.library.custom_op(f"{_NAMESPACE}::conv_act_norm_backward", mutates_args=())
def _backward(
    dy: Sequence[Tensor],
    x: Sequence[Tensor],
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    past: Sequence[Tensor],
    sequence: Tensor | None,
    cu_seqlens: Tensor | None,
    heads: Sequence[int],
    steps: str,
    eps: Sequence[float],
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """The gradients of x, weight, bias and past. Nothing was saved: the convolution is computed again."""
    found: tuple[list[Tensor], ...] = ([], [], [], [])
    for b, step in enumerate(steps.split(", ")):
        activation, norm = step.split()
        z = _convolved(x, weight, bias, past, cu_seqlens, b)
        dz = _before_norm(dy[b].to(z.dtype), _activate(z, activation), norm, heads[b], eps[b])
        if activation == "silu":
            dz = torch.ops.aten.silu_backward(dz, z)
        elif activation == "relu":
            dz = dz * (z > 0)
        elif activation == "gelu":
            dz = torch.ops.aten.gelu_backward(dz, z)
        gradients = conv_backward(
            dz, x[b].to(z.dtype), weight[b].to(z.dtype), past[b].to(z.dtype) if past else None, cu_seqlens
        )
        for all_of_one, gradient, of in zip(found, gradients, (x, weight, bias, past), strict=True):
            if of:
                all_of_one.append(gradient.to(of[b].dtype))
    return found[0], found[1], found[2], found[3]


@_backward.register_fake
def _(dy: Sequence[Tensor], *given: Any) -> tuple[list[Tensor], ...]:
    return tuple([piece.new_empty(piece.shape) for piece in of] for of in given[:4])


@_backward.register_kernel("cuda")
def _(
    dy: Sequence[Tensor], x: Sequence[Tensor], weight: Sequence[Tensor], *given: Any
) -> tuple[list[Tensor], ...]:
    from .conv_kernels import launch_conv_backward

    bias, past, sequence, cu_seqlens, *of = given
    branches = _branches(x, weight, *of)
    with torch.cuda.device(x[0].get_device()):
        return launch_conv_backward(dy, x, weight, bias, past, sequence, cu_seqlens, branches)


@torch.library.custom_op(f"{_NAMESPACE}::conv_last", mutates_args=())
def _last(x: Sequence[Tensor], past: Sequence[Tensor], cu_seqlens: Tensor | None) -> list[Tensor]:
    """The past of the next call; for calls that are not differentiated."""
    return [last_tokens(piece, before, cu_seqlens).clone() for piece, before in zip(x, past, strict=True)]


@_last.register_fake
def _(x: Sequence[Tensor], past: Sequence[Tensor], cu_seqlens: Tensor | None) -> list[Tensor]:
    return [piece.new_empty(before.shape) for piece, before in zip(x, past, strict=True)]


@_last.register_kernel("cuda")
def _(x: Sequence[Tensor], past: Sequence[Tensor], cu_seqlens: Tensor | None) -> list[Tensor]:
    from .conv_kernels import branches, launch_conv_last

    channels = [piece.shape[2] for piece in x]
    steps = ", ".join(["none none"] * len(x))
    of = branches(channels, channels, steps, [0.0] * len(x), past[0].shape[1] + 1)
    with torch.cuda.device(x[0].get_device()):
        return launch_conv_last(x, past, cu_seqlens, of)


def _branches(
    x: Sequence[Tensor], weight: Sequence[Tensor], heads: Sequence[int], steps: str, eps: Sequence[float]
) -> Branches:
    """What the kernels know of the branches."""
    from .conv_kernels import branches

    return branches([piece.shape[2] for piece in x], heads, steps, eps, weight[0].shape[1])


def _save(ctx: FunctionCtx, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, weight, bias, past, sequence, cu_seqlens, *steps = inputs
    ctx.save_for_backward(*x, *weight, *bias, *past, sequence, cu_seqlens)
    ctx.counts = [len(x), len(weight), len(bias), len(past)]  # type: ignore[attr-defined]
    ctx.steps = steps  # type: ignore[attr-defined]


def _differentiate(ctx: FunctionCtx, dy: Sequence[Tensor]) -> tuple[list[Tensor] | None, ...]:
    *saved, sequence, cu_seqlens = ctx.saved_tensors  # type: ignore[attr-defined]
    given: list[list[Tensor]] = []
    for count in ctx.counts:  # type: ignore[attr-defined]
        given.append(saved[:count])
        saved = saved[count:]
    dy = [gradient.contiguous() for gradient in dy]
    found = _backward(dy, *given, sequence, cu_seqlens, *ctx.steps)  # type: ignore[attr-defined]
    return *found, None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


# -- its torch form ---------------------------------------------------------------------------------------------------


def _convolved(
    x: Sequence[Tensor],
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    past: Sequence[Tensor],
    cu_seqlens: Tensor | None,
    b: int,
) -> Tensor:
    """The convolution of one branch, in float32 or wider."""
    wide = torch.promote_types(x[b].dtype, torch.float32)
    bias_C = bias[b].to(wide) if bias else None
    past_C = past[b].to(wide) if past else None
    return causal_conv1d(x[b].to(wide), weight[b].to(wide), bias_C, past_C, cu_seqlens)


def _normed(a: Tensor, norm: str, head: int, eps: float) -> Tensor:
    if norm == "none":
        return a
    by_head = torch.unflatten(a, -1, (-1, head))
    return (l2norm(by_head, eps=eps) if norm == "l2norm" else rmsnorm(by_head, eps=eps)).flatten(-2)


def _before_norm(dy: Tensor, a: Tensor, norm: str, head: int, eps: float) -> Tensor:
    """The gradient of a from that of `y = a * scale`: `scale * (dy - y * <y, dy>)`, a mean for rmsnorm."""
    if norm == "none":
        return dy
    by_head, dy = torch.unflatten(a, -1, (-1, head)), torch.unflatten(dy, -1, (-1, head))
    square = by_head.square().sum(-1, keepdim=True)
    entries = 1 if norm == "l2norm" else head
    scale = (square / entries + eps).rsqrt()
    y = by_head * scale
    return (scale * (dy - y * ((y * dy).sum(-1, keepdim=True) / entries))).flatten(-2)
