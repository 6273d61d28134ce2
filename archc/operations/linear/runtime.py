"""Linear maps with structure: block-diagonal ones, and one matrix for each entry of an axis."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BlockLinear(nn.Module):
    """A block-diagonal matrix: `[..., n] -> [..., m]` in `blocks` blocks of `n / blocks` by `m / blocks`."""

    bias: nn.Parameter  # or None, as in torch's own modules

    def __init__(self, n: int, m: int, blocks: int, bias: bool) -> None:
        super().__init__()
        self.blocks = blocks
        self.weight = nn.Parameter(torch.empty(blocks, m // blocks, n // blocks))
        self.register_parameter("bias", nn.Parameter(torch.empty(m)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the model's other matrices start."""
        nn.init.normal_(self.weight, 0.0, 0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x [..., n] -> [..., m]."""
        pieces = torch.unflatten(x, -1, (self.blocks, -1))
        found = torch.einsum("...bi,boi->...bo", pieces, self.weight).flatten(-2)
        return found if self.bias is None else found + self.bias


class PerEntryLinear(nn.Module):
    """Holds a matrix for each entry of an axis: weight `[*per, *out, *over]`, bias `[*per, *out]`."""

    bias: nn.Parameter  # or None, as in torch's own modules

    def __init__(self, per: tuple[int, ...], over: tuple[int, ...], out: tuple[int, ...], bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*per, *out, *over))
        self.register_parameter("bias", nn.Parameter(torch.empty(*per, *out)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As the model's other matrices start."""
        nn.init.normal_(self.weight, 0.0, 0.02)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
