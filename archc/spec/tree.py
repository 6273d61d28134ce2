"""Turns Python's syntax tree into the language's own: a fixed set of nodes, everything else is an error."""

from __future__ import annotations

import ast
from collections.abc import Callable

from archc.spec.diagnostics import Label, Reporter, Span
from archc.spec.expressions import (
    Attribute,
    Binary,
    Boolean,
    Call,
    Compare,
    Conditional,
    Expr,
    Keyword,
    ListExpr,
    Name,
    Number,
    Subscript,
    Text,
    Unary,
)
from archc.spec.lexer import exact_number

_BINARY: dict[type[ast.operator], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Pow: "**",
}
_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}
_NOT_CALLED = frozenset({"true", "false", "none", "..."})
_FOREIGN: dict[type[ast.expr], tuple[str, str]] = {
    ast.Tuple: (
        "several values with commas between them",
        "an equation has one value; axes and lists stand in `[...]`",
    ),
    ast.Slice: ("a slice", "`select(value, axis, k)` and `split` take parts of a value"),
    ast.Starred: ("a starred value", "write the values out"),
}


class _Refused(Exception):
    """A part of the equation is not in the language; the reason has been reported."""


class Converter:
    """Converts one equation. `place` turns offsets of `text` into spans."""

    def __init__(self, text: str, place: Callable[[int, int], Span], report: Reporter) -> None:
        self.text = text
        self.place = place
        self.report = report
        self.starts = [0]
        for line in text.split("\n"):
            self.starts.append(self.starts[-1] + len(line) + 1)

    def convert(self, tree: ast.expr) -> Expr | None:
        """The language's tree, or None after an error."""
        try:
            return self._expr(tree)
        except _Refused:
            return None

    def _offset(self, line: int, column: int) -> int:
        return self.starts[line - 1] + column - (1 if line == 1 else 0)

    def _range(self, node: ast.expr | ast.keyword) -> tuple[int, int]:
        """Offsets of a node, without the parentheses around the whole text that a tuple includes."""
        start = self._offset(node.lineno, node.col_offset)
        end = self._offset(node.end_lineno or node.lineno, node.end_col_offset or 0)
        return max(start, 0), min(end, len(self.text))

    def _span(self, node: ast.expr | ast.keyword) -> Span:
        return self.place(*self._range(node))

    def _refuse(
        self, code: str, message: str, span: Span, help: str = "", labels: tuple[Label, ...] = ()
    ) -> _Refused:
        self.report.error(code, message, span, help=help, labels=labels)
        return _Refused()

    def _in_parentheses(self, node: ast.expr) -> bool:
        start, end = self._range(node)
        return self.text[:start].rstrip().endswith("(") and self.text[end:].lstrip().startswith(")")

    def _expr(self, node: ast.expr) -> Expr:
        span = self._span(node)
        if isinstance(node, ast.Constant):
            return self._constant(node, span)
        if isinstance(node, ast.Name):
            return Name(span, node.id)
        if isinstance(node, ast.Attribute):
            if not isinstance(node.value, ast.Name | ast.Attribute):
                raise self._refuse(
                    "E126", "only an entry of a parameter is read with `.`, as in `rope.theta`", span
                )
            return Attribute(span, self._expr(node.value), node.attr)
        if isinstance(node, ast.Subscript):
            return self._subscript(node, span)
        if isinstance(node, ast.List):
            return ListExpr(span, tuple(self._expr(item) for item in node.elts))
        if isinstance(node, ast.Call):
            return self._call(node, span, piped=None)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
            return Unary(span, "-" if isinstance(node.op, ast.USub) else "not", self._expr(node.operand))
        if isinstance(node, ast.BinOp):
            if isinstance(node.op, ast.BitOr):
                return self._pipe(node, span)
            if type(node.op) in _BINARY:
                return Binary(span, _BINARY[type(node.op)], self._expr(node.left), self._expr(node.right))
        if isinstance(node, ast.BoolOp):
            op = "and" if isinstance(node.op, ast.And) else "or"
            return Boolean(span, op, tuple(self._expr(value) for value in node.values))
        if isinstance(node, ast.Compare):
            return self._compare(node, span)
        if isinstance(node, ast.IfExp):
            return Conditional(span, self._expr(node.test), self._expr(node.body), self._expr(node.orelse))
        what, help = _FOREIGN.get(type(node), ("this form of Python", ""))
        raise self._refuse("E126", f"{what} is not part of the language", span, help)

    def _constant(self, node: ast.Constant, span: Span) -> Expr:
        start, end = self._range(node)
        if node.value is Ellipsis:
            return Name(span, "...")
        if isinstance(node.value, str):
            if len(node.value) != end - start - 2:
                raise self._refuse("E131", "two quoted words side by side", span, "keep one of them")
            return Text(span, node.value)
        value = exact_number(self.text[start:end])
        if isinstance(value, str):
            raise self._refuse("E123", "not a number here", span, value)
        return Number(span, value)

    def _subscript(self, node: ast.Subscript, span: Span) -> Expr:
        if not isinstance(node.value, ast.Name | ast.Attribute):
            raise self._refuse(
                "E126",
                "only a name is indexed",
                span,
                "`select(value, axis, k)` takes one entry of an axis; give the value a name first",
            )
        return Subscript(span, self._expr(node.value), self._expr(node.slice))

    def _compare(self, node: ast.Compare, span: Span) -> Expr:
        operands = (node.left, *node.comparators)
        for operand in operands:
            if (
                isinstance(operand, ast.BinOp)
                and isinstance(operand.op, ast.BitOr)
                and not self._in_parentheses(operand)
            ):
                raise self._refuse(
                    "E125",
                    "`|` beside a comparison",
                    self._span(operand),
                    "join conditions with `or`; put a pipe that is compared in parentheses",
                )
        ops = []
        for op in node.ops:
            if type(op) not in _COMPARE:
                raise self._refuse("E126", "this comparison is not part of the language", span)
            ops.append(_COMPARE[type(op)])
        return Compare(span, tuple(ops), tuple(self._expr(operand) for operand in operands))

    def _pipe(self, node: ast.BinOp, span: Span) -> Expr:
        left = self._expr(node.left)
        right = node.right
        if isinstance(right, ast.Call):
            return self._call(right, span, piped=left)
        if isinstance(right, ast.Name) and right.id not in _NOT_CALLED:
            return Call(span, right.id, self._span(right), (left,), ())
        raise self._refuse(
            "E125",
            "the right side of `|` is the name of a function, or a call",
            self._span(right),
            "put parentheses around the pipe: `(x | silu) * gate`; conditions are joined with `or`",
        )

    def _call(self, node: ast.Call, span: Span, piped: Expr | None) -> Expr:
        if not isinstance(node.func, ast.Name) or node.func.id in _NOT_CALLED:
            raise self._refuse(
                "E127", "only a name can be called", self._span(node.func), "a product is written with `*`"
            )
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                raise self._refuse(
                    "E127", "`*` before an argument", self._span(argument), "write each argument out"
                )
        keywords: dict[str, Keyword] = {}
        for keyword in node.keywords:
            keyword_span = self._span(keyword)
            if keyword.arg is None:
                raise self._refuse("E127", "`**` before an argument", keyword_span, "write each argument out")
            start = self._range(keyword)[0]
            name_span = self.place(start, start + len(keyword.arg))
            if keyword.arg in keywords:
                first = keywords[keyword.arg].span
                raise self._refuse(
                    "E127",
                    f"`{keyword.arg}=` is given twice",
                    name_span,
                    "keep one of the two",
                    (Label(first, "first given here"),),
                )
            keywords[keyword.arg] = Keyword(keyword_span, keyword.arg, self._expr(keyword.value))
        args = tuple(self._expr(argument) for argument in node.args)
        if piped is not None:
            args = (piped, *args)
        return Call(span, node.func.id, self._span(node.func), args, tuple(keywords.values()))
