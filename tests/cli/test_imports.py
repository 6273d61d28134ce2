"""Answering takes a fraction of a second: what is imported, and how much processor time a check takes."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "triton", "sympy", "numpy", "transformers", "gguf", "tokenizers")

WATCH = f"""
import sys
sys.argv[0] = "archc"
from archc.cli import main
try:
    main()
finally:
    print(" ".join(m for m in {HEAVY!r} if m in sys.modules), file=sys.stderr)
"""


def archc(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    return subprocess.run(
        [sys.executable, "-c", WATCH, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "gdn_hybrid_340m"),
        ("show", "gdn_hybrid_340m"),
        ("cost", "gdn_hybrid_340m"),
        ("build", "gdn_hybrid_340m"),
        ("diff", "gdn_hybrid_340m", "transformer_340m"),
        ("library",),
        ("explain", "E901"),
        ("schema", "mixer"),
        ("new", "mine"),
        ("--help",),
    ],
    ids=" ".join,
)
def test_compiling_imports_nothing_heavy(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = archc(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "", f"imported {done.stderr.splitlines()[-1]}"


def test_check_answers_within_half_a_second(tmp_path: Path) -> None:
    """Processor time rather than wall time, the best of three: other tests run beside this one."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = archc("check", "gdn_hybrid_340m", cwd=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.5
