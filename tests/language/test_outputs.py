"""`outputs=` of attention and recurrence, and what is made of them: one softmax over two kinds of scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archc.pipeline import check
from tests.language.check import ROUNDING, distance, linear, spec_of, worst_way

HEADS, GROUPS, DIM, WINDOW = 4, 2, 8, 5
PARAMS = {
    "n_heads": {"type": "int", "default": HEADS},
    "n_kv_heads": {"type": "int", "default": GROUPS, "divides": "n_heads"},
    "head_dim": {"type": "int", "default": DIM},
    "window": {"type": "int", "default": WINDOW},
}
QKV = {
    "q": "linear(x, [n_heads, head_dim])",
    "k": "linear(x, [n_kv_heads, head_dim])",
    "v": "linear(x, [n_kv_heads, head_dim])",
}
# The states of recurrences are float32: its rounding, times the terms of a sum.
STATES_IN_FLOAT32 = 64 * torch.finfo(torch.float32).eps
SPECS: dict[str, dict[str, Any]] = {
    # Zhang et al. 2024, arXiv 2410.10254
    "lolcats": spec_of(
        "lolcats",
        {
            **QKV,
            "fq": "exp(q / 4)",
            "fk": "exp(repeat(k, n_kv_heads, n_heads) / 4)",
            "near, lse, top": "attention(q, k, v, mask=i - j < window, outputs=[out, lse, max])",
            "far, mass": "recurrence(fq, shift(fk, window), shift(v, window), scale=1, "
            "outputs=[numerator, denominator])",
            "w": "sigmoid(param(factor, [n_heads], init=-2.197)) * exp(lse - top)",
            "o": "(w * near + far) / (w + mass)",
            "y": "linear(o, d_model)",
        },
        PARAMS,
    ),
    "decayed": spec_of(
        "decayed",
        {
            **QKV,
            "decay": "logsigmoid(linear(x, [n_heads]))",
            "mass, far": "recurrence(exp(q / 4), exp(k / 4), v, decay=decay, scale=auto, "
            "outputs=[denominator, numerator])",
            "y": "linear(far / (1 + mass), d_model)",
        },
        PARAMS,
    ),
    "one_head": spec_of(
        "one_head",
        {
            **dict.fromkeys(("q", "k", "v"), "linear(x, head_dim)"),
            "o, lse, top": "attention(q, k, v, outputs=[out, lse, max])",
            "y": "linear(o * tanh(lse - top), d_model)",
        },
        PARAMS,
    ),
    "spread": spec_of(
        "spread",
        {
            **QKV,
            "o, p": "attention(q, k, v, outputs=[out, probs])",
            "shared": "mean(group(p, n_kv_heads), over=n_heads / n_kv_heads)",
            "near": "attention(q, k, v, select=topk(shared, 3, over=keys, force=i == j))",
            "y": "linear(o - near, d_model)",
        },
        PARAMS,
    ),
}


def definition(name: str, mixer: nn.Module, x: Tensor) -> Tensor:
    """Loops over queries and heads."""
    if name == "one_head":
        q, k, v = (linear(mixer, n, x, 1, DIM) for n in ("q", "k", "v"))
    else:
        q, k, v = (linear(mixer, n, x, h, DIM) for n, h in (("q", HEADS), ("k", GROUPS), ("v", GROUPS)))
    heads, groups = q.shape[1], k.shape[1]
    decay = F.logsigmoid(linear(mixer, "decay", x, HEADS)) if name == "decayed" else None
    out = torch.zeros_like(q)
    probs = torch.zeros(len(x), heads, len(x), dtype=x.dtype)
    for i in range(len(x)):
        for h in range(heads):
            g = h * groups // heads
            s = torch.stack([DIM**-0.5 * q[i, h] @ k[j, g] for j in range(i + 1)])
            linear_s = torch.stack([torch.exp(q[i, h] / 4) @ torch.exp(k[j, g] / 4) for j in range(i + 1)])
            if name == "lolcats":
                start = max(i + 1 - WINDOW, 0)
                factor = torch.sigmoid(mixer.get_parameter("factor")[h])
                exact = factor * torch.exp(s[start:] - s[start:].max())
                weights = torch.cat([linear_s[:start], exact])
                out[i, h] = weights @ v[: i + 1, g] / weights.sum()
            elif decay is not None:
                kept = torch.stack([decay[j + 1 : i + 1, h].sum() for j in range(i + 1)])
                weights = DIM**-0.5 * linear_s * torch.exp(kept)
                out[i, h] = weights @ v[: i + 1, g] / (1 + weights.sum())
            else:
                probs[i, h, : i + 1] = torch.softmax(s, 0)
                out[i, h] = probs[i, h, : i + 1] @ v[: i + 1, g]
                if name == "one_head":
                    out[i, h] = out[i, h] * torch.tanh(torch.logsumexp(s, 0) - s.max())
    if name == "spread":
        for i in range(len(x)):
            for g in range(groups):
                own = [h for h in range(heads) if h * groups // heads == g]
                order = sorted(range(i), key=lambda j: -float(probs[i, own, j].mean()))
                seen = sorted([i, *order[:2]])
                for h in own:
                    s = torch.stack([DIM**-0.5 * q[i, h] @ k[j, g] for j in seen])
                    out[i, h] = out[i, h] - torch.softmax(s, 0) @ v[seen, g]
    return F.linear(out.flatten(1), mixer.get_parameter("y.weight"))


@pytest.mark.parametrize("name", SPECS)
def test_definition(name: str) -> None:
    bound = ROUNDING if name in ("one_head", "spread") else STATES_IN_FLOAT32
    for length in (5, 6, 23):
        assert distance(SPECS[name], lambda mixer, x: definition(name, mixer, x), length) < bound


@pytest.mark.parametrize("name", SPECS)
def test_every_way(name: str) -> None:
    worst, way, count = worst_way(SPECS[name])
    assert count == 16
    assert worst < (ROUNDING if name in ("one_head", "spread") else STATES_IN_FLOAT32), way


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("scale=1, outputs=[out, denominator]", "E322"),
        ("scale=1, outputs=[numerator, numerator]", "E322"),
        ("scale=1, normalize=sum, outputs=[numerator, denominator]", "E374"),
        ("scale=1, decay_v=logsigmoid(q), outputs=[numerator, denominator]", "E374"),
    ],
)
def test_outputs_that_are_none(arguments: str, code: str) -> None:
    body = {
        **dict.fromkeys(("q", "k", "v"), "linear(x, [n_heads, head_dim])"),
        "a, b": f"recurrence(q, k, v, {arguments})",
        "y": "linear(a * b, d_model)",
    }
    assert [found.code for found in check(spec_of("bad", body, PARAMS))] == [code]
