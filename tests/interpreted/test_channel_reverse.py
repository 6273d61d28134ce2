"""Gradients by Triton kernels where every key channel decays by itself, against the token loop in float64."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from archc.tiles.kind import RecurrenceKind
from archc.tiles.torch_source import emit
from archc.tiles.triton_channel_reverse import ChannelLaunch, channel_reverse_source, has_channel_reverse
from archc.tiles.triton_source import Launch, kernels
from tests.interpreted.test_backward import expected, found, poisoned, rounded
from tests.support.slow import mostly_slow
from tests.tiles.cases import Case, all_kinds, difference, label, make

torch.set_num_threads(1)
SEGMENT = 2  # so that short sequences have several
KINDS = [kind for kind in all_kinds() if kind == kind.core() and has_channel_reverse(kind)]
GATED = RecurrenceKind("key")
EXCLUSIVE = RecurrenceKind("key", read="exclusive")
DELTA = RecurrenceKind("key", "delta")
PAIR = RecurrenceKind("key", "pair", "previous")
HARD = [GATED, EXCLUSIVE, DELTA, PAIR]

Load = Callable[..., ModuleType]


def text_of(kind: RecurrenceKind, name: str, columns: int, channels: int) -> str:
    """The module of a class whose programs have so many value columns, and key channels."""
    launches = {"prepare": Launch(columns, 4, 1), "walk": Launch(columns, 4, 1)}
    reverse = channel_reverse_source(kind, ChannelLaunch(columns, channels, (4, 1), (4, 1)))
    return kernels(kind, name, launches, precision="ieee", segment=SEGMENT, reverse=reverse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("channel") / "channel_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for name in ("place", "tiling"):
        text = (Path(__file__).parents[2] / "templates" / "runtime" / f"{name}.py").read_text()
        (folder / f"{name}.py").write_text(text)
    sys.path.insert(0, str(folder.parent))
    return folder


@pytest.fixture(scope="module")
def load(folder: Path) -> Load:
    """The kernels of a class; `torch_form` is the module that has no kernels."""

    def load(
        kind: RecurrenceKind, columns: int = 16, channels: int = 16, torch_form: bool = False
    ) -> ModuleType:
        name = f"{label(kind)}_{'torch' if torch_form else f'{columns}_{channels}'}"
        path = folder / f"{name}.py"
        if not path.exists():
            path.write_text(emit(kind, name) if torch_form else text_of(kind, name, columns, channels))
            importlib.invalidate_caches()
        return importlib.import_module(f"channel_package.{name}")

    return load


def check(load: Load, case: Case, dtype: torch.dtype = torch.float32, **cut: int) -> None:
    """The kernels err at most a few times what the torch form errs, which has the same sums in another order.

    In half precision rows and scores are rounded before they meet, which the torch form's error has not: its own in
    half precision is that of rounded results alone. Each of the three products in a row adds one rounding.
    """
    case = rounded(case, dtype)
    wanted = expected(case)
    with poisoned():
        gradients = found(load(case.kind, **cut), case, dtype)
    reference = found(load(case.kind, torch_form=True), case, dtype)
    least = 4 * torch.finfo(dtype).eps if dtype != torch.float32 else 2**-20
    for name, gradient, other, exact in zip(case.names(), gradients, reference, wanted, strict=True):
        assert gradient.isfinite().all(), name
        limit = 8 * difference(other.double(), exact) + least
        assert gradient.shape == exact.shape
        off = difference(gradient.double(), exact)
        assert off < limit, (name, off, limit)


@pytest.mark.parametrize("kind", mostly_slow(KINDS, lambda kind: kind in (GATED, DELTA)), ids=label)
def test_rows(kind: RecurrenceKind, load: Load) -> None:
    """Three segments, the last one with a rest, states before and after."""
    check(load, make(kind, 300, K=16, V=16, batch=1, heads=(1, 1, 1)))
