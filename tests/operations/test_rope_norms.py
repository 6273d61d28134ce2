"""Rotary positions against complex numbers and published scalings; norms against their formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor


def place_of(package: Any, x: Tensor, state: Any = None) -> Any:
    layout = package.place.dense_layout(x, state)
    return package.state.open_place(layout, state)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("heads", [(), (3,)])
def test_rotation_is_a_complex_product(
    package: Any, layout: str, fraction: float, heads: tuple[int, ...]
) -> None:
    x = torch.randn(2, 7, *heads, 8, dtype=torch.float64)
    got = package.rope.rope(x, place_of(package, x), 100.0, fraction, layout)
    dims = int(8 * fraction)
    turned = x[..., :dims]
    if layout == "half":
        pairs = torch.complex(turned[..., : dims // 2], turned[..., dims // 2 :])
    else:
        pairs = torch.complex(turned[..., 0::2], turned[..., 1::2])
    angle = torch.arange(7.0).double()[:, None] * 100.0 ** (-torch.arange(0, dims, 2).double() / dims)
    unit = torch.polar(torch.ones_like(angle), angle).view(7, *(1,) * len(heads), dims // 2)
    pairs = pairs * unit
    if layout == "half":
        want = torch.cat([pairs.real, pairs.imag, x[..., dims:]], -1)
    else:
        want = torch.cat([torch.view_as_real(pairs).flatten(-2), x[..., dims:]], -1)
    # Angles up to 6 in float32.
    torch.testing.assert_close(got, want, rtol=0, atol=6 * 2**-23 * x.abs().max().item())
    assert package.rope.rope(x.bfloat16(), place_of(package, x), 100.0).dtype == torch.bfloat16


def test_positions_come_from_the_state(package: Any) -> None:
    x = torch.randn(3, 9, 2, 8)
    whole = package.rope.rope(x, place_of(package, x), 10000.0)
    state = package.state.State.empty({}, 3, 16)
    state.length.add_(4)
    state.longest = 4
    with torch.no_grad():
        later = package.rope.rope(x[:, 4:], place_of(package, x[:, 4:], state), 10000.0)
    torch.testing.assert_close(later, whole[:, 4:], rtol=0, atol=0)
    cu_seqlens = torch.tensor([0, 0, 2, 9])
    packed = package.state.open_place(package.place.packed_layout(cu_seqlens, 9))
    got = package.rope.rope(x[:1], packed, 10000.0)
    for start, stop in ((0, 2), (2, 9)):
        part = x[:1, start:stop]
        want = package.rope.rope(part, place_of(package, part), 10000.0)
        torch.testing.assert_close(got[:, start:stop], want, rtol=0, atol=0)


SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0, "original": 64},
    "yarn": {"factor": 32.0, "original": 4096},
    "yarn_untruncated": {"factor": 32.0, "original": 4096, "truncate": False},
    "yarn_mscale": {"factor": 40.0, "original": 4096, "mscale": 1.0, "mscale_all_dim": 0.7},
    "llama3": {"factor": 8.0, "original": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": {
        "factor": 4.0,
        "original": 64,
        "short_factor": tuple(1.0 + 0.1 * n for n in range(32)),
        "long_factor": tuple(1.5 + 0.2 * n for n in range(32)),
    },
}


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("longest", [40, 200])
def test_scalings_equal_transformers(package: Any, name: str, longest: int) -> None:
    utilities = pytest.importorskip("transformers.modeling_rope_utils")
    transformers = pytest.importorskip("transformers")
    kind = name.partition("_")[0]
    ours = {"type": kind, **SCALINGS[name]}
    theirs: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0, **SCALINGS[name]}
    original = theirs.pop("original", None)
    if original is not None and kind != "dynamic":
        theirs["original_max_position_embeddings"] = original
    theirs = {key: list(value) if isinstance(value, tuple) else value for key, value in theirs.items()}
    config = transformers.LlamaConfig(
        hidden_size=64,
        num_attention_heads=1,
        head_dim=64,
        max_position_embeddings=original if kind == "dynamic" else int((original or 64) * theirs["factor"]),
        rope_parameters=theirs,
    )
    want, want_factor = utilities.ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=longest)
    got, factor = package.rope.frequencies(64, 10000.0, ours, longest)
    # The same formula with a few more or fewer float32 roundings.
    torch.testing.assert_close(got, want, rtol=8 * 2**-23, atol=0)
    assert factor == pytest.approx(want_factor, rel=1e-12)


def test_scaling_errors(package: Any) -> None:
    with pytest.raises(ValueError, match="needs `original`"):
        package.rope.frequencies(8, 10000.0, {"type": "yarn", "factor": 2.0})
    with pytest.raises(ValueError, match="unknown rope scaling 'yarm'"):
        package.rope.frequencies(8, 10000.0, {"type": "yarm"})
    inverse, _ = package.rope.frequencies(4, 100.0, {"type": "proportional"}, head_dim=16)
    torch.testing.assert_close(inverse, torch.tensor([1.0, 100 ** (-2 / 16), 0, 0, 0, 0, 0, 0]))


def norm(x: Tensor, kind: str, dims: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True) if kind == "layer" else x
    size = centred.square().sum(dims, keepdim=True)
    count = 1
    for dim in dims:
        count *= x.shape[dim]
    return centred / (size if kind == "l2" else size / count).add(eps).sqrt()


@pytest.mark.parametrize("dims", [(-1,), (-2, -1), (-2,)])
@pytest.mark.parametrize("weight_axes", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_norms(package: Any, dims: tuple[int, ...], weight_axes: int, dtype: torch.dtype) -> None:
    x = (5 + 3 * torch.randn(2, 5, 4, 6)).to(dtype)
    weight = torch.randn((4, 6)[2 - weight_axes :]) if weight_axes else None
    bias = torch.randn((4, 6)[2 - weight_axes :]) if weight_axes else None
    exact = x.double()
    factor = 1.0 if weight is None else weight.double()
    norms = package.norms
    results = {
        "rms": (norms.rmsnorm(x, weight, eps=0.1, dims=dims), factor, 0.0),
        "layer": (
            norms.layernorm(x, weight, bias, eps=0.1, dims=dims),
            factor,
            0.0 if bias is None else bias.double(),
        ),
        "l2": (norms.l2norm(x, eps=0.1, dims=dims), 1.0, 0.0),
    }
    if weight is not None:
        same = norms.rmsnorm(x, weight.to(dtype), eps=0.1, dims=dims)
        assert same.dtype == dtype
        centred = norms.rmsnorm(x, weight, eps=0.1, dims=dims, zero_centred=True)
        results["centred"] = (centred, 1 + factor, 0.0)
    for kind, (got, scale, offset) in results.items():
        want = norm(exact, {"centred": "rms"}.get(kind, kind), dims, 0.1) * scale + offset
        assert got.dtype == dtype
        # Statistics in float32 over at most 24 elements (a weight in float32 in all), then one rounding.
        rounding = {torch.bfloat16: 2**-9, torch.float32: 2**-20, torch.float64: 2**-45}[dtype]
        bound = max(rounding, 2**-20) if dtype != torch.float64 else rounding
        torch.testing.assert_close(got.double(), want, rtol=2 * bound, atol=2**-19 if bound > 1e-9 else 1e-12)


def test_autocast_keeps_the_input_dtype(package: Any) -> None:
    x, weight = torch.randn(2, 3, 6).bfloat16(), torch.randn(6)
    with torch.autocast("cpu", torch.bfloat16):
        assert package.norms.rmsnorm(x, weight, eps=1e-6).dtype == torch.bfloat16
        assert package.norms.layernorm(x, weight, eps=1e-6).dtype == torch.bfloat16
        assert package.norms.l2norm(x.float()).dtype == torch.float32
