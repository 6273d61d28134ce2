"""The elementwise functions that kernels have of their own, interpreted, beside torch in float64 at extremes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from archc.kernels.triton_functions import FUNCTIONS, HELPERS

EXACT = {
    "log1p": torch.log1p, "expm1": torch.expm1, "tanh": torch.tanh, "softplus": F.softplus, "silu": F.silu,
    "elu": F.elu, "square": torch.square, "logsigmoid": F.logsigmoid, "sigmoid": torch.sigmoid, "relu": F.relu,
    "reciprocal": torch.reciprocal,
}  # fmt: skip
SIZES = torch.tensor([0.0, 1e-30, 1e-8, 1e-4, 0.1, 0.5, 0.999, 1.0, 1.5, 5.0, 19.0, 21.0, 80.0])


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    text = "import triton\nimport triton.language as tl\n" + "".join(HELPERS.values())
    for name in EXACT:
        text += (
            f"\n\n@triton.jit\ndef kernel_{name}(x, y, N: tl.constexpr):\n    at = tl.arange(0, N)\n"
            f"    a = tl.load(x + at)\n    tl.store(y + at, {FUNCTIONS[name].triton.format('a')})\n"
        )
    path = tmp_path_factory.mktemp("functions") / "functions.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location("functions", Path(path))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", EXACT)
def test_values(kernels: ModuleType, name: str) -> None:
    """Every digit of small results, and no overflow on the way to large ones."""
    x = torch.cat([SIZES, -SIZES])
    if name == "log1p":
        x = x[x > -1]
    if name == "reciprocal":
        x = x[x.abs() > 1e-20]
    x = F.pad(x, (0, 32 - len(x)), value=1.0)
    y = torch.full_like(x, float("nan"))
    getattr(kernels, f"kernel_{name}")[(1,)](x, y, 32)
    exact = EXACT[name](x.double())  # type: ignore[operator]
    # Relative for what is small by itself; tanh and sigmoid end in a sum with one.
    size = exact.abs().clamp(min=1.0 if name == "tanh" else 1e-37)
    assert float(((y.double() - exact).abs() / size).max()) <= 8 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("name", [name for name in EXACT if FUNCTIONS[name].zero((True,))])
def test_zero_stays_zero(kernels: ModuleType, name: str) -> None:
    """What is said to be zero outside of a mask is."""
    x, y = torch.zeros(32), torch.full((32,), float("nan"))
    getattr(kernels, f"kernel_{name}")[(1,)](x, y, 32)
    assert bool((y == 0).all())
