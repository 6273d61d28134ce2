"""The decode kernel of a recurrence as it is launched: one token of every head."""

from __future__ import annotations

from archc.kernels.kernel import Kernel
from archc.tiles.kind import RecurrenceKind
from archc.tiles.triton_decode import WARPS, blocks, operands


def decode_kernel(
    kind: RecurrenceKind,
    K: int,
    V: int,
    dtype: str,
    *,
    heads: int = 1,
    queries: int = 1,
    file: str = "",
    source: str = "",
) -> Kernel:
    """The kernel as it is launched for a state `[heads, K, V]` and activations of `dtype` ("bf16", "fp16", "fp32").

    `queries`: heads of q for each of the state, in a grouped class. The gates that feed a decay are float32.
    """
    found = operands(kind)
    pointers = {
        operand.name: "*fp32" if operand.name in ("decay", "rate") else f"*{dtype}" for operand in found
    } | {"S": "*fp32", "o": f"*{dtype}"}
    strides: dict[str, str] = {}
    aligned = list(pointers)
    constants: dict[str, int] = {}
    sizes = {"K": K, "V": V}
    for operand in found:
        if operand.argument.per_token:
            strides |= {f"{operand.name}_B": "i32", f"{operand.name}_H": "i32"}
            row = 1
            for axis in operand.argument.axes.removeprefix("BTH"):
                row *= sizes[axis]
            count = heads * queries if operand.grouped else heads
            aligned += [f"{operand.name}_H"] if row % 16 == 0 else []
            aligned += [f"{operand.name}_B"] if row * count % 16 == 0 else []
        if not operand.grouped:
            constants[f"{operand.name}_heads"] = heads
    block_K, block_V = blocks(K, V)
    constants |= {"H": heads, **({"Q": queries} if kind.grouped else {}), "K": K, "V": V}
    constants |= {"BLOCK_K": block_K, "BLOCK_V": block_V}
    return Kernel(
        file, source, "decode_kernel", "decode", {**pointers, "scale": "fp32", **strides}, constants,
        tuple(aligned), WARPS, 1, matrix=False,
    )  # fmt: skip
