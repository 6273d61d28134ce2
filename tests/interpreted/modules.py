"""Run-time sources put side by side as in a package, and how far their results may be from float64."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from archc.codegen.package import runtime_path
from tests.support.imports import imported

IMPORTED = re.compile(r"^\s*from \.(\w+) import", re.MULTILINE)


def load(folder: Path, *names: str) -> SimpleNamespace:
    """The run-time files of these names and all that they import, as modules of a package at `folder`."""
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    pending = list(names)
    while pending:
        target = folder / f"{pending.pop()}.py"
        if not target.exists():
            target.write_text(runtime_path(target.stem).read_text())
            pending += IMPORTED.findall(target.read_text())
    return SimpleNamespace(**{name: imported(f"{folder.name}.{name}", folder.parent) for name in names})


@contextmanager
def poisoned() -> Iterator[None]:
    """What is not written is NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def assert_near(
    got: Sequence[Tensor],
    torch_form: Sequence[Tensor],
    exact: Sequence[Tensor],
    rounded: torch.dtype | None = None,
) -> None:
    """Twice as far from float64 as the torch form in float32 at most, and two roundings of the result.

    `rounded`: a dtype with fewer digits than a result, in which something was kept that it is made of.
    """
    for index, (mine, theirs, want) in enumerate(zip(got, torch_form, exact, strict=True)):
        assert mine.shape == want.shape
        if not want.numel():
            continue
        scale = want.abs().max()
        allowed = (
            2 * (theirs.double() - want).abs().max() + 2 * torch.finfo(rounded or mine.dtype).eps * scale
        )
        off = (mine.double() - want).abs().max()
        assert off <= allowed, f"result {index}: {off:.2e} where {allowed:.2e} may be"  # NaN is no less


def gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor], slopes: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of inputs, zeros for those that count nothing."""
    found = torch.autograd.grad(
        outputs, inputs, [s.to(o.dtype) for s, o in zip(slopes, outputs)], allow_unused=True
    )
    return [torch.zeros_like(x) if d is None else d for x, d in zip(inputs, found)]
