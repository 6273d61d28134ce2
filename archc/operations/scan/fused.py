"""The elementwise recurrence `h_t = exp(g_t) h_{t-1} + x_t`: one kernel on a GPU, forward and backward."""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .place import Place
from .scan import scan as torch_scan

# One package may be imported several times, and each import registers its own operations.
_NAMESPACE = re.sub(r"\W", "_", __name__)
while hasattr(getattr(torch.ops, _NAMESPACE), "scan"):
    _NAMESPACE += "_"


def scan(x: Tensor, decay: Tensor | float, place: Place, key: str) -> Tensor:
    """`h_t = exp(decay_t) h_{t-1} + x_t` for `x [B, T, ...]`; the log decays, `<= 0`, expand to its shape.

    Computed in float32 or wider; the state entry is h after the last token, `[N, ...]`, in that precision.
    """
    if place.form == "step" or not _has_kernel(x):
        return torch_scan(x, decay, place, key)
    if not isinstance(decay, Tensor):
        decay = x.new_full((), decay, dtype=torch.float32)
    before = place.read(key)
    before_NC = None if before is None else before.flatten(1)
    h_BTC, after_NC = _forward(
        x.flatten(2), _two_axes(decay.expand(x.shape)), before_NC, place.layout.cu_seqlens
    )
    if before is not None:
        place.write(key, after_NC.view(before.shape))
    h: Tensor = h_BTC.view(x.shape)
    return h


def _has_kernel(x: Tensor) -> bool:
    """Whether x lies on a GPU; the state is in float32."""
    return x.is_cuda and x.dtype != torch.float64


def _two_axes(g: Tensor) -> Tensor:
    """`[B, T, ...]` as `[B, T, O, I]`, a view of what is stored where a decay is the same for neighbours."""
    axis = g.dim() - 1
    while axis > 2 and g.stride(axis - 1) == g.stride(axis) * g.shape[axis]:
        axis -= 1
    return g.flatten(axis).unsqueeze(2) if axis == 2 else g.flatten(axis).flatten(2, axis - 1)


@torch.library.custom_op(f"{_NAMESPACE}::scan", mutates_args=(), device_types="cuda")
def _forward(
    x_BTC: Tensor, g_BTOI: Tensor, before_NC: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """h at each token, zeros where it belongs to no sequence; and after each sequence, in float32."""
    from .scan_kernels import launch_scan

    with torch.cuda.device(x_BTC.get_device()):  # launches go to the current one
        return launch_scan(x_BTC, g_BTOI, before_NC, cu_seqlens)


@_forward.register_fake
def _(
    x_BTC: Tensor, g_BTOI: Tensor, before_NC: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    sequences = x_BTC.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return x_BTC.new_empty(x_BTC.shape), x_BTC.new_empty(sequences, x_BTC.shape[2], dtype=torch.float32)


@torch.library.custom_op(f"{_NAMESPACE}::scan_backward", mutates_args=(), device_types="cuda")
def _backward(
    dh_BTC: Tensor,
    dafter_NC: Tensor,
    g_BTOI: Tensor,
    h_BTC: Tensor,
    before_NC: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, of g in the shape of x, and of `before_NC`, empty where there is none."""
    from .scan_kernels import launch_scan_backward

    with torch.cuda.device(h_BTC.get_device()):
        return launch_scan_backward(dh_BTC, dafter_NC, g_BTOI, h_BTC, before_NC, cu_seqlens)


@_backward.register_fake
def _(
    dh_BTC: Tensor,
    dafter_NC: Tensor,
    g_BTOI: Tensor,
    h_BTC: Tensor,
    before_NC: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    dbefore = h_BTC.new_empty(0) if before_NC is None else before_NC.new_empty(before_NC.shape)
    return h_BTC.new_empty(h_BTC.shape), g_BTOI.new_empty(h_BTC.shape), dbefore


def _save(ctx: FunctionCtx, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]) -> None:
    _, g_BTOI, before_NC, cu_seqlens = inputs
    ctx.save_for_backward(g_BTOI, output[0], before_NC, cu_seqlens)  # type: ignore[arg-type]


def _differentiate(ctx: FunctionCtx, dh_BTC: Tensor, dafter_NC: Tensor) -> tuple[Tensor | None, ...]:
    g_BTOI, h_BTC, before_NC, cu_seqlens = ctx.saved_tensors  # type: ignore[attr-defined]
    dx_BTC, dg_BTC, dbefore_NC = _backward(
        dh_BTC.contiguous(), dafter_NC.contiguous(), g_BTOI, h_BTC, before_NC, cu_seqlens
    )
    return dx_BTC, dg_BTC.view(g_BTOI.shape), None if before_NC is None else dbefore_NC, None


_forward.register_autograd(_differentiate, setup_context=_save)
