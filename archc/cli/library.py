"""The entries of the library that ships with archc: name, kind, title and source of each file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from archc.data import data_folder

# Folder -> the key that holds an entry's name, which is its kind as well.
_FOLDERS = {"mixers": "mixer", "mlps": "mlp", "blocks": "block", "functions": "function", "models": "name"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the library."""

    kind: str
    name: str
    title: str
    source: str
    path: Path

    def facts(self) -> dict[str, str]:
        """The entry without its place on this machine."""
        return {"kind": self.kind, "name": self.name, "title": self.title, "source": self.source}


def entries() -> list[Entry]:
    """Every entry, by kind in the order of a spec, then by name."""
    return [
        _entry("model" if key == "name" else key, key, path)
        for folder, key in _FOLDERS.items()
        for path in sorted((data_folder("specs") / folder).glob("*.yaml"))
    ]


def _entry(kind: str, key: str, path: Path) -> Entry:
    """Read the head of a file: its top-level scalars, as text."""
    root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    head: dict[str, str] = {}
    if isinstance(root, yaml.MappingNode):
        for name, value in root.value:
            if isinstance(name, yaml.ScalarNode) and isinstance(value, yaml.ScalarNode):
                head[name.value] = value.value
    return Entry(kind, head.get(key, path.stem), head.get("title", ""), head.get("source", ""), path)
