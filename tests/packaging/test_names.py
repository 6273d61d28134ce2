"""The compiler knows no mixer: names of the library occur under specs/ only."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from archc.operations.registry import operations

KINDS = ("mixer", "mlp", "block", "function")

# Names that are English words as well: prose may use them, so they are looked for in quotes only.
ENGLISH = frozenset({"parallel"})
WORD = re.compile("[A-Za-z0-9_]+")


def library_names(repository: Path) -> set[str]:
    """Every name that a file under specs/ declares: entries of all kinds, models and targets."""
    names: set[str] = set()
    for path in (repository / "specs").rglob("*.yaml"):
        if path.parent.name == "starter":
            continue
        spec = yaml.load(path.read_text(), Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))
        names |= {spec[key] for key in (*KINDS, "name") if key in spec}
        for section in ("mixers", "mlps", "functions"):  # parts are private to their body
            names |= set(spec.get(section, {}))
    return names


def occurrences(repository: Path, names: set[str]) -> list[str]:
    """Every line under archc/ and templates/ in which one of the names stands as a word."""
    quoted = [f"(?<=[\"']){re.escape(name)}(?=[\"'])" for name in sorted(names & ENGLISH)]
    in_quotes = re.compile("|".join(quoted) or "(?!)")
    assert all(WORD.fullmatch(name) for name in names)
    found = []
    for folder in ("archc", "templates"):
        for path in sorted((repository / folder).rglob("*")):
            if not path.is_file() or path.suffix == ".pyc" or "_data" in path.parts:
                continue
            if path.suffix == ".md":  # pages for readers, with examples that use the library
                continue
            for number, line in enumerate(path.read_text().splitlines(), 1):
                here = [name for name in WORD.findall(line) if name in names and name not in ENGLISH]
                here += in_quotes.findall(line)
                if here:
                    found.append(f"{path.relative_to(repository)}:{number}: {here[0]}")
    return found


def test_no_library_name_occurs_in_the_compiler(repository: Path) -> None:
    names = library_names(repository) - set(operations())
    assert len(names) > 30
    assert occurrences(repository, names) == []


def test_the_search_finds_a_name(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "archc").mkdir()
    (tmp_path / "archc" / "bad.py").write_text('if use == "gla":\n    pass\n')
    assert occurrences(tmp_path, {"gla"}) == ["archc/bad.py:1: gla"]
    (tmp_path / "archc" / "bad.py").write_text('block = "parallel"  # parallel over chunks\n# in parallel\n')
    assert occurrences(tmp_path, {"parallel"}) == ["archc/bad.py:1: parallel"]
