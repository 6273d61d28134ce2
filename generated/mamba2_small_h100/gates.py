"""What the equations of this model do entry by entry between larger operations, one launch each on a GPU.

Axes: B batch, T tokens, C d_conv, D d_model, G n_groups, H n_heads, I d_inner + d_conv + n_heads, K
    head_dim, N d_state, R group_dim.
"""

from __future__ import annotations

import re
from functools import reduce

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from .precision import wide

# One package may be imported several times, and each import registers its own operations.
_NAMESPACE = re.sub(r"\W", "_", __name__)
while hasattr(getattr(torch.ops, _NAMESPACE), "mamba2_dt_free"):
    _NAMESPACE += "_"


def _has_kernel(*operands: Tensor) -> bool:
    """Whether values lie on a GPU; kernels compute in float32."""
    return all(x.is_cuda and x.dtype != torch.float64 for x in operands)


def _promoted(*operands: Tensor) -> torch.dtype:
    """The dtype of a result of several."""
    return reduce(torch.promote_types, (x.dtype for x in operands))


def mamba2_dt_free(dt_in_BTH: Tensor, dt_bias_H: Tensor) -> Tensor:
    """The entries of dt_free.

    dt_free: softplus(dt_in + param(dt_bias, [n_heads], init=inverse_softplus(log_uniform(0.001, 0.1))))
    """
    if not _has_kernel(dt_in_BTH, dt_bias_H):
        return F.softplus(wide(dt_in_BTH) + dt_bias_H)
    found: Tensor = _mamba2_dt_free(dt_in_BTH, dt_bias_H)
    return found


@torch.library.custom_op(f"{_NAMESPACE}::mamba2_dt_free", mutates_args=(), device_types="cuda")
def _mamba2_dt_free(dt_in_BTH: Tensor, dt_bias_H: Tensor) -> Tensor:
    from .gates_kernels import launch_mamba2_dt_free

    with torch.cuda.device(dt_in_BTH.get_device()):  # launches go to the current one
        return launch_mamba2_dt_free(dt_in_BTH, dt_bias_H)


@_mamba2_dt_free.register_fake
def _(dt_in_BTH: Tensor, dt_bias_H: Tensor) -> Tensor:
    return dt_in_BTH.new_empty(dt_in_BTH.shape, dtype=torch.float32)


@torch.library.custom_op(f"{_NAMESPACE}::mamba2_dt_free_backward", mutates_args=(), device_types="cuda")
def _mamba2_dt_free_backward(
    ddt_free_BTH: Tensor, dt_in_BTH: Tensor, dt_bias_H: Tensor
) -> tuple[Tensor, Tensor]:
    from .gates_kernels import launch_mamba2_dt_free_backward

    with torch.cuda.device(ddt_free_BTH.get_device()):
        return launch_mamba2_dt_free_backward(ddt_free_BTH, dt_in_BTH, dt_bias_H)


@_mamba2_dt_free_backward.register_fake
def _(ddt_free_BTH: Tensor, dt_in_BTH: Tensor, dt_bias_H: Tensor) -> tuple[Tensor, Tensor]:
    return dt_in_BTH.new_empty(dt_in_BTH.shape), dt_bias_H.new_empty(dt_bias_H.shape)


def _save_mamba2_dt_free(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    dt_in_BTH, dt_bias_H = inputs
    ctx.save_for_backward(dt_in_BTH, dt_bias_H)


def _differentiate_mamba2_dt_free(ctx: FunctionCtx, ddt_free_BTH: Tensor) -> tuple[Tensor | None, ...]:
    kept = ctx.saved_tensors  # type: ignore[attr-defined]
    ddt_in_BTH, ddt_bias_H = _mamba2_dt_free_backward(ddt_free_BTH.contiguous(), *kept)
    return ddt_in_BTH, ddt_bias_H


_mamba2_dt_free.register_autograd(_differentiate_mamba2_dt_free, setup_context=_save_mamba2_dt_free)


def mamba2_o(A_log_H: Tensor, dt_free_BTH: Tensor, v_BTHK: Tensor) -> tuple[Tensor, Tensor]:
    """The entries of o_cast_like, o_mul.

    o: recurrence(q, k, dt * v, decay=A * dt, scale=1) + param(D, [n_heads], init=1) * v
    """
    if not _has_kernel(A_log_H, dt_free_BTH, v_BTHK):
        o_cast_like_BTHK = (dt_free_BTH[..., None] * v_BTHK).type_as(v_BTHK)
        o_mul_BTH = -torch.exp(A_log_H) * dt_free_BTH
        return o_cast_like_BTHK, o_mul_BTH
    found: tuple[Tensor, Tensor] = _mamba2_o(A_log_H, dt_free_BTH, v_BTHK)
    return found


@torch.library.custom_op(f"{_NAMESPACE}::mamba2_o", mutates_args=(), device_types="cuda")
def _mamba2_o(A_log_H: Tensor, dt_free_BTH: Tensor, v_BTHK: Tensor) -> tuple[Tensor, Tensor]:
    from .gates_kernels import launch_mamba2_o

    with torch.cuda.device(v_BTHK.get_device()):  # launches go to the current one
        return launch_mamba2_o(A_log_H, dt_free_BTH, v_BTHK)


@_mamba2_o.register_fake
def _(A_log_H: Tensor, dt_free_BTH: Tensor, v_BTHK: Tensor) -> tuple[Tensor, Tensor]:
    o_cast_like_BTHK = v_BTHK.new_empty(v_BTHK.shape, dtype=v_BTHK.dtype)
    o_mul_BTH = v_BTHK.new_empty(v_BTHK.shape[:3], dtype=_promoted(A_log_H, dt_free_BTH))
    return o_cast_like_BTHK, o_mul_BTH


@torch.library.custom_op(f"{_NAMESPACE}::mamba2_o_backward", mutates_args=(), device_types="cuda")
def _mamba2_o_backward(
    do_cast_like_BTHK: Tensor, do_mul_BTH: Tensor, A_log_H: Tensor, dt_free_BTH: Tensor, v_BTHK: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from .gates_kernels import launch_mamba2_o_backward

    with torch.cuda.device(do_cast_like_BTHK.get_device()):
        return launch_mamba2_o_backward(do_cast_like_BTHK, do_mul_BTH, A_log_H, dt_free_BTH, v_BTHK)


@_mamba2_o_backward.register_fake
def _(
    do_cast_like_BTHK: Tensor, do_mul_BTH: Tensor, A_log_H: Tensor, dt_free_BTH: Tensor, v_BTHK: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        A_log_H.new_empty(A_log_H.shape),
        dt_free_BTH.new_empty(dt_free_BTH.shape),
        v_BTHK.new_empty(v_BTHK.shape),
    )


def _save_mamba2_o(
    ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, Tensor]
) -> None:
    A_log_H, dt_free_BTH, v_BTHK = inputs
    ctx.save_for_backward(A_log_H, dt_free_BTH, v_BTHK)


def _differentiate_mamba2_o(
    ctx: FunctionCtx, do_cast_like_BTHK: Tensor, do_mul_BTH: Tensor
) -> tuple[Tensor | None, ...]:
    kept = ctx.saved_tensors  # type: ignore[attr-defined]
    dA_log_H, ddt_free_BTH, dv_BTHK = _mamba2_o_backward(
        do_cast_like_BTHK.contiguous(), do_mul_BTH.contiguous(), *kept
    )
    return dA_log_H, ddt_free_BTH, dv_BTHK


_mamba2_o.register_autograd(_differentiate_mamba2_o, setup_context=_save_mamba2_o)


def mamba2_o_2(D_H: Tensor, v_BTHK: Tensor, o_recurrence_BTHK: Tensor) -> Tensor:
    """The entries of o.

    o: recurrence(q, k, dt * v, decay=A * dt, scale=1) + param(D, [n_heads], init=1) * v
    """
    if not _has_kernel(D_H, v_BTHK, o_recurrence_BTHK):
        return o_recurrence_BTHK + D_H[..., None] * v_BTHK
    found: Tensor = _mamba2_o_2(D_H, v_BTHK, o_recurrence_BTHK)
    return found


@torch.library.custom_op(f"{_NAMESPACE}::mamba2_o_2", mutates_args=(), device_types="cuda")
def _mamba2_o_2(D_H: Tensor, v_BTHK: Tensor, o_recurrence_BTHK: Tensor) -> Tensor:
    from .gates_kernels import launch_mamba2_o_2

    with torch.cuda.device(v_BTHK.get_device()):  # launches go to the current one
        return launch_mamba2_o_2(D_H, v_BTHK, o_recurrence_BTHK)


@_mamba2_o_2.register_fake
def _(D_H: Tensor, v_BTHK: Tensor, o_recurrence_BTHK: Tensor) -> Tensor:
    return v_BTHK.new_empty(v_BTHK.shape, dtype=_promoted(D_H, v_BTHK, o_recurrence_BTHK))


@torch.library.custom_op(f"{_NAMESPACE}::mamba2_o_2_backward", mutates_args=(), device_types="cuda")
def _mamba2_o_2_backward(
    do_BTHK: Tensor, D_H: Tensor, v_BTHK: Tensor, o_recurrence_BTHK_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    from .gates_kernels import launch_mamba2_o_2_backward

    with torch.cuda.device(do_BTHK.get_device()):
        return launch_mamba2_o_2_backward(do_BTHK, D_H, v_BTHK, o_recurrence_BTHK_dtype)


@_mamba2_o_2_backward.register_fake
def _(
    do_BTHK: Tensor, D_H: Tensor, v_BTHK: Tensor, o_recurrence_BTHK_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        D_H.new_empty(D_H.shape),
        v_BTHK.new_empty(v_BTHK.shape),
        do_BTHK.new_empty(do_BTHK.shape, dtype=o_recurrence_BTHK_dtype),
    )


def _save_mamba2_o_2(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    D_H, v_BTHK, o_recurrence_BTHK = inputs
    ctx.save_for_backward(D_H, v_BTHK)
    ctx.others = (o_recurrence_BTHK.dtype,)  # type: ignore[attr-defined]


def _differentiate_mamba2_o_2(ctx: FunctionCtx, do_BTHK: Tensor) -> tuple[Tensor | None, ...]:
    kept, others = ctx.saved_tensors, ctx.others  # type: ignore[attr-defined]
    dD_H, dv_BTHK, do_recurrence_BTHK = _mamba2_o_2_backward(do_BTHK.contiguous(), *kept, *others)
    return dD_H, dv_BTHK, do_recurrence_BTHK


_mamba2_o_2.register_autograd(_differentiate_mamba2_o_2, setup_context=_save_mamba2_o_2)
