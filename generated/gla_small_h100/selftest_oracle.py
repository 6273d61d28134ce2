"""What a self-test holds a kernel against: the loop over tokens, and how far rounding may lead away from it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
import torch.utils.deterministic
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from .selftest_cases import Recurrence

Results = dict[str, Tensor]


def definition(
    module: ModuleType,
    case: Recurrence,
    tensors: Sequence[Tensor],
    state: Tensor,
    borders: Sequence[int] | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The loop over tokens, in pieces that are made again in the backward: only states between pieces are kept."""

    def walk(first: int, last: int, before: Tensor) -> tuple[Tensor, Tensor]:
        outputs = []
        for at in range(first, last, 64):
            span = slice(at, min(at + 64, last))
            piece = [
                x if name == "rate" else x[:, span] for name, x in zip(case.shapes, tensors, strict=True)
            ]
            o, before = checkpoint(module.token_loop, *piece, before, None, scale, use_reentrant=False)
            outputs.append(o)
        empty = tensors[2].new_zeros(tensors[2].shape[0], 0, before.shape[1], before.shape[3])
        return torch.cat(outputs or [empty], 1), before

    if borders is None:
        return walk(0, tensors[0].shape[1], state)
    spans = zip(borders[:-1], borders[1:], strict=True)
    found = [walk(first, last, state[n : n + 1]) for n, (first, last) in enumerate(spans)]
    tail = found[0][0].new_zeros(1, tensors[0].shape[1] - borders[-1], *found[0][0].shape[2:])
    return torch.cat([*(o for o, _ in found), tail], 1), torch.cat([final for _, final in found])


class RoundedProducts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Matrix products see operands rounded to a dtype, as a matrix unit does; sums stay float32.

    For float32 they keep 22 bits: a product of float32 may be made of three products in tf32. So may those of a
    triangular inverse in every dtype: `exact` says that one is under way. Running sums round after each addition; torch
    sums in float64 on a CPU. With a seed rounding goes up or down by chance: ill-conditioned inputs blow up a few
    errors, and one way of rounding may be lucky in those. Then even and odd terms of a product are added apart, as by
    hardware with two accumulators: what reflects at every token alternates in sign, and the two sums are large.
    """

    PRODUCTS = ("aten::bmm", "aten::mm")
    SUMS = (
        "aten::baddbmm",
        "aten::baddbmm_",
        "aten::addmm",
    )  # the first operand is what the product is added to

    def __init__(self, dtype: torch.dtype, seed: int | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = dtype
        self.exact = False
        self.seed = seed
        self.generators: dict[torch.device, torch.Generator] = {}  # as many numbers as products have operands

    def rounded(self, x: Any) -> Any:
        """`x` as a matrix unit sees it."""
        if not isinstance(x, Tensor) or x.dtype != torch.float32:
            return x
        dropped = (
            2 if self.exact else {torch.bfloat16: 16, torch.float16: 13}.get(self.dtype, 2)
        )  # bits of 24
        if self.seed is None:
            carry: int | Tensor = 1 << (dropped - 1)
        else:
            if x.device not in self.generators:
                self.generators[x.device] = torch.Generator(x.device).manual_seed(self.seed)
            chance = self.generators[x.device]
            carry = torch.randint(1 << dropped, x.shape, generator=chance, dtype=torch.int32, device=x.device)
        bits = (x.contiguous().view(torch.int32) + carry) & -(1 << dropped)
        return bits.view(torch.float32)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, named = func._schema.name, kwargs or {}
        if name in (*self.PRODUCTS, *self.SUMS):
            *start, a, b = args
            a, b = self.rounded(a), self.rounded(b)
            if self.seed is None or a.dtype != torch.float32:
                return func(*start, a, b, **named)
            result = func(*start, a[..., ::2], b[..., ::2, :], **named)
            return result.add_(a[..., 1::2] @ b[..., 1::2, :], alpha=named.get("alpha", 1))
        if name == "aten::cumsum" and args[0].dtype == torch.float32:
            return running_sum(*args[:2])
        return func(*args, **named)


def errors_of(got: Results, want: Results) -> dict[str, float]:
    """The largest difference of each tensor, NaN where there is one."""
    return {name: largest(got[name].double() - want[name].double()) for name in want}


def largest(x: Tensor) -> float:
    return float(x.abs().amax()) if x.numel() else 0.0


def rounding(dtype: torch.dtype, x: Tensor) -> float:
    """One rounding of the largest element in this dtype, whose steps end somewhere: at 6e-8 in float16."""
    limits = torch.finfo(dtype)
    return limits.eps * max(largest(x), limits.tiny)


def running_sum(x: Tensor, axis: int) -> Tensor:
    """The cumulative sum with a rounding after each addition."""
    sums = [torch.zeros_like(x.select(axis, 0))] if x.shape[axis] else []
    for entry in x.unbind(axis):
        sums.append(sums[-1] + entry)
    return torch.stack(sums[1:], axis) if sums else x.clone()


def rounding_errors(
    module: Any, dtype: torch.dtype, form: Callable[[torch.dtype], Results], double: Results
) -> dict[str, float]:
    """What the torch form errs when its matrix products round: the largest of three ways to round.

    In float32 that without any rounding of operands counts as well.
    """
    inverse = getattr(module, "_inverse", None)
    found = [errors_of(form(torch.float32), double)] if dtype == torch.float32 else []
    for seed in (None, 1, 2):
        mode = RoundedProducts(dtype, seed)

        def exactly(*given: Tensor, mode: RoundedProducts = mode) -> Tensor:
            mode.exact = True
            result: Tensor = inverse(*given)  # type: ignore[misc]
            mode.exact = False
            return result

        if inverse is not None:
            module._inverse = exactly
        try:
            with mode:
                found.append(errors_of(form(torch.float32), double))
        finally:
            if inverse is not None:
                module._inverse = inverse
    return {name: max(errors[name] for errors in found) for name in double}


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """New memory holds NaN until it is written."""
    memory: Any = torch.utils.deterministic
    filled, strict = memory.fill_uninitialized_memory, torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # operations without a deterministic form are none of our business
        torch.use_deterministic_algorithms(True, warn_only=True)
        memory.fill_uninitialized_memory = True
        try:
            yield
        finally:
            memory.fill_uninitialized_memory = filled
            torch.use_deterministic_algorithms(strict, warn_only=warns)
