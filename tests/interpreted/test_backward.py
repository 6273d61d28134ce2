"""Gradients by Triton kernels, in the interpreter, against autograd through the token loop in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from archc.tiles.kind import RecurrenceKind, form_of
from archc.tiles.torch_source import emit
from archc.tiles.triton_reverse import ReverseLaunch, reverse_source
from archc.tiles.triton_source import Launch, kernels
from tests.interpreted.judge import Load, agree, expected, found, rounded
from tests.support.imports import imported
from tests.support.slow import mostly_slow
from tests.tiles.cases import all_kinds, difference, label, make

torch.set_num_threads(1)
SEGMENT = 2  # so that short sequences have several


def core(kind: RecurrenceKind) -> bool:
    """Whether kernels are made for the class itself, and not for the class that it is rewritten to."""
    return kind == kind.core() and form_of(kind).form == "chunk" and kind.decay in ("none", "head")


KINDS = [kind for kind in all_kinds() if core(kind)]
HARD = [
    RecurrenceKind("head"),
    RecurrenceKind("head", "delta"),
    RecurrenceKind("head", "pair", "previous", "exclusive"),
]


def launch(columns: int, several: bool = False, guarded: bool = False, wide: bool = False) -> ReverseLaunch:
    """The first walk cut into blocks of value columns, the second into blocks of key channels."""
    return ReverseLaunch(columns, (4, 1), (4, 1), 16, 16, several, guarded, wide)


@pytest.fixture(scope="module")
def load(folder: Path) -> Load:
    """The kernels of a class for blocks of so many value columns; `torch_form` is the module that has no kernels."""

    def load(kind: RecurrenceKind, columns: int = 16, torch_form: bool = False, **cut: bool) -> ModuleType:
        name = "_".join((label(kind), "torch" if torch_form else str(columns), *cut))
        path = folder / f"{name}.py"
        if not path.exists():
            launches = {"prepare": Launch(columns, 4, 1), "walk": Launch(columns, 4, 1)}
            if torch_form:
                text = emit(kind, name)
            else:
                reverse = reverse_source(kind, launch(columns, **cut))
                text = kernels(kind, name, launches, precision="ieee", segment=SEGMENT, reverse=reverse)
            path.write_text(text)
        return imported(f"{folder.name}.{name}", folder.parent)

    return load


@pytest.mark.parametrize("kind", mostly_slow(KINDS, 5), ids=label)
def test_rows(kind: RecurrenceKind, load: Load) -> None:
    """Three segments, the last one with a rest, states before and after."""
    agree(load, make(kind, 300, K=16, V=16, batch=1))


@pytest.mark.parametrize("kind", mostly_slow(HARD, 3), ids=label)
def test_small_chunks(kind: RecurrenceKind, load: Load) -> None:
    """Chunks of 16 tokens, two rows of the batch, widths that are no powers of two, two blocks of value columns."""
    agree(load, make(replace(kind, chunk=16), 70, K=24, V=20), several=True)


@pytest.mark.parametrize("kind", mostly_slow(KINDS, lambda kind: kind in HARD), ids=label)
def test_packed(kind: RecurrenceKind, load: Load) -> None:
    """Sequences of one token, none, a chunk, and several segments; tokens behind the last one; shared heads."""
    agree(load, make(kind, 220, (0, 1, 1, 65, 210), K=16, V=16, heads=(2, 2, 1)))


def test_grouped_heads(load: Load) -> None:
    for kind in (RecurrenceKind("head", "delta"), RecurrenceKind("head", "pair")):
        agree(load, make(kind, 70, K=16, V=32, heads=(1, 2, 4), batch=1), several=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_parts_of_value_columns(dtype: torch.dtype, load: Load) -> None:
    """Three blocks of value columns, the last one not full, in packed sequences: what each gives to keys is rounded."""
    kind = RecurrenceKind("head", "delta", chunk=16)
    case = make(kind, 60, (0, 1, 1, 35, 55), K=24, V=40, heads=(2, 2, 1))
    agree(load, case, dtype, roundings=8, several=True)


def test_a_wide_state(load: Load) -> None:
    """In tensor memory chunks stand in a condition, with the states of segments; in registers do is read again."""
    kind = RecurrenceKind("head", "delta", chunk=16)
    case = make(kind, 60, (0, 1, 1, 35, 55), K=16, V=32, heads=(1, 1, 1))
    text = reverse_source(kind, launch(16, guarded=True, wide=True))
    assert "        if start < end:\n            inside_C" in text and text.count("do_VC = tl.trans(") == 2
    agree(load, case, several=True, guarded=True, wide=True)


@pytest.mark.parametrize("decay", [0.0, -50.0])
@pytest.mark.parametrize("kind", HARD, ids=label)
def test_decays(kind: RecurrenceKind, decay: float, load: Load) -> None:
    """No decay, and one so strong that its own gradient is nothing."""
    agree(load, make(kind, 150, K=16, V=16, decay=decay, batch=1, heads=(1, 1, 1)))


@pytest.mark.parametrize(("cosine", "beta"), [(0.99, 1.0), (1.0, 1.0), (0.5, 1.99)])
@pytest.mark.parametrize("kind", HARD[1:], ids=label)
def test_like_keys(kind: RecurrenceKind, cosine: float, beta: float, load: Load) -> None:
    agree(load, make(kind, 150, K=16, V=16, cosine=cosine, beta=beta, decay=-0.01, batch=1, heads=(1, 1, 1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [RecurrenceKind("none", "pair", chunk=16), RecurrenceKind("head", "pair", "previous", chunk=16)],
    ids=label,
)
def test_an_erase_of_two_rows_in_half_precision(kind: RecurrenceKind, load: Load) -> None:
    """Packed, two blocks of value columns: what comes through dS to rows that write is rounded on its way."""
    case = make(kind, 60, (0, 1, 1, 35, 55), K=24, V=24, heads=(2, 2, 1))
    agree(load, case, torch.float16, roundings=8, several=True)


def test_an_expanded_gradient(load: Load) -> None:
    """What `sum().backward()` sends: one number, expanded."""
    kind = RecurrenceKind("head", "delta")
    case, module = rounded(make(kind, 70, K=16, V=16), torch.float32), load(kind)
    given: list[Any] = [x.detach().float() for x in case.tensors.values()]
    o, final, *kept = module.chunk_forward(*given, None, None, 1.0)
    one = torch.ones(()).expand(o.shape)
    for gradient, other in zip(
        module.chunk_backward(one, torch.zeros_like(final), *given, None, *kept, 1.0),
        module.chunk_backward(one.clone(), torch.zeros_like(final), *given, None, *kept, 1.0),
        strict=True,
    ):
        assert torch.equal(gradient, other)


@pytest.mark.slow
@pytest.mark.parametrize("length", [300, 3000])
def test_a_long_sequence_in_half_precision(length: int, load: Load) -> None:
    """The decay's gradient, anchored in every segment, errs no more in a long sequence than in a short one."""
    kind = RecurrenceKind("head", "delta")
    case = rounded(make(kind, length, K=16, V=16, batch=1, heads=(1, 1, 1)), torch.float16)
    case.tensors["decay"].data *= 0.02
    at = case.names().index("decay")
    gradient = found(load(kind), case, torch.float16)[at]
    assert difference(gradient.double(), expected(case)[at]) < 8 * torch.finfo(torch.float16).eps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("written_C = tl.sum(w_CK * dw_CK, 1)", "written_C = -tl.sum(w_CK * dw_CK, 1)"),
        ("near_C -= tl.sum(met_CJ, 0)", "near_C += tl.sum(met_CJ, 0)"),
        ("dk_CK += dot(tl.trans(drk_CJ), r_CK)", "dk_CK -= dot(tl.trans(drk_CJ), r_CK)"),
        ("dw_CK += scale * dot(tl.trans(dqw_CJ), q_CK)", "dw_CK += dot(tl.trans(dqw_CJ), q_CK) * 0.0"),
        ("drw_CJ, drk_CJ = score_gradients(", "drk_CJ, drw_CJ = score_gradients("),
    ],
)
def test_a_wrong_line_of_an_erase_of_two_rows_is_found(line: str, wrong: str, folder: Path) -> None:
    kind = RecurrenceKind("head", "pair", "previous", chunk=16)
    reverse = reverse_source(kind, launch(16))
    assert line in reverse
    launches = {"prepare": Launch(16, 4, 1), "walk": Launch(16, 4, 1)}
    text = kernels(
        kind, "wrong", launches, precision="ieee", segment=SEGMENT, reverse=reverse.replace(line, wrong)
    )
    name = f"wrong_pair_{abs(hash(line))}"
    (folder / f"{name}.py").write_text(text)
    case = rounded(make(kind, 40, K=16, V=16, batch=1, heads=(1, 1, 1)), torch.float32)
    gradients = found(imported(f"{folder.name}.{name}", folder.parent), case, torch.float32)
    pairs = zip(gradients, expected(case), strict=True)
    assert max(difference(gradient.double(), exact) for gradient, exact in pairs) > 1e-2


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("tl.maximum(c_C - 1, 0)", "c_C"),
        ("anchor - tl.sum(seen_C)", "anchor + tl.sum(seen_C)"),
        ("* -in_C[None, :]", "* in_C[None, :]"),
        ("dkk_CJ += dot(dE_CV", "dkk_CJ -= dot(dE_CV"),
    ],
)
def test_a_wrong_line_is_found(line: str, wrong: str, folder: Path) -> None:
    """One token of the kernels changed: some gradient is far off."""
    kind = RecurrenceKind("head", "delta")
    launches = {"prepare": Launch(16, 4, 1), "walk": Launch(16, 4, 1)}
    reverse = reverse_source(kind, launch(16))
    assert line in reverse
    text = kernels(
        kind, "wrong", launches, precision="ieee", segment=SEGMENT, reverse=reverse.replace(line, wrong)
    )
    name = f"wrong_{abs(hash(line))}"
    (folder / f"{name}.py").write_text(text)
    case = rounded(make(kind, 140, K=16, V=16, batch=1, heads=(1, 1, 1)), torch.float32)
    gradients = found(imported(f"{folder.name}.{name}", folder.parent), case, torch.float32)
    pairs = zip(gradients, expected(case), strict=True)
    assert max(difference(gradient.double(), exact) for gradient, exact in pairs) > 1e-2
