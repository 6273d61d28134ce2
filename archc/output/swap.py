"""Locks beside an output folder, and swapping a new folder in so that no moment shows half of it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from archc.spec.diagnostics import MachineError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # Linux, renameat2(2)
_RENAME_SWAP = 2  # macOS, renamex_np(2)


def lock_path(out: Path) -> Path:
    """The lock file of an output folder, beside it."""
    return out.parent / f".{out.name}.archc-lock"


def stage_path(out: Path) -> Path:
    """Where the new content is put together. The lock is held by whoever uses it, so one name is enough."""
    return out.parent / f".{out.name}.archc-new"


def previous_path(out: Path) -> Path:
    """Where the old content waits, on file systems that cannot exchange two folders in one step."""
    return out.parent / f".{out.name}.archc-old"


@contextmanager
def locked(out: Path, *, wait: float = 60.0) -> Iterator[None]:
    """Hold the lock of `out`. The kernel releases it when the process dies, however it dies.

    Raises `MachineError` when another build has held it for `wait` seconds, or the folder cannot be written.
    """
    path = lock_path(out)
    deadline = time.monotonic() + wait
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise MachineError(f"cannot write into {out.parent}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if time.monotonic() > deadline:
                raise MachineError(f"another build has held {path} for {wait:.0f} seconds") from None
            time.sleep(0.02)
            continue
        except OSError as error:
            os.close(descriptor)
            raise MachineError(f"cannot lock {path}: {error.strerror}") from error
        # Whoever held the lock before may have removed the file that we opened: then ours locks nothing.
        if _is_at(descriptor, path):
            break
        os.close(descriptor)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def recover(out: Path) -> None:
    """Put right what a killed build left beside `out`. The caller holds the lock."""
    previous = previous_path(out)
    if os.path.lexists(previous) and not os.path.lexists(out):
        os.rename(previous, out)
    for leftover in (stage_path(out), previous):
        remove_tree(leftover)


def swap_in(out: Path) -> None:
    """Make the staged folder the content of `out`; what was there is removed. The caller holds the lock.

    In one step where the system can exchange two folders. Elsewhere in two: a process killed between them
    leaves the old content under `previous_path`, and `recover` puts it back.
    """
    stage = stage_path(out)
    if not os.path.lexists(out):
        os.rename(stage, out)
        return
    if _exchange(stage, out):
        shutil.rmtree(stage, ignore_errors=True)  # what cannot be removed now, the next build removes
        return
    previous = previous_path(out)
    os.rename(out, previous)
    try:
        os.rename(stage, out)
    except OSError:
        os.rename(previous, out)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def remove_tree(path: Path) -> None:
    """Remove a folder and what is in it, never following a link."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step. False where the system or the file system cannot."""
    library = ctypes.CDLL(None, use_errno=True)
    a, b = os.fsencode(first), os.fsencode(second)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        result = library.renamex_np(a, b, ctypes.c_uint(_RENAME_SWAP))
    elif sys.platform == "linux" and hasattr(library, "renameat2"):
        result = library.renameat2(_AT_FDCWD, a, _AT_FDCWD, b, ctypes.c_uint(_RENAME_EXCHANGE))
    else:
        return False
    if result == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM):
        return False
    raise OSError(number, os.strerror(number), str(second))
