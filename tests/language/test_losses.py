"""Auxiliary losses: sums over the tokens that belong to a sequence, added to the training loss (rule 13)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.language.check import exact, spec_of
from tests.support.packages import folder_of

EXPERTS, CHOSEN, WEIGHT = 6, 2, 0.01
COUNTS = torch.finfo(torch.float32).eps  # what is true or false is counted in float32
ROUTED: dict[str, Any] = spec_of(
    "routed",
    {
        "p": "softmax(linear(x, [n_experts], name=router))",
        "w0": "topk(p, n_chosen)",
        "w": "w0 / sum(w0)",
        "y": "mixture(expert, x, weights=w)",
    },
    {"n_experts": {"type": "int", "default": EXPERTS}, "n_chosen": {"type": "int", "default": CHOSEN}},
    parts={
        "expert": {
            "inputs": {"u": "[d_model]"},
            "body": {"y": "linear(silu(linear(u, 16, name=up)), d_model)"},
        }
    },
    losses={
        "balance": f"{WEIGHT} * n_experts * sum(mean(w > 0, over=tokens) * mean(p, over=tokens), over=n_experts)",
        "size": "0.001 * sum(sum(square(p), over=tokens))",
    },
    n_layers=2,
)


def inputs_of_the_mixers(model: nn.Module, **call: Any) -> tuple[Any, list[Tensor]]:
    """A loss, and what each layer's router saw."""
    seen: list[Tensor] = []
    hooks = [
        layer.mixer.router.register_forward_hook(lambda m, a, r: seen.append(a[0])) for layer in model.layers
    ]
    loss = model.loss(**call)
    for hook in hooks:
        hook.remove()
    return loss, seen


def definition(model: nn.Module, seen: list[Tensor]) -> Tensor:
    """Both losses of every layer, tokens one by one."""
    total = torch.zeros((), dtype=torch.float64)
    for layer, x in zip(model.layers, seen, strict=True):
        p = torch.softmax(x @ layer.mixer.router.weight.T, -1)
        counts, mass = torch.zeros(EXPERTS).double(), torch.zeros(EXPERTS).double()
        for row in p:
            for expert in row.topk(CHOSEN).indices:
                counts[expert] += 1 / len(p)
            mass = mass + row / len(p)
        total = total + WEIGHT * EXPERTS * (counts * mass).sum() + 0.001 * p.square().sum()
    return total


def tokens_of(*shape: int) -> Tensor:
    return torch.randint(0, 64, shape, generator=torch.Generator().manual_seed(2))


def test_dense() -> None:
    model = exact(ROUTED)
    loss, seen = inputs_of_the_mixers(model, tokens=tokens_of(3, 11))
    torch.testing.assert_close(
        loss.aux, definition(model, [x.flatten(0, 1) for x in seen]), rtol=COUNTS, atol=0
    )
    torch.testing.assert_close(loss.total, loss.main + loss.aux, rtol=1e-14, atol=0)


def test_tokens_of_nobody_do_not_count() -> None:
    model = exact(ROUTED)
    tokens, borders = tokens_of(1, 20), torch.tensor([0, 6, 6, 15])
    loss, seen = inputs_of_the_mixers(model, tokens=tokens, cu_seqlens=borders)
    torch.testing.assert_close(loss.aux, definition(model, [x[0, :15] for x in seen]), rtol=COUNTS, atol=0)


def test_padding_does_not_count() -> None:
    model = exact(ROUTED)
    rows = tokens_of(2, 9)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    padded = model.loss(rows, attention_mask=mask).aux
    packed = model.loss(torch.cat([rows[0, 4:], rows[1]])[None], cu_seqlens=torch.tensor([0, 5, 14])).aux
    torch.testing.assert_close(padded, packed, rtol=1e-12, atol=0)


def test_the_router_learns_from_it() -> None:
    model = exact(ROUTED)
    gradients = torch.autograd.grad(model.loss(tokens_of(2, 11)).aux, model.layers[1].mixer.router.weight)
    assert float(gradients[0].abs().max()) > 1e-6


def test_logits_do_not_pay_for_it() -> None:
    text = (folder_of(ROUTED) / "model.py").read_text()
    before, _, after = text.partition("if place.wants_losses:")
    assert "mean_of_call(" not in before.partition("class Own(")[2] and "mean_of_call(" in after
