"""Values of parameters: YAML nodes as exact statics or expressions, typed by the parameter's declaration."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction

from archc.spec.diagnostics import Label, Reporter, Span
from archc.spec.expressions import Binary, Call, Expr, ListExpr, Name, Number, Text, Unary
from archc.spec.fields import WORD, is_null, shorten, suggestion
from archc.spec.parser import parse_equation
from archc.spec.spec import Param, Static
from archc.spec.statics import evaluate
from archc.spec.yaml_nodes import YMapping, YNode, YScalar, YSequence

TYPES = ("int", "number", "bool", "choice", "list", "mapping", "axes", "text", "function", "any")
STATICS = frozenset({"d_model", "n_layers", "context", "layer", "site", "n_sites"})
WORDS = frozenset({"true", "false", "none"})

_INFINITIES = {".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf}
_SIMPLE = re.compile(r"-?[0-9]{1,15}\Z")
_YAML_1_1 = ("yes", "no", "on", "off", "y", "n")  # truth values once, words in this language
_NUMERIC = ("int", "number")


def parse_scalar(node: YScalar, report: Reporter) -> Expr | None:
    """The expression that a scalar holds; quotes are allowed here, so that flow style can hold commas."""
    return parse_equation(node, report, quoted_ok=True)


def constant(expr: Expr) -> tuple[bool, Static]:
    """(True, value) where an expression is a literal, and (False, None) where it is not."""
    if isinstance(expr, Number):
        return True, expr.value
    if isinstance(expr, Text):
        return True, expr.value
    if isinstance(expr, Name) and expr.id in WORDS:
        return True, {"true": True, "false": False, "none": None}[expr.id]
    if isinstance(expr, Unary) and expr.op == "-" and isinstance(expr.operand, Number):
        return True, -expr.operand.value
    if isinstance(expr, ListExpr):
        found = [constant(item) for item in expr.items]
        if all(known for known, _ in found):
            return True, tuple(value for _, value in found)
    return False, None


def folded(expr: Expr) -> tuple[bool, Static]:
    """`constant`, and also arithmetic on literals such as `8/3`."""
    known, value = constant(expr)
    if known or not isinstance(expr, Unary | Binary):
        return known, value
    if any(isinstance(node, Call | Name) for node in expr.walk()):
        return False, None
    failures = Reporter()
    value = evaluate(expr, {}, failures)
    return not failures.diagnostics, value


def free_names(expr: Expr) -> list[Name]:
    """The names that an expression looks up; callables and `true`, `false`, `none` are not among them."""
    return [node for node in expr.walk() if isinstance(node, Name) and node.id not in WORDS]


def read_value(node: YNode, param: Param, report: Reporter) -> tuple[bool, Expr | Static]:
    """The value that a node gives to a parameter: (True, value), or (False, None) after an error.

    Whole numbers, words and other literals come as exact statics, everything else as an expression over the
    names of the parameter's body. Ranges and `divides` are checked where those names have values.
    """
    if is_null(node):
        report.error(
            "E209",
            f"`{param.name}` has no value",
            node.span,
            help="write `none` for a parameter without a value, or remove the key",
        )
        return False, None
    if isinstance(node, YMapping):
        return _read_mapping(node, param, report)
    if isinstance(node, YSequence):
        return _read_list(node, param, report)
    if param.type in ("choice", "text", "function") and (node.style != "plain" or WORD.match(node.text)):
        return _read_word(node, param, report)
    if param.type in _NUMERIC and node.style == "plain":
        if _SIMPLE.match(node.text):
            return True, Fraction(int(node.text))
        if node.text in _INFINITIES and param.type == "number":
            return True, _INFINITIES[node.text]
    if param.type == "bool" and node.text.lower() in _YAML_1_1:
        mistyped(node.text, param, node.span, report)
        return False, None
    expr = parse_scalar(node, report)
    if expr is None:
        return False, None
    known, value = folded(expr)
    if param.type == "axes":
        return True, expr if isinstance(expr, ListExpr) else ListExpr(expr.span, (expr,))
    if param.type == "any" and isinstance(expr, Name) and not known:
        return True, expr
    if not known:
        return True, expr
    if not fits(value, param):
        mistyped(value, param, node.span, report)
        return False, None
    return True, value


def _read_word(node: YScalar, param: Param, report: Reporter) -> tuple[bool, Static]:
    word = node.text
    if param.type == "choice" and word not in param.choices:
        if word == "none" and param.default is None and not param.required:
            return True, None
        report.error(
            "E225",
            f"`{shorten(word)}` is no choice of `{param.name}`",
            node.span,
            help=suggestion(word, param.choices, "choices"),
            labels=declared(param),
        )
        return False, None
    if word == "none" and param.type != "choice" and node.style == "plain":
        return True, None
    return True, word


def _read_list(node: YSequence, param: Param, report: Reporter) -> tuple[bool, Expr | Static]:
    if param.type not in ("list", "axes", "any"):
        mistyped(None, param, node.span, report, "a list")
        return False, None
    element = Param(
        param.name, param.span, "any" if param.type == "axes" else param.of or "any", default=param.default
    )
    found = [read_value(item, element, report) for item in node.items]
    if not all(good for good, _ in found):
        return False, None
    values = [value for _, value in found]
    if param.length is not None and len(values) != param.length:
        report.error(
            "E229",
            f"`{param.name}` has {len(values)} entries and needs {param.length}",
            node.span,
            labels=declared(param),
        )
        return False, None
    if param.type == "axes" or any(isinstance(value, Expr) for value in values):
        spans = [item.span for item in node.items]
        return True, ListExpr(node.span, tuple(_as_expr(v, s) for v, s in zip(values, spans, strict=True)))
    return True, tuple(value for value in values if not isinstance(value, Expr))


def _as_expr(value: Expr | Static, span: Span) -> Expr:
    if isinstance(value, Expr):
        return value
    if isinstance(value, bool) or value is None:
        return Name(span, show(value))
    if isinstance(value, Fraction):
        return Number(span, value)
    return Text(span, str(value))


def _read_mapping(node: YMapping, param: Param, report: Reporter) -> tuple[bool, Static]:
    if param.type not in ("mapping", "any"):
        mistyped(None, param, node.span, report, "a mapping")
        return False, None
    values: dict[str, Static] = {}
    good = True
    for key, child in node.entries:
        entry = param.entries.get(key.text, Param(key.text, param.span, "any"))
        if param.entries and key.text not in param.entries:
            report.error(
                "E220",
                f"`{param.name}` has no entry `{shorten(key.text)}`",
                key.span,
                help=suggestion(key.text, param.entries, "entries"),
                labels=declared(param),
            )
            good = False
            continue
        read, value = read_value(child, entry, report)
        value, constant_enough = _settled(value) if read else (None, False)
        if read and not constant_enough:
            report.error(
                "E222",
                f"`{param.name}.{key.text}` needs a value, not an expression",
                child.span,
                note="entries of a mapping are literals: numbers, words, `true`, `false`, `none`",
            )
        good = good and read and constant_enough
        values[key.text] = value
    for name, entry in param.entries.items() if good else ():
        if name not in values and entry.required:
            report.error("E221", f"`{param.name}` needs an entry `{name}`", node.span, labels=declared(entry))
            good = False
        elif name not in values and not isinstance(entry.default, Expr):
            values[name] = entry.default
    return good, values


def _settled(value: Expr | Static) -> tuple[Static, bool]:
    """A literal; a bare word in a mapping is a text, such as the kind of a scaling."""
    if isinstance(value, Name):
        return value.id, True
    return (None, False) if isinstance(value, Expr) else (value, True)


def fits(value: Static, param: Param) -> bool:
    """Whether a value has the type of a parameter; `none` fits a default of `none`, and mappings with a default."""
    if value is None:
        may_be_none = param.default is None or param.type == "mapping"
        return param.type == "any" or (not param.required and may_be_none) or "none" in param.choices
    if param.type == "int":
        return isinstance(value, Fraction) and value.denominator == 1
    if param.type == "number":
        return isinstance(value, Fraction) or (isinstance(value, float) and not isinstance(value, bool))
    if param.type == "bool":
        return isinstance(value, bool)
    if param.type in ("text", "function"):
        return isinstance(value, str)
    if param.type == "choice":
        return isinstance(value, str) and value in param.choices
    if param.type == "list":
        return isinstance(value, tuple) and (param.length is None or len(value) == param.length)
    if param.type == "mapping":
        return isinstance(value, Mapping)
    return True


_NOUNS = {
    "int": "a whole number",
    "number": "a number",
    "bool": "`true` or `false`",
    "list": "a list",
    "mapping": "a mapping",
    "text": "a text",
    "function": "the name of a function",
    "axes": "axes",
}


def mistyped(value: Static, param: Param, span: Span, report: Reporter, seen: str = "") -> None:
    """Report a value that does not have the type of its parameter."""
    needs = _NOUNS.get(param.type) or "one of " + ", ".join(f"`{choice}`" for choice in param.choices)
    way_out = ""
    if value is None and not seen:
        way_out = "`none` is a value only of parameters whose default is `none`"
    elif param.type == "int" and isinstance(value, Fraction):
        way_out = f"a parameter that takes fractions is declared `{param.name}: {{type: number, ...}}`"
    report.error(
        "E222",
        f"`{param.name}` needs {needs}, not {seen or f'`{show(value)}`'}",
        span,
        help=way_out,
        labels=declared(param),
    )


def declared(param: Param) -> tuple[Label, ...]:
    """The label that points at a parameter's declaration."""
    return (Label(param.span, f"`{param.name}` declared here"),)


def show(value: Static) -> str:
    """A static as it is written in a spec."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, Fraction):
        return _show_number(value)
    if isinstance(value, float):
        return ".inf" if value > 0 else "-.inf"
    if isinstance(value, tuple):
        return f"[{', '.join(show(item) for item in value)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {show(item)}" for name, item in value.items()) + "}"
    return value


def _show_number(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    rest = value.denominator
    twos = fives = 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    digits = max(twos, fives)
    if rest != 1 or digits > 30:
        return f"{value.numerator}/{value.denominator}"
    whole = abs(value.numerator) * 10**digits // value.denominator
    text = str(whole).rjust(digits + 1, "0")
    return ("-" if value < 0 else "") + f"{text[:-digits]}.{text[-digits:]}"


def element_type(value: Expr | Static, params: Mapping[str, Param]) -> str:
    """The type that a default declares by itself; a default that is another parameter has that one's type."""
    if isinstance(value, Name) and value.id in params:
        return params[value.id].type
    if isinstance(value, ListExpr):
        return "list"
    if isinstance(value, Call):
        return "int" if value.function in ("ceil", "floor", "round", "round_up", "round_down") else "number"
    if isinstance(value, Expr):
        return "number"
    if isinstance(value, bool):
        return "bool"
    if value is None:
        return "any"
    if isinstance(value, Fraction):
        return "int" if value.denominator == 1 else "number"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "text"
    return "mapping" if isinstance(value, Mapping) else "list"
