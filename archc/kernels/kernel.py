"""One Triton kernel with everything needed to compile it ahead of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from archc.spec.diagnostics import Span

Constant = int | float | bool | str | None


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel as it will be launched.

    file: the module of the package that holds it, `head_decay_delta_kernels.py`; source: that module's text.
    name: the `@triton.jit` function. role: "prepare", "walk", "walk_back", "decode", "norm", ...: rows of a target are
    chosen by it. signature: run-time argument -> Triton type ("*bf16", "*fp32", "i32", "fp32"), a tuple of them for an
    argument that is a tuple. constants: constexpr arguments. aligned: run-time arguments that are multiples of 16 at
    every launch, of a tuple all its entries. matrix: it has matrix products,
    so that matrix instructions must be present. span: the line of the spec that asked for it. case: which of several
    ways to launch it this is, in words; empty for the plain one. moved: bytes a token and head of the state, of a
    kernel that does little else than to move them; 0 where they are not counted here. flops, exponentials: of such a
    kernel, as often.
    """

    file: str
    source: str
    name: str
    role: str
    signature: Mapping[str, str | tuple[str, ...]]
    constants: Mapping[str, Constant | tuple[Constant, ...]]
    aligned: tuple[str, ...]
    num_warps: int
    num_stages: int
    matrix: bool = True
    span: Span | None = None
    case: str = ""
    moved: float = 0.0
    flops: float = 0.0
    exponentials: float = 0.0
