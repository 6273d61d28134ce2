"""The arithmetic of `archc bench`: ratios, warm-up, what both sides are given."""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from archc.cli import measure


class Model:
    """Sleeps for as long as it is told; keeps what it was called with."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.seen: list[torch.Tensor] = []

    def eval(self) -> Model:
        return self

    def init_state(self, batch_size: int, max_length: int) -> object:
        return SimpleNamespace(batch_size=batch_size, max_length=max_length)

    def prepare_decode(self) -> None:
        self.prepared_after = len(self.seen)

    def __call__(self, tokens: torch.Tensor, **_: object) -> SimpleNamespace:
        self.seen.append(tokens)
        time.sleep(self.seconds)
        return SimpleNamespace(past_key_values="cache")


def test_the_ratio_is_the_peers_time_over_ours() -> None:
    case = measure.Case("decode", 2, 4, True)
    ours, peer = Model(0.001), Model(0.004)
    timing = measure._time(case, measure._ours(case, ours), measure._theirs(peer), 3, lambda text: None)
    assert timing.ratio is not None and 2 < timing.ratio < 4.5
    assert timing.ratios is not None and timing.ratios[0] <= timing.ratio <= timing.ratios[1]
    assert timing.peer is not None and timing.ours > timing.peer
    assert [t.tolist() for t in ours.seen] == [t.tolist() for t in peer.seen], (
        "both sides see the same tokens"
    )
    assert len(ours.seen) == (3 + 1) * (1 + 4), (
        "three rounds and one to warm up, a prompt and four steps each"
    )
    assert ours.seen[0].shape == (2, measure.PROMPT) and ours.seen[1].shape == (2, 1)


def test_prefill_is_one_call() -> None:
    ours = Model()
    case = measure.Case("prefill", 1, 512, False)
    timing = measure._time(case, measure._ours(case, ours), None, 2, lambda text: None)
    assert [tuple(t.shape) for t in ours.seen] == [(1, 512)] * 3
    assert timing.ratio is None and timing.peer is None


def test_a_bench_says_what_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("built")
    module.Model = Model  # type: ignore[attr-defined]
    monkeypatch.setattr("archc.output.load.load", lambda spec: module)
    found = measure.measure(Path("thing.yaml"), None, rounds=1, tell=lambda text: None)
    assert [t.case for t in found.timings] == ["prefill", "decode", "decode"]
    assert found.threads == torch.get_num_threads() and found.machine
    assert found.versions["torch"] == torch.__version__.split("+")[0] or "+" in found.versions["torch"]
