"""Builds that are killed, that run at once, or that the machine fails: one whole package stays."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from archc.output import MANIFEST_NAME, swap, write_package
from archc.output.manifest import digest
from archc.spec.diagnostics import MachineError
from tests.support.slow import mostly_slow

OLD = {f"part_{n}.py": f"old = {n}\n" * 50 for n in range(6)} | {"ops/scan.py": "old\n"}
NEW = {f"part_{n}.py": f"new = {n}\n" * 50 for n in range(3, 9)} | {"ops/norm.py": "new\n"}


def package(folder: Path) -> dict[str, str]:
    """What the folder holds, checked against its manifest: a whole package or a failed assertion."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    manifest = json.loads(found.pop(MANIFEST_NAME))["files"]
    found.pop("notes.md", None)
    assert {path: digest(content) for path, content in found.items()} == manifest
    return {path: content.decode() for path, content in found.items()}


def in_child(action: Callable[[], None]) -> int:
    """Run `action` in a forked process and return its wait status."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def killed_at(step: int, action: Callable[[], None]) -> bool:
    """Run `action` in a process that kills itself just before its `step`-th touch of the system.

    Every file opened, renamed, linked, made or removed is a touch (Python reports each as an audit event),
    and so is every call into the C library. True if it was killed, False if it came to its end first.
    """

    def act() -> None:
        seen = 0

        def watch(event: str, _: object) -> None:
            nonlocal seen
            if event.split(".")[0] in ("open", "os", "shutil", "ctypes", "fcntl"):
                seen += 1
                if seen == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        action()

    status = in_child(act)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the build failed without being killed"
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("exchange", mostly_slow([True, False], 2), ids=["one step", "two steps"])
def test_killed_before_every_single_step(
    tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(swap, "_exchange", lambda first, second: False)
    out = tmp_path / "x"
    seen: set[str] = set()
    for step in range(1, 1000):
        write_package(OLD, out)
        (out / "notes.md").write_text("the user's\n")
        killed = killed_at(step, lambda: write_package(NEW, out) and None)
        if exchange:
            assert package(out) in (OLD, NEW), f"killed before step {step}"
            seen.add("old" if package(out) == OLD else "new")
        # Whoever builds next finds things in order, whatever was left behind.
        write_package(OLD if step % 2 else NEW, out)
        assert package(out) == (OLD if step % 2 else NEW)
        assert (out / "notes.md").read_text() == "the user's\n", f"killed before step {step}"
        assert os.listdir(tmp_path) == ["x"]
        if not killed:
            break
    else:
        pytest.fail("the build never came to its end")
    assert step > 40, "the audit hook saw the build"
    if exchange:
        assert seen == {"old", "new"}


def test_the_first_build_killed_leaves_no_half_package(tmp_path: Path) -> None:
    out = tmp_path / "x"
    for step in range(1, 1000):
        killed = killed_at(step, lambda: write_package(NEW, out) and None)
        assert not out.exists() or package(out) == NEW
        if not killed:
            break
        if out.exists():
            swap.remove_tree(out)
    write_package(NEW, out)
    assert package(out) == NEW and os.listdir(tmp_path) == ["x"]


ENDLESSLY = """
import sys
from pathlib import Path
from archc.output import write_package
from tests.support.slow import mostly_slow
out, n = Path(sys.argv[1]), 0
while True:
    n += 1
    write_package({f"part_{k}.py": f"{sys.argv[2]} {n}\\n" * 200 for k in range(n % 7 + 1)}, out)
"""


def endless_builder(out: Path, name: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", ENDLESSLY, str(out), name], stderr=subprocess.PIPE)


def test_killed_at_random_moments_beside_another_build(tmp_path: Path) -> None:
    out = tmp_path / "x"
    write_package(OLD, out)
    chance = random.Random(0)
    for _ in range(6):
        builders = [endless_builder(out, name) for name in ("a", "b")]
        time.sleep(0.3 + chance.random() * 0.3)
        for builder in builders:
            assert builder.poll() is None, builder.stderr and builder.stderr.read()
            builder.send_signal(signal.SIGKILL)
        for builder in builders:
            builder.communicate()
        assert package(out)
    write_package(OLD, out)
    assert package(out) == OLD and os.listdir(tmp_path) == ["x"]


def test_many_builds_at_once_leave_one_of_them(tmp_path: Path) -> None:
    out = tmp_path / "x"
    children = []
    for name in range(8):
        child = os.fork()
        if child == 0:
            try:
                for n in range(10):
                    write_package({f"part_{k}.py": f"{name}\n" for k in range((name + n) % 5 + 1)}, out)
                os._exit(0)
            except BaseException:
                os._exit(1)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    assert statuses == [0] * 8
    assert len(set(package(out).values())) == 1
    assert os.listdir(tmp_path) == ["x"]


def test_a_reader_never_sees_the_folder_missing(tmp_path: Path) -> None:
    out = tmp_path / "x"
    write_package({"part_0.py": "a"}, out)
    builder = endless_builder(out, "a")
    try:
        until = time.monotonic() + 1.0
        looks = 0
        while time.monotonic() < until:
            assert (out / MANIFEST_NAME).read_bytes()
            looks += 1
    finally:
        builder.kill()
        builder.communicate()
    assert looks > 100


def test_a_lock_held_too_long_is_the_machines_fault(tmp_path: Path) -> None:
    out = tmp_path / "x"
    write_package(OLD, out)
    with swap.locked(out), pytest.raises(MachineError, match="another build"):
        write_package(NEW, out, wait=0.1)
    assert package(out) == OLD


def test_a_full_disk_leaves_the_old_package(tmp_path: Path) -> None:
    """A limit on file sizes fails the write in the kernel after some bytes, as a full disk does."""
    out = tmp_path / "x"
    write_package(OLD, out)

    def build() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_package({**NEW, "zz_large.py": "x" * 100_000}, out)
        except MachineError:
            os._exit(7)

    assert os.WEXITSTATUS(in_child(build)) == 7
    assert package(out) == OLD and os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("call", ["mkdir", "link", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_any_call_that_fails_leaves_the_old_package(
    tmp_path: Path, call: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x"
    write_package(OLD, out)
    (out / "notes.md").write_text("the user's\n")

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    if call == "rename":
        monkeypatch.setattr(swap, "_exchange", lambda first, second: False)
    if call == "link":  # no hard links: the user's file is copied instead
        monkeypatch.setattr("archc.output.write._copy", fail)
    with pytest.raises(MachineError, match="cannot write"):
        write_package(NEW, out)
    monkeypatch.undo()
    assert package(out) == OLD and os.listdir(tmp_path) == ["x"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_the_machines_fault(tmp_path: Path) -> None:
    out = tmp_path / "closed" / "x"
    write_package(OLD, out)
    out.parent.chmod(0o555)
    try:
        with pytest.raises(MachineError, match="cannot write"):
            write_package(NEW, out)
        assert package(out) == OLD
    finally:
        out.parent.chmod(0o755)


def test_a_place_that_cannot_exist_is_the_machines_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError):
        write_package(NEW, tmp_path / "file" / "x")
    with pytest.raises(MachineError):
        write_package(NEW, Path("/proc/nowhere/x"))
    with pytest.raises(MachineError):
        write_package(NEW, tmp_path / ("n" * 400))
