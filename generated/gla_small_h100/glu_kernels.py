# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Triton kernels of the product act(gate) * up, in float32, and of both its gradients in one launch.

Values are seen as [rows, width]. Axes: R rows of a program, W entries of each.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ENTRIES = 2048  # of a program
WARPS = 2 if torch.version.hip else 4  # 16 entries a thread


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    """act(x) and its derivative."""
    if ACTIVATION == "relu":
        return tl.maximum(x, 0.0), tl.where(x > 0, 1.0, 0.0)
    if ACTIVATION == "gelu":
        cdf = 0.5 * (1 + tl.erf(x * 0.7071067811865476))  # of the normal distribution
        return x * cdf, cdf + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    if ACTIVATION == "gelu_tanh":  # 0.5 (1 + tanh(u / 2)) = sigmoid(u)
        u = 1.5957691216057308 * x * (1 + 0.044715 * x * x)
        s = tl.sigmoid(u)
        return x * s, s + x * s * tl.sigmoid(-u) * 1.5957691216057308 * (1 + 0.134145 * x * x)
    s = tl.sigmoid(x)
    if ACTIVATION == "sigmoid":
        return s, s * (1 - s)
    return x * s, s * (1 + x * (1 - s))  # silu


@triton.jit(do_not_specialize=["rows"])
def glu_kernel(
    gate_ptr, up_ptr, y_ptr, rows, gate_row, up_row,
    WIDTH: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """y = act(gate) * up."""
    r_R = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    w_W = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    there_RW = (r_R < rows)[:, None] & (w_W < WIDTH)[None, :]
    gate_at = gate_ptr + (r_R * gate_row)[:, None] + w_W[None, :]
    up_at = up_ptr + (r_R * up_row)[:, None] + w_W[None, :]

    gate_RW = tl.load(gate_at, mask=there_RW, other=0.0).to(tl.float32)
    up_RW = tl.load(up_at, mask=there_RW, other=0.0).to(tl.float32)
    y_RW = _activate(gate_RW, ACTIVATION)[0] * up_RW
    tl.store(y_ptr + (r_R * WIDTH)[:, None] + w_W[None, :], y_RW, mask=there_RW)


@triton.jit(do_not_specialize=["rows"])
def glu_backward_kernel(
    dy_ptr, gate_ptr, up_ptr, dgate_ptr, dup_ptr, rows, gate_row, up_row,
    WIDTH: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """dgate = dy * up * act'(gate), dup = dy * act(gate)."""
    r_R = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    w_W = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    there_RW = (r_R < rows)[:, None] & (w_W < WIDTH)[None, :]
    gate_at = gate_ptr + (r_R * gate_row)[:, None] + w_W[None, :]
    up_at = up_ptr + (r_R * up_row)[:, None] + w_W[None, :]
    row_R = r_R * WIDTH  # where dy and the results lie

    dy_RW = tl.load(dy_ptr + row_R[:, None] + w_W[None, :], mask=there_RW, other=0.0).to(tl.float32)
    gate_RW = tl.load(gate_at, mask=there_RW, other=0.0).to(tl.float32)
    up_RW = tl.load(up_at, mask=there_RW, other=0.0).to(tl.float32)
    value_RW, slope_RW = _activate(gate_RW, ACTIVATION)
    tl.store(dgate_ptr + row_R[:, None] + w_W[None, :], dy_RW * up_RW * slope_RW, mask=there_RW)
    tl.store(dup_ptr + row_R[:, None] + w_W[None, :], dy_RW * value_RW, mask=there_RW)


def launch_glu(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """`act(gate) * up`, of one shape."""
    y = torch.empty(up.shape, dtype=torch.promote_types(gate.dtype, up.dtype), device=up.device)
    gate_RW, up_RW, rows, width = _rows(gate, up)
    block_r, block_w, grid = _tile(rows, width)
    if y.numel():
        glu_kernel[grid](
            gate_RW, up_RW, y, rows, gate_RW.stride(0), up_RW.stride(0),
            width, block_r, block_w, activation, num_warps=WARPS,
        )  # fmt: skip
    return y


def launch_glu_backward(dy: Tensor, gate: Tensor, up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """The gradients of gate and up; `dy` without gaps."""
    dgate, dup = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (gate, up))
    gate_RW, up_RW, rows, width = _rows(gate, up)
    block_r, block_w, grid = _tile(rows, width)
    if dy.numel():
        glu_backward_kernel[grid](
            dy, gate_RW, up_RW, dgate, dup, rows, gate_RW.stride(0), up_RW.stride(0),
            width, block_r, block_w, activation, num_warps=WARPS,
        )  # fmt: skip
    return dgate, dup


def _rows(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, int, int]:
    """Both as [rows, width], a row for each token, the last axis without gaps; views where there are some."""
    width = max(up.shape[2:].numel() if up.dim() > 2 else up.shape[-1], 1)
    rows = up.numel() // width
    flat = [x.reshape(rows, width) for x in (gate, up)]
    gate_RW, up_RW = (x if x.stride(1) == 1 else x.contiguous() for x in flat)
    return gate_RW, up_RW, rows, width


def _tile(rows: int, width: int) -> tuple[int, int, tuple[int, int]]:
    """Rows and entries of a program, and the grid."""
    block_w = min(triton.next_power_of_2(width), ENTRIES)
    block_r = ENTRIES // block_w
    return block_r, block_w, (triton.cdiv(rows, block_r), triton.cdiv(width, block_w))
