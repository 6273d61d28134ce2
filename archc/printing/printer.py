"""Prints nodes as Python expressions with as few parentheses as Python needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from archc.graph.functions import FUNCTIONS
from archc.graph.types import Module, Node, Ref, ValueType
from archc.printing.letters import RATE_AXES
from archc.printing.names import Names
from archc.spec import expressions as ex
from archc.spec.axes import Axis
from archc.spec.spec import Static

ATOM = 12  # level of names, calls and subscripts; lower binds looser (`+` 8, `*` 9, unary minus 10, `**` 11)
MODEL_NAMES = ("d_model", "n_layers", "vocab_size", "context")
CONSTANTS = {"true": "True", "false": "False", "none": "None"}
LEVELS = {"+": 8, "-": 8, "*": 9, "/": 9, "//": 9, "%": 9, "**": 11}
SCALAR_FUNCTIONS = {
    "exp": "math.exp",
    "log": "math.log",
    "sqrt": "math.sqrt",
    "ceil": "math.ceil",
    "floor": "math.floor",
    "abs": "abs",
    "min": "min",
    "max": "max",
    "round": "round",
}


@dataclass(frozen=True, slots=True)
class Code:
    """A Python expression and how tightly its outermost operator binds."""

    text: str
    level: int = ATOM

    def at(self, level: int) -> str:
        """The text, in parentheses where it binds looser than `level`."""
        return self.text if self.level >= level else f"({self.text})"


class Printer:
    """Prints for one module. Numbers are read from `self`; those used are collected in `numbers`.

    `letters` gives each axis its letter; `recurrence` the function that runs a class of recurrence.
    """

    def __init__(self, module: Module, letters: Mapping[Axis, str], recurrence: Callable[[Any], str]) -> None:
        self.module = module
        self.graph = module.subgraph
        self.letters = letters
        self.recurrence = recurrence
        self.numbers: dict[str, None] = {}
        self.imports: set[tuple[str, str]] = set()  # (file of the package, name)
        self.modules_used: set[str] = set()  # of the standard library
        self.uses_place = False
        self.drawn = ""  # inside an init: the weight that draws take their shape from
        self.from_config = False  # in the model's own class: numbers are read from `config`
        self.names: Names | None = None  # what the classes are called; set where modules call modules
        self.with_kernels: Mapping[
            tuple[str, str], tuple[str, str]
        ] = {}  # in a package for a GPU: what has kernels
        self.for_gpu = False

    # -- statics --------------------------------------------------------------------------------------------

    def name(self, identifier: str) -> str:
        """A static name as it is read at run time."""
        self.numbers[identifier] = None
        attribute = identifier.replace(".", "_")
        if self.from_config:
            if attribute in MODEL_NAMES:
                return f"config.{attribute}"
            source = f"config.{self.module.prefix}_{attribute}"
            return f"float({source})" if self.module.may_be_exact(identifier) else source
        return f"self.{attribute}"

    def number(self, expr: ex.Expr) -> Code:
        """A static expression as a Python number (whole or float)."""
        return self._scalar(expr, "/")

    def whole(self, expr: ex.Expr) -> Code:
        """A static expression as a whole number."""
        return self._scalar(expr, "//")

    def size(self, axis: Axis) -> Code:
        """An axis as a whole number."""
        return self.whole(axis.expr())

    def _scalar(self, expr: ex.Expr, division: str) -> Code:
        match expr:
            case ex.Number():
                return Code(decimal(expr.value), ATOM if expr.value >= 0 else 10)
            case ex.Text():
                return Code(f'"{expr.value}"')
            case ex.Name() if expr.id in CONSTANTS:
                return Code(CONSTANTS[expr.id])
            case ex.Name():
                return Code(self.name(expr.id))
            case ex.Attribute() | ex.Subscript():
                return Code(self.name(dotted(expr)))
            case ex.Unary():
                inner = self._scalar(expr.operand, division)
                return Code(f"-{inner.at(10)}", 10) if expr.op == "-" else Code(f"not {inner.at(3)}", 3)
            case ex.Binary():
                op = division if expr.op == "/" else expr.op
                level = LEVELS[expr.op]
                left, right = self._scalar(expr.left, division), self._scalar(expr.right, division)
                if op == "**":
                    return Code(f"{left.at(ATOM)} ** {right.at(10)}", level)
                return Code(f"{left.at(level)} {op} {right.at(level + 1)}", level)
            case ex.Compare():
                parts = [self._scalar(o, division).at(5) for o in expr.operands]
                return Code(parts[0] + "".join(f" {op} {part}" for op, part in zip(expr.ops, parts[1:])), 4)
            case ex.Boolean():
                level = 2 if expr.op == "and" else 1
                return Code(
                    f" {expr.op} ".join(self._scalar(v, division).at(level + 1) for v in expr.values), level
                )
            case ex.Call():
                args = ", ".join(self._scalar(arg, division).text for arg in expr.args)
                function = SCALAR_FUNCTIONS[expr.function]
                if "." in function:
                    self.modules_used.add(function.split(".")[0])
                return Code(f"{function}({args})")
            case ex.Conditional():
                test, then, other = (self._scalar(child, division) for child in expr.children())
                return Code(f"{then.at(1)} if {test.at(1)} else {other.text}", 0)
        raise TypeError(f"{expr!r} is not a scalar")

    def constant(self, value: Static) -> str:
        """A static value as a Python literal."""
        if isinstance(value, Mapping):
            entries = ", ".join(f'"{key}": {self.constant(entry)}' for key, entry in value.items())
            return f"{{{entries}}}"
        if isinstance(value, tuple):
            return f"({', '.join(self.constant(entry) for entry in value)},)"
        if isinstance(value, bool) or value is None:
            return str(value)
        if isinstance(value, Fraction):
            return decimal(value)
        return f'"{value}"' if isinstance(value, str) else repr(value)

    def sizes(self, axes: Sequence[Axis]) -> str:
        """Sizes separated by commas."""
        return ", ".join(self.size(axis).text for axis in axes)

    def shape(self, axes: Sequence[Axis]) -> str:
        """A tuple of sizes."""
        return f"({self.sizes(axes)},)" if len(axes) == 1 else f"({self.sizes(axes)})"

    def product(self, axes: Sequence[Axis]) -> str:
        """The product of sizes, `1` for none."""
        if len(axes) == 1:
            return self.size(axes[0]).text
        return " * ".join(self.size(axis).at(10) for axis in axes) or "1"

    def pair(self, expr: ex.Expr, names: Mapping[str, Code]) -> str:
        """A mask or score over `i`, `j`, `s` as an expression over tensors."""
        return self._pair(expr, names).text

    def _pair(self, expr: ex.Expr, names: Mapping[str, Code]) -> Code:
        match expr:
            case ex.Name() if expr.id in ("i", "j", "s"):
                return Code(expr.id)
            case ex.Name() if expr.id in names:
                return names[expr.id]
            case ex.Subscript(value=ex.Name(id=of), index=ex.Name(id=at)) if at in ("i", "j"):
                return Code(f"{of}_{at}")
            case ex.Binary():
                level = LEVELS[expr.op]
                left, right = self._pair(expr.left, names), self._pair(expr.right, names)
                if expr.op == "**":
                    return Code(f"{left.at(ATOM)} ** {right.at(10)}", level)
                return Code(f"{left.at(level)} {expr.op} {right.at(level + 1)}", level)
            case ex.Unary():
                inner = self._pair(expr.operand, names)
                return Code(f"{'-' if expr.op == '-' else '~'}{inner.at(10)}", 10)
            case ex.Compare():
                parts = [self._pair(operand, names).at(8) for operand in expr.operands]
                tests = [Code(f"{a} {op} {b}", 4) for a, op, b in zip(parts, expr.ops, parts[1:])]
                return tests[0] if len(tests) == 1 else Code(" & ".join(test.at(8) for test in tests), 7)
            case ex.Boolean():
                sign, level = ("&", 7) if expr.op == "and" else ("|", 5)
                return Code(f" {sign} ".join(self._pair(v, names).at(level + 1) for v in expr.values), level)
            case ex.Call():
                function = FUNCTIONS[expr.function]
                args = [self._pair(arg, names) for arg in expr.args]
                traced = [
                    any(
                        isinstance(n, ex.Name)
                        and (n.id in ("i", "j", "s") or n.id in names)
                        or isinstance(n, ex.Subscript)
                        for n in arg.walk()
                    )
                    for arg in expr.args
                ]
                if not any(traced):
                    return self.number(expr)
                if expr.function in ("min", "max") and not all(traced):
                    value, bound = (0, 1) if traced[0] else (1, 0)
                    return Code(
                        f"{args[value].at(ATOM)}.clamp({'max' if expr.function == 'min' else 'min'}"
                        f"={args[bound].text})"
                    )
                return Code(function.torch.format(*(arg.text for arg in args)), function.level)
        return self.number(expr)

    def example(self) -> str:
        """The first input of `forward`: for the number of rows and tokens."""
        name, ref = next(iter(self.module.subgraph.inputs.items()))
        return f"{name}{self.suffix(self.type_of(ref))}"

    def device(self) -> str:
        """The device of the module, in `forward` that of its first input."""
        return f"{self.drawn or self.example()}.device"

    def with_heads(self, code: Code, type_: ValueType) -> Code:
        """A head axis of 1 where there is none."""
        return code if len(type_.axes) > 1 else Code(f"{code.at(ATOM)}.unsqueeze(2)")

    # -- tensors --------------------------------------------------------------------------------------------

    def use(self, file: str, *names: str) -> None:
        """Say that the expression needs names of a run-time file."""
        for name in names:
            self.imports.add(self.with_kernels.get((file, name), (file, name)))

    def member(self, node: Node) -> str:
        """The attribute of an operation that owns weights, on the object that owns them (language rule 10)."""
        if node.attrs.get("share") == "model":
            return f'{self.place()}.memo["model"].{node.name}'
        return f"{owner_of(node, self.module)}.{node.name}"

    def place(self) -> str:
        """The argument that carries the layout of the tokens and the memory."""
        self.uses_place = True
        return "place"

    def align(self, code: Code, type_: ValueType, target: ValueType) -> Code:
        """An operand indexed so that it broadcasts to `target` by axis names."""
        if type_.rate == "static" or not target.axes or not type_.axes and type_.rate == "model":
            return code
        order = [target.axes.index(axis) for axis in type_.axes]
        if order != sorted(order):
            offset = len(type_.axes)
            places = sorted(range(offset), key=order.__getitem__)
            lead = "" if type_.rate == "model" else "0, 1, "
            shift = 0 if type_.rate == "model" else 2
            code = Code(f"{code.at(ATOM)}.permute({lead}{', '.join(str(p + shift) for p in places)})")
        entries = [":" if axis in type_.axes else "None" for axis in target.axes]
        leading = "..." if type_.rate != "model" else ""
        while entries and entries[0] == (":" if leading else "None"):
            entries.pop(0)
        if "None" not in entries:
            return code
        if (
            not leading
            and entries.count("None") == len(entries) - entries.index("None")
            and all(entry == "None" for entry in entries[entries.index("None") :])
        ):
            leading, entries = "...", entries[entries.index("None") :]
        index = ", ".join(filter(None, [leading, *entries]))
        return Code(f"{code.at(ATOM)}[{index}]")

    def fold(self, code: Code, axes: Sequence[Axis]) -> Code:
        """The feature axes as one."""
        return (
            code
            if len(axes) == 1
            else Code(f"{code.at(ATOM)}.flatten({-len(axes)})")
            if axes
            else Code(f"{code.at(ATOM)}[..., None]")
        )

    def unfold(self, code: Code, axes: Sequence[Axis], *, typed: bool = True) -> Code:
        """One last axis as several. `typed`: type checkers know that `code` is a tensor."""
        if len(axes) == 1:
            return code
        if not axes:
            return Code(f"{code.at(ATOM)}.squeeze(-1)")
        if typed:  # the method has no types in torch's stubs; what a module returns is not checked
            return Code(f"torch.unflatten({code.text}, -1, {self.shape(axes)})")
        return Code(f"{code.at(ATOM)}.unflatten(-1, {self.shape(axes)})")

    def type_of(self, ref: Ref) -> ValueType:
        """The type of an input."""
        return self.graph.type_of(ref)

    def suffix(self, type_: ValueType) -> str:
        """`_BTHK` for a token value, `_BMHK` for one of blocks, `_HK` for the model; empty if an axis has no letter."""
        rate = RATE_AXES.get(type_.rate)
        letters = [self.letters.get(axis) for axis in (*([rate] if rate else []), *type_.axes)]
        if any(letter is None for letter in letters):
            return ""
        lead = "BT" if type_.rate == "token" else "B" if rate else ""
        text = lead + "".join(letter for letter in letters if letter)
        return f"_{text}" if text else ""


def owner_of(node: Node, module: Module) -> str:
    """Who owns a node's weights: "self", the "mixer" of a part, the "site" of a shared body, or the "model"."""
    share = node.attrs.get("share")
    if share == "mixer":
        return "mixer" if module.body.kind == "part" else "self"
    return share or "self"


def filled(form: str, *operands: str) -> str:
    """A format over printed operands without two signs beside each other: `-{0}` of `-a` is `a`."""
    return form.format(*operands).replace(" + -", " - ").replace("--", "")


def call(function: str, *args: str | Code | None, **named: str | Code | None) -> Code:
    """`function(a, b, name=c)`; arguments that are None are left out."""
    texts = [arg.text if isinstance(arg, Code) else arg for arg in args if arg is not None]
    texts += [
        f"{key}={value.text if isinstance(value, Code) else value}"
        for key, value in named.items()
        if value is not None
    ]
    return Code(f"{function}({', '.join(texts)})")


def dotted(expr: ex.Expr) -> str:
    """`rope.theta` for an entry of a mapping or list parameter."""
    match expr:
        case ex.Attribute():
            return f"{dotted(expr.value)}.{expr.name}"
        case ex.Subscript(index=ex.Number(value=value)):
            return f"{dotted(expr.value)}.{int(value)}"
        case ex.Name():
            return expr.id
    raise TypeError(f"{expr!r} is not an entry")


def decimal(value: Fraction) -> str:
    """A number as the shortest Python literal that stands for the same double."""
    if value.denominator == 1 and abs(value) < 10**9:
        return str(int(value))
    return repr(float(value))
