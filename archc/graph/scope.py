"""Reads the expressions of one body: names, statics, axes, calls; adds nodes to the subgraph being built."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from archc.graph.calls import Call, Pair, counted, shape
from archc.graph.types import Decision, Node, Ref, ValueType
from archc.graph.values import Abandon, Several, StaticValue, Traced, Value
from archc.operations import registry
from archc.operations.base import Operation
from archc.operations.elementwise import table as elementwise
from archc.spec import expressions as ex
from archc.spec import statics
from archc.spec.axes import Axis
from archc.spec.diagnostics import Label, Reporter, Span
from archc.spec.spec import Body, Static

if TYPE_CHECKING:
    from archc.graph.elaborate import Elaborator

LAYER_NAMES = frozenset({"layer", "site"})
DRAWS = {
    "uniform": (2, 2),
    "log_uniform": (2, 2),
    "normal": (2, 2),
    "truncated_normal": (2, 2),
    "orthogonal": (0, 1),
    "orthogonal_normal": (0, 0),
    "eye": (0, 0),
    "zeros": (0, 0),
    "ones": (0, 0),
}  # random and constant weights, with their arguments
STATIC_FUNCTIONS = frozenset({"ceil", "floor", "round", "round_up", "round_down"})
CONSTANTS = {"true": True, "false": False, "none": None}
PAIR_NAMES = frozenset({"i", "j", "s"})


class Builder:
    """The nodes of one subgraph, in order, with what was decided while reading its equations."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.decisions: dict[ex.Expr, bool] = {}
        self.members: dict[str, Span] = {}
        self.owners: dict[str, int] = {}  # the first node of each name that owns weights
        self.exports: dict[str, Ref] = {}
        self.slots: dict[str, tuple[str, ...]] = {}

    def decision_list(self) -> tuple[Decision, ...]:
        """The layer-dependent conditions met, in order."""
        return tuple(Decision(test, value) for test, value in self.decisions.items())


class Scope:
    """A namespace of one body (or of one function inlined into it) while its equations are read.

    `statics` maps a static name to an expression over the names of the instance; `values` maps inputs and
    equations to what they stand for; `axis_variables` are a function's own names for its inputs' axes.
    """

    def __init__(
        self,
        elaborator: Elaborator,
        builder: Builder,
        body: Body,
        statics_: Mapping[str, ex.Expr],
        environment: Mapping[str, Static],
        report: Reporter,
        *,
        equation: str = "",
        prefix: str = "",
        depth: int = 0,
    ) -> None:
        self.elaborator = elaborator
        self.builder = builder
        self.body = body
        self.statics = dict(statics_)
        self.environment = environment
        self.report = report
        self.equation = equation  # the body's equation being read, which names weights
        self.prefix = prefix  # inside a function: the name of the call
        self.local = ""  # inside a function: the function's equation
        self.depth = depth
        self.values: dict[str, Value | None] = {}
        self.axis_variables: dict[str, tuple[Axis, ...]] = {}
        self.targets = 1
        self.drawing = False  # inside an init, where random draws stand

    # -- names ----------------------------------------------------------------------------------------------

    def fail(
        self,
        code: str,
        message: str,
        span: Span,
        *,
        note: str = "",
        help: str = "",
        labels: Sequence[Label] = (),
    ) -> Abandon:
        """Record an error; the caller raises what is returned."""
        self.report.error(code, message, span, note=note, help=help, labels=labels)
        return Abandon()

    def body_equations(self) -> frozenset[str]:
        """The names that this scope's body defines."""
        return frozenset(target.name for equation in self.body.equations for target in equation.targets)

    def suggest(self, name: str, among: Sequence[str]) -> str:
        """ "did you mean", or nothing."""
        close = difflib.get_close_matches(name, list(among), 1)
        return f"did you mean `{close[0]}`?" if close else ""

    def is_none(self, expr: ex.Expr) -> bool:
        """Whether an argument comes to `none` (literally, by a parameter, or by a decided condition)."""
        if isinstance(expr, ex.Conditional):
            return self.is_none(expr.then if self.decide(expr.test) else expr.otherwise)
        if isinstance(expr, ex.Name):
            if expr.id == "none":
                return True
            if expr.id in self.statics:
                return self.evaluate(self.statics[expr.id]) is None
        return False

    def word(self, expr: ex.Expr) -> str | None:
        """A bare or quoted word, or a choice parameter's value."""
        if isinstance(expr, ex.Conditional):
            return self.word(expr.then if self.decide(expr.test) else expr.otherwise)
        if isinstance(expr, ex.Text):
            return expr.value
        if isinstance(expr, ex.Name):
            if expr.id in self.statics:
                found = self.evaluate(self.statics[expr.id])
                if isinstance(found, str):
                    return found
            return expr.id
        return None

    # -- statics --------------------------------------------------------------------------------------------

    def substitute(self, expr: ex.Expr) -> ex.Expr:
        """The expression with this scope's static names and axis variables replaced by the instance's own."""

        def replace(name: ex.Name) -> ex.Expr:
            if name.id in self.axis_variables and len(self.axis_variables[name.id]) == 1:
                return self.axis_variables[name.id][0].expr()
            if name.id in self.statics:
                return self.statics[name.id]
            value = self.values.get(name.id)
            return value.expr if isinstance(value, StaticValue) else name

        return rewrite_names(expr, replace)

    def evaluate(self, expr: ex.Expr) -> Static:
        """The value of an expression over the instance's names, at this layer."""
        found = statics.evaluate(expr, self.environment, self.report)
        return found

    def decide(self, test: ex.Expr) -> bool:
        """Decide a static condition for this layer; conditions on the layer are recorded for the class."""
        value = self.read(test)
        if not isinstance(value, StaticValue):
            raise self.fail(
                "E330",
                "a condition must be known before the model runs",
                test.span,
                note="it depends on the tokens",
                help="choose between traced values with where(...)",
            )
        before = len(self.report.diagnostics)
        found = self.evaluate(value.expr)
        if len(self.report.diagnostics) > before:
            raise Abandon
        chosen = found is not None and found is not False and found != 0 and found != ""
        if LAYER_NAMES & statics.free_names(value.expr):
            self.builder.decisions[value.expr] = chosen
        return chosen

    def axes(self, expr: ex.Expr) -> tuple[Axis, ...]:
        """A list of axes, or one axis. A function's `...` and its parameters of type axes expand in place."""
        if isinstance(expr, ex.Conditional):
            return self.axes(expr.then if self.decide(expr.test) else expr.otherwise)
        if isinstance(expr, ex.Name):
            if expr.id in self.axis_variables:
                return self.axis_variables[expr.id]
            bound = self.statics.get(expr.id)
            if isinstance(bound, ex.ListExpr):  # names of the instance already
                return tuple(Axis.of(item) for item in bound.items)
        if isinstance(expr, ex.ListExpr):
            found = tuple(axis for item in expr.items for axis in self.axes(item))
            twice = next((axis for axis in found if found.count(axis) > 1), None)
            if twice is not None:
                raise self.fail(
                    "E340",
                    f"the axis `{twice}` occurs twice in one value",
                    expr.span,
                    note="axes are told apart by their names",
                    help="give one of them a size of its own under `sizes:`",
                )
            return found
        value = self.read(expr)
        if not isinstance(value, StaticValue):
            raise self.fail(
                "E341",
                "an axis must be a parameter, a size or arithmetic on them",
                expr.span,
                note="this depends on the tokens, and sizes are fixed before the model runs",
            )
        number = self.evaluate(value.expr)
        if (
            isinstance(number, bool)
            or not isinstance(number, Fraction)
            or number.denominator != 1
            or number < 1
        ):
            shown = "nothing" if number is None else str(number)
            raise self.fail(
                "E342",
                f"an axis must be a whole number of at least 1, this is {shown}",
                expr.span,
                help="ceil, floor, round, round_up(x, multiple) and round_down make whole numbers"
                if isinstance(number, Fraction) and number.denominator != 1
                else "",
            )
        return (Axis.of(value.expr),)

    def expand(self, axis: Axis) -> Axis:
        """An axis over parameters only, declared sizes replaced by their definitions."""
        return self.elaborator.expand(axis)

    def size(self, axis: Axis) -> Fraction:
        """The number an axis comes to."""
        found = self.evaluate(axis.expr())
        if not isinstance(found, Fraction):
            raise Abandon
        return found

    # -- expressions ----------------------------------------------------------------------------------------

    def read(self, expr: ex.Expr) -> Value:
        """What an expression stands for. Raises `Abandon` once an error is recorded."""
        match expr:
            case ex.Number() | ex.Text():
                return StaticValue(expr)
            case ex.Name():
                return self._name(expr)
            case ex.Attribute() | ex.Subscript():
                return self._entry(expr)
            case ex.Unary():
                operand = self.read(expr.operand)
                if isinstance(operand, StaticValue):
                    return StaticValue(ex.Unary(expr.span, expr.op, operand.expr))
                return self.elementwise("neg" if expr.op == "-" else "logical_not", [operand], expr.span)
            case ex.Binary():
                return self._operator(elementwise.OPERATORS[expr.op], expr, expr.left, expr.right)
            case ex.Compare():
                return self._compare(expr)
            case ex.Boolean():
                return self._boolean(expr)
            case ex.Conditional():
                return self.read(expr.then if self.decide(expr.test) else expr.otherwise)
            case ex.Call():
                return self._call(expr)
            case ex.ListExpr():
                raise self.fail(
                    "E301",
                    "a list stands where a value is expected",
                    expr.span,
                    help="lists are for axes and words: linear(x, [n_heads, head_dim])",
                )
        raise self.fail("E301", "this cannot stand in an equation", expr.span)

    def _name(self, expr: ex.Name) -> Value:
        if expr.id in CONSTANTS:
            return StaticValue(expr)
        if self.drawing and expr.id in DRAWS:
            return self._draw(expr.id, (), expr.span)
        if expr.id in self.values:
            value = self.values[expr.id]
            if value is None:
                raise Abandon  # its own error is recorded
            return value
        if expr.id in self.statics:
            found = self.statics[expr.id]
            here = isinstance(found, ex.Name | ex.Number | ex.Text)  # its errors belong where it is read
            return StaticValue(replace(found, span=expr.span) if here else found)
        if expr.id in self.axis_variables and len(self.axis_variables[expr.id]) == 1:
            return StaticValue(self.axis_variables[expr.id][0].expr())
        if expr.id in LAYER_NAMES | {"n_sites"}:
            return StaticValue(expr)
        if expr.id == "embedding":
            return self.elaborator.embedding(self, expr.span)
        if expr.id in PAIR_NAMES:
            raise self.fail(
                "E302",
                f"`{expr.id}` has a meaning only inside mask= and score=",
                expr.span,
                help="`i` and `j` are the two tokens of a pair, `s` is its score: mask=i - j < 128",
            )
        if expr.id in ("tokens", "keys"):
            raise self.fail(
                "E302",
                f"`{expr.id}` is no axis that an equation can work along",
                expr.span,
                note="every token has a value of its own, and later tokens are not known to earlier ones",
                help="recurrence, scan, conv1d, shift and attention look at earlier tokens",
            )
        known = [*self.values, *self.statics, *self.axis_variables, *sorted(self.body_equations())]
        raise self.fail(
            "E303",
            f"`{expr.id}` is not defined",
            expr.span,
            help=self.suggest(expr.id, known)
            or "a body knows its own inputs, parameters, sizes and equations, and `d_model`, `layer`, `site`",
        )

    def _entry(self, expr: ex.Attribute | ex.Subscript) -> Value:
        value = self.read(expr.value)
        if not isinstance(value, StaticValue):
            raise self.fail(
                "E304",
                "only list and mapping parameters have entries",
                expr.span,
                help="to take one entry of an axis write select(value, axis, index)",
            )
        if isinstance(expr, ex.Attribute):
            found: ex.Expr = ex.Attribute(expr.span, value.expr, expr.name)
        else:
            index = self.read(expr.index)
            if not isinstance(index, StaticValue):
                raise self.fail(
                    "E304",
                    "the index of a list parameter must be known before the model runs",
                    expr.index.span,
                    note="it depends on the tokens",
                )
            found = ex.Subscript(expr.span, value.expr, index.expr)
        before = len(self.report.diagnostics)
        constant = self.evaluate(found)
        if len(self.report.diagnostics) > before:
            raise Abandon
        if isinstance(constant, (Fraction, float)) and not isinstance(constant, bool):
            return StaticValue(found)
        return StaticValue(literal(constant, expr.span) or found)

    def _operator(self, name: str, whole: ex.Binary, left: ex.Expr, right: ex.Expr) -> Value:
        values = [self.read(left), self.read(right)]
        if all(isinstance(value, StaticValue) for value in values):
            first, second = (value.expr for value in values if isinstance(value, StaticValue))
            return StaticValue(ex.Binary(whole.span, whole.op, first, second))
        return self.elementwise(name, values, whole.span, (left.span, right.span))

    def _compare(self, expr: ex.Compare) -> Value:
        values = [self.read(operand) for operand in expr.operands]
        if all(isinstance(value, StaticValue) for value in values):
            operands = tuple(value.expr for value in values if isinstance(value, StaticValue))
            return StaticValue(ex.Compare(expr.span, expr.ops, operands))
        parts: list[Value] = [
            self.elementwise(elementwise.COMPARISONS[op], [values[k], values[k + 1]], expr.span)
            for k, op in enumerate(expr.ops)
        ]
        found = parts[0]
        for part in parts[1:]:
            found = self.elementwise("logical_and", [found, part], expr.span)
        return found

    def _boolean(self, expr: ex.Boolean) -> Value:
        values = [self.read(value) for value in expr.values]
        if all(isinstance(value, StaticValue) for value in values):
            operands = tuple(value.expr for value in values if isinstance(value, StaticValue))
            return StaticValue(ex.Boolean(expr.span, expr.op, operands))
        found = values[0]
        for value in values[1:]:
            found = self.elementwise(f"logical_{expr.op}", [found, value], expr.span)
        return found

    def _call(self, expr: ex.Call) -> Value:
        name = expr.function
        if self.drawing and name in DRAWS and not (name in ("ones", "zeros") and expr.args):
            return self._draw(name, expr.args, expr.span)
        if name in self.body.slots or name in self.body.parts:
            return self.elaborator.call_slot(self, expr)
        if name == "mixture":
            return self.elaborator.call_mixture(self, expr)
        if name in ("first", "previous"):
            return self.elaborator.across_layers(self, expr)
        if name == "norm":
            name = self.elaborator.settings.norm
        function = self.elaborator.functions.get(name)
        if function is None and isinstance(self.statics.get(name), ex.Text):
            chosen = self.statics[name]
            assert isinstance(chosen, ex.Text)
            name = chosen.value  # a parameter that names a function
            function = self.elaborator.functions.get(name)
        if name in PAIR_NAMES:
            raise self.fail(
                "E302",
                f"`{name}` is not a function",
                expr.function_span,
                help="`i` and `j` are the two tokens of a pair, `s` is its score",
            )
        if function is not None:
            return self.elaborator.inline(self, expr, function)
        if name in STATIC_FUNCTIONS:
            values = [self.read(arg) for arg in expr.args]
            if not all(isinstance(value, StaticValue) for value in values):
                raise self.fail(
                    "E320", f"`{name}` is for numbers that are known before the model runs", expr.span
                )
            args = tuple(value.expr for value in values if isinstance(value, StaticValue))
            return StaticValue(ex.Call(expr.span, name, expr.function_span, args, ()))
        if name in elementwise.FUNCTIONS:
            return self._elementwise_call(name, expr)
        operation = registry.operations().get(name)
        if operation is None or type(operation).build is Operation.build:  # some only stand in graphs
            known = [
                *self.body.slots,
                *self.body.parts,
                *self.elaborator.functions,
                *elementwise.FUNCTIONS,
                *(
                    word
                    for word, op in registry.operations().items()
                    if type(op).build is not Operation.build
                ),
                "mixture",
                "first",
                "previous",
                "norm",
            ]
            raise self.fail(
                "E305",
                f"there is no operation or function `{name}`",
                expr.function_span,
                help=self.suggest(name, known) or "`archc library` lists functions and operations",
            )
        if not registry.is_added(name):
            return operation.build(Call(expr, operation, self))
        try:
            return operation.build(Call(expr, operation, self))
        except Abandon:
            raise
        except Exception as error:  # a project's own code may fail in any way
            raise self.fail(
                "E391",
                f"the project's operation `{name}` has failed",
                expr.span,
                note=registry.last_lines(error),
                help="this is a mistake in the operation's own code, not in the spec",
            ) from error

    def _elementwise_call(self, name: str, expr: ex.Call) -> Value:
        function = elementwise.FUNCTIONS[name]
        if expr.keywords:
            raise self.fail(
                "E311",
                f"`{name}` has no argument `{expr.keywords[0].name}`",
                expr.keywords[0].span,
                help=f"`{name}` takes {counted(function.least, 'value')} and nothing by name",
            )
        if not function.least <= len(expr.args) <= function.most:
            wanted = (
                str(function.least)
                if function.least == function.most
                else f"{function.least} to {function.most}"
            )
            raise self.fail(
                "E314",
                f"`{name}` takes {wanted} argument{'' if wanted == '1' else 's'}, {len(expr.args)} are given",
                expr.span,
            )
        values = [self.read(arg) for arg in expr.args]
        if function.static and all(isinstance(value, StaticValue) for value in values):
            args = tuple(value.expr for value in values if isinstance(value, StaticValue))
            return StaticValue(ex.Call(expr.span, name, expr.function_span, args, ()))
        return self.elementwise(name, values, expr.span, [arg.span for arg in expr.args])

    # -- building -------------------------------------------------------------------------------------------

    def elementwise(
        self, name: str, values: Sequence[Value], span: Span, places: Sequence[Span] = ()
    ) -> Traced:
        """An elementwise operation: operands align by axis name and one must hold all axes (rule 2)."""
        operands = [self.traced(value, places[k] if places else span) for k, value in enumerate(values)]
        widest = max(operands, key=lambda operand: len(operand.type.axes))
        for operand in operands:
            extra = [axis for axis in operand.type.axes if axis not in widest.type.axes]
            if extra:
                raise self._misaligned(widest, operand, span)
        type_ = elementwise.infer(name, [operand.type for operand in operands])
        return self.add("elementwise", operands, (type_,), {"function": name}, span)[0]

    def _misaligned(self, widest: Traced, operand: Traced, span: Span) -> Abandon:
        """Operands of which none holds all axes of the other; the fault may lie in the body of a slot."""
        shapes = shape(widest.type.axes), shape(operand.type.axes)
        for value, other in ((widest, operand), (operand, widest)):
            node = self.builder.nodes[value.ref.node]
            signature = self.elaborator.slots.get(str(node.attrs.get("slot"))) if node.op == "slot" else None
            if signature is not None and other.type.axes == (Axis.named("d_model"),):
                return self.fail(
                    "E352",
                    f"this gives {shape(value.type.axes)}, and {self.elaborator.body.kind} "
                    f"`{self.elaborator.body.name}` adds it to {shape(other.type.axes)}",
                    signature.result or span,
                    labels=[Label(span, "where they meet")],
                    help="end with linear(..., d_model)",
                )
        note = "operands align by axis name, and one must hold all axes of the other"
        sizes = [[self.evaluate(axis.expr()) for axis in side.type.axes] for side in (widest, operand)]
        if sizes[0] == sizes[1]:
            note += "; that they are of equal size here is chance"
        width = (Axis.named("d_model"),) in (widest.type.axes, operand.type.axes)
        return self.fail(
            "E350",
            f"the axes {shapes[0]} and {shapes[1]} do not align",
            span,
            note=note,
            help="linear(..., d_model) leads back to the width of the model"
            if width
            else "write both with the same axes; reshape, select and repeat change axes, outer(a, b) keeps both",
        )

    def traced(self, value: Value, span: Span) -> Traced:
        """The value as a node; a static number becomes one."""
        if isinstance(value, Traced):
            return value
        if isinstance(value, Several):
            raise self.fail(
                "E306",
                f"this has {len(value.items)} results, one is expected here",
                span,
                help="name them all: `a, b: ...`",
            )
        number = self.evaluate(value.expr)
        if isinstance(number, bool) or number is None or not isinstance(number, (Fraction, float)):
            shown = "none" if number is None else str(number).lower() if isinstance(number, bool) else number
            raise self.fail(
                "E307",
                f"a value is expected here, not `{shown}`"
                if isinstance(number, (str, bool)) or number is None
                else "a value is expected here, this is a list or a mapping",
                span,
                help="choose with it: `... if condition else ...`",
            )
        low = high = float(number)
        if LAYER_NAMES & statics.free_names(value.expr):
            low, high = float("-inf"), float("inf")
        return self.add("static", (), (ValueType((), "static", low, high),), {"expr": value.expr}, span)[0]

    def add(
        self,
        op: str,
        inputs: Sequence[Traced],
        types: tuple[ValueType, ...],
        attrs: Mapping[str, Any],
        span: Span,
        name: str = "",
    ) -> list[Traced]:
        """Append a node and return its results. A member used again (same `name=`) is checked by the caller."""
        if op != "attention" and {"token", "block"} <= {value.type.rate for value in inputs}:
            raise self.fail(
                "E382",
                "a value of tokens and one of blocks meet here",
                span,
                note="blocks come once every few tokens, so there is no block for each token",
                help="attention lets tokens look at blocks: attention(q, k_blocks, v_blocks)",
            )
        node = Node(
            len(self.builder.nodes),
            op,
            tuple(value.ref for value in inputs),
            dict(attrs),
            types,
            span,
            name,
            self.equation,
        )
        twice = next((a for type_ in types for a in type_.axes if type_.axes.count(a) > 1), None)
        if twice is not None:
            raise self.fail(
                "E340",
                f"the axis `{twice}` would occur twice in the result",
                span,
                note="axes are told apart by their names",
                help="give one of them a size of its own under `sizes:`",
            )
        if name and not self._same_weights(node):
            raise self.fail(
                "E362",
                f"`{name}` is the name of another weight of this body",
                span,
                labels=[Label(self.builder.nodes[self.builder.owners[name]].span, "the other one")],
                note="calls of one name share their weights, so they must be of the same operation and shape",
                help="give one of them another name",
            )
        self.builder.nodes.append(node)
        return [Traced(Ref(node.id, index), type_) for index, type_ in enumerate(types)]

    def _same_weights(self, node: Node) -> bool:
        """Whether a node that owns weights agrees with an earlier one of the same name."""
        operation = registry.operations().get(node.op)
        if operation is None or not operation.owns(node):
            return True
        first = self.builder.owners.setdefault(node.name, node.id)
        if first == node.id:
            return True
        other = self.builder.nodes[first]

        def weights(of: Node) -> list[object]:
            found: list[object] = [(path, axes) for path, axes, _ in operation.initial(of)]
            return [*found, *(str(of.attrs.get(key)) for key in ("blocks", "share"))]

        return node.op == other.op and weights(node) == weights(other)

    def member_name(self, call: Call, given: str | None, suffix: str) -> str:
        """The attribute of a weighted call (rule 9); a second one of the same name must say `name=`."""
        stem = self.local if self.prefix else self.equation
        weighted = call.operation.weighted
        if given is not None:
            name = f"{self.prefix}_{given}" if self.prefix else given
        elif self.targets > 1 and not self.prefix and weighted:
            raise call.scope.fail(
                "E360",
                f"`{call.operation.name}` stands under several targets and needs a name",
                call.span,
                help=f"write {call.operation.name}(..., name=in_proj)",
            )
        else:
            own = (
                f"{stem}_{suffix}" if suffix and stem != suffix and not stem.endswith(f"_{suffix}") else stem
            )
            name = f"{self.prefix}_{own}" if self.prefix else own
            plain, count = name, 2
            while not weighted and name in self.builder.members:  # no checkpoint holds the name of a memory
                name, count = f"{plain}_{count}", count + 1
        before = self.builder.members.get(name)
        remembers = type(call.operation).states is not Operation.states
        if before is not None and (given is None or remembers):
            raise call.scope.fail(
                "E361",
                f"another call is called `{name}` already"
                + (", and each keeps a memory of its own" if remembers and given is not None else ""),
                call.span,
                labels=[Label(before, "the first one")],
                help=f"give this one a name of its own: {call.operation.name}(..., name=...)",
            )
        self.builder.members.setdefault(name, call.span)
        return name

    def initial(self, expr: ex.Expr, axes: tuple[Axis, ...]) -> Ref:
        """Read an init equation: random draws take the shape of the weight, the rest aligns by axis names."""
        self.drawing = True
        try:
            value = self.traced(self.read(expr), expr.span)
        finally:
            self.drawing = False
        if value.type.rate not in ("static", "model"):
            raise self.fail(
                "E323",
                "an initial value cannot depend on the tokens",
                expr.span,
                help="it may hold numbers, parameters, arange(...) and draws such as normal(0, 0.02)",
            )
        extra = [axis for axis in value.type.axes if axis not in axes]
        if extra:
            raise self.fail(
                "E350",
                f"the initial value has the axis `{extra[0]}`, the weight has {shape(axes)}",
                expr.span,
                help="an initial value has axes of its weight, or none",
            )
        return value.ref

    def _draw(self, name: str, args: Sequence[ex.Expr], span: Span) -> Traced:
        least, most = DRAWS[name]
        if not least <= len(args) <= most:
            wanted = counted(most, "number") if least == most else f"{least} to {counted(most, 'number')}"
            raise self.fail("E314", f"`{name}` takes {wanted} in an init, {len(args)} are given", span)
        found = [self.read(arg) for arg in args]
        if not all(isinstance(value, StaticValue) for value in found):
            raise self.fail("E320", f"the arguments of `{name}` must be known before the model runs", span)
        exprs = tuple(value.expr for value in found if isinstance(value, StaticValue))
        return self.add("draw", (), (ValueType((), "model"),), {"kind": name, "args": exprs}, span)[0]

    def norm_eps(self) -> Fraction:
        """The model's number that norms add to their statistics."""
        return Fraction(self.elaborator.settings.norm_eps)

    def state_name(self, call: Call, name: str) -> str:
        """The name of an operation's memory; two in one body must differ."""
        before = self.builder.members.get(name)
        if before is not None:
            raise self.fail(
                "E361",
                f"two operations with memory would both be called `{name}`",
                call.span,
                labels=[Label(before, "the first one")],
                help=f"give this one a name of its own: {call.operation.name}(..., name=...)",
            )
        self.builder.members[name] = call.span
        return name

    def pair(self, expr: ex.Expr) -> Pair | None:
        """A mask or score: statics substituted, traced names collected."""
        if isinstance(expr, ex.Conditional):
            return self.pair(expr.then if self.decide(expr.test) else expr.otherwise)
        if isinstance(expr, ex.Name) and expr.id in ("true", "s"):
            return None
        found: dict[str, Traced] = {}

        def replace(name: ex.Name) -> ex.Expr:
            if name.id in PAIR_NAMES or name.id in CONSTANTS:
                return name
            value = self.read(name)
            if isinstance(value, StaticValue):
                return value.expr
            found[name.id] = self.traced(value, name.span)
            return name

        resolved = rewrite_names(self.decided(expr), replace)
        for node in resolved.walk():
            if isinstance(node, ex.Call) and node.function not in elementwise.FUNCTIONS:
                raise self.fail(
                    "E302" if node.function in PAIR_NAMES else "E305",
                    f"`{node.function}` is not a function"
                    if node.function in PAIR_NAMES
                    else f"`{node.function}` cannot stand in a mask or score",
                    node.function_span,
                    help="elementwise functions can: exp, tanh, abs, min, max, where, ...",
                )
        self._check_places(resolved, found)
        return Pair(resolved, tuple(found.items()))

    def _check_places(self, expr: ex.Expr, found: Mapping[str, Traced]) -> None:
        """A value with tokens is read at the query, `v[i]`, or at the key, `v[j]`; a value of the model is not."""
        placed = [node for node in expr.walk() if isinstance(node, ex.Subscript)]
        for node in placed:
            at = node.index.id if isinstance(node.index, ex.Name) else ""
            of = node.value.id if isinstance(node.value, ex.Name) else ""
            if of not in found or found[of].type.rate != "token" or at not in ("i", "j"):
                raise self.fail(
                    "E380",
                    "here only a value with tokens has an index, and it is `i` or `j`",
                    node.span,
                    help="v[i] is the value at the query, v[j] the value at the key",
                )
        inside = {id(node.value) for node in placed}
        for name in expr.walk():
            if isinstance(name, ex.Name) and name.id in found and id(name) not in inside:
                if found[name.id].type.rate not in ("static", "model"):
                    raise self.fail(
                        "E380",
                        f"`{name.id}` differs from token to token: say at which of the two",
                        name.span,
                        help=f"{name.id}[i] is the value at the query, {name.id}[j] the value at the key",
                    )

    def decided(self, expr: ex.Expr) -> ex.Expr:
        """The expression with its static conditionals taken."""
        return rewrite(
            expr,
            lambda node: (
                (node.then if self.decide(node.test) else node.otherwise)
                if isinstance(node, ex.Conditional)
                else None
            ),
        )


def rewrite(expr: ex.Expr, change: Callable[[ex.Expr], ex.Expr | None]) -> ex.Expr:
    """A copy with nodes replaced from the outside in; `change` returns None to keep a node."""
    replaced = change(expr)
    if replaced is not None:
        return rewrite(replaced, change) if replaced is not expr else expr
    match expr:
        case ex.Unary():
            return ex.Unary(expr.span, expr.op, rewrite(expr.operand, change))
        case ex.Binary():
            return ex.Binary(expr.span, expr.op, rewrite(expr.left, change), rewrite(expr.right, change))
        case ex.Boolean():
            return ex.Boolean(expr.span, expr.op, tuple(rewrite(v, change) for v in expr.values))
        case ex.Compare():
            return ex.Compare(expr.span, expr.ops, tuple(rewrite(v, change) for v in expr.operands))
        case ex.Conditional():
            return ex.Conditional(expr.span, *(rewrite(child, change) for child in expr.children()))
        case ex.ListExpr():
            return ex.ListExpr(expr.span, tuple(rewrite(v, change) for v in expr.items))
        case ex.Attribute():
            return ex.Attribute(expr.span, rewrite(expr.value, change), expr.name)
        case ex.Subscript():
            return ex.Subscript(expr.span, rewrite(expr.value, change), rewrite(expr.index, change))
        case ex.Call():
            keywords = tuple(ex.Keyword(k.span, k.name, rewrite(k.value, change)) for k in expr.keywords)
            return ex.Call(
                expr.span,
                expr.function,
                expr.function_span,
                tuple(rewrite(v, change) for v in expr.args),
                keywords,
            )
    return expr


def rewrite_names(expr: ex.Expr, replace: Callable[[ex.Name], ex.Expr]) -> ex.Expr:
    """A copy with every name replaced once: what a name is replaced by is not searched again."""
    done: set[int] = set()

    def change(node: ex.Expr) -> ex.Expr | None:
        if id(node) in done or not isinstance(node, ex.Name):
            return node if id(node) in done else None
        found = replace(node)
        keep.append(found)
        done.add(id(found))
        return found

    keep: list[ex.Expr] = []
    return rewrite(expr, change)


def literal(value: Static, span: Span) -> ex.Expr | None:
    """A constant as a syntax node, or None for what has no literal."""
    if isinstance(value, bool):
        return ex.Name(span, "true" if value else "false")
    if value is None:
        return ex.Name(span, "none")
    if isinstance(value, Fraction):
        return ex.Number(span, value)
    if isinstance(value, str):
        return ex.Text(span, value)
    return None
