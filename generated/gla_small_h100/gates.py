"""What the equations of this model do entry by entry between larger operations, one launch each on a GPU.

Axes: B batch, T tokens, A gate_rank, D d_model, F d_ff, G n_kv_heads, H n_heads, K head_dim, V v_dim.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from .precision import wide

# One package may be imported several times, and each import registers its own operations.
_NAMESPACE = re.sub(r"\W", "_", __name__)
while hasattr(getattr(torch.ops, _NAMESPACE), "gla_decay"):
    _NAMESPACE += "_"


def _has_kernel(*operands: Tensor) -> bool:
    """Whether values lie on a GPU; kernels compute in float32."""
    return all(x.is_cuda and x.dtype != torch.float64 for x in operands)


def gla_decay(decay_linear_BTGK: Tensor, tau: float) -> Tensor:
    """The entries of decay.

    decay: logsigmoid(linear(low, [n_kv_heads, head_dim], bias=true)) / tau
    """
    if not _has_kernel(decay_linear_BTGK):
        return F.logsigmoid(wide(decay_linear_BTGK)) / tau
    found: Tensor = _gla_decay(decay_linear_BTGK, tau)
    return found


@torch.library.custom_op(f"{_NAMESPACE}::gla_decay", mutates_args=(), device_types="cuda")
def _gla_decay(decay_linear_BTGK: Tensor, tau: float) -> Tensor:
    from .gates_kernels import launch_gla_decay

    with torch.cuda.device(decay_linear_BTGK.get_device()):  # launches go to the current one
        return launch_gla_decay(decay_linear_BTGK, tau)


@_gla_decay.register_fake
def _(decay_linear_BTGK: Tensor, tau: float) -> Tensor:
    return decay_linear_BTGK.new_empty(decay_linear_BTGK.shape, dtype=torch.float32)


@torch.library.custom_op(f"{_NAMESPACE}::gla_decay_backward", mutates_args=(), device_types="cuda")
def _gla_decay_backward(ddecay_BTGK: Tensor, decay_linear_BTGK: Tensor, tau: float) -> Tensor:
    from .gates_kernels import launch_gla_decay_backward

    with torch.cuda.device(ddecay_BTGK.get_device()):
        return launch_gla_decay_backward(ddecay_BTGK, decay_linear_BTGK, tau)


@_gla_decay_backward.register_fake
def _(ddecay_BTGK: Tensor, decay_linear_BTGK: Tensor, tau: float) -> Tensor:
    return decay_linear_BTGK.new_empty(decay_linear_BTGK.shape)


def _save_gla_decay(ctx: FunctionCtx, inputs: tuple[Tensor, float], output: Tensor) -> None:
    decay_linear_BTGK, tau = inputs
    ctx.save_for_backward(decay_linear_BTGK)
    ctx.others = (tau,)  # type: ignore[attr-defined]


def _differentiate_gla_decay(ctx: FunctionCtx, ddecay_BTGK: Tensor) -> tuple[Tensor | None, ...]:
    kept, others = ctx.saved_tensors, ctx.others  # type: ignore[attr-defined]
    ddecay_linear_BTGK = _gla_decay_backward(ddecay_BTGK.contiguous(), *kept, *others)
    return ddecay_linear_BTGK, None


_gla_decay.register_autograd(_differentiate_gla_decay, setup_context=_save_gla_decay)
