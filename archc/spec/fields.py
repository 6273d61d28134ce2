"""Mappings read key by key: whatever nobody asked for is an unknown key, with a suggestion."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator

from archc.spec.diagnostics import Reporter, Span
from archc.spec.yaml_nodes import YMapping, YNode, YScalar, YSequence

WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,79}\Z")
WHOLE = re.compile(r"[+-]?[0-9]{1,18}\Z")


def closest(word: str, options: Collection[str]) -> str | None:
    """The option that `word` most likely stands for, or None."""
    found = difflib.get_close_matches(word, sorted(options), n=1, cutoff=0.6)
    return found[0] if found else None


def suggestion(word: str, options: Collection[str], what: str) -> str:
    """A way out of a wrong word: the closest option, and otherwise all of them, if they are few."""
    near = closest(word, options)
    if near:
        return f"did you mean `{near}`?"
    if options and len(options) <= 16:
        return f"{what}: {', '.join(f'`{option}`' for option in sorted(options))}"
    return ""


def noun(kind: str) -> str:
    """A kind of body in a user's words."""
    return "MLP" if kind == "mlp" else kind


def a_noun(kind: str) -> str:
    """A kind of body with its article: "a mixer", "an MLP"."""
    return "an MLP" if kind == "mlp" else f"a {kind}"


def describe(node: YNode) -> str:
    """What a node is, in a user's words."""
    if isinstance(node, YMapping):
        return "a mapping"
    if isinstance(node, YSequence):
        return "a list"
    return f"`{shorten(node.text)}`" if node.text else "nothing"


def shorten(text: str, limit: int = 40) -> str:
    """`text` on one line and not longer than `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def is_null(node: YNode) -> bool:
    """Whether a node is YAML's null: nothing at all, `~` or `null`."""
    return (
        isinstance(node, YScalar) and node.style == "plain" and node.text in ("", "~", "null", "Null", "NULL")
    )


class Fields:
    """The entries of one mapping. `what` names it in errors: "the `model:` section"."""

    def __init__(self, node: YMapping, what: str, report: Reporter) -> None:
        self.node = node
        self.what = what
        self.report = report
        self._left = {key.text: (key, value) for key, value in node.entries}

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def key(self, name: str) -> YScalar | None:
        """The key scalar under `name`, or None; does not take it."""
        found = self._left.get(name)
        return found[0] if found else None

    def take(self, name: str) -> YNode | None:
        """The value under `name`, or None. A null value is an error and reads as absent."""
        found = self._left.pop(name, None)
        if found is None:
            return None
        if is_null(found[1]):
            self.report.error(
                "E209",
                f"`{name}` has no value",
                found[0].span,
                note="an empty value and `null` mean nothing in a spec",
                help="write `none` for a parameter without a value, or remove the key",
            )
            return None
        return found[1]

    def take_mapping(self, name: str, holds: str) -> YMapping | None:
        """The mapping under `name`, or None; anything else there is an error."""
        node = self.take(name)
        if node is None or isinstance(node, YMapping):
            return node
        self.report.error(
            "E204",
            f"`{name}` needs a mapping, not {describe(node)}",
            node.span,
            note=f"`{name}:` holds {holds}",
        )
        return None

    def take_scalar(self, name: str, holds: str) -> YScalar | None:
        """The scalar under `name`, or None; anything else there is an error."""
        node = self.take(name)
        if node is None or isinstance(node, YScalar):
            return node
        self.report.error("E204", f"`{name}` needs {holds}, not {describe(node)}", node.span)
        return None

    def take_word(self, name: str, holds: str) -> YScalar | None:
        """The name under `name`, or None; anything that is not one word is an error."""
        node = self.take_scalar(name, holds)
        return node if node is not None and is_word(node, holds, self.report) else None

    def rest(self) -> Iterator[tuple[YScalar, YNode]]:
        """What was not taken, in the order of the file; taken by this."""
        left, self._left = self._left, {}
        for key, value in left.values():
            if is_null(value):
                self._left = {key.text: (key, value)}
                self.take(key.text)
            else:
                yield key, value

    def finish(self, known: Collection[str], code: str = "E202", note: str = "") -> None:
        """Report every entry that was not taken. `known` are the keys that would have been."""
        left, self._left = self._left, {}
        for key, _ in left.values():
            unknown_key(key, self.what, known, self.report, code, note)


def unknown_key(
    key: YScalar, what: str, known: Collection[str], report: Reporter, code: str = "E202", note: str = ""
) -> None:
    """Report a key that does not belong where it stands."""
    report.error(
        code,
        f"unknown key `{shorten(key.text)}` in {what}",
        key.span,
        note=note,
        help=suggestion(key.text, known, "known here"),
    )


def is_word(node: YScalar, holds: str, report: Reporter) -> bool:
    """Whether a scalar is one name of letters, digits and underscores; an error if it is not."""
    if WORD.match(node.text):
        return True
    report.error(
        "E208",
        f"`{shorten(node.text)}` is not a name",
        node.span,
        note=f"{holds} stands here: ASCII letters, digits and underscores, no digit first",
    )
    return False


def read_whole(node: YScalar, name: str, low: int, high: int, report: Reporter) -> int | None:
    """A whole number between `low` and `high`, both included, or None and an error."""
    text = node.text.replace("_", "") if node.style == "plain" else node.text
    if not WHOLE.match(text):
        report.error("E205", f"`{name}` needs a whole number, not {describe(node)}", node.span)
        return None
    value = int(text)
    if not low <= value <= high:
        report.error("E206", f"`{name}` is {value}, outside {low} to {high}", node.span)
        return None
    return value


def items_of(node: YNode) -> tuple[YNode, ...]:
    """The items of a list; a single value counts as a list of one."""
    return node.items if isinstance(node, YSequence) else (node,)


def first_span(entries: Collection[tuple[YScalar, YNode]], otherwise: Span) -> Span:
    """The place of the first key, or `otherwise`."""
    return next((key.span for key, _ in entries), otherwise)
