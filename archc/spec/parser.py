"""Equations as syntax trees: Python's expression syntax, a fixed set of its nodes, and true places."""

from __future__ import annotations

import ast
from collections.abc import Callable

from archc.spec.diagnostics import Reporter, Span
from archc.spec.expressions import Expr, ListExpr
from archc.spec.lexer import MAX_LENGTH, tokenize
from archc.spec.names import check_name, check_weight_name, parse_targets
from archc.spec.text import Lines
from archc.spec.token_checks import MAX_DEPTH, Check
from archc.spec.tree import Converter
from archc.spec.yaml_nodes import YMapping, YNode, YScalar, YSequence

__all__ = [
    "check_name",
    "check_weight_name",
    "parse_axes",
    "parse_equation",
    "parse_expression_text",
    "parse_targets",
]

MAX_NODES = 2_000


def parse_equation(
    node: YNode, report: Reporter, *, quoted_ok: bool = False, ellipsis_ok: bool = False
) -> Expr | None:
    """The syntax tree of an equation, or None after errors.

    An equation is plain text in block style. With `quoted_ok` the value may also be quoted (without escapes)
    or stand inside `{...}`, as the defaults of parameters do. With `ellipsis_ok` the name `...` is allowed,
    as in the axes of a function's input. `x | f(a)` comes out as the call `f(x, a)`; numbers are exact.
    """
    if isinstance(node, YSequence | YMapping):
        kind = "list" if isinstance(node, YSequence) else "mapping"
        report.error(
            "E129",
            f"an equation is expected here, and YAML reads a {kind}",
            node.span,
            help="put parentheses around an expression that begins with a bracket"
            if kind == "list"
            else "write `name: expression`, one a line",
        )
        return None
    shift = _content(node, report, quoted_ok)
    if shift is None:
        return None
    text = node.raw[shift : len(node.raw) - shift]
    return _parse(
        text, _placer(text, node.span, shift), report, ellipsis_ok=ellipsis_ok, comment=node.comment
    )


def parse_expression_text(
    text: str, span: Span, report: Reporter, *, ellipsis_ok: bool = False
) -> Expr | None:
    """The syntax tree of a short expression that begins where `span` does, or None after errors."""
    return _parse(text, _placer(text, span, 0), report, ellipsis_ok=ellipsis_ok, comment=None)


def parse_axes(node: YNode, report: Reporter) -> ListExpr | None:
    """The axes of an input, written as a list, as a quoted list or as one name; None after errors."""
    if isinstance(node, YSequence):
        items = [parse_equation(item, report, quoted_ok=True, ellipsis_ok=True) for item in node.items]
        good = tuple(item for item in items if item is not None)
        return ListExpr(node.span, good) if len(good) == len(items) else None
    found = parse_equation(node, report, quoted_ok=True, ellipsis_ok=True)
    return found if found is None or isinstance(found, ListExpr) else ListExpr(found.span, (found,))


def _content(scalar: YScalar, report: Reporter, quoted_ok: bool) -> int | None:
    """How many characters of quoting stand on each side of the expression; None for a wrong style."""
    if scalar.style == "block":
        report.error(
            "E129",
            "an equation in a block of text",
            scalar.span,
            help="write it right after the colon, without `|` or `>`; indent the lines that continue it",
        )
        return None
    if scalar.style == "quoted":
        if not quoted_ok:
            report.error("E129", "an equation in quotes", scalar.span, help="leave the quotes out")
            return None
        if "\\" in scalar.raw or scalar.raw[0] in scalar.raw[1:-1]:
            report.error(
                "E129",
                "an expression in quotes that holds quotes or backslashes of the same kind",
                scalar.span,
                help="use the other kind of quotes, or block style without quotes",
            )
            return None
        return 1
    if scalar.flow and not quoted_ok:
        report.error(
            "E129",
            "an equation inside `{...}` or `[...]`",
            scalar.span,
            help="give each equation a line of its own (block style)",
        )
        return None
    return 0


def _placer(text: str, span: Span, shift: int) -> Callable[[int, int], Span]:
    lines = Lines(text, span.path)

    def place(start: int, end: int) -> Span:
        found = lines.span(start, end)

        def column(line: int, at: int) -> int:
            return at + span.column - 1 + shift if line == 1 else at

        return Span(
            span.path,
            found.line + span.line - 1,
            column(found.line, found.column),
            found.end_line + span.line - 1,
            column(found.end_line, found.end_column),
        )

    return place


def _parse(
    text: str, place: Callable[[int, int], Span], report: Reporter, *, ellipsis_ok: bool, comment: Span | None
) -> Expr | None:
    if len(text) > MAX_LENGTH:
        report.error(
            "E128",
            f"an equation has at most {MAX_LENGTH:,} characters",
            place(0, 1),
            help="give its parts names of their own",
        )
        return None
    tokens = tokenize(text)
    if not Check(tokens, place, report, len(text), ellipsis_ok, comment).run():
        return None
    try:
        tree = ast.parse("(" + text.replace("\r", " ") + "\n)", mode="eval").body
    except SyntaxError as error:
        offset = _offset(text, error.lineno or 1, (error.offset or 1) - 1)
        _explain(text, offset, place, report)
        return None
    except (RecursionError, MemoryError, ValueError):
        _too_deep(place(0, len(text)), report)
        return None
    if not _is_small(tree):
        _too_deep(place(0, len(text)), report)
        return None
    return Converter(text, place, report).convert(tree)


def _is_small(tree: ast.expr) -> bool:
    """Whether the tree keeps to its bounds; walks without recursion."""
    pending: list[tuple[ast.AST, int]] = [(tree, 1)]
    count = 0
    while pending:
        node, depth = pending.pop()
        count += isinstance(node, ast.expr)
        if depth > MAX_DEPTH or count > MAX_NODES:
            return False
        pending.extend((child, depth + isinstance(child, ast.expr)) for child in ast.iter_child_nodes(node))
    return True


def _too_deep(span: Span, report: Reporter) -> None:
    report.error(
        "E128",
        f"an equation nests at most {MAX_DEPTH} levels and has at most {MAX_NODES:,} parts",
        span,
        help="give its parts names of their own",
    )


def _offset(text: str, line: int, column: int) -> int:
    """The offset in `text` of a place in `"(" + text`; lines count from 1, columns from 0."""
    lines = text.split("\n")
    before = sum(len(each) + 1 for each in lines[: line - 1])
    return max(0, min(len(text), before + column - (1 if line == 1 else 0)))


def _explain(text: str, offset: int, place: Callable[[int, int], Span], report: Reporter) -> None:
    """The mistakes that only the order of whole parts shows; worded here, since Python's wording changes."""
    tokens = tokenize(text)
    depth_of_if = [token for token in tokens if token.text in ("if", "else")]
    equals = [token for token in tokens if token.text == "="]
    if depth_of_if and sum(token.text == "if" for token in depth_of_if) != len(depth_of_if) / 2:
        lone = depth_of_if[-1]
        report.error(
            "E120",
            "`if` and `else` do not pair up",
            place(lone.start, lone.end),
            help="a choice is `a if condition else b`",
        )
        return
    for before, token in zip(tokens, tokens[1:], strict=False):
        if token.text == "not" and before.text in (
            "+",
            "-",
            "*",
            "/",
            "//",
            "%",
            "**",
            "<",
            "<=",
            ">",
            ">=",
            "==",
            "!=",
            "|",
        ):
            report.error(
                "E120",
                f"`not` after `{before.text}`",
                place(token.start, token.end),
                help="put parentheses around the condition",
            )
            return
    if equals:
        report.error(
            "E120",
            "`=` does not fit here",
            place(equals[0].start, equals[0].end),
            note="`=` stands between an argument's name and its value, after the arguments without names",
            help="compare with `==`; put arguments without names first",
        )
        return
    end = next((token.end for token in tokens if token.start <= offset < token.end), offset + 1)
    report.error("E120", "this is not an expression", place(offset, min(end, len(text))))
