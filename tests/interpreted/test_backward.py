"""Gradients by Triton kernels, in the interpreter, against autograd through the token loop in float64."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from archc.tiles.kind import RecurrenceKind, form_of
from archc.tiles.torch_source import emit
from archc.tiles.triton_reverse import ReverseLaunch, reverse_source
from archc.tiles.triton_source import Launch, kernels
from tests.support.imports import imported
from tests.support.slow import mostly_slow
from tests.tiles.cases import Case, all_kinds, defined, difference, label, make

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backward") / "backward_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for name in ("place", "tiling"):
        text = (Path(__file__).parents[2] / "templates" / "runtime" / f"{name}.py").read_text()
        (folder / f"{name}.py").write_text(text)
    sys.path.insert(0, str(folder.parent))
    return folder


Load = Callable[..., ModuleType]


def launch(kind: RecurrenceKind, columns: int) -> ReverseLaunch:
    """The first walk cut into blocks of value columns, the second into blocks of key channels."""
    return ReverseLaunch(columns, (4, 1), (4, 1), 16, 16)


@pytest.fixture(scope="module")
def load(folder: Path) -> Load:
    """The kernels of a class for blocks of so many value columns; `torch_form` is the module that has no kernels."""

    def load(kind: RecurrenceKind, columns: int = 16, torch_form: bool = False) -> ModuleType:
        name = f"{label(kind)}_{'torch' if torch_form else columns}"
        path = folder / f"{name}.py"
        if not path.exists():
            launches = {"prepare": Launch(columns, 4, 1), "walk": Launch(columns, 4, 1)}
            if torch_form:
                text = emit(kind, name)
            else:
                reverse = reverse_source(kind, launch(kind, columns))
                text = kernels(kind, name, launches, precision="ieee", segment=SEGMENT, reverse=reverse)
            path.write_text(text)
        return imported(f"backward_package.{name}")

    return load


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that nothing was written to holds NaN."""

    def filled(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def fill(*given: Any, **more: Any) -> Tensor:
            x = make(*given, **more)
            return x.fill_(float("nan")) if x.is_floating_point() else x

        return fill

    with (
        patch.object(torch, "empty", filled(torch.empty)),
        patch.object(torch, "empty_like", filled(torch.empty_like)),
        patch.object(Tensor, "new_empty", filled(Tensor.new_empty)),
    ):
        yield


def cotangents(case: Case) -> tuple[Tensor, Tensor]:
    """Random gradients of the outputs inside sequences and of the final states."""
    generator = torch.Generator().manual_seed(1)
    heads = max(x.shape[2] for x in case.tensors.values())
    do = torch.randn(*case.tensors["v"].shape[:2], heads, case.tensors["v"].shape[3], generator=generator)
    if case.cu_seqlens is not None:
        do[:, case.cu_seqlens[-1] :] = 0
    return do.double(), torch.randn(case.memory["s"].shape, generator=generator).double()


def expected(case: Case) -> list[Tensor]:
    """Gradients of all arguments and the initial state, by definition."""
    o, memory = defined(case)
    do, dfinal = cotangents(case)
    total = (o * do).sum() + (memory["s"] * dfinal).sum()
    return list(torch.autograd.grad(total, case.leaves(), allow_unused=True, materialize_grads=True))


def found(module: ModuleType, case: Case, dtype: torch.dtype) -> list[Tensor]:
    """The same by a module's chunk form; decays and states are float32."""
    given = [x.detach().to(torch.float32 if name == "decay" else dtype) for name, x in case.tensors.items()]
    borders = None if case.cu_seqlens is None else torch.tensor(case.cu_seqlens)
    do, dfinal = cotangents(case)
    state = case.memory["s"].detach().float()
    _, _, *kept = module.chunk_forward(*given, state, borders, case.scale)
    return list(module.chunk_backward(do.to(dtype), dfinal.float(), *given, borders, *kept, case.scale))


def rounded(case: Case, dtype: torch.dtype) -> Case:
    """The case with values that the type can hold."""
    for name, x in case.tensors.items():
        x.data = x.data.to(torch.float32 if name == "decay" else dtype).double()
    case.memory["s"].data = case.memory["s"].data.float().double()
    return case


def check(load: Load, case: Case, dtype: torch.dtype = torch.float32, columns: int = 16) -> None:
    """The kernels err at most a few times what the torch form errs, which has the same sums in another order.

    In half precision what meets in products is rounded, and the gradients are: the torch form computes in float32,
    so its error is that of rounded results alone.
    """
    case = rounded(case, dtype)
    wanted = expected(case)
    with poisoned():
        gradients = found(load(case.kind, columns), case, dtype)
    reference = found(load(case.kind, torch_form=True), case, dtype)
    for name, gradient, other, exact in zip(case.names(), gradients, reference, wanted, strict=True):
        assert gradient.isfinite().all(), name
        least = torch.finfo(dtype).eps if dtype != torch.float32 else 2**-20
        limit = 8 * difference(other.double(), exact) + least
        assert gradient.shape == exact.shape
        assert difference(gradient.double(), exact) < limit, (
            name,
            difference(gradient.double(), exact),
            limit,
        )


@pytest.mark.parametrize("kind", mostly_slow(KINDS, 3), ids=label)
def test_rows(kind: RecurrenceKind, load: Load) -> None:
    """Three segments, the last one with a rest, states before and after."""
    check(load, make(kind, 300, K=16, V=16, batch=1))


@pytest.mark.parametrize("kind", mostly_slow(HARD, 3), ids=label)
def test_small_chunks(kind: RecurrenceKind, load: Load) -> None:
    """Chunks of 16 tokens, two rows of the batch, widths that are no powers of two, two blocks of value columns."""
    check(load, make(replace(kind, chunk=16), 70, K=24, V=20))


@pytest.mark.parametrize("kind", mostly_slow(KINDS, 3), ids=label)
def test_packed(kind: RecurrenceKind, load: Load) -> None:
    """Sequences of one token, none, a chunk, and several segments; tokens behind the last one; shared heads."""
    check(load, make(kind, 220, (0, 1, 1, 65, 210), K=16, V=16, heads=(2, 2, 1)))


def test_grouped_heads(load: Load) -> None:
    for kind in (RecurrenceKind("head", "delta"), RecurrenceKind("head", "pair")):
        check(load, make(kind, 70, K=16, V=32, heads=(1, 2, 4), batch=1))


@pytest.mark.parametrize("decay", [0.0, -50.0])
@pytest.mark.parametrize("kind", HARD, ids=label)
def test_decays(kind: RecurrenceKind, decay: float, load: Load) -> None:
    """No decay, and one so strong that its own gradient is nothing."""
    check(load, make(kind, 150, K=16, V=16, decay=decay, batch=1, heads=(1, 1, 1)))


@pytest.mark.parametrize(("cosine", "beta"), [(0.99, 1.0), (1.0, 1.0), (0.5, 1.99)])
@pytest.mark.parametrize("kind", HARD[1:], ids=label)
def test_like_keys(kind: RecurrenceKind, cosine: float, beta: float, load: Load) -> None:
    check(load, make(kind, 150, K=16, V=16, cosine=cosine, beta=beta, decay=-0.01, batch=1, heads=(1, 1, 1)))


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


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("start - 1, inside_C", "start, inside_C"),
        ("anchor - tl.sum(seen_C)", "anchor + tl.sum(seen_C)"),
        ("* -in_C[None, :]", "* in_C[None, :]"),
        ("dkk_CJ += dot(dE_CV", "dkk_CJ -= dot(dE_CV"),
    ],
)
def test_a_wrong_line_is_found(line: str, wrong: str, folder: Path) -> None:
    """One token of the kernels changed: some gradient is far off."""
    kind = RecurrenceKind("head", "delta")
    launches = {"prepare": Launch(16, 4, 1), "walk": Launch(16, 4, 1)}
    reverse = reverse_source(kind, launch(kind, 16))
    assert line in reverse
    text = kernels(
        kind, "wrong", launches, precision="ieee", segment=SEGMENT, reverse=reverse.replace(line, wrong)
    )
    name = f"wrong_{abs(hash(line))}"
    (folder / f"{name}.py").write_text(text)
    case = rounded(make(kind, 140, K=16, V=16, batch=1, heads=(1, 1, 1)), torch.float32)
    gradients = found(imported(f"backward_package.{name}"), case, torch.float32)
    pairs = zip(gradients, expected(case), strict=True)
    assert max(difference(gradient.double(), exact) for gradient, exact in pairs) > 1e-2
