"""The product of an activated gate and a value: one kernel on a GPU, forward and backward."""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

# One package may be imported several times, and each import registers its own operations.
_NAMESPACE = re.sub(r"\W", "_", __name__)
while hasattr(getattr(torch.ops, _NAMESPACE), "gated"):
    _NAMESPACE += "_"


def gated(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """`activation(gate) * up` for two values of one shape. Activations: silu, gelu, gelu_tanh, relu, sigmoid."""
    if not _has_kernel(gate, up):
        return _activated(gate, activation) * up
    y: Tensor = _forward(gate, up, activation)
    return y


def _has_kernel(gate: Tensor, up: Tensor) -> bool:
    """Whether the values lie on a GPU; products are in float32."""
    return up.is_cuda and torch.float64 not in (gate.dtype, up.dtype)


def _activated(gate: Tensor, activation: str) -> Tensor:
    if activation in ("gelu", "gelu_tanh"):
        return F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none")
    if activation == "relu":
        return F.relu(gate)
    return torch.sigmoid(gate) if activation == "sigmoid" else F.silu(gate)


@torch.library.custom_op(f"{_NAMESPACE}::gated", mutates_args=(), device_types="cuda")
def _forward(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    from .glu_kernels import launch_glu

    with torch.cuda.device(up.get_device()):  # launches go to the current one
        return launch_glu(gate, up, activation)


@_forward.register_fake
def _(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    return up.new_empty(up.shape, dtype=torch.promote_types(gate.dtype, up.dtype))


@torch.library.custom_op(f"{_NAMESPACE}::glu_backward", mutates_args=(), device_types="cuda")
def _backward(dy: Tensor, gate: Tensor, up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up."""
    from .glu_kernels import launch_glu_backward

    with torch.cuda.device(up.get_device()):
        return launch_glu_backward(dy, gate, up, activation)


@_backward.register_fake
def _(dy: Tensor, gate: Tensor, up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


def _save(ctx: FunctionCtx, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.activation = inputs[2]  # type: ignore[attr-defined]


def _differentiate(ctx: FunctionCtx, dy: Tensor) -> tuple[Tensor, Tensor, None]:
    gate, up = ctx.saved_tensors  # type: ignore[attr-defined]
    dgate, dup = _backward(dy.contiguous(), gate, up, ctx.activation)  # type: ignore[attr-defined]
    return dgate, dup, None


_forward.register_autograd(_differentiate, setup_context=_save)
