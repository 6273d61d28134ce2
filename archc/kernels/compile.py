"""Compile kernels ahead of time, several at once, each at most once; no GPU is needed."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import hashlib
import importlib.machinery
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any

from archc.kernels.fit import Fit, Found, judge
from archc.kernels.kernel import Kernel
from archc.kernels.targets import Target
from archc.output.cache import cache_folder
from archc.spec.diagnostics import MachineError

SECONDS = 120.0  # for one kernel; one that takes longer is given up

_ROOT = Path(__file__).resolve().parents[2]
_WORKER = Path(__file__).with_name("worker.py")


def verify(
    kernels: Sequence[Kernel],
    target: Target,
    progress: Callable[[int, int], None] | None = None,
    *,
    search: Sequence[Path] = (),
) -> list[Fit]:
    """Compile kernels for a target and say of each whether it fits, in the order given.

    progress: told how many are done, of how many. search: folders where Triton is looked for first. A kernel that
    Triton refuses, or that takes the compiler's process with it, is a Fit that says so. Raises MachineError where
    Triton is not installed.
    """
    version = triton_version(search)
    if version is None:
        raise MachineError("kernels are compiled by Triton: pip install 'archc-compiler[kernels]'")
    requests = [_request(kernel, target) for kernel in kernels]
    keys = [_key(request, version) for request in requests]
    answers = {key: found for key in keys if (found := _remembered(key)) is not None}
    waiting = {key: request for key, request in zip(keys, requests) if key not in answers}
    done = len(kernels) - sum(key in waiting for key in keys)
    if progress is not None:
        progress(done, len(kernels))
    for key, answer in _compile_all(waiting, search):
        answers[key] = answer
        done += keys.count(key)
        if "found" in answer:  # what failed is tried again: the machine may have been short of memory
            _remember(key, answer)
        if progress is not None:
            progress(done, len(kernels))
    return [_fit(kernel, target, answers[key], version) for kernel, key in zip(kernels, keys)]


def triton_version(search: Sequence[Path] = ()) -> str | None:
    """The version of Triton that would compile, or None without one; it is not imported."""
    path = [*map(str, search), *sys.path]
    found = importlib.machinery.PathFinder.find_spec("triton", path)
    if found is None or not found.origin:
        return None
    version = re.search(
        r"^__version__ = ['\"]([^'\"]+)", Path(found.origin).read_text(encoding="utf-8"), re.M
    )
    return version[1] if version else None


def _fit(kernel: Kernel, target: Target, answer: dict[str, Any], version: str) -> Fit:
    found = Found(**answer["found"]) if "found" in answer else None
    return judge(kernel, target, found, version, answer.get("said", ""))


# -- what was compiled before -----------------------------------------------------------------------------------------


def _request(kernel: Kernel, target: Target) -> dict[str, Any]:
    """Everything that decides what comes out, besides Triton itself."""
    wanted = {field.name: getattr(kernel, field.name) for field in dataclasses.fields(kernel)}
    for name in ("role", "matrix", "span", "case", "moved", "flops", "exponentials"):
        del wanted[name]
    wanted |= {"signature": dict(kernel.signature), "constants": dict(kernel.constants)}
    return wanted | {"backend": target.backend, "arch": target.arch, "warp_size": target.warp_size}


def _key(request: dict[str, Any], version: str) -> str:
    own = request | {"source": _reached(request["source"], request["name"]), "file": ""}
    content = json.dumps([own, version, _WORKER.read_text(encoding="utf-8")], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _reached(source: str, name: str) -> list[str]:
    """A kernel's own text and that of all that it names in its module: other kernels beside it do not matter."""
    defined = _definitions(source)
    found: dict[str, str] = {}
    waiting = [name, ""]
    while waiting:
        if (each := waiting.pop()) in defined and each not in found:
            found[each], names = defined[each]
            waiting += names
    return [found[each] for each in sorted(found)]


@cache
def _definitions(source: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """What a module defines at its top: each name's text without comments, and the names in it; "": what else runs."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for node in ast.parse(source).body:
        text = ast.unparse(node), tuple({each.id for each in ast.walk(node) if isinstance(each, ast.Name)})
        match node:
            case ast.FunctionDef(name=name):
                found[name] = text
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                found |= dict.fromkeys((alias.asname or alias.name for alias in aliases), text)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found[name] = text
            case ast.Assign(targets=[ast.Tuple(elts=targets)]):
                found |= {each.id: text for each in targets if isinstance(each, ast.Name)}
            case ast.Expr(value=ast.Constant()):
                pass  # the module's docstring
            case _:
                before, names = found.get("", ("", ()))
                found[""] = f"{before}\n{text[0]}", (*names, *text[1])
    return found


def _file(key: str) -> Path:
    return cache_folder() / "kernels" / key[:2] / f"{key}.json"


def _remembered(key: str) -> dict[str, Any] | None:
    try:
        answer = json.loads(_file(key).read_text(encoding="utf-8"))
        Found(**answer["found"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or damaged
    return dict(answer)


def _remember(key: str, answer: dict[str, Any]) -> None:
    file = _file(key)
    with contextlib.suppress(OSError):  # a cache that cannot be written is no reason to fail
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as part:
            json.dump(answer, part)
        os.replace(part.name, file)


# -- workers ----------------------------------------------------------------------------------------------------------


def _compile_all(requests: dict[str, dict[str, Any]], search: Sequence[Path]) -> Any:
    """Yield (key, answer) as they come, from as many processes as there are cores."""
    count = min(len(requests), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4)
    if not count:
        return
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    workers = [_Worker(search) for _ in range(count)]
    for worker in workers:
        idle.put(worker)

    def ask(request: dict[str, Any]) -> dict[str, Any]:
        worker = idle.get()
        try:
            return worker.ask(request)
        finally:
            idle.put(worker)

    try:
        with ThreadPoolExecutor(count) as pool:
            running = {pool.submit(ask, request): key for key, request in requests.items()}
            try:
                for future in as_completed(running):
                    yield running[future], future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for worker in workers:
                    worker.close()
                raise
    finally:
        for worker in workers:
            worker.close()
            worker.errors.close()
            worker.folder.cleanup()


class _Worker:
    """A process that compiles; when it dies, the next request starts another."""

    def __init__(self, search: Sequence[Path]) -> None:
        self.search = search
        self.process: subprocess.Popen[str] | None = None
        self.folder = tempfile.TemporaryDirectory(prefix="archc_kernels_")
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request: {"found": ...} or {"said": ...}."""
        process = self.process or self._start()
        assert process.stdin is not None and process.stdout is not None
        self.errors.seek(0)
        self.errors.truncate()
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(SECONDS, give_up)
        timer.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = ""
        finally:
            timer.cancel()
        if line:
            return dict(json.loads(line))
        self.close()
        if late.is_set():
            return {"said": f"the compiler did not finish within {SECONDS:.0f} seconds"}
        self.errors.seek(0)
        last = "\n".join(self.errors.read().splitlines()[-6:])[-2000:]
        return {"said": f"the compiler's process died with status {process.returncode}\n{last}".strip()}

    def _start(self) -> subprocess.Popen[str]:
        # Settings of Triton in the environment would change what comes out behind the cache's back.
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "LLVM_"))
        }
        path = [*map(str, self.search), str(_ROOT), *(entry for entry in sys.path if entry)]
        kept |= {
            "PYTHONPATH": os.pathsep.join(path),
            "TRITON_CACHE_DIR": self.folder.name,
            "TRITON_ALWAYS_COMPILE": "1",
            "TRITON_DUMP_PTXAS_LOG": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "archc.kernels.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=kept,
        )
        return self.process

    def close(self) -> None:
        """End the process, if it runs."""
        process, self.process = self.process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
