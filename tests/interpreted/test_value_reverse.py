"""Gradients by Triton kernels where every value channel decays by itself, against the token loop in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from archc.tiles.kind import RecurrenceKind
from archc.tiles.torch_source import emit
from archc.tiles.triton_source import Launch, kernels
from archc.tiles.triton_value_reverse import ValueLaunch, value_reverse_source
from tests.interpreted.judge import Load, agree, expected, found, rounded
from tests.support.imports import imported
from tests.support.slow import mostly_slow
from tests.tiles.cases import Case, difference, label, make

torch.set_num_threads(1)
SEGMENT = 2  # so that short sequences have several
PLAIN, EXCLUSIVE = RecurrenceKind("value"), RecurrenceKind("value", read="exclusive")
KINDS = [PLAIN, EXCLUSIVE]
DTYPES = [
    pytest.param(torch.float32, id="float32"),
    pytest.param(torch.float16, id="float16", marks=pytest.mark.slow),
]


def text_of(kind: RecurrenceKind, name: str, columns: int = 16) -> str:
    """The module of a class whose walks have so many value columns a program."""
    launches = {"prepare": Launch(columns, 4, 1), "walk": Launch(columns, 4, 1)}
    reverse = value_reverse_source(kind, ValueLaunch(columns, (16, 4, 1), (4, 1), (4, 1)))
    return kernels(kind, name, launches, precision="ieee", segment=SEGMENT, reverse=reverse)


@pytest.fixture(scope="module")
def load(folder: Path) -> Load:
    """The kernels of a class; `torch_form` is the module that has no kernels."""

    def load(kind: RecurrenceKind, columns: int = 16, torch_form: bool = False) -> ModuleType:
        name = f"{label(kind)}_{'torch' if torch_form else columns}"
        path = folder / f"{name}.py"
        if not path.exists():
            path.write_text(emit(kind, name) if torch_form else text_of(kind, name, columns))
        return imported(f"{folder.name}.{name}", folder.parent)

    return load


def check(load: Load, case: Case, dtype: torch.dtype = torch.float32) -> None:
    """Rows and scores are rounded before they meet, and there are three products in a row."""
    agree(load, case, dtype, 4)


@pytest.mark.parametrize("kind", KINDS, ids=label)
def test_rows(kind: RecurrenceKind, load: Load) -> None:
    """Two segments, the last one with a rest, states before and after."""
    check(load, make(replace(kind, chunk=16), 40, K=16, V=16, batch=1, heads=(1, 1, 1)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", mostly_slow(KINDS, lambda kind: kind is PLAIN), ids=label)
def test_small_chunks(kind: RecurrenceKind, dtype: torch.dtype, load: Load) -> None:
    """Chunks of 16 tokens, two rows of the batch, widths that are no powers of two, two blocks of values."""
    check(load, make(replace(kind, chunk=16), 37, K=24, V=24, heads=(1, 1, 1)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", mostly_slow(KINDS, lambda kind: kind is EXCLUSIVE), ids=label)
def test_packed(kind: RecurrenceKind, dtype: torch.dtype, load: Load) -> None:
    """Sequences of one token, none, a chunk, and several segments; tokens behind the last one; shared heads."""
    case = make(replace(kind, chunk=16), 60, (0, 1, 1, 35, 58), K=16, V=16, heads=(2, 2, 1))
    check(load, case, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=label)
def test_grouped_heads(kind: RecurrenceKind, load: Load) -> None:
    check(load, make(kind, 70, K=16, V=32, heads=(1, 2, 4), batch=1))


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0.0, -50.0])
@pytest.mark.parametrize("kind", KINDS, ids=label)
def test_decays(kind: RecurrenceKind, decay: float, load: Load) -> None:
    """No decay, and one so strong that its own gradient is nothing."""
    check(load, make(kind, 150, K=16, V=16, decay=decay, batch=1, heads=(1, 1, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=label)
def test_like_keys(kind: RecurrenceKind, load: Load) -> None:
    """Runs of equal keys."""
    check(load, make(kind, 150, K=16, V=16, cosine=1.0, decay=-0.01, batch=1, heads=(1, 1, 1)))


@pytest.mark.parametrize("kind", mostly_slow(KINDS, lambda kind: kind is PLAIN), ids=label)
def test_the_gradient_of_a_strong_decay(kind: RecurrenceKind, load: Load) -> None:
    """Channels that keep, lose half, and lose nearly all: no small gradient is the rest of larger numbers."""
    case = make(replace(kind, chunk=16), 50, K=16, V=16, batch=1, heads=(1, 1, 1))
    channel_V = torch.arange(16)
    case.tensors["decay"].data[:] = torch.tensor([0.0, -0.7, -20.0, -80.0])[channel_V % 4].double()
    case = rounded(case, torch.float32)
    at = case.names().index("decay")
    gradient, exact = found(load(case.kind), case, torch.float32)[at], expected(case)[at]
    for rate in range(4):  # each on its own scale, down to e^-80
        mine, theirs = (x[..., channel_V % 4 == rate].double() for x in (gradient, exact))
        assert (mine - theirs).abs().max() < 2**-14 * theirs.abs().max()


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("earlier(written_CV)", "written_CV"),
        ("anchor_V - seen_V", "anchor_V + seen_V"),
        ("tl.where(block == 0, start, end)", "start"),
        ("own_C[:, None] * do_tiles", "0.0 * own_C[:, None] * do_tiles"),
    ],
)
def test_a_wrong_line_is_found(line: str, wrong: str, folder: Path) -> None:
    """One place of the kernels changed: some gradient is far off."""
    kind = replace(PLAIN, chunk=16)
    name = f"wrong_{abs(hash(line))}"
    text = text_of(kind, name)
    assert line in text
    (folder / f"{name}.py").write_text(text.replace(line, wrong))
    case = rounded(make(kind, 40, K=16, V=32, batch=1, heads=(1, 1, 1)), torch.float32)
    gradients = found(imported(f"{folder.name}.{name}", folder.parent), case, torch.float32)
    pairs = zip(gradients, expected(case), strict=True)
    assert max(difference(gradient.double().nan_to_num(1e9), exact) for gradient, exact in pairs) > 1e-2
