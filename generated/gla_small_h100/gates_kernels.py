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
def gla_decay_kernel(
    decay_linear_ptr, decay_ptr, tokens, decay_linear_row, tau,
    CHANNELS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """decay."""
    pid = tl.program_id(0).to(tl.int64)
    parts = tl.cdiv(CHANNELS, BLOCK_C)
    at_C = pid % parts * BLOCK_C + tl.arange(0, BLOCK_C)
    in_C = at_C < CHANNELS

    t_T = pid // parts * BLOCK_T + tl.arange(0, BLOCK_T)
    in_T = t_T < tokens
    in_TC = in_T[:, None] & in_C[None, :]
    at_TC = (t_T * CHANNELS)[:, None] + at_C[None, :]  # of what lies without gaps

    decay_linear_TC = tl.load(
        decay_linear_ptr + (t_T * decay_linear_row)[:, None] + at_C[None, :], in_TC, 0.0
    ).to(tl.float32)
    decay_TC = -softplus(-decay_linear_TC) / tau
    tl.store(decay_ptr + at_TC, decay_TC, in_TC)


@triton.jit(do_not_specialize=["tokens"])
def gla_decay_backward_kernel(
    ddecay_ptr, decay_linear_ptr, ddecay_linear_ptr, tokens, decay_linear_row, tau,
    CHANNELS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradients of decay_linear."""
    pid = tl.program_id(0).to(tl.int64)
    parts = tl.cdiv(CHANNELS, BLOCK_C)
    at_C = pid % parts * BLOCK_C + tl.arange(0, BLOCK_C)
    in_C = at_C < CHANNELS

    t_T = pid // parts * BLOCK_T + tl.arange(0, BLOCK_T)
    in_T = t_T < tokens
    in_TC = in_T[:, None] & in_C[None, :]
    at_TC = (t_T * CHANNELS)[:, None] + at_C[None, :]  # of what lies without gaps

    decay_linear_TC = tl.load(
        decay_linear_ptr + (t_T * decay_linear_row)[:, None] + at_C[None, :], in_TC, 0.0
    ).to(tl.float32)
    ddecay_TC = tl.load(ddecay_ptr + at_TC, in_TC, 0.0).to(tl.float32)
    tl.store(ddecay_linear_ptr + at_TC, (ddecay_TC / tau) * tl.sigmoid(-decay_linear_TC), in_TC)


def launch_gla_decay(decay_linear_BTGK: Tensor, tau: float) -> Tensor:
    """decay, without gaps."""
    decay = decay_linear_BTGK.new_empty(decay_linear_BTGK.shape, dtype=torch.float32)
    tokens, heads, channels = _sizes(decay_linear_BTGK, 0)
    block_t, block_c = _tile(channels, whole=False)
    decay_linear_rows = _rows(decay_linear_BTGK, tokens)
    programs = triton.cdiv(tokens, block_t) * heads * triton.cdiv(channels, block_c)
    if programs:
        gla_decay_kernel[(programs,)](
            decay_linear_rows, decay, tokens, decay_linear_rows.stride(0), tau,
            channels, block_t, block_c, num_warps=WARPS,
        )  # fmt: skip
    return decay


def launch_gla_decay_backward(ddecay_BTGK: Tensor, decay_linear_BTGK: Tensor, tau: float) -> Tensor:
    """The gradients of decay_linear; slopes of the results lie without gaps."""
    tokens, heads, channels = _sizes(ddecay_BTGK, 0)
    block_t, block_c = _tile(channels, whole=False)
    spans = triton.cdiv(tokens, block_t)
    parts = heads * triton.cdiv(channels, block_c)
    ddecay_linear = decay_linear_BTGK.new_empty(decay_linear_BTGK.shape)
    decay_linear_rows = _rows(decay_linear_BTGK, tokens)
    if spans * parts:
        gla_decay_backward_kernel[(spans * parts,)](
            ddecay_BTGK, decay_linear_rows, ddecay_linear, tokens, decay_linear_rows.stride(0), tau,
            channels, block_t, block_c, num_warps=WARPS,
        )  # fmt: skip
    return ddecay_linear


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
