"""Triton launches on the current device: generated code makes that of its tensors the current one first."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from archc.pipeline import sources_of
from tests.support.packages import SPECS

NORMALISED = {
    "archc": 1,
    "name": "normalised",
    "model": {"vocab_size": 32, "d_model": 128, "n_layers": 1, "context": 64, "norm": "rmsnorm"},
    "blocks": {"main": {"mixer": {"use": "linear_attention", "n_heads": 2}, "mlp": {"use": "swiglu"}}},
    "layers": ["1 main"],
}


def launches(tree: ast.AST, guarded: bool = False) -> Iterator[tuple[str, bool]]:
    """Calls of launchers and kernels, and whether they stand in a `with torch.cuda.device(...)`."""
    for node in ast.iter_child_nodes(tree):
        inside = guarded
        if isinstance(node, ast.With):
            inside = inside or any("torch.cuda.device(" in ast.unparse(item) for item in node.items)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called.startswith(("kernels.", "launch_", "token_kernel[", "shift_kernel[")):
                yield called, inside
        yield from launches(node, inside)


@pytest.mark.parametrize(
    ("model", "some"),
    [
        ("gdn_hybrid_340m", {"kernels.chunk_forward", "launch_rmsnorm", "launch_conv", "launch_glu"}),
        ("normalised", {"kernels.normalized_forward", "kernels.decode_step"}),
        ("recurrentgemma_2b", {"launch_scan", "launch_scan_backward"}),
    ],
)
def test_every_launch_is_on_the_device_of_its_tensors(model: str, some: set[str]) -> None:
    files = sources_of(
        NORMALISED if model == "normalised" else SPECS / "models" / f"{model}.yaml", target="h100"
    )
    found = {
        (path, called): inside
        for path, text in files.items()
        # In a file of kernels a launcher is called from outside, but for the one of a decoded token.
        if path.endswith(".py") and (not path.endswith("_kernels.py") or path.endswith("_token_kernels.py"))
        for called, inside in launches(ast.parse(text))
    }
    assert some <= {called for _, called in found}
    assert [place for place, inside in found.items() if not inside] == []
