"""One decoded token of whole models on a GPU, traced without one: launches of a mixer, and whether a graph captures it.

The tensors have no values and say that they lie on a GPU, so packages go the way that they go there. Kernels of Triton
are written down instead of launched. Whatever reads a value raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from archc.codegen.package import package_files
from archc.kernels.fusing.decode import fuse_decode
from archc.kernels.targets import load_target
from archc.pipeline import graph_of
from tests.support.imports import imported
from tests.support.packages import SPECS
from tests.support.slow import mostly_slow
from tests.support.trace import Trace, described

pytest.importorskip("triton")
MIXERS = {
    "gated_deltanet": "{use: gated_deltanet, n_heads: 2, head_dim: 32}",
    "gated_deltanet_grouped": "{use: gated_deltanet, n_heads: 2, n_v_heads: 4, head_dim: 32, expand_v: 1}",
    "kda": "{use: kda, n_heads: 2, head_dim: 32}",
}
TOKENS = torch.zeros(3, 1, dtype=torch.int64, device="meta")


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`with traced() as trace:` writes down what runs, as if a CUDA graph were being captured."""
    from triton.runtime.jit import JITFunction

    @contextmanager
    def trace() -> Iterator[Trace]:
        found = Trace()

        def launch(self: Any, grid: Any) -> Any:
            return lambda *args, **kwargs: found.calls.append(
                f"{self.fn.__name__}{described(grid)}({described(args)} {described(kwargs)})"
            )

        with monkeypatch.context() as patch, found:
            patch.setattr(JITFunction, "__getitem__", launch)
            patch.setattr(torch.Tensor, "is_cuda", True, raising=False)
            patch.setattr(torch.cuda, "current_device", lambda: None)
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            yield found

    return trace


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], Any]:
    """A model with the kernels of the H100."""

    def load(name: str) -> Any:
        spec = tmp_path / f"{name}.yaml"
        spec.write_text(
            f"archc: 1\nname: step_{name}\nmodel: {{vocab_size: 64, d_model: 64, n_layers: 2, context: 128, "
            f"norm: rmsnorm}}\nblocks:\n  main:\n    mixer: {MIXERS[name]}\n    mlp: {{use: swiglu}}\n"
        )
        folder = tmp_path / f"step_{name}"
        folder.mkdir()
        for path, text in package_files(graph_of(spec), target=load_target("h100")).items():
            (folder / path).write_text(text)
        return imported(f"step_{name}", tmp_path).Model().bfloat16().eval().to("meta")

    return load


@pytest.mark.parametrize("name", mostly_slow(MIXERS, lambda name: name == "kda"))
@torch.no_grad()
def test_a_token_of_a_mixer_takes_at_most_four_launches(name: str, load: Any, traced: Any) -> None:
    """As `model.prepare_decode()` leaves it, matrix products included."""
    model = load(name)
    state = model.init_state(batch_size=3)
    inside: list[int] = []
    with traced() as trace:
        model.prepare_decode()
        mixer = model.layers[1].mixer
        mixer.register_forward_pre_hook(lambda *_: inside.append(len(trace.launches)))
        mixer.register_forward_hook(lambda *_: inside.append(len(trace.launches)))
        model(TOKENS, state=state)
    first, last = inside
    assert 3 <= last - first <= 4, trace.launches[first:last]
    assert any(call.startswith("token_kernel") for call in trace.launches[first:last])


@pytest.mark.parametrize("name", mostly_slow(MIXERS, lambda name: name == "gated_deltanet"))
@torch.no_grad()
def test_a_graph_can_capture_the_step(name: str, load: Any, traced: Any) -> None:
    """Nothing reads back, nothing lies on the host, and a later token runs the same calls with the same numbers."""
    model = load(name)
    state = model.init_state(batch_size=3)
    steps = []
    storage = {key: id(tensor) for key, tensor in state.tensors().items()}
    with traced():
        model.prepare_decode()
    for _ in range(2):
        with traced() as trace:
            model(TOKENS, state=state)
        assert trace.elsewhere == []
        steps.append(trace.calls)
    assert {key: id(tensor) for key, tensor in state.tensors().items()} == storage, "the state moved"
    assert steps[0] == steps[1] and len(steps[0]) > 20


@torch.no_grad()
def test_a_step_that_reads_back_is_noticed(load: Any, traced: Any) -> None:
    """The same trace of a model that looks at a value, and of one that makes a tensor on the host."""
    model = load("gated_deltanet")
    state = model.init_state(batch_size=3)
    with traced():
        model.prepare_decode()
    looking = model.norm.register_forward_hook(lambda module, args, y: y * float(y.sum()))
    with pytest.raises(RuntimeError, match="meta"), traced():
        model(TOKENS, state=state)
    looking.remove()
    model.norm.register_forward_hook(lambda module, args, y: y + torch.ones(64).to("meta"))
    with traced() as trace:
        model(TOKENS, state=state)
    assert trace.elsewhere


def test_histories_of_the_same_channels_share_a_mask() -> None:
    """Queries and keys that several heads of values read have as many channels: one line says which exist."""
    graph = graph_of(SPECS / "models" / "gated_deltanet_small.yaml")
    found = next(fused for module in graph.modules.values() if (fused := fuse_decode(module)))
    masks = [line for line in found.shift_lines if line.startswith("in_C = ")]
    moved = [line for line in found.shift_lines if line.startswith("shift_in(")]
    assert len(moved) == 2 and len(masks) == 1
