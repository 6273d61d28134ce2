"""The syntax tree of an equation. Every node is immutable and knows where in the source it stands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from archc.spec.diagnostics import Span


@dataclass(frozen=True, slots=True)
class Expr:
    """Any node of an equation."""

    span: Span

    def children(self) -> tuple[Expr, ...]:
        """The nodes directly below this one, in source order."""
        return ()

    def walk(self) -> Iterator[Expr]:
        """This node and all below it, outermost first."""
        yield self
        for child in self.children():
            yield from child.walk()


@dataclass(frozen=True, slots=True)
class Number(Expr):
    """A literal, exact: `0.1` is one tenth."""

    value: Fraction


@dataclass(frozen=True, slots=True)
class Text(Expr):
    """A quoted word, compared with choice parameters."""

    value: str


@dataclass(frozen=True, slots=True)
class Name(Expr):
    """A bare word: a value, a parameter, a size, or `true`, `false`, `none`."""

    id: str


@dataclass(frozen=True, slots=True)
class Attribute(Expr):
    """`rope.theta`: an entry of a mapping parameter."""

    value: Expr
    name: str

    def children(self) -> tuple[Expr, ...]:
        return (self.value,)


@dataclass(frozen=True, slots=True)
class Subscript(Expr):
    """`segments[0]` of a list parameter; `v[i]`, `v[j]` in masks and scores."""

    value: Expr
    index: Expr

    def children(self) -> tuple[Expr, ...]:
        return (self.value, self.index)


@dataclass(frozen=True, slots=True)
class ListExpr(Expr):
    """`[n_heads, head_dim]`: axes, or a list of words."""

    items: tuple[Expr, ...]

    def children(self) -> tuple[Expr, ...]:
        return self.items


@dataclass(frozen=True, slots=True)
class Keyword:
    """`name=value` in a call."""

    span: Span
    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Call(Expr):
    """`f(a, b, k=c)`. A pipe `x | f(a)` is the call `f(x, a)`."""

    function: str
    function_span: Span
    args: tuple[Expr, ...]
    keywords: tuple[Keyword, ...]

    def children(self) -> tuple[Expr, ...]:
        return self.args + tuple(k.value for k in self.keywords)

    def keyword(self, name: str) -> Expr | None:
        """The value given as `name=`, or None."""
        return next((k.value for k in self.keywords if k.name == name), None)


@dataclass(frozen=True, slots=True)
class Unary(Expr):
    """`-x` or `not x`."""

    op: str
    operand: Expr

    def children(self) -> tuple[Expr, ...]:
        return (self.operand,)


@dataclass(frozen=True, slots=True)
class Binary(Expr):
    """`+ - * / // % **`."""

    op: str
    left: Expr
    right: Expr

    def children(self) -> tuple[Expr, ...]:
        return (self.left, self.right)


@dataclass(frozen=True, slots=True)
class Boolean(Expr):
    """`a and b and c`, `a or b`."""

    op: str
    values: tuple[Expr, ...]

    def children(self) -> tuple[Expr, ...]:
        return self.values


@dataclass(frozen=True, slots=True)
class Compare(Expr):
    """A chain `a < b <= c`: one operator fewer than operands. Operators: < <= > >= == !=."""

    ops: tuple[str, ...]
    operands: tuple[Expr, ...]

    def children(self) -> tuple[Expr, ...]:
        return self.operands


@dataclass(frozen=True, slots=True)
class Conditional(Expr):
    """`then if test else otherwise`; the test is static."""

    test: Expr
    then: Expr
    otherwise: Expr

    def children(self) -> tuple[Expr, ...]:
        return (self.test, self.then, self.otherwise)
