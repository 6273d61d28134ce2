"""Values at block rate, attention over them, and the choice of blocks: both forms of NSA (language rule 13)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.language.check import ROUNDING, distance, exact, linear, spec_of, worst_way
from tests.support.packages import package
from tests.support.slow import mostly_slow

HEADS, GROUPS, DIM = 4, 2, 8
BLOCK, CHOSEN, WINDOW = 4, 3, 5
LENGTH, STRIDE = 6, 3  # the paper's: overlapping blocks of 6 tokens, chosen in blocks of 4
PARAMS = {
    "n_heads": {"type": "int", "default": HEADS},
    "n_kv_heads": {"type": "int", "default": GROUPS, "divides": "n_heads"},
    "head_dim": {"type": "int", "default": DIM},
    "block": {"type": "int", "default": BLOCK},
    "n_selected": {"type": "int", "default": CHOSEN},
    "window": {"type": "int", "default": WINDOW},
    "theta": {"type": "number", "default": 10000},
}
GATES = dict.fromkeys(("gc", "gs", "gw"), "sigmoid(linear(x, [n_heads]))")
NSA = spec_of(
    "nsa",
    {
        "q": "rope(linear(x, [n_heads, head_dim]), theta)",
        "k": "rope(linear(x, [n_kv_heads, head_dim]), theta)",
        "v": "linear(x, [n_kv_heads, head_dim])",
        "kc": "mean(blocks(k, block), over=block)",
        "vc": "mean(blocks(v, block), over=block)",
        "oc, pc": "attention(q, kc, vc, outputs=[out, probs])",
        "pick": "topk(mean(group(pc, n_kv_heads), over=n_heads / n_kv_heads), n_selected, over=keys, "
        "force=j == 0 or j == i // block or j == i // block - 1)",
        "os": "attention(q, k, v, select=pick)",
        "ow": "attention(q, k, v, mask=i - j < window)",
        **GATES,
        "y": "linear(gc * oc + gs * os + gw * ow, d_model)",
    },
    PARAMS,
)
NSA_PAPER = spec_of(
    "nsa_paper",
    {
        "q": "rope(linear(x, [n_heads, head_dim]), theta)",
        "kc": "compress(blocks(rope(linear(x, [n_kv_heads, head_dim], name=k_compress), theta), length, "
        "stride=stride), name=compress_k)",
        "vc": "compress(blocks(linear(x, [n_kv_heads, head_dim], name=v_compress), length, stride=stride), "
        "name=compress_v)",
        "oc, pc": "attention(q, kc, vc, outputs=[out, probs])",
        "ks": "rope(linear(x, [n_kv_heads, head_dim]), theta)",
        "vs": "linear(x, [n_kv_heads, head_dim])",
        "shared": "sum(group(pc, n_kv_heads), over=n_heads / n_kv_heads)",
        "pick": "topk(regroup(shared, block), n_selected, over=keys, "
        "force=j == 0 or i // block - 1 <= j <= i // block)",
        "os": "attention(q, ks, vs, select=pick)",
        "kw": "rope(linear(x, [n_kv_heads, head_dim]), theta)",
        "vw": "linear(x, [n_kv_heads, head_dim])",
        "ow": "attention(q, kw, vw, mask=i - j < window)",
        **GATES,
        "y": "linear(gc * oc + gs * os + gw * ow, d_model)",
    },
    {**PARAMS, "length": {"type": "int", "default": LENGTH}, "stride": {"type": "int", "default": STRIDE}},
    parts={
        "compress": {
            "inputs": {"u": "[length, n_kv_heads, head_dim]"},
            "body": {
                "placed": "u + param(place, [length, head_dim])",
                "hidden": "gelu(linear(placed, head_dim, over=[length, head_dim]))",
                "y": "linear(hidden, head_dim, over=head_dim)",
            },
        }
    },
)
SPECS = {"nsa": NSA, "nsa_paper": NSA_PAPER}


def turn(x: Tensor) -> Tensor:
    """Rotary positions of `[T, H, K]`, angles in float32 as the model has them."""
    half = x.shape[-1] // 2
    inverse = 10000.0 ** (-torch.arange(half, dtype=torch.float32) / half)
    angle = torch.arange(len(x), dtype=torch.float32)[:, None] * inverse
    cos, sin = angle.cos().double()[:, None], angle.sin().double()[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def attend(q: Tensor, k: Tensor, v: Tensor, seen: list[int]) -> tuple[Tensor, Tensor]:
    """One query of one head over some keys: its result, its weights over all."""
    weights = torch.zeros(len(k), dtype=q.dtype)
    if not seen:
        return torch.zeros_like(v[0]) if len(v) else torch.zeros(DIM, dtype=q.dtype), weights
    probs = torch.softmax(torch.stack([DIM**-0.5 * q @ k[j] for j in seen]), 0)
    weights[seen] = probs
    return probs @ v[seen], weights


def compressed(name: str, mixer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, int, int]:
    """Keys and values of the blocks, tokens a block, tokens between blocks."""
    if name == "nsa":
        width = stride = BLOCK
        k, v = turn(linear(mixer, "k", x, GROUPS, DIM)), linear(mixer, "v", x, GROUPS, DIM)
    else:
        width, stride = LENGTH, STRIDE
        k = turn(linear(mixer, "k_compress", x, GROUPS, DIM))
        v = linear(mixer, "v_compress", x, GROUPS, DIM)
    found = []
    for part, value in (("compress_k", k), ("compress_v", v)):
        rows = []
        for start in range(0, len(x) - width + 1, stride):
            tokens = value[start : start + width]
            if name == "nsa":
                rows.append(tokens.mean(0))
                continue
            compress = mixer.get_submodule(part)
            placed = tokens + compress.get_parameter("place")[:, None]
            folded = placed.transpose(0, 1).flatten(1)
            hidden = F.gelu(F.linear(folded, compress.get_parameter("hidden.weight")))
            rows.append(F.linear(hidden, compress.get_parameter("y.weight")))
        found.append(torch.stack(rows) if rows else torch.zeros(0, GROUPS, DIM, dtype=x.dtype))
    return found[0], found[1], width, stride


def definition(name: str, mixer: nn.Module, x: Tensor) -> Tensor:
    """Loops over queries and heads."""
    q = turn(linear(mixer, "q", x, HEADS, DIM))
    selected, local = ("k", "v"), ("k", "v")
    if name == "nsa_paper":
        selected, local = ("ks", "vs"), ("kw", "vw")
    ks, kw = (turn(linear(mixer, pair[0], x, GROUPS, DIM)) for pair in (selected, local))
    vs, vw = (linear(mixer, pair[1], x, GROUPS, DIM) for pair in (selected, local))
    kc, vc, width, stride = compressed(name, mixer, x)
    gates = {n: torch.sigmoid(linear(mixer, n, x, HEADS)) for n in ("gc", "gs", "gw")}
    out = torch.zeros(len(x), HEADS, DIM, dtype=x.dtype)
    for i in range(len(x)):
        whole = [b for b in range(len(kc)) if b * stride + width - 1 <= i]
        for g in range(GROUPS):
            heads = [h for h in range(HEADS) if h * GROUPS // HEADS == g]
            coarse = {h: attend(q[i, h], kc[:, g], vc[:, g], whole) for h in heads}
            weights = torch.stack([coarse[h][1] for h in heads])
            weight = weights.mean(0) if name == "nsa" else weights.sum(0)
            here = i // BLOCK
            importance = []
            for j in range(here + 1):
                if name == "nsa":
                    importance.append(float(weight[j]) if j < len(weight) else 0.0)
                    continue
                tokens = set(range(j * BLOCK, (j + 1) * BLOCK))
                common = [len(tokens & set(range(b * stride, b * stride + width))) for b in range(len(kc))]
                importance.append(sum(n / stride * float(w) for n, w in zip(common, weight, strict=True)))
            forced = {j for j in (0, here, here - 1) if 0 <= j <= here}
            free = sorted(set(range(here + 1)) - forced, key=lambda j: -importance[j])
            chosen = forced | set(free[: max(CHOSEN - len(forced), 0)])
            tokens_seen = [j for j in range(i + 1) if j // BLOCK in chosen]
            near = [j for j in range(i + 1) if i - j < WINDOW]
            for h in heads:
                out[i, h] = (
                    gates["gc"][i, h] * coarse[h][0]
                    + gates["gs"][i, h] * attend(q[i, h], ks[:, g], vs[:, g], tokens_seen)[0]
                    + gates["gw"][i, h] * attend(q[i, h], kw[:, g], vw[:, g], near)[0]
                )
    return F.linear(out.flatten(1), mixer.get_parameter("y.weight"))


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("length", [1, 4, 5, 12, 37])
def test_definition(name: str, length: int) -> None:
    # Angles are float32 in both, computed in another order: off by a rounding of the largest place.
    assert distance(SPECS[name], lambda mixer, x: definition(name, mixer, x), length) < 40 * 1.2e-7


@pytest.mark.parametrize("name", mostly_slow(SPECS, 3))
def test_every_way(name: str) -> None:
    worst, way, count = worst_way(SPECS[name])
    assert count == 16
    assert worst < ROUNDING, way


def test_state_of_blocks() -> None:
    state = package(NSA_PAPER).Model().init_state(1, 40)
    kept: dict[str, Any] = {
        name.removeprefix("layers.0.mixer."): tuple(tensor.shape[1:])
        for name, tensor in state.tensors().items()
    }
    assert kept["kc_blocks"] == kept["vc_blocks"] == (LENGTH - 1, GROUPS, DIM)
    assert kept["kc"] == kept["vc"] == (14, GROUPS, DIM)  # 40 tokens, one block every 3
    assert kept["ks"] == (40, GROUPS, DIM) and kept["kw"] == (WINDOW, GROUPS, DIM)


def test_a_value_read_in_full_and_through_a_window_is_kept_in_full() -> None:
    state = package(NSA).Model().init_state(1, 40)
    assert state.tensors()["layers.0.mixer.k"].shape[1] == 40


def test_gradients_reach_every_weight_of_the_compression() -> None:
    model = exact(NSA_PAPER)
    model.loss(torch.arange(30)[None]).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool((parameter.grad != 0).any()), name


def test_values_of_blocks_can_be_captured() -> None:
    model = exact(NSA)
    tokens = torch.arange(22).view(2, 11)
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    with torch.no_grad():
        _, padded = model(tokens, attention_mask=mask, capture=["*.kc", "*.q"])
        _, alone = model(tokens[:1, 3:], capture=["*.kc", "*.q"])
    torch.testing.assert_close(padded["layers.0.mixer.kc"][:1, :2], alone["layers.0.mixer.kc"])
    torch.testing.assert_close(padded["layers.0.mixer.q"][:1, 3:], alone["layers.0.mixer.q"])
