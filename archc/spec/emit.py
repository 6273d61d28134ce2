"""Plain data as YAML text that archc reads back, with short leaves in flow style and quotes where needed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction

from archc.spec.values import show

WIDTH = 110
EQUATIONS = (
    "body",
    "losses",
    "updates",
    "sizes",
)  # their values are expressions, which parentheses protect and quotes would not

_PLAIN = re.compile(r"[A-Za-z0-9_.+(/-][^\n]*\Z")
_FLOW_BREAKERS = set("{}[],")
_NULLS = ("", "~", "null", "Null", "NULL")


class Commented(dict[str, object]):
    """A mapping with a comment that stands behind its key, or behind its braces."""

    def __init__(self, data: Mapping[str, object], comment: str) -> None:
        super().__init__(data)
        self.comment = comment


def to_yaml(data: Mapping[str, object]) -> str:
    """YAML text of nested mappings, lists and scalars, in their order.

    `None` is written `none`, the language's word for "no value"; in a mapping with `extends` or `sweep` it is
    `null`, which removes a key. Numbers may be int, float or Fraction. Raises TypeError for anything else.
    """
    nothing = "null" if "extends" in data or "sweep" in data else "none"
    return "".join(f"{line}\n" for line in _mapping(data, 0, nothing, ""))


def _mapping(data: Mapping[str, object], indent: int, nothing: str, section: str) -> list[str]:
    lines = []
    pad = " " * indent
    for name, value in data.items():
        key = pad + _key(str(name), section)
        if isinstance(value, Mapping):
            comment = f"  # {value.comment}" if isinstance(value, Commented) and value.comment else ""
            flow = (
                None
                if name in EQUATIONS or section == "parts"
                else _flow(value, nothing, WIDTH - len(key) - 2)
            )
            if not value:
                lines.append(f"{key}: {{}}")
            elif flow is not None and indent > 0:
                lines.append(f"{key}: {flow}{comment}")
            else:
                lines.append(f"{key}:{comment}")
                lines += _mapping(value, indent + 2, nothing, str(name))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            lines += _list(key, value, indent, nothing)
        else:
            lines.append(f"{key}: {_leaf(value, nothing, flow=False, equation=section in EQUATIONS)}")
    return lines


def _list(key: str, values: Sequence[object], indent: int, nothing: str) -> list[str]:
    flow = _flow_list(values, nothing)
    if flow is not None and len(key) + len(flow) + 2 <= WIDTH:
        return [f"{key}: {flow}"]
    lines = [f"{key}:"]
    for value in values:
        if isinstance(value, Mapping):
            inner = _flow(value, nothing, 10**6)
            if inner is None:
                raise TypeError("a list holds scalars and mappings of scalars")
            lines.append(f"{' ' * indent}  - {inner}")
        else:
            lines.append(f"{' ' * indent}  - {_leaf(value, nothing, flow=False, equation=False)}")
    return lines


def _flow(data: Mapping[str, object], nothing: str, room: int) -> str | None:
    """A mapping of scalars on one line, or None if it holds more or does not fit."""
    parts = []
    for name, value in data.items():
        if isinstance(value, Commented) and value.comment:
            text = None
        elif isinstance(value, Mapping):
            text = _flow(value, nothing, room) if name not in EQUATIONS else None
        elif isinstance(value, Sequence) and not isinstance(value, str):
            text = _flow_list(value, nothing)
        else:
            text = _leaf(value, nothing, flow=True, equation=False)
        if text is None:
            return None
        parts.append(f"{_key(str(name), '')}: {text}")
    text = "{" + ", ".join(parts) + "}"
    return text if len(text) <= room else None


def _flow_list(values: Sequence[object], nothing: str) -> str | None:
    parts = []
    for value in values:
        if isinstance(value, Mapping) or (isinstance(value, Sequence) and not isinstance(value, str)):
            return None
        parts.append(_leaf(value, nothing, flow=True, equation=False))
    return f"[{', '.join(parts)}]"


def _key(name: str, section: str) -> str:
    if section in EQUATIONS or re.fullmatch(r"[A-Za-z0-9_]+", name):
        return name
    return json.dumps(name)


def _leaf(value: object, nothing: str, *, flow: bool, equation: bool) -> str:
    if value is None:
        return nothing
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | Fraction):
        return show(Fraction(value))
    if isinstance(value, float):
        return (".inf" if value > 0 else "-.inf") if value in (float("inf"), float("-inf")) else repr(value)
    if not isinstance(value, str):
        raise TypeError(f"a spec holds mappings, lists, numbers, words and None, not {type(value).__name__}")
    text = " ".join(value.split()) if equation else value
    if text not in _NULLS and _is_plain(text) and not (flow and _FLOW_BREAKERS & set(text)):
        return text
    return f"({text})" if equation and text else json.dumps(text, ensure_ascii=False)


def _is_plain(text: str) -> bool:
    return (
        bool(_PLAIN.match(text))
        and text == text.strip()
        and ": " not in text
        and " #" not in text
        and not text.endswith(":")
        and not text.startswith(("- ", "--- ", "..."))
    )
