"""The entries of every library within reach: name, kind, title and source of each file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from archc.data import data_folder

_KINDS = {
    "mixer": "mixers",
    "mlp": "mlps",
    "block": "blocks",
    "function": "functions",
    "model": "models",
    "sweep": "sweeps",
}
_SEQUENTIAL = re.compile(r"\bsequential\s*\(")


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a library. `library` is "archc" for what ships with it, else the folder that holds it.

    `form` is "sequential" for what is evaluated token by token, at any length, and empty for everything else.
    """

    kind: str
    name: str
    title: str
    source: str
    library: str
    path: Path
    form: str = ""

    def facts(self) -> dict[str, str]:
        """The entry without its place on this machine."""
        return {
            "kind": self.kind,
            "name": self.name,
            "title": self.title,
            "source": self.source,
            "library": self.library,
            "form": self.form,
        }


def entries(start: Path) -> list[Entry]:
    """Every entry that a spec in the folder `start` can use, by kind in the order of a spec, then by name.

    An entry hides those of the same kind and name in libraries that are searched later. Raises `SpecError`
    for a faulty `archc.toml`.
    """
    found: dict[tuple[str, str], Entry] = {}
    for library, folder in _libraries(start):
        for kind, name in _KINDS.items():
            for path in sorted((folder / name).glob("*.yaml")):
                found.setdefault((kind, path.stem), _entry(kind, path, library))
    order = list(_KINDS)
    return sorted(found.values(), key=lambda entry: (order.index(entry.kind), entry.name))


def _libraries(start: Path) -> Iterator[tuple[str, Path]]:
    """Folders in the order in which they are searched."""
    from archc.spec.diagnostics import Reporter
    from archc.spec.library import configured_folders, installed_folders, shown

    report = Reporter()
    own = data_folder("specs")
    yielded: set[Path] = set()
    folders = (start.resolve(), *configured_folders(start.resolve(), report), *installed_folders())
    report.raise_if_any()
    for folder in folders:
        if folder.resolve() not in (*yielded, own.resolve()):
            yielded.add(folder.resolve())
            yield shown(folder), folder
    yield "archc", own


def _entry(kind: str, path: Path, library: str) -> Entry:
    """Read the head of a file: its top-level scalars, as text. A file that is no YAML has no title."""
    head: dict[str, str] = {}
    form = ""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        root = None
    if isinstance(root, yaml.MappingNode):
        for name, value in root.value:
            if isinstance(name, yaml.ScalarNode) and isinstance(value, yaml.ScalarNode):
                head[name.value] = value.value
            elif name.value == "body" and isinstance(value, yaml.MappingNode):
                equations = (text.value for _, text in value.value if isinstance(text, yaml.ScalarNode))
                form = "sequential" if any(_SEQUENTIAL.search(text) for text in equations) else form
    return Entry(kind, path.stem, head.get("title", ""), head.get("source", ""), library, path, form)
