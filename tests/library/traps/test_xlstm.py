"""xLSTM's traps: starts of the gates, which inputs the convolution feeds, a bias without effect, exponentials."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import archc
from tests.library.conftest import randomise
from tests.oracles.row import Row, spec

LAYERS = 4


def mixers(name: str, options: dict[str, Any] | None = None) -> list[Any]:
    """The mixers of four layers as they start."""
    torch.manual_seed(0)
    model = archc.load(spec(name, Row({"n_heads": 4, **(options or {})}), n_layers=LAYERS)).Model()
    return [layer.mixer for layer in model.layers]


def test_forget_biases_of_scalar_memory_follow_a_power_law() -> None:
    """5 - 12 (j / (K - 1))^(0.3 + 1.3 layer / (n_layers - 1)) for entry j of each head."""
    for layer, mixer in enumerate(mixers("slstm")):
        power = 0.3 + 1.3 * layer / (LAYERS - 1)
        expected = [5 - 12 * (j / 11) ** power for j in range(12)] * 4
        torch.testing.assert_close(mixer.fgate.bias.detach(), torch.tensor(expected))
        for name in ("zgate", "ogate"):
            assert not getattr(mixer, name).bias.any()
        assert not mixer.cell.recurrent.weight.any()


def test_a_single_layer_and_a_single_entry_start_too() -> None:
    """Both formulas divide by a count less one."""
    alone = archc.load(spec("slstm", Row({"n_heads": 48}), n_layers=1)).Model().layers[0].mixer
    assert (alone.fgate.bias == 5).all()
    one = archc.load(spec("mlstm_7b", Row({"n_heads": 1}), n_layers=1)).Model().layers[0].mixer
    assert one.fgate.bias.tolist() == [3]


@pytest.mark.parametrize(("name", "write"), [("mlstm", 0.0), ("mlstm_7b", -10.0)])
def test_gates_of_matrix_memory_start_from_biases_alone(name: str, write: float) -> None:
    found = mixers(name)
    for mixer in found:
        assert not mixer.igate.weight.any() and not mixer.fgate.weight.any()
        torch.testing.assert_close(mixer.fgate.bias.detach(), torch.tensor([3.0, 4.0, 5.0, 6.0]))
    biases = torch.cat([mixer.igate.bias.detach() for mixer in found]) - write
    if name == "mlstm":
        assert 0.03 < float(biases.std()) < 0.2  # 0.1, of 16 draws
        assert all((mixer.skip == 1).all() for mixer in found)
    else:
        assert not biases.any()


@pytest.mark.parametrize("name", ["mlstm", "mlstm_7b", "slstm"])
def test_matrices_start_small(name: str) -> None:
    """sqrt(2 / (5 d_model)) also for the blocks of the inner width; the last matrix 2 / (n_layers sqrt(d_model))."""
    small, last = math.sqrt(2 / (5 * 48)), 2 / (LAYERS * math.sqrt(48))
    wanted = {
        "mlstm": {"up": small, "q": small, "k": small, "v": small, "y": last},
        "mlstm_7b": {"q": small, "k": small, "v": small, "gate": small, "y": last},
        "slstm": {"igate": small, "fgate": small, "zgate": small, "ogate": small},
    }[name]
    found = mixers(name)
    for weight, deviation in wanted.items():
        drawn = torch.cat([getattr(mixer, weight).weight.detach().flatten() for mixer in found])
        assert abs(float(drawn.std()) / deviation - 1) <= 5 / math.sqrt(2 * len(drawn)), weight


def scalar(scale: float = 1.0) -> Any:
    model = archc.load(spec("slstm", Row({"n_heads": 4}), n_layers=1)).Model()
    randomise(model, scale)
    return model


def test_convolution_feeds_input_and_forget_gate_only() -> None:
    names = ("igate", "fgate", "zgate", "ogate")
    model, tokens = scalar(), torch.arange(6)[None]
    with torch.no_grad():
        _, before = model(tokens, capture=["layers.0.mixer.*"])
        tokens[0, 3] = 40
        _, after = model(tokens, capture=["layers.0.mixer.*"])
    moved = {
        name: (before[f"layers.0.mixer.{name}"] - after[f"layers.0.mixer.{name}"])[0]
        .flatten(1)
        .any(1)
        .tolist()
        for name in names
    }
    assert moved["igate"] == moved["fgate"] == [False, False, False, True, True, True]
    assert moved["zgate"] == moved["ogate"] == [False, False, False, True, False, False]


def test_a_bias_of_the_input_gate_would_change_nothing() -> None:
    """It would multiply c and n alike; hence there is none."""
    cell = scalar().double().layers[0].mixer.cell
    given = torch.randn(4, 1, 9, 4, 12, dtype=torch.float64)
    results = []
    for bias in (0.0, 30.0):
        before = [
            entry.tensor(1, 0, torch.float64, given.device)[:, None]
            for entry in cell.state_entries().values()
        ]
        rows = []
        for t in range(9):
            i, f, z, o = given[:, :, t : t + 1]
            y, *before = cell(i + bias, f, z, o, *before)
            rows.append(y)
        results.append(torch.cat(rows, 1))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [-1000.0, 1000.0])
def test_gates_far_out_stay_finite(scale: float) -> None:
    """Without the running maximum exp would be 0 or infinite from the first token on."""
    cell = scalar().layers[0].mixer.cell
    parts = [torch.full((1, 1, 4, 12), scale, requires_grad=True) for _ in range(4)]
    values = [
        entry.tensor(1, 0, torch.float32, parts[0].device)[:, None] for entry in cell.state_entries().values()
    ]
    for _ in range(5):
        y, *values = cell(*parts, *values)
        assert y.isfinite().all() and all(value.isfinite().all() for value in values)
    slopes = torch.autograd.grad(y.sum(), [*parts, cell.recurrent.weight])
    assert all(slope.isfinite().all() for slope in slopes)
