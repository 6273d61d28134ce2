"""Reads expressions, each kind of call as its own file says: operations, functions, slots, other layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from archc.elaboration import elementwise, members, slots, token_by_token
from archc.elaboration.draws import DRAWS, draw, initial
from archc.elaboration.elementwise import boolean, call_function, compare, operator
from archc.elaboration.inlined import inline
from archc.elaboration.layers import across_layers, embedding
from archc.elaboration.pairs import PAIR_NAMES, read_pair
from archc.elaboration.scope import CONSTANTS, LAYER_NAMES, Scope
from archc.graph import functions
from archc.graph.calls import Call, Pair
from archc.graph.types import Node, Ref, ValueType
from archc.graph.values import Abandon, StaticValue, Traced, Value
from archc.operations import registry
from archc.operations.base import Operation
from archc.spec import expressions as ex
from archc.spec.axes import Axis
from archc.spec.diagnostics import Span
from archc.spec.rewrite import literal
from archc.spec.spec import Settings

STATIC_FUNCTIONS = frozenset({"ceil", "floor", "round", "round_up", "round_down"})


class Reader(Scope):
    """A scope that reads every expression of the language, and what operations ask of the place of their call."""

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
                return operator(self, expr)
            case ex.Compare():
                return compare(self, expr)
            case ex.Boolean():
                return boolean(self, expr)
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
            return draw(self, expr.id, (), expr.span)
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
            return embedding(self, expr.span)
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

    def _call(self, expr: ex.Call) -> Value:
        name = expr.function
        if self.drawing and name in DRAWS and not (name in ("ones", "zeros") and expr.args):
            return draw(self, name, expr.args, expr.span)
        if name in self.body.slots or name in self.body.parts:
            return slots.call_slot(self, expr)
        if name == "mixture":
            return slots.call_mixture(self, expr)
        if name in ("first", "previous"):
            return across_layers(self, expr)
        if name == "norm":
            name = self.context.settings.norm
        function = self.context.functions.get(name)
        if function is None and isinstance(self.statics.get(name), ex.Text):
            chosen = self.statics[name]
            assert isinstance(chosen, ex.Text)
            name = chosen.value  # a parameter that names a function
            function = self.context.functions.get(name)
        if name in PAIR_NAMES:
            raise self.fail(
                "E302",
                f"`{name}` is not a function",
                expr.function_span,
                help="`i` and `j` are the two tokens of a pair, `s` is its score",
            )
        if function is not None:
            return inline(self, expr, function)
        if name in STATIC_FUNCTIONS:
            return self._static_call(expr, name)
        if name in functions.FUNCTIONS:
            return call_function(self, name, expr)
        return self._operation_call(expr, name)

    def _static_call(self, expr: ex.Call, name: str) -> StaticValue:
        """A call that stays an expression of numbers."""
        values = [self.read(arg) for arg in expr.args]
        if not all(isinstance(value, StaticValue) for value in values):
            raise self.fail(
                "E320", f"`{name}` is for numbers that are known before the model runs", expr.span
            )
        args = tuple(value.expr for value in values if isinstance(value, StaticValue))
        return StaticValue(ex.Call(expr.span, name, expr.function_span, args, ()))

    def _operation_call(self, expr: ex.Call, name: str) -> Value:
        """What an operation makes of its call; a project's own may fail in any way."""
        operation = registry.operations().get(name)
        if operation is None or type(operation).build is Operation.build:  # some only stand in graphs
            built = [
                word for word, op in registry.operations().items() if type(op).build is not Operation.build
            ]
            known = [
                *self.body.slots,
                *self.body.parts,
                *self.context.functions,
                *functions.FUNCTIONS,
                *built,
            ]
            known += ["mixture", "first", "previous", "norm"]
            raise self.fail(
                "E305",
                f"there is no operation or function `{name}`",
                expr.function_span,
                help=self.suggest(name, known)
                or "define it under `functions:`, or compose it of those that `archc library` lists",
            )
        if not registry.is_added(name):
            return operation.build(Call(expr, operation, self))
        try:
            return operation.build(Call(expr, operation, self))
        except Abandon:
            raise
        except Exception as error:
            raise self.fail(
                "E391",
                f"the project's operation `{name}` has failed",
                expr.span,
                note=registry.last_lines(error),
                help="this is a mistake in the operation's own code, not in the spec",
            ) from error

    # -- what operations ask for ----------------------------------------------------------------------------

    @property
    def nodes(self) -> Sequence[Node]:
        """The nodes of the subgraph so far."""
        return self.builder.nodes

    @property
    def settings(self) -> Settings:
        """The numbers of the model."""
        return self.context.settings

    @property
    def in_losses(self) -> bool:
        """Whether an equation of `losses:` is being read, where sums over tokens may stand."""
        return self.context.in_losses

    @property
    def default_init(self) -> ex.Expr | None:
        """The start of matrices that do not say their own."""
        return self.context.default_init

    def elementwise(
        self, name: str, values: Sequence[Value], span: Span, places: Sequence[Span] = ()
    ) -> Traced:
        """An elementwise operation of values that align by axis names."""
        return elementwise.elementwise(self, name, values, span, places)

    def initial(self, expr: ex.Expr, axes: tuple[Axis, ...]) -> Ref:
        """An init equation of a weight with these axes."""
        return initial(self, expr, axes)

    def pair(self, expr: ex.Expr) -> Pair | None:
        """A mask or score, or None where it is neutral."""
        return read_pair(self, expr)

    def member_name(self, call: Call, given: str | None, suffix: str) -> str:
        """The attribute of a call with weights."""
        return members.member_name(self, call, given, suffix)

    def state_name(self, call: Call) -> str:
        """The name of a call's memory."""
        return members.state_name(self, call)

    def before(self, call: Call, attrs: Mapping[str, Any], type_: ValueType) -> Traced:
        """What an equation of this part was at the token before."""
        return token_by_token.before(self, call, attrs, type_)

    def sequential(self, call: Call, values: Sequence[Traced]) -> Value:
        """A part at each token, after the token before it."""
        return token_by_token.call_sequential(self, call, values)
