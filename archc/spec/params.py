"""Declarations of parameters: `n_heads: {type: int, min: 1}`, and the short form typed by its default."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from archc.spec.diagnostics import Reporter
from archc.spec.expressions import Expr, Name
from archc.spec.fields import Fields, is_null, items_of, read_whole, suggestion
from archc.spec.parser import check_name
from archc.spec.spec import Param, Static
from archc.spec.values import STATICS, TYPES, element_type, fits, folded, mistyped, parse_scalar, read_value
from archc.spec.yaml_nodes import YMapping, YNode, YScalar

KEYS = ("type", "default", "min", "max", "of", "length", "divides", "entries", "help")
ELEMENTS = ("int", "number", "bool", "text", "any")


def read_params(node: YMapping, known: frozenset[str], report: Reporter) -> dict[str, Param]:
    """The declarations of a `params:` section, in order. `known` are the names of the body's sizes."""
    params: dict[str, Param] = {}
    words = known | STATICS | {key.text for key, _ in node.entries}
    for key, value in node.entries:
        if not check_name(key.text, key.span, report, what="parameter"):
            continue
        param = read_param(key, value, words, report)
        if param is not None:
            params[key.text] = param
    for name, param in params.items():
        if not param.type:
            params[name] = replace(param, type=element_type(param.default, params) or "number")
    return params


def read_param(key: YScalar, node: YNode, words: frozenset[str], report: Reporter) -> Param | None:
    """One declaration, or None after an error. Its type is empty where it follows from another parameter."""
    if is_null(node):
        report.error(
            "E226",
            f"`{key.text}` is declared without a type or a default",
            key.span,
            help=f"write `{key.text}: {{type: int}}`, or a default",
        )
        return None
    if isinstance(node, YMapping) and _is_long(node):
        return _read_long(key, node, words, report)
    return _read_short(key, node, words, report)


def _is_long(node: YMapping) -> bool:
    names = {name.text for name, _ in node.entries}
    return "type" in names or ("default" in names and names <= set(KEYS))


def _read_short(key: YScalar, node: YNode, words: frozenset[str], report: Reporter) -> Param | None:
    if isinstance(node, YMapping):
        entries = read_params(node, words, report)
        defaults = {
            name: entry.default for name, entry in entries.items() if not isinstance(entry.default, Expr)
        }
        return Param(key.text, key.span, "mapping", default=defaults, entries=entries)
    read, value = _read_default(node, Param(key.text, key.span, "any"), words, report)
    if not read:
        return None
    return Param(key.text, key.span, _type_of(value), default=value)


def _type_of(value: Expr | Static) -> str:
    return "" if isinstance(value, Name) else element_type(value, {})


def _read_default(
    node: YNode, param: Param, words: frozenset[str], report: Reporter
) -> tuple[bool, Expr | Static]:
    """A default; a bare word that names nothing is a text, where the type is open."""
    if param.type == "any" and isinstance(node, YScalar) and node.style == "quoted":
        return True, node.text
    read, value = read_value(node, param, report)
    if read and param.type == "any" and isinstance(value, Name) and value.id not in words:
        return True, value.id
    return read, value


def _read_long(key: YScalar, node: YMapping, words: frozenset[str], report: Reporter) -> Param | None:
    fields = Fields(node, f"the declaration of `{key.text}`", report)
    known = len(report.diagnostics)
    kind = fields.take_word("type", "a type")
    if kind is not None and kind.text not in TYPES:
        report.error(
            "E226",
            f"`{key.text}` has an unknown type `{kind.text}`",
            kind.span,
            help=suggestion(kind.text, TYPES, "types"),
        )
        return Param(key.text, key.span, "any")
    default = fields.take("default")
    param = Param(key.text, key.span, kind.text if kind else "any", required=default is None)
    param = _read_of(param, fields, report)
    length = fields.take_scalar("length", "a whole number")
    if length is not None:
        _only_for(param, length, "length", ("list",), report)
        param = replace(param, length=read_whole(length, "length", 0, 10_000, report))
    minimum, maximum = _bound(param, "min", fields, report), _bound(param, "max", fields, report)
    if minimum is not None and maximum is not None and minimum > maximum:
        report.error("E226", f"`{key.text}` has a minimum above its maximum", key.span)
    param = replace(param, minimum=minimum, maximum=maximum)
    divides = fields.take_scalar("divides", "a parameter or a size")
    if divides is not None:
        _only_for(param, divides, "divides", ("int",), report)
        param = replace(param, divides=parse_scalar(divides, report))
    entries = fields.take_mapping("entries", "the entries of a mapping, declared as parameters are")
    if entries is not None:
        _only_for(param, entries, "entries", ("mapping",), report)
        param = replace(param, entries=read_params(entries, words, report))
    text = fields.take_scalar("help", "a sentence")
    param = replace(param, help=text.text if text else "")
    if default is not None:
        param = _with_default(param, default, words, inferred=kind is None, report=report)
    fields.finish(KEYS)
    return param if len(report.diagnostics) == known else replace(param, divides=None)


def _with_default(
    param: Param, node: YNode, words: frozenset[str], *, inferred: bool, report: Reporter
) -> Param:
    if isinstance(node, YScalar) and node.style == "plain" and node.text == "none":
        value: Expr | Static = "none" if "none" in param.choices else None
        return replace(param, default=value)
    read, value = _read_default(node, replace(param, default=Fraction(0)), words, report)
    if not read:
        return param
    if inferred:
        return replace(param, default=value, type=_type_of(value))
    if not isinstance(value, Expr) and not fits(value, param):
        mistyped(value, param, node.span, report)
    return replace(param, default=value)


def _read_of(param: Param, fields: Fields, report: Reporter) -> Param:
    key = fields.key("of")
    node = fields.take("of")
    if node is None:
        if param.type == "choice":
            report.error(
                "E226",
                f"`{param.name}` is a choice of nothing",
                param.span,
                help="list the choices: `{type: choice, of: [first, second]}`",
            )
        return param
    words = [item for item in items_of(node) if isinstance(item, YScalar)]
    if param.type == "choice":
        return replace(param, choices=tuple(word.text for word in words))
    _only_for(param, key or node, "of", ("choice", "list"), report)
    if param.type == "list" and (len(words) != 1 or words[0].text not in ELEMENTS):
        report.error(
            "E226",
            f"`of` names the type of the elements of `{param.name}`",
            node.span,
            help=f"types: {', '.join(f'`{name}`' for name in ELEMENTS)}",
        )
        return param
    return replace(param, of=words[0].text if words else None)


def _bound(param: Param, name: str, fields: Fields, report: Reporter) -> Fraction | None:
    node = fields.take_scalar(name, "a number")
    if node is None:
        return None
    _only_for(param, node, name, ("int", "number", "list"), report)
    expr = parse_scalar(node, report)
    _, value = folded(expr) if expr is not None else (False, None)
    if not isinstance(value, Fraction):
        report.error("E226", f"`{name}` of `{param.name}` needs a number", node.span)
        return None
    return value


def _only_for(param: Param, node: YNode, key: str, types: tuple[str, ...], report: Reporter) -> None:
    if param.type not in types:
        report.error(
            "E226",
            f"`{key}` does not apply to `{param.name}`, which has the type {param.type}",
            node.span,
            note=f"`{key}` belongs to {' and '.join(types)}",
        )
