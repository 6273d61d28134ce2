"""Gradients by Triton kernels where every key channel decays by itself, against the token loop in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from archc.tiles.kind import RecurrenceKind
from archc.tiles.torch_source import emit
from archc.tiles.triton_channel_reverse import ChannelLaunch, channel_reverse_source, has_channel_reverse
from archc.tiles.triton_source import Launch, kernels
from tests.interpreted.judge import Load, agree, expected, found, rounded
from tests.support.imports import imported
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


def text_of(
    kind: RecurrenceKind, name: str, columns: int, channels: int, halves: bool = False, guarded: bool = False
) -> str:
    """The module of a class whose programs have so many value columns, and key channels.

    halves: of the forward. guarded: chunks of the first walk stand in a condition, as tensor memory has them.
    """
    launches = {"prepare": Launch(columns, 4, 1), "walk": Launch(columns, 4, 1, halves=halves)}
    reverse = channel_reverse_source(kind, ChannelLaunch(columns, channels, (4, 1), (4, 1), guarded))
    return kernels(kind, name, launches, precision="ieee", segment=SEGMENT, reverse=reverse)


@pytest.fixture(scope="module")
def load(folder: Path) -> Load:
    """The kernels of a class; `torch_form` is the module that has no kernels."""

    def load(
        kind: RecurrenceKind,
        columns: int = 16,
        channels: int = 16,
        torch_form: bool = False,
        **more: bool,
    ) -> ModuleType:
        cut = "_".join((f"{columns}_{channels}", *more))
        name = f"{label(kind)}_{'torch' if torch_form else cut}"
        path = folder / f"{name}.py"
        if not path.exists():
            path.write_text(
                emit(kind, name) if torch_form else text_of(kind, name, columns, channels, **more)
            )
        return imported(f"{folder.name}.{name}", folder.parent)

    return load


def check(load: Load, case: Case, dtype: torch.dtype = torch.float32, **cut: int) -> None:
    """Rows and scores are rounded before they meet, and there are three products in a row."""
    agree(load, case, dtype, 4, **cut)


@pytest.mark.parametrize("kind", mostly_slow(KINDS, lambda kind: kind in (GATED, DELTA)), ids=label)
def test_rows(kind: RecurrenceKind, load: Load) -> None:
    """Two segments, the last one with a rest, states before and after."""
    kind = replace(kind, chunk=16)
    check(load, make(kind, 40, K=16, V=16, batch=1, heads=(1, 1, 1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("kind", mostly_slow(HARD, lambda kind: kind is EXCLUSIVE), ids=label)
def test_small_chunks(kind: RecurrenceKind, dtype: torch.dtype, load: Load) -> None:
    """Chunks of 16 tokens, two rows of the batch, widths that are no powers of two, blocks of values and of keys."""
    check(load, make(replace(kind, chunk=16), 37, K=24, V=24, heads=(1, 1, 1)), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("kind", mostly_slow(HARD, lambda kind: kind is GATED), ids=label)
def test_packed(kind: RecurrenceKind, dtype: torch.dtype, load: Load) -> None:
    """Sequences of one token, none, a chunk, and several segments; tokens behind the last one; shared heads."""
    kind = replace(kind, chunk=16)
    check(load, make(kind, 60, (0, 1, 1, 35, 58), K=16, V=16, heads=(2, 2, 1)), dtype)


@pytest.mark.slow
def test_after_a_forward_in_halves(load: Load) -> None:
    """As for wide heads: what the forward keeps is read by blocks of values and of keys."""
    case = make(replace(GATED, chunk=16), 37, (0, 1, 1, 20, 35), K=64, V=32, heads=(1, 1, 1))
    check(load, case, channels=32, halves=True, guarded=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", HARD, ids=label)
def test_grouped_heads(kind: RecurrenceKind, load: Load) -> None:
    check(load, make(kind, 70, K=16, V=32, heads=(1, 2, 4), batch=1))


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0.0, -50.0])
@pytest.mark.parametrize("kind", HARD, ids=label)
def test_decays(kind: RecurrenceKind, decay: float, load: Load) -> None:
    """No decay, and one so strong that its own gradient is nothing."""
    check(load, make(kind, 150, K=16, V=16, decay=decay, batch=1, heads=(1, 1, 1)))


@pytest.mark.parametrize("kind", mostly_slow(HARD, lambda kind: kind is GATED), ids=label)
def test_the_gradient_of_a_strong_decay(kind: RecurrenceKind, load: Load) -> None:
    """Channels that keep, lose half, and lose nearly all: no small gradient is the rest of larger numbers.

    Two blocks of 16 tokens in a chunk, so that pairs of both blocks are there as well.
    """
    case = make(replace(kind, chunk=32), 50, K=16, V=16, batch=1, heads=(1, 1, 1))
    channel_K = torch.arange(16)
    case.tensors["decay"].data[:] = torch.tensor([0.0, -0.7, -20.0, -80.0])[channel_K % 4].double()
    case = rounded(case, torch.float32)
    at = case.names().index("decay")
    gradient, exact = found(load(case.kind), case, torch.float32)[at], expected(case)[at]
    for rate in range(4):  # each on its own scale, down to e^-80
        mine, theirs = (x[..., channel_K % 4 == rate].double() for x in (gradient, exact))
        assert (mine - theirs).abs().max() < 2**-14 * theirs.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize(("cosine", "beta"), [(0.99, 1.0), (1.0, 1.0), (0.5, 1.99)])
@pytest.mark.parametrize("kind", [DELTA, PAIR], ids=label)
def test_like_keys(kind: RecurrenceKind, cosine: float, beta: float, load: Load) -> None:
    check(load, make(kind, 150, K=16, V=16, cosine=cosine, beta=beta, decay=-0.01, batch=1, heads=(1, 1, 1)))


@pytest.mark.parametrize("kind", HARD, ids=label)
def test_the_torch_form_beside_kernels_keeps_what_they_keep(
    kind: RecurrenceKind, load: Load, folder: Path
) -> None:
    """One operation has both: sizes without kernels take the torch form, which then has the scores as well."""
    kind = replace(kind, chunk=16)
    name = f"{label(kind)}_beside"
    (folder / f"{name}.py").write_text(emit(kind, name, kernel_sizes=[(64, 64)], reverse_kernels=True))
    beside = imported(f"{folder.name}.{name}", folder.parent)
    case = rounded(make(kind, 40, K=16, V=16, batch=1, heads=(1, 1, 1)), torch.float32)
    alone = load(kind, torch_form=True)
    pairs = zip(found(beside, case, torch.float32), found(alone, case, torch.float32), strict=True)
    assert all(torch.equal(gradient, other) for gradient, other in pairs)
    given = [x.detach().float() for x in case.tensors.values()]
    made = [module.chunk_forward(*given, None, None, 1.0) for module in (beside, load(kind))]
    assert [x.dim() for x in made[0][3:]] == [3] * len(made[1][3:])


@pytest.mark.slow
@pytest.mark.parametrize("length", [300, 1500])
def test_a_long_sequence_in_half_precision(length: int, load: Load) -> None:
    """The decay's gradient, anchored in every segment, errs no more in a long sequence than in a short one."""
    case = rounded(make(DELTA, length, K=16, V=16, batch=1, heads=(1, 1, 1)), torch.float16)
    case.tensors["decay"].data *= 0.02
    at = case.names().index("decay")
    gradient = found(load(DELTA), case, torch.float16)[at]
    assert difference(gradient.double(), expected(case)[at]) < 8 * torch.finfo(torch.float16).eps


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("earlier(written_CK)", "written_CK"),
        ("anchor_K - seen_K", "anchor_K + seen_K"),
        ("+ block.to(tl.int64)", "+ 0 * block"),
        ("while half > 8", "while half > 16"),
        ("own_qk_C1 * q_CK", "own_qk_C1 * k_CK"),
    ],
)
def test_a_wrong_line_is_found(line: str, wrong: str, folder: Path) -> None:
    """One place of the kernels changed: some gradient is far off."""
    kind = replace(GATED, chunk=32)
    name = f"wrong_{abs(hash(line))}"
    text = text_of(kind, name, 16, 16)
    assert line in text
    (folder / f"{name}.py").write_text(text.replace(line, wrong))
    case = rounded(make(kind, 70, K=16, V=32, batch=1, heads=(1, 1, 1)), torch.float32)
    gradients = found(imported(f"{folder.name}.{name}", folder.parent), case, torch.float32)
    pairs = zip(gradients, expected(case), strict=True)
    assert max(difference(gradient.double().nan_to_num(1e9), exact) for gradient, exact in pairs) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("load([start + 1, channel])", "load([start, channel])"),
        ("load([start - 1, channel])", "load([start, channel])"),
        ("passed_CK -= w_CK", "passed_CK += w_CK"),
        ("own_1C, tl.trans(rk_JC)", "1.0, tl.trans(rk_JC)"),
        ("own_1J, drk_JC", "drk_JC, drk_JC"),
        ("tl.trans(q_scores_tiles.load([start, 0])), 0.0", "q_scores_tiles.load([start, 0]), 0.0"),
        ("(j_J1 == c_1C).to(dtype)", "(j_J1 > c_1C).to(dtype)"),
        ("drk_CJ = tl.trans(", "drk_CJ = ("),
    ],
)
def test_a_wrong_line_of_an_erase_of_two_rows_is_found(line: str, wrong: str, folder: Path) -> None:
    """Neighbours, what pairs take from a decay, and the places of scores in their squares."""
    kind = replace(PAIR, chunk=16)
    name = f"wrong_pair_{abs(hash(line))}"
    text = text_of(kind, name, 16, 16)
    assert line in text
    (folder / f"{name}.py").write_text(text.replace(line, wrong))
    case = rounded(make(kind, 37, K=16, V=16, batch=1, heads=(1, 1, 1)), torch.float32)
    gradients = found(imported(f"{folder.name}.{name}", folder.parent), case, torch.float32)
    pairs = zip(gradients, expected(case), strict=True)
    assert max(difference(gradient.double().nan_to_num(1e9), exact) for gradient, exact in pairs) > 1e-3
