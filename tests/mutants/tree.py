"""A copy of the repository in which one change is made at a time, and a test run over it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from xml.etree import ElementTree

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("mutants.yaml")
NEEDED = ("archc", "specs", "templates", "tests", "pyproject.toml")
TOKEN = re.compile(r"\.?\w+|\S")


@dataclass(frozen=True)
class Mutant:
    """One change of one token, and the test that must notice it.

    `old` occurs once in `file`; `test` is a pytest node; `mistake` says what a person would have done wrong.
    `sampled`: also run among all slow tests. `raises`: the exception that stands for the diagnostic where the
    changed compiler refuses by itself; without it the test's own assertion must fail.
    """

    file: str
    old: str
    new: str
    test: str
    mistake: str
    sampled: bool = False
    raises: str = "AssertionError"

    def __str__(self) -> str:
        return f"{self.file}: {self.mistake}"

    def changed_tokens(self) -> int:
        """How many tokens are replaced, added or removed."""
        before, after = TOKEN.findall(self.old), TOKEN.findall(self.new)
        steps = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
        return sum(max(b - a, d - c) for kind, a, b, c, d in steps if kind != "equal")


def read_mutants() -> list[Mutant]:
    """The committed list."""
    return [Mutant(**entry) for entry in yaml.safe_load(LIST.read_text())]


@dataclass(frozen=True)
class Verdict:
    """What a run of tests said: pytest's exit status, the message of each failure, errors outside of tests."""

    status: int
    failures: tuple[str, ...]
    errors: int
    output: str


class Tree:
    """A copy of what the tests need, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "copy"
        self.runs = folder / "runs"
        self.runs.mkdir()
        self.root.mkdir()
        for name in NEEDED:
            source = REPOSITORY / name
            if source.is_dir():
                shutil.copytree(source, self.root / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, self.root / name)

    @contextmanager
    def changed(self, mutant: Mutant) -> Iterator[None]:
        """The copy with this change. ValueError where `old` does not occur exactly once."""
        path = self.root / mutant.file
        text = path.read_text()
        if text.count(mutant.old) != 1:
            raise ValueError(f"{mutant.file} has {text.count(mutant.old)} times {mutant.old!r}")
        path.write_text(text.replace(mutant.old, mutant.new))
        try:
            yield
        finally:
            path.write_text(text)

    def run(self, nodes: Sequence[str], seconds: float) -> Verdict:
        """Run these tests in a process of their own, with the copy first on its path."""
        folder = self.runs / str(len(list(self.runs.iterdir())))
        folder.mkdir()
        report = folder / "report.xml"
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "ARCHC_"))
        }
        environment |= {"PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1"}
        options = "-q -x --tb=short -p no:cacheprovider -p no:xdist".split()
        options += [f"--basetemp={folder / 'tmp'}", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", *options, *nodes]
        done = subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=seconds
        )
        found = ElementTree.parse(report).getroot() if report.exists() else ElementTree.Element("none")
        failures = tuple(failure.get("message", "") for failure in found.iter("failure"))
        shutil.rmtree(folder / "tmp", ignore_errors=True)
        output = done.stdout[-3000:] + done.stderr[-1000:]
        return Verdict(done.returncode, failures, len(list(found.iter("error"))), output)
