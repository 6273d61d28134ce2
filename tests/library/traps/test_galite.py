"""GaLiTe's traps: values are gated with beta and kept with 1 - beta, keys likewise with gamma; the sum has no beta."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from tests.library.conftest import captured

PARTS = Callable[..., nn.Module]
MLP = {"use": "swiglu", "d_ff": 48}


def test_two_tokens_by_hand(with_parts: PARTS) -> None:
    """Features are products of key and projection, the key's channel first; a weight keeps both its gates' shares."""
    model = with_parts({"use": "galite", "n_heads": 2, "head_dim": 6, "eta": 2, "activation": "elu1"}, MLP)
    q, k, v, p_q, p_k, p_g, g, b, c, total = captured(
        model, 2, "q", "k", "v", "p_q", "p_k", "p_g", "g", "b", "c", "total"
    )
    gamma, psi_k, psi_q = (
        torch.einsum("thi,thj->thij", x, p).flatten(2) for x, p in ((g, p_g), (k, p_k), (q, p_q))
    )
    beta, write = torch.sigmoid(b), gamma * psi_k
    first = torch.einsum("hm,hv->hmv", write[0], beta[0] * v[0])
    torch.testing.assert_close(c[0], torch.einsum("hmv,hm->hv", first, psi_q[0]))
    kept = torch.einsum("hm,hv->hmv", 1 - gamma[1], 1 - beta[1])
    second = kept * first + torch.einsum("hm,hv->hmv", write[1], beta[1] * v[1])
    torch.testing.assert_close(c[1], torch.einsum("hmv,hm->hv", second, psi_q[1]))
    torch.testing.assert_close(total[1], (1 - gamma[1]) * write[0] + write[1])


def test_gates_that_are_full(with_parts: PARTS) -> None:
    """A gate whose sigmoid is 1 in float32 forgets everything and keeps values and gradients finite."""
    model = with_parts({"use": "galite", "n_heads": 2, "head_dim": 6, "eta": 2}, MLP)
    mixer = model.get_submodule("layers.0.mixer")
    with torch.no_grad():
        for name in ("g", "p_g", "b"):
            mixer.get_submodule(name).bias.fill_(60)
    logits = model(torch.arange(20)[None])
    logits.sum().backward()
    assert bool(logits.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
