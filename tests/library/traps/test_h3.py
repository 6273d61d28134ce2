"""What goes wrong in silence in H3: the taps of the shift, the skips, and the order of the heads' channels."""

from __future__ import annotations

import math

import torch

import archc
from tests.oracles.row import Row, spec


def test_initial_values() -> None:
    torch.manual_seed(0)
    model = archc.load(spec("h3", Row({"d_state": 64}), n_layers=1)).Model()
    weights = {name: value.detach() for name, value in model.layers[0].mixer.named_parameters()}
    taps = weights["k_conv.weight"]
    assert taps.shape == (48, 64) and "k_conv.bias" not in weights
    # Uniform within an eighth, as a convolution of 64 taps starts in torch.
    assert float(taps.abs().max()) <= 1 / 8
    assert abs(float(taps.var()) - 1 / 192) <= 5 / 192 / math.sqrt(taps.numel())
    for name in ("D_shift", "h_D"):
        assert abs(float(weights[name].mean())) <= 5 / math.sqrt(48)
        assert abs(float(weights[name].var()) - 1) <= 5 * math.sqrt(2 / 48)
    assert weights["h_log_dt"].shape == (48,) and weights["h_C"].shape == (48, 32, 2)


def test_heads_share_a_state_space() -> None:
    model = archc.load(spec("h3", Row({"d_state": 8, "head_dim": 4}), n_layers=1)).Model()
    weights = dict(model.layers[0].mixer.named_parameters())
    assert weights["h_log_dt"].shape == (12,) and weights["h_D"].shape == (12,)
    assert weights["D_shift"].numel() == 48
    state = model.init_state(2, 16).memory["layers.0.mixer.h_h"]
    assert state.shape == (2, 12, 4, 4, 4, 2)  # heads, keys, values, pairs, real and imaginary
