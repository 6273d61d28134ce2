"""Mixtures of experts against a loop over tokens (Jiang et al. 2024, equation 1) and the balancing loss by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import archc
from tests.library.conftest import observe, randomise

EXPERTS, CHOSEN, WIDTH = 6, 2, 48


def model_of(options: dict[str, Any]) -> nn.Module:
    sizes = {"vocab_size": 64, "d_model": WIDTH, "n_layers": 1, "context": 64, "norm": "rmsnorm"}
    mlp = {
        "use": "moe",
        "n_experts": EXPERTS,
        "top_k": CHOSEN,
        "expert": {"use": "swiglu", "d_ff": 20},
        **options,
    }
    spec = {"archc": 1, "name": "experts", "model": sizes, "layers": ["1 main"],
            "blocks": {"main": {"mixer": {"use": "attention", "n_heads": 4}, "mlp": mlp}}}  # fmt: skip
    model: nn.Module = archc.load(spec).Model()
    randomise(model)
    return model


def swiglu(weights: dict[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    gate, up, y = (weights[f"{prefix}{name}.weight"] for name in ("gate", "up", "y"))
    return (F.silu(x @ gate.T) * (x @ up.T)) @ y.T


def forward(weights: dict[str, Tensor], options: dict[str, Any], x: Tensor) -> Tensor:
    """Each token by itself: its scores, the best of them, those experts' results."""
    y = torch.zeros_like(x)
    for place in range(len(x)):
        logits = weights["router.weight"] @ x[place]
        scores = torch.sigmoid(logits) if options.get("score") == "sigmoid" else torch.softmax(logits, 0)
        best = scores.argsort(descending=True)[:CHOSEN]
        total = scores[best].sum() if options.get("renormalise", True) else 1
        for expert in best.tolist():
            weight = options.get("scale", 1) * scores[expert] / total
            y[place] += weight * swiglu(weights, f"expert.{expert}.", x[place])
        if "shared_expert" in options:
            gate = torch.sigmoid(weights["gate.weight"][0] @ x[place]) if options.get("shared_gate") else 1
            y[place] += gate * swiglu(weights, "shared_expert.", x[place])
    return y


SHARED = {"use": "moe_shared", "shared_expert": {"use": "swiglu", "d_ff": 28}}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"renormalise": False},
        {"score": "sigmoid", "scale": 2.5},
        {"score": "sigmoid", "renormalise": False},
        SHARED,
        {**SHARED, "shared_gate": True, "score": "sigmoid"},
    ],
    ids=str,
)
def test_each_token_sees_its_experts(options: dict[str, Any]) -> None:
    seen = observe(model_of(options), ["layers.0.mlp"], 23)["layers.0.mlp"]
    exact = forward(
        {name: value.double() for name, value in seen.weights.items()}, options, seen.x[0].double()
    )
    single = forward(seen.weights, options, seen.x[0])
    tolerance = 10 * float((single - exact).abs().max())
    assert tolerance < 1e-4 * float(exact.abs().max())
    assert float((seen.y[0] - exact).abs().max()) <= tolerance


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_balancing_loss(score: str) -> None:
    """E sum_e f_e P_e times its weight: f counts choices, so that it adds up to `top_k`; P adds up to 1."""
    model = model_of({"score": score, "balance": 0.5})
    tokens = torch.randint(0, 64, (3, 17), generator=torch.Generator().manual_seed(2))
    _, seen = model(tokens, capture=["layers.0.mlp.logits"])
    logits = seen["layers.0.mlp.logits"].flatten(0, 1)
    p = torch.softmax(logits, -1) if score == "softmax" else F.normalize(torch.sigmoid(logits), p=1, dim=-1)
    f = F.one_hot(logits.topk(CHOSEN).indices, EXPERTS).sum(1).float().mean(0)
    torch.testing.assert_close(model.loss(tokens).aux, 0.5 * EXPERTS * (f * p.mean(0)).sum())


def test_evenly_spread_tokens_cost_the_least() -> None:
    """With equal scores everywhere the loss is its weight times `top_k`."""
    model = model_of({"balance": 0.25})
    with torch.no_grad():
        model.get_parameter("layers.0.mlp.router.weight").zero_()
    found = model.loss(torch.arange(40)[None]).aux
    torch.testing.assert_close(found, torch.tensor(0.25 * CHOSEN))


def test_a_correction_moves_towards_experts_with_few_tokens() -> None:
    """After a step each expert's correction has moved by `rate`, up where it got fewer tokens than the mean."""
    model = model_of({"use": "moe_corrected", "rate": 0.25, "shared_expert": {"use": "swiglu", "d_ff": 28}})
    tokens = torch.randint(0, 64, (3, 17), generator=torch.Generator().manual_seed(2))
    _, seen = model(tokens, capture=["layers.0.mlp.p"])
    counts = F.one_hot(seen["layers.0.mlp.p"].flatten(0, 1).topk(CHOSEN).indices, EXPERTS).sum((0, 1)).float()
    model.train()
    model.loss(tokens)
    model.post_step()
    found = model.get_buffer("layers.0.mlp.correction")
    torch.testing.assert_close(found, 0.25 * torch.sign(counts.mean() - counts))
    assert found.min() < 0 < found.max()


def test_a_correction_chooses_but_does_not_weigh() -> None:
    model = model_of({"use": "moe_corrected", "scale": 1, "shared_expert": {"use": "swiglu", "d_ff": 28}})
    model.get_buffer("layers.0.mlp.correction")[3] = 100
    _, seen = model(torch.arange(9)[None], capture=["layers.0.mlp.p", "layers.0.mlp.w"])
    p, w = seen["layers.0.mlp.p"], seen["layers.0.mlp.w"]
    other = torch.where(torch.arange(EXPERTS) == 3, -torch.inf, p).amax(-1)
    torch.testing.assert_close(w[..., 3], p[..., 3] / (p[..., 3] + other))
