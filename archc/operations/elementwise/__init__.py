"""elementwise: functions of the entries, operands aligned by axis name; and the values that stand for themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence

from archc.graph.costs import Cost, Sizes
from archc.graph.functions import COMPARISONS, FUNCTIONS
from archc.graph.types import Node, Subgraph
from archc.operations.base import Operation, Signature
from archc.printing.printer import Code, Printer

FLOAT = re.compile(r"\d+(\.\d*)?(e[-+]?\d+)?")


class Elementwise(Operation):
    """One entry of the table of functions. Built by the reader of expressions, never called by this name."""

    name = "elementwise"
    kernel_files = {"fused_glu": "fused.py", "glu_kernels": "kernels.py"}
    title = "functions of the entries"
    tokenwise = True
    signature = Signature.parse("")

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """The function over its operands, each indexed so that it broadcasts."""
        types = [printer.type_of(ref) for ref in node.inputs]
        absent = dict.fromkeys(code.text for code, type_ in zip(inputs, types) if type_.absent)
        if not absent or FUNCTIONS[node.attrs["function"]].boolean:
            return self._emit(node, inputs, printer)
        # The function sees a number in their place: at minus infinity it has a value, but often no derivative.
        printer.use("topk", "keep_absent", "stand_in")
        stood_in = [
            Code(f"stand_in({code.text})") if type_.absent else code for code, type_ in zip(inputs, types)
        ]
        text = self._emit(node, stood_in, printer).text
        for code in absent:
            text = f"keep_absent({text}, {code})"
        return Code(text)

    def _emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        name = node.attrs["function"]
        function = FUNCTIONS[name]
        types = [printer.type_of(ref) for ref in node.inputs]
        aligned = [printer.align(code, type_, node.type) for code, type_ in zip(inputs, types)]
        numbers = [type_.rate == "static" for type_ in types]
        if name == "pow" and numbers[0]:
            aligned[0] = _as_float(aligned[0])
        if name == "pow" and numbers[1] and types[0].rate == "model" and types[1].low < 0:
            aligned[1] = _as_float(aligned[1])  # `arange(n) ** -1` is no whole number
        if name in ("min", "max") and any(numbers):
            value, bound = (1, 0) if numbers[0] else (0, 1)
            limit = "max" if name == "min" else "min"
            return Code(f"{aligned[value].at(12)}.clamp({limit}={aligned[bound].text})")
        if name == "clip" and numbers[1] and numbers[2]:
            return Code(f"{aligned[0].at(12)}.clamp({aligned[1].text}, {aligned[2].text})")
        if any(numbers) and name in ("logaddexp", "min", "max", "clip"):
            like = aligned[numbers.index(False)].at(12)
            aligned = [
                Code(f"{like}.new_tensor({code.text})") if fixed else code
                for code, fixed in zip(aligned, numbers)
            ]
        if function.torch.startswith("F."):
            printer.modules_used.add("F")
        if name == "fp32":
            printer.use("precision", "wide")
        if name == "inverse_softplus":
            printer.use("initial", "inverse_softplus")
        if function.level == 12:
            receiver = "{0}." in function.torch
            return Code(function.torch.format(*(code.at(12) if receiver else code.text for code in aligned)))
        # Python chains comparisons: `a > b != c` is `a > b and b != c`.
        left = function.level + (1 if name == "pow" or name in COMPARISONS.values() else 0)
        right = function.level if name in ("add", "mul", "pow") else function.level + 1
        if name in ("add", "mul"):
            right = function.level + 1 if aligned[-1].level == function.level else function.level
        levels = [left, right] if len(aligned) == 2 else [function.level]
        return Code(
            function.torch.format(*(c.at(level) for c, level in zip(aligned, levels))), function.level
        )

    def cost(self, node: Node, graph: Subgraph, sizes: Sizes) -> Cost:
        """One or several operations an entry; values of the model are computed once and count nothing a token."""
        if node.type.rate in ("static", "model"):
            return Cost()
        return Cost(flops=FUNCTIONS[node.attrs["function"]].flops * sizes.product(node.type.axes))


def _as_float(number: Code) -> Code:
    """A printed static number as a float: with a whole number, `2 ** -arange(n)` is whole too, and so 0."""
    literal = number.text.lstrip("-")
    if literal.isdigit():
        return Code(f"{number.text}.0", number.level)
    return number if FLOAT.fullmatch(literal) else Code(f"float({number.text})")


class StaticNumber(Operation):
    """A static number among traced operands."""

    name = "static"
    tokenwise = True
    signature = Signature.parse("")

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """The number."""
        return printer.number(node.attrs["expr"])


class Input(Operation):
    """An input of the body; printed by name, never by an expression of its own."""

    name = "input"
    tokenwise = True
    signature = Signature.parse("")

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """The argument of `forward`."""
        return Code(f"{node.name}{printer.suffix(node.type)}")


class Embedding(Operation):
    """The embedding of the token, handed down from the model."""

    name = "embedding"
    signature = Signature.parse("")

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """Read from the call's memo, where the model put it."""
        return Code(f'{printer.place()}.memo["embedding"]')


class Earlier(Operation):
    """`first(v)` and `previous(v)`: an exported value of an earlier layer."""

    name = "earlier"
    signature = Signature.parse("")

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """Read from the call's memo, where the exporting layer put it."""
        return Code(f'{printer.place()}.memo["{node.attrs["which"]}", "{node.attrs["export"]}"]')


class Slot(Operation):
    """A call of a slot or part: a module of its own."""

    name = "slot"
    signature = Signature.parse("")

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`self.mixer(x, place.at("mixer"))`; a shared module is found through the place."""
        key = node.attrs["modules"][0]
        extra: Sequence[str] = ()
        called = f"self.{node.name}"
        if printer.names is not None:
            extra = printer.names.call_arguments(key, {"mixer": "self", "site": f"self.{node.name}"})
        if node.attrs["shared"]:
            called = f'{printer.place()}.memo["shared"][self.{node.name}_name]'
        inner = f'{printer.place()}.at("{node.name}")'
        return Code(f"{called}({', '.join([*(code.text for code in inputs), inner, *extra])})")


class Draw(Operation):
    """A random draw in an init; takes the shape of the weight that it starts."""

    name = "draw"
    tokenwise = True
    signature = Signature.parse("")

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`uniform(like, a, b)` of the run-time file of draws."""
        kind = node.attrs["kind"]
        printer.use("initial", kind)
        numbers = [printer.number(expr).text for expr in node.attrs["args"]]
        return Code(f"{kind}({', '.join([printer.drawn, *numbers])})")


class CastLike(Operation):
    """A float32 result back in the dtype of the activations."""

    name = "cast_like"
    tokenwise = True
    signature = Signature.parse("")

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`x.to(like.dtype)`, or `x.type_as(like)` in short."""
        return Code(f"{inputs[0].at(12)}.type_as({inputs[1].text})")


OPERATIONS = (CastLike(), Elementwise(), StaticNumber(), Input(), Embedding(), Earlier(), Slot(), Draw())
