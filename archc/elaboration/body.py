"""Reads a body into a subgraph: its inputs, the equations that lead to its output, its losses and updates."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from archc.elaboration.context import Context
from archc.elaboration.equations import in_order, read_equation
from archc.elaboration.reader import Reader
from archc.elaboration.scope import CONSTANTS
from archc.elaboration.token_by_token import check_carried
from archc.graph.types import Ref, Subgraph, ValueType
from archc.graph.values import Abandon, Traced
from archc.spec import expressions as ex
from archc.spec.axes import Axis
from archc.spec.spec import Equation


class BodyReader:
    """Reads one body, bound to its arguments, at one layer."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.body = context.body
        self.report = context.report
        self.scope = Reader(context, context.body, context.statics)
        self.updates: dict[str, Ref] = {}

    def run(self) -> Subgraph | None:
        """The subgraph of the body, or None after errors."""
        before = len(self.report.diagnostics)
        inputs: dict[str, Ref] = {}
        declared = self.body.inputs
        names = [(i.name, i.axes, i.span) for i in declared] or [("x", None, self.body.span)]
        for name, axes, span in names:
            try:
                shape = self.scope.axes(axes) if axes is not None else (Axis.named("d_model"),)
                value = self.scope.add("input", (), (ValueType(shape),), {"input": name}, span, name)[0]
                inputs[name] = value.ref
                self.scope.values[name] = value
            except Abandon:
                self.scope.values[name] = None
        wanted = [*(self._output_name(),), *(t.name for t in self.body.exports)]
        equations = {target.name: equation for equation in self.body.equations for target in equation.targets}
        wanted += [
            node.id
            for equation in (*self.body.losses, *self.body.updates)
            for node in equation.expr.walk()
            if isinstance(node, ex.Name) and node.id in equations
        ]
        self._check_reached(equations, wanted)
        for equation in in_order(equations, self.scope, wanted):
            read_equation(equation, self.scope)
        while later := [name for name in self.context.carried if name not in self.scope.values]:
            for equation in in_order(equations, self.scope, later):  # what only the next token reads
                if not any(target.name in self.scope.values for target in equation.targets):
                    read_equation(equation, self.scope)
        check_carried(self.scope)
        self.context.in_losses = True
        for equation in self.body.losses:
            read_equation(equation, self.scope)
            self._check_loss(equation)
        for equation in self.body.updates:
            self._read_update(equation)
        if len(self.report.diagnostics) > before:
            return None
        return self._finish(inputs)

    def _read_update(self, equation: Equation) -> None:
        """The value of a buffer after a training step."""
        target = equation.targets[0]
        number = self.context.builder.owners.get(target.name)
        buffer = self.context.builder.nodes[number] if number is not None else None
        if buffer is None or buffer.op != "buffer" or len(equation.targets) > 1:
            self.report.error(
                "E392",
                f"there is no buffer `{target.name}` to update",
                target.span,
                help=f"declare it where it is used: buffer({target.name}, [axes], init=0)",
            )
            return
        self.scope.equation = target.name
        self.scope.values[target.name] = Traced(Ref(buffer.id), buffer.type)
        try:
            value = self.scope.traced(self.scope.read(equation.expr), equation.expr.span)
        except Abandon:
            return
        if value.type.rate not in ("static", "model") or value.type.axes != buffer.type.axes:
            has = ", ".join(
                ["tokens"] * (value.type.rate == "token") + [str(axis) for axis in value.type.axes]
            )
            self.report.error(
                "E393",
                f"the update of `{target.name}` has [{has}], the buffer "
                f"[{', '.join(map(str, buffer.type.axes))}]",
                equation.span,
                help="mean(..., over=tokens) is the mean over tokens",
            )
            return
        self.updates[target.name] = value.ref

    def _check_loss(self, equation: Equation) -> None:
        """A loss is one number."""
        for target in equation.targets:
            value = self.scope.values[target.name]
            if isinstance(value, Traced) and (value.type.rate not in ("static", "model") or value.type.axes):
                has = "tokens" if value.type.rate == "token" else f"[{', '.join(map(str, value.type.axes))}]"
                self.report.error(
                    "E384",
                    f"the loss `{target.name}` is not one number, it has {has}",
                    equation.span,
                    help="mean(..., over=tokens) is the mean over tokens, sum(...) that over an axis",
                )

    def _finish(self, inputs: Mapping[str, Ref]) -> Subgraph | None:
        output = self.scope.values.get(self._output_name())
        if any(value is None for value in self.scope.values.values()):
            return None
        span = self.body.span
        try:
            result = self.scope.traced(output, span) if output is not None else None
        except Abandon:
            return None
        if result is None:  # a body without `y` is refused before
            return None
        named = {
            name: value.ref
            for name, value in self.scope.values.items()
            if isinstance(value, Traced) and name not in inputs
        }
        exports = {target.name: named[target.name] for target in self.body.exports if target.name in named}
        losses = {
            target.name: named[target.name]
            for equation in self.body.losses
            for target in equation.targets
            if target.name in named
        }
        return Subgraph(
            tuple(self.context.builder.nodes),
            dict(inputs),
            named,
            result.ref,
            exports,
            losses,
            self.updates,
            {name: named[name] for name in self.context.carried},
            tuple(self.context.texts),
        )

    def _output_name(self) -> str:
        return "y"

    def _check_reached(self, equations: Mapping[str, Equation], wanted: list[str]) -> None:
        """An equation that nothing can ever read is a mistake (rule 6)."""
        roots = [name for name in wanted if name in equations] or list(equations)
        seen = self._reached_from(roots, equations)
        unused = [e for e in self.body.equations if not any(t.name in seen for t in e.targets)]
        if self.context.base is not None:  # what a replaced equation alone has read is nobody's mistake
            unused = [equation for equation in unused if equation not in self.context.base.equations]
        read = {  # by another unused equation, which is the one to report
            node.id
            for equation in unused
            for node in equation.expr.walk()
            if isinstance(node, ex.Name) and node.id not in {t.name for t in equation.targets}
        }
        unknown = self._unknown_names() if unused else []
        for equation in sorted(unused, key=lambda e: any(t.name in read for t in e.targets)):
            names = [target.name for target in equation.targets]
            if any(name in seen for name in names):
                continue
            seen |= self._reached_from(names, equations)
            if not any(difflib.get_close_matches(name, unknown, 1) for name in names):
                self.report.error(
                    "E332",
                    f"nothing uses `{names[0]}`",
                    equation.targets[0].span,
                    note="an equation that does not lead to `y`, an export or a loss has no effect",
                    help="remove the equation, or use it on the way to `y`",
                )

    def _reached_from(self, names: Sequence[str], equations: Mapping[str, Equation]) -> set[str]:
        """The equations that these read, directly or through others, whatever the conditions come to."""
        pending, reached = list(names), set(names)
        while pending:
            for node in equations[pending.pop()].expr.walk():
                if isinstance(node, ex.Name) and node.id in equations and node.id not in reached:
                    reached.add(node.id)
                    pending.append(node.id)
        return reached

    def _unknown_names(self) -> list[str]:
        """Names that are read and stand for nothing: each is an error of its own where it is read."""
        known = {*self.scope.values, *self.scope.statics, *self.scope.body_equations(), *CONSTANTS}
        equations = (*self.body.equations, *self.body.losses)
        return sorted(
            {node.id for e in equations for node in e.expr.walk() if isinstance(node, ex.Name)} - known
        )
