# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Triton kernels of h_t = exp(g_t) h_{t-1} + x_t, entry by entry, and of its reverse. The state is float32.

A program walks over one sequence for a block of channels, BLOCK_T tokens at a time: these are scanned side by side,
the row before them is carried. Axes: T tokens of a step, C channels of a program; N sequences.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_T, BLOCK_C = 64, 32
WARPS = 4 if torch.version.hip else 8  # 8 entries a thread


@triton.jit
def _then(factor, h, next_factor, next_h):
    """h -> factor * h0 + h, followed by another such map."""
    return factor * next_factor, next_factor * h + next_h


@triton.jit
def _span(cu_seqlens_ptr, n, T, N):
    """Where sequence n begins, and its length. Number N of a packed row are the tokens after the last one."""
    if cu_seqlens_ptr is None:
        start = n.to(tl.int64) * T
        stop = start + T
    else:
        start = tl.load(cu_seqlens_ptr + n).to(tl.int64)
        stop = tl.load(cu_seqlens_ptr + n + 1, mask=n < N, other=T).to(tl.int64)
    return start, stop - start


@triton.jit(do_not_specialize=["T", "N"])
def scan_kernel(
    x_ptr, g_ptr, before_ptr, cu_seqlens_ptr, h_ptr, after_ptr, T, N, g_row, g_token, g_outer, g_inner,
    CHANNELS: tl.constexpr, INNER: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """h at each token, and after the last one of each sequence."""
    n = tl.program_id(1)
    start, length = _span(cu_seqlens_ptr, n, T, N)
    c_C = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    own_C = (c_C < CHANNELS) & (n < N)  # tokens after the last sequence count as zeros
    # The decay may be the same for neighbours; INNER is 0 where it lies as x does.
    g_C = c_C if INNER == 0 else (c_C // INNER) * g_outer + (c_C % INNER) * g_inner
    g_start = g_ptr + (n.to(tl.int64) * g_row if cu_seqlens_ptr is None else start * g_token)
    h_C = tl.zeros((BLOCK_C,), tl.float32)
    if before_ptr is not None:
        h_C = tl.load(before_ptr + n.to(tl.int64) * CHANNELS + c_C, mask=own_C, other=0.0).to(tl.float32)
    for first in range(0, length, BLOCK_T):
        t_T = first + tl.arange(0, BLOCK_T).to(tl.int64)
        there_TC = (t_T < length)[:, None] & own_C[None, :]
        at_TC = ((start + t_T) * CHANNELS)[:, None] + c_C[None, :]
        x_TC = tl.load(x_ptr + at_TC, mask=there_TC, other=0.0).to(tl.float32)
        g_at = g_start + (t_T * g_token)[:, None] + g_C[None, :]
        g_TC = tl.load(g_at, mask=there_TC, other=0.0).to(tl.float32)
        factor_TC, h_TC = tl.associative_scan((tl.exp(g_TC), x_TC), 0, _then)
        h_TC += factor_TC * h_C[None, :]
        tl.store(h_ptr + at_TC, h_TC, mask=(t_T < length)[:, None] & (c_C < CHANNELS)[None, :])
        last_TC = (tl.arange(0, BLOCK_T) == BLOCK_T - 1)[:, None]  # behind the end h stays as it is
        h_C = tl.sum(tl.where(last_TC, h_TC, 0.0), 0)
    tl.store(after_ptr + n.to(tl.int64) * CHANNELS + c_C, h_C, mask=own_C)


@triton.jit(do_not_specialize=["T", "N"])
def scan_backward_kernel(
    dh_ptr, dafter_ptr, g_ptr, h_ptr, before_ptr, cu_seqlens_ptr, dx_ptr, dg_ptr, dbefore_ptr,
    T, N, g_row, g_token, g_outer, g_inner,
    CHANNELS: tl.constexpr, INNER: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The reverse, from the last token: dx_t = dh_t + exp(g_{t+1}) dx_{t+1}, dg_t = dx_t exp(g_t) h_{t-1}."""
    n = tl.program_id(1)
    start, length = _span(cu_seqlens_ptr, n, T, N)
    c_C = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    own_C = (c_C < CHANNELS) & (n < N)
    g_C = c_C if INNER == 0 else (c_C // INNER) * g_outer + (c_C % INNER) * g_inner
    g_start = g_ptr + (n.to(tl.int64) * g_row if cu_seqlens_ptr is None else start * g_token)
    state_C = n.to(tl.int64) * CHANNELS + c_C
    dx_C = tl.load(dafter_ptr + state_C, mask=own_C, other=0.0)
    before_C = tl.zeros((BLOCK_C,), tl.float32)
    if before_ptr is not None:
        before_C = tl.load(before_ptr + state_C, mask=own_C, other=0.0).to(tl.float32)
    for first in range(0, length, BLOCK_T):
        t_T = length - 1 - first - tl.arange(0, BLOCK_T).to(tl.int64)  # backwards in time
        there_TC = (t_T >= 0)[:, None] & own_C[None, :]
        at_TC = ((start + t_T) * CHANNELS)[:, None] + c_C[None, :]
        later_TC = there_TC & (t_T < length - 1)[:, None]  # nothing decays after the last token
        g_at = g_start + (t_T * g_token)[:, None] + g_C[None, :]
        later = tl.load(g_at + g_token, mask=later_TC, other=0.0).to(tl.float32)
        dh_TC = tl.load(dh_ptr + at_TC, mask=there_TC, other=0.0).to(tl.float32)
        factor_TC, dx_TC = tl.associative_scan((tl.exp(later), dh_TC), 0, _then)
        dx_TC += factor_TC * dx_C[None, :]

        g_TC = tl.load(g_at, mask=there_TC, other=0.0).to(tl.float32)
        earlier_TC = there_TC & (t_T > 0)[:, None]
        h_TC = tl.load(h_ptr + at_TC - CHANNELS, mask=earlier_TC, other=0.0).to(tl.float32)
        h_TC = tl.where((t_T == 0)[:, None], before_C[None, :], h_TC)
        dg_TC = dx_TC * tl.exp(g_TC) * h_TC
        written_TC = (t_T >= 0)[:, None] & (c_C < CHANNELS)[None, :]
        tl.store(dx_ptr + at_TC, dx_TC, mask=written_TC)
        tl.store(dg_ptr + at_TC, dg_TC, mask=written_TC)
        last_TC = (tl.arange(0, BLOCK_T) == BLOCK_T - 1)[:, None]  # before the beginning dx stays as it is
        dx_C = tl.sum(tl.where(last_TC, dx_TC, 0.0), 0)
    if before_ptr is not None:
        g_first = tl.load(g_start + g_C, mask=own_C & (length > 0), other=0.0).to(tl.float32)
        tl.store(dbefore_ptr + state_C, dx_C * tl.exp(g_first), mask=own_C)


def launch_scan(
    x_BTC: Tensor, g_BTOI: Tensor, before_NC: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`h_BTC`, and the state after each sequence in float32."""
    x_BTC = x_BTC.contiguous()
    h_BTC = torch.empty_like(x_BTC)
    grid, sizes, constants = _settings(x_BTC, g_BTOI, cu_seqlens)
    after_NC = x_BTC.new_empty(sizes[1], x_BTC.shape[2], dtype=torch.float32)
    before_NC = None if before_NC is None else before_NC.contiguous()
    if grid[0] and grid[1]:
        scan_kernel[grid](
            x_BTC, g_BTOI, before_NC, cu_seqlens, h_BTC, after_NC, *sizes, *constants, num_warps=WARPS
        )
    return h_BTC, after_NC


def launch_scan_backward(
    dh_BTC: Tensor, dafter_NC: Tensor, g_BTOI: Tensor, h_BTC: Tensor,
    before_NC: Tensor | None, cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of x, of g in the shape of x, and of `before_NC`, empty where there is none."""
    dx_BTC, dg_BTC = torch.empty_like(h_BTC), h_BTC.new_empty(h_BTC.shape, dtype=g_BTOI.dtype)
    before_NC = None if before_NC is None else before_NC.contiguous()
    dbefore_NC = h_BTC.new_empty(0) if before_NC is None else torch.empty_like(before_NC)
    grid, sizes, constants = _settings(h_BTC, g_BTOI, cu_seqlens)
    if grid[0] and grid[1]:
        scan_backward_kernel[grid](
            dh_BTC, dafter_NC, g_BTOI, h_BTC, before_NC, cu_seqlens, dx_BTC, dg_BTC, dbefore_NC,
            *sizes, *constants, num_warps=WARPS,
        )  # fmt: skip
    return dx_BTC, dg_BTC, dbefore_NC


def _settings(
    x_BTC: Tensor, g_BTOI: Tensor, cu_seqlens: Tensor | None
) -> tuple[tuple[int, int], tuple[int, ...], tuple[int, ...]]:
    """The grid; T, N and the strides of the decay; the numbers that are fixed."""
    batch, length, channels = x_BTC.shape
    n = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    programs = n if cu_seqlens is None else n + 1  # one for the tokens that belong to no sequence
    as_x = g_BTOI.shape[3] == channels and g_BTOI.stride(3) == 1
    inner = 0 if as_x else g_BTOI.shape[3]
    grid = triton.cdiv(channels, BLOCK_C), programs
    return grid, (length, n, *g_BTOI.stride()), (channels, inner, BLOCK_T, BLOCK_C)
