"""The kernels that norms, gated products and scans of a model launch, as they are compiled ahead of time."""

from __future__ import annotations

from collections.abc import Iterator

from archc.graph.costs import Sizes
from archc.graph.reach import reached
from archc.graph.types import Graph, Node, Subgraph
from archc.kernels.fusing.select import products
from archc.kernels.kernel import Constant, Kernel
from archc.operations.registry import source_path
from archc.spec.axes import Axis
from archc.spec.diagnostics import Span

# As in the kernels' own files.
ENTRIES, ENTRIES_A_THREAD = 2048, 16  # of a program of norms and products
WIDEST, WIDEST_GATED = 16384, 8192  # entries of a row of norms
SCAN_TOKENS, SCAN_CHANNELS, SCAN_ENTRIES_A_THREAD = 64, 32, 8

_ARGUMENTS = {
    "rmsnorm_kernel": "x_ptr weight_ptr gate_ptr y_ptr tokens x_token x_head gate_token gate_head weight_head eps",
    "rmsnorm_backward_kernel": "dy_ptr x_ptr weight_ptr gate_ptr dx_ptr dweight_ptr dgate_ptr "
    "tokens x_token x_head gate_token gate_head weight_head eps",
    "glu_kernel": "gate_ptr up_ptr y_ptr rows gate_row up_row",
    "glu_backward_kernel": "dy_ptr gate_ptr up_ptr dgate_ptr dup_ptr rows gate_row up_row",
    "scan_kernel": "x_ptr g_ptr before_ptr cu_seqlens_ptr h_ptr after_ptr T N g_row g_token g_outer g_inner",
    "scan_backward_kernel": "dh_ptr dafter_ptr g_ptr h_ptr before_ptr cu_seqlens_ptr dx_ptr dg_ptr dbefore_ptr "
    "T N g_row g_token g_outer g_inner",
}
_FLOAT32 = ("dweight_ptr", "g_ptr", "dg_ptr", "before_ptr", "after_ptr", "dafter_ptr", "dbefore_ptr")


def rowwise_kernels(graph: Graph, dtype: str = "bf16", warp_size: int = 32) -> list[Kernel]:
    """The kernels of the norms, gated products and scans of a model, each once."""
    found: dict[str, Kernel] = {}
    for kernel in _all_of(graph, dtype, warp_size):
        found.setdefault(repr((kernel.name, kernel.signature, kernel.constants)), kernel)
    return list(found.values())


def _all_of(graph: Graph, dtype: str, warp_size: int) -> Iterator[Kernel]:
    settings = graph.settings
    for module in graph.modules.values():
        subgraph, sizes = module.subgraph, Sizes(module.values)
        if "rmsnorm" in (settings.norm, settings.embedding_norm):
            yield from norm_kernels(sizes.axis(Axis.named("d_model")), dtype=dtype, warp_size=warp_size)
        roots = [subgraph.output, *subgraph.exports.values(), *subgraph.carried.values()]
        among = reached(subgraph, roots)
        found = products(subgraph, among)
        inside = {node.id for product in found.values() for node in product.inside}
        for number in sorted(among):
            node = subgraph.nodes[number]
            if number in found and found[number].norm is None:
                width = sizes.product(node.type.axes)
                yield from glu_kernels(width, found[number].activation, dtype, warp_size, node.span)
            elif number in found:
                yield from _of_norm(found[number].norm, found[number].activation, sizes, dtype, warp_size)
            elif node.op == "rmsnorm" and number not in inside:
                yield from _of_norm(node, None, sizes, dtype, warp_size)
            elif node.op == "scan" and "angle" not in node.attrs["order"]:
                channels = sizes.product(node.type.axes)
                inner = _inner(node, subgraph, sizes)
                yield from scan_kernels(channels, inner, dtype, warp_size, node.span)


def _of_norm(
    node: Node | None, activation: str | None, sizes: Sizes, dtype: str, warp_size: int
) -> list[Kernel]:
    assert node is not None
    width, weight = sizes.product(node.attrs["over"]), node.attrs["weight"]
    heads = 1 if weight is None else max(sizes.product(weight) // width, 1)
    return norm_kernels(width, heads, weight is not None, activation, dtype, warp_size, node.span)


def _inner(node: Node, graph: Subgraph, sizes: Sizes) -> int:
    """How many neighbours the decay's last stored or repeated axes span; 0 where it lies as the value does."""
    decay = graph.type_of(node.inputs[1]).axes
    stored = [axis in decay for axis in node.type.axes]
    run = next((k for k, there in enumerate(reversed(stored)) if there != stored[-1]), len(stored))
    return 0 if all(stored) else sizes.product(node.type.axes[len(stored) - run :])


def norm_kernels(
    width: int,
    heads: int = 1,
    weighted: bool = True,
    activation: str | None = None,
    dtype: str = "bf16",
    warp_size: int = 32,
    span: Span | None = None,
) -> list[Kernel]:
    """rmsnorm over rows of `width`, forward and backward; `heads` weights in turn; times a gate with `activation`.

    Nothing where a row does not fit in registers.
    """
    if width > (WIDEST if activation is None else WIDEST_GATED):
        return []
    block_w = _power_of_2(width)
    block_t = max(ENTRIES // block_w, 1)
    constants: dict[str, Constant] = {
        "HEADS": heads,
        "WIDTH": width,
        "BLOCK_T": block_t,
        "BLOCK_W": block_w,
        "ZERO_CENTRED": 0,
        "ACTIVATION": activation or "none",
        **({} if weighted else {"weight_ptr": None}),
        **({} if activation is not None else {"gate_ptr": None}),
    }
    warps = max(block_t * block_w // (ENTRIES_A_THREAD * warp_size), 1)
    strides = ("x_token", "x_head", "gate_token", "gate_head", "weight_head") if width % 16 == 0 else ()
    names = ("rmsnorm_kernel", "rmsnorm_backward_kernel")
    case = f"{width} entries{'' if activation is None else f', gate {activation}'}"
    return [_kernel("norm", name, constants, strides, dtype, warps, span, case) for name in names]


def glu_kernels(
    width: int,
    activation: str = "silu",
    dtype: str = "bf16",
    warp_size: int = 32,
    span: Span | None = None,
) -> list[Kernel]:
    """activation(gate) * up over `width` entries a token, forward and backward."""
    block_w = min(_power_of_2(width), ENTRIES)
    constants: dict[str, Constant] = {
        "WIDTH": width,
        "BLOCK_R": ENTRIES // block_w,
        "BLOCK_W": block_w,
        "ACTIVATION": activation,
    }
    warps = ENTRIES // (ENTRIES_A_THREAD * warp_size)
    strides = ("gate_row", "up_row") if width % 16 == 0 else ()
    names = ("glu_kernel", "glu_backward_kernel")
    case = f"{width} entries, {activation}"
    return [_kernel("gated", name, constants, strides, dtype, warps, span, case) for name in names]


def scan_kernels(
    channels: int, inner: int = 0, dtype: str = "bf16", warp_size: int = 32, span: Span | None = None
) -> list[Kernel]:
    """The scan over `channels`, forward and backward: whole sequences, and packed ones that continue.

    `inner`: neighbours that the decay's last axis spans, 0 where it has all axes of the value.
    """
    found = []
    for continued in (False, True):
        constants: dict[str, Constant] = {
            "CHANNELS": channels,
            "INNER": inner,
            "BLOCK_T": SCAN_TOKENS,
            "BLOCK_C": SCAN_CHANNELS,
            **({"g_inner": 1} if inner == 0 else {}),
            **({} if continued else {"before_ptr": None, "cu_seqlens_ptr": None}),
        }
        warps = SCAN_TOKENS * SCAN_CHANNELS // (SCAN_ENTRIES_A_THREAD * warp_size)
        strides = ("g_row", "g_token", "g_outer") if inner == 0 and channels % 16 == 0 else ()
        names = ("scan_kernel", "scan_backward_kernel")
        case = f"{channels} channels{', continued' if continued else ''}"
        found += [_kernel("scan", name, constants, strides, dtype, warps, span, case) for name in names]
    return found


def _kernel(
    role: str,
    name: str,
    constants: dict[str, Constant],
    strides: tuple[str, ...],
    dtype: str,
    num_warps: int,
    span: Span | None,
    case: str,
) -> Kernel:
    """Pointers and `strides` are multiples of 16."""
    file = "glu_kernels" if role == "gated" else f"{role}_kernels"
    path = source_path(file)
    assert path is not None
    source = path.read_text(encoding="utf-8")
    signature = {key: _type(key, dtype) for key in _ARGUMENTS[name].split() if key not in constants}
    aligned = tuple(key for key in signature if key.endswith("_ptr") or key in strides)
    return Kernel(
        f"{file}.py", source, name, role, signature, constants, aligned, num_warps, 3, False, span, case
    )


def _type(argument: str, dtype: str) -> str:
    if argument == "cu_seqlens_ptr":
        return "*i64"
    if argument.endswith("_ptr"):
        return "*fp32" if argument in _FLOAT32 else f"*{dtype}"
    return "fp32" if argument == "eps" else "i32"


def _power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()
