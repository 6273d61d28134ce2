"""Says, once for each cause, what runs in the torch form on a GPU: it is slower there than kernels."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from functools import cache

from torch import Tensor

WHY = "`archc kernels SPEC --target TARGET` says what has kernels, and why the rest has none"


def say_torch_form(name: str, q: Tensor, v: Tensor, sizes: Collection[tuple[int, int]]) -> None:
    """Of a recurrence, if its kernels were not made for these heads but for `sizes`, each (K, V)."""
    if (q.shape[-1], v.shape[-1]) not in sizes:
        _say_sizes(name, q.shape[-1], v.shape[-1], tuple(sorted(sizes)))


@cache
def _say_sizes(name: str, K: int, V: int, sizes: tuple[tuple[int, int], ...]) -> None:
    made = " and ".join(f"{k} x {v}" for k, v in sizes) or "single tokens only"
    warnings.warn(
        f"{name} runs in the torch form, which is slower, for heads of {K} x {V}: its kernels were made for {made}. "
        f"Build the package from a spec with the sizes that you run; {WHY}.",
        stacklevel=2,
    )


@cache
def say_torch_gradients(name: str) -> None:
    """Of a recurrence whose backward has no kernels."""
    warnings.warn(
        f"gradients of {name} run in the torch form, which is slower: they have no kernels for this GPU. {WHY}.",
        stacklevel=2,
    )
