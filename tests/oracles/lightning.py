"""Lightning attention from its recurrence (Qin et al. 2023, arXiv 2307.14995, equation 10), a loop over tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.oracles.parts import Weights, linear, sigmoid, silu
from tests.oracles.row import Row

ROWS = {
    "default": Row({"n_heads": 3}, {"n_heads": 3, "head_dim": 16}),
    "heads of a power of two": Row({"n_heads": 4}, {"n_heads": 4, "head_dim": 12}),
    "table of the paper": Row(
        {"n_heads": 3, "decay_table": "tnl_paper"}, {"n_heads": 3, "head_dim": 16, "table": "tnl_paper"}
    ),
    "table of flash-linear-attention": Row(
        {"n_heads": 3, "decay_table": "fla_lightning", "first_layer_angles": False},
        {"n_heads": 3, "head_dim": 16, "table": "fla_lightning", "angles": False},
    ),
    "MiniMax-01": Row(
        {
            "n_heads": 6,
            "head_dim": 10,
            "first_layer_angles": False,
            "activate_v": True,
            "gate": "sigmoid",
            "norm_weight": True,
        },
        {"n_heads": 6, "head_dim": 10, "angles": False, "activate_v": True, "sigmoid": True},
    ),
}


def slopes(n_heads: int) -> list[float]:
    """ALiBi's (Press et al. 2021): geometric for powers of two, filled up from twice the power below otherwise."""
    power = 2 ** int(math.log2(n_heads))
    found = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    return found + ([] if power == n_heads else slopes(2 * power)[::2][: n_heads - power])


def log_decay(table: str, n_heads: int, layer: int, n_layers: int) -> list[float]:
    """ln lambda of each head in a layer, by the three tables in use."""
    if table == "tnl_paper":
        return [-8 * (h + 1) / n_heads * (1 - layer / n_layers) for h in range(n_heads)]
    if table == "fla_lightning":
        return [-8 * h / n_heads * (1 - layer / n_layers) for h in range(n_heads)]
    return [-slope * (1 - layer / (n_layers - 1 + 1e-5) + 1e-5) for slope in slopes(n_heads)]


def forward(weights: Weights, sizes: Mapping[str, Any], x: Tensor) -> Tensor:
    """`x, y [B, T, d_model]`: S_t = lambda_h S_{t-1} + k_t v_t^T, y_t = W_y (norm(S_t^T q_t) * u_t).

    `sizes`: n_heads, head_dim, layer, n_layers; and where used table, angles, activate_v, sigmoid.
    """
    n_heads, head_dim = sizes["n_heads"], sizes["head_dim"]
    q, k = (silu(linear(weights, name, x, n_heads, head_dim)) for name in "qk")
    v, u = (linear(weights, name, x, n_heads, head_dim) for name in "vu")
    v = silu(v) if sizes.get("activate_v") else v
    u = sigmoid(u) if sizes.get("sigmoid") else u
    table = log_decay(sizes.get("table", "alibi_layer"), n_heads, sizes["layer"], sizes["n_layers"])
    kept = torch.tensor(table, dtype=torch.float64).exp().to(x.dtype)[:, None, None]
    turned = sizes["layer"] == 0 and sizes.get("angles", True)
    state, rows = torch.zeros((), dtype=x.dtype), []
    for t in range(x.shape[1]):
        q_t, k_t = q[:, t], k[:, t]
        if turned:
            cos, sin = torch.cos(t * weights["angles_theta"]), torch.sin(t * weights["angles_theta"])
            q_t, k_t = torch.cat([q_t * cos, q_t * sin], -1), torch.cat([k_t * cos, k_t * sin], -1)
        state = kept * state + k_t.unsqueeze(-1) * v[:, t].unsqueeze(-2)
        o = (state * q_t.unsqueeze(-1)).sum(-2).flatten(1)
        o = o / torch.sqrt((o * o).mean(-1, keepdim=True) + 1e-6)
        if "o_norm.weight" in weights:
            o = o * weights["o_norm.weight"].flatten()
        rows.append(o * u[:, t].flatten(1))
    return linear(weights, "y", torch.stack(rows, 1), x.shape[-1])
