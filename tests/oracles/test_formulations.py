"""Oracles that no installed package can check, against a second formulation of the same mathematics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.oracles import gla, rwkv7

LENGTH = 21


def random(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Weights of the given shapes; matrices keep the size of what they multiply."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        * (shape[-1] ** -0.5 if len(shape) == 2 and name.endswith(".weight") else 0.5)
        for name, shape in shapes.items()
    }


def gla_weights(sizes: dict[str, float], d_model: int) -> dict[str, Tensor]:
    q, kv = int(sizes["n_heads"]), int(sizes["n_kv_heads"])
    key, value, rank = int(sizes["head_dim"]), int(sizes["v_dim"]), int(sizes["gate_rank"])
    return random(
        {
            "q.weight": (q * key, d_model),
            "k.weight": (kv * key, d_model),
            "v.weight": (kv * value, d_model),
            "low.weight": (rank, d_model),
            "decay.weight": (kv * key, rank),
            "decay.bias": (kv * key,),
            "gate.weight": (q * value, d_model),
            "y_norm.weight": (value,),
            "y.weight": (d_model, q * value),
        },
        seed=3,
    )


@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_gla_recurrence_is_attention_with_products_of_decays(n_kv_heads: int) -> None:
    sizes = {"n_heads": 4, "n_kv_heads": n_kv_heads, "head_dim": 6, "v_dim": 10, "gate_rank": 5, "tau": 2.0,
             "norm_eps": 1e-5}  # fmt: skip
    weights = gla_weights(sizes, d_model=24)
    x = torch.randn(2, LENGTH, 24, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found, expected = gla.forward(weights, sizes, x), gla.forward_quadratic(weights, sizes, x)
    assert float((found - expected).abs().max()) <= rounding(LENGTH * 6, expected)
    inert = {**sizes, "tau": 4.0}
    assert float((gla.forward(weights, inert, x) - expected).abs().max()) > 1e-3, "the decay must matter"


def rwkv7_weights(d_model: int, n_heads: int, head_dim: int, rank: int) -> dict[str, Tensor]:
    heads = (n_heads, head_dim)
    shapes: dict[str, tuple[int, ...]] = {f"mix_{letter}": (d_model,) for letter in "rwkvag"}
    shapes |= {f"{name}.weight": (d_model, d_model) for name in ("r", "k0", "v0", "y")}
    shapes |= {f"{name}_low.weight": (rank, d_model) for name in ("w", "mu", "a", "g")}
    shapes |= {f"{name}.weight": (d_model, rank) for name in ("w", "mu", "a", "gate")}
    shapes |= {f"{name}.bias": heads for name in ("w", "mu", "a")}
    shapes |= dict.fromkeys(("k_k", "k_a", "r_k", "o_norm.weight", "o_norm.bias"), heads)
    return random(shapes, seed=5)


@pytest.mark.parametrize("later_layer", [False, True])
def test_rwkv7_recurrence_is_a_sum_over_products_of_transitions(later_layer: bool) -> None:
    d_model, n_heads, head_dim, rank = 24, 3, 8, 5
    sizes = {"n_heads": n_heads, "head_dim": head_dim}
    sizes |= dict.fromkeys(("decay_rank", "a_rank", "value_rank", "gate_rank"), rank)
    weights = rwkv7_weights(d_model, n_heads, head_dim, rank)
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(2, LENGTH, d_model, generator=generator, dtype=torch.float64)
    first = torch.randn(2, LENGTH, n_heads, head_dim, generator=generator, dtype=torch.float64)
    given = first if later_layer else None
    found, expected = (
        rwkv7.forward(weights, sizes, x, given),
        rwkv7.forward_operator(weights, sizes, x, given),
    )
    assert float((found - expected).abs().max()) <= rounding(LENGTH * head_dim, expected)
    for name in weights:
        if name.split(".")[0] in ("mu", "mu_low") and not later_layer:
            continue
        noise = torch.randn(weights[name].shape, generator=generator, dtype=torch.float64)
        moved = rwkv7.forward({**weights, name: weights[name] * (1 + 0.01 * noise)}, sizes, x, given)
        assert float((moved - found).abs().max()) > 1e-6, name


def rounding(terms: int, value: Tensor) -> float:
    """A bound on how far two orders of summing `terms` products may differ in float64.

    Each sum errs by at most `terms` half-units in the last place of the sum of absolute values. The norm of
    each head divides by a root mean square, and so may enlarge that; hence the factor.
    """
    return 1e3 * terms * torch.finfo(torch.float64).eps * float(value.abs().max())
