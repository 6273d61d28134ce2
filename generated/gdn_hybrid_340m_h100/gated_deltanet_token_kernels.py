# mypy: disable-error-code="import,no-untyped-def,no-untyped-call,untyped-decorator,misc,assignment"
"""One decoded token of a mixer in a few launches.

Axes: B sequences, D width of the model, K and V the two axes of a head's state S. b is the program's
sequence, h its head; K_ and V_ are the places of a tile, in_K and in_V whether they exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from .place import Place


@triton.jit
def log1p(x):
    """log(1 + x), exact where 1 + x rounds (Goldberg 1991, theorem 4)."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, x * tl.log(u) / tl.where(u == 1.0, 1.0, u - 1.0))


@triton.jit
def softplus(x):
    """log(1 + exp(x)) without overflow, and with every digit of small results."""
    return tl.maximum(x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def silu(x):
    """x sigmoid(x)."""
    return x * tl.sigmoid(x)


@triton.jit
def seen_before(past, b, at, inside, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
    """The inputs of a convolution before this token, oldest first, each with zeros outside of the mask."""
    seen = ()
    for j in tl.static_range(WIDTH - 1):
        seen = seen + (tl.load(past + (b * (WIDTH - 1) + j) * CHANNELS + at, inside, 0.0),)
    return seen


@triton.jit
def causal_conv(x, seen, weight, at, inside, WIDTH: tl.constexpr):
    """A causal depthwise convolution at one token: the last tap meets the token itself."""
    y = x * tl.load(weight + at * WIDTH + WIDTH - 1, inside, 0.0).to(tl.float32)
    for j in tl.static_range(WIDTH - 1):
        y += seen[j].to(tl.float32) * tl.load(weight + at * WIDTH + j, inside, 0.0).to(tl.float32)
    return y


@triton.jit
def shift_in(x, seen, past, b, at, inside, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
    """Move a convolution's past on by one token, in place."""
    for j in tl.static_range(WIDTH - 2):
        tl.store(past + (b * (WIDTH - 1) + j) * CHANNELS + at, seen[j + 1], inside)
    tl.store(past + (b * (WIDTH - 1) + WIDTH - 2) * CHANNELS + at, x, inside)


@triton.jit
def token_kernel(
    k, v, decay, beta, q, gate, row, k_conv, v_conv, q_conv, S, result, k_conv_weight, v_conv_weight,
    decay_A_log, decay_dt_bias, q_conv_weight, y_norm_weight, scale,
    n_v_heads: tl.constexpr, head_dim: tl.constexpr, v_dim: tl.constexpr, n_heads: tl.constexpr,
    conv: tl.constexpr, BLOCK_K: tl.constexpr, BLOCKS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One token of one head of one sequence, from the products of the input to what the last product reads."""
    b = tl.program_id(0).to(tl.int64) // n_v_heads
    h = tl.program_id(0).to(tl.int64) % n_v_heads
    at_S = S + (b * n_v_heads + h) * (head_dim * v_dim)
    N_ = tl.arange(0, BLOCKS)[:, None]
    K_, V_ = tl.arange(0, BLOCK_K), N_ * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    in_K, in_V = K_ < head_dim, V_ < v_dim
    at_n_heads_K = h * n_heads // n_v_heads * head_dim + K_
    k_conv_in_K = tl.load(k + b * row + at_n_heads_K, in_K, 0.0).to(tl.float32)
    k_conv_past = seen_before(k_conv, b, at_n_heads_K, in_K, n_heads * head_dim, conv)
    k_in_K = silu(causal_conv(k_conv_in_K, k_conv_past, k_conv_weight, at_n_heads_K, in_K, conv))
    k_K = k_in_K * tl.rsqrt(tl.sum(k_in_K * k_in_K, 0) + 1e-06)
    at_n_v_heads_V = h * v_dim + V_
    v_conv_in_V = tl.load(v + b * row + at_n_v_heads_V, in_V, 0.0).to(tl.float32)
    v_conv_past = seen_before(v_conv, b, at_n_v_heads_V, in_V, n_v_heads * v_dim, conv)
    v_V = silu(causal_conv(v_conv_in_V, v_conv_past, v_conv_weight, at_n_v_heads_V, in_V, conv))
    decay_ = -tl.exp(tl.load(decay_A_log + h).to(tl.float32)) * softplus(
        tl.load(decay + b * row + h).to(tl.float32) + tl.load(decay_dt_bias + h).to(tl.float32)
    )
    beta_ = tl.sigmoid(tl.load(beta + b * row + h).to(tl.float32))
    q_conv_in_K = tl.load(q + b * row + at_n_heads_K, in_K, 0.0).to(tl.float32)
    q_conv_past = seen_before(q_conv, b, at_n_heads_K, in_K, n_heads * head_dim, conv)
    q_in_K = silu(causal_conv(q_conv_in_K, q_conv_past, q_conv_weight, at_n_heads_K, in_K, conv))
    q_K = q_in_K * tl.rsqrt(tl.sum(q_in_K * q_in_K, 0) + 1e-06)
    o_V = tl.zeros([BLOCKS, COLUMNS], tl.float32)
    for j in range(BLOCKS):  # as many columns of the state as registers hold
        P_ = j * COLUMNS + tl.arange(0, COLUMNS)
        in_P = P_ < v_dim
        in_KV = in_K[:, None] & in_P[None, :]
        at_KV = at_S + (K_[:, None] * v_dim + P_[None, :])
        S_KV = tl.load(at_KV, in_KV, 0.0)
        v_P = tl.sum(tl.where(N_ == j, v_V, 0.0), 0)
        S_KV *= tl.exp(decay_)
        seen_V = tl.sum(S_KV * k_K[:, None], 0)
        u_V = beta_ * (v_P - seen_V)
        S_KV += k_K[:, None] * u_V[None, :]
        o_V = tl.where(N_ == j, (tl.sum(S_KV * q_K[:, None], 0) * scale)[None, :], o_V)
        tl.store(at_KV, S_KV, in_KV)
    gate_V = silu(tl.load(gate + b * row + at_n_v_heads_V, in_V, 0.0).to(tl.float32))
    result_V = (
        o_V
        * tl.rsqrt(tl.sum(o_V * o_V) / v_dim + 1e-05)
        * tl.load(y_norm_weight + V_, in_V, 0.0).to(tl.float32)
    ) * gate_V
    tl.store(result + b * (n_v_heads * v_dim) + at_n_v_heads_V, result_V, in_V)
    tl.debug_barrier()  # every read of a history lies before the first write
    shift_in(k_conv_in_K, k_conv_past, k_conv, b, at_n_heads_K, in_K, n_heads * head_dim, conv)
    shift_in(v_conv_in_V, v_conv_past, v_conv, b, at_n_v_heads_V, in_V, n_v_heads * v_dim, conv)
    shift_in(q_conv_in_K, q_conv_past, q_conv, b, at_n_heads_K, in_K, n_heads * head_dim, conv)


def decode_token(mixer: Any, x_BTD: Tensor, place: Place) -> Tensor:
    """The mixer's output for one token of each sequence, in 3 launches; its memory changes."""
    x_BD = x_BTD[:, 0]
    B = x_BD.shape[0]
    products = F.linear(x_BD, mixer.joined[0].weight)
    v, gate, q, k, beta, decay, *_ = products.split(mixer.joined[0].rows, 1)
    S = place.read("o")
    k_conv = place.read("k_conv")
    v_conv = place.read("v_conv")
    q_conv = place.read("q_conv")
    result = x_BD.new_empty(B, 1, mixer.n_v_heads * mixer.v_dim)
    block_K = 1 << (mixer.head_dim - 1).bit_length()
    block_V = 1 << (mixer.v_dim - 1).bit_length()
    columns = min(block_V, max(16384 // block_K, 16))
    with torch.cuda.device(x_BTD.get_device()):  # launches go to the current one
        token_kernel[(B * mixer.n_v_heads,)](
            k, v, decay, beta, q, gate, products.stride(0), k_conv, v_conv, q_conv, S, result,
            mixer.k_conv.weight, mixer.v_conv.weight, mixer.decay_A_log, mixer.decay_dt_bias,
            mixer.q_conv.weight, mixer.y_norm.weight, mixer.head_dim**-0.5,
            mixer.n_v_heads, mixer.head_dim, mixer.v_dim, mixer.n_heads, mixer.conv, block_K,
            block_V // columns, columns,
            num_warps=min(16, max(4, block_K * columns // 2048)),
        )  # fmt: skip
    y: Tensor = mixer.y(result)
    return y
