"""Linear attention from its recurrence (Katharopoulos et al. 2020, equations 16 to 20), a loop over tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, rms_norm, softplus
from tests.oracles.row import Row

ROWS = {
    "default": Row({"n_heads": 3}, {"n_heads": 3, "n_kv_heads": 3, "head_dim": 16, "v_dim": 16}),
    "grouped heads, no denominator, output norm": Row(
        {
            "n_heads": 4,
            "n_kv_heads": 2,
            "feature_map": "relu",
            "normalize": "none",
            "output_norm": True,
            "expand_v": 2,
        },
        {
            "n_heads": 4,
            "n_kv_heads": 2,
            "head_dim": 12,
            "v_dim": 24,
            "feature_map": "relu",
            "normalize": False,
        }
        | {"output_norm": True},
    ),
    "based": Row(
        {"n_heads": 3, "head_dim": 4, "feature_map": "taylor_exp", "eps": 1e-12},
        {
            "n_heads": 3,
            "n_kv_heads": 3,
            "head_dim": 4,
            "v_dim": 16,
            "feature_map": "taylor_exp",
            "eps": 1e-12,
        },
    ),
    "rebased": Row(
        {"n_heads": 3, "head_dim": 8, "feature_map": "rebased", "eps": 1e-5, "tie_feature_map": True},
        {"n_heads": 3, "n_kv_heads": 3, "head_dim": 8, "v_dim": 16, "feature_map": "rebased", "eps": 1e-5}
        | {"tied": True},
    ),
    "hedgehog": Row(
        {"n_heads": 4, "n_kv_heads": 2, "feature_map": "hedgehog"},
        {"n_heads": 4, "n_kv_heads": 2, "head_dim": 12, "v_dim": 12, "feature_map": "hedgehog"},
    ),
    "dpfp": Row(
        {"n_heads": 3, "feature_map": "dpfp"},
        {"n_heads": 3, "n_kv_heads": 3, "head_dim": 16, "v_dim": 16, "feature_map": "dpfp"},
    ),
    "focused": Row(
        {"n_heads": 3, "feature_map": "focused_map"},
        {"n_heads": 3, "n_kv_heads": 3, "head_dim": 16, "v_dim": 16, "feature_map": "focused"},
    ),
    "learned map": Row(
        {"n_heads": 3, "feature_map": "learned_map", "tie_feature_map": True},
        {"n_heads": 3, "n_kv_heads": 3, "head_dim": 16, "v_dim": 16, "feature_map": "learned", "tied": True},
    ),
}


def pairs(u: Tensor) -> Tensor:
    """All products u_i u_j with i <= j, those with i < j times sqrt(2): the products of these are squares."""
    n = u.shape[-1]
    return torch.stack(
        [u[..., i] * u[..., j] * (1 if i == j else math.sqrt(2)) for i in range(n) for j in range(i, n)], -1
    )


def features(kind: str, weights: Weights, prefix: str, u: Tensor) -> Tensor:
    """phi of `u [B, H, K]`, each map from its paper."""
    if kind == "elu1":
        return torch.where(u > 0, u + 1, torch.exp(u.clamp(max=0)))
    if kind == "relu":
        return u.clamp(min=0)
    if kind == "taylor_exp":
        n = u.shape[-1]
        return torch.cat([torch.ones_like(u[..., :1]), u / n**0.25, pairs(u) / math.sqrt(2 * n)], -1)
    if kind == "rebased":
        centred = u - u.mean(-1, keepdim=True)
        normed = centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-5)
        return pairs(normed * weights[f"{prefix}_gamma"] + weights[f"{prefix}_beta"])
    if kind == "hedgehog":
        a = torch.einsum("bhk,hjk->bhj", u, weights[f"{prefix}_a.weight"])
        return torch.cat([a.softmax(-1), (-a).softmax(-1)], -1)
    if kind == "dpfp":
        r = torch.cat([u.clamp(min=0), (-u).clamp(min=0)], -1)
        return torch.stack([r[..., i] * r[..., i - 1] for i in range(r.shape[-1])], -1)
    if kind == "focused":
        r = (u.clamp(min=0) + 1e-6) / softplus(weights[f"{prefix}_scale"])
        cubes = (r / r.amax((-2, -1), keepdim=True)) ** 3  # a factor that the next line takes away again
        length = torch.sqrt((r * r).sum((-2, -1), keepdim=True))
        return length * cubes / torch.sqrt((cubes * cubes).sum((-2, -1), keepdim=True))
    assert kind == "learned"
    return softplus(linear(weights, f"{prefix}_first", u, u.shape[-1]))


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: o_t = S_t^T phi(q_t) / (phi(q_t) . z_t + eps).

    S_t = S_{t-1} + phi(k_t) v_t^T and z_t = z_{t-1} + phi(k_t).

    `sizes`: n_heads, n_kv_heads, head_dim, v_dim; and where used feature_map, tied, normalize, eps, output_norm.
    """
    n_heads, n_kv_heads = sizes["n_heads"], sizes["n_kv_heads"]
    kind, tied = sizes.get("feature_map", "elu1"), sizes.get("tied", False)
    q = linear(weights, "q", x, n_heads, sizes["head_dim"])
    k = linear(weights, "k", x, n_kv_heads, sizes["head_dim"])
    v = linear(weights, "v", x, n_kv_heads, sizes["v_dim"])
    group = [h * n_kv_heads // n_heads for h in range(n_heads)]
    state, total, rows = torch.zeros(()), torch.zeros(()), []
    for t in range(x.shape[1]):
        phi_q = features(kind, weights, "phi" if tied else "phi_q", q[:, t])
        phi_k = features(kind, weights, "phi" if tied else "phi_k", k[:, t])[:, group]
        state = state + phi_k.unsqueeze(-1) * v[:, t, group].unsqueeze(-2)
        total = total + phi_k
        o = (state * phi_q.unsqueeze(-1)).sum(-2)
        if sizes.get("normalize", True):
            o = o / ((total * phi_q).sum(-1, keepdim=True) + sizes.get("eps", 1e-6))
        if sizes.get("output_norm"):
            o = rms_norm(o, weights["y_norm.weight"], sizes["norm_eps"])
        rows.append(o.flatten(1))
    return linear(weights, "y", torch.stack(rows, 1), x.shape[-1])
