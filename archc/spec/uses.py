"""Uses: a body bound to what the user wrote, with every argument checked against its declaration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from archc.spec.bodies import SECTIONS, TAKEN, read_body, replace_equations
from archc.spec.diagnostics import Label, Reporter, Span
from archc.spec.expressions import Attribute, Expr, Name
from archc.spec.fields import WORD, Fields, a_noun, describe, items_of, noun, unknown_key
from archc.spec.library import Library
from archc.spec.scope import check_use
from archc.spec.spec import Body, Param, Shared, Static, Use
from archc.spec.values import STATICS, declared, parse_scalar, read_value
from archc.spec.yaml_nodes import YMapping, YNode, YScalar


@dataclass
class Binder:
    """What binding needs: where bodies are found, the model's numbers, and the shared bodies by name."""

    library: Library
    statics: Mapping[str, Static]
    report: Reporter
    shared: Mapping[str, Span] = field(default_factory=dict)
    used_shared: set[str] = field(default_factory=set)
    owner: str = (
        ""  # the block or shared body that is being bound; names bodies that are written out in a slot
    )
    inline: set[str] = field(default_factory=set)

    def fill(self, node: YNode, kinds: Iterable[str], slot: str) -> Use | Shared | None:
        """What fills a slot: `{use: name, ...}`, `{shared: [A, B]}`, or a body written out in place."""
        kinds = tuple(kinds)
        if not isinstance(node, YMapping):
            word = node.text if isinstance(node, YScalar) and WORD.match(node.text) else "name"
            self.report.error(
                "E204",
                f"`{slot}` needs a mapping, not {describe(node)}",
                node.span,
                help=f"write `{slot}: {{shared: [{word}]}}`"
                if word in self.shared
                else f"write `{slot}: {{use: {word}}}`",
            )
            return None
        if node.get("shared") is not None:
            return self._fill_shared(node, slot)
        fields = Fields(node, f"`{slot}`", self.report)
        if "use" in fields:
            return self.use(fields, kinds, node.span)
        if "body" in fields:
            kind = kinds[0]
            body = read_body(fields, kind, self._inline_name(slot), node.span, self.report)
            fields.finish(SECTIONS)
            return self.bind(body, Fields(replace(node, entries=()), f"`{slot}`", self.report), node.span)
        self.report.error(
            "E203",
            f"`{slot}` says not what it uses",
            node.span,
            help=f"begin with `use:`, for example `{slot}: {{use: name}}`",
        )
        return None

    def _inline_name(self, slot: str) -> str:
        """A name of its own for a body without one: `full_mixer`, `full_mixer_2`."""
        name = plain = "_".join(part for part in (self.owner, slot) if part)
        number = 1
        while name in self.inline:
            number += 1
            name = f"{plain}_{number}"
        self.inline.add(name)
        return name

    def _fill_shared(self, node: YMapping, slot: str) -> Shared | None:
        fields = Fields(node, f"`{slot}`", self.report)
        listed = fields.take("shared")
        fields.finish(("shared",))
        names = []
        if listed is not None and not items_of(listed):
            self.report.error(
                "E242",
                f"`{slot}` lists no shared body",
                listed.span,
                help=f"there are: {', '.join(f'`{name}`' for name in self.shared)}"
                if self.shared
                else f"declare one under `shared:`, or write `{slot}: {{use: ...}}`",
            )
        for item in items_of(listed) if listed is not None else ():
            if isinstance(item, YScalar) and item.text in self.shared:
                names.append(item.text)
                self.used_shared.add(item.text)
            else:
                self.report.error(
                    "E242",
                    f"there is no shared body {describe(item)}",
                    item.span,
                    note="shared bodies stand under `shared:` at the top of the spec",
                    help=f"there are: {', '.join(f'`{name}`' for name in self.shared)}"
                    if self.shared
                    else "",
                )
        return Shared(tuple(names), node.span) if names else None

    def use(self, fields: Fields, kinds: Iterable[str], span: Span) -> Use | None:
        """A `use:` with its arguments, replaced equations and filled slots."""
        name = fields.take_word("use", "the name of a body")
        body = self.library.find(kinds, name) if name is not None else None
        if body is None:
            return None
        return self.bind(body, fields, name.span if name is not None else span)

    def bind(self, body: Body, fields: Fields, span: Span) -> Use:
        """Bind a body to the entries that are left in `fields`."""
        base = None
        overrides = fields.take_mapping("body", "equations that replace equations of the same name")
        if overrides is not None:
            base, body = body, replace_equations(body, overrides, self.report)
        init_node = fields.take_scalar("init", "an initialiser, such as `normal(0, 0.02)`")
        init = parse_scalar(init_node, self.report) if init_node is not None else None
        arguments: dict[str, Expr | Static] = {}
        places: dict[str, Span] = {}
        slots: dict[str, Use | Shared] = {}
        given = set()
        before = len(self.report.diagnostics)
        tried = set()
        for key, value in fields.rest():
            if key.text in body.slots:
                tried.add(key.text)
                filled = self.fill(value, body.slots[key.text], key.text)
                if filled is not None:
                    slots[key.text] = filled
            elif key.text in body.params:
                given.add(key.text)
                places[key.text] = value.span
                read, argument = self._argument(value, body, body.params[key.text])
                if read:
                    arguments[key.text] = argument
            else:
                known = {*body.params, *body.slots}
                unknown_key(
                    key,
                    f"a use of {noun(body.kind)} `{body.name}`",
                    known,
                    self.report,
                    "E220",
                    note="" if known else f"{noun(body.kind)} `{body.name}` has no parameters",
                )
        for slot, kinds in body.slots.items():
            if slot not in tried and slot not in TAKEN.get(body.kind, ()):  # such a name is refused already
                self.report.error(
                    "E240",
                    f"slot `{slot}` of {noun(body.kind)} `{body.name}` is not filled",
                    span,
                    help=f"add `{slot}: {{use: ...}}` with {' or '.join(map(a_noun, kinds))}",
                    labels=[Label(body.span, f"{noun(body.kind)} `{body.name}` is defined here")],
                )
        for name, param in body.params.items():
            if name not in given and param.required:
                self.report.error(
                    "E221",
                    f"{noun(body.kind)} `{body.name}` needs `{name}`",
                    span,
                    note=param.help,
                    help=f"add `{name}: ...`",
                    labels=declared(param),
                )
            elif name not in given:
                arguments[name] = param.default
        ordered = {name: arguments[name] for name in body.params if name in arguments}
        bound = Use(body, ordered, frozenset(given), span, slots, base, init)
        if len(self.report.diagnostics) == before:
            check_use(bound, places, self.statics, self.report)
        return bound

    def _argument(self, node: YNode, body: Body, param: Param) -> tuple[bool, Expr | Static]:
        if param.type == "mapping" and not param.entries and isinstance(node, YMapping):
            self._check_entries(node, body, param)
        read, value = read_value(node, param, self.report)
        if read and param.type == "any" and isinstance(value, Name):
            known = {*body.params, *body.sizes, *STATICS}
            return True, value if value.id in known else value.id
        return read, value

    def _check_entries(self, node: YMapping, body: Body, param: Param) -> None:
        """A mapping that a body only takes apart may hold nothing but the entries that the body reads."""
        expressions = [equation.expr for equation in (*body.equations, *body.losses, *body.updates)]
        expressions += [equation.expr for part in body.parts.values() for equation in part.equations]
        expressions += body.sizes.values()
        expressions += [other.default for other in body.params.values() if isinstance(other.default, Expr)]
        nodes = [node for expr in expressions for node in expr.walk()]
        read = {
            n.name
            for n in nodes
            if isinstance(n, Attribute) and isinstance(n.value, Name) and n.value.id == param.name
        }
        whole = passed_whole(expressions, param.name)
        if whole or not read:
            return
        for key, _ in node.entries:
            if key.text not in read:
                unknown_key(
                    key,
                    f"`{param.name}` of {noun(body.kind)} `{body.name}`",
                    read,
                    self.report,
                    "E220",
                    note="no equation reads it",
                )
        for name in sorted(read):
            if node.get(name) is None and all(key.text in read for key, _ in node.entries):
                self.report.error(
                    "E221",
                    f"`{param.name}` needs an entry `{name}`",
                    node.span,
                    note=f"equations of {noun(body.kind)} `{body.name}` read `{param.name}.{name}`",
                    labels=declared(param),
                )


def passed_whole(expressions: Iterable[Expr], name: str) -> bool:
    """Whether a mapping is handed on as one value, as in `rope(q, scaling=rope_scaling)`.

    Only arguments of calls count: conditions such as `if rope` ask whether there is a mapping at all.
    """
    for expr in expressions:
        for node in expr.walk():
            operands = getattr(node, "args", ()) + tuple(k.value for k in getattr(node, "keywords", ()))
            if any(isinstance(operand, Name) and operand.id == name for operand in operands):
                return True
    return False
