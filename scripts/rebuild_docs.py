"""Rebuild the pages of docs/ that list what is elsewhere; with --check, only say whether they are stale."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTE = "<!-- Written by `make docs`; edit what it lists instead. -->\n\n"


def errors_page() -> str:
    """Every error code with its title, linked to its page."""
    from archc.errors import titles

    lines = ["# Errors by code", "", "`archc explain CODE` prints a page in the terminal.", ""]
    lines += [f"- [{code}](../archc/errors/{code}.md): {title}" for code, title in titles().items()]
    return NOTE + "\n".join(lines) + "\n"


def library_page() -> str:
    """Every entry of the library with its title and source."""
    from archc.cli.library import entries

    lines = ["# The library", "", "`archc library NAME` prints an entry.", ""]
    kind = ""
    for entry in entries(ROOT / "docs"):
        if entry.kind != kind:
            kind = entry.kind
            lines += ["", f"## {kind}", "", "| name | title | source |", "|---|---|---|"]
        path = entry.path.relative_to(ROOT).as_posix()
        cells = (f"[{entry.name}](../{path})", entry.title, entry.source)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return NOTE + "\n".join(lines) + "\n"


def main() -> int:
    """Write the pages, or with --check compare them. Exit code 1 when one is stale."""
    stale = []
    for name, text in {"errors.md": errors_page(), "library.md": library_page()}.items():
        page = ROOT / "docs" / name
        if page.exists() and page.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in sys.argv:
            page.write_text(text, encoding="utf-8")
            print(f"docs/{name}")
    if stale and "--check" in sys.argv:
        print(f"stale: {', '.join(stale)}; run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
