"""The kernels that the convolutions of a model launch, as they are compiled ahead of time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from archc.graph.costs import Sizes
from archc.graph.reach import reached
from archc.graph.types import Graph
from archc.kernels.fusing.producers import Chain, conv_groups
from archc.kernels.kernel import Constant, Kernel
from archc.operations.conv1d import __file__ as conv1d_file

# As in the kernels' own file: entries of a program, tokens that each of its rows walks, what runs in the torch form.
FORWARD, BACKWARD = (1024, 16), (512, 32)
WIDEST, LARGEST_HEAD = 8, 1024

_ARGUMENTS = {
    "conv_forward": "x strides weight bias past y sequence cu_seqlens tokens length sequences",
    "conv_backward": "dy x strides weight bias past dx sums sequence cu_seqlens tokens length sequences",
    "conv_past_backward": "dy x strides weight bias past dpast cu_seqlens length sequences",
    "conv_last": "x strides past last cu_seqlens length sequences",
}
_SHARED = {"sequence": "*i64", "cu_seqlens": "*i64", "sums": "*fp32"}
_LENGTHS = {"tokens": "i32", "length": "i32", "sequences": "i32"}


def conv_kernels(graph: Graph, dtype: str = "bf16") -> list[Kernel]:
    """The kernels that the convolutions of a model launch, each once: for whole sequences and for continued ones."""
    found: dict[str, Kernel] = {}
    for module in graph.modules.values():
        subgraph = module.subgraph
        roots = [subgraph.output, *subgraph.exports.values(), *subgraph.carried.values()]
        for group in conv_groups(subgraph, reached(subgraph, roots)):
            for kernel in _kernels_of(group, Sizes(module.values), dtype):
                found.setdefault(repr((kernel.name, kernel.signature, kernel.constants)), kernel)
    return list(found.values())


def _kernels_of(group: tuple[Chain, ...], sizes: Sizes, dtype: str) -> list[Kernel]:
    """Forward and backward over whole sequences, and all four over packed ones that continue."""
    conv = group[0].conv
    constants = constants_of(group, sizes)
    largest = max(
        (size for size, norm in zip(constants["SIZES"], constants["NORMS"]) if norm != "none"), default=0
    )
    if not 1 < constants["WIDTH"] <= WIDEST or largest > LARGEST_HEAD:
        return []
    source = (Path(conv1d_file).parent / "kernels.py").read_text(encoding="utf-8")
    widest = max(constants["COLUMNS"])
    kernels = []
    for name, continued in [
        ("conv_forward", False),
        ("conv_backward", False),
        *((name, True) for name in _ARGUMENTS),
    ]:
        entries, steps = BACKWARD if "backward" in name else FORWARD
        types: dict[str, str | tuple[str, ...]] = {}
        values: dict[str, Constant | tuple[Constant, ...]] = {"ROWS": max(entries // widest, 1)}
        for argument in _ARGUMENTS[name].split():
            absent = argument == "bias" and not conv.attrs["bias"]
            if absent or argument in ("past", "sequence", "cu_seqlens") and not continued:
                values[argument] = None
            elif argument == "strides":
                types[argument] = ("i32",) * len(group)
            else:
                of_each = (f"*{dtype}",) * len(group)
                types[argument] = _SHARED.get(argument) or _LENGTHS.get(argument) or of_each
        if name in ("conv_forward", "conv_backward"):
            values["STEPS"] = steps
        if name == "conv_backward":
            values["ALL"] = sum(constants["CHANNELS"])
        kept = ("CHANNELS", "SIZES", "COLUMNS", "WIDTH") if name == "conv_last" else constants
        values |= {key: constants[key] for key in kept}
        warps = 4 * max(widest // entries, 1)
        aligned = tuple(
            key for key in types if key not in _LENGTHS and (key != "strides" or _even(constants))
        )
        case = f"{sum(constants['CHANNELS'])} channels{', continued' if continued else ''}"
        kernels.append(
            Kernel(
                "conv_kernels.py",
                source,
                name,
                "conv",
                types,
                values,
                aligned,
                warps,
                1,
                False,
                conv.span,
                case,
            )
        )
    return kernels


def constants_of(group: tuple[Chain, ...], sizes: Sizes) -> dict[str, Any]:
    """What `branches` of the kernels' file says of a group."""
    channels = tuple(sizes.product(chain.end.type.axes) for chain in group)
    heads = tuple(
        min(128, _power_of_2(count)) if chain.norm == "none" else sizes.axis(chain.end.type.axes[-1])
        for chain, count in zip(group, channels)
    )
    return {
        "CHANNELS": channels,
        "SIZES": heads,
        "COLUMNS": tuple(map(_power_of_2, heads)),
        "ACTIVATIONS": tuple(chain.activation for chain in group),
        "NORMS": tuple(chain.norm for chain in group),
        "EPS": tuple(0.0 if chain.eps is None else float(sizes.number(chain.eps)) for chain in group),
        "WIDTH": int(sizes.number(group[0].conv.attrs["width"])),
    }


def _even(constants: dict[str, Any]) -> bool:
    return all(channels % 16 == 0 for channels in constants["CHANNELS"])


def _power_of_2(number: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << (number - 1).bit_length()
