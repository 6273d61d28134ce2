"""What the equations of this model do entry by entry between larger operations, one launch each on a GPU.

Axes: B batch, T tokens, D d_model, F d_ff, G n_kv_heads, H n_heads, K head_dim, V v_dim, W n_v_heads.
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
while hasattr(getattr(torch.ops, _NAMESPACE), "gated_deltanet_beta_decay"):
    _NAMESPACE += "_"


def _has_kernel(*operands: Tensor) -> bool:
    """Whether values lie on a GPU; kernels compute in float32."""
    return all(x.is_cuda and x.dtype != torch.float64 for x in operands)


def gated_deltanet_beta_decay(
    beta_linear_BTW: Tensor, decay_linear_BTW: Tensor, decay_dt_bias_W: Tensor, decay_A_log_W: Tensor
) -> tuple[Tensor, Tensor]:
    """The entries of beta, decay.

    beta: sigmoid(linear(x, [n_v_heads])) * 1
    decay: mamba_decay(linear(x, [n_v_heads]))
    """
    if not _has_kernel(beta_linear_BTW, decay_linear_BTW, decay_dt_bias_W, decay_A_log_W):
        beta_BTW = torch.sigmoid(beta_linear_BTW)
        decay_BTW = -torch.exp(decay_A_log_W) * F.softplus(wide(decay_linear_BTW) + decay_dt_bias_W)
        return beta_BTW, decay_BTW
    found: tuple[Tensor, Tensor] = _gated_deltanet_beta_decay(
        beta_linear_BTW, decay_linear_BTW, decay_dt_bias_W, decay_A_log_W
    )
    return found


@torch.library.custom_op(f"{_NAMESPACE}::gated_deltanet_beta_decay", mutates_args=(), device_types="cuda")
def _gated_deltanet_beta_decay(
    beta_linear_BTW: Tensor, decay_linear_BTW: Tensor, decay_dt_bias_W: Tensor, decay_A_log_W: Tensor
) -> tuple[Tensor, Tensor]:
    from .gates_kernels import launch_gated_deltanet_beta_decay

    with torch.cuda.device(beta_linear_BTW.get_device()):  # launches go to the current one
        return launch_gated_deltanet_beta_decay(
            beta_linear_BTW, decay_linear_BTW, decay_dt_bias_W, decay_A_log_W
        )


@_gated_deltanet_beta_decay.register_fake
def _(
    beta_linear_BTW: Tensor, decay_linear_BTW: Tensor, decay_dt_bias_W: Tensor, decay_A_log_W: Tensor
) -> tuple[Tensor, Tensor]:
    beta_BTW = beta_linear_BTW.new_empty(beta_linear_BTW.shape, dtype=beta_linear_BTW.dtype)
    decay_BTW = beta_linear_BTW.new_empty(beta_linear_BTW.shape, dtype=torch.float32)
    return beta_BTW, decay_BTW


@torch.library.custom_op(
    f"{_NAMESPACE}::gated_deltanet_beta_decay_backward", mutates_args=(), device_types="cuda"
)
def _gated_deltanet_beta_decay_backward(
    dbeta_BTW: Tensor,
    ddecay_BTW: Tensor,
    beta_linear_BTW: Tensor,
    decay_linear_BTW: Tensor,
    decay_dt_bias_W: Tensor,
    decay_A_log_W: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from .gates_kernels import launch_gated_deltanet_beta_decay_backward

    with torch.cuda.device(dbeta_BTW.get_device()):
        return launch_gated_deltanet_beta_decay_backward(
            dbeta_BTW, ddecay_BTW, beta_linear_BTW, decay_linear_BTW, decay_dt_bias_W, decay_A_log_W
        )


@_gated_deltanet_beta_decay_backward.register_fake
def _(
    dbeta_BTW: Tensor,
    ddecay_BTW: Tensor,
    beta_linear_BTW: Tensor,
    decay_linear_BTW: Tensor,
    decay_dt_bias_W: Tensor,
    decay_A_log_W: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        beta_linear_BTW.new_empty(beta_linear_BTW.shape),
        decay_linear_BTW.new_empty(decay_linear_BTW.shape),
        decay_dt_bias_W.new_empty(decay_dt_bias_W.shape),
        decay_A_log_W.new_empty(decay_A_log_W.shape),
    )


def _save_gated_deltanet_beta_decay(
    ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]
) -> None:
    beta_linear_BTW, decay_linear_BTW, decay_dt_bias_W, decay_A_log_W = inputs
    ctx.save_for_backward(beta_linear_BTW, decay_linear_BTW, decay_dt_bias_W, decay_A_log_W)


def _differentiate_gated_deltanet_beta_decay(
    ctx: FunctionCtx, dbeta_BTW: Tensor, ddecay_BTW: Tensor
) -> tuple[Tensor | None, ...]:
    kept = ctx.saved_tensors  # type: ignore[attr-defined]
    dbeta_linear_BTW, ddecay_linear_BTW, ddecay_dt_bias_W, ddecay_A_log_W = (
        _gated_deltanet_beta_decay_backward(dbeta_BTW.contiguous(), ddecay_BTW.contiguous(), *kept)
    )
    return dbeta_linear_BTW, ddecay_linear_BTW, ddecay_dt_bias_W, ddecay_A_log_W


_gated_deltanet_beta_decay.register_autograd(
    _differentiate_gated_deltanet_beta_decay, setup_context=_save_gated_deltanet_beta_decay
)
