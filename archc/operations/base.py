"""What every operation says of itself: its signature, shape rule, printed form, state and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from archc.graph.calls import Call
from archc.graph.costs import Cost, Sizes
from archc.graph.signature import Argument, Signature
from archc.graph.types import Node, Ref, Subgraph
from archc.graph.values import Value
from archc.printing.printer import Code, Printer
from archc.spec.axes import Axis
from archc.spec.expressions import Expr

__all__ = ["Argument", "Launch", "Operation", "Signature", "StateSpec", "widest"]


@dataclass(frozen=True, slots=True)
class StateSpec:
    """One tensor of memory of an operation: `[N, *shape]`, called `<member><suffix>`.

    `dtype`: "float32" or "compute". `slots`: tokens kept, before `shape`: "all" up to the state's maximum, an axis
    for a ring of so many, or None. `fill`: what it starts from, "zeros", "-inf" or a static number.
    """

    name: str
    shape: tuple[Axis, ...]
    dtype: str
    slots: Axis | str | None = None
    fill: str | Expr = "zeros"
    every: Expr | None = None  # with "all": a slot for every so many tokens


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel that an operation launches, as it is compiled ahead of time and held against the target's limits.

    `file`: of the package, without `.py`; `kernel`: the `@triton.jit` function in it. `signature`: run-time argument ->
    Triton type ("*bf16", "*fp32", "i32"). `constants`: constexpr arguments. `aligned`: run-time arguments that are
    multiples of 16 at every launch. `matrix`: it has matrix products.
    """

    file: str
    kernel: str
    signature: Mapping[str, str]
    constants: Mapping[str, int | float | bool | str | None]
    aligned: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 3
    matrix: bool = False


def widest(first: StateSpec, second: StateSpec) -> StateSpec:
    """What serves two readers of one entry: a ring only where both want the same."""
    if first.slots == second.slots:
        return first
    return replace(first, slots="all")


class Operation:
    """One operation of the language.

    Subclasses set `name` and `signature` and define `build` and `emit`; those with weights also `declare` and
    `initial`, those with memory `states`. `runtime` names the run-time sources that the printed form needs.
    """

    name: ClassVar[str]
    signature: ClassVar[Signature]
    runtime: ClassVar[tuple[str, ...]] = ()
    suffix: ClassVar[str] = (
        ""  # of the attribute name: `q` + `conv` -> `q_conv`; empty for the equation's own name
    )
    weighted: ClassVar[bool] = False
    tokenwise: ClassVar[bool] = False  # each token's result depends on that token alone, wherever it stands
    positional: ClassVar[bool] = False  # it depends on that token and on its place in the sequence
    title: ClassVar[str] = ""
    # Of packages for a GPU: files beside `runtime.py`, by their name in a package without `.py`, and what stands in the
    # place of which (file of a package, name).
    kernel_files: ClassVar[Mapping[str, str]] = {}
    with_kernels: ClassVar[Mapping[tuple[str, str], tuple[str, str]]] = {}
    forms: ClassVar[tuple[str, ...]] = ()  # of an operation with a history of tokens: how it is computed

    def build(self, call: Call) -> Value:
        """Check the call and add its node. Errors go through `call.fail`."""
        raise NotImplementedError

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """The operation as a Python expression over its printed inputs."""
        raise NotImplementedError

    def owns(self, node: Node) -> bool:
        """Whether the node has an attribute with weights."""
        return self.weighted and bool(node.name)

    def declare(self, node: Node, printer: Printer) -> list[str]:
        """Constructor lines for the attribute `self.<node.name>`; none for operations without weights."""
        return []

    def initial(self, node: Node) -> list[tuple[str, tuple[Axis, ...], Ref | None]]:
        """The weights by attribute path, with their axes and the value they start from (None: the default)."""
        return []

    def parameters(self, node: Node, sizes: Sizes) -> list[tuple[str, tuple[int, ...]]]:
        """The weights by attribute path, with their shapes as torch has them."""
        return [(path, tuple(sizes.axis(axis) for axis in axes)) for path, axes, _ in self.initial(node)]

    def states(self, node: Node, graph: Subgraph) -> list[StateSpec]:
        """The memory the operation keeps between calls."""
        return []

    def remembers(self) -> bool:
        """Whether it keeps memory between calls."""
        return type(self).states is not Operation.states

    def launches(
        self, node: Node, graph: Subgraph, sizes: Sizes, dtype: str, warp_size: int
    ) -> Sequence[Launch]:
        """The kernels of `kernel_files` that the node launches for activations of `dtype` ("bf16", "fp16", "fp32")."""
        return ()

    def cost(self, node: Node, graph: Subgraph, sizes: Sizes) -> Cost:
        """Parameters, and FLOPs a token as a function of the context."""
        return Cost()
