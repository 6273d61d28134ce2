"""`extends: other.yaml`: one spec derived from another, merged key by key before anything is read from it."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path

from archc.spec.diagnostics import Label, Reporter, Span
from archc.spec.fields import is_null, shorten
from archc.spec.library import read_file, shown
from archc.spec.yaml_nodes import YMapping, YNode, YScalar

MAX_DEPTH = 16

# Replaced whole and never merged: their forms exclude each other.
WHOLE = ("layers", "extends")


def extended(
    node: YMapping, folder: Path, sources: MutableMapping[str, str], report: Reporter, own: Path | None = None
) -> tuple[YMapping, list[Path]] | None:
    """A spec with everything that it extends, and the folders of all files involved; None after an error.

    Mappings are merged key by key, the extending file's values win, and `null` removes a key. A list, a
    scalar, the `layers:` section, and a mapping that names another `use:` are replaced whole. Every node
    keeps the place in the file that it came from.
    """
    chain: list[tuple[YMapping, Path]] = [(node, folder)]
    seen: dict[Path, Span] = {own.resolve(): node.span} if own is not None else {}
    while (target := chain[-1][0].get("extends")) is not None:
        path = _target(target, chain[-1][1], report)
        if path is None:
            return None
        if path in seen:
            report.error(
                "E261",
                f"`{shorten(shown(path))}` extends itself",
                target.span,
                note="the files name each other in a circle",
                labels=[Label(seen[path], "the circle comes from here")] if seen[path].line else [],
            )
            return None
        if len(chain) > MAX_DEPTH:
            report.error("E262", f"more than {MAX_DEPTH} files extend each other", target.span)
            return None
        seen[path] = target.span
        parent = read_file(path, shown(path), sources, report)
        if parent is None:
            return None
        chain.append((parent, path.parent))
    merged = _without(chain[-1][0], "extends")
    for child, _ in reversed(chain[:-1]):
        merged = merge(merged, _without(child, "extends"), report)
    return merged, list(dict.fromkeys(place for _, place in chain))


def _target(node: YNode, folder: Path, report: Reporter) -> Path | None:
    if not isinstance(node, YScalar) or is_null(node):
        report.error(
            "E204", "`extends` needs the path of a spec", node.span, help="for example `extends: base.yaml`"
        )
        return None
    try:
        path = (folder / node.text).resolve()
        found = path.suffix in (".yaml", ".yml") and path.is_file()
    except (OSError, ValueError, RuntimeError):
        found = False
    if not found:
        report.error(
            "E260",
            f"`{shorten(node.text)}` is not a spec that can be extended",
            node.span,
            note="the path is relative to the file that extends, and ends in .yaml",
        )
        return None
    return path


def _without(node: YMapping, name: str) -> YMapping:
    return YMapping(node.span, tuple(pair for pair in node.entries if pair[0].text != name), node.flow)


def merge(base: YMapping, over: YMapping, report: Reporter) -> YMapping:
    """`base` with the entries of `over` on top of it; `null` in `over` removes an entry of `base`."""
    entries = {key.text: (key, value) for key, value in base.entries}
    for key, value in over.entries:
        old = entries.get(key.text)
        if is_null(value) and isinstance(value, YScalar) and value.text:
            if old is None:
                report.error(
                    "E263",
                    f"there is no `{shorten(key.text)}` to remove",
                    key.span,
                    note="`null` removes a key of the spec that is extended",
                )
            else:
                del entries[key.text]
        elif (
            old is not None
            and isinstance(old[1], YMapping)
            and isinstance(value, YMapping)
            and _merges(key, old[1], value)
        ):
            entries[key.text] = (key, merge(old[1], value, report))
        else:
            entries[key.text] = (key, value)
    return YMapping(over.span, tuple(entries.values()), base.flow and over.flow)


def _merges(key: YScalar, old: YMapping, new: YMapping) -> bool:
    before, after = _filler(old), _filler(new)
    return key.text not in WHOLE and (before is None or after is None or before == after)


def _filler(node: YMapping) -> str | None:
    """What a slot's mapping is filled with, so that arguments of one body never reach another."""
    use = node.get("use")
    if isinstance(use, YScalar):
        return use.text
    return "shared" if node.get("shared") is not None else None
