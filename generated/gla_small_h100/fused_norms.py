"""rmsnorm, alone and times a gate: one kernel on a GPU, forward and backward."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from .norm_modules import RMSNorm as PlainRMSNorm
from .norms import rmsnorm as torch_rmsnorm

WIDEST, WIDEST_GATED = 16384, 8192  # entries of a row that a kernel holds in registers

# One package may be imported several times, and each import registers its own operations.
_NAMESPACE = re.sub(r"\W", "_", __name__)
while hasattr(getattr(torch.ops, _NAMESPACE), "rmsnorm"):
    _NAMESPACE += "_"


class RMSNorm(PlainRMSNorm):
    """`rmsnorm` with a weight, and its product with `activation(gate)` where a gate is given."""

    def forward(self, x: Tensor, gate: Tensor | None = None, activation: str = "none") -> Tensor:
        """Shapes: x [..., *shape] or with fewer trailing axes of it -> the same; gate as x."""
        return rmsnorm(x, self.weight, eps=self.eps, dims=self.dims, gate=gate, activation=activation)


def rmsnorm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    eps: float,
    dims: tuple[int, ...] = (-1,),
    zero_centred: bool = False,
    gate: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """`x / sqrt(mean(x ** 2) + eps) * weight * activation(gate)`; the mean over `dims`, which are the last ones.

    `weight` has the shape of trailing axes of `x`, more or fewer than the mean runs over; `zero_centred` adds 1 to
    it. `gate` has the shape of `x`. Activations: silu, sigmoid, none.
    """
    if not _has_kernel(x, gate, len(dims)):
        normed = torch_rmsnorm(x, weight, eps=eps, dims=dims, zero_centred=zero_centred)
        return normed if gate is None else normed * _activated(gate, activation)
    if weight is not None and weight.dim() < len(dims):
        weight = weight.expand(x.shape[-len(dims) :])
    y: Tensor = _forward(x, weight, gate, eps, math.prod(x.shape[-len(dims) :]), zero_centred, activation)
    return y


def _has_kernel(x: Tensor, gate: Tensor | None, dims: int) -> bool:
    """Whether x lies on a GPU and its rows fit in registers; sums are in float32."""
    widest = WIDEST if gate is None else WIDEST_GATED
    return x.is_cuda and x.dtype != torch.float64 and math.prod(x.shape[-dims:]) <= widest


def _activated(gate: Tensor, activation: str) -> Tensor:
    if activation == "none":
        return gate
    return torch.sigmoid(gate) if activation == "sigmoid" else F.silu(gate)


@torch.library.custom_op(f"{_NAMESPACE}::rmsnorm", mutates_args=(), device_types="cuda")
def _forward(
    x: Tensor,
    weight: Tensor | None,
    gate: Tensor | None,
    eps: float,
    width: int,
    zero_centred: bool,
    activation: str,
) -> Tensor:
    from .norm_kernels import launch_rmsnorm

    with torch.cuda.device(x.get_device()):  # launches go to the current one
        return launch_rmsnorm(x, weight, gate, eps, width, zero_centred, activation)


@_forward.register_fake
def _(x: Tensor, weight: Tensor | None, gate: Tensor | None, *_: Any) -> Tensor:
    dtype = x.dtype if gate is None else torch.promote_types(x.dtype, gate.dtype)
    return x.new_empty(x.shape, dtype=dtype)


@torch.library.custom_op(f"{_NAMESPACE}::rmsnorm_backward", mutates_args=(), device_types="cuda")
def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    gate: Tensor | None,
    eps: float,
    width: int,
    zero_centred: bool,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and gate; empty tensors for what is not there."""
    from .norm_kernels import launch_rmsnorm_backward

    with torch.cuda.device(x.get_device()):
        return launch_rmsnorm_backward(dy, x, weight, gate, eps, width, zero_centred, activation)


@_backward.register_fake
def _(
    dy: Tensor, x: Tensor, weight: Tensor | None, gate: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    dweight, dgate = (x.new_empty(0) if w is None else w.new_empty(w.shape) for w in (weight, gate))
    return x.new_empty(x.shape), dweight, dgate


def _save(ctx: FunctionCtx, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])  # type: ignore[arg-type]
    ctx.settings = inputs[3:]  # type: ignore[attr-defined]


def _differentiate(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, gate = ctx.saved_tensors  # type: ignore[attr-defined]
    dx, dweight, dgate = _backward(dy.contiguous(), x, weight, gate, *ctx.settings)  # type: ignore[attr-defined]
    return dx, None if weight is None else dweight, None if gate is None else dgate, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
