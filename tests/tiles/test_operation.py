"""The emitted operations as torch sees them: schema, fakes, autograd, autocast, compile, dtypes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from archc.tiles.kind import RecurrenceKind
from archc.tiles.torch_source import emit
from tests.support.imports import imported
from tests.tiles.cases import GROUPED, all_kinds, difference, label, make

DELTA = RecurrenceKind("head", "delta")
PAIR = RecurrenceKind("key", "pair", "previous")
SCAN = RecurrenceKind("elementwise", decay_rate=True)
Load = Callable[[RecurrenceKind], ModuleType]


def arguments(
    kind: RecurrenceKind, length: int, cu: tuple[int, ...] | None, dtype: torch.dtype
) -> list[Tensor]:
    case = make(kind, length, cu, heads=(1, 2, 4), dtype=dtype)
    return [*case.tensors.values(), case.memory["s"]]


@pytest.mark.parametrize("kind", [DELTA, PAIR, SCAN], ids=label)
def test_opcheck(kind: RecurrenceKind, load: Load) -> None:
    module = load(kind)
    torch.library.opcheck(module.chunk, (*arguments(kind, 70, None, torch.float32), None, 0.5))
    borders = (0, 1, 1, 69, 85)
    cu = torch.tensor(borders)
    torch.library.opcheck(module.chunk, (*arguments(kind, 90, borders, torch.float32), cu, 0.5))
    *tensors, state = arguments(kind, 1, None, torch.float32)
    tokens = [x.detach()[:, 0] if x.dim() > 3 or x.shape[1] == 1 else x.detach() for x in tensors]
    if kind.decay_rate:
        tokens[4] = tensors[4].detach()
    torch.library.opcheck(module.decode, (*tokens, state.detach(), 0.5))


@pytest.mark.parametrize("kind", [DELTA, PAIR, SCAN], ids=label)
def test_compile_makes_two_graphs(kind: RecurrenceKind, load: Load) -> None:
    """Twelve lengths, forward and backward, with equal results: one graph for a length and one for all."""
    from torch._dynamo.testing import CompileCounterWithBackend

    module = load(kind)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def call(*tensors: Tensor) -> Tensor:
        return module.chunk(*tensors, None, 0.5)[0] * 2

    compiled = torch.compile(call, fullgraph=True, backend=counter)
    for length in (5, 17, 64, 65, 100, 130, 2, 33, 70, 77, 90, 128):
        tensors = arguments(kind, length, None, torch.float32)
        one, other = compiled(*tensors), call(*tensors)
        assert torch.equal(one, other)
        gradients = zip(
            torch.autograd.grad(one.sum(), tensors), torch.autograd.grad(other.sum(), tensors), strict=True
        )
        assert all(torch.equal(a, b) for a, b in gradients)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("kind", [DELTA, PAIR, SCAN], ids=label)
def test_autocast(kind: RecurrenceKind, load: Load) -> None:
    """Inside autocast the mathematics stays float32: the same as outside, forward and backward."""
    module = load(kind)
    tensors = arguments(kind, 70, None, torch.float32)
    expected = module.chunk(*tensors, None, 0.5)
    wanted = torch.autograd.grad(expected[0].sum(), tensors)
    with torch.autocast("cpu", torch.bfloat16):
        found = module.chunk(*tensors, None, 0.5)
        gradients = torch.autograd.grad(found[0].sum(), tensors)
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(a, b) for a, b in zip(gradients, wanted, strict=True))
    function = getattr(module, label(kind))
    case = make(kind, 70, dtype=torch.float32)
    place = module.Place(imported("emitted_tiles.place").dense_layout(case.tensors["q"]))
    with torch.autocast("cpu", torch.bfloat16):
        assert function(*case.tensors.values(), scale=0.5, place=place, key="s").dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [kind for kind in all_kinds() if kind == kind.core()], ids=label)
def test_bfloat16_inputs(kind: RecurrenceKind, load: Load) -> None:
    """bf16 in, bf16 out, the state and the mathematics in float32: one rounding of the output, no more."""
    module = load(kind)
    wide = arguments(kind, 70, None, torch.float32)
    mixed = [
        x.detach().bfloat16() if name not in ("decay", "decay_rate", "s") else x.detach()
        for name, x in zip([*make(kind, 1).tensors, "s"], wide, strict=True)
    ]
    o, final = module.chunk(*mixed, None, 0.5)[:2]
    same, final_same = module.chunk(*(x.float() for x in mixed), None, 0.5)[:2]
    assert o.dtype == torch.bfloat16
    assert final.dtype == torch.float32
    assert torch.equal(o, same.bfloat16())
    assert torch.equal(final, final_same)
    leaves = [x.requires_grad_() for x in mixed]
    gradients = torch.autograd.grad(module.chunk(*leaves, None, 0.5)[0].sum(), leaves)
    assert [g.dtype for g in gradients] == [x.dtype for x in leaves]


def test_expanded_gradients_and_unused_outputs(load: Load) -> None:
    """`sum().backward()` hands over gradients of stride 0; either output may go without one."""
    module = load(DELTA)
    tensors = arguments(DELTA, 70, None, torch.float64)
    for index in (0, 1):
        found = torch.autograd.grad(
            module.chunk(*tensors, None, 0.5)[index].sum(), tensors, materialize_grads=True
        )
        outputs = module.token_loop(*tensors, None, 0.5)[index]
        exact = torch.autograd.grad(outputs.sum(), tensors, materialize_grads=True, allow_unused=True)
        assert max(difference(a, b) for a, b in zip(found, exact, strict=True)) < 1e-12


@pytest.mark.parametrize("length", [0, 3])
def test_empty_calls(length: int, load: Load) -> None:
    """No tokens at all, or only empty sequences, leave the state as it was."""
    for kind in (DELTA, SCAN):
        *tensors, state = arguments(kind, length, (0, 0, 0), torch.float64)
        o, final = load(kind).chunk(*tensors, state, torch.tensor([0, 0, 0]), 0.5)[:2]
        assert o.shape[1] == length
        assert not o.any()
        assert torch.equal(final, state)
        gradients = torch.autograd.grad(o.sum() + final.sum(), [*tensors, state])
        assert all(not g.any() for g in gradients[:-1])
        assert torch.equal(gradients[-1], torch.ones_like(state))


def test_a_module_can_be_imported_again(package: Path) -> None:
    """The operations of a second import do not clash with those of the first."""
    (package / "twice.py").write_text(emit(DELTA, "twice"))
    first = imported("emitted_tiles.twice", package.parent)
    del sys.modules["emitted_tiles.twice"]
    second = imported("emitted_tiles.twice", package.parent)
    assert first.NAMESPACE != second.NAMESPACE
    tensors = arguments(DELTA, 5, None, torch.float32)
    assert torch.equal(first.chunk(*tensors, None, 1.0)[0], second.chunk(*tensors, None, 1.0)[0])


@pytest.mark.parametrize("kind", [DELTA, PAIR, SCAN, RecurrenceKind("value", factors=True)], ids=label)
def test_same_input_same_bytes(kind: RecurrenceKind) -> None:
    assert emit(kind, "name") == emit(kind, "name")


KERNELS = "from typing import Any\n\n\ndef __getattr__(name: str) -> Any: ...\n"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_emitted_modules_pass_ruff_and_mypy(package: Path, repository_root: Path) -> None:
    """Formatted by ruff, every module passes ruff's rules and mypy --strict, and has at most 650 lines.

    So do those that have kernels, with 700 lines; what kernels are, these modules need not know.
    """
    folder = package.parent / "checked"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for name in ("place", "state", "tiling", "torch_form", "triton_versions"):
        (folder / f"{name}.py").write_text((repository_root / f"templates/runtime/{name}.py").read_text())
    for number, kind in enumerate((*all_kinds(), *GROUPED)):
        name = label(kind)
        if kind.grouped or kind.read == "inclusive" and kind.erase_from == "decayed":
            (folder / f"{name}.py").write_text(emit(kind, name))
        if not kind.grouped and kind.read == "inclusive":
            reverse, beside = number % 3 > 0, f"gpu_{number}"
            since = (3, 7, 1) if reverse and number % 2 else None
            text = emit(kind, beside, kernel_sizes=[(64, 64)], reverse_kernels=reverse, gradients_since=since)
            (folder / f"{beside}.py").write_text(text)
            (folder / f"{beside}_kernels.py").write_text(KERNELS)

    def run(*command: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=package.parent, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    rules = ("--isolated", "--line-length", "110", "--select", "E,F,W,I,UP,B", "--ignore", "E741")
    run("ruff", "format", "--line-length", "110", "checked")
    texts = [path for path in folder.glob("*_*.py") if "_kernels" not in path.name]
    emitted = [path for path in texts if path.stem not in ("torch_form", "triton_versions")]
    run("ruff", "check", *rules, *map(str, emitted))
    run("mypy", "--strict", "checked")
    for path in emitted:
        most = 700 if path.name.startswith("gpu_") else 650
        assert len(path.read_text().splitlines()) <= most, path
