"""Hostile specs: each is refused cleanly, within two seconds and 500 MB, in a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS = 2.0
BYTES = 500_000_000

# Reads a file and shows its mistakes, of its text and as a spec; anything but a clean answer is a traceback.
PROGRAM = """
import sys, time
from pathlib import Path
from archc.pipeline import check
from archc.spec.diagnostics import Reporter
from archc.spec.render import render
from archc.spec.text import read
from tests.errors.direct import diagnostics_of
path = Path(sys.argv[1])
report = Reporter()
begun = time.process_time()
text = read(path, "spec.yaml", report)
found = report.diagnostics if text is None else diagnostics_of(text, "spec.yaml")
print(render(found, {"spec.yaml": text or ""}))
middle = time.process_time()
sources = {}
print(render(check(path, sources), sources))
print("CODES", *sorted({each.code for each in found}))
print("SECONDS", middle - begun, time.process_time() - middle)
"""


def _in_body(equation: str) -> str:
    return f"body:\n  y: {equation}\n"


def _size(expression: str) -> str:
    return f"sizes:\n  n: {expression}\n"


# name -> (bytes, codes of which one must be reported)
ATTACKS: dict[str, tuple[Callable[[], bytes], set[str]]] = {
    "alias bomb": (
        lambda: (
            "a: &a [x]\n"
            + "".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}' if i else '*a'] * 9)}]\n" for i in range(9))
        ).encode(),
        {"E104"},
    ),
    "merge bomb": (lambda: b"a: &a {x: 1}\nb:\n  <<: [*a, *a]\n", {"E104"}),
    "deep flow lists": (lambda: b"[" * 100_000 + b"]" * 100_000, {"E101"}),
    "deep flow mappings": (lambda: b"{a: " * 100_000, {"E101"}),
    "deep block mappings": (lambda: b"".join(b" " * i + b"a:\n" for i in range(1_300)), {"E101"}),
    "deep lists in one line": (lambda: b"- " * 100_000 + b"x", {"E101"}),
    "many keys": (lambda: b"".join(b"k%d: 1\n" % i for i in range(80_000)), {"E101"}),
    "many equal keys": (lambda: b"k: 1\n" * 4_000, {"E109"}),
    "many empty lines": (lambda: b"\n" * 999_000 + b"a: [", {"E103"}),
    "ten megabytes": (lambda: b"a: " + b"x" * 10_000_000, {"E101"}),
    "one long scalar": (lambda: b"a: [" + b"(" * 990_000, {"E110", "E103"}),
    "many quotes": (lambda: b'a: "' + b"\\x41" * 240_000, {"E103"}),
    "tags that build objects": (lambda: b"a: !!python/object/apply:os.system ['true']\n", {"E105"}),
    "not text": (lambda: bytes(range(256)) * 100, {"E100"}),
    "utf-16": (lambda: "a: 1\n".encode("utf-16"), {"E100"}),
    "nul": (lambda: b"a: \x00\n", {"E100"}),
    "escape sequence": (lambda: b"a: \x1b]0;title\x07\n", {"E100"}),
    "hidden direction": (lambda: "a: \u202e1\n".encode(), {"E100"}),
    "nan": (lambda: b"a: .nan\n", {"E113"}),
    "huge integer": (lambda: b"a: " + b"9" * 900_000, {"E123"}),
    "huge exponent": (lambda: b"a: 1e999999999\n", {"E123"}),
    "long equation": (lambda: _in_body("x" + " + x" * 200_000).encode(), {"E128"}),
    "nested parentheses": (lambda: _in_body("(" * 100_000 + "x" + ")" * 100_000).encode(), {"E128"}),
    "4 kB of parentheses": (lambda: _in_body("(" * 1_900 + "x" + ")" * 1_900).encode(), {"E128"}),
    "4 kB of minus signs": (lambda: _in_body("-" * 3_900 + "x").encode(), {"E128"}),
    "4 kB of not": (lambda: _in_body("not " * 900 + "x").encode(), {"E128"}),
    "4 kB of powers": (lambda: _in_body("2" + "**2" * 900).encode(), {"E128"}),
    "4 kB of pipes": (lambda: _in_body("x" + "|f" * 900).encode(), {"E128"}),
    "4 kB of choices": (lambda: _in_body("x if y else " * 300 + "z").encode(), {"E128"}),
    "4 kB of calls": (lambda: _in_body("f(" * 900 + "x" + ")" * 900).encode(), {"E128"}),
    "long number in an equation": (lambda: _in_body("9" * 3_900).encode(), {"E123"}),
    "python in an equation": (
        lambda: _in_body("__import__('os').system('true')").encode(),
        {"E126", "E127", "E131"},
    ),
    "template text": (lambda: _in_body('x if mode == "{{ 7 * 7 }}{% raw %}" else x').encode(), {"E131"}),
    "template in a name": (lambda: b'body:\n  "{{ 7 * 7 }}": x\n', {"E140"}),
    "path in a name": (lambda: b"body:\n  ../../etc/passwd: x\n", {"E140"}),
    "tower of powers": (lambda: _size("10 ** 10 ** 10").encode(), {"E163"}),
    "high tower": (lambda: _size("9 ** 9 ** 9 ** 9 ** 9").encode(), {"E163"}),
    "power of a fraction": (lambda: _size("1.0000001 ** 10 ** 9").encode(), {"E163"}),
    "product of large numbers": (lambda: _size(" * ".join(["(10 ** 300)"] * 90)).encode(), {"E163"}),
    "root of a tower": (lambda: _size("(4 ** 2000) ** (4095 / 2)").encode(), {"E163"}),
    "exponential of a tower": (lambda: _size("exp(exp(exp(exp(5))))").encode(), {"E163"}),
    "division by zero": (lambda: _size("1 / 0").encode(), {"E162"}),
    "doubling sizes": (
        lambda: (
            "sizes:\n  s0: 10 ** 100\n" + "".join(f"  s{i + 1}: s{i} * s{i}\n" for i in range(60))
        ).encode(),
        {"E163"},
    ),
}


def _limits() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@pytest.mark.parametrize("name", ATTACKS)
def test_refused_cleanly_and_quickly(name: str, tmp_path: Path) -> None:
    build, codes = ATTACKS[name]
    path = tmp_path / "spec.yaml"
    path.write_bytes(build())
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=_limits,
        check=False,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr[-2000:]
    *_, answer, seconds = done.stdout.strip().split("\n")
    assert set(answer.split()) & codes, done.stdout[-2000:]
    assert done.stdout.count("error[E") > 1, "both ways say what is wrong"
    assert max(map(float, seconds.split()[1:])) < SECONDS, seconds
    assert all(character.isprintable() or character == "\n" for character in done.stdout)
    assert len(done.stdout) < 4_000_000


def test_the_text_level_needs_no_heavy_library() -> None:
    """`archc check` answers at once: nothing heavy is imported."""
    program = (
        "import sys; import archc.spec.parser, archc.spec.yaml_reader, archc.spec.statics, archc.spec.axes, "
        "archc.spec.axis_text, archc.spec.render, archc.spec.text, archc.errors\n"
        "heavy = {'torch', 'triton', 'sympy', 'pydantic', 'networkx', 'jinja2', 'numpy', 'rich', 'typer'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
