"""A process that compiles kernels: a request a line on standard input, what was found a line on standard output.

It runs by itself because a kernel can take the compiler's process with it, and because a process that interprets
kernels cannot compile them. The other end is `compile.py`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import linecache
import os
import re
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

_PTX_MATRIX = re.compile(
    r"^\s*(?:@!?%\w+\s+)?((?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)[\w.:]*)", re.MULTILINE
)
_PTX_TRAP = re.compile(r"^\s*(?:@!?%\w+\s+)?trap;", re.MULTILINE)
_AMD_MATRIX = re.compile(r"^\s*(v_mfma\w+|v_smfmac\w+)", re.MULTILINE)
_SASS = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\d+ )?([A-Z][\w.]*)([^;]*);")


def main() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what Triton's libraries print is no answer
    for line in sys.stdin:
        answer: dict[str, Any]
        try:
            answer = {"found": compile_one(json.loads(line), Path(os.environ["TRITON_CACHE_DIR"]))}
        except BaseException as error:  # Triton's own errors derive from several roots
            answer = {"said": _said(error)}
        print(json.dumps(answer), file=answers, flush=True)


def compile_one(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Compile one kernel and look at what came out."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(_module(request["source"], request["file"], folder), request["name"])
    constants = {name: _tuples(value) for name, value in request["constants"].items()}
    signature = {name: _tuples(request["signature"].get(name, "constexpr")) for name in kernel.arg_names}
    missing = [
        name for name in kernel.arg_names if name not in request["signature"] and name not in constants
    ]
    if missing:
        raise ValueError(f"arguments with neither a type nor a value: {', '.join(missing)}")
    places = [
        (kernel.arg_names.index(name), *entry)
        for name in request["aligned"]
        for entry in _entries(signature[name])
    ]
    aligned = {place: [["tt.divisibility", 16]] for place in places}
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        compiled = triton.compile(
            ASTSource(kernel, signature, constants, aligned),
            target=GPUTarget(request["backend"], request["arch"], request["warp_size"]),
            options={"num_warps": request["num_warps"], "num_stages": request["num_stages"]},
        )
    found: dict[str, Any] = {
        "shared": compiled.metadata.shared,
        "tensor_memory": getattr(compiled.metadata, "tmem_size", None) or 0,
    }
    if request["backend"] == "hip":
        return found | amd_facts(compiled.asm["amdgcn"])
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    return found | nvidia_facts(compiled.asm["ptx"], compiled.asm["cubin"], log.getvalue(), tools, folder)


def _tuples(value: Any) -> Any:
    """Lists, which tuples became on the way here, as tuples."""
    return tuple(value) if isinstance(value, list) else value


def _entries(type_: str | tuple[str, ...]) -> list[tuple[int, ...]]:
    """Where the parts of an argument lie in it."""
    return [()] if isinstance(type_, str) else [(index,) for index in range(len(type_))]


def _module(source: str, file: str, folder: Path) -> ModuleType:
    """A module from its text: Triton reads the source of a kernel from a real file."""
    path = folder / file
    path.write_text(source, encoding="utf-8")
    importlib.invalidate_caches()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    linecache.checkcache(str(path))  # an earlier kernel may have come from a file of the same name
    with contextlib.suppress(FileNotFoundError):
        Path(importlib.util.cache_from_source(str(path))).unlink()
    spec.loader.exec_module(module)
    return module


# -- what is in a compiled kernel -----------------------------------------------------------------------------------


def nvidia_facts(ptx: str, cubin: bytes, log: str, tools: Path, folder: Path) -> dict[str, Any]:
    """Facts of PTX, of the log of ptxas and of the machine code, which alone tells how local memory is used."""
    binary = folder / "kernel.cubin"
    binary.write_bytes(cubin)
    usage = _run(tools / "cuobjdump", "--dump-resource-usage", binary)
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))  # type: ignore[index]
    spilled = re.search(r"(\d+) bytes spill stores", log)
    machine = _SASS.findall(_run(tools / "cuobjdump", "-sass", binary)) if stack else []
    lines = [(int(address, 16), name, rest) for address, name, rest in machine]
    jumps = [(int(rest.split()[-1], 16), at) for at, name, rest in lines if name == "BRA" and "0x" in rest]
    loads = [at for at, name, _ in lines if name.startswith("LDL")]
    stores = [at for at, name, _ in lines if name.startswith("STL")]
    return {
        "registers": registers,
        "stack": stack,
        "spills": int(spilled[1]) if spilled else stack,
        "local_loads": len(loads),
        "local_stores": len(stores),
        "local_in_loops": _inside(loads + stores, jumps),
        "matrix": dict(sorted(Counter(_PTX_MATRIX.findall(ptx)).items())),
        "trap": bool(_PTX_TRAP.search(ptx)),
    }


def amd_facts(assembly: str) -> dict[str, Any]:
    """Facts of AMD's assembly, which ends with a table of resources."""
    resources = dict(re.findall(r"^\s*(?:- )?\.(\w+):\s+(\d+)\s*$", assembly, re.MULTILINE))
    labels: dict[str, int] = {}
    jumps, loads, stores, trap = [], [], [], False
    for at, line in enumerate(assembly.splitlines()):
        if label := re.match(r"(\.\w+):", line):
            labels[label[1]] = at
        name, _, rest = line.strip().partition(" ")
        if name.startswith(("s_cbranch", "s_branch")) and rest.strip() in labels:
            jumps.append((labels[rest.strip()], at))
        loads += [at] if name.startswith("scratch_load") else []
        stores += [at] if name.startswith("scratch_store") else []
        trap = trap or name == "s_trap"
    return {
        "registers": int(resources["vgpr_count"]),
        "stack": int(resources["private_segment_fixed_size"]),
        "spills": 4 * int(resources["vgpr_spill_count"]),
        "local_loads": len(loads),
        "local_stores": len(stores),
        "local_in_loops": _inside(loads + stores, jumps),
        "matrix": dict(sorted(Counter(_AMD_MATRIX.findall(assembly)).items())),
        "trap": trap,
    }


def _inside(places: Iterable[int], jumps: Iterable[tuple[int, int]]) -> int:
    """How many of the places lie between the target of a jump back and the jump."""
    loops = [(to, at) for to, at in jumps if to < at]
    return sum(any(to <= place <= at for to, at in loops) for place in places)


def _run(*command: str | Path) -> str:
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout


def _said(error: BaseException) -> str:
    """The last lines of an error, with the source line that a compilation error points to."""
    text = "".join(traceback.format_exception_only(error)).strip()
    cause = error.__cause__
    while cause is not None:
        text += "\n" + "".join(traceback.format_exception_only(cause)).strip()
        cause = cause.__cause__
    return "\n".join(text.splitlines()[-12:])[-2000:]


if __name__ == "__main__":
    main()
