"""The kernels that operations declare themselves, as they are compiled ahead of time."""

from __future__ import annotations

from collections.abc import Iterator

from archc.graph.costs import Sizes
from archc.graph.reach import reached
from archc.graph.types import Graph
from archc.kernels.kernel import Kernel
from archc.operations.registry import operations, source_path


def declared_kernels(graph: Graph, dtype: str = "bf16", warp_size: int = 32) -> list[Kernel]:
    """What `launches` of the operations of a model names, each once. Raises ValueError for a file that none has."""
    found: dict[str, Kernel] = {}
    for kernel in _all_of(graph, dtype, warp_size):
        found.setdefault(repr((kernel.file, kernel.name, kernel.signature, kernel.constants)), kernel)
    return list(found.values())


def _all_of(graph: Graph, dtype: str, warp_size: int) -> Iterator[Kernel]:
    known = operations()
    for module in graph.modules.values():
        subgraph, sizes = module.subgraph, Sizes(module.values)
        for number in sorted(reached(subgraph, subgraph.roots())):
            node = subgraph.nodes[number]
            for launch in known[node.op].launches(node, subgraph, sizes, dtype, warp_size):
                path = source_path(launch.file)
                if path is None:
                    raise ValueError(
                        f"`{node.op}` launches a kernel of `{launch.file}`, which no operation has"
                    )
                yield Kernel(
                    f"{launch.file}.py",
                    path.read_text(encoding="utf-8"),
                    launch.kernel,
                    node.op,
                    launch.signature,
                    launch.constants,
                    launch.aligned,
                    launch.num_warps,
                    launch.num_stages,
                    launch.matrix,
                    node.span,
                )
