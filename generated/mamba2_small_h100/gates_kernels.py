# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Triton kernels of what a model does entry by entry, in float32, and of its gradients.

Axes: T tokens of a program, C entries of each: those of one head, or a piece of all. h is the program's head.
Gradients of what all tokens share are summed over the tokens of a program, and those sums by torch, in order.
"""

from __future__ import annotations

from functools import reduce

import torch
import triton
import triton.language as tl
from torch import Tensor

ENTRIES = 1024  # of a program's tile
COLUMNS = 256  # of them that belong to one token, where a program need not have all
TOKENS = 128  # of a program that sums over them
WARPS = 2 if torch.version.hip else 4  # 8 entries a thread


@triton.jit
def log1p(x):
    """log(1 + x), exact where 1 + x rounds (Goldberg 1991, theorem 4)."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, x * tl.log(u) / tl.where(u == 1.0, 1.0, u - 1.0))


@triton.jit
def softplus(x):
    """log(1 + exp(x)) without overflow, and with every digit of small results."""
    return tl.maximum(x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit(do_not_specialize=["tokens"])
def mamba2_dt_free_kernel(
    dt_in_ptr, dt_bias_ptr, dt_free_ptr, tokens, dt_in_row,
    CHANNELS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dt_free."""
    pid = tl.program_id(0).to(tl.int64)
    parts = tl.cdiv(CHANNELS, BLOCK_C)
    at_C = pid % parts * BLOCK_C + tl.arange(0, BLOCK_C)
    in_C = at_C < CHANNELS

    t_T = pid // parts * BLOCK_T + tl.arange(0, BLOCK_T)
    in_T = t_T < tokens
    in_TC = in_T[:, None] & in_C[None, :]
    at_TC = (t_T * CHANNELS)[:, None] + at_C[None, :]  # of what lies without gaps

    dt_bias_C = tl.load(dt_bias_ptr + at_C, in_C, 0.0).to(tl.float32)
    dt_in_TC = tl.load(dt_in_ptr + (t_T * dt_in_row)[:, None] + at_C[None, :], in_TC, 0.0).to(tl.float32)
    dt_free_TC = softplus(dt_in_TC + dt_bias_C[None, :])
    tl.store(dt_free_ptr + at_TC, dt_free_TC, in_TC)


@triton.jit(do_not_specialize=["tokens"])
def mamba2_dt_free_backward_kernel(
    ddt_free_ptr, dt_in_ptr, dt_bias_ptr, ddt_in_ptr, ddt_bias_ptr, tokens, dt_in_row,
    CHANNELS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The gradients of dt_in, dt_bias."""
    pid = tl.program_id(0).to(tl.int64)
    parts = tl.cdiv(CHANNELS, BLOCK_C)
    at_C = pid % parts * BLOCK_C + tl.arange(0, BLOCK_C)
    in_C = at_C < CHANNELS

    span = pid // parts
    dt_bias_C = tl.load(dt_bias_ptr + at_C, in_C, 0.0).to(tl.float32)
    ddt_bias_C = tl.zeros([BLOCK_C], tl.float32)
    for j in range(BLOCKS):
        t_T = (span * BLOCKS + j) * BLOCK_T + tl.arange(0, BLOCK_T)
        in_T = t_T < tokens
        in_TC = in_T[:, None] & in_C[None, :]
        at_TC = (t_T * CHANNELS)[:, None] + at_C[None, :]  # of what lies without gaps

        dt_in_TC = tl.load(dt_in_ptr + (t_T * dt_in_row)[:, None] + at_C[None, :], in_TC, 0.0).to(tl.float32)
        ddt_free_TC = tl.load(ddt_free_ptr + at_TC, in_TC, 0.0).to(tl.float32)
        ddt_free_add_TC = ddt_free_TC * tl.sigmoid(dt_in_TC + dt_bias_C[None, :])
        ddt_bias_C += tl.sum(tl.where(in_TC, ddt_free_add_TC, 0.0), 0)
        tl.store(ddt_in_ptr + at_TC, ddt_free_add_TC, in_TC)

    tl.store(ddt_bias_ptr + span * CHANNELS + at_C, ddt_bias_C, in_C)


def launch_mamba2_dt_free(dt_in_BTH: Tensor, dt_bias_H: Tensor) -> Tensor:
    """dt_free, without gaps."""
    dt_free = dt_in_BTH.new_empty(dt_in_BTH.shape, dtype=torch.float32)
    tokens, heads, channels = _sizes(dt_in_BTH, 0)
    block_t, block_c = _tile(channels, whole=False)
    dt_in_rows = _rows(dt_in_BTH, tokens)
    programs = triton.cdiv(tokens, block_t) * heads * triton.cdiv(channels, block_c)
    if programs:
        mamba2_dt_free_kernel[(programs,)](
            dt_in_rows, dt_bias_H.contiguous(), dt_free, tokens, dt_in_rows.stride(0),
            channels, block_t, block_c, num_warps=WARPS,
        )  # fmt: skip
    return dt_free


def launch_mamba2_dt_free_backward(
    ddt_free_BTH: Tensor, dt_in_BTH: Tensor, dt_bias_H: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of dt_in, dt_bias; slopes of the results lie without gaps."""
    tokens, heads, channels = _sizes(ddt_free_BTH, 0)
    block_t, block_c = _tile(channels, whole=False)
    blocks = max(TOKENS // block_t, 1)
    spans = triton.cdiv(tokens, block_t * blocks)
    parts = heads * triton.cdiv(channels, block_c)
    ddt_in = dt_in_BTH.new_empty(dt_in_BTH.shape)
    ddt_bias = ddt_free_BTH.new_empty((spans, heads * channels), dtype=torch.float32)
    dt_in_rows = _rows(dt_in_BTH, tokens)
    if spans * parts:
        mamba2_dt_free_backward_kernel[(spans * parts,)](
            ddt_free_BTH, dt_in_rows, dt_bias_H.contiguous(), ddt_in, ddt_bias, tokens, dt_in_rows.stride(0),
            channels, block_t, block_c, blocks, num_warps=WARPS,
        )  # fmt: skip
    return ddt_in, _summed(ddt_bias, dt_bias_H)


@triton.jit(do_not_specialize=["tokens"])
def mamba2_o_kernel(
    A_log_ptr, dt_free_ptr, v_ptr, o_cast_like_ptr, o_mul_ptr, tokens, dt_free_row, v_row,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """o_cast_like, o_mul."""
    pid = tl.program_id(0).to(tl.int64)
    h, c_C = pid % HEADS, tl.arange(0, BLOCK_C)
    in_C, at_C = c_C < CHANNELS, h * CHANNELS + c_C

    t_T = pid // HEADS * BLOCK_T + tl.arange(0, BLOCK_T)
    in_T = t_T < tokens
    in_TC = in_T[:, None] & in_C[None, :]
    at_TC = (t_T * (HEADS * CHANNELS))[:, None] + at_C[None, :]  # of what lies without gaps

    A_log = tl.load(A_log_ptr + h).to(tl.float32)
    dt_free_T = tl.load(dt_free_ptr + t_T * dt_free_row + h, in_T, 0.0).to(tl.float32)
    v_TC = tl.load(v_ptr + (t_T * v_row)[:, None] + at_C[None, :], in_TC, 0.0).to(tl.float32)
    tl.store(o_cast_like_ptr + at_TC, dt_free_T[:, None] * v_TC, in_TC)
    tl.store(o_mul_ptr + t_T * HEADS + h, -tl.exp(A_log) * dt_free_T, in_T)


@triton.jit(do_not_specialize=["tokens"])
def mamba2_o_backward_kernel(
    do_cast_like_ptr, do_mul_ptr, A_log_ptr, dt_free_ptr, v_ptr, dA_log_ptr, ddt_free_ptr, dv_ptr, tokens,
    dt_free_row, v_row,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The gradients of A_log, dt_free, v."""
    pid = tl.program_id(0).to(tl.int64)
    h, c_C = pid % HEADS, tl.arange(0, BLOCK_C)
    in_C, at_C = c_C < CHANNELS, h * CHANNELS + c_C

    span = pid // HEADS
    A_log = tl.load(A_log_ptr + h).to(tl.float32)
    A_exp = tl.exp(A_log)
    dA = 0.0
    for j in range(BLOCKS):
        t_T = (span * BLOCKS + j) * BLOCK_T + tl.arange(0, BLOCK_T)
        in_T = t_T < tokens
        in_TC = in_T[:, None] & in_C[None, :]
        at_TC = (t_T * (HEADS * CHANNELS))[:, None] + at_C[None, :]  # of what lies without gaps

        dt_free_T = tl.load(dt_free_ptr + t_T * dt_free_row + h, in_T, 0.0).to(tl.float32)
        do_mul_T = tl.load(do_mul_ptr + t_T * HEADS + h, in_T, 0.0).to(tl.float32)
        v_TC = tl.load(v_ptr + (t_T * v_row)[:, None] + at_C[None, :], in_TC, 0.0).to(tl.float32)
        do_cast_like_TC = tl.load(do_cast_like_ptr + at_TC, in_TC, 0.0).to(tl.float32)
        dA += tl.sum(tl.where(in_T, do_mul_T * dt_free_T, 0.0))
        tl.store(
            ddt_free_ptr + t_T * HEADS + h,
            do_mul_T * -A_exp + tl.sum(tl.where(in_TC, do_cast_like_TC * v_TC, 0.0), 1),
            in_T,
        )
        tl.store(dv_ptr + at_TC, do_cast_like_TC * dt_free_T[:, None], in_TC)

    tl.store(dA_log_ptr + pid, -dA * A_exp)


def launch_mamba2_o(A_log_H: Tensor, dt_free_BTH: Tensor, v_BTHK: Tensor) -> tuple[Tensor, Tensor]:
    """o_cast_like, o_mul, without gaps."""
    o_cast_like = v_BTHK.new_empty(v_BTHK.shape, dtype=v_BTHK.dtype)
    o_mul = v_BTHK.new_empty(v_BTHK.shape[:3], dtype=_promoted(A_log_H, dt_free_BTH))
    tokens, heads, channels = _sizes(v_BTHK, 1)
    block_t, block_c = _tile(channels, whole=True)
    dt_free_rows = _rows(dt_free_BTH, tokens)
    v_rows = _rows(v_BTHK, tokens)
    programs = triton.cdiv(tokens, block_t) * heads * triton.cdiv(channels, block_c)
    if programs:
        mamba2_o_kernel[(programs,)](
            A_log_H.contiguous(), dt_free_rows, v_rows, o_cast_like, o_mul, tokens, dt_free_rows.stride(0),
            v_rows.stride(0),
            heads, channels, block_t, block_c, num_warps=WARPS,
        )  # fmt: skip
    return o_cast_like, o_mul


def launch_mamba2_o_backward(
    do_cast_like_BTHK: Tensor, do_mul_BTH: Tensor, A_log_H: Tensor, dt_free_BTH: Tensor, v_BTHK: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of A_log, dt_free, v; slopes of the results lie without gaps."""
    tokens, heads, channels = _sizes(do_cast_like_BTHK, 1)
    block_t, block_c = _tile(channels, whole=True)
    blocks = max(TOKENS // block_t, 1)
    spans = triton.cdiv(tokens, block_t * blocks)
    parts = heads * triton.cdiv(channels, block_c)
    dA_log = do_cast_like_BTHK.new_empty((spans, parts), dtype=torch.float32)
    ddt_free = dt_free_BTH.new_empty(dt_free_BTH.shape)
    dv = v_BTHK.new_empty(v_BTHK.shape)
    dt_free_rows = _rows(dt_free_BTH, tokens)
    v_rows = _rows(v_BTHK, tokens)
    if spans * parts:
        mamba2_o_backward_kernel[(spans * parts,)](
            do_cast_like_BTHK, do_mul_BTH, A_log_H.contiguous(), dt_free_rows, v_rows, dA_log, ddt_free, dv,
            tokens, dt_free_rows.stride(0), v_rows.stride(0),
            heads, channels, block_t, block_c, blocks, num_warps=WARPS,
        )  # fmt: skip
    return _summed(dA_log, A_log_H), ddt_free, dv


@triton.jit(do_not_specialize=["tokens"])
def mamba2_o_2_kernel(
    D_ptr, v_ptr, o_recurrence_ptr, o_ptr, tokens, v_row, o_recurrence_row,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """o."""
    pid = tl.program_id(0).to(tl.int64)
    h, c_C = pid % HEADS, tl.arange(0, BLOCK_C)
    in_C, at_C = c_C < CHANNELS, h * CHANNELS + c_C

    t_T = pid // HEADS * BLOCK_T + tl.arange(0, BLOCK_T)
    in_T = t_T < tokens
    in_TC = in_T[:, None] & in_C[None, :]
    at_TC = (t_T * (HEADS * CHANNELS))[:, None] + at_C[None, :]  # of what lies without gaps

    D = tl.load(D_ptr + h).to(tl.float32)
    o_recurrence_TC = tl.load(
        o_recurrence_ptr + (t_T * o_recurrence_row)[:, None] + at_C[None, :], in_TC, 0.0
    ).to(tl.float32)
    v_TC = tl.load(v_ptr + (t_T * v_row)[:, None] + at_C[None, :], in_TC, 0.0).to(tl.float32)
    o_TC = o_recurrence_TC + D * v_TC
    tl.store(o_ptr + at_TC, o_TC, in_TC)


@triton.jit(do_not_specialize=["tokens"])
def mamba2_o_2_backward_kernel(
    do_ptr, D_ptr, v_ptr, dD_ptr, dv_ptr, do_recurrence_ptr, tokens, v_row,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The gradients of D, v, o_recurrence."""
    pid = tl.program_id(0).to(tl.int64)
    h, c_C = pid % HEADS, tl.arange(0, BLOCK_C)
    in_C, at_C = c_C < CHANNELS, h * CHANNELS + c_C

    span = pid // HEADS
    D = tl.load(D_ptr + h).to(tl.float32)
    dD = 0.0
    for j in range(BLOCKS):
        t_T = (span * BLOCKS + j) * BLOCK_T + tl.arange(0, BLOCK_T)
        in_T = t_T < tokens
        in_TC = in_T[:, None] & in_C[None, :]
        at_TC = (t_T * (HEADS * CHANNELS))[:, None] + at_C[None, :]  # of what lies without gaps

        v_TC = tl.load(v_ptr + (t_T * v_row)[:, None] + at_C[None, :], in_TC, 0.0).to(tl.float32)
        do_TC = tl.load(do_ptr + at_TC, in_TC, 0.0).to(tl.float32)
        dD += tl.sum(tl.where(in_TC, do_TC * v_TC, 0.0))
        tl.store(dv_ptr + at_TC, do_TC * D, in_TC)
        tl.store(do_recurrence_ptr + at_TC, do_TC, in_TC)

    tl.store(dD_ptr + pid, dD)


def launch_mamba2_o_2(D_H: Tensor, v_BTHK: Tensor, o_recurrence_BTHK: Tensor) -> Tensor:
    """o, without gaps."""
    o = v_BTHK.new_empty(v_BTHK.shape, dtype=_promoted(D_H, v_BTHK, o_recurrence_BTHK))
    tokens, heads, channels = _sizes(v_BTHK, 1)
    block_t, block_c = _tile(channels, whole=True)
    v_rows = _rows(v_BTHK, tokens)
    o_recurrence_rows = _rows(o_recurrence_BTHK, tokens)
    programs = triton.cdiv(tokens, block_t) * heads * triton.cdiv(channels, block_c)
    if programs:
        mamba2_o_2_kernel[(programs,)](
            D_H.contiguous(), v_rows, o_recurrence_rows, o, tokens, v_rows.stride(0),
            o_recurrence_rows.stride(0),
            heads, channels, block_t, block_c, num_warps=WARPS,
        )  # fmt: skip
    return o


def launch_mamba2_o_2_backward(
    do_BTHK: Tensor, D_H: Tensor, v_BTHK: Tensor, o_recurrence_BTHK_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of D, v, o_recurrence; slopes of the results lie without gaps."""
    tokens, heads, channels = _sizes(do_BTHK, 1)
    block_t, block_c = _tile(channels, whole=True)
    blocks = max(TOKENS // block_t, 1)
    spans = triton.cdiv(tokens, block_t * blocks)
    parts = heads * triton.cdiv(channels, block_c)
    dD = do_BTHK.new_empty((spans, parts), dtype=torch.float32)
    dv = v_BTHK.new_empty(v_BTHK.shape)
    do_recurrence = do_BTHK.new_empty(do_BTHK.shape, dtype=o_recurrence_BTHK_dtype)
    v_rows = _rows(v_BTHK, tokens)
    if spans * parts:
        mamba2_o_2_backward_kernel[(spans * parts,)](
            do_BTHK, D_H.contiguous(), v_rows, dD, dv, do_recurrence, tokens, v_rows.stride(0),
            heads, channels, block_t, block_c, blocks, num_warps=WARPS,
        )  # fmt: skip
    return _summed(dD, D_H), dv, do_recurrence


def _sizes(like: Tensor, outer: int) -> tuple[int, int, int]:
    """Tokens, heads and entries of a head."""
    return like.shape[:2].numel(), like.shape[2 : 2 + outer].numel(), like.shape[2 + outer :].numel()


def _rows(x: Tensor, tokens: int) -> Tensor:
    """A row for each token, its entries without gaps: where x lies, if it lies so."""
    x_TC = x.reshape(tokens, x.shape[2:].numel())
    return x_TC if x_TC.stride(1) == 1 or x_TC.shape[1] == 1 else x_TC.contiguous()


def _tile(channels: int, whole: bool) -> tuple[int, int]:
    """Tokens and entries of each in a program's tile."""
    block_c = triton.next_power_of_2(max(channels, 1))
    block_c = block_c if whole else min(block_c, COLUMNS)
    return max(ENTRIES // block_c, 1), block_c


def _promoted(*operands: Tensor) -> torch.dtype:
    """The dtype of a result of several."""
    return reduce(torch.promote_types, (x.dtype for x in operands))


def _summed(partial: Tensor, like: Tensor) -> Tensor:
    """The sum of what all programs found, in the shape and dtype of `like`."""
    return partial.reshape(-1, like.numel()).sum(0).reshape(like.shape).to(like.dtype)
