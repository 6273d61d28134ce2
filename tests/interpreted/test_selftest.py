"""A package's self-test with its kernels, interpreted: right kernels are within the limits, a wrong one is named."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from archc.pipeline import build
from tests.support.imports import imported

DTYPES = (torch.float16, torch.float32)  # bfloat16 is not interpreted rightly
pytestmark = pytest.mark.timeout(1200)  # some hundred launches, each a few seconds on a busy machine
DECAYS = {
    "head": "logsigmoid(linear(x, [n_heads])) / 4",
    "key": "logsigmoid(linear(x, [n_heads, k_dim])) / 4",
    "rate": "-exp(param(A_log, [n_heads, k_dim, v_dim])) * softplus(linear(x, [n_heads, v_dim]))",
}
WRITES = {
    "delta": "recurrence(q, k, v, decay=decay, beta=beta, scale=auto)",
    "none": "recurrence(q, k, v, decay=decay, scale=auto)",
}


def spec(decay: str, erase: str) -> dict[str, Any]:
    """A model whose only operation of interest is a recurrence of this class."""
    body = {
        "q": "l2norm(linear(x, [n_heads, k_dim]))",
        "k": "l2norm(linear(x, [n_heads, k_dim]))",
        "v": "linear(x, [n_v_heads, v_dim])" if decay == "head" else "linear(x, [n_heads, v_dim])",
        **({"beta": "sigmoid(linear(x, [n_heads]))"} if erase == "delta" else {}),
        "decay": DECAYS[decay],
        "o": WRITES[erase],
        "y": "linear(o, d_model)",
    }
    params = {"n_heads": 1, "n_v_heads": {"type": "int", "default": 2}, "k_dim": 16, "v_dim": 32}
    if decay == "head":
        params["n_heads"] = {"type": "int", "default": 1, "divides": "n_v_heads"}
    else:
        del params["n_v_heads"]
    return {
        "archc": 1,
        "name": f"interpreted_{decay}_{erase}",
        "model": {"vocab_size": 16, "d_model": 16, "n_layers": 1, "context": 64, "norm": "rmsnorm"},
        "mixers": {"alone": {"params": params, "body": body}},
        "mlps": {"nothing": {"body": {"y": "x"}}},
        "blocks": {"main": {"mixer": {"use": "alone"}, "mlp": {"use": "nothing"}}},
        "layers": ["1 main"],
    }


@pytest.fixture
def selftest(
    request: pytest.FixtureRequest, uncompiled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    """The self-test of a package whose kernels run on the CPU."""
    source = spec(*request.param)
    name = f"{source['name']}_{abs(hash(request.node.name)) % 10**6}"
    build(source, tmp_path / name, target="h100")
    found = imported(f"{name}.selftest", tmp_path)
    module = imported(f"{name}.{found.RECURRENCES[0].module}")
    kernels = imported(f"{module.__name__}_kernels")

    def fits(q: Tensor, v: Tensor) -> bool:
        return q.dtype in DTYPES and (q.shape[-1], v.shape[-1]) in module.KERNEL_SIZES

    def decode(*given: Any) -> Tensor:
        form = kernels if fits(given[0], given[2]) else module
        return form.decode_step(*given)

    monkeypatch.setattr(module, "_has_kernels", fits)
    module.chunk.register_kernel("cpu")(module._chunk_on_gpu)
    module.chunk_reverse.register_kernel("cpu")(module._chunk_reverse_on_gpu)
    module._library.impl("decode", decode, "CPU")
    monkeypatch.setattr(found, "reduced", lambda: None)  # the model's other kernels have tests of their own
    found.tested, found.kernels = module, kernels
    return found


def failures(selftest: ModuleType) -> list[str]:
    checks = list(selftest.run(torch.device("cpu"), dtypes=DTYPES, quick=True))
    assert len(checks) > 20
    failed = [str(check) for check in checks if not check.passed]
    print("\n".join(failed))
    return failed


CLASSES = [("head", "delta"), ("head", "none"), ("key", "delta"), ("key", "none"), ("rate", "none")]


@pytest.mark.parametrize(
    "selftest",
    [
        pytest.param(case, marks=pytest.mark.slow if case == CLASSES[0] else pytest.mark.library)
        for case in CLASSES
    ],
    indirect=True,
    ids="-".join,
)
def test_kernels_are_within_the_limits(selftest: ModuleType) -> None:
    assert failures(selftest) == []


@pytest.mark.parametrize("selftest", CLASSES[:1], indirect=True, ids="-".join)
@pytest.mark.slow
def test_a_kernel_that_errs_by_a_little_is_named(
    selftest: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousandth of the output is far beyond what rounding to float32 explains, and within float16's."""
    right = selftest.kernels.chunk_forward

    def wrong(*given: Any) -> Any:
        o, *rest = right(*given)
        return (o * (1 + 1e-3), *rest)

    monkeypatch.setattr(selftest.kernels, "chunk_forward", wrong)
    failed = failures(selftest)
    assert failed and all("float32   forward" in line or "float32   gradients" in line for line in failed)
    assert any("float32   forward" in line for line in failed)
