"""Forgetting attention's traps: gates between two tokens, not scaled with the scores; sums that keep their digits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

MLP = {"use": "swiglu", "d_ff": 48}


def test_gates_between_key_and_query(with_parts: Callable[..., nn.Module]) -> None:
    """With no queries the weights are products of gates: token s of query t is left f_{s+1} ... f_t, itself 1."""
    model = with_parts({"use": "fox", "n_heads": 2}, MLP)
    with torch.no_grad():
        model.get_submodule("layers.0.mixer.q").weight.zero_()
        _, found = model(torch.randint(64, (1, 4)), capture=["layers.0.mixer.*"])
    got = {name.removeprefix("layers.0.mixer."): value[0] for name, value in found.items()}
    f = got["log_f"].exp()
    left = torch.stack([f[1] * f[2] * f[3], f[2] * f[3], f[3], torch.ones(2)])
    share = left / left.sum(0)
    torch.testing.assert_close(got["o"][3], torch.einsum("sh,shv->hv", share, got["v0"]))
    torch.testing.assert_close(got["o"][0], got["v0"][0])


def test_a_gate_that_closes_is_not_scaled(with_parts: Callable[..., nn.Module]) -> None:
    """Two tokens: the odds of the earlier one are f_2 exp(q k / sqrt(d)), the gate outside the scale."""
    model = with_parts({"use": "fox", "n_heads": 1}, MLP)
    with torch.no_grad():
        _, found = model(torch.tensor([[3, 9]]), capture=["layers.0.mixer.*"])
    got = {name.removeprefix("layers.0.mixer."): value[0] for name, value in found.items()}
    q, k, v = got["q0"][1, 0], got["k0"][:, 0], got["v0"][:, 0]
    odds = got["log_f"][1].exp() * torch.exp((k[0] - k[1]) @ q / 48**0.5)
    torch.testing.assert_close(got["o"][1, 0], (odds * v[0] + v[1]) / (1 + odds))


def test_sums_and_cache_are_float32(with_parts: Callable[..., nn.Module]) -> None:
    """In bfloat16 a sum of hundreds of gates would lose the last ones: sums and what is cached of them are float32."""
    model = with_parts({"use": "fox", "n_heads": 2}, MLP).to(torch.bfloat16)
    with torch.no_grad():
        _, found = model(torch.randint(64, (1, 90)), capture=["layers.0.mixer.*"])
    total, log_f = found["layers.0.mixer.total"], found["layers.0.mixer.log_f"]
    assert total.dtype == log_f.dtype == torch.float32
    torch.testing.assert_close(total, log_f.cumsum(1))
    kept = model.init_state(1, 8).tensors()
    assert kept["layers.0.mixer.total_kept"].dtype == torch.float32
    assert kept["layers.0.mixer.total_kept"].shape == (1, 8, 2)


def test_published_large_block(with_parts: Callable[..., nn.Module]) -> None:
    """Norms with weights for each head, shift gates without bias, a forget gate with one."""
    options = {"qk_norm": True, "kv_shift": True, "output_norm": True, "output_gate": True}
    mixer = with_parts({"use": "fox", "n_heads": 4, **options}, MLP).get_submodule("layers.0.mixer")
    shapes = {name: p.numel() for name, p in mixer.named_parameters()}
    norms = {"q_norm.weight": 48, "k_norm.weight": 48, "normed_norm.weight": 48}
    gates = {"k_shift.weight": 192, "v_shift.weight": 192, "log_f.weight": 192, "log_f.bias": 4}
    assert shapes == {**norms, **gates, **{f"{n}.weight": 2304 for n in ("q", "k", "v", "gate", "y")}}
