"""Which blocks of tokens a value counts in: found by going back to where the blocks were made."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from archc.graph.calls import Call
from archc.graph.types import Node, Ref
from archc.graph.values import Traced
from archc.spec import expressions as ex
from archc.spec.axes import Axis
from archc.spec.diagnostics import Label, Span

KEYS = Axis.named("keys")  # the axis of `probs`: one entry a key


@dataclass(frozen=True, slots=True)
class BlockRate:
    """Blocks of `width` tokens, one every `stride` tokens; tokens themselves are blocks of 1."""

    width: ex.Expr
    stride: ex.Expr

    @staticmethod
    def tokens(span: Span) -> BlockRate:
        """One token a block."""
        one = ex.Number(span, Fraction(1))
        return BlockRate(one, one)


def made_by(node: Node) -> BlockRate | None:
    """The blocks that a node's results count in, where it is the node that decides it."""
    found = node.attrs.get("blocks")
    if isinstance(found, BlockRate):
        return found
    return BlockRate.tokens(node.span) if node.op == "attention" else None


def blocks_of(call: Call, value: Traced) -> BlockRate:
    """The blocks that a value at block rate, or one over keys, counts in. Two kinds of blocks do not mix."""
    nodes = call.scope.nodes
    pending, seen = [value.ref], set[Ref]()
    found: dict[tuple[Fraction, Fraction], tuple[BlockRate, Node]] = {}
    while pending:
        ref = pending.pop()
        if ref in seen:
            continue
        seen.add(ref)
        node = nodes[ref.node]
        type_ = node.types[ref.index]
        if type_.rate != "block" and KEYS not in type_.axes:
            continue
        made = made_by(node)
        if made is None:
            pending += node.inputs
        else:
            sizes = (_number(call, made.width), _number(call, made.stride))
            found.setdefault(sizes, (made, node))
    if len(found) > 1:
        (first, other), *_ = [list(found.values())[:2]]
        call.fail(
            "E382",
            "blocks of different sizes meet here",
            labels=[Label(first[1].span, "these"), Label(other[1].span, "and these")],
            help="regroup(probs, n) counts the blocks of one size in those of another",
        )
    return next(iter(found.values()))[0] if found else BlockRate.tokens(call.span)


def _number(call: Call, expr: ex.Expr) -> Fraction:
    found = call.scope.evaluate(expr)
    return found if isinstance(found, Fraction) else Fraction(0)


def same(call: Call, a: ex.Expr, b: ex.Expr) -> bool:
    """Whether two static expressions come to the same number."""
    return _number(call, a) == _number(call, b)


__all__ = ["KEYS", "BlockRate", "blocks_of", "made_by", "same"]
