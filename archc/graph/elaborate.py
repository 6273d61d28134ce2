"""Reads a body's equations into a subgraph: order, inlined functions, calls of slots and parts."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from heapq import heappop, heappush
from typing import Any

from archc.graph.calls import COMMON_KEYWORDS, Call, counted, shape
from archc.graph.scope import CONSTANTS, Builder, Scope, literal, rewrite_names
from archc.graph.types import Ref, Subgraph, ValueType
from archc.graph.values import Abandon, Several, StaticValue, Traced, Value
from archc.operations import registry
from archc.spec import expressions as ex
from archc.spec.axes import Axis
from archc.spec.diagnostics import Label, Reporter, Span
from archc.spec.spec import Body, Equation, Settings, Static
from archc.spec.unparse import unparse

MAX_INLINE_DEPTH = 20


@dataclass(frozen=True, slots=True)
class Signature:
    """What a slot or part takes and gives, in the names of the body that calls it."""

    inputs: tuple[tuple[Axis, ...], ...]
    output: ValueType
    modules: tuple[str, ...]  # keys; several for a shared slot
    shared: tuple[str, ...] = ()  # names under `shared:`, in turn over the sites
    result: Span | None = None  # where the body that fills the slot defines its result
    tokenwise: bool = False  # each token's result depends on that token alone
    carries: bool = False  # its equations read their own values of the token before


class Elaborator:
    """Reads one body, bound to its arguments, at one layer."""

    def __init__(
        self,
        body: Body,
        settings: Settings,
        functions: Mapping[str, Body],
        statics: Mapping[str, ex.Expr],
        sizes: Mapping[str, ex.Expr],
        environment: Mapping[str, Static],
        slots: Mapping[str, Signature],
        exported: Mapping[str, ValueType],
        report: Reporter,
        default_init: ex.Expr | None = None,
        base: Body | None = None,
    ) -> None:
        self.default_init = default_init
        self.base = base  # the body before equations were replaced in a use of it
        self.body = body
        self.settings = settings
        self.functions = functions
        self.sizes = sizes
        self.environment = environment
        self.slots = slots
        self.exported = exported
        self.report = report
        self.builder = Builder()
        self.scope = Scope(self, self.builder, body, statics, environment, report)
        self.texts: list[str] = []
        self.updates: dict[str, Ref] = {}
        self.in_losses = False  # where sums over tokens may stand
        self.carried: dict[str, Call] = {}  # equations that `before` reads, with the first call that does

    # -- the body -------------------------------------------------------------------------------------------

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
        for equation in self._sorted(equations, self.scope, wanted):
            self._read_equation(equation, self.scope)
        while later := [name for name in self.carried if name not in self.scope.values]:
            for equation in self._sorted(equations, self.scope, later):  # what only the next token reads
                if not any(target.name in self.scope.values for target in equation.targets):
                    self._read_equation(equation, self.scope)
        self._check_carried()
        self.in_losses = True
        for equation in self.body.losses:
            self._read_equation(equation, self.scope)
            self._check_loss(equation)
        for equation in self.body.updates:
            self._read_update(equation)
        if len(self.report.diagnostics) > before:
            return None
        return self._finish(inputs)

    def _read_update(self, equation: Equation) -> None:
        """The value of a buffer after a training step."""
        target = equation.targets[0]
        number = self.builder.owners.get(target.name)
        buffer = self.builder.nodes[number] if number is not None else None
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
            tuple(self.builder.nodes),
            dict(inputs),
            named,
            result.ref,
            exports,
            losses,
            self.updates,
            {name: named[name] for name in self.carried},
            tuple(self.texts),
        )

    def _output_name(self) -> str:
        return "y"

    def _check_reached(self, equations: Mapping[str, Equation], wanted: list[str]) -> None:
        """An equation that nothing can ever read is a mistake (rule 6)."""
        roots = [name for name in wanted if name in equations] or list(equations)
        seen = self._reached_from(roots, equations)
        unused = [e for e in self.body.equations if not any(t.name in seen for t in e.targets)]
        if self.base is not None:  # what a replaced equation alone has read is nobody's mistake
            unused = [equation for equation in unused if equation not in self.base.equations]
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

    def _sorted(self, equations: Mapping[str, Equation], scope: Scope, wanted: list[str]) -> list[Equation]:
        """The equations that this layer reaches, each after those it reads. Records a cycle as an error."""
        pending = [name for name in wanted if name in equations]
        reads: dict[str, set[str]] = {name: set() for name in pending}
        while pending:
            name = pending.pop()
            for read in self._names_read(equations[name].expr, scope):
                if read in equations:
                    reads[name].add(read)
                    if read not in reads:
                        reads[read] = set()
                        pending.append(read)
        order = list(equations)
        sorter = TopologicalSorter(reads)
        try:
            sorter.prepare()
        except CycleError as error:
            self._report_cycle(list(error.args[1])[:-1], equations)
            return []
        ready: list[int] = []
        found: dict[int, Equation] = {}
        while sorter.is_active():  # of those that can come next, the first one written
            for name in sorter.get_ready():
                heappush(ready, order.index(name))
            name = order[heappop(ready)]
            found.setdefault(id(equations[name]), equations[name])
            sorter.done(name)
        return list(found.values())

    def _report_cycle(self, cycle: list[str], equations: Mapping[str, Equation]) -> None:
        first = min(cycle, key=list(equations).index)
        at = cycle.index(first)
        path = " -> ".join([*reversed([*cycle[at + 1 :], *cycle[: at + 1]]), first])
        self.report.error(
            "E333",
            f"the equations run in a circle: {path}",
            equations[first].targets[0].span,
            note="an equation may not read its own result, directly or through others",
            help="a dependence on earlier tokens is a recurrence, a scan or a shift",
        )

    def _names_read(self, expr: ex.Expr, scope: Scope) -> list[str]:
        """Names an expression reads at this layer: only the taken branches of static conditions count."""
        match expr:
            case ex.Name():
                return [expr.id]
            case ex.Conditional():
                names = self._names_read(expr.test, scope)
                if any(name in scope.body_equations() for name in names):
                    return (
                        names + self._names_read(expr.then, scope) + self._names_read(expr.otherwise, scope)
                    )
                try:
                    branch = expr.then if scope.decide(expr.test) else expr.otherwise
                except Abandon:
                    return []
                return self._names_read(branch, scope)
            case ex.Call() if expr.function in ("first", "previous"):
                return []
            case ex.Call():
                return [name for child in _looked_up(expr) for name in self._names_read(child, scope)]
        return [name for child in expr.children() for name in self._names_read(child, scope)]

    def _read_equation(self, equation: Equation, scope: Scope) -> None:
        if scope is self.scope:
            scope.equation = equation.targets[0].name
        else:
            scope.local = equation.targets[0].name
        scope.targets = len(equation.targets)
        try:
            value = scope.read(equation.expr)
            if scope is self.scope:
                self._remember(equation, scope)
            self._assign(equation, value, scope)
        except Abandon:
            for target in equation.targets:
                scope.values[target.name] = None

    def _remember(self, equation: Equation, scope: Scope) -> None:
        """The equation as it stands at this layer, unless it only renames another."""
        decided = scope.decided(equation.expr)
        if isinstance(decided, ex.Name) and decided.id in scope.body_equations():
            return
        names = ", ".join(target.name for target in equation.targets)
        self.texts.append(f"{names}: {unparse(decided)}")

    def _assign(self, equation: Equation, value: Value, scope: Scope) -> None:
        count = len(value.items) if isinstance(value, Several) else 1
        if count != len(equation.targets):
            names = ", ".join(target.name for target in equation.targets)
            raise scope.fail(
                "E334",
                f"`{names}` {'are' if len(equation.targets) > 1 else 'is'} "
                f"{counted(len(equation.targets), 'value')}, the equation has {count}",
                equation.span,
                help="name every result, separated by commas: `a, b: ...`"
                if count > 1
                else "one name stands before the colon: `a: ...`",
            )
        items = value.items if isinstance(value, Several) else (value,)
        for target, item in zip(equation.targets, items):
            scope.values[target.name] = item

    def expand(self, axis: Axis) -> Axis:
        """An axis with declared sizes and defaults replaced by their definitions, as far as they go."""
        for _ in range(MAX_INLINE_DEPTH):
            definitions = {name: Axis.of(expr) for name, expr in self.sizes.items()}
            wider = axis.substitute(definitions)
            if wider == axis:
                return axis
            axis = wider
        return axis

    # -- functions ------------------------------------------------------------------------------------------

    def inline(self, scope: Scope, expr: ex.Call, function: Body) -> Value:
        """Read a function's equations in place of its call."""
        if scope.depth >= MAX_INLINE_DEPTH:
            raise scope.fail(
                "E335",
                f"functions call each other more than {MAX_INLINE_DEPTH} deep here",
                expr.span,
                note="a function is written out where it is called",
                help="a function cannot call itself; write several steps into one function",
            )
        name = expr.keyword("name")
        stem = scope.word(name) if name is not None else (scope.local if scope.prefix else scope.equation)
        prefix = f"{scope.prefix}_{stem}" if scope.prefix else str(stem)
        inner = Scope(
            self,
            self.builder,
            function,
            {},
            self.environment,
            self.report,
            equation=scope.equation,
            prefix=prefix,
            depth=scope.depth + 1,
        )
        for word in ("layer", "site"):
            if word in scope.statics:
                inner.statics[word] = scope.statics[word]
        for setting in ("d_model", "n_layers", "n_sites", "vocab_size", "context"):
            inner.statics[setting] = ex.Name(expr.span, setting)
        self._bind(scope, expr, function, inner)
        equations = {target.name: equation for equation in function.equations for target in equation.targets}
        for equation in self._sorted(equations, inner, ["y"]):
            self._read_equation(equation, inner)
        found = inner.values.get("y")
        if found is None:
            raise Abandon
        return found

    def _bind(self, scope: Scope, expr: ex.Call, function: Body, inner: Scope) -> None:
        """Bind a call's arguments to a function's inputs, then to its parameters."""
        inputs = list(function.inputs)
        args = list(expr.args)
        names = [*(i.name for i in inputs), *function.params]
        given: dict[str, ex.Expr] = dict(zip(names, args))
        if len(args) > len(names):
            raise scope.fail(
                "E310",
                f"`{function.name}` takes at most {counted(len(names), 'argument')}, {len(args)} are given",
                args[len(names)].span,
                help=f"write {function.name}({', '.join(names)})",
            )
        for keyword in expr.keywords:
            if keyword.name == "name":
                continue
            if keyword.name not in names:
                raise scope.fail(
                    "E311",
                    f"`{function.name}` has no argument `{keyword.name}`",
                    keyword.span,
                    help=scope.suggest(keyword.name, names) or f"write {function.name}({', '.join(names)})",
                )
            if keyword.name in given:
                raise scope.fail(
                    "E312",
                    f"`{keyword.name}` is given twice",
                    keyword.span,
                    labels=[Label(given[keyword.name].span, "the first one")],
                )
            given[keyword.name] = keyword.value
        for wanted in inputs:
            if wanted.name not in given:
                raise scope.fail(
                    "E313",
                    f"`{function.name}` needs `{wanted.name}`",
                    expr.span,
                    labels=[Label(wanted.span, "declared here")],
                )
            value = scope.traced(scope.read(given[wanted.name]), given[wanted.name].span)
            self._match(value.type.axes, wanted.axes, inner, given[wanted.name].span, wanted.span)
            inner.values[wanted.name] = value
        for name, param in function.params.items():
            if name in given:
                inner.statics[name] = self._function_argument(scope, given[name], param.type)
            elif param.required:
                raise scope.fail(
                    "E313",
                    f"`{function.name}` needs `{name}`",
                    expr.span,
                    labels=[Label(param.span, "declared here")],
                )
            else:
                default = param.default
                inner.statics[name] = (
                    inner.substitute(default)
                    if isinstance(default, ex.Expr)
                    else (literal(default, param.span) or ex.Name(param.span, "none"))
                )
        for name, size in function.sizes.items():
            inner.statics[name] = inner.substitute(size)

    def _function_argument(self, scope: Scope, expr: ex.Expr, type_: str) -> ex.Expr:
        if type_ == "axes":
            return ex.ListExpr(expr.span, tuple(axis.expr() for axis in scope.axes(expr)))
        if (
            type_ in ("function", "text", "choice")
            and isinstance(expr, ex.Name)
            and expr.id not in scope.statics
        ):
            return ex.Text(expr.span, expr.id)
        value = scope.read(expr)
        if not isinstance(value, StaticValue):
            raise scope.fail(
                "E320",
                "a parameter of a function must be known before the model runs",
                expr.span,
                note="it depends on the tokens",
                help="what depends on them is an input of the function: declare it under `inputs:`",
            )
        return value.expr

    def _match(
        self, axes: tuple[Axis, ...], pattern: ex.ListExpr | None, inner: Scope, span: Span, declared: Span
    ) -> None:
        """Bind a function's axis names to the axes of what it is given: `[heads, n]`, `[..., n]`."""
        if pattern is None:
            return
        names = [item.id if isinstance(item, ex.Name) else "..." for item in pattern.items]
        fixed = [name for name in names if name != "..."]
        if len(axes) < len(fixed) or ("..." not in names and len(axes) != len(fixed)):
            shape = ", ".join(str(axis) for axis in axes)
            raise inner.fail(
                "E351",
                f"a value of axes [{shape}] does not fit the input [{', '.join(names)}]",
                span,
                labels=[Label(declared, "declared here")],
            )
        spare = len(axes) - len(fixed)
        position = 0
        for name in names:
            if name == "...":
                inner.axis_variables["..."] = axes[position : position + spare]
                position += spare
                continue
            bound = inner.axis_variables.get(name)
            if bound is not None and bound != (axes[position],):
                raise inner.fail(
                    "E351",
                    f"`{name}` is `{bound[0]}` in one input and `{axes[position]}` in another",
                    span,
                    labels=[Label(declared, "declared here")],
                )
            inner.axis_variables[name] = (axes[position],)
            position += 1

    # -- slots, and values of other layers ------------------------------------------------------------------

    def call_slot(self, scope: Scope, expr: ex.Call) -> Value:
        """A call of a slot or part: a module of its own."""
        name = expr.function
        signature = self.slots.get(name)
        if signature is None:
            raise scope.fail(
                "E336",
                f"the slot `{name}` is not filled",
                expr.function_span,
                help=f"say what stands there: `{name}: {{use: ...}}`",
            )
        self._count_inputs(scope, name, signature, len(expr.args), expr.span)
        values = [scope.traced(scope.read(arg), arg.span) for arg in expr.args]
        self._check_inputs(scope, name, signature, values, expr.args)
        self._not_carrying(scope, name, signature, expr.function_span)
        word = expr.keyword("name")
        member = (scope.word(word) if word is not None else None) or name
        if member in self.builder.slots:
            raise scope.fail(
                "E361",
                f"`{name}` is called twice; each call is an instance of its own",
                expr.span,
                labels=[Label(self.builder.members[member], "the first one")],
                help=f"name the second: {name}(..., name=...)",
            )
        self.builder.slots[member] = signature.modules
        self.builder.members.setdefault(member, expr.span)
        attrs = {
            "modules": signature.modules,
            "shared": bool(signature.shared),
            "slot": name,
        }
        output = signature.output
        if any(value.type.rate == "block" for value in values):
            if not signature.tokenwise:
                raise scope.fail(
                    "E382",
                    f"`{name}` looks at earlier tokens or at their places, so it cannot take blocks",
                    expr.span,
                    help="let it hold linear maps, norms and elementwise functions only",
                )
            output = replace(output, rate="block")
        return scope.add("slot", values, (output,), attrs, expr.span, member)[0]

    def _count_inputs(self, scope: Scope, name: str, signature: Signature, given: int, span: Span) -> None:
        """A body is called with a value for each of its inputs."""
        if given != len(signature.inputs):
            raise scope.fail(
                "E310",
                f"`{name}` takes {counted(len(signature.inputs), 'value')}, {given} are given",
                span,
                labels=[Label(signature.result, f"what `{name}` returns")] if signature.result else [],
                help="a body has the inputs that it declares under `inputs:`, else only `x`",
            )

    def _check_inputs(
        self,
        scope: Scope,
        name: str,
        signature: Signature,
        values: Sequence[Traced],
        given: Sequence[ex.Expr],
    ) -> None:
        """They have the axes that the body declares."""
        for value, axes, arg in zip(values, signature.inputs, given):
            if tuple(map(scope.expand, value.type.axes)) != tuple(map(scope.expand, axes)):
                got, wanted = (", ".join(map(str, shape)) for shape in (value.type.axes, axes))
                raise scope.fail(
                    "E352",
                    f"`{name}` takes [{wanted}], this is [{got}]",
                    arg.span,
                    help=f"linear(..., {wanted}) makes one" if "," not in wanted else "",
                )

    # -- token by token -------------------------------------------------------------------------------------

    def before(self, call: Call, attrs: Mapping[str, Any], type_: ValueType) -> Value:
        """What an equation of this part was at the token before: one node for all calls with its name."""
        name = attrs["equation"]
        if self.body.kind != "part" or call.scope is not self.scope:
            call.fail(
                "E385",
                "only the equations of a part can read the token before",
                note="a part that `sequential` evaluates token by token",
                help="move what depends on the token before into a part: parts: {cell: {inputs: ..., body: ...}}",
            )
        if name not in self.scope.body_equations():
            call.fail(
                "E303",
                f"this part has no equation `{name}`",
                call.span_of("equation"),
                help=self.scope.suggest(name, sorted(self.scope.body_equations()))
                or "before(h, [axes]) is what the equation `h` of this part was at the token before",
            )
        first = self.carried.get(name)
        if first is not None:
            node = next(n for n in self.builder.nodes if n.op == "before" and n.attrs["equation"] == name)
            starts = [
                str(a) if isinstance(a, str) else unparse(a) for a in (node.attrs["start"], attrs["start"])
            ]
            if node.type.axes != type_.axes or starts[0] != starts[1]:
                call.fail(
                    "E386",
                    f"`{name}` is read twice of the token before, with other axes or another start",
                    labels=[Label(first.span, "the first one")],
                    help="write both alike, or give the value a name of its own and read that twice",
                )
            return Traced(Ref(node.id), node.type)
        value = call.add([], type_, attrs)
        self.carried[name] = call
        return value

    def _check_carried(self) -> None:
        """What the next token reads has the axes that it reads; nothing in between looks at other tokens."""
        for name, call in self.carried.items():
            value = self.scope.values.get(name)
            if value is None:
                continue  # its own error is recorded
            axes = call.axes("axes") or ()
            if not isinstance(value, Traced) or value.type.rate != "token" or value.type.axes != axes:
                has = shape(value.type.axes) if isinstance(value, Traced) else "a number"
                if isinstance(value, Traced) and value.type.rate != "token":
                    has = "the same for every token"
                self.report.error(
                    "E386",
                    f"`{name}` is read of the token before as {shape(axes)}, and is {has}",
                    call.span,
                    labels=[Label(self._place_of(name), f"`{name}` is defined here")],
                    note="the next token reads what this one has computed",
                    help=f"write before({name}, {has}), or make `{name}` {shape(axes)}"
                    if has.startswith("[")
                    else "",
                )
        for node in self.builder.nodes if self.carried else ():
            operation = registry.operations()[node.op]
            if not operation.tokenwise or node.op == "buffer" or node.attrs.get("share") is not None:
                self.report.error(
                    "E388",
                    f"`{node.op}` shares its weight with others, which a part cannot that is evaluated token by token"
                    if operation.tokenwise
                    else f"`{node.op}` cannot stand in a part that is evaluated token by token",
                    node.span,
                    note="such a part sees one token, its own values of the token before, and its own weights",
                    help="compute it outside for all tokens, and give it to the part as an input",
                )

    def _place_of(self, name: str) -> Span:
        """Where an equation is defined."""
        return next(t.span for e in self.body.equations for t in e.targets if t.name == name)

    def _not_carrying(self, scope: Scope, name: str, signature: Signature, span: Span) -> None:
        """Parts with `before` are evaluated by `sequential` and by nothing else."""
        if signature.carries:
            raise scope.fail(
                "E387",
                f"`{name}` reads the token before, so it is evaluated token by token",
                span,
                help=f"write sequential({name}, ...)",
            )

    def call_sequential(self, call: Call, values: Sequence[Traced]) -> Value:
        """`sequential(part, u, ...)`: the part at each token, after the token before it."""
        name, scope = call.word("part") or "", call.scope
        signature = self.slots.get(name)
        if signature is None or name not in self.body.parts:
            call.fail(
                "E336",
                f"`{name}` is no part of this body",
                call.span_of("part"),
                help=scope.suggest(name, list(self.body.parts)) or "declare it under `parts:`",
            )
        if not signature.carries:
            call.fail(
                "E387",
                f"`{name}` reads nothing of the token before, so nothing has to wait for it",
                call.span_of("part"),
                note="sequential evaluates a part token by token, which is slow",
                help=f"call it for all tokens at once, `{name}(...)`, or read an equation with before(name, [axes])",
            )
        self._count_inputs(scope, name, signature, len(values), call.span)
        self._check_inputs(scope, name, signature, values, call.rest)
        member = call.word("name") or name
        if member in self.builder.slots:
            call.fail(
                "E361",
                f"`{member}` is used twice; each use is an instance of its own",
                labels=[Label(self.builder.members[member], "the first one")],
                help="name the second: sequential(..., name=...)",
            )
        self.builder.slots[member] = signature.modules
        self.builder.members.setdefault(member, call.span)
        attrs = {"modules": signature.modules, "slot": name}
        return scope.add("sequential", values, (signature.output,), attrs, call.span, member)[0]

    def call_mixture(self, scope: Scope, expr: ex.Call) -> Value:
        """`mixture(body, x, weights=w)`: as many instances of a slot or part as w has entries (rule 16)."""
        weights_expr = expr.keyword("weights")
        first = expr.args[0] if expr.args else None
        if len(expr.args) != 2 or weights_expr is None or not isinstance(first, ex.Name):
            raise scope.fail(
                "E313",
                "a mixture needs a body, a value and weights",
                expr.span,
                help="write mixture(expert, x, weights=w)",
            )
        signature = self.slots.get(first.id)
        if signature is None or signature.shared:
            raise scope.fail(
                "E336",
                f"`{first.id}` is no slot or part that a mixture can have copies of",
                first.span,
                help=scope.suggest(first.id, list(self.slots)),
            )
        self._not_carrying(scope, first.id, signature, first.span)
        value = scope.traced(scope.read(expr.args[1]), expr.args[1].span)
        weights = scope.traced(scope.read(weights_expr), weights_expr.span)
        if weights.type.rate != "token" or len(weights.type.axes) != 1:
            raise scope.fail(
                "E353", "the weights of a mixture have one axis, an entry for each body", weights_expr.span
            )
        word = expr.keyword("name")
        member = (scope.word(word) if word is not None else None) or first.id
        if member in self.builder.slots:
            raise scope.fail(
                "E361",
                f"`{member}` is used twice; each use is an instance of its own",
                expr.span,
                labels=[Label(self.builder.members[member], "the first one")],
                help="name the second: mixture(..., name=...)",
            )
        self.builder.slots[member] = signature.modules
        self.builder.members.setdefault(member, expr.span)
        attrs = {"modules": signature.modules, "slot": first.id, "count": weights.type.axes[0]}
        return scope.add("mixture", [value, weights], (signature.output,), attrs, expr.span, member)[0]

    def across_layers(self, scope: Scope, expr: ex.Call) -> Value:
        """`first(v)` and `previous(v)`: an exported value of an earlier layer, same token (rule 11)."""
        if len(expr.args) != 1 or not isinstance(expr.args[0], ex.Name) or expr.keywords:
            raise scope.fail(
                "E337",
                f"`{expr.function}` takes the name of an exported equation",
                expr.span,
                help=f"give the expression a name of its own, export it, and write {expr.function}(name)",
            )
        name = expr.args[0].id
        type_ = self.exported.get(name)
        if type_ is None:
            raise scope.fail(
                "E338",
                f"no earlier layer exports `{name}`",
                expr.span,
                help=f"guard it: `{expr.function}({name}) if site > 0 else ...`"
                if name in {target.name for target in self.body.exports}
                else f"publish it where it is computed: `export: [{name}]`",
            )
        return scope.add("earlier", (), (type_,), {"which": expr.function, "export": name}, expr.span)[0]

    def embedding(self, scope: Scope, span: Span) -> Value:
        """The embedding of the token, readable in every body."""
        return scope.add("embedding", (), (ValueType((Axis.named("d_model"),)),), {}, span)[0]


def _looked_up(expr: ex.Call) -> list[ex.Expr]:
    """The arguments of a call in which names stand for values: not the words that the operation declares."""
    operation = registry.operations().get(expr.function)
    if operation is None:
        return [*expr.args, *(k.value for k in expr.keywords if k.name not in COMMON_KEYWORDS)]
    words = {a.name for a in operation.signature.arguments if a.kind in ("word", "words")} | set(
        COMMON_KEYWORDS
    )
    positional = [a.name for a in operation.signature.arguments if not a.keyword_only]
    found = (
        [
            arg
            for index, arg in enumerate(expr.args)
            if positional[min(index, len(positional) - 1)] not in words
        ]
        if positional
        else list(expr.args)
    )
    return [*found, *(k.value for k in expr.keywords if k.name not in words)]


__all__ = ["Elaborator", "Signature", "rewrite_names"]
