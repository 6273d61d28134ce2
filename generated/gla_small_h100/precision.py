"""Where rounding would change what a model remembers."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or as it is where it is wider."""
    return x if x.dtype == torch.float64 else x.float()
