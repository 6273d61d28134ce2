"""Recurrences that divide by a normaliser: kernels and torch form with it beside the state, against the token loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from archc.codegen.format import format_files
from archc.codegen.package import recurrence_name, runtime_path
from archc.kernels.bytes import planned
from archc.kernels.counting.counter import counting
from archc.tiles.kind import RecurrenceKind
from archc.tiles.torch_source import emit
from archc.tiles.triton_reverse import ReverseLaunch, reverse_source
from archc.tiles.triton_source import Launch, kernels
from archc.tiles.triton_spans_back import ahead_by_head
from tests.interpreted.modules import poisoned
from tests.support.imports import imported
from tests.support.slow import mostly_slow

K, V, H, COLUMNS, SEGMENT = 24, 40, 2, 32, 2
SCALE, EPS = 0.3, 1e-3
BORDERS = torch.tensor([0, 0, 1, 34, 34, 55])
KINDS = {
    "sum": RecurrenceKind(normalize="sum", chunk=16),
    "maximum": RecurrenceKind("head", normalize="max", log_input=True, chunk=16),
    "channels": RecurrenceKind("key", normalize="sum", read="exclusive", chunk=16),
}
KINDS["heads"] = RecurrenceKind("head", normalize="sum", chunk=16)
CASES = [*mostly_slow(KINDS, lambda name: name == "maximum")]
Modules = tuple[ModuleType, ModuleType]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Modules]:
    """The module of a class and that of its kernels, as they stand in a package."""

    @cache
    def load(
        name: str, columns: int = COLUMNS, segment: int = SEGMENT, halves: bool = False, spans: bool = False
    ) -> Modules:
        kind = KINDS[name]
        module = recurrence_name(kind)
        reverse = (
            reverse_source(kind, ReverseLaunch(columns, (4, 1), (4, 1), 16, 16))
            if kind.decay != "key" and not spans
            else ""
        )
        if spans:  # of which those that walk ahead on the way back have twice the columns
            launch = ReverseLaunch(columns // 2, (4, 1), (4, 1), 16, 16, ahead=columns)
            reverse = reverse_source(kind, launch, ahead_by_head(kind, "AHEAD_COLUMNS"))
        launches = {"prepare": Launch(0, 4, 1), "walk": Launch(columns, 4, 1, halves=halves)}
        launches |= {"carry": Launch(16, 4, 1)} if spans else {}
        files = {
            "__init__.py": "",
            f"{module}.py": emit(kind, module, kernel_sizes=[(K, V)]),
            f"{module}_kernels.py": kernels(kind, module, launches, segment=segment, reverse=reverse),
        }
        package = tmp_path_factory.mktemp("made") / f"normalized_{name}_{columns}_{segment}_{halves}_{spans}"
        package.mkdir()
        for file, text in format_files(files).items():
            (package / file).write_text(text)
        for runtime in ("place", "state", "tiling", "torch_form"):
            (package / f"{runtime}.py").write_text(runtime_path(runtime).read_text())
        torch_form = imported(f"{package.name}.{module}", package.parent)
        torch_form.SEGMENT = segment
        made = imported(f"{package.name}.{module}_kernels", package.parent)
        if reverse:  # the vector in two parts, of which the second one is not full
            assert made.VECTOR_CHANNELS > K
            made.VECTOR_CHANNELS = 16
        return torch_form, made

    return load


def inputs(kind: RecurrenceKind, T: int, B: int = 1) -> list[Tensor]:
    """Operands of the operation in float32, keys that a sum of weights does not cancel; decays reach 0 and -50."""
    found = [torch.randn(B, T, 1, K).abs(), torch.randn(B, T, H, K).abs(), torch.randn(B, T, H, V)]
    if kind.decay != "none":
        decay = -0.5 * torch.rand(B, T, H, *((K,) if kind.decay == "key" else ()))
        decay[:, ::3], decay[:, 5::11] = 0, -50
        found.append(decay)
    if kind.normalize == "max":
        found += [torch.rand(B, T, H), torch.rand(B, T, H)]
    return found


def states(N: int) -> tuple[Tensor, Tensor]:
    return torch.randn(N, H, K, V), torch.rand(N, H, K)


def definition(
    module: ModuleType, kind: RecurrenceKind, given: list[Tensor], start: tuple[Tensor, Tensor] | None,
    cu_seqlens: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    """One more column of v through the loop over tokens; the last column divides the others."""
    q, k, v, *rest = given
    wide = F.pad(v, (0, 1), value=1.0)
    if kind.normalize == "max":
        weight, floor = rest[-2:]
        wide, rest = wide * weight[..., None], rest[:-2]
    both = None if start is None else torch.cat([start[0], start[1][..., None]], -1)
    o, final = module.token_loop(q, k, wide, *rest, both, cu_seqlens, SCALE)
    z = o[..., -1]
    divisor = torch.maximum(z.abs(), floor) if kind.normalize == "max" else z
    return [o[..., :-1] / (divisor + EPS)[..., None], final[..., :-1], final[..., -1]]


def reach(kind: RecurrenceKind, given: list[Tensor]) -> float:
    """The largest running sum of a decay in a chunk: kernels hold it in float32, torch sums in float64 on a CPU."""
    if kind.decay == "none":
        return 0.0
    padded = F.pad(given[3].transpose(1, -1), (0, -given[3].shape[1] % kind.chunk))
    return float(padded.unflatten(-1, (-1, kind.chunk)).sum(-1).abs().max())


def error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).abs().max() / want.abs().max().clamp(min=1e-9))


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float32, id="float32"),
        pytest.param(torch.float16, id="float16", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_states(made: Callable[..., Modules], name: str, dtype: torch.dtype) -> None:
    """Dense rows without a state, and packed ones that continue; among them empty sequences and one of one token."""
    assert_right(KINDS[name], dtype, *made(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_halves(made: Callable[..., Modules], name: str) -> None:
    """The walk of large heads, whose state and vector are in two halves; the second one is not full here."""
    assert_right(KINDS[name], torch.float32, *made(name, halves=True))


def assert_right(
    kind: RecurrenceKind, dtype: torch.dtype, torch_form: ModuleType, module: ModuleType
) -> None:
    """Outputs and last states of the kernels against the definition."""
    for B, T, cu_seqlens in ((2, 19, None), (1, 60, BORDERS)):
        torch.manual_seed(T)
        given = inputs(kind, T, B)
        given = [x.to(dtype) for x in given[:3]] + given[3:]
        start = None if cu_seqlens is None else states(5)
        wide = None if start is None else tuple(x.double() for x in start)
        want = definition(torch_form, kind, [x.double() for x in given], wide, cu_seqlens)
        both = start or (None, None)
        with poisoned():
            ours = module.normalized_forward(*given, *both, cu_seqlens, SCALE, EPS)
        theirs = torch_form.normalized_forward(*given, *both, cu_seqlens, SCALE, EPS)
        end = T if cu_seqlens is None else int(cu_seqlens[-1])
        rounding = 8 * torch.finfo(torch.float16).eps if dtype == torch.float16 else 0
        hardness = max(error(got[:, :end] if i == 0 else got, exact[:, :end] if i == 0 else exact)
                       for i, (got, exact) in enumerate(zip(theirs, want)))  # fmt: skip
        assert hardness < 1e-5 or dtype == torch.float16
        for i, (got, exact) in enumerate(zip(ours, want)):
            cut = slice(None, end if i == 0 else None)
            allowed = 1.5 * hardness + rounding + torch.finfo(torch.float32).eps * (1 + reach(kind, given))
            assert error(got[:, cut], exact[:, cut]) <= allowed


@pytest.mark.parametrize("name", CASES)
def test_gradients_start_again_from_the_states_that_kernels_kept(
    made: Callable[..., Modules], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operation in float64 has the gradients of the definition, from what either forward kept."""
    kind = KINDS[name]
    torch_form, _ = made(name)
    torch.manual_seed(1)
    given = [x.double().requires_grad_() for x in inputs(kind, 60)]
    start = tuple(x.double().requires_grad_() for x in states(5))
    leaves = [x for i, x in enumerate(given) if not (kind.normalize == "max" and i == len(given) - 1)]
    wanted = definition(torch_form, kind, given, start, BORDERS)
    wanted[0] = wanted[0][:, : BORDERS[-1]]
    slopes = [torch.randn_like(x) for x in wanted]
    want = torch.autograd.grad(wanted, [*leaves, *start], slopes)
    found = list(torch_form.normalized(*given, *start, BORDERS, SCALE, EPS)[:3])
    found[0] = found[0][:, : BORDERS[-1]]
    got = torch.autograd.grad(found, [*leaves, *start], slopes)
    for mine, exact in zip(got, want, strict=True):
        assert error(mine, exact) < 1e-12


def test_the_backward_reads_what_the_kernels_keep(made: Callable[..., Modules]) -> None:
    """States, sums and outputs of the kernels, given to the backward in the torch form."""
    torch_form, module = made("maximum")
    torch.manual_seed(2)
    given, start = inputs(KINDS["maximum"], 60), states(5)
    results = [form.normalized_forward(*given, *start, BORDERS, SCALE, EPS) for form in (torch_form, module)]
    slopes = slopes_of(results[0])
    gradients = [
        torch_form.normalized_backward(*slopes, *given, BORDERS, found[0], *found[3:], SCALE, EPS)
        for found in results
    ]
    for theirs, ours in zip(*gradients, strict=True):
        assert error(ours, theirs.double()) < 1e-4


def slopes_of(results: Sequence[Tensor], borders: Tensor | None = BORDERS) -> list[Tensor]:
    """What outputs and both final states receive; nothing behind the last sequence."""
    found = [torch.randn_like(x) for x in results[:3]]
    if borders is not None:
        found[0][:, borders[-1] :] = 0
    return found


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param("maximum", torch.float32, id="maximum-float32"),
        pytest.param("sum", torch.float32, id="sum-float32", marks=pytest.mark.slow),
        pytest.param("maximum", torch.float16, id="maximum-float16", marks=pytest.mark.slow),
        pytest.param("heads", torch.float32, id="heads-float32", marks=pytest.mark.slow),
    ],
)
def test_gradients_of_the_kernels(made: Callable[..., Modules], name: str, dtype: torch.dtype) -> None:
    """Two walks, in two blocks of value columns, against the torch form in float64."""
    torch.manual_seed(4)
    given = [x.to(dtype) if i < 3 else x for i, x in enumerate(inputs(KINDS[name], 60))]
    assert_right_both_ways(KINDS[name], *made(name), given, states(5), BORDERS)


def spans() -> list[pytest.ParameterSet]:
    """Chunks of a span, and whether rows are packed: one case with every change, one more of each class if slow."""
    found = []
    for row, name in enumerate(("maximum", "sum", "heads")):
        for column, (chunks, packed) in enumerate(product((1, 2, 3, 100), (True, False))):
            quick, slow = name == "maximum" and column == 0, column == 2 * row + 1
            marks = () if quick else pytest.mark.slow if slow else pytest.mark.library
            label = f"{name}-{chunks}-{'packed' if packed else 'rows'}"
            found.append(pytest.param(name, chunks, packed, id=label, marks=marks))
    return found


@pytest.mark.parametrize(("name", "chunks", "packed"), spans())
def test_all_segmentations_agree(
    made: Callable[..., Modules], name: str, chunks: int, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spans of one chunk, of two, three, or longer than a sequence, forth and back; the vector goes with the state."""
    kind = KINDS[name]
    torch_form, module = made(name, spans=True)
    monkeypatch.setattr(module, "span_of", lambda *_: chunks * module.CHUNK)
    torch.manual_seed(6)
    given = inputs(kind, 60, 1 if packed else 2)
    if kind.decay != "none":
        given[3] *= 0.1  # so that what was written lasts for several spans
    with counting():  # which finds races, and what lies outside of tensors
        assert_right_both_ways(
            kind, torch_form, module, given, states(5 if packed else 2), BORDERS if packed else None
        )


def assert_right_both_ways(
    kind: RecurrenceKind,
    torch_form: ModuleType,
    module: ModuleType,
    given: list[Tensor],
    start: tuple[Tensor, Tensor],
    borders: Tensor | None,
) -> None:
    """Outputs, last states and gradients of the kernels against the torch form in float64."""

    def results(form: ModuleType, wide: torch.dtype | None) -> list[Tensor]:
        moved = [x if wide is None else x.to(wide) for x in given]
        first = [x.float() if wide is None else x.to(wide) for x in start]
        with poisoned():
            found = form.normalized_forward(*moved, *first, borders, SCALE, EPS)
            torch.manual_seed(5)
            slopes = [x.to(y.dtype) for x, y in zip(slopes_of([x.double() for x in found], borders), found)]
            back = form.normalized_backward(*slopes, *moved, borders, found[0], *found[3:], SCALE, EPS)
        return [*found[:3], *back]

    want, theirs, ours = (
        results(torch_form, torch.float64),
        results(torch_form, torch.float32),
        results(module, None),
    )
    dtype = given[0].dtype
    hardness = max(error(got, exact) for got, exact in zip(theirs, want, strict=True))
    assert hardness < 1e-4
    rounding = 16 * torch.finfo(torch.float16).eps if dtype == torch.float16 else 0
    for got, exact in zip(ours, want, strict=True):
        allowed = 1.5 * hardness + rounding + torch.finfo(torch.float32).eps * (1 + reach(kind, given))
        assert error(got, exact) <= allowed


@pytest.mark.parametrize("name", CASES)
def test_the_operation_is_one(made: Callable[..., Modules], name: str) -> None:
    """Shapes without values, gradients, no aliases: as torch asks of an operation."""
    torch.manual_seed(3)
    given = [x.requires_grad_() for x in inputs(KINDS[name], 35)]
    if KINDS[name].normalize == "max":
        given[-1] = given[-1].detach()
    torch.library.opcheck(made(name)[0].normalized, (*given, *states(1), None, SCALE, EPS))


@pytest.mark.parametrize(
    ("name", "halves", "spans"),
    [
        *((name, False, False) for name in KINDS),
        *(pytest.param(name, True, False, marks=pytest.mark.slow) for name in KINDS),
        *((name, False, True) for name in KINDS if name != "channels"),  # which are walked whole
    ],
)
def test_the_bytes_are_those_of_the_plan(
    made: Callable[..., Modules], name: str, halves: bool, spans: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Launch by launch and to the byte, with a state for every chunk; and nothing runs beside the kernels."""
    kind = KINDS[name]
    _, module = made(name, 64, 1, halves, spans)
    if spans:
        monkeypatch.setattr(module, "span_of", lambda *_: module.CHUNK)
    launches = []
    for T in (3 * kind.chunk, 4 * kind.chunk):
        given = [x.half() if i < 3 else x for i, x in enumerate(inputs(kind, T))]
        given[0] = given[0].expand(-1, -1, H, -1).contiguous()
        with counting() as counted:
            module.normalized_forward(*given, None, None, None, SCALE, EPS)
        assert counted.others == []
        launches.append({launch.name: launch for launch in counted.launches})
    short, long = launches
    found = {n: (long[n].distinct - short[n].distinct) / kind.chunk / H for n in long}
    assert found == planned(kind, K, V, segment=1, span=1 if spans else None, halves=halves)
