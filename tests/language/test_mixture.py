"""Mixtures of bodies that remember: each sees, counts and keeps only the tokens that are sent to it (rule 16)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.language.check import distance, exact, inputs, linear, mixer_result, spec_of, worst_way
from tests.support.imports import imported
from tests.support.packages import package

MEMORIES, CHOSEN, HEADS, DIM, TAPS, THETA = 4, 2, 2, 8, 3, 50.0


def mixed(position: str) -> dict[str, Any]:
    """Memories with a convolution and a recurrence; `position` goes around queries and keys."""
    return spec_of(
        "mixed_memories",
        {
            "p": "softmax(linear(x, [n_memories], name=router))",
            "w0": f"topk(p, {CHOSEN})",
            "w": "w0 / sum(w0)",
            "o": "mixture(memory, x, weights=w)",
            "y": "linear(o, d_model, name=out)",
        },
        {
            "n_memories": {"type": "int", "default": MEMORIES},
            "n_heads": {"type": "int", "default": HEADS},
            "head_dim": {"type": "int", "default": DIM},
        },
        parts={
            "memory": {
                "inputs": {"u": "[d_model]"},
                "body": {
                    "q": f"linear(u, [n_heads, head_dim]){position}",
                    "k": f"conv1d(linear(u, [n_heads, head_dim]), {TAPS}){position}",
                    "v": "linear(u, [n_heads, head_dim])",
                    "y": "recurrence(q, k, v, scale=1)",
                },
            }
        },
    )


SPECS = {"plain": mixed(""), "turned": mixed(f" | rope({THETA:.0f})")}
# Routers are float32: sums in another order move the weights by a few roundings.
ROUTERS = 64 * torch.finfo(torch.float32).eps
# Angles are float32 in both, computed in another order: off by a rounding of the largest place, here 40.
ANGLES = 40 * torch.finfo(torch.float32).eps


def turned(x: Tensor) -> Tensor:
    """`[T, H, K]`: channel j and j + K / 2 as one complex number, turned by its token's place."""
    half = x.shape[-1] // 2
    angles = torch.arange(len(x))[:, None] * THETA ** (-torch.arange(half).double() / half)
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat([z.real, z.imag], -1)


def memory(name: str, module: nn.Module, u: Tensor) -> Tensor:
    """One body over its own tokens, `[T, D]` to `[T, H, K]`."""
    taps = module.get_parameter("k_conv.weight").view(HEADS, DIM, TAPS)
    k = linear(module, "k", u, HEADS, DIM)
    padded = torch.cat([k.new_zeros(TAPS - 1, HEADS, DIM), k])
    k = sum((padded[j : j + len(u)] * taps[..., j] for j in range(TAPS)), start=torch.zeros_like(k))
    q, v = linear(module, "q", u, HEADS, DIM), linear(module, "v", u, HEADS, DIM)
    if name == "turned":
        q, k = turned(q), turned(k)
    scores = torch.einsum("ihk,jhk->hij", q, k).tril()
    return torch.einsum("hij,jhv->ihv", scores, v)


def definition(name: str, mixer: nn.Module, x: Tensor) -> Tensor:
    """Token by token: who is chosen, with which weight; then each memory over the tokens that chose it."""
    p = torch.softmax(x @ mixer.get_parameter("router.weight").to(x.dtype).T, -1)
    best = p.topk(CHOSEN).indices
    out = x.new_zeros(len(x), HEADS, DIM)
    for m in range(MEMORIES):
        own = [t for t in range(len(x)) if m in best[t]]
        if own:
            result = memory(name, mixer.get_submodule(f"memory.{m}"), x[own])
            for t, value in zip(own, result, strict=True):
                out[t] += p[t, m] / p[t, best[t]].sum() * value
    return torch.nn.functional.linear(out.flatten(1), mixer.get_parameter("out.weight"))


@pytest.mark.parametrize("name", ["plain", "turned"])
@pytest.mark.parametrize("length", [1, 2, 9, 40])
def test_definition(name: str, length: int) -> None:
    assert distance(SPECS[name], lambda mixer, x: definition(name, mixer, x), length) < ANGLES


@pytest.mark.parametrize("name", ["plain", pytest.param("turned", marks=pytest.mark.slow)])
def test_every_way(name: str) -> None:
    worst, way, count = worst_way(SPECS[name])
    assert count == 16
    assert worst < ROUTERS, way


def test_each_memory_counts_its_own_tokens() -> None:
    """After 13 tokens of one sequence and none of another the memories have seen two of each token, and none."""
    model = exact(SPECS["plain"])
    state = model.init_state(2, 40)
    tokens = torch.arange(13)[None]
    with torch.no_grad():
        model(tokens[:, :8], state=state, cu_seqlens=torch.tensor([0, 8, 8]))
        model(tokens[:, 8:], state=state, cu_seqlens=torch.tensor([0, 5, 5]))
    lengths = [state.tensors()[f"layers.0.mixer.memory.{m}.length"] for m in range(MEMORIES)]
    assert torch.stack(lengths).sum(0).tolist() == [13 * CHOSEN, 0]
    assert package(SPECS["plain"]).Model().init_state(1, 40).tensors()[
        "layers.0.mixer.memory.0.length"
    ].shape == (1,)


def test_gradients_of_renormalised_weights() -> None:
    """What is absent is minus infinity, and must not come back as infinity times 0."""
    mixer, _ = mixer_result(SPECS["plain"], inputs(9))
    x, place = inputs(9), imported(f"{package(SPECS['plain']).__name__}.place")
    parameters = dict(mixer.named_parameters())
    weights = torch.randn(9, 32, dtype=torch.float64)
    total = (mixer(x, place.Place(place.dense_layout(x)))[0] * weights).sum()
    found = torch.autograd.grad(total, list(parameters.values()))
    wanted = torch.autograd.grad(
        (definition("plain", mixer, x[0]) * weights).sum(), list(parameters.values())
    )
    for name, one, other in zip(parameters, found, wanted, strict=True):
        assert float((one - other).abs().max()) < ROUTERS * float(other.abs().max()), name
