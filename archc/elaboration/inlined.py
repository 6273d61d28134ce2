"""Functions: their equations are read in place of the call, over the axes of what they are given."""

from __future__ import annotations

from archc.elaboration.context import MAX_DEPTH
from archc.elaboration.equations import in_order, read_equation
from archc.elaboration.scope import Scope
from archc.graph.calls import counted
from archc.graph.values import Abandon, StaticValue, Value
from archc.spec import expressions as ex
from archc.spec.axes import Axis
from archc.spec.diagnostics import Label, Span
from archc.spec.rewrite import literal
from archc.spec.spec import Body


def inline(scope: Scope, expr: ex.Call, function: Body) -> Value:
    """Read a function's equations in place of its call."""
    if scope.depth >= MAX_DEPTH:
        raise scope.fail(
            "E335",
            f"functions call each other more than {MAX_DEPTH} deep here",
            expr.span,
            note="a function is written out where it is called",
            help="a function cannot call itself; write several steps into one function",
        )
    name = expr.keyword("name")
    stem = scope.word(name) if name is not None else (scope.local if scope.prefix else scope.equation)
    prefix = f"{scope.prefix}_{stem}" if scope.prefix else str(stem)
    inner = scope.within(function, prefix)
    for word in ("layer", "site"):
        if word in scope.statics:
            inner.statics[word] = scope.statics[word]
    for setting in ("d_model", "n_layers", "n_sites", "vocab_size", "context"):
        inner.statics[setting] = ex.Name(expr.span, setting)
    _bind(scope, expr, function, inner)
    equations = {target.name: equation for equation in function.equations for target in equation.targets}
    for equation in in_order(equations, inner, ["y"]):
        read_equation(equation, inner)
    found = inner.values.get("y")
    if found is None:
        raise Abandon
    return found


def _bind(scope: Scope, expr: ex.Call, function: Body, inner: Scope) -> None:
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
        _match(value.type.axes, wanted.axes, inner, given[wanted.name].span, wanted.span)
        inner.values[wanted.name] = value
    for name, param in function.params.items():
        if name in given:
            inner.statics[name] = _argument(scope, given[name], param.type)
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


def _argument(scope: Scope, expr: ex.Expr, type_: str) -> ex.Expr:
    if type_ == "axes":
        return ex.ListExpr(expr.span, tuple(axis.expr() for axis in scope.axes(expr)))
    if type_ in ("function", "text", "choice") and isinstance(expr, ex.Name) and expr.id not in scope.statics:
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
    axes: tuple[Axis, ...], pattern: ex.ListExpr | None, inner: Scope, span: Span, declared: Span
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
