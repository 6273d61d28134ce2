"""Says what a YAML error really is: most come from equations that YAML reads in its own way."""

from __future__ import annotations

import re

from archc.spec.diagnostics import Diagnostic, Label, Span
from archc.spec.lexer import MAX_LENGTH, has_unmatched_bracket
from archc.spec.text import Lines
from archc.spec.yaml_nodes import YScalar

Mistake = Diagnostic

_VALUE = re.compile(r"(?:\s*-\s)*\s*[^\s:#'\"{\[](?:[^:#]|:\S|\S#)*?:\s+(?P<value>\S.*)")
_SPECIAL = {
    "-": "starts a list item",
    "?": "starts a key",
    "[": "starts a list",
    "{": "starts a mapping",
    "|": "starts a block of text",
    ">": "starts a block of text",
    "%": "starts a directive",
    "@": "is reserved",
    "`": "is reserved",
    '"': "starts a quoted word",
    "'": "starts a quoted word",
    "*": "starts an alias",
    "&": "starts an anchor",
    "!": "starts a tag",
}


def flow_comma(span: Span, *, torn: bool) -> Mistake:
    """The mistake of a comma in a call, or between names, inside braces or brackets."""
    message = (
        "a comma inside `{...}` or `[...]` ends the value, also in the middle of a call"
        if torn
        else "a name without a value: inside `{...}` a comma ends the entry"
    )
    return Diagnostic(
        "E110",
        message,
        span,
        help="give each equation a line of its own (block style), or put the value in quotes",
    )


def explain(
    lines: Lines, problem: str, offset: int, context: int | None, flow: int | None, torn: YScalar | None
) -> Mistake:
    """The mistake behind a YAML error.

    `offset` is where the parser stopped, `context` what it was reading, `flow` the start of the innermost
    open `{` or `[`, and `torn` the last plain value that has a bracket without partner.
    """
    line, _ = lines.position(offset)
    here = lines.span(offset, min(offset + 1, lines.end(line)))
    if torn is not None and torn.flow and flow is not None:
        return flow_comma(torn.span, torn=True)
    if torn is not None and not torn.flow and torn.span.end_line >= line - 2:
        continued = _continuation(lines, torn)
        if continued is not None:
            return continued
    special = _special_start(lines, line, offset)
    if special is not None:
        return special
    if flow is not None:
        return _in_flow(lines, flow, here)
    if "quoted scalar" in problem or "end of stream" in problem and context is not None:
        start = lines.span(context or 0, (context or 0) + 1)
        return Diagnostic("E103", "a quote that is never closed", start, help="close it on the same line")
    if "values are not allowed" in problem:
        return _second_colon(here)
    if "escape" in problem:
        if lines.text[offset - 1 : offset] == "\\":  # where PyYAML's own parser stops
            here = lines.span(offset - 1, offset)
        return Diagnostic(
            "E103",
            "an escape that YAML does not know",
            here,
            help="use single quotes, in which a backslash is a backslash",
        )
    if "find expected ':'" in problem or "expected ':'" in problem:
        at = context if context is not None else offset
        number, _ = lines.position(at)
        return Diagnostic(
            "E103",
            "a line that is neither `name: value` nor a list item",
            lines.span(at, max(at + 1, lines.end(number))),
            help="write `name: value`; a continued value is indented deeper than its name",
        )
    return Diagnostic(
        "E103",
        "the text does not fit here",
        here,
        note="it is neither a new `name: value` at the depth of those before, nor part of a value",
        help="check the indentation: entries of one mapping start in one column",
    )


def _continuation(lines: Lines, torn: YScalar) -> Mistake | None:
    if torn.comment is not None:
        return Diagnostic(
            "E111",
            "`#` begins a comment, which ends the equation",
            torn.comment,
            labels=(Label(torn.span, "this is all that is left of it"),),
            help="put the comment on a line of its own above the equation, or after its last line",
        )
    number = torn.span.end_line + 1
    following = lines.line(number)
    if following.strip().startswith("#"):
        column = len(following) - len(following.lstrip()) + 1
        span = Span(torn.span.path, number, column, number, len(following) + 1)
        return Diagnostic(
            "E111", "a comment line ends the equation", span, help="put the comment above the equation"
        )
    key_column = len(lines.line(torn.span.line)) - len(lines.line(torn.span.line).lstrip())
    indent = len(following) - len(following.lstrip())
    if following.strip() and indent <= key_column and not re.match(r"\s*[\w, ]+:(\s|$)", following):
        span = Span(torn.span.path, number, indent + 1, number, len(following) + 1)
        return Diagnostic(
            "E112",
            "the equation is continued too far to the left",
            span,
            labels=(Label(torn.span, "begins here, and its brackets are still open"),),
            help="indent the second line deeper than the name of the equation",
        )
    return None


def _special_start(lines: Lines, number: int, offset: int) -> Mistake | None:
    text = lines.line(number)
    found = _VALUE.match(text)
    if found is None:
        return None
    value, column = found.group("value"), found.start("value") + 1
    character = value[0]
    if character not in _SPECIAL or offset < lines.start(number) + column - 1:
        return None
    if character in "\"'" and not -1 < value.find(character, 1) < offset - lines.start(number) - column + 1:
        return None  # the quoted word itself is at fault
    if character in "[{" and (len(value) > MAX_LENGTH or has_unmatched_bracket(value)):
        return None
    span = Span(lines.path, number, column, number, column + 1)
    return Diagnostic(
        "E114",
        f"a value cannot begin with `{character}`, which {_SPECIAL[character]} in YAML",
        span,
        help=_way_out(character, value if len(value) < 80 else "..."),
    )


def _way_out(character: str, value: str) -> str:
    if character == "-" and value[1:2] == " ":
        return f"write it without the space: `-{value[1:].lstrip()}`; or put parentheses around it"
    if character == "!":
        return "write `not`"
    if character in "-[\"'":
        return f"put parentheses around the expression: `({value})`"
    return "no expression begins like this; if it is text, put it in quotes"


def _in_flow(lines: Lines, flow: int, here: Span) -> Mistake:
    bracket = lines.text[flow]
    closer = {"{": "}", "[": "]"}.get(bracket, "")
    opened = lines.span(flow, flow + 1)
    return Diagnostic(
        "E103",
        f"inside `{bracket}`, expected `,` or `{closer}`",
        here,
        labels=(Label(opened, "opened here"),),
        help="close the bracket; a value that holds brackets, commas or `: ` needs quotes",
    )


def _second_colon(here: Span) -> Mistake:
    return Diagnostic(
        "E103",
        "a second `:` in one value",
        here,
        note="YAML reads `a: b: c` as a mapping inside a line, which it does not allow; it also joins "
        "lines that are indented deeper than the name above them",
        help="check the indentation of this line, or put the value in quotes",
    )
