"""Formats generated source with the pinned formatter, all files in one call."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ruff import find_ruff_bin

LINE_LENGTH = 110


def format_files(files: Mapping[str, str]) -> dict[str, str]:
    """The same files, Python sources formatted. Raises RuntimeError if a source does not parse."""
    with tempfile.TemporaryDirectory(prefix="archc-") as folder:
        for path, source in files.items():
            target = Path(folder, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(source, encoding="utf-8")
        options = ["--isolated", f"--line-length={LINE_LENGTH}", "--no-cache", "--quiet", folder]
        done = subprocess.run([find_ruff_bin(), "format", *options], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the generated source does not parse: {done.stderr}")
        return {path: Path(folder, path).read_text(encoding="utf-8") for path in files}
