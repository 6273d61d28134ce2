"""Finds an equation's mistakes in its tokens: the messages are the same with every Python."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable
from dataclasses import dataclass

from archc.spec.diagnostics import Label, Reporter, Span
from archc.spec.lexer import Token, deepest_bracket, describe, exact_number, unmatched_bracket

MAX_TOKENS = 2_000
MAX_DEPTH = 100

_LOGIC = frozenset({"and", "or", "not", "if", "else"})
_CONSTANTS = {"True": "true", "False": "false", "None": "none"}
_FOREIGN = {
    "&": "`and` joins conditions",
    "&&": "`and` joins conditions",
    "||": "`or` joins conditions",
    "^": "a power is written `**`",
    "!": "a condition is turned round with `not`",
    "~": "a condition is turned round with `not`",
    "@": "`linear` multiplies with a matrix",
    "<>": "`!=` compares",
    ":=": "give the value an equation of its own",
    "<<": "multiply with a power of two",
    ">>": "use `//` with a power of two",
    "->": "an equation gives its value to the name before the colon",
    "?": "a choice is `a if condition else b`",
    ":": "there are no slices: `select(value, axis, k)` and `split` take parts",
    ";": "one equation a line",
    "{": "there are no mappings in equations",
    "}": "there are no mappings in equations",
    "...": "`...` stands only in the axes of a function's input",
}
_UNICODE = {
    "−": "-",
    "–": "-",
    "×": "*",
    "·": "*",
    "÷": "/",
    "≤": "<=",
    "≥": ">=",
    "≠": "!=",
    "²": "** 2",
    "³": "** 3",
    "\u00a0": " ",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
}
_WORDS = re.compile(r"[A-Za-z0-9_ .+*/-]{0,80}", re.ASCII)
_INFIX = frozenset(
    {"+", "-", "*", "/", "//", "%", "**", "<", "<=", ">", ">=", "==", "!=", "|", "and", "or", "if", "else"}
)


@dataclass(frozen=True, slots=True)
class Check:
    """One equation's tokens with what is needed to report on them."""

    tokens: list[Token]
    place: Callable[[int, int], Span]  # offsets of the text -> span
    report: Reporter
    end: int  # length of the text
    ellipsis_ok: bool
    comment: Span | None

    def run(self) -> bool:
        """Whether the tokens can be an expression; reports the first mistakes if not."""
        return self._bounds() and self._each() and self._brackets() and self._order()

    def _error(self, code: str, message: str, token: Token, note: str = "", help: str = "") -> None:
        self.report.error(code, message, self.place(token.start, token.end), note=note, help=help)

    def _bounds(self) -> bool:
        tokens = self.tokens
        if not tokens:
            self.report.error(
                "E132",
                "there is no expression here",
                self.place(0, self.end),
                help="write it after the colon",
            )
            return False
        if len(tokens) > MAX_TOKENS:
            self._error(
                "E128",
                f"an equation has at most {MAX_TOKENS:,} words and signs",
                tokens[MAX_TOKENS],
                help="give its parts names of their own",
            )
            return False
        deep = deepest_bracket(tokens, MAX_DEPTH)
        if deep is not None:
            self._error(
                "E128",
                f"more than {MAX_DEPTH} brackets inside each other",
                deep,
                help="give the inner parts names of their own",
            )
        return deep is None

    def _each(self) -> bool:
        known = len(self.report.diagnostics)
        for position, token in enumerate(self.tokens):
            if any(found.code == "E126" for found in self.report.diagnostics[known:]):
                break  # what follows a keyword belongs to it
            if token.kind == "other":
                self._character(token)
            elif token.kind == "number":
                value = exact_number(token.text)
                if isinstance(value, str):
                    self._error("E123", f"`{_short(token.text)}` is not a number here", token, note=value)
            elif token.kind == "string":
                self._quoted(token)
            elif token.kind == "name":
                self._name(token)
            elif token.text == "..." and self.ellipsis_ok:
                continue
            elif token.text in _FOREIGN:
                after = self.tokens[position + 1].text if position + 1 < len(self.tokens) else ""
                if token.text == ":" and after == "=":
                    continue
                self._error(
                    "E124",
                    f"`{token.text}` is not an operator of the language",
                    token,
                    help=_FOREIGN[token.text],
                )
        return len(self.report.diagnostics) == known

    def _character(self, token: Token) -> None:
        if token.text == "#":
            self._error(
                "E111",
                "`#` does not belong in an equation",
                token,
                help="put the comment on a line of its own above, or a space before the `#`",
            )
        elif token.text in "\"'":
            self._error("E122", "a quote that is never closed", token, help="a quoted word ends on its line")
        elif token.text == "\\":
            self._error(
                "E121",
                "a backslash",
                token,
                help="an equation goes on in the next line without one, if that line is indented",
            )
        elif token.text in _UNICODE:
            written = _UNICODE[token.text]
            self._error(
                "E121",
                f"the character {describe(token.text)} is not part of the language",
                token,
                help=f"write `{written}`" if written.strip() else "use an ordinary space",
            )
        else:
            self._error(
                "E121",
                f"the character {describe(token.text)} is not part of the language",
                token,
                help="names and signs of equations are ASCII",
            )

    def _quoted(self, token: Token) -> None:
        if not _WORDS.fullmatch(token.text[1:-1]):
            self._error(
                "E131",
                "a quoted word holds letters, digits, spaces and `_ . + * / -`, at most 80",
                token,
                help="quoted words are only compared with the choices of a parameter",
            )

    def _name(self, token: Token) -> None:
        if token.text in _CONSTANTS:
            written = _CONSTANTS[token.text]
            self._error(
                "E130", f"`{token.text}` is written `{written}` here", token, help=f"write `{written}`"
            )
        elif keyword.iskeyword(token.text) and token.text not in _LOGIC:
            helps = {
                "is": "compare with `==`",
                "in": "compare with `==` and `or`",
                "for": "operations work on whole axes; reductions take `over=`",
                "lambda": "`mask=` and `score=` see `i`, `j` and `s` without one",
            }
            self._error(
                "E126",
                f"`{token.text}` is a keyword of Python and not part of the language",
                token,
                help=helps.get(token.text, "names cannot be keywords: choose another word"),
            )
        elif len(token.text) > 80:
            self._error("E128", "a name has at most 80 letters", token)

    def _brackets(self) -> bool:
        bad = unmatched_bracket(self.tokens)
        if bad is None:
            return True
        if bad.text in "([":
            if self.comment is not None:
                self.report.error(
                    "E111",
                    "`#` begins a comment, which ends the equation",
                    self.comment,
                    labels=[Label(self.place(bad.start, bad.end), "this bracket stays open")],
                    help="put the comment on a line of its own above the equation",
                )
            else:
                self._error("E122", f"`{bad.text}` is never closed", bad)
        else:
            self._error("E122", f"`{bad.text}` closes nothing", bad)
        return False

    def _order(self) -> bool:
        """Values and operators must take turns."""
        value_next = True
        previous: Token | None = None
        for token in self.tokens:
            text = token.text
            word = token.kind == "name" and text in _LOGIC
            value = token.kind in ("number", "string") or (token.kind == "name" and not word) or text == "..."
            opening = token.kind == "operator" and text in "(["
            prefix = text == "not" or (text == "-" and value_next)
            if value_next:
                if value:
                    value_next = False
                elif text in ")]" and previous is not None and previous.text in ("(", "[", ","):
                    value_next = False
                    if text == ")" and previous.text == "(" and not self._is_call(previous):
                        return self._wrong("empty parentheses", token)
                    if text == "]" and previous.text == "[" and self._is_call(previous):
                        return self._wrong("an index is missing", token)
                elif not (opening or prefix):
                    if text in ("*", "**") and previous is not None and previous.text in ("(", ","):
                        self._error(
                            "E127",
                            f"`{text}` before an argument",
                            token,
                            help="write each argument out; a call takes no lists or mappings of arguments",
                        )
                        return False
                    if text == "+" and not word:
                        return self._wrong("a plus without a value before it", token, "leave the `+` out")
                    return self._wrong(f"expected a value before `{text}`", token)
            elif value or text == "not":
                return self._wrong(
                    f"expected an operator before `{_short(text)}`",
                    token,
                    "a product is written with `*`" if value else "",
                )
            elif text in _INFIX or text in (",", "=", ".") or opening:
                value_next = True
            previous = token
        if value_next and previous is not None:
            return self._wrong(f"expected a value after `{previous.text}`", previous)
        return True

    def _is_call(self, bracket: Token) -> bool:
        at = self.tokens.index(bracket)
        before = self.tokens[at - 1] if at else None
        return before is not None and (
            before.kind == "name" and before.text not in _LOGIC or before.text in ")]"
        )

    def _wrong(self, message: str, token: Token, help: str = "") -> bool:
        self._error("E120", message, token, help=help)
        return False


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
