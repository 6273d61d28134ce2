"""The compiled mixers and MLPs of the library against their oracles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.library.conftest import Seen, observe
from tests.oracles import attention, gated_deltanet, gla, kda, mamba2, mlps, rwkv7
from tests.oracles.functions import FUNCTIONS

LENGTH = 70  # longer than a chunk of 64 and than every window, no multiple of either

SIZES: dict[str, dict[str, Any]] = {
    "attention": {
        "n_heads": 6,
        "n_kv_heads": 2,
        "head_dim": 32,
        "theta": 10000.0,
        "fraction": 0.5,
        "window": 48,
        "qk_norm": "head",
        "output_gate": "element",
    },
    "gla": {"n_heads": 3, "n_kv_heads": 3, "head_dim": 32, "v_dim": 64, "gate_rank": 16, "tau": 16},
    "mamba2": {"n_heads": 12, "head_dim": 32, "d_state": 32, "n_groups": 2},
    "gated_deltanet": {
        "n_heads": 3,
        "n_v_heads": 6,
        "head_dim": 32,
        "v_dim": 32,
        "negative_eigenvalues": True,
    },
    "kda": {"n_heads": 6, "head_dim": 32, "v_dim": 32, "rank": 32},
    "rwkv7": {
        "n_heads": 6,
        "head_dim": 32,
        "decay_rank": 32,
        "a_rank": 32,
        "value_rank": 32,
        "gate_rank": 64,
    },
}
ORACLES: dict[str, Callable[[Mapping[str, Tensor], Mapping[str, Any], Tensor], Tensor]] = {
    "attention": attention.forward,
    "gla": gla.forward,
    "mamba2": mamba2.forward,
    "gated_deltanet": gated_deltanet.forward,
    "kda": kda.forward,
    "rwkv7": rwkv7.forward,
}


def agree(seen: Seen, forward: Callable[[Mapping[str, Tensor], Tensor], Tensor]) -> None:
    """What left the module is what the oracle says, up to what float32 costs the oracle itself.

    Ten times that, because the module sums in another order (chunks against tokens).
    """
    exact = forward({name: value.double() for name, value in seen.weights.items()}, seen.x.double())
    single = forward(seen.weights, seen.x)
    tolerance = 10 * float((single - exact).abs().max())
    assert tolerance < 1e-3 * float(exact.abs().max()), "float32 is too coarse here to tell anything"
    assert float((seen.y - exact).abs().max()) <= tolerance


@pytest.mark.parametrize("name", ORACLES)
def test_mixer(name: str, small: Callable[[str], nn.Module]) -> None:
    sizes = {**SIZES[name], "norm_eps": 1e-5}
    seen = observe(small(name), ["layers.0.mixer"], LENGTH)["layers.0.mixer"]
    agree(seen, lambda weights, x: ORACLES[name](weights, sizes, x))


def test_later_layers_read_the_first_value(small: Callable[[str], nn.Module]) -> None:
    seen = observe(small("rwkv7"), ["layers.0.mixer", "layers.2.mixer"], LENGTH)
    sizes, first, later = SIZES["rwkv7"], seen["layers.0.mixer"], seen["layers.2.mixer"]
    value = rwkv7.own_value(first.weights, sizes, first.x)
    agree(later, lambda weights, x: rwkv7.forward(weights, sizes, x, value.to(x.dtype)))


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


@pytest.mark.parametrize(
    ("use", "options", "sizes"),
    [
        ("gla", {"n_heads": 4, "n_kv_heads": 2, "tau": 4},
         {"n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "v_dim": 12, "gate_rank": 16, "tau": 4}),
        ("mamba2", {"head_dim": 16, "d_state": 8, "dt_min": 0.01, "dt_max": 0.5},
         {"n_heads": 6, "head_dim": 16, "d_state": 8, "n_groups": 1, "dt_min": 0.01, "dt_max": 0.5}),
        ("gated_deltanet", {"n_heads": 2, "head_dim": 8},
         {"n_heads": 2, "n_v_heads": 2, "head_dim": 8, "v_dim": 16}),
        ("kda", {"n_heads": 2, "head_dim": 8, "expand_v": 2, "gate_bias": True, "negative_eigenvalues": True},
         {"n_heads": 2, "head_dim": 8, "v_dim": 16, "rank": 8, "negative_eigenvalues": True}),
    ],
)  # fmt: skip
def test_options_of_recurrences(
    use: str, options: dict[str, Any], sizes: dict[str, Any], with_parts: Callable[..., nn.Module]
) -> None:
    model = with_parts({"use": use, **options}, {"use": "swiglu", "d_ff": 48})
    seen = observe(model, ["layers.0.mixer"], LENGTH)["layers.0.mixer"]
    agree(seen, lambda weights, x: ORACLES[use](weights, {**sizes, "norm_eps": 1e-5}, x))


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
