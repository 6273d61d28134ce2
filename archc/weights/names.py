"""Lists of names: what each tensor of a published file is called here, read from `specs/weights/*.yaml`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from archc.data import data_folder
from archc.weights.errors import WeightsError

_KEYS = {"weights", "title", "source", "format", "architecture", "names", "paired_rows", "ignore"}


@dataclass(frozen=True, slots=True)
class Names:
    """A list of names. Patterns hold `{i}` where the layer stands.

    `names`: theirs to ours. `paired_rows`: theirs to the metadata entry with the number of heads; the rows of
    each head are stored as pairs (0, 1), (2, 3), ours are (0, n / 2), (1, n / 2 + 1). `ignore`: not read.
    """

    format: str
    architecture: str
    names: Mapping[str, str]
    paired_rows: Mapping[str, str]
    ignore: tuple[str, ...]
    path: Path

    def ours(self, theirs: str) -> str | None:
        """Our name of a tensor; None for one to ignore. `WeightsError` if not listed."""
        if any(_index(pattern, theirs) is not None for pattern in self.ignore):
            return None
        for pattern, ours in self.names.items():
            index = _index(pattern, theirs)
            if index is not None:
                return ours.replace("{i}", index)
        raise WeightsError(
            f"the file holds a tensor {theirs!r} that {self.path} does not list: it is of another kind of "
            f"model; add it under `names:` or `ignore:` in a list of your own and pass that as `names=`"
        )

    def heads_entry(self, theirs: str) -> str | None:
        """The metadata entry with the number of heads, for a tensor whose rows are stored in pairs."""
        found = (entry for pattern, entry in self.paired_rows.items() if _index(pattern, theirs) is not None)
        return next(found, None)


def _index(pattern: str, name: str) -> str | None:
    """The layer in `name` if it fits `pattern` ("" where the pattern has none), else None."""
    found = re.fullmatch(re.escape(pattern).replace(r"\{i\}", "([0-9]+)"), name)
    return None if found is None else (found.group(1) if found.groups() else "")


def read_names(path: Path) -> Names:
    """Read one list. Raises `WeightsError` where it is not one, with the key at fault."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise WeightsError(f"cannot read the list of names {path}: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} is not a list of names: it needs `format:`, `architecture:` and `names:`")
    unknown = sorted(set(map(str, content)) - _KEYS)
    if unknown:
        raise WeightsError(f"{path}: unknown key {unknown[0]!r}; known: {', '.join(sorted(_KEYS))}")
    return Names(
        format=str(content.get("format", "")),
        architecture=str(content.get("architecture", "")),
        names=_pairs(content, "names", path),
        paired_rows=_pairs(content, "paired_rows", path),
        ignore=tuple(str(name) for name in content.get("ignore") or ()),
        path=path,
    )


def _pairs(content: Mapping[str, Any], key: str, path: Path) -> dict[str, str]:
    pairs = content.get(key) or {}
    if not isinstance(pairs, dict) or not all(
        isinstance(text, str) for pair in pairs.items() for text in pair
    ):
        raise WeightsError(f"{path}: `{key}` needs pairs of names, theirs: ours")
    return pairs


def find_names(format: str, architecture: str) -> Names:
    """The list for one kind of file. Raises `WeightsError` with the known kinds where there is none."""
    known = [read_names(path) for path in sorted((data_folder("specs") / "weights").glob("*.yaml"))]
    for names in known:
        if (names.format, names.architecture) == (format, architecture):
            return names
    kinds = ", ".join(f"{names.architecture} ({names.format})" for names in known)
    raise WeightsError(
        f"no list of names for {architecture} ({format}); there are: {kinds}; pass one as `names=`"
    )
