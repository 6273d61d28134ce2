"""The compiled mixers and MLPs of the library against their oracles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import archc
from tests.library.conftest import Seen, observe, randomise
from tests.oracles import attention, mlps, rwkv7
from tests.oracles.functions import FUNCTIONS
from tests.oracles.row import reference, rows, spec
from tests.support.slow import mostly_slow

LENGTH = 70  # longer than a chunk of 64 and than every window, no multiple of either
ROWS = [(mixer, row) for mixer, found in rows().items() for row in found]


def is_first(case: tuple[str, str]) -> bool:
    """The first row of each mixer runs with every change, the others in the slow suite."""
    return next(iter(rows()[case[0]])) == case[1]


def agree(seen: Seen, forward: Callable[[Mapping[str, Tensor], Tensor], Tensor]) -> None:
    """What left the module is what the oracle says, up to what float32 costs the oracle itself.

    Ten times that, because the module sums in another order (chunks against tokens).
    """
    exact = forward({name: value.double() for name, value in seen.weights.items()}, seen.x.double())
    single = forward(seen.weights, seen.x)
    tolerance = 10 * float((single - exact).abs().max())
    assert tolerance < 1e-3 * float(exact.abs().max()), "float32 is too coarse here to tell anything"
    assert float((seen.y - exact).abs().max()) <= tolerance


@pytest.mark.parametrize(
    ("mixer", "name"), mostly_slow(ROWS, is_first), ids=[f"{mixer}: {row}" for mixer, row in ROWS]
)
def test_mixer(mixer: str, name: str, law: Callable[..., None]) -> None:
    """The compiled mixer is the paper's loop over tokens, in each layer that the row names."""
    law(mixer, "paper")
    row = rows()[mixer][name]
    model = archc.load(spec(mixer, row, context=128)).Model()
    randomise(model, row.scale)
    paths = {layer: f"layers.{layer}.mixer" for layer in {0, *row.layers}}
    found = observe(model, list(paths.values()), LENGTH)
    sizes = {"norm_eps": 1e-5, "d_model": row.d_model, "n_layers": 2, "context": 128, **row.sizes}
    sizes["first"] = (found[paths[0]].weights, found[paths[0]].x)
    sizes["model"] = {name: value.detach() for name, value in model.named_parameters(recurse=False)}
    for layer in row.layers:
        here = {**sizes, "layer": layer}
        agree(found[paths[layer]], lambda weights, x: reference(mixer, weights, here, x))  # noqa: B023


ATTENTION = {"n_heads": 4, "n_kv_heads": 4, "head_dim": 12, "norm_eps": 1e-5}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_kv_heads": 2, "qkv_bias": True, "output_bias": True},
        {"rope": {"theta": 500}},
        {"rope": {"theta": 10000}, "fraction": "1/3", "n_kv_heads": 1},
        {"softcap": 2},
        {"window": 9, "softcap": 3},
        {"qk_norm": "projection", "n_kv_heads": 2},
        {"output_gate": "head", "window": 1},
        {"head_dim": 20, "qk_norm": "head"},
    ],
)
def test_options_of_attention(options: dict[str, Any], with_parts: Callable[..., nn.Module]) -> None:
    model = with_parts({"use": "attention", "n_heads": 4, **options}, {"use": "swiglu", "d_ff": 48})
    sizes = {**ATTENTION, **options}
    sizes |= {"theta": options["rope"]["theta"]} if "rope" in options else {}
    sizes |= {"fraction": 1 / 3} if "fraction" in options else {}
    seen = observe(model, ["layers.0.mixer"], 23)["layers.0.mixer"]
    agree(seen, lambda weights, x: attention.forward(weights, sizes, x))


GATED: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": lambda u: FUNCTIONS["silu"]({}, u),
    "geglu": lambda u: FUNCTIONS["gelu"]({}, u),
    "reglu": lambda u: u.clamp(min=0),
    "sigmoid_glu": lambda u: 1 / (1 + torch.exp(-u)),
    "bilinear": lambda u: u,
}
MIXER = {"use": "attention", "n_heads": 4}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("use", GATED)
def test_gated_mlp(use: str, bias: bool, with_parts: Callable[..., nn.Module]) -> None:
    model = with_parts(MIXER, {"use": use, "d_ff": 40, "bias": bias})
    seen = observe(model, ["layers.0.mlp"], 9)["layers.0.mlp"]
    assert ("up.bias" in seen.weights) == bias
    agree(seen, lambda weights, x: mlps.glu(weights, x, GATED[use]))


@pytest.mark.parametrize("use", ["glu", "plain_mlp"])
@pytest.mark.parametrize("activation", ["relu2", "golu", "xielu", "swish"])
def test_mlp_with_any_activation(use: str, activation: str, with_parts: Callable[..., nn.Module]) -> None:
    model = with_parts(MIXER, {"use": use, "activation": activation, "d_ff": 40})
    seen = observe(model, ["layers.0.mlp"], 9)["layers.0.mlp"]
    own = {name.removeprefix("y_"): name for name in seen.weights if "." not in name}

    def forward(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        inner = {short: weights[name] for short, name in own.items()}
        oracle = mlps.glu if use == "glu" else mlps.plain
        return oracle(weights, x, lambda u: FUNCTIONS[activation](inner, u))

    agree(seen, forward)


def test_clamped_mlp(with_parts: Callable[..., nn.Module]) -> None:
    model = with_parts(MIXER, {"use": "clamped_swiglu", "d_ff": 40})
    with torch.no_grad():
        for name in ("gate", "up"):  # far enough for the bounds to bite
            model.get_submodule(f"layers.0.mlp.{name}").weight.mul_(10)
    seen = observe(model, ["layers.0.mlp"], 9)["layers.0.mlp"]
    agree(seen, mlps.clamped)


def test_channel_mixing(small: Callable[[str], nn.Module]) -> None:
    seen = observe(small("rwkv7"), ["layers.1.mlp"], 9)["layers.1.mlp"]
    agree(seen, rwkv7.channel_mix)
