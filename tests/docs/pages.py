"""Reads the pages of the documentation: their fenced examples, what each is, and the links between pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_FENCE = re.compile(r"```(\w*)\s*$")
_COMMENT = re.compile(r"<!-- (.*?) -->\s*$")
_FILE = re.compile(r"# ([\w./-]+\.(?:yaml|py|toml))$")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True, slots=True)
class Example:
    """One fenced block. `note` is the comment on the line above it, `file` the name in its first line."""

    page: Path
    line: int
    language: str
    note: str
    text: str

    @property
    def file(self) -> str:
        """The name in a first line such as `# my_model.yaml`, or nothing."""
        match = _FILE.match(self.text.split("\n", 1)[0])
        return match.group(1) if match else ""

    @property
    def place(self) -> str:
        """Where the block begins, for failures."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def examples(page: Path) -> Iterator[Example]:
    """The fenced blocks of a page, in order. ValueError for a fence that is never closed."""
    lines = page.read_text(encoding="utf-8").split("\n")
    note = ""
    at = 0
    while at < len(lines):
        comment, fence = _COMMENT.match(lines[at]), _FENCE.match(lines[at])
        if fence:
            try:
                end = lines.index("```", at + 1)
            except ValueError:
                raise ValueError(f"{page.name}:{at + 1}: the fence is not closed") from None
            yield Example(page, at + 1, fence.group(1), note, "\n".join(lines[at + 1 : end]))
            at = end
        note = comment.group(1) if comment else ""
        at += 1


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Path and anchor of each link to a file of the repository; code blocks are left out."""
    text = re.sub(r"```.*?\n```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in _LINK.findall(re.sub(r"`[^`\n]*`", "", text)):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            yield path, anchor


def anchors(page: Path) -> set[str]:
    """What headings can be linked to by."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def matches(shown: str, real: str) -> bool:
    """Whether output is what a page shows. `...` stands for any text; alone on a line, for any lines."""
    lines = [
        r"(?:.*\n)*?" if line == "..." else r".*?".join(map(re.escape, line.split("..."))) + r"\n"
        for line in _plain(shown)
    ]
    return re.fullmatch("".join(lines), "\n".join([*_plain(real), ""])) is not None


def _plain(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").split("\n")]
