"""A project's own operation with a Triton kernel: carried into packages for a GPU, and compiled ahead of time."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from archc.kernels.plan import kernels_of
from archc.kernels.targets import load_target
from archc.pipeline import build, check, graph_of, sources_of
from tests.graph.test_project_operations import DEFINITION, RUNTIME, SPEC

DECLARED = """
    kernel_files = {"fused_ramp": "fused.py", "ramp_kernels": "kernels.py"}
    with_kernels = {("ramp", "ramp"): ("fused_ramp", "ramp")}

    def launches(self, node, graph, sizes, dtype, warp_size):
        signature = {"x_ptr": f"*{dtype}", "y_ptr": f"*{dtype}", "entries": "i32", "slope": "fp32"}
        return [Launch("ramp_kernels", "ramp_kernel", signature, {"BLOCK": 1024}, ("x_ptr", "y_ptr"))]
"""
FUSED = '''"""A leaky ramp: one kernel on a GPU."""

from __future__ import annotations

from torch import Tensor

from .ramp import ramp as torch_ramp


def ramp(x: Tensor, slope: float) -> Tensor:
    """`max(x, slope * x)`."""
    if not x.is_cuda:
        return torch_ramp(x, slope)
    from .ramp_kernels import launch_ramp

    return launch_ramp(x.contiguous(), slope)
'''
KERNELS = '''"""The kernel of a leaky ramp."""

import torch
import triton
import triton.language as tl


@triton.jit
def ramp_kernel(x_ptr, y_ptr, entries, slope, BLOCK: tl.constexpr):
    """y = max(x, slope * x)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < entries, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, tl.maximum(x, slope * x), mask=at < entries)


def launch_ramp(x: torch.Tensor, slope: float) -> torch.Tensor:
    """`max(x, slope * x)` for a contiguous x."""
    y = torch.empty_like(x)
    ramp_kernel[(triton.cdiv(x.numel(), 1024),)](x, y, x.numel(), slope, BLOCK=1024)
    return y
'''


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose operation names two files with kernels."""
    folder = tmp_path / "operations" / "ramp"
    folder.mkdir(parents=True)
    definition = DEFINITION.replace('    title = "a leaky ramp"\n', '    title = "a leaky ramp"\n' + DECLARED)
    (folder / "__init__.py").write_text(definition.replace("import Operation", "import Launch, Operation"))
    (folder / "runtime.py").write_text(RUNTIME)
    (folder / "fused.py").write_text(FUSED)
    (folder / "kernels.py").write_text(KERNELS)
    (tmp_path / "archc.toml").write_text('[operations]\nfolders = ["operations"]\n')
    (tmp_path / "ramps.yaml").write_text(SPEC)
    return tmp_path


def test_its_files_are_carried_into_packages_for_a_gpu(project: Path) -> None:
    found = sources_of(project / "ramps.yaml", "h100")
    assert found["ramp_kernels.py"].startswith('"""The kernel of a leaky ramp."""')
    assert "from .fused_ramp import ramp" in found["model.py"]
    assert {"fused_ramp.py", "ramp.py"} <= found.keys()


def test_packages_for_a_cpu_have_the_torch_form_alone(project: Path) -> None:
    found = sources_of(project / "ramps.yaml")
    assert "from .ramp import ramp" in found["model.py"]
    assert not {"fused_ramp.py", "ramp_kernels.py"} & found.keys()


def test_its_kernel_is_among_those_of_the_model(project: Path) -> None:
    target = load_target("h100")
    graph = graph_of(project / "ramps.yaml", target=target)
    (kernel,) = [k for k in kernels_of(graph, target) if k.name == "ramp_kernel"]
    assert (kernel.file, kernel.constants, kernel.signature["x_ptr"]) == (
        "ramp_kernels.py",
        {"BLOCK": 1024},
        "*bf16",
    )
    assert kernel.span is not None and kernel.span.line == 7


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_it_is_compiled_and_a_mistake_in_it_is_an_error(project: Path) -> None:
    assert build(project / "ramps.yaml", project / "out" / "ramps", target="h100").verified
    path = project / "operations" / "ramp" / "kernels.py"
    path.write_text(KERNELS.replace("tl.maximum(x, slope * x)", "tl.maximal(x, slope * x)"))
    with pytest.raises(Exception, match="ramp_kernel"):
        build(project / "ramps.yaml", project / "out" / "ramps", target="h100")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('"kernels.py"', '"missing.py"'), "missing.py"),
        (('"fused_ramp": ', '"scan_kernels": '), "scan_kernels"),
    ],
)
def test_files_that_cannot_be_its_own(project: Path, change: tuple[str, str], words: str) -> None:
    path = project / "operations" / "ramp" / "__init__.py"
    path.write_text(path.read_text().replace(*change))
    first = check(project / "ramps.yaml")[0]
    assert first.code == "E390" and words in first.message
