# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Triton kernels of rmsnorm, alone or times a gate. Statistics and products in float32.

Values are seen as [tokens, heads, width]: `heads` rows for each token that may have weights of their own. A program
holds whole rows, so each entry is read once, forward and backward.
Axes: T tokens of a program, W entries of a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ENTRIES = 2048  # of a program, at least one row
ENTRIES_A_THREAD = 16
PARTS = 512  # programs of the backward: each walks over many rows and leaves one sum for the weight
WARP = 64 if torch.version.hip else 32


@triton.jit
def _activate(gate, ACTIVATION: tl.constexpr):
    """act(gate) and its derivative."""
    s = tl.sigmoid(gate)
    if ACTIVATION == "sigmoid":
        return s, s * (1 - s)
    if ACTIVATION == "silu":
        return gate * s, s * (1 + gate * (1 - s))
    return gate, gate * 0 + 1


@triton.jit(do_not_specialize=["tokens"])
def rmsnorm_kernel(
    x_ptr, weight_ptr, gate_ptr, y_ptr, tokens, x_token, x_head, gate_token, gate_head, weight_head, eps,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr,
    ZERO_CENTRED: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """y = x / sqrt(mean(x^2) + eps) * weight * act(gate)."""
    head = tl.program_id(1)
    t_T = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    w_W = tl.arange(0, BLOCK_W)
    there_TW = (t_T < tokens)[:, None] & (w_W < WIDTH)[None, :]

    x_at = x_ptr + t_T[:, None] * x_token + head * x_head + w_W[None, :]
    x_TW = tl.load(x_at, mask=there_TW, other=0.0).to(tl.float32)
    rstd_T = tl.rsqrt(tl.sum(x_TW * x_TW, 1) / WIDTH + eps)
    y_TW = x_TW * rstd_T[:, None]
    if weight_ptr is not None:
        weight_at = weight_ptr + head * weight_head + w_W[None, :]
        y_TW *= tl.load(weight_at, mask=(w_W < WIDTH)[None, :], other=0.0).to(tl.float32) + ZERO_CENTRED
    if gate_ptr is not None:
        gate_at = gate_ptr + t_T[:, None] * gate_token + head * gate_head + w_W[None, :]
        gate_TW = tl.load(gate_at, mask=there_TW, other=0.0).to(tl.float32)
        y_TW *= _activate(gate_TW, ACTIVATION)[0]
    y_at = y_ptr + ((t_T * HEADS + head) * WIDTH)[:, None] + w_W[None, :]
    tl.store(y_at, y_TW, mask=there_TW)


@triton.jit(do_not_specialize=["tokens"])
def rmsnorm_backward_kernel(
    dy_ptr, x_ptr, weight_ptr, gate_ptr, dx_ptr, dweight_ptr, dgate_ptr,
    tokens, x_token, x_head, gate_token, gate_head, weight_head, eps,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr,
    ZERO_CENTRED: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """The gradients of x and gate, and one part of the weight's for each program: [programs, HEADS, WIDTH].

    With n = x * rstd and dn the gradient of n: dx = rstd * (dn - n * mean(dn * n)).
    """
    part, head = tl.program_id(0), tl.program_id(1)
    w_W = tl.arange(0, BLOCK_W)
    dweight_TW = tl.zeros((BLOCK_T, BLOCK_W), tl.float32)
    for block in range(part, tl.cdiv(tokens, BLOCK_T), tl.num_programs(0)):
        t_T = tl.cast(block, tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
        there_TW = (t_T < tokens)[:, None] & (w_W < WIDTH)[None, :]
        row_T = (t_T * HEADS + head) * WIDTH  # where results lie
        x_at = x_ptr + t_T[:, None] * x_token + head * x_head + w_W[None, :]
        x_TW = tl.load(x_at, mask=there_TW, other=0.0).to(tl.float32)
        d_TW = tl.load(dy_ptr + row_T[:, None] + w_W[None, :], mask=there_TW, other=0.0).to(tl.float32)

        if weight_ptr is not None:  # from a cache after the first time; there is no room for it in registers
            weight_at = weight_ptr + head * weight_head + w_W[None, :]
            weight_1W = tl.load(weight_at, mask=(w_W < WIDTH)[None, :], other=0.0).to(tl.float32)
            weight_1W += ZERO_CENTRED
        rstd_T = tl.rsqrt(tl.sum(x_TW * x_TW, 1) / WIDTH + eps)  # computed again: cheaper than read
        n_TW = x_TW * rstd_T[:, None]
        if gate_ptr is not None:
            gate_at = gate_ptr + t_T[:, None] * gate_token + head * gate_head + w_W[None, :]
            gate_TW = tl.load(gate_at, mask=there_TW, other=0.0).to(tl.float32)
            value_TW, slope_TW = _activate(gate_TW, ACTIVATION)
            dgate_TW = d_TW * n_TW * slope_TW
            if weight_ptr is not None:
                dgate_TW *= weight_1W
            tl.store(dgate_ptr + row_T[:, None] + w_W[None, :], dgate_TW, mask=there_TW)
            d_TW *= value_TW
        if weight_ptr is not None:
            dweight_TW += d_TW * n_TW
            d_TW *= weight_1W
        mean_T = tl.sum(d_TW * n_TW, 1) / WIDTH
        dx_TW = rstd_T[:, None] * (d_TW - n_TW * mean_T[:, None])
        tl.store(dx_ptr + row_T[:, None] + w_W[None, :], dx_TW, mask=there_TW)
    if weight_ptr is not None:
        dweight_at = dweight_ptr + (part.to(tl.int64) * HEADS + head) * WIDTH + w_W[None, :]
        tl.store(dweight_at, tl.sum(dweight_TW, 0, keep_dims=True), mask=(w_W < WIDTH)[None, :])


def launch_rmsnorm(
    x: Tensor, weight: Tensor | None, gate: Tensor | None, eps: float, width: int, zero_centred: bool, activation: str
) -> Tensor:  # fmt: skip
    """`x [..., width]` normed, times `gate` of the same shape."""
    dtype = x.dtype if gate is None else torch.promote_types(x.dtype, gate.dtype)
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    x_THW, weight, gate_THW, tokens, heads, weight_head = _rows(x, weight, gate, width)
    block_t, block_w, num_warps = _tile(width)
    if tokens:
        rmsnorm_kernel[triton.cdiv(tokens, block_t), heads](
            x_THW, weight, gate_THW, y, tokens, *_strides(x_THW), *_strides(gate_THW), weight_head, eps,
            heads, width, block_t, block_w, int(zero_centred), activation, num_warps=num_warps,
        )  # fmt: skip
    return y


def launch_rmsnorm_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, gate: Tensor | None,
    eps: float, width: int, zero_centred: bool, activation: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of x, weight and gate; empty tensors for what is not there."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dgate = torch.empty(gate.shape, dtype=gate.dtype, device=x.device) if gate is not None else x.new_empty(0)
    x_THW, flat_weight, gate_THW, tokens, heads, weight_head = _rows(x, weight, gate, width)
    block_t, block_w, num_warps = _tile(width)
    parts = min(triton.cdiv(tokens, block_t), max(PARTS // heads, 1))
    sums = torch.empty(parts if weight is not None else 0, heads, width, dtype=torch.float32, device=x.device)
    if tokens:
        rmsnorm_backward_kernel[parts, heads](
            dy, x_THW, flat_weight, gate_THW, dx, sums, dgate,
            tokens, *_strides(x_THW), *_strides(gate_THW), weight_head, eps,
            heads, width, block_t, block_w, int(zero_centred), activation, num_warps=num_warps,
        )  # fmt: skip
    if weight is None:
        return dx, x.new_empty(0), dgate
    dweight = sums.sum(0) if weight_head else sums.sum((0, 1))  # always in one order
    return dx, dweight.view(weight.shape).to(weight.dtype), dgate


def _rows(
    x: Tensor, weight: Tensor | None, gate: Tensor | None, width: int
) -> tuple[Tensor, Tensor | None, Tensor | None, int, int, int]:
    """x, weight and gate as the kernels see them, the numbers of tokens and heads, the weight's step for a head."""
    rows = 1 if weight is None else weight.numel() // width
    heads = rows
    if rows == 1 and not (x.is_contiguous() and (gate is None or gate.is_contiguous())):
        heads = max(x.shape[2:].numel() // width, 1)  # pieces of a wider tensor, token by token
    weight = None if weight is None else weight.contiguous()
    x_THW, gate_THW = _split(x, heads, width), None if gate is None else _split(gate, heads, width)
    return x_THW, weight, gate_THW, x_THW.shape[0], heads, width if rows > 1 else 0


def _split(x: Tensor, heads: int, width: int) -> Tensor:
    """`x` as [tokens, heads, width], the last axis without gaps: a view where there is one."""
    x = x.reshape(x.numel() // (heads * width), heads, width)
    return x if x.stride(2) == 1 else x.contiguous()


def _strides(x_THW: Tensor | None) -> tuple[int, int]:
    return (0, 0) if x_THW is None else (x_THW.stride(0), x_THW.stride(1))


def _tile(width: int) -> tuple[int, int, int]:
    """Rows and entries of a program, and its warps."""
    block_w = triton.next_power_of_2(width)
    block_t = max(ENTRIES // block_w, 1)
    return block_t, block_w, max(block_t * block_w // (ENTRIES_A_THREAD * WARP), 1)
