"""Kernels whose fate is known: one that fits, and one for each way of not fitting."""

from __future__ import annotations

from dataclasses import replace

from archc.kernels.kernel import Kernel
from archc.spec.diagnostics import Span

SOURCE = """
import triton
import triton.language as tl


@triton.jit
def walk(q, k, v, out, T, C: tl.constexpr, K: tl.constexpr, V: tl.constexpr):
    sequence = tl.program_id(0).to(tl.int64)
    rows, ks, vs = tl.arange(0, C), tl.arange(0, K), tl.arange(0, V)
    S_KV = tl.zeros([K, V], tl.float32)
    for start in range(0, T, C):
        at = sequence * T + start + rows
        inside = (start + rows < T)[:, None]
        q_CK = tl.load(q + at[:, None] * K + ks[None, :], mask=inside, other=0.0)
        k_CK = tl.load(k + at[:, None] * K + ks[None, :], mask=inside, other=0.0)
        v_CV = tl.load(v + at[:, None] * V + vs[None, :], mask=inside, other=0.0)
        scores_CC = tl.dot(q_CK, tl.trans(k_CK))
        scores_CC = tl.where(rows[:, None] >= rows[None, :], scores_CC, 0.0).to(q_CK.dtype)
        o_CV = tl.dot(q_CK, S_KV.to(q_CK.dtype)) + tl.dot(scores_CC, v_CV)
        tl.store(out + at[:, None] * V + vs[None, :], o_CV, mask=inside)
        S_KV += tl.dot(tl.trans(k_CK), v_CV)


@triton.jit
def product(a, b, out, n, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    rows, columns, inner = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    sum_MN = tl.zeros([M, N], tl.float32)
    for start in range(0, n, K):
        a_MK = tl.load(a + rows[:, None] * n + start + inner[None, :])
        b_KN = tl.load(b + (start + inner)[:, None] * N + columns[None, :])
        sum_MN = tl.dot(a_MK, b_KN, sum_MN)
    tl.store(out + rows[:, None] * N + columns[None, :], sum_MN)


@triton.jit
def scale(x, out, n, C: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * C + tl.arange(0, C)
    x_C = tl.load(x + at, mask=at < n, other=0.0)
    tl.store(out + at, 2.0 * x_C, mask=at < n)


@triton.jit
def broken(x, out, n, C: tl.constexpr):
    at = tl.arange(0, C)
    tl.store(out + at, tl.load(x + at) + no_such_name)


@triton.jit
def assembly(x, out, n, C: tl.constexpr):
    at = tl.arange(0, C)
    x_C = tl.inline_asm_elementwise("ex2.approx.f32 $0, $1;", "=f,f", [tl.load(x + at)], tl.float32, True, 1)
    tl.store(out + at, x_C)
"""
KILLS = "import os\n\nos.kill(os.getpid(), 9)\n"
SPAN = Span("model.yaml", 4, 9, 4, 30)


def walk(K: int = 128, V: int = 128, C: int = 64, warps: int = 8, stages: int = 1) -> Kernel:
    """A walk over chunks with the state in registers."""
    return Kernel(
        "no_decay_kernels.py",
        SOURCE,
        "walk",
        "walk",
        {"q": "*bf16", "k": "*bf16", "v": "*bf16", "out": "*fp32", "T": "i32"},
        {"C": C, "K": K, "V": V},
        ("q", "k", "v", "out"),
        warps,
        stages,
        span=SPAN,
    )


def product(M: int = 64, N: int = 64, K: int = 64, warps: int = 4, stages: int = 2) -> Kernel:
    """A matrix product, which compiles in a second."""
    signature = {"a": "*bf16", "b": "*bf16", "out": "*fp32", "n": "i32"}
    sizes = {"M": M, "N": N, "K": K}
    aligned = ("a", "b", "out", "n")
    return Kernel(
        "product_kernels.py",
        SOURCE,
        "product",
        "product",
        signature,
        sizes,
        aligned,
        warps,
        stages,
        span=SPAN,
    )


def elementwise(name: str = "scale", matrix: bool = False) -> Kernel:
    """A kernel without matrix products; `matrix` claims that there are some."""
    signature = {"x": "*fp32", "out": "*fp32", "n": "i32"}
    return Kernel(
        "scale_kernels.py", SOURCE, name, "norm", signature, {"C": 128}, ("x", "out"), 4, 1, matrix, SPAN
    )


FITS = product()
WALK = walk()
SPILLS = product(M=128, N=256)
SHARED = product(M=128, N=128, stages=9)
TRAPS = walk(V=256, warps=4)  # for tensor memory
NO_MATRIX = elementwise(matrix=True)
PLAIN = elementwise()
BROKEN = elementwise("broken")
MISNAMED = replace(PLAIN, signature={"x": "*fp32", "n": "i32"}, aligned=("x",))
DIES = replace(PLAIN, source=KILLS)
ASSEMBLY = elementwise("assembly")
