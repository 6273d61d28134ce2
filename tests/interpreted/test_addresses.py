"""Addresses beyond 2^31 elements of one sequence, without the memory: what a kernel would write, it hands over."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from archc.pipeline import sources_of
from tests.laws.subjects import one_mixer
from tests.support.imports import imported

SPEC = one_mixer("far", {"use": "gated_deltanet", "n_heads": 2, "head_dim": 16, "expand_v": 1})
CALLS = """

@triton.jit
def put_far(x, start, H: tl.constexpr):
    put_scalars(x, tl.zeros([16], tl.float32), start, tl.arange(0, 16) < 0, 3, H)


@triton.jit
def get_far(x, start, H: tl.constexpr):
    scalars(x, start, tl.arange(0, 16) < 0, 3, H, H)
"""


@pytest.mark.parametrize("name", ["put_far", "get_far"])
def test_numbers_of_tokens(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2^27 heads the tokens from the 40th on; nothing is inside the mask."""
    from triton.runtime import interpreter

    file = "head_decay_delta_kernels.py"
    (tmp_path / f"far_{name}.py").write_text(sources_of(SPEC, "h100")[file] + CALLS)
    module = imported(f"far_{name}", tmp_path)
    seen: list[Any] = []

    def noted(access: Any) -> Any:
        def call(pointers: Any, *rest: Any) -> Any:
            seen.append(pointers.copy())
            return access(pointers, *rest)

        return call

    native = interpreter._interpreter
    memory = vars(native) | {"store": noted(native.store), "load": noted(native.load)}
    monkeypatch.setattr(interpreter, "_interpreter", SimpleNamespace(**memory))
    x = torch.zeros(4)
    getattr(module, name)[(1,)](x, 40, 1 << 27)
    [pointers] = seen
    tokens = 40 + torch.arange(16)
    assert ((pointers.reshape(-1).astype("int64") - x.data_ptr()) // 4).tolist() == (
        tokens * (1 << 27) + 3
    ).tolist()
