"""How gradients by kernels are judged: against the token loop in float64, and beside the torch form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from tests.tiles.cases import Case, defined, difference

FLOAT32 = ("decay", "decay_rate")  # arguments that are in float32 in every model
Load = Callable[..., ModuleType]


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
    given = [x.detach().to(torch.float32 if name in FLOAT32 else dtype) for name, x in case.tensors.items()]
    borders = None if case.cu_seqlens is None else torch.tensor(case.cu_seqlens)
    do, dfinal = cotangents(case)
    state = case.memory["s"].detach().float()
    _, _, *kept = module.chunk_forward(*given, state, borders, case.scale)
    return list(module.chunk_backward(do.to(dtype), dfinal.float(), *given, borders, *kept, case.scale))


def rounded(case: Case, dtype: torch.dtype) -> Case:
    """The case with values that the type can hold."""
    for name, x in case.tensors.items():
        x.data = x.data.to(torch.float32 if name in FLOAT32 else dtype).double()
    case.memory["s"].data = case.memory["s"].data.float().double()
    return case


def agree(load: Load, case: Case, dtype: torch.dtype = torch.float32, roundings: int = 1, **cut: int) -> None:
    """The kernels err at most a few times what the torch form errs, which has the same sums in another order.

    In half precision the torch form computes in float32, so its error is that of rounded results alone; kernels round
    what meets in products as well, so many times.
    """
    case = rounded(case, dtype)
    wanted = expected(case)
    with poisoned():
        gradients = found(load(case.kind, **cut), case, dtype)
    reference = found(load(case.kind, torch_form=True), case, dtype)
    least = roundings * torch.finfo(dtype).eps if dtype != torch.float32 else 2**-20
    for name, gradient, other, exact in zip(case.names(), gradients, reference, wanted, strict=True):
        assert gradient.isfinite().all(), name
        assert gradient.shape == exact.shape
        limit = 8 * difference(other.double(), exact) + least
        off = difference(gradient.double(), exact)
        assert off < limit, (name, off, limit)
