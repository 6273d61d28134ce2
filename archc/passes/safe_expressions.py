"""Rewrites expressions whose value or derivative breaks in floating point into equal ones that do not.

1 - exp(a)         -> -expm1(a)       0 for |a| below the rounding of 1
exp(a) - 1         -> expm1(a)
log(1 + exp(a))    -> softplus(a)     infinite above 88
log(1 + a)         -> log1p(a)
log(sigmoid(a))    -> logsigmoid(a)   minus infinity below -88
log(a ** c)        -> c * log(a)      the power underflows before its logarithm; c is static, a not negative
exp(-exp(a))       -> exp(-exp(min(a, 8)))   0 in either form; the derivative is 0 * infinity without the bound
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from archc.graph.functions import infer
from archc.graph.types import Node, Ref, Subgraph, ValueType
from archc.passes.rebuild import Rebuilder, rebuild
from archc.spec.expressions import Number

BOUND = 8  # exp(-exp(8)) is 0 even in float64


def make_safe(graph: Subgraph) -> Subgraph:
    """The same subgraph with the rewrites above applied."""
    return rebuild(graph, _change)


def _change(node: Node, made: Rebuilder) -> Ref | None:
    if node.op != "elementwise":
        return None
    inputs = [made.refs[ref] for ref in node.inputs]

    def function(ref: Ref) -> str:
        found = made.nodes[ref.node]
        return str(found.attrs.get("function", "")) if found.op == "elementwise" else ""

    def operand(ref: Ref) -> Ref:
        return made.nodes[ref.node].inputs[0]

    def is_one(ref: Ref) -> bool:
        found = made.nodes[ref.node]
        return (
            found.op == "static"
            and isinstance(found.attrs["expr"], Number)
            and found.attrs["expr"].value == 1
        )

    def put(name: str, *args: Ref) -> Ref:
        type_ = replace(infer(name, [made.type_of(ref) for ref in args]), axes=node.type.axes)
        return made.add("elementwise", args, type_, {"function": name}, node.span, node.equation)

    match node.attrs["function"]:
        case "sub" if is_one(inputs[0]) and function(inputs[1]) == "exp":
            return put("neg", put("expm1", operand(inputs[1])))
        case "sub" if is_one(inputs[1]) and function(inputs[0]) == "exp":
            return put("expm1", operand(inputs[0]))
        case "log" if function(inputs[0]) == "sigmoid":
            return put("logsigmoid", operand(inputs[0]))
        case "log" if function(inputs[0]) == "pow":
            base, exponent = made.nodes[inputs[0].node].inputs
            if made.type_of(base).low < 0 or made.type_of(exponent).rate != "static":
                return None
            sigmoid = function(base) == "sigmoid"
            logarithm = put("logsigmoid", operand(base)) if sigmoid else put("log", base)
            return put("mul", logarithm, exponent)
        case "log" if function(inputs[0]) == "add":
            parts = made.nodes[inputs[0].node].inputs
            other = parts[1] if is_one(parts[0]) else parts[0] if is_one(parts[1]) else None
            if other is None:
                return None
            return put("softplus", operand(other)) if function(other) == "exp" else put("log1p", other)
        case "exp" if function(inputs[0]) == "neg" and function(operand(inputs[0])) == "exp":
            inner = operand(operand(inputs[0]))
            if function(inner) == "min":  # bounded already
                return None
            bound = made.add(
                "static",
                (),
                ValueType((), "static", BOUND, BOUND),
                {"expr": Number(node.span, Fraction(BOUND))},
                node.span,
                node.equation,
            )
            return put("exp", put("neg", put("exp", put("min", inner, bound))))
    return None
