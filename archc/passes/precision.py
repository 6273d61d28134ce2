"""Keeps float32 what must not be rounded: what feeds a decay, an angle or an input gate, and places (language rule 15).

Going back from such an operand, elementwise operations and their parameters are float32, up to the nearest linear
map, convolution, norm or recurrence, whose result is converted; a linear map of a value of the model is inside. Where
a float32 value meets others elsewhere, the result goes back to the dtype of the activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from archc.graph.functions import FUNCTIONS
from archc.graph.types import Node, Ref, Subgraph
from archc.passes.rebuild import Rebuilder

FEEDS = ("decay", "decay_v", "decay_rate", "angle", "log_input")  # operands that start a float32 region
INSIDE = (
    "elementwise",
    "param",
    "static",
    "reshape",
    "select",
    "repeat",
    "split",
    "arange",
    "ones",
    "zeros",
    "sum",
    "mean",
    "cumsum",
    "softmax",
    "concat",
    "outer",
    "topk",
    "buffer",
    "position",
    "roll",
)
TOKENS = ("token", "seen")
# Operations whose result has the dtype of their first operand.
FOLLOW = ("scan", "shift", "rmsnorm", "layernorm", "l2norm")
# Functions that give whole numbers for whole numbers.
WHOLE = ("neg", "abs", "sign", "square", "add", "sub", "mul", "floordiv", "mod", "min", "max", "clip")
MATRICES = ("linear", "conv1d")  # their weights have the dtype of the model


def keep_float32(graph: Subgraph) -> Subgraph:
    """The same subgraph with conversions at the borders of its float32 regions; parameters inside are marked."""
    wide, numbers = _regions(graph), _numbers(graph)
    if not wide and not numbers:
        return graph
    made = Rebuilder(graph)
    converted: dict[Ref, Ref] = {}
    # What is float32 at run time: the regions, what stands for numbers, and what is made of them alone.
    single = {number for number in wide if graph.nodes[number].type.rate != "static"} | numbers
    for node in graph.nodes:
        if node.id in wide:
            _copy_wide(node, made, wide, converted)
            continue
        meets = [ref for ref in node.inputs if ref.node in single]
        if meets and node.op in MATRICES:
            _copy_narrow(node, graph, made, meets)
            continue
        fresh = made.copy(node)
        if node.op in FOLLOW and node.inputs[0].node in single:
            single.add(node.id)
        if node.op == "contract" and meets:  # it computes in the wider dtype of its operands
            single.add(node.id)
        if not meets or node.op not in INSIDE or _has_no_precision(node):
            continue
        narrow = [r for r in node.inputs if r.node not in single and graph.type_of(r).rate in TOKENS]
        if not narrow:
            single.add(node.id)
        elif len(node.types) == 1 and node.type.rate in TOKENS:
            like = made.refs[narrow[0]]
            made.refs[Ref(node.id)] = made.add(
                "cast_like", (Ref(fresh.id), like), node.type, {}, node.span, node.equation
            )
    return made.finish()


def _numbers(graph: Subgraph) -> set[int]:
    """The nodes that are made of numbers alone, and are float32 in models of any dtype: `ones(n)`, `exp(arange(n))`.

    Whole ones are none of these: they take the dtype of what they meet.
    """
    found: set[int] = set()
    whole: set[int] = set()
    for node in graph.nodes:
        if node.op in ("ones", "zeros"):
            found.add(node.id)
        elif node.op == "arange" or node.op == "static" and _is_whole(node):
            whole.add(node.id)
        elif node.op in INSIDE and node.inputs and node.type.rate == "model" and not _has_no_precision(node):
            made_of = {ref.node for ref in node.inputs}
            kept = node.op != "elementwise" or node.attrs["function"] in WHOLE
            if kept and made_of <= whole:
                whole.add(node.id)
            elif all(k in found | whole or graph.nodes[k].op == "static" for k in made_of):
                found.add(node.id)
    return found


def _is_whole(node: Node) -> bool:
    """Whether a static number is whole at every layer."""
    return node.type.low == node.type.high and float(node.type.low).is_integer()


def _has_no_precision(node: Node) -> bool:
    """Whether the result is true or false. What `fp32` makes by hand is left alone, too."""
    function = node.attrs.get("function", "")
    return function == "fp32" or function in FUNCTIONS and FUNCTIONS[function].boolean


def _copy_narrow(node: Node, graph: Subgraph, made: Rebuilder, meets: Sequence[Ref]) -> None:
    """A copy whose float32 operands go back to the dtype of the body's input, which is that of its matrices."""
    body = next((ref for ref in graph.inputs.values() if graph.type_of(ref).rate == "token"), None)
    if body is None:
        made.copy(node)
        return
    cast = {
        ref: made.add(
            "cast_like", (made.refs[ref], made.refs[body]), graph.type_of(ref), {}, node.span, node.equation
        )
        for ref in meets
    }
    fresh = made.copy(node)
    inputs = tuple(cast.get(ref, made.refs[ref]) for ref in node.inputs)
    made.nodes[-1] = replace(fresh, inputs=inputs)


def _regions(graph: Subgraph) -> set[int]:
    """The nodes that are float32: those that only elementwise steps part from a decay, and those over positions."""
    pending: list[int] = []
    placed: set[int] = set()  # positions, and what is made of them and of values of the model alone
    for node in graph.nodes:
        tokens = [ref.node for ref in node.inputs if graph.type_of(ref).rate in TOKENS]
        if node.op == "position" or node.op in INSIDE and tokens and placed.issuperset(tokens):
            placed.add(node.id)
            pending.append(node.id)
        order = node.attrs.get("order", ())
        pending += [ref.node for name, ref in zip(order, node.inputs) if name in FEEDS]
        if node.op == "mixture":  # the weights of a router
            pending.append(node.inputs[1].node)
        if node.op == "running_softmax":  # logarithms of weights
            pending.append(node.inputs[0].node)
        if node.op == "elementwise" and node.attrs["function"] == "fp32":
            pending.append(node.inputs[0].node)
        if (
            node.op == "linear" and node.type.rate == "model"
        ):  # once a call: places and filters are not rounded
            pending.append(node.id)
    found: set[int] = set()
    while pending:
        while pending:
            number = pending.pop()
            node = graph.nodes[number]
            if number in found or not _inside(node):
                continue
            if node.op == "split" and graph.nodes[node.inputs[0].node].op not in INSIDE:
                continue  # the pieces are converted one by one
            found.add(number)
            pending += [ref.node for ref in node.inputs]
        for node in graph.nodes:  # a value of the model that is made of float32 ones is float32, too
            made_of = any(ref.node in found for ref in node.inputs)
            if made_of and node.id not in found and node.type.rate == "model" and _inside(node):
                pending.append(node.id)
    return found


def _inside(node: Node) -> bool:
    """Whether a region goes on through a node. Matrices end it, but those over values of the model are part of it."""
    return node.op in INSIDE or node.op == "linear" and node.type.rate == "model"


def _copy_wide(node: Node, made: Rebuilder, wide: set[int], converted: dict[Ref, Ref]) -> None:
    inputs = []
    for ref in node.inputs:
        new = made.refs[ref]
        if ref.node not in wide and made.type_of(new).rate == "token":
            if new not in converted:
                converted[new] = made.add(
                    "elementwise", (new,), made.type_of(new), {"function": "fp32"}, node.span, node.equation
                )
            new = converted[new]
        inputs.append(new)
    fresh = made.copy(node)
    attrs = {**fresh.attrs, "float32": True} if node.op in ("param", "linear") else fresh.attrs
    made.nodes[-1] = replace(fresh, inputs=tuple(inputs), attrs=attrs)
