"""Matrices that read the same value as one, for decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .place import Place


class Joined:
    """Several matrices as one, of which the parameters become views: nothing is held twice or grows stale.

    `weight [rows, inputs]`: their rows one after another, then zeros up to a multiple of 16; or, `batched`,
    `[n, outputs, inputs]`. `rows`: of each of them, and of the zeros.
    """

    def __init__(self, owner: Any, names: Sequence[str], batched: bool = False) -> None:
        matrices = [getattr(owner, name) for name in names]
        weights: list[Tensor] = [matrix.weight for matrix in matrices]
        first = weights[0]
        self.rows = [weight.shape[0] for weight in weights]
        total = sum(self.rows)
        self.rows += [] if total % 16 == 0 else [-total % 16]
        joined = first.new_zeros(total if batched else sum(self.rows), first.shape[1], requires_grad=False)
        parts = torch.split(joined[:total], [weight.shape[0] for weight in weights])
        for weight, part in zip(weights, parts, strict=True):
            part.copy_(weight.detach())
            weight.data = part
        self.weight = torch.unflatten(joined, 0, (len(weights), -1)) if batched else joined
        self._modules = owner._modules
        pointers = [part.data_ptr() for part in parts]
        self._parts = list(zip(names, matrices, pointers, strict=True))

    def holds(self) -> bool:
        """Whether the parameters still are views: not once they, or their modules, were moved, converted, replaced."""
        modules = self._modules
        return all(modules[name] is x and x.weight.data_ptr() == pointer for name, x, pointer in self._parts)


def join(owner: Any, groups: Sequence[Sequence[str]]) -> list[Joined]:
    """The matrices of each group as one, those after the first group batched; what holds already stays."""
    known: list[Joined] = owner.joined
    if known and all(joined.holds() for joined in known):
        return known
    return [Joined(owner, names, batched=number > 0) for number, names in enumerate(groups)]


def decodes(joined: Sequence[Joined], x_BTD: Tensor, place: Place) -> bool:
    """Whether a call is one token a sequence that kernels can take: on this GPU, its state held in place."""
    if not joined or x_BTD.shape[1] != 1 or not x_BTD.is_cuda or not place.in_place or place.form != "auto":
        return False
    if place.layout.cu_seqlens is not None or place.patterns or torch.is_grad_enabled():
        return False
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cuda"):
        return False
    fits = x_BTD.dtype == joined[0].weight.dtype and x_BTD.dtype != torch.float64
    return fits and x_BTD.device.index == torch.cuda.current_device() and all(part.holds() for part in joined)
