"""`cache=[c, kr]`: what is kept of each token where keys and values are computed again (language rule 12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from archc.graph.calls import Call
from archc.graph.types import Node, Ref, Subgraph
from archc.graph.values import Traced
from archc.operations.base import Operation, Signature, StateSpec
from archc.operations.registry import operations
from archc.printing.printer import Code, Printer, call
from archc.spec.axes import Axis


class Cached(Operation):
    """A value as all tokens had it that the queries of a call may see. Made by the pass `cut_caches`."""

    name = "cached"
    title = "a value of all tokens seen so far"
    signature = Signature.parse("")

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`cached(place, "c", c, window=...)`."""
        printer.use("cache", "cached")
        window = node.attrs["window"]
        return call(
            "cached",
            printer.place(),
            f'"{node.attrs["entry"]}"',
            inputs[0],
            window=None if window is None else printer.whole(window),
        )

    def states(self, node: Node, graph: Subgraph) -> list[StateSpec]:
        """The value at every token, or at those of the window."""
        window = node.attrs["window"]
        slots: Axis | str = "all" if window is None else Axis.of(window)
        return [StateSpec(node.attrs["entry"], node.type.axes, "compute", slots)]


def check_cut(call: Call, cut: Sequence[Traced], operands: Mapping[str, Traced]) -> None:
    """Every way from the body's inputs to k and v leads through a cached value, and nothing behind one looks back."""
    nodes = call.scope.nodes
    known = operations()
    for value in cut:
        if value.type.rate != "token":
            call.fail("E381", "cache= names values with tokens", call.span_of("cache"))
    held = {value.ref for value in cut}
    for name, operand in operands.items():
        pending: list[tuple[Ref, str]] = [(operand.ref, "")]
        seen: set[Ref] = set()
        while pending:
            ref, through = pending.pop()
            node = nodes[ref.node]
            if ref in held or ref in seen or node.types[ref.index].rate in ("static", "model"):
                continue
            seen.add(ref)
            through = node.equation or through
            if not node.inputs and not known[node.op].positional:
                call.fail(
                    "E381",
                    f"`{name}` also depends on `{node.name or node.op}` past the cached values, through `{through}`",
                    call.span_of("cache"),
                    note="what is kept of a token must be enough to compute its key and value again",
                    help=f"add `{through}`, or what it comes from, to cache=",
                )
            if not (known[node.op].tokenwise or known[node.op].positional):
                call.fail(
                    "E381",
                    f"`{node.op}` stands between the cached values and `{name}`, and it looks at other tokens",
                    node.span,
                    help="keep what comes after it instead",
                )
            pending += [(given, through) for given in node.inputs]


__all__ = ["Cached", "check_cut"]
