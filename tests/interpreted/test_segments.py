"""Sequences that are walked in several places at once, for want of heads: however they are cut, the same comes out."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from archc.codegen.package import recurrence_name
from archc.kernels.counting.counter import counting
from archc.tiles.kind import RecurrenceKind
from archc.tiles.triton_source import Launch, kernels
from tests.interpreted.modules import poisoned
from tests.interpreted.test_forward import KINDS, SCALE, V, error, inputs, modules

QUICK = [RecurrenceKind("key"), RecurrenceKind("head", "delta")]
LENGTH, SHORT = 7 * 16 - 3, 4 * 16 - 3  # tokens of a row, in seven chunks; and where tests have to be quick
RAGGED = (0, 0, 1, 17, 17, 65)  # sequences of 0, 1, 16, 0 and 48 tokens, and more tokens behind the last
# (chunks of a span, whether rows are packed and continue)
CUTS = [(1, True), (1, False)]
MORE = [cut for cut in product((1, 2, 3, 4, 100), (False, True)) if cut not in CUTS]
READ = """

@triton.jit
def read(x, start, found, heads: tl.constexpr):
    inside_C = tl.arange(0, 16) % 13 == 2
    tl.store(found + tl.arange(0, 16), scalars(x, start, inside_C, 5, heads, heads))
"""
DTYPES = {"float32": torch.float32, "float16": torch.float16}


def cases() -> list[pytest.ParameterSet]:
    """Two classes with one cut each run with every change; the slow tests have each class with two of the cuts, and
    each cut with several classes; `make library` has all.
    """
    cuts = [*CUTS, *MORE]
    found = []
    for (row, kind), (column, name) in product(enumerate(KINDS), enumerate(DTYPES)):
        chosen = cuts[(3 * row + 5 * column) % len(cuts)]
        found += [case(kind, name, *cut, slow=cut == chosen) for cut in cuts]
    return found


def case(kind: RecurrenceKind, name: str, chunks: int, packed: bool, slow: bool) -> pytest.ParameterSet:
    """A class in a dtype with a cut, in one of the three suites."""
    plain = replace(kind, chunk=64)
    quick = plain in QUICK and name == "float32" and (chunks, packed) == CUTS[QUICK.index(plain)]
    label = f"{recurrence_name(kind)}-{name}-{chunks}-{'packed' if packed else 'rows'}"
    marks = () if quick else pytest.mark.slow if slow else pytest.mark.library
    length = RAGGED[-1] + 5 if packed else SHORT if quick else LENGTH
    values = replace(kind, chunk=16), DTYPES[name], chunks, packed, length
    return pytest.param(*values, id=label, marks=marks)


def results(
    module: ModuleType, given: list[Tensor], state: Tensor | None, cu_seqlens: Tensor | None
) -> list[Tensor]:
    """Outputs, last states, kept states and what else the backward needs; memory that nobody wrote is NaN."""
    with poisoned():
        return list(module.chunk_forward(*given, state, cu_seqlens, SCALE))


@pytest.mark.parametrize(("kind", "dtype", "chunks", "packed", "length"), cases())
def test_all_segmentations_agree(
    kind: RecurrenceKind,
    dtype: torch.dtype,
    chunks: int,
    packed: bool,
    length: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seven spans, four, three, two, or one that is longer than a sequence; rows, and packed ones that continue.

    The loop over tokens says what is right; states for the backward are those of the walk over whole sequences.
    """
    torch_form, made = modules(kind, tmp_path)
    torch.manual_seed(0)
    given = inputs(kind, 1, length, 1, hard=False)
    given = [x[..., :24] if x.shape[-1] == V else x for x in given]  # two blocks of value columns
    if kind.decay != "none":
        given[3] *= 0.1  # so that a state is remembered for several spans
    given = [x.to(dtype) for x in given[:3]] + given[3:]
    cu_seqlens = torch.tensor(RAGGED) if packed else None
    state = torch.randn(len(RAGGED) - 1, 1, given[0].shape[3], given[2].shape[3]) if packed else None
    wide = [None if x is None else x.double() for x in (*given, state)]
    exact = torch_form.token_loop(*wide, cu_seqlens, SCALE)
    theirs = results(torch_form, given, state, cu_seqlens)[:2]
    hardness = max(error(got, want) for got, want in zip(theirs, exact, strict=True))
    rounding = 4 * torch.finfo(torch.float16).eps if dtype == torch.float16 else 0
    allowed = 1.5 * hardness + rounding + torch.finfo(torch.float32).eps

    whole = results(made, given, state, cu_seqlens)
    monkeypatch.setattr(made, "span_of", lambda *_: chunks * made.CHUNK)
    with counting():  # which finds races, and what lies outside of tensors
        found = results(made, given, state, cu_seqlens)
    for got, want in zip(found[:2], exact, strict=True):
        assert error(got, want) <= allowed
    for got, want in zip(found[2:], whole[2:], strict=True):
        assert torch.equal(got.isnan(), want.isnan())
        assert error(got.nan_to_num(), want.double().nan_to_num()) <= 2 * allowed


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """Kernels for a GPU with 132 multiprocessors."""
    kind = RecurrenceKind("head")
    launches = {"prepare": Launch(0, 4, 1), "walk": Launch(128, 8, 1), "carry": Launch(32, 8, 1)}
    path = tmp_path_factory.mktemp("launcher") / "head_decay_kernels_of_132.py"
    path.write_text(kernels(kind, "head_decay", launches, multiprocessors=132) + READ)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("tokens", "sequences", "programs", "spans"),
    [
        (8192, 1, 96, 1),  # enough heads
        (2 * 16384, 2, 16, 4),  # 32 programs would leave a hundred multiprocessors idle
        (4 * 2048, 4, 16, 1),  # 64 would as well, but two spans gain less than the walk ahead costs
        (131072, 1, 4, 33),
        (131072, 1, 132, 1),
        (131072, 1, 200, 1),
        (8192, 1, 4, 8),  # no span is shorter than 16 chunks
        (2048, 1, 4, 1),
        (1, 1, 1, 1),
        (0, 1, 1, 1),
        (0, 0, 1, 0),
    ],
)
def test_spans_are_as_many_as_multiprocessors_are_idle(
    launcher: ModuleType, tokens: int, sequences: int, programs: int, spans: int
) -> None:
    span = launcher.span_of(tokens, sequences, programs)
    assert span % launcher.CHUNK == 0
    if spans <= 1:
        assert span > tokens  # so that sequences n have the numbers n
    else:
        assert -(-tokens // sequences // span) == spans
        assert spans * sequences * programs <= 132


def test_no_offset_wraps_behind_two_billion_elements(launcher: ModuleType) -> None:
    """Numbers a token of 2^16 heads: at token 2^15 + 3 the offset has more than 31 bits."""
    heads, start = 1 << 16, (1 << 15) + 3
    # Memory that is never touched costs nothing. An offset that wraps meets what lies before the tensor: zeros.
    around = torch.empty(2 * (start + 16) * heads, dtype=torch.int8)
    x = around[around.numel() // 2 :]
    for at in (start + 2, start + 15):
        x[at * heads + 5] = at - start
    found = torch.full((16,), -1.0)
    launcher.read[1,](x, start, found, heads)
    assert found.tolist() == [0, 0, 2, *[0] * 12, 15]
