"""A whole package for a GPU with its norms, gated products and scans interpreted, against the torch form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from archc.kernels.counting.counter import counting
from archc.pipeline import build
from tests.laws.subjects import one_mixer
from tests.support.imports import imported
from tests.support.packages import import_folder, randomise

SPEC = one_mixer("scanned", {"use": "hgrn"}, n_layers=1)


def results(model: nn.Module) -> dict[str, Tensor]:
    """Logits, gradients, packed rows, pieces with a state, captured values."""
    tokens = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(5))
    model.zero_grad()
    logits = model(tokens)
    logits.square().mean().backward()
    found = {"logits": logits.detach()}
    found |= {
        f"gradient of {name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }
    with torch.no_grad():
        found["packed"] = model(tokens.reshape(1, -1), cu_seqlens=torch.tensor([0, 5, 5, 16]))[:, :16]
        state = model.init_state(batch_size=2, max_length=16)
        found["pieces"] = torch.cat([model(piece, state=state) for piece in tokens.split([7, 1, 1], 1)], 1)
        found |= {f"state {name}": value.clone() for name, value in state.tensors().items()}
        found |= model(tokens, capture=["layers.*.mixer.gate", "layers.*.mixer.h"])[1]
    return found


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(SPEC, tmp_path / "package", target="h100")
    package = import_folder(tmp_path / "package", "interpreted_rowwise")
    model = randomise(package.Model())
    want = results(model)
    for name in ("fused_norms", "fused_glu", "fused_scan"):
        fused = imported(f"{package.__name__}.{name}")
        for operation in (fused._forward, fused._backward):
            operation.register_kernel("cpu")(operation._init_fn)
        monkeypatch.setattr(fused, "_has_kernel", lambda *arguments: True)
    kernels = imported(f"{package.__name__}.scan_kernels")
    monkeypatch.setattr(kernels, "BLOCK_T", 4)  # the interpreter is slow
    monkeypatch.setattr(kernels, "BLOCK_C", 16)
    got = results(model)
    assert got.keys() == want.keys() and "layers.0.mixer.gate" in got
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, msg=lambda text: f"{name}: {text}")  # noqa: B023
    with counting() as counted, torch.no_grad():
        model(torch.zeros(1, 3, dtype=torch.int64))
    names = [launch.name for launch in counted.launches]
    assert names == [
        "rmsnorm_kernel",
        "scan_kernel",
        "rmsnorm_kernel",
        "rmsnorm_kernel",
        "glu_kernel",
        "rmsnorm_kernel",
    ]
