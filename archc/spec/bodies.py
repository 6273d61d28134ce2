"""Bodies: the sections of a mixer, an MLP, a block, a function or a part, read into a `Body`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from archc.spec.diagnostics import Label, Reporter, Span
from archc.spec.expressions import Call, Expr
from archc.spec.fields import Fields, a_noun, closest, describe, is_null, items_of, noun, shorten, suggestion
from archc.spec.params import read_params
from archc.spec.parser import check_name, parse_axes, parse_equation, parse_targets
from archc.spec.spec import Body, Equation, Input, Param, Target
from archc.spec.values import STATICS, free_names, parse_scalar
from archc.spec.yaml_nodes import YMapping, YNode, YScalar

SECTIONS = (
    "title",
    "source",
    "params",
    "sizes",
    "inputs",
    "slots",
    "parts",
    "export",
    "init",
    "body",
    "losses",
    "updates",
)
PART_SECTIONS = ("title", "source", "params", "sizes", "inputs", "body")
SLOT_KINDS = ("mixer", "mlp", "block")
NEED_INPUTS = ("function", "part")

# Keys that a use or a block entry understands itself, so that no parameter or slot can have such a name.
TAKEN = {
    "mixer": ("use", "body", "init", "shared"),
    "mlp": ("use", "body", "init", "shared"),
    "function": (),
    "part": (),
    "block": ("use", *SECTIONS, "block", "shared"),
}


def read_body(
    fields: Fields,
    kind: str,
    name: str,
    span: Span,
    report: Reporter,
    found_slots: Mapping[str, tuple[str, ...]] | None = None,
) -> Body:
    """Read the sections of one body. Its equations keep the order of the file.

    `found_slots` are slots that a block fills without declaring them. What is wrong is reported, and the rest
    is read all the same, so that every mistake of a body shows at once. Keys that are no section stay in
    `fields`.
    """
    title, source = (
        fields.take_scalar("title", "a line of text"),
        fields.take_scalar("source", "a line of text"),
    )
    sizes = fields.take_mapping("sizes", "derived whole numbers, one expression each")
    params = fields.take_mapping("params", "declarations of parameters")
    size_names = frozenset(key.text for key, _ in sizes.entries) if sizes else frozenset()
    body = Body(
        kind,
        name,
        span,
        title=title.text if title else "",
        source=source.text if source else "",
        inputs=_read_inputs(fields, kind, name, span, report),
        params=read_params(params, size_names, report) if params else {},
        sizes=_read_sizes(sizes, report) if sizes else {},
        slots=_read_slots(fields, report) if "slots" in fields else dict(found_slots or {}),
        parts=_read_parts(fields, report),
        exports=_read_exports(fields, report),
        init=_read_init(fields, report),
    )
    equations = fields.take_mapping("body", "equations, `name: expression`")
    losses = fields.take_mapping("losses", "equations of auxiliary losses")
    updates = fields.take_mapping("updates", "new values of buffers after a training step")
    if equations is None:
        if not report.diagnostics or fields.key("body") is None:
            report.error(
                "E203",
                f"{noun(kind)} `{name}` has no equations",
                span,
                help="add a section `body:` with an equation `y`",
            )
        return body
    body = replace(
        body,
        equations=read_equations(equations, report),
        losses=read_equations(losses, report) if losses else (),
        updates=read_equations(updates, report) if updates else (),
    )
    check_names(body, written_names(equations), report)
    _check_statics(body, report)
    return body


def read_equations(node: YMapping, report: Reporter) -> tuple[Equation, ...]:
    """The equations of a `body:` or `losses:` section; a wrong one is reported and left out."""
    found = (_read_equation(key, value, report) for key, value in node.entries)
    return tuple(equation for equation in found if equation is not None)


def _read_equation(key: YScalar, node: YNode, report: Reporter) -> Equation | None:
    targets = parse_targets(key, report)
    if not isinstance(node, YScalar):
        report.error(
            "E204", f"equation `{shorten(key.text)}` needs an expression, not {describe(node)}", node.span
        )
        return None
    if is_null(node):
        report.error("E209", f"equation `{shorten(key.text)}` has no right side", key.span)
        return None
    expr = parse_equation(node, report)
    return Equation(targets, expr, node.text, node.span) if expr is not None and targets else None


def _read_sizes(node: YMapping, report: Reporter) -> dict[str, Expr]:
    sizes: dict[str, Expr] = {}
    for key, value in node.entries:
        if not check_name(key.text, key.span, report, what="size"):
            continue
        if not isinstance(value, YScalar) or is_null(value):
            report.error("E204", f"size `{key.text}` needs an expression, not {describe(value)}", value.span)
            continue
        expr = parse_scalar(value, report)
        if expr is not None:
            sizes[key.text] = expr
    return sizes


def _read_inputs(fields: Fields, kind: str, name: str, span: Span, report: Reporter) -> tuple[Input, ...]:
    """Declared inputs; without them a mixer, an MLP and a block have `x` on the axis `[d_model]`."""
    present = "inputs" in fields
    node = fields.take_mapping("inputs", "names of inputs with their axes, `x: [d_model]`")
    if node is None:
        if kind in NEED_INPUTS and not present:
            report.error(
                "E203",
                f"{noun(kind)} `{name}` declares no inputs",
                span,
                help='for example `inputs: {u: "[heads, n]"}`',
            )
        return () if kind in NEED_INPUTS else (Input("x", None, span),)
    found = []
    for key, value in node.entries:
        axes = parse_axes(value, report) if not is_null(value) else None
        if is_null(value):
            report.error(
                "E209",
                f"input `{shorten(key.text)}` has no axes",
                key.span,
                help='for example `"[heads, n]"`',
            )
        if axes is not None and check_name(key.text, key.span, report, what="input", allow=frozenset({"x"})):
            found.append(Input(key.text, axes, key.span))
    return tuple(found)


def _read_slots(fields: Fields, report: Reporter) -> dict[str, tuple[str, ...]]:
    node = fields.take_mapping("slots", "names of slots with the kind of body that each takes")
    slots: dict[str, tuple[str, ...]] = {}
    for key, value in node.entries if node else ():
        kinds = [item for item in items_of(value) if isinstance(item, YScalar)]
        for item in kinds:
            if item.text not in SLOT_KINDS:
                report.error(
                    "E241",
                    f"a slot takes no `{shorten(item.text)}`",
                    item.span,
                    help=suggestion(item.text, SLOT_KINDS, "kinds"),
                )
        if check_name(key.text, key.span, report, what="slot"):
            accepted = tuple(item.text for item in kinds if item.text in SLOT_KINDS)
            slots[key.text] = accepted or SLOT_KINDS[:2]
    return slots


def _read_parts(fields: Fields, report: Reporter) -> dict[str, Body]:
    node = fields.take_mapping("parts", "bodies inside this body")
    parts: dict[str, Body] = {}
    for key, value in node.entries if node else ():
        if not check_name(key.text, key.span, report, what="part"):
            continue
        if not isinstance(value, YMapping):
            report.error("E204", f"part `{key.text}` needs a mapping, not {describe(value)}", value.span)
            continue
        inner = Fields(value, f"part `{key.text}`", report)
        parts[key.text] = read_body(inner, "part", key.text, key.span, report)
        inner.finish(PART_SECTIONS)
    _check_parts(parts, report)
    return parts


def _check_parts(parts: Mapping[str, Body], report: Reporter) -> None:
    calls = {
        name: sorted(
            {
                node.function
                for equation in part.equations
                for node in equation.expr.walk()
                if isinstance(node, Call) and node.function in parts
            }
        )
        for name, part in parts.items()
    }
    cycle = find_cycle(calls)
    if cycle:
        report.error(
            "E213",
            f"the parts {' -> '.join(f'`{name}`' for name in cycle)} call each other",
            parts[cycle[0]].span,
            note="a part is written out where it is called, so it cannot contain itself",
        )


def find_cycle(edges: Mapping[str, Iterable[str]]) -> list[str] | None:
    """A cycle of a directed graph as the names along it, the first one repeated at the end, or None."""
    done: set[str] = set()
    for start in edges:
        path: list[str] = []
        stack = [(start, iter(edges[start]))] if start not in done else []
        path.extend(name for name, _ in stack)
        while stack:
            name, following = stack[-1]
            child = next(following, None)
            if child is None:
                done.add(name)
                stack.pop()
                path.pop()
            elif child in path:
                return [*path[path.index(child) :], child]
            elif child in edges and child not in done:
                stack.append((child, iter(edges[child])))
                path.append(child)
    return None


def _read_exports(fields: Fields, report: Reporter) -> tuple[Target, ...]:
    node = fields.take("export")
    words = [item for item in items_of(node) if isinstance(item, YScalar)] if node is not None else []
    return tuple(Target(word.text, word.span) for word in words if check_name(word.text, word.span, report))


def _read_init(fields: Fields, report: Reporter) -> Expr | None:
    node = fields.take_scalar("init", "an initialiser, such as `normal(0, 0.02)`")
    return parse_scalar(node, report) if node is not None else None


def written_names(node: YMapping) -> set[str]:
    """The names that a section defines, those of equations that could not be read among them."""
    return {name.strip() for key, _ in node.entries for name in key.text.split(",")}


def check_names(body: Body, names: set[str], report: Reporter) -> None:
    """One flat namespace a body: inputs, parameters, sizes and equations; exports exist; `y` is there.

    `names` are those of all equations as they are written.
    """
    seen: dict[str, tuple[Span, str]] = {item.name: (item.span, "an input") for item in body.inputs}
    for name, param in body.params.items():
        _declare(seen, name, param.span, "a parameter", report)
        _refuse_taken(body, name, param.span, report)
    for name, expr in body.sizes.items():
        _declare(seen, name, expr.span, "a size", report)
    for equation in body.equations:
        for target in equation.targets:
            _declare(seen, target.name, target.span, "an equation", report)
    for name in body.slots:
        if name in body.params or name in body.parts:
            report.error(
                "E231",
                f"`{name}` is declared twice in {noun(body.kind)} `{body.name}`",
                body.span,
                note="a slot, a parameter and a part of one body have different names",
            )
        _refuse_taken(body, name, body.span, report)
    for export in body.exports:
        if export.name not in names:
            report.error(
                "E233",
                f"`{export.name}` is exported but no equation defines it",
                export.span,
                help=suggestion(export.name, names, "equations"),
            )
    if body.equations and "y" not in names:
        last = body.equations[-1].targets[-1]
        report.error(
            "E232",
            f"{noun(body.kind)} `{body.name}` has no equation `y`",
            last.span,
            note="`y` is what a body gives back",
            help="name the equation of the result `y`",
        )


def _check_statics(body: Body, report: Reporter) -> None:
    """Sizes and defaults name parameters, sizes and the model's statics; in a function also axes of inputs.

    Those of a part may name what the body around it declares and are looked up there.
    """
    if body.kind == "part":
        return
    known = {*body.params, *body.sizes, *STATICS, "..."}
    for item in body.inputs:
        known.update(node.id for axis in (item.axes.items if item.axes else ()) for node in free_names(axis))
    expressions = [*body.sizes.values(), *(param.default for param in body.params.values())]
    expressions += [param.divides for param in body.params.values()]
    for expr in expressions:
        for node in free_names(expr) if isinstance(expr, Expr) else ():
            if node.id not in known:
                report.error(
                    "E228",
                    f"`{node.id}` is not known here",
                    node.span,
                    note="sizes and defaults are worked out from parameters, sizes and numbers of the model",
                    help=suggestion(node.id, known - {"..."}, "known are"),
                )


def _declare(seen: dict[str, tuple[Span, str]], name: str, span: Span, what: str, report: Reporter) -> None:
    if name in seen:
        report.error(
            "E231",
            f"`{name}` is {what} here and {seen[name][1]} elsewhere in this body",
            span,
            note="inputs, parameters, sizes and equations share one namespace",
            labels=[Label(seen[name][0], f"`{name}` is {seen[name][1]} here")],
        )
    else:
        seen[name] = (span, what)


def _refuse_taken(body: Body, name: str, span: Span, report: Reporter) -> None:
    if name in TAKEN.get(body.kind, ()):
        report.error(
            "E234",
            f"`{name}` cannot name a parameter or a slot of {a_noun(body.kind)}",
            span,
            note=f"where the {noun(body.kind)} is used, the key `{name}:` means something else",
            help="give it another name",
        )


def replace_equations(body: Body, node: YMapping, report: Reporter) -> Body:
    """`body` with equations replaced by name. A key with several targets is replaced whole; none is added."""
    by_targets = {
        tuple(target.name for target in equation.targets): i for i, equation in enumerate(body.equations)
    }
    owner = {name: names for names in by_targets for name in names}
    equations = list(body.equations)
    for new in read_equations(node, report):
        names = tuple(target.name for target in new.targets)
        place = new.targets[0].span
        if names in by_targets:
            equations[by_targets[names]] = new
            continue
        whole = next((owner[name] for name in names if name in owner), None)
        if whole is not None:
            old = equations[by_targets[whole]]
            report.error(
                "E236",
                f"`{', '.join(names)}` is not a whole equation of {noun(body.kind)} `{body.name}`",
                place,
                note="a key with several targets is replaced whole, in the same order",
                help=f"write `{', '.join(whole)}: ...`",
                labels=[Label(old.targets[0].span, "the equation stands here")],
            )
        else:
            near = closest(names[0], owner)
            listed = ", ".join(f"`{', '.join(key)}`" for key in by_targets)
            report.error(
                "E235",
                f"{noun(body.kind)} `{body.name}` has no equation `{', '.join(names)}` to replace",
                place,
                help=f"did you mean `{', '.join(owner[near])}`?"
                if near
                else f"replace one of {listed}; a new equation belongs into a body of its own",
                labels=[Label(body.span, f"{noun(body.kind)} `{body.name}` is defined here")],
            )
    return replace(body, equations=tuple(equations))


def required(params: Mapping[str, Param]) -> list[Param]:
    """The parameters without a default."""
    return [param for param in params.values() if param.required]
