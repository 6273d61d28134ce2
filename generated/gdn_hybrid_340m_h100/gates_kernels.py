# mypy: disable-error-code="import-untyped,import-not-found,no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""Triton kernels of what a model does entry by entry, in float32, and of its gradients.

Axes: T tokens of a program, C entries of each: those of one head, or a piece of all. h is the program's head.
Gradients of what all tokens share are summed over the tokens of a program, and those sums by torch, in order.
"""

from __future__ import annotations

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
def gated_deltanet_beta_decay_kernel(
    beta_linear_ptr, decay_linear_ptr, decay_dt_bias_ptr, decay_A_log_ptr, beta_ptr, decay_ptr, tokens,
    beta_linear_row, decay_linear_row,
    CHANNELS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """beta, decay."""
    pid = tl.program_id(0).to(tl.int64)
    parts = tl.cdiv(CHANNELS, BLOCK_C)
    at_C = pid % parts * BLOCK_C + tl.arange(0, BLOCK_C)
    in_C = at_C < CHANNELS

    t_T = pid // parts * BLOCK_T + tl.arange(0, BLOCK_T)
    in_T = t_T < tokens
    in_TC = in_T[:, None] & in_C[None, :]
    at_TC = (t_T * CHANNELS)[:, None] + at_C[None, :]  # of what lies without gaps

    decay_A_log_C = tl.load(decay_A_log_ptr + at_C, in_C, 0.0).to(tl.float32)
    decay_dt_bias_C = tl.load(decay_dt_bias_ptr + at_C, in_C, 0.0).to(tl.float32)
    beta_linear_TC = tl.load(
        beta_linear_ptr + (t_T * beta_linear_row)[:, None] + at_C[None, :], in_TC, 0.0
    ).to(tl.float32)
    decay_linear_TC = tl.load(
        decay_linear_ptr + (t_T * decay_linear_row)[:, None] + at_C[None, :], in_TC, 0.0
    ).to(tl.float32)
    beta_TC = tl.sigmoid(beta_linear_TC)
    decay_TC = (-tl.exp(decay_A_log_C))[None, :] * softplus(decay_linear_TC + decay_dt_bias_C[None, :])
    tl.store(beta_ptr + at_TC, beta_TC, in_TC)
    tl.store(decay_ptr + at_TC, decay_TC, in_TC)


@triton.jit(do_not_specialize=["tokens"])
def gated_deltanet_beta_decay_backward_kernel(
    dbeta_ptr, ddecay_ptr, beta_linear_ptr, decay_linear_ptr, decay_dt_bias_ptr, decay_A_log_ptr,
    dbeta_linear_ptr, ddecay_linear_ptr, ddecay_dt_bias_ptr, ddecay_A_log_ptr, tokens, beta_linear_row,
    decay_linear_row,
    CHANNELS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """The gradients of beta_linear, decay_linear, ... and decay_A_log."""
    pid = tl.program_id(0).to(tl.int64)
    parts = tl.cdiv(CHANNELS, BLOCK_C)
    at_C = pid % parts * BLOCK_C + tl.arange(0, BLOCK_C)
    in_C = at_C < CHANNELS

    span = pid // parts
    decay_dt_bias_C = tl.load(decay_dt_bias_ptr + at_C, in_C, 0.0).to(tl.float32)
    decay_A_log_C = tl.load(decay_A_log_ptr + at_C, in_C, 0.0).to(tl.float32)
    decay_exp_C = tl.exp(decay_A_log_C)
    ddecay_neg_C = tl.zeros([BLOCK_C], tl.float32)
    ddecay_dt_bias_C = tl.zeros([BLOCK_C], tl.float32)
    for j in range(BLOCKS):
        t_T = (span * BLOCKS + j) * BLOCK_T + tl.arange(0, BLOCK_T)
        in_T = t_T < tokens
        in_TC = in_T[:, None] & in_C[None, :]
        at_TC = (t_T * CHANNELS)[:, None] + at_C[None, :]  # of what lies without gaps

        decay_linear_TC = tl.load(
            decay_linear_ptr + (t_T * decay_linear_row)[:, None] + at_C[None, :], in_TC, 0.0
        ).to(tl.float32)
        ddecay_TC = tl.load(ddecay_ptr + at_TC, in_TC, 0.0).to(tl.float32)
        beta_linear_TC = tl.load(
            beta_linear_ptr + (t_T * beta_linear_row)[:, None] + at_C[None, :], in_TC, 0.0
        ).to(tl.float32)
        dbeta_TC = tl.load(dbeta_ptr + at_TC, in_TC, 0.0).to(tl.float32)
        decay_add_TC = decay_linear_TC + decay_dt_bias_C[None, :]
        ddecay_add_TC = (ddecay_TC * (-decay_exp_C)[None, :]) * tl.sigmoid(decay_add_TC)
        beta_TC = tl.sigmoid(beta_linear_TC)
        ddecay_neg_C += tl.sum(tl.where(in_TC, ddecay_TC * softplus(decay_add_TC), 0.0), 0)
        ddecay_dt_bias_C += tl.sum(tl.where(in_TC, ddecay_add_TC, 0.0), 0)
        tl.store(dbeta_linear_ptr + at_TC, dbeta_TC * beta_TC * (1.0 - beta_TC), in_TC)
        tl.store(ddecay_linear_ptr + at_TC, ddecay_add_TC, in_TC)

    tl.store(ddecay_dt_bias_ptr + span * CHANNELS + at_C, ddecay_dt_bias_C, in_C)
    tl.store(ddecay_A_log_ptr + span * CHANNELS + at_C, -ddecay_neg_C * decay_exp_C, in_C)


def launch_gated_deltanet_beta_decay(
    beta_linear_BTW: Tensor, decay_linear_BTW: Tensor, decay_dt_bias_W: Tensor, decay_A_log_W: Tensor
) -> tuple[Tensor, Tensor]:
    """beta, decay, without gaps."""
    beta = beta_linear_BTW.new_empty(beta_linear_BTW.shape, dtype=beta_linear_BTW.dtype)
    decay = beta_linear_BTW.new_empty(beta_linear_BTW.shape, dtype=torch.float32)
    tokens, heads, channels = _sizes(beta_linear_BTW, 0)
    block_t, block_c = _tile(channels, whole=False)
    beta_linear_rows = _rows(beta_linear_BTW, tokens)
    decay_linear_rows = _rows(decay_linear_BTW, tokens)
    programs = triton.cdiv(tokens, block_t) * heads * triton.cdiv(channels, block_c)
    if programs:
        gated_deltanet_beta_decay_kernel[(programs,)](
            beta_linear_rows, decay_linear_rows, decay_dt_bias_W.contiguous(), decay_A_log_W.contiguous(),
            beta, decay, tokens, beta_linear_rows.stride(0), decay_linear_rows.stride(0),
            channels, block_t, block_c, num_warps=WARPS,
        )  # fmt: skip
    return beta, decay


def launch_gated_deltanet_beta_decay_backward(
    dbeta_BTW: Tensor,
    ddecay_BTW: Tensor,
    beta_linear_BTW: Tensor,
    decay_linear_BTW: Tensor,
    decay_dt_bias_W: Tensor,
    decay_A_log_W: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of beta_linear, decay_linear, ... and decay_A_log; slopes of the results lie without gaps."""
    tokens, heads, channels = _sizes(dbeta_BTW, 0)
    block_t, block_c = _tile(channels, whole=False)
    blocks = max(TOKENS // block_t, 1)
    spans = triton.cdiv(tokens, block_t * blocks)
    parts = heads * triton.cdiv(channels, block_c)
    dbeta_linear = beta_linear_BTW.new_empty(beta_linear_BTW.shape)
    ddecay_linear = decay_linear_BTW.new_empty(decay_linear_BTW.shape)
    ddecay_dt_bias = dbeta_BTW.new_empty((spans, heads * channels), dtype=torch.float32)
    ddecay_A_log = dbeta_BTW.new_empty((spans, heads * channels), dtype=torch.float32)
    beta_linear_rows = _rows(beta_linear_BTW, tokens)
    decay_linear_rows = _rows(decay_linear_BTW, tokens)
    if spans * parts:
        gated_deltanet_beta_decay_backward_kernel[(spans * parts,)](
            dbeta_BTW, ddecay_BTW, beta_linear_rows, decay_linear_rows, decay_dt_bias_W.contiguous(),
            decay_A_log_W.contiguous(), dbeta_linear, ddecay_linear, ddecay_dt_bias, ddecay_A_log, tokens,
            beta_linear_rows.stride(0), decay_linear_rows.stride(0),
            channels, block_t, block_c, blocks, num_warps=WARPS,
        )  # fmt: skip
    return (
        dbeta_linear,
        ddecay_linear,
        _summed(ddecay_dt_bias, decay_dt_bias_W),
        _summed(ddecay_A_log, decay_A_log_W),
    )


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


def _summed(partial: Tensor, like: Tensor) -> Tensor:
    """The sum of what all programs found, in the shape and dtype of `like`."""
    return partial.reshape(-1, like.numel()).sum(0).reshape(like.shape).to(like.dtype)
