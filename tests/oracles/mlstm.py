"""mLSTM in its block with an up-projection (Beck et al. 2024, section 2.3 and appendix), a loop over tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, layer_norm, linear, short_conv, sigmoid, silu
from tests.oracles.row import Row

ROWS = {
    "default": Row({"n_heads": 2, "multiple_of": 32}, {"n_heads": 2, "d_inner": 96}),
    "wider": Row(
        {"n_heads": 4, "expand": 2.5, "multiple_of": 64, "qkv_block": 8, "conv": 3},
        {"n_heads": 4, "d_inner": 128},
        layers=(1,),
    ),
}


def memory(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    """h_t = C_t^T q_t / max(|n_t^T q_t|, 1) from gates before their functions, `i, f [B, T, H]`.

    The gates are exponentials as they stand; 1e-6 is added after dividing by the running maximum.
    """
    k, keep = k / k.shape[-1] ** 0.5, sigmoid(f)
    c = q.new_zeros(*q.shape[:1], *q.shape[2:], v.shape[-1])
    n = torch.zeros_like(c[..., 0])
    top = torch.full_like(i[:, 0], float("-inf"))
    rows = []
    for t in range(q.shape[1]):
        write = torch.exp(i[:, t])[..., None]
        c = keep[:, t, :, None, None] * c + (write * k[:, t])[..., None] * v[:, t, :, None, :]
        n = keep[:, t, :, None] * n + write * k[:, t]
        top = torch.maximum(torch.log(keep[:, t]) + top, i[:, t])
        size = (n * q[:, t]).sum(-1).abs().clamp(min=1) + 1e-6 * torch.exp(top)
        rows.append((c * q[:, t][..., None]).sum(-2) / size[..., None])
    return torch.stack(rows, 1)


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`. `sizes`: n_heads, d_inner, norm_eps."""
    n_heads, d_inner = sizes["n_heads"], sizes["d_inner"]
    u, z = linear(weights, "up", x, 2 * d_inner).chunk(2, -1)
    conv = silu(short_conv(weights, "c_conv", u))

    def blocks(name: str, source: Tensor) -> Tensor:
        matrices = weights[f"{name}.weight"]  # [blocks, side, side]
        pieces = source.reshape(*source.shape[:2], len(matrices), -1, 1)
        return (matrices @ pieces).flatten(2)

    q, k, v = blocks("q", conv), blocks("k", conv), blocks("v", u)
    joint = torch.cat([q, k, v], -1)
    i, f = linear(weights, "igate", joint, n_heads), linear(weights, "fgate", joint, n_heads)
    heads = [part.reshape(*part.shape[:2], n_heads, -1) for part in (q, k, v)]
    h = layer_norm(memory(*heads, i, f), weights["h_norm.weight"], sizes["norm_eps"]).flatten(2)
    return linear(weights, "y", (h + weights["skip"] * conv) * silu(z), x.shape[-1])
