"""The blocks of a model: entries of `blocks:`, whichever way they name or spell out their body."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from archc.spec.bodies import SECTIONS, TAKEN, read_body
from archc.spec.diagnostics import Reporter, Span
from archc.spec.expressions import Call
from archc.spec.fields import Fields, describe, unknown_key
from archc.spec.library import Library, default_block
from archc.spec.spec import Body, Use
from archc.spec.uses import Binder
from archc.spec.yaml_nodes import YMapping, YNode, YScalar

NAMES = ("block", "use")  # an entry names its body with either
BODY_KEYS = ("slots", "parts", "sizes", "inputs", "export", "losses", "updates", "params", "title", "source")


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of `blocks:`. `own` is the body that it spells out, `template` says that it fills no slot."""

    name: str
    span: Span
    node: YMapping
    own: Body | None = None
    template: bool = False


class BlockReader:
    """Reads `blocks:` in two steps: bodies first, so that entries can name each other, then uses."""

    def __init__(self, library: Library, report: Reporter, common: YNode | None) -> None:
        self.library = library
        self.report = report
        self.common: Body | YScalar | None = None
        if isinstance(common, YMapping):
            fields = Fields(common, "`block:`", report)
            self.common = read_body(fields, "block", "block", common.span, report)
            fields.finish(SECTIONS)
        elif isinstance(common, YScalar):
            self.common = common
        elif common is not None:
            report.error("E204", f"`block` needs a name or a mapping, not {describe(common)}", common.span)

    def read_entries(self, node: YMapping) -> dict[str, Entry]:
        """Every entry with the body that it spells out, if it does."""
        entries = {}
        for key, value in node.entries:
            if not isinstance(value, YMapping):
                self.report.error(
                    "E204",
                    f"block `{key.text}` needs a mapping, not {describe(value)}",
                    value.span,
                    help=f"write `{key.text}: {{mixer: {{use: ...}}, mlp: {{use: ...}}}}`",
                )
                continue
            entry = self._read_entry(key, value)
            entries[key.text] = entry
            if entry.own is not None:
                self.library.add(entry.own)
        return entries

    def _read_entry(self, key: YScalar, node: YMapping) -> Entry:
        nested = node.get("block") or node.get("use")
        if node.get("block") is not None and node.get("use") is not None:
            self.report.error(
                "E231",
                f"block `{key.text}` names its body twice",
                node.span,
                help="remove `use:` or `block:`",
            )
        if isinstance(nested, YMapping):
            fields = Fields(nested, f"the body of block `{key.text}`", self.report)
            own = read_body(fields, "block", key.text, key.span, self.report)
            fields.finish(SECTIONS)
            return Entry(key.text, key.span, node, own)
        if nested is not None or node.get("body") is None:
            for name in BODY_KEYS:
                child = next((k for k, _ in node.entries if k.text == name), None)
                if child is not None:
                    self.report.error(
                        "E202",
                        f"`{name}` stands beside a `body:`, and block `{key.text}` has none of its own",
                        child.span,
                        help="add `body:`, or remove it",
                    )
            return Entry(key.text, key.span, node)
        sections = {each.text for each, _ in node.entries if each.text in SECTIONS}
        fills = [(each, value) for each, value in node.entries if each.text not in TAKEN["block"]]
        params = node.get("params")
        declared = {each.text for each, _ in params.entries} if isinstance(params, YMapping) else set()
        found = {each.text: _kinds_of(each.text) for each, _ in fills if each.text not in declared}
        inner = replace(node, entries=tuple(pair for pair in node.entries if pair[0].text in SECTIONS))
        own = read_body(
            Fields(inner, f"block `{key.text}`", self.report), "block", key.text, key.span, self.report, found
        )
        if "slots" not in sections:
            self._check_called(own, [each for each, _ in fills if each.text in found])
        template = (
            "slots" in sections and bool(own.slots) and not any(each.text in own.slots for each, _ in fills)
        )
        return Entry(key.text, key.span, node, own, template)

    def _check_called(self, body: Body, keys: list[YScalar]) -> None:
        called = {
            node.function
            for equation in body.equations
            for node in equation.expr.walk()
            if isinstance(node, Call)
        }
        for key in keys:
            if key.text not in called:
                unknown_key(
                    key,
                    f"block `{body.name}`",
                    {*called, *SECTIONS} - {"norm"},
                    self.report,
                    "E245",
                    note=f"no equation of the block calls `{key.text}`",
                )

    def bind(self, entry: Entry, binder: Binder) -> Use | None:
        """The entry as a use of its body."""
        own = entry.own
        named = entry.node.get("block") or entry.node.get("use")
        spelled = own is not None and named is None
        skip = (*NAMES, *SECTIONS) if spelled else (*NAMES, *BODY_KEYS)
        node = replace(
            entry.node, entries=tuple(pair for pair in entry.node.entries if pair[0].text not in skip)
        )
        body = own if own is not None else self._named(entry)
        if body is None:
            return None
        binder.owner = entry.name
        return binder.bind(body, Fields(node, f"block `{entry.name}`", self.report), entry.span)

    def _named(self, entry: Entry) -> Body | None:
        named = entry.node.get("block") or entry.node.get("use")
        if isinstance(named, YScalar):
            return self.library.find(("block",), named)
        if named is not None:
            self.report.error("E204", f"`block` needs a name or a mapping, not {describe(named)}", named.span)
            return None
        if isinstance(self.common, YScalar):
            return self.library.find(("block",), self.common)
        if self.common is not None:
            return self.common
        name = default_block(entry.node.get("mlp") is not None)
        return self.library.find(("block",), YScalar(entry.span, name, name, "plain"))


def _kinds_of(slot: str) -> tuple[str, ...]:
    """What an undeclared slot takes: its name says so for `mixer` and `mlp`, and otherwise either will do."""
    return (slot,) if slot in ("mixer", "mlp") else ("mixer", "mlp")


def used_entries(entries: Mapping[str, Entry], names: tuple[str, ...], report: Reporter) -> list[Entry]:
    """The entries that stand in some layer; one in no layer is an error, unless it only lends its body."""
    used = set(names)
    lent = {
        value.text
        for entry in entries.values()
        if isinstance(value := entry.node.get("block") or entry.node.get("use"), YScalar)
    }
    for entry in entries.values():
        if entry.name not in used and not entry.template and entry.name not in lent:
            report.error(
                "E244",
                f"no layer uses block `{entry.name}`",
                entry.span,
                help="name it in `layers:`, or remove it; "
                f"a spec that extends another writes `{entry.name}: null`",
            )
    return [entry for entry in entries.values() if entry.name in used]
