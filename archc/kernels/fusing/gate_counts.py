"""What the lines of an elementwise region compute, counted in the expressions that they are printed from.

FLOP are additions, subtractions, products and divisions, those of helpers and sums included; addresses, comparisons,
choices, signs and conversions are none. Exponentials are all that the special units give. What is made of polynomials,
such as a sine, counts as many FLOP as the language says.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

from archc.graph.functions import FUNCTIONS
from archc.kernels.fusing.gate_functions import OWN_HELPERS
from archc.kernels.fusing.gate_lines import Value
from archc.kernels.triton_functions import HELPERS

SPECIAL = {
    "exp": 0,
    "exp2": 0,
    "log": 0,
    "log2": 0,
    "sqrt": 0,
    "rsqrt": 0,
    "sigmoid": 2,
}  # name -> FLOP beside it
POLYNOMIALS = ("erf", "sin", "cos")
ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div)


@dataclass(frozen=True, slots=True)
class Counts:
    """FLOP and exponentials, by what they are done for.

    `often`: "TC" for each entry of a token, "T" for each head; "tile C" and "tile" the same once for the tokens of a
    tile, "program C" and "program" once for those of a program.
    """

    flops: Counter[str] = field(default_factory=Counter)
    exponentials: Counter[str] = field(default_factory=Counter)

    def add(self, often: str, found: tuple[int, int]) -> None:
        """Count some more."""
        self.flops[often] += found[0]
        self.exponentials[often] += found[1]

    def per_token(
        self, heads: int, channels: int, parts: int, tile: int, program: int
    ) -> tuple[float, float]:
        """FLOP and exponentials a token. `parts`: programs beside each other; `tile`, `program`: tokens of each."""
        times: dict[str, float] = {"TC": heads * channels, "T": heads}
        for lead, tokens in (("tile", tile), ("program", program)):
            times |= {f"{lead} C": heads * channels / tokens, lead: parts / tokens}
        flops = sum(times[often] * count for often, count in self.flops.items())
        return flops, sum(times[often] * count for often, count in self.exponentials.items())


def counted(roots: Iterable[Value], added: Iterable[Value] = ()) -> Counts:
    """What the values do, each once however many read it. `added`: those that are added to sums of all tiles."""
    counts = Counts()
    pending, seen = [*roots, *added], set[Value]()
    while pending:
        value = pending.pop()
        if value not in seen:
            seen.add(value)
            pending += value.inputs
            counts.add(
                _often(value, value.kind if value.inner is None else value.inner), operations(value.text)
            )
    for value in added:
        counts.add(_often(value, value.kind), (1, 0))
    return counts


def _often(value: Value, kind: str) -> str:
    if kind in ("TC", "T"):
        return kind
    return " ".join(filter(None, ("program" if value.model else "tile", kind)))


@cache
def operations(text: str) -> tuple[int, int]:
    """FLOP and exponentials of one entry of an expression over `{0}`, `{1}`, ..."""
    return _of(ast.parse(text.format(*(f"x{number}" for number in range(10))), mode="eval").body)


@cache
def _of_helper(name: str) -> tuple[int, int]:
    return _of(ast.parse((HELPERS | OWN_HELPERS)[name].replace("@triton.jit", "")))


def _of(node: ast.AST) -> tuple[int, int]:
    flops, special = 0, 0
    inner = [*ast.iter_child_nodes(node)]
    match node:
        case ast.BinOp(op=op):
            flops += isinstance(op, ARITHMETIC)
        case ast.Call(func=ast.Attribute(value=ast.Name(id="tl"), attr=name)):
            inner = [] if name in ("load", "arange") else [*node.args]  # addresses count nothing
            special += name in SPECIAL
            flops += SPECIAL.get(name, 0) + (FUNCTIONS[name].flops if name in POLYNOMIALS else name == "sum")
        case ast.Call(func=ast.Name(id=name)) if name in HELPERS or name in OWN_HELPERS:
            flops, special = _of_helper(name)
            inner = [*node.args]
    found = [(flops, special), *(_of(child) for child in inner)]
    return sum(f for f, _ in found), sum(s for _, s in found)
