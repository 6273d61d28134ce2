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
def token_kernel(
    k, v, decay, q, gate, row, S, result, decay_bias, y_norm_weight, tau, scale,
    n_kv_heads: tl.constexpr, head_dim: tl.constexpr, v_dim: tl.constexpr, n_heads: tl.constexpr,
    QUERIES: tl.constexpr, BLOCK_K: tl.constexpr, BLOCKS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One token of one head of one sequence, from the products of the input to what the last product reads."""
    b = tl.program_id(0).to(tl.int64) // n_kv_heads
    h = tl.program_id(0).to(tl.int64) % n_kv_heads
    at_S = S + (b * n_kv_heads + h) * (head_dim * v_dim)
    N_ = tl.arange(0, BLOCKS)[:, None]
    K_, V_ = tl.arange(0, BLOCK_K), N_ * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    in_K, in_V = K_ < head_dim, V_ < v_dim
    at_n_kv_heads_K = h * head_dim + K_
    k_K = tl.load(k + b * row + at_n_kv_heads_K, in_K, 0.0).to(tl.float32)
    at_n_kv_heads_V = h * v_dim + V_
    v_V = tl.load(v + b * row + at_n_kv_heads_V, in_V, 0.0).to(tl.float32)
    decay_K = (
        -softplus(
            -(
                tl.load(decay + b * (n_kv_heads * head_dim) + at_n_kv_heads_K, in_K, 0.0).to(tl.float32)
                + tl.load(decay_bias + at_n_kv_heads_K, in_K, 0.0).to(tl.float32)
            )
        )
        / tau
    )
    P_ = tl.arange(0, COLUMNS)
    in_P = P_ < v_dim
    in_KV = in_K[:, None] & in_P[None, :]
    at_KV = at_S + (K_[:, None] * v_dim + P_[None, :])
    S_KV = tl.load(at_KV, in_KV, 0.0)
    v_P = tl.sum(v_V, 0)
    S_KV *= tl.exp(decay_K)[:, None]
    S_KV += k_K[:, None] * v_P[None, :]
    for i in range(QUERIES):  # the queries of a group read one state
        g = h * QUERIES + i
        at_n_heads_K = g * head_dim + K_
        q_K = tl.load(q + b * row + at_n_heads_K, in_K, 0.0).to(tl.float32)
        o_V = (tl.sum(S_KV * q_K[:, None], 0) * scale)[None, :]
        at_n_heads_V = g * v_dim + V_
        gate_V = silu(tl.load(gate + b * row + at_n_heads_V, in_V, 0.0).to(tl.float32))
        result_V = (
            o_V
            * tl.rsqrt(tl.sum(o_V * o_V) / v_dim + 1e-05)
            * tl.load(y_norm_weight + V_, in_V, 0.0).to(tl.float32)
        ) * gate_V
        tl.store(result + b * (n_heads * v_dim) + at_n_heads_V, result_V, in_V)
    tl.store(at_KV, S_KV, in_KV)


def decode_token(mixer: Any, x_BTD: Tensor, place: Place) -> Tensor:
    """The mixer's output for one token of each sequence, in 4 launches; its memory changes."""
    x_BD = x_BTD[:, 0]
    B = x_BD.shape[0]
    products = F.linear(x_BD, mixer.joined[0].weight)
    v, gate, q, k, low, *_ = products.split(mixer.joined[0].rows, 1)
    decay = F.linear(low, mixer.decay.weight)
    S = place.read("o")
    result = x_BD.new_empty(B, 1, mixer.n_heads * mixer.v_dim)
    block_K = 1 << (mixer.head_dim - 1).bit_length()
    block_V = 1 << (mixer.v_dim - 1).bit_length()
    columns = block_V
    with torch.cuda.device(x_BTD.get_device()):  # launches go to the current one
        token_kernel[(B * mixer.n_kv_heads,)](
            k, v, decay, q, gate, products.stride(0), S, result, mixer.decay.bias, mixer.y_norm.weight,
            mixer.tau, mixer.head_dim**-0.5,
            mixer.n_kv_heads, mixer.head_dim, mixer.v_dim, mixer.n_heads, mixer.n_heads // mixer.n_kv_heads,
            block_K, block_V // columns, columns,
            num_warps=min(16, max(4, block_K * columns // 2048)),
        )  # fmt: skip
    y: Tensor = mixer.y(result)
    return y
