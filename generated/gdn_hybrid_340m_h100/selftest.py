"""`python -m PACKAGE.selftest`: every kernel of this package against the definition, on the device at hand.

The definition is the loop over tokens in float64. The largest error of a tensor may be 1.5 times that of the torch
form whose matrix products see operands rounded to the dtype of the check, plus one rounding of the largest element
(`selftest_oracle.py`). That error is taken against the same form in float64, which is itself held against the loop,
so that a mistake in either form does not widen its own tolerance. Memory that a kernel gets is filled with NaN.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from .selftest_cases import RECURRENCES, TARGET, Recurrence
from .selftest_inputs import Draw, draws, initial_state, inputs, smaller
from .selftest_model import compared, reduced
from .selftest_oracle import (
    Results,
    definition,
    errors_of,
    largest,
    poisoned_memory,
    rounding,
    rounding_errors,
)

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
STEPS = 4  # of decoding, in a row
TORCH = "torch form", "torch form"  # what outputs and gradients run in


@dataclass(frozen=True)
class Check:
    """One line of the report. `error` and `allowed` are those of the tensor that comes nearest to its limit."""

    kernel: str
    sizes: str
    dtype: str
    what: str
    case: str
    passed: bool
    error: float
    allowed: float
    tensor: str
    implementation: str  # "kernel" where the device has one of its own, else "torch form"
    message: str = ""

    def __str__(self) -> str:
        name = f"{self.kernel} {self.sizes}  {self.dtype:8}  {self.what:9}  {self.case}"
        outcome = f"{self.tensor} {self.error:.2g} of {self.allowed:.2g}, {self.implementation}"
        return f"{'ok  ' if self.passed else 'FAIL'}  {name}: {self.message or outcome}"


def main() -> int:
    """Run all checks, print a line for each. Exit status 1 if one fails, 2 if there is no such device."""
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.selftest", description=__doc__)
    parser.add_argument("--device", help="cuda where there is one; cpu checks the torch forms alone")
    parser.add_argument(
        "--json",
        metavar="FILE",
        type=Path,
        help="write all checks so far after each, with what they depend on",
    )
    parser.add_argument("--quick", action="store_true", help="fewer lengths and inputs")
    chosen = parser.parse_args()
    if chosen.device is None and not torch.cuda.is_available():
        print("there is no GPU here: --device cpu checks the torch forms", file=sys.stderr)
        return 2
    device = torch.device(chosen.device or "cuda")
    facts = surroundings(device)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    began = time.perf_counter()
    checks: list[Check] = []

    def write(finished: bool) -> None:
        if chosen.json is None:
            return
        passed = finished and all(check.passed for check in checks)
        found = {"package": __package__, "target": TARGET, **facts, "finished": finished, "passed": passed}
        found |= {"seconds": round(time.perf_counter() - began, 1), "checks": [asdict(c) for c in checks]}
        part = chosen.json.with_name(chosen.json.name + ".part")  # killed while it writes, it loses nothing
        part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        part.replace(chosen.json)

    for check in run(device, quick=chosen.quick):
        print(check, flush=True)
        checks.append(check)
        write(finished=False)
    write(finished=True)
    failed = sum(not check.passed for check in checks)
    seconds = round(time.perf_counter() - began, 1)
    print(f"{len(checks) - failed} checks passed, {failed} failed ({seconds} s)")
    return 1 if failed else 0


def run(
    device: torch.device,
    *,
    dtypes: Sequence[torch.dtype] = DTYPES,
    quick: bool = False,
) -> Iterator[Check]:
    """All checks, one after the other. What raises is a check that failed."""
    torch.backends.cuda.matmul.allow_tf32 = False
    for recurrence in RECURRENCES:
        case = smaller(recurrence) if device.type == "cpu" else recurrence
        module = importlib.import_module(f".{case.module}", __package__)
        for draw in draws(case, quick, device.type == "cuda"):
            yield from _guarded(
                case.module, sizes(case), str(draw), _chunk_checks(module, case, draw, device, dtypes)
            )
        hard = Draw((1,), state=True, cosine=0.99, beta=1.99, decay="mixed")
        for draw in (Draw((1, 1, 1), state=True), hard):
            yield from _guarded(
                case.module, sizes(case), str(draw), _decode_checks(module, case, draw, device, dtypes)
            )
    yield from _guarded("model", "", "", _model_checks(device, dtypes))


def surroundings(device: torch.device) -> dict[str, str]:
    """The device, its driver, and the versions that kernels depend on."""
    gpu = device.type == "cuda"
    found = {"device": torch.cuda.get_device_name(device) if gpu else platform.processor() or "cpu"}
    if gpu:
        found |= {"driver": _driver(), "cuda": str(torch.version.cuda)}
    found["torch"] = torch.__version__
    try:
        found["triton"] = version("triton")
    except PackageNotFoundError:
        found["triton"] = "none"
    return found


def _driver() -> str:
    """The version of NVIDIA's driver, "unknown" where nothing says it."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            text = f" {subprocess.run(command, capture_output=True, text=True, timeout=30).stdout} "
        except (OSError, subprocess.SubprocessError):
            return "unknown"
    found = re.search(r"\s(\d{3,}\.\d+(\.\d+)?)\s", text)
    return found[1] if found else "unknown"


# -- one set of inputs, in every dtype -------------------------------------------------------------------------


def _guarded(kernel: str, size: str, case: str, checks: Iterator[Check]) -> Iterator[Check]:
    """The checks, and one that failed for what they raise."""
    try:
        yield from checks
    except Exception as error:  # a launch that fails, memory that runs out: the other checks go on
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        yield Check(kernel, size, "", "raised", case, False, 0.0, 0.0, "", "", text)


def _model_checks(device: torch.device, dtypes: Sequence[torch.dtype]) -> Iterator[Check]:
    """Layers of the model as they are called, with every kernel in them."""
    model = reduced()
    if model is None:
        yield Check(
            "model", "", "", "left out", "its layers are too large", True, 0.0, 0.0, "", "", "not checked"
        )
        return
    kind = "kernel" if device.type == "cuda" else "torch form"
    for case, what, dtype, got, want, allowed in compared(model, device, dtypes):
        layers = f"{len(model.layers)} layers"
        yield from _verdicts(("model", layers, case), dtype, (kind, kind), got, want, allowed, what)


def _chunk_checks(
    module: ModuleType, case: Recurrence, draw: Draw, device: torch.device, dtypes: Sequence[torch.dtype]
) -> Iterator[Check]:
    """Outputs, final states and all gradients of the form over chunks."""
    head = case.module, sizes(case), str(draw)
    names = [*case.shapes, "state"]
    tensors = inputs(case, draw, device)
    state = initial_state(case, draw, device)
    known = len(names) - (not draw.state)  # gradients that there are: of the state only where one is given
    borders, cu_seqlens = draw.borders, None
    if draw.packed:
        cu_seqlens = torch.tensor(borders, device=device)
    scale = case.shapes["q"][-1] ** -0.5
    heads = max(shape[0] for shape in case.shapes.values())
    like = tensors["v"]
    generator = torch.Generator().manual_seed(7)
    gradient = torch.randn(*like.shape[:2], heads, like.shape[3], generator=generator).bfloat16()
    gradient_state = torch.randn(state.shape, generator=generator)
    given = [*tensors.values(), state]

    def cast(dtype: torch.dtype, wide: torch.dtype) -> tuple[list[Tensor], Tensor, Tensor]:
        kept = [name in (*case.wide, "state") for name in names]
        moved = [x.to(wide if keep else dtype) for x, keep in zip(given, kept, strict=True)]
        out = wide if "v" in case.wide else dtype
        return moved, gradient.to(device, out), gradient_state.to(device, wide)

    def results(o: Tensor, final: Tensor, back: Sequence[Tensor]) -> Results:
        found = {"o": o[:, : borders[-1]] if draw.packed else o, "state": final}
        return {n: x.detach() for n, x in (found | {f"d{n}": x for n, x in zip(names[:known], back)}).items()}

    def form(dtype: torch.dtype) -> Results:
        (*arguments, start), do, dstate = cast(dtype, dtype)
        o, final, *rest = module.chunk_forward(*arguments, start if draw.state else None, cu_seqlens, scale)
        return results(o, final, module.chunk_backward(do, dstate, *arguments, cu_seqlens, *rest, scale))

    exact, do, dstate = cast(torch.float64, torch.float64)
    exact = [x.requires_grad_() for x in exact]
    o, final = definition(module, case, exact[:-1], exact[-1], borders if draw.packed else None, scale)
    total = (o * do).sum() + (final * dstate).sum()
    back = torch.autograd.grad(total, exact, allow_unused=True, materialize_grads=True)
    want = results(o, final, back)
    with torch.no_grad():
        double = form(torch.float64)
        errors = {dtype: rounding_errors(module, dtype, form, double) for dtype in {*dtypes, torch.float32}}
    # A float64 is 2^30 times as exact as 22 bits; 2^6 of that are left for another order of the sums.
    allowed = {n: e * 2**-24 + 64 * 2**-53 * largest(want[n]) for n, e in errors[torch.float32].items()}
    yield from _verdicts(head, "float64", TORCH, double, want, allowed)
    for dtype in dtypes:
        moved, do, dstate = cast(dtype, torch.float32)
        with poisoned_memory():
            leaves = [x.detach().requires_grad_() for x in moved]
            o, final = module.chunk(*leaves[:-1], leaves[-1] if draw.state else None, cu_seqlens, scale)[:2]
            got = results(o, final, torch.autograd.grad([o, final], leaves[:known], [do, dstate]))
        # Of operands, where the dtype's steps end: the oracle's have no end.
        lost = rounding(dtype, torch.zeros(()))
        allowed = {n: 1.5 * e + max(rounding(got[n].dtype, want[n]), lost) for n, e in errors[dtype].items()}
        kind = implementation(module, "chunk", moved[0], moved[2])
        kinds = kind, gradients_run_in(module, kind)
        yield from _verdicts(head, str(dtype).removeprefix("torch."), kinds, got, want, allowed)


def _decode_checks(
    module: ModuleType, case: Recurrence, draw: Draw, device: torch.device, dtypes: Sequence[torch.dtype]
) -> Iterator[Check]:
    """A few steps in a row, state in place."""
    head = case.module, sizes(case), str(draw)
    group = case.queries // case.shapes["q"][0]  # queries for each head of the state
    scale = case.shapes["q"][-1] ** -0.5
    start = initial_state(case, draw, device)
    steps = []
    for number in range(STEPS):
        given = inputs(case, draw, device, seed=number)
        if group > 1:
            others = [inputs(case, draw, device, seed=100 * number + g)["q"] for g in range(1, group)]
            given["q"] = torch.stack([given["q"], *others], 3).flatten(2, 3)
        steps.append(given)

    def cast(name: str, x: Tensor, dtype: torch.dtype, wide: torch.dtype) -> Tensor:
        x = x.to(wide if name in case.wide else dtype)
        return x if name == "rate" else x[:, 0]

    def decoded(step: Callable[..., Tensor], dtype: torch.dtype, wide: torch.dtype) -> Results:
        state, outputs = start.to(wide, copy=True), []
        for given in steps:
            outputs.append(step(*(cast(n, x, dtype, wide) for n, x in given.items()), state, scale))
        return {"o": torch.stack(outputs, 1), "state": state}

    def loop(*arguments: Tensor) -> Tensor:
        """One token of the definition, in place as a decode step; a query of a group reads the same state."""
        *tokens, state, _ = arguments
        full = [x if name == "rate" else x[:, None] for name, x in zip(case.shapes, tokens, strict=True)]
        outputs = []
        for g in range(group):
            q = torch.unflatten(full[0], 2, (-1, group))[:, :, :, g]
            o, after = module.token_loop(q, *full[1:], state, None, scale)
            outputs.append(o[:, 0])
        state.copy_(after)
        return torch.stack(outputs, 2).flatten(1, 2)

    with torch.no_grad():
        want = decoded(loop, torch.float64, torch.float64)
        double = decoded(module.decode_step, torch.float64, torch.float64)
        single = decoded(module.decode_step, torch.float32, torch.float32)
        errors = errors_of(single, double)
        allowed = {n: e * 2**-24 + 64 * 2**-53 * largest(want[n]) for n, e in errors.items()}
        yield from _verdicts(head, "float64", TORCH, double, want, allowed, "decode")
        for dtype in dtypes:
            with poisoned_memory():
                got = decoded(module.decode, dtype, torch.float32)
            allowed = {n: 1.5 * e + rounding(got[n].dtype, want[n]) for n, e in errors.items()}
            kind = implementation(module, "decode", start, start)
            name = str(dtype).removeprefix("torch.")
            yield from _verdicts(head, name, (kind, kind), got, want, allowed, "decode")


def implementation(module: ModuleType, operation: str, q: Tensor, v: Tensor) -> str:
    """Whether an operation runs in a kernel of its own for these queries and values."""
    fits = getattr(module, "_has_kernels", None)
    name = f"{module.NAMESPACE}::{operation}"
    there = q.is_cuda and torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
    there = there and (operation == "decode" or (fits is not None and fits(q, v)))
    return "kernel" if there else "torch form"


def gradients_run_in(module: ModuleType, kind: str) -> str:
    """The same of the gradients, whose forward runs in this."""
    if kind == "torch form" or not getattr(module, "GRADIENT_KERNELS", True):
        return "torch form"
    since = getattr(module, "GRADIENTS_SINCE", None)
    kernels = importlib.import_module(f"{module.__name__}_kernels") if since else None
    return "torch form" if kernels and module.wrong_gradients(kernels, since) else kind


def sizes(case: Recurrence) -> str:
    """`H6 K128 V256`."""
    heads = max(shape[0] for shape in case.shapes.values())
    return f"H{heads} K{case.shapes['q'][-1]} V{case.shapes['v'][-1]}"


def _verdicts(
    head: tuple[str, str, str],
    dtype: str,
    kinds: tuple[str, str],
    got: Results,
    want: Results,
    allowed: dict[str, float],
    what: str = "forward",
) -> Iterator[Check]:
    """A check for the outputs and one for the gradients; `kinds`: what each of them runs in."""
    errors = errors_of(got, want)
    groups = {
        what: [n for n in want if not n.startswith("d")],
        "gradients": [n for n in want if n.startswith("d")],
    }
    for kind, (title, names) in zip(kinds, groups.items(), strict=True):
        if names:
            # Those that fail come first; NaN is never at most anything.
            worst = max(names, key=lambda n: (not errors[n] <= allowed[n], errors[n] / (allowed[n] or 1.0)))
            passed = errors[worst] <= allowed[worst]
            found = (passed, errors[worst], allowed[worst], worst, kind)
            kernel, size, case = head
            yield Check(kernel, size, dtype, title, case, *found)


if __name__ == "__main__":
    sys.exit(main())
