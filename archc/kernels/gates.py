"""The kernels of what a model does entry by entry, as they are compiled ahead of time."""

from __future__ import annotations

from archc.graph.costs import Sizes
from archc.graph.types import Graph, Module
from archc.kernels.fusing.gate_files import COLUMNS, ENTRIES, FILE, TOKENS, gate_files, once
from archc.kernels.fusing.gate_view import Gate
from archc.kernels.fusing.gates import gates_of
from archc.kernels.kernel import Constant, Kernel
from archc.printing.letters import assign_letters

ENTRIES_A_THREAD = 8


def gate_kernels(graph: Graph, dtype: str = "bf16", warp_size: int = 32) -> list[Kernel]:
    """The kernels of the elementwise regions of a model, forward and backward."""
    found = gates_of(graph, assign_letters(graph))
    source = gate_files(once(found)).get(f"{FILE}_kernels.py", "")
    kernels = []
    for key, gates in found.items():
        for gate in gates:
            kernels += _of(gate, graph.modules[key], source, dtype, warp_size)
    return kernels


def tile(channels: int, whole: bool) -> tuple[int, int]:
    """Tokens and entries of each in a program's tile, as the launchers cut it."""
    block_c = 1 << (channels - 1).bit_length()
    block_c = block_c if whole else min(block_c, COLUMNS)
    return max(ENTRIES // block_c, 1), block_c


def _state_heads(module: Module, sizes: Sizes) -> int:
    """Heads of the state that a module's recurrence has; 1 where it has none."""
    nodes = (node for node in module.subgraph.nodes if node.op == "recurrence")
    axis = next((node.attrs["state_heads"] for node in nodes), None)
    return 1 if axis is None else sizes.axis(axis)


def _of(gate: Gate, module: Module, source: str, dtype: str, warp_size: int) -> list[Kernel]:
    """Forward and backward of one region, each with the tiles of its launch."""
    sizes = Sizes(module.values)
    axes = gate.region.axes
    heads, channels = (sizes.product(part) for part in (axes[: gate.outer], axes[gate.outer :]))
    block_t, block_c = tile(channels, gate.whole)
    constants: dict[str, Constant] = {"HEADS": heads} if gate.outer else {}
    constants |= {"CHANNELS": channels, "BLOCK_T": block_t, "BLOCK_C": block_c}
    blocks: dict[str, Constant] = {"BLOCKS": max(TOKENS // block_t, 1)} if gate.summed else {}
    types = {o.plain: "fp32" if o.single else dtype for o in gate.operands}
    types |= {result.plain: "fp32" if result.single else dtype for result in gate.results}
    sums = {f"d{operand.plain}": "fp32" for operand in gate.summed}
    slopes = {f"d{name}": type_ for name, type_ in types.items()} | sums
    types |= slopes
    rows = [o for o in gate.strided if (heads * channels if o.kind == "TC" else heads) % 16 == 0]
    strides = {f"{operand.plain}_row" for operand in rows}
    line = next(node.span for node in gate.region.nodes if node.id == gate.region.at)
    # Entries of a token; of what all tokens share, one for each entry or head of a program's tokens.
    entries: dict[str, float] = {}
    entries |= {o.plain: heads * channels if o.kind == "TC" else heads for o in gate.operands if o.per_token}
    entries |= {r.plain: heads * channels if r.kind == "TC" else heads for r in gate.results}
    entries |= {f"d{name}": count for name, count in entries.items()}
    span = max(TOKENS, block_t)
    parts = heads if gate.outer else -(-channels // block_c)
    entries |= {f"d{o.plain}": (heads * channels if o.kind else parts) / span for o in gate.summed}
    kernels = []
    state_heads = _state_heads(module, sizes)
    for name, pointers, operands, more, counts, program in (
        (f"{gate.name}_kernel", gate.pointers, gate.read, {}, gate.counts[0], block_t),
        (f"{gate.name}_backward_kernel", gate.backward_pointers, gate.reread, blocks, gate.counts[1], span),
    ):
        signature = {pointer: f"*{types[pointer.removesuffix('_ptr')]}" for pointer in pointers}
        signature |= {
            "tokens": "i32",
            **dict.fromkeys(gate.rows(operands), "i32"),
            **dict.fromkeys(gate.numbers, "fp32"),
        }
        names = [pointer.removesuffix("_ptr") for pointer in pointers]
        moved = sum(entries.get(name, 0) * (4 if types[name] == "fp32" else 2) for name in names)
        done = counts.per_token(heads, channels, parts, block_t, program if gate.summed else block_t)
        aligned = tuple(key for key in signature if key.endswith("_ptr") or key in strides)
        kernels.append(
            Kernel(
                f"{FILE}_kernels.py",
                source,
                name,
                "gates",
                signature,
                {**constants, **more},
                aligned,
                ENTRIES // (ENTRIES_A_THREAD * warp_size),
                3,
                False,
                line,
                moved=moved / state_heads,
                flops=done[0] / state_heads,
                exponentials=done[1] / state_heads,
            )  # fmt: skip
        )
    return kernels
