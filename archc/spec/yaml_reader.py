"""Builds YAML nodes from parser events: bounded, without recursion, and without tags, anchors or aliases."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml

from archc.spec.diagnostics import NOWHERE, Label, Reporter, Span
from archc.spec.lexer import exact_number, has_unmatched_bracket
from archc.spec.text import Lines, check_characters
from archc.spec.yaml_mistakes import Mistake, explain, flow_comma
from archc.spec.yaml_nodes import YMapping, YNode, YScalar, YSequence

MAX_DEPTH = 64
MAX_NODES = 10_000
MAX_MISTAKES = 100  # then reading stops: nobody reads on

_NOT_A_NUMBER = re.compile(r"\.(?:nan|NaN|NAN)")
_LONG_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)


class _Refused(Exception):
    """The rest of the document is not read; the reason has been reported."""


@dataclass(slots=True)
class _Open:
    """A collection whose end has not been seen."""

    mapping: bool
    flow: bool
    start: int
    key: YScalar | None = None
    expects_key: bool = True
    keep: bool = True  # False after a duplicate or unusable key: the value is read and dropped
    items: list[YNode] = field(default_factory=list)
    entries: dict[str, tuple[YScalar, YNode]] = field(default_factory=dict)
    told: bool = False  # the comma mistake has been reported


def parse(text: str, path: str, report: Reporter) -> YNode | None:
    """Read one YAML document, or report why not and give None.

    `path` is how errors name the text. Tags, anchors, aliases, merges, duplicate keys, tabs and control
    characters are refused; so are more than a megabyte, 64 levels or 10,000 nodes. All mistakes of YAML are
    reported at once; of these only a key given twice leaves a node to go on with (the first value is kept).
    """
    text = text.removeprefix("\ufeff")
    if not check_characters(text, path, report):
        return None
    composer = _Composer(Lines(text, path), report)
    known = len(report.diagnostics)
    try:
        for event in _events(text):
            composer.take(event)
            if len(report.diagnostics) - known >= MAX_MISTAKES:
                return None
    except _Refused:
        return None
    except yaml.YAMLError as error:
        composer.explain(error)
        return None
    if composer.root is None:
        report.error(
            "E107", "the file is empty", Span(path, 1, 1, 1, 1), help="`archc new` writes a first spec"
        )
    # What stands around these mistakes would only raise others; a key given twice leaves the rest readable.
    broken = any(found.code != "E109" for found in report.diagnostics[known:])
    return None if broken else composer.root


def _events(text: str) -> Iterable[Any]:
    """Events of libyaml where PyYAML has it, else of PyYAML's own parser: places and kinds are the same."""
    events: Iterable[Any] = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return events


class _Composer:
    def __init__(self, lines: Lines, report: Reporter) -> None:
        self.lines = lines
        self.report = report
        self.root: YNode | None = None
        self.stack: list[_Open] = []
        self.nodes = 0
        self.documents = 0
        self.torn: YScalar | None = None  # the last plain scalar that has a bracket without partner

    def take(self, event: Any) -> None:
        if isinstance(event, yaml.DocumentStartEvent):
            self._document(event)
        elif isinstance(event, yaml.AliasEvent):
            self._count(event)
            span = self._span(event)
            word = self._slice(event)
            self.report.error(
                "E104",
                f"`{word}` is an alias, and specs have none",
                span,
                help=f'write the value out; if `*` is meant as a letter, quote it: "{word}"',
            )
            self._add(YScalar(span, word, word, "plain"))
        elif isinstance(event, yaml.ScalarEvent):
            self._count(event)
            self._add(self._scalar(event))
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            self._count(event)
            self._refuse_properties(event)
            if len(self.stack) >= MAX_DEPTH:
                self._refuse(
                    "E101",
                    f"more than {MAX_DEPTH} levels of nesting",
                    self._span(event),
                    help="no part of a spec needs them: see whether a bracket is never closed",
                )
            if self.stack:
                self._check_key_kind(event)
            mapping = isinstance(event, yaml.MappingStartEvent)
            self.stack.append(_Open(mapping, bool(event.flow_style), self._start(event)))
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self._close(event)

    def _document(self, event: Any) -> None:
        self.documents += 1
        if event.version or event.tags:
            self.report.error(
                "E105",
                "a YAML directive, and specs have none",
                self._span(event),
                help="remove the lines that begin with `%`",
            )
        if self.documents > 1:
            self._refuse(
                "E106",
                "a second YAML document",
                self._span(event),
                help="one file holds one spec: remove the line `---` or move what follows to its own file",
            )

    def _count(self, event: Any) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            self._refuse(
                "E101",
                f"more than {MAX_NODES:,} nodes",
                self._span(event),
                help="depth is said once, in `layers:`; bodies that models share stand in a library",
            )

    def _refuse(self, code: str, message: str, span: Span, help: str = "") -> None:
        self.report.error(code, message, span, help=help)
        raise _Refused

    def _refuse_properties(self, event: Any) -> None:
        span = self._span(event)
        if event.anchor is not None:
            self.report.error(
                "E104",
                f"`&{event.anchor}` is an anchor, and specs have none",
                span,
                help="remove it; `extends:`, `use:` and `shared:` are the ways to say a thing once",
            )
        if event.tag is not None:
            self.report.error(
                "E105",
                "a YAML tag, and specs have none",
                span,
                help="remove the word that begins with `!`; in an equation, write `not`",
            )

    def _scalar(self, event: Any) -> YScalar:
        self._refuse_properties(event)
        start, end = event.start_mark.index, event.end_mark.index
        text = self.lines.text
        style = {"'": "quoted", '"': "quoted", "|": "block", ">": "block"}.get(event.style or "", "plain")
        while style != "quoted" and end > start and text[end - 1] in " \r\n":
            end -= 1
        flow = any(opened.flow for opened in self.stack)
        comment = self._comment_after(end) if style == "plain" else None
        scalar = YScalar(self.lines.span(start, end), event.value, text[start:end], style, flow, comment)
        if style == "plain":
            self._check_plain(scalar)
        return scalar

    def _check_plain(self, scalar: YScalar) -> None:
        if has_unmatched_bracket(scalar.text):
            self.torn = scalar
        if _NOT_A_NUMBER.fullmatch(scalar.text):
            self.report.error(
                "E113",
                f"`{scalar.text}` is not a number",
                scalar.span,
                help="infinities are `.inf` and `-.inf`; where there is no value, write `none`",
            )
        elif _LONG_NUMBER.fullmatch(scalar.text):
            reason = exact_number(scalar.text.lstrip("+-").lstrip("0") or "0")
            if isinstance(reason, str) and reason.startswith(("a number has", "the exponent")):
                self.report.error("E123", "this number is too long", scalar.span, note=reason)

    def _comment_after(self, end: int) -> Span | None:
        line, _ = self.lines.position(end)
        stop = self.lines.end(line)
        rest = self.lines.text[end:stop].rstrip()
        stripped = rest.lstrip(" ")
        if not stripped.startswith("#") or len(stripped) == len(rest):
            return None
        return self.lines.span(end + len(rest) - len(stripped), end + len(rest))

    def _check_key_kind(self, event: Any) -> None:
        top = self.stack[-1]
        if top.mapping and top.expects_key and not top.told:
            self.report.error(
                "E108",
                "a list or a mapping as a key",
                self._span(event),
                help="a key is a word; if it begins with `[` or `{`, quote it",
            )

    def _close(self, event: Any) -> None:
        done = self.stack.pop()
        end = event.end_mark.index
        children = [value for _, value in done.entries.values()] if done.mapping else done.items
        span = self.lines.span(done.start, end)
        if not done.flow and children:
            last = children[-1].span
            span = Span(span.path, span.line, span.column, last.end_line, last.end_column)
        if done.mapping:
            self._add(YMapping(span, tuple(done.entries.values()), done.flow))
        else:
            self._add(YSequence(span, tuple(done.items), done.flow))

    def _add(self, node: YNode) -> None:
        if not self.stack:
            self.root = node
            return
        top = self.stack[-1]
        if not top.mapping:
            self._check_comma(top, None, node)
            top.items.append(node)
        elif top.expects_key:
            top.expects_key = False
            top.keep = self._take_key(top, node)
        else:
            top.expects_key = True
            self._check_comma(top, top.key, node)
            if top.keep and top.key is not None:
                top.entries[top.key.text] = (top.key, node)

    def _take_key(self, top: _Open, node: YNode) -> bool:
        top.key = node if isinstance(node, YScalar) else None
        if top.key is None:
            return False
        name = top.key.text
        if name == "<<" and top.key.style == "plain":
            self.report.error(
                "E104",
                "`<<` merges mappings in YAML 1.1, and specs have no merges",
                top.key.span,
                help="use `extends:`, or write the entries out",
            )
            return False
        if name in top.entries:
            first = top.entries[name][0]
            self.report.error(
                "E109",
                f"`{_short(name)}` is given twice",
                top.key.span,
                labels=[Label(first.span, "first given here")],
                help="keep one of the two",
            )
            return False
        if not name and not top.told:
            self.report.error("E108", "a key without a name", top.key.span, help="write `name: value`")
            return False
        return True

    def _check_comma(self, top: _Open, key: YScalar | None, value: YNode) -> None:
        """Commas end a value inside `{...}` and `[...]` and tear calls apart, often silently."""
        if not top.flow or top.told:
            return
        for part in (key, value):
            if isinstance(part, YScalar) and part.style == "plain" and has_unmatched_bracket(part.text):
                top.told = True
                self._report(flow_comma(part.span, torn=True))
                return
        if key is not None and isinstance(value, YScalar) and value.style == "plain" and not value.text:
            top.told = True
            self._report(flow_comma(key.span, torn=False))

    def explain(self, error: yaml.YAMLError) -> None:
        mark = getattr(error, "problem_mark", None)
        context = getattr(error, "context_mark", None)
        opened = next((o.start for o in reversed(self.stack) if o.flow), None)
        mistake = explain(
            self.lines,
            str(getattr(error, "problem", "") or ""),
            min(mark.index, len(self.lines.text)) if mark is not None else 0,
            context.index if context is not None else None,
            opened,
            self.torn,
        )
        places = {(found.span.path, found.span.line) for found in self.report.diagnostics}
        if (mistake.span.path, mistake.span.line) not in places:
            self._report(mistake)

    def _report(self, mistake: Mistake) -> None:
        self.report.error(
            mistake.code,
            mistake.message,
            mistake.span,
            note=mistake.note,
            help=mistake.help,
            labels=mistake.labels,
        )

    def _start(self, event: Any) -> int:
        return int(event.start_mark.index)

    def _slice(self, event: Any) -> str:
        return self.lines.text[self._start(event) : event.end_mark.index]

    def _span(self, event: Any) -> Span:
        if event.start_mark is None:
            return NOWHERE
        return self.lines.span(event.start_mark.index, event.end_mark.index)


def _short(name: str) -> str:
    return name if len(name) <= 60 else name[:57] + "..."
