"""Bounded-memory attention's traps: clamped scores, a scale in the first pass only, slots that hold means."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def test_slots_hold_means_of_clamped_scores(with_parts: Callable[..., nn.Module]) -> None:
    model = with_parts(
        {"use": "bounded_memory", "n_heads": 2, "n_slots": 3, "bound": 2, "rotate": False},
        {"use": "swiglu", "d_ff": 48},
    )
    with torch.no_grad():
        model.get_submodule("layers.0.mixer.score").weight.mul_(5)  # most scores reach the bound
        _, found = model(torch.randint(64, (1, 9)), capture=["layers.0.mixer.*"])
    got = {name.removeprefix("layers.0.mixer."): value[0] for name, value in found.items()}
    assert float(got["score"].abs().max()) > 4
    share = torch.softmax(got["score"].clamp(-2, 2), 0)
    keys = torch.einsum("thm,thk->hmk", share, got["k0"])
    values = torch.einsum("thm,thv->hmv", share, got["v0"])
    scores = torch.einsum("hmk,hk->hm", keys, got["q0"][-1]) / 12**0.5
    torch.testing.assert_close(got["scores"][-1], scores)
    torch.testing.assert_close(got["o"][-1], torch.einsum("hm,hmv->hv", torch.softmax(scores, -1), values))
    # One token: every slot holds it, whatever its score.
    torch.testing.assert_close(got["o"][0], got["v0"][0])


def test_published_defaults(with_parts: Callable[..., nn.Module]) -> None:
    """As many slots as key channels; scores within 32 and a norm for each head; queries and keys are rotated."""
    mixer = with_parts({"use": "bounded_memory"}, {"use": "swiglu", "d_ff": 48}).get_submodule(
        "layers.0.mixer"
    )
    shapes = {name: tuple(p.shape) for name, p in mixer.named_parameters()}
    assert shapes == {
        "q.weight": (24, 48),
        "k.weight": (24, 48),
        "v.weight": (48, 48),
        "score.weight": (24, 48),
        "normed_norm.weight": (12,),
        "gate.weight": (48, 48),
        "y.weight": (48, 48),
    }


def test_precision(with_parts: Callable[..., nn.Module]) -> None:
    """In a bfloat16 model scores, their running sum and the decay are float32; a sum of nothing is minus infinity."""
    model = with_parts({"use": "bounded_memory", "n_slots": 5}, {"use": "swiglu", "d_ff": 48}).to(
        torch.bfloat16
    )
    start = model.init_state(2, 8).tensors()["layers.0.mixer.phi"]
    assert start.dtype == torch.float32 and start.shape == (2, 4, 5) and bool((start == float("-inf")).all())
    rows = torch.randint(64, (2, 30))
    with torch.no_grad():
        _, found = model(rows, capture=["layers.0.mixer.*"])
    phi, decay = found["layers.0.mixer.phi"], found["layers.0.mixer.decay"]
    assert decay.dtype == torch.float32 and not decay[:, 0].any()
    torch.testing.assert_close(phi[:, 1:].float() + decay[:, 1:].exp(), torch.ones(2, 29, 4, 5))
    loss = model.loss(rows).total
    assert all(bool(slope.isfinite().all()) for slope in torch.autograd.grad(loss, list(model.parameters())))
