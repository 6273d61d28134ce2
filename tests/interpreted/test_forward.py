"""The forward kernels of every class of recurrence over chunks, against the token loop in float64."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from archc.codegen.format import format_files
from archc.codegen.package import recurrence_name, runtime_path
from archc.tiles.kind import DECAYS, ERASES, RecurrenceKind, form_of
from archc.tiles.torch_source import emit
from archc.tiles.triton_halves import has_halves
from archc.tiles.triton_source import Launch, kernels
from tests.interpreted.modules import poisoned
from tests.support.imports import imported
from tests.support.slow import mostly_slow

K, V, COLUMNS, SEGMENT = 24, 40, 16, 2
SCALE = 0.3
KINDS = [
    kind
    for decay, erase, erase_from, read in itertools.product(
        DECAYS, ERASES, ("previous", "decayed"), ("inclusive", "exclusive")
    )
    for kind in [RecurrenceKind(decay, erase, erase_from, read, chunk=32)]
    if decay != "constant" and form_of(kind).form == "chunk"
]
# One class for each rule of the printer; the slow tests have all, `make library` has them in float16 too.
FEW = [
    RecurrenceKind("head", "delta", chunk=32),
    RecurrenceKind("key", "pair", "previous", "exclusive", chunk=64),
    RecurrenceKind("value", chunk=32),
    RecurrenceKind("none", "delta", read="exclusive", chunk=64),
]
CASES = [*FEW, *(kind for kind in KINDS if kind not in FEW)]


def modules(kind: RecurrenceKind, folder: Path, halves: bool = False) -> tuple[ModuleType, ModuleType]:
    """The module of a class and that of its kernels, as they stand in a package."""
    name = recurrence_name(kind)
    launches = {
        "prepare": Launch(0, 4, 1, channels=16),
        "walk": Launch(COLUMNS, 4, 1, halves=halves),
        "carry": Launch(32, 4, 1),
    }
    files = {
        "__init__.py": "",
        f"{name}.py": emit(kind, name),
        f"{name}_kernels.py": kernels(kind, name, launches, segment=SEGMENT),
    }
    package = folder / f"made_{name}"
    package.mkdir()
    for file, text in format_files(files).items():
        (package / file).write_text(text)
    for runtime in ("place", "state", "tiling"):
        (package / f"{runtime}.py").write_text(runtime_path(runtime).read_text())
    return imported(f"{package.name}.{name}", folder), imported(f"{package.name}.{name}_kernels", folder)


def inputs(kind: RecurrenceKind, B: int, T: int, H: int, hard: bool) -> list[Tensor]:
    """q, k, v and gates. Hard: runs of equal keys, beta to 1.99, decay 0 and -50."""
    core = kind.core()
    q, k = torch.randn(B, T, max(H // 2, 1), K), F.normalize(torch.randn(B, T, H, K), dim=-1)
    if hard:
        k[:, T // 4 : T // 2] = k[:, T // 4 : T // 4 + 1]
    found = [q, k, torch.randn(B, T, H, V)]
    if core.decay != "none":
        decay = -0.5 * torch.rand(B, T, H, *{"head": (), "key": (K,), "value": (V,)}[core.decay])
        if hard:
            decay[:, ::3], decay[:, 5::11] = 0, -50
        found.append(decay)
    if core.erase == "delta":
        found.append(torch.rand(B, T, H) * (1.99 if hard else 1))
    if core.erase == "pair":
        r = F.normalize(torch.randn(B, T, H, K), dim=-1)
        found += [-r * torch.rand(B, T, H, 1) * (1.99 if hard else 1), r]
    return found


def error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).abs().max() / want.abs().max().clamp(min=1e-9))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *mostly_slow([(kind, torch.float32) for kind in CASES[::2]], lambda case: case[0] in FEW[::2]),
        *mostly_slow([(kind, torch.float32) for kind in CASES[1::2]], lambda case: False, "library"),
        pytest.param(FEW[0], torch.float16, marks=pytest.mark.slow),
        *mostly_slow([(kind, torch.float16) for kind in CASES[1:]], lambda case: False, "library"),
    ],
    ids=lambda value: recurrence_name(value) if isinstance(value, RecurrenceKind) else str(value)[6:],
)
def test_forward(kind: RecurrenceKind, dtype: torch.dtype, tmp_path: Path) -> None:
    """Dense rows without a state, and packed ones that continue; among them empty sequences and one of one token."""
    assert_right(kind, dtype, *modules(kind, tmp_path))


HALVED = [
    RecurrenceKind("head", chunk=32),
    RecurrenceKind("head", "delta", chunk=32),
    RecurrenceKind("none", "pair", "previous", "exclusive", chunk=32),
    RecurrenceKind("key", chunk=32),
    RecurrenceKind("head", "pair", "previous", chunk=32),
    RecurrenceKind("key", "pair", "previous", chunk=32),
]
OTHERS = [kind for kind in KINDS if has_halves(kind) and kind not in HALVED]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *mostly_slow([(kind, torch.float32) for kind in HALVED], lambda case: case[0] == HALVED[0]),
        *mostly_slow([(kind, torch.float32) for kind in OTHERS], lambda case: False, "library"),
        *mostly_slow([(kind, torch.float16) for kind in HALVED], lambda case: False, "library"),
    ],
    ids=lambda value: recurrence_name(value) if isinstance(value, RecurrenceKind) else str(value)[6:],
)
def test_halves(kind: RecurrenceKind, dtype: torch.dtype, tmp_path: Path) -> None:
    """The walk of large heads, whose state is in two halves of the key channels; the second one is not full here."""
    assert_right(kind, dtype, *modules(kind, tmp_path, halves=True))


def assert_right(kind: RecurrenceKind, dtype: torch.dtype, torch_form: ModuleType, made: ModuleType) -> None:
    """Outputs and last states of the kernels against the token loop."""
    for B, T, cu_seqlens in ((2, 70, None), (1, 150, torch.tensor([0, 0, 1, 66, 66, 140]))):
        torch.manual_seed(T)
        given = inputs(kind, B, T, 2, hard=cu_seqlens is not None)
        given = [x.to(dtype) for x in given[:3]] + given[3:]
        state = None if cu_seqlens is None else torch.randn(5, 2, V, K).mT  # not contiguous
        wide = [x.double() for x in given]
        want, last = torch_form.token_loop(
            *wide, None if state is None else state.double(), cu_seqlens, SCALE
        )
        ours, theirs = chunked(made, given, state, cu_seqlens), chunked(torch_form, given, state, cu_seqlens)
        # How hard the inputs are, the torch form in float32 says; and products of float16 operands round.
        hardness = max(error(got, exact) for got, exact in zip(theirs, (want, last), strict=True))
        rounding = 4 * torch.finfo(torch.float16).eps if dtype == torch.float16 else 0
        for got, exact in zip(ours, (want, last), strict=True):
            assert error(got, exact) <= 1.5 * hardness + rounding + torch.finfo(torch.float32).eps


def chunked(
    module: ModuleType, given: list[Tensor], state: Tensor | None, cu_seqlens: Tensor | None
) -> list[Tensor]:
    """Outputs and last states, memory that nobody wrote being NaN."""
    with poisoned():
        return list(module.chunk_forward(*given, state, cu_seqlens, SCALE)[:2])
