"""Versions of Triton that compile some kernels wrongly, on the GPU that this package was made for."""

from __future__ import annotations

import re
import warnings
from functools import cache
from types import ModuleType


@cache
def wrong_gradients(kernels: ModuleType, since: tuple[int, ...]) -> bool:
    """Whether these kernels were compiled by a Triton before `since`, whose gradients are wrong; says so once."""
    version: str = kernels.triton.__version__
    if tuple(int(number) for number in re.findall(r"\d+", version)[:3]) >= since:
        return False
    warnings.warn(
        f"gradients of {kernels.__name__} run in the torch form, which is slower: Triton {version} has compiled such "
        f"kernels wrongly for this GPU. Triton {'.'.join(map(str, since))} and later are right.",
        stacklevel=2,
    )
    return True
