"""Traps of linear attention without decay: no scale, where the denominator and the norms stand, positions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import archc
from tests.oracles.row import Row, spec


def mixer_of(name: str, options: dict[str, Any]) -> Any:
    """The first mixer of a model in float64, and a place for dense calls."""
    torch.manual_seed(0)
    package = archc.load(spec(name, Row(options)))
    return package.Model().double().eval().layers[0].mixer, package


def capture(name: str, options: dict[str, Any], length: int, *wanted: str) -> list[Tensor]:
    """Values of the first layer's mixer by name."""
    torch.manual_seed(0)
    model = archc.load(spec(name, Row(options))).Model().double().eval()
    tokens = torch.randint(64, (1, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        _, found = model(tokens, capture=[f"layers.0.mixer.{value}" for value in wanted])
    return [found[f"layers.0.mixer.{value}"] for value in wanted]


@pytest.mark.parametrize("feature_map", ["elu1", "taylor_exp", "dpfp"])
def test_the_first_output_is_its_value(feature_map: str) -> None:
    """phi(q) . phi(k) over itself, plus eps: weights of one token sum to 1 only without a scale on either."""
    o, v = capture("linear_attention", {"n_heads": 3, "feature_map": feature_map, "eps": 1e-12}, 1, "o", "v")
    if feature_map == "dpfp":  # a product of sparse features may be 0, and then nothing is read
        read = o.abs().sum(-1) > 0
        assert bool(read.any())
        o, v = o[read], v[read]
    torch.testing.assert_close(o, v, rtol=1e-6, atol=1e-9)


def test_no_scale_without_a_denominator() -> None:
    """The first output is (phi(q) . phi(k)) v: not over sqrt(K)."""
    options = {"n_heads": 3, "normalize": "none"}
    o, phi_q, phi_k, v = capture("linear_attention", options, 1, "o", "phi_q", "phi_k", "v")
    torch.testing.assert_close(o, (phi_q * phi_k).sum(-1, keepdim=True) * v)


def test_norm_over_all_heads_and_no_denominator() -> None:
    """NormAttention divides by one number a token, not one a head."""
    o, normed = capture("transnormer", {"n_heads": 3, "norm_weight": False}, 9, "o", "normed")
    ratio = (normed / o).flatten(2)
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio))
    torch.testing.assert_close(
        normed.flatten(2).square().mean(-1), torch.ones(1, 9, dtype=torch.float64), rtol=1e-3, atol=0
    )


def test_lightning_has_no_scale() -> None:
    o, q, k, v = capture("lightning", {"n_heads": 3, "first_layer_angles": False}, 1, "o", "q0", "k0", "v0")
    torch.testing.assert_close(o, (q * k).sum(-1, keepdim=True) * v)


def test_retention_divides_by_the_root() -> None:
    o, q, k, v = capture("retnet", {"n_heads": 3}, 1, "o", "q", "k", "v")
    torch.testing.assert_close(o, (q * k).sum(-1, keepdim=True) * v / 4)


def test_cosine_attention_divides_values_by_a_power_of_their_place() -> None:
    """sigmoid(0.5) at the start; the first token by 1."""
    (count,) = capture("cottention", {"n_heads": 3}, 7, "count")
    power = 1 / (1 + math.exp(-0.5))
    expected = torch.tensor([(j + 1) ** power for j in range(7)], dtype=torch.float64)
    torch.testing.assert_close(count[0].double(), expected[:, None].expand(7, 3), rtol=1e-6, atol=0)


def test_cosformer_weights_fall_to_nothing_at_the_length() -> None:
    """The default length is the model's context, and a pair that far apart has the weight 0."""
    mixer, package = mixer_of("cosformer", {"n_heads": 3})
    assert package.Config().cosformer_max_length == 160
    assert mixer.max_length == 160


def test_blocks_of_tokens_keep_a_ring() -> None:
    """DiagAttention never needs more keys than a block has."""
    for name, options in (("diag_attention", {"n_heads": 3, "block": 16}), ("lln_attention", {"n_heads": 3})):
        state = archc.load(spec(name, Row(options))).Model().init_state(2, 100)
        kept = [tensor for key, tensor in state.tensors().items() if key.endswith((".k", ".v"))]
        assert kept and all(tensor.shape[1] == 16 for tensor in kept)


def test_nothing_crosses_a_block() -> None:
    """A token at the start of a block sees itself alone."""
    o, v = capture("diag_attention", {"n_heads": 3, "block": 4}, 10, "o", "v")
    torch.testing.assert_close(o[:, ::4], v[:, ::4])
    assert float((o[:, 1] - v[:, 1]).abs().max()) > 1e-3


def test_random_features_estimate_the_softmax() -> None:
    """The products of many features are exp(q . k / sqrt(K)) on average, up to the stabiliser of each query."""
    options = {"n_heads": 3, "n_features": 40000}
    q, k, phi_q, phi_k = capture("performer", options, 6, "q", "k", "phi_q", "phi_k")
    exact = torch.einsum("bihk,bjhk->bhij", q, k).div(4).exp()
    found = torch.einsum("bihf,bjhf->bhij", phi_q, phi_k)
    ratio = found / exact
    assert float((ratio / ratio.mean(-1, keepdim=True) - 1).abs().max()) < 0.05


def test_features_are_shared_and_no_parameter() -> None:
    model = archc.load(spec("performer", Row({"n_heads": 3}))).Model()
    buffers = {name for name, _ in model.named_buffers() if "omega" in name}
    assert buffers == {"layers.0.mixer.phi_omega", "layers.1.mixer.phi_omega"}
    assert not any("omega" in name for name, _ in model.named_parameters())
    assert model.layers[0].mixer.phi_omega.shape == (int(16 * math.log(16)), 16)


@pytest.mark.parametrize(
    "name", ["performer", "cosformer", "lln_attention", "linear_attention", "cosformer2"]
)
def test_half_precision_runs(name: str) -> None:
    """bfloat16 models: near what float32 gives, finite, and decoding agrees with the prefill."""
    torch.manual_seed(0)
    model = archc.load(spec(name, Row({"n_heads": 3}))).Model()
    tokens = torch.randint(64, (2, 40))
    with torch.no_grad():
        expected = model(tokens)
        half = model.bfloat16()
        whole = half(tokens)
        state = half.init_state(2, 48)
        first = half(tokens[:, :39], state=state)
        last = half(tokens[:, 39:], state=state)
    assert whole.isfinite().all()
    for found in (whole, torch.cat([first, last], 1)):
        assert float((found.float() - expected).abs().max()) < 0.1 * float(expected.abs().max())
