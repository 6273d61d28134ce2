"""Tests that run kernels in the interpreter, in a process of their own: `TRITON_INTERPRET=1 pytest tests/interpreted`.

A process that interprets cannot compile, so the folder is left out unless it is named. Arithmetic in bf16 is silently
wrong there: only float32 and float16.
"""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from archc.codegen.package import runtime_path

if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.exit(
        "tests/interpreted needs a process of its own: TRITON_INTERPRET=1 pytest tests/interpreted", 2
    )
os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session", autouse=True)
def names_are_looked_up_once() -> None:
    """The interpreter looks through all of `tl` for what it replaces, at each launch and each call of a function.

    It is the same names each time, and took a fifth of the time of these tests.
    """
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    known: dict[Any, list[str]] = {}

    def patch(owner: Any, *rest: Any) -> None:
        if owner not in known:
            members = inspect.getmembers(owner)
            known[owner] = [name for name, member in members if interpreter.tl.core.is_builtin(member)]
        for name in known[owner]:
            if interpreter.tl.core.is_builtin(member := getattr(owner, name)):
                interpreter._patch_attr(owner, name, member, *rest)

    assert interpreter._patch_builtin
    interpreter._patch_builtin = patch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A package of a test file's own that can be imported, with what emitted modules import from theirs."""
    name = request.module.__name__.rpartition(".")[2]
    folder = tmp_path_factory.mktemp(name) / f"package_of_{name}"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for file in ("place", "tiling", "torch_form"):
        (folder / f"{file}.py").write_text(runtime_path(file).read_text())
    return folder
