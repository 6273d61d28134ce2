"""Smaller chunks where a target's tiles have them: the class is another one there, and so is all that follows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from archc.kernels.chunks import fit_chunks
from archc.kernels.plan import kernels_of
from archc.kernels.report import recurrence_kinds
from archc.kernels.targets import load_target
from archc.pipeline import graph_of, sources_of


def spec(chunk: int | None = None, plain: str = "") -> dict[str, Any]:
    """Two layers, a gated delta rule and the same without an erase; `plain`: further arguments of that."""
    at = "" if chunk is None else f", chunk={chunk}"

    def mixer(arguments: str) -> dict[str, Any]:
        gates = {"g": "logsigmoid(linear(x, [n_heads]))", "b": "sigmoid(linear(x, [n_heads]))"}
        rows = dict.fromkeys("qkv", "l2norm(linear(x, [n_heads, size]))")
        o = f"recurrence(q, k, v, decay=g, scale=auto{arguments}{at})"
        return {
            "params": {"n_heads": {"type": "int"}, "size": {"type": "int"}},
            "body": {**rows, **gates, "o": o, "y": "linear(o * b, d_model)"},
        }

    mixers = {"erasing": mixer(", beta=b"), "plain": mixer(plain)}
    blocks = {
        name: {"mixer": {"use": name, "n_heads": 2, "size": 128}, "mlp": {"use": "swiglu", "d_ff": 64}}
        for name in mixers
    }
    shape = {"vocab_size": 64, "d_model": 32, "n_layers": 2, "context": 64, "norm": "rmsnorm"}
    return {
        "archc": 1, "name": "small", "model": shape, "mixers": mixers, "blocks": blocks,
        "layers": ["1 erasing", "1 plain"],
    }  # fmt: skip


TARGET = replace(
    load_target("h100"),
    tiles=(
        {"role": "prepare", "num_warps": 4, "num_stages": 1},
        {"role": "walk", "erase": "delta", "chunk": 32, "columns": 32, "num_warps": 4, "num_stages": 1},
        {"role": "walk", "columns": 64, "num_warps": 4, "num_stages": 1},
    ),
)


@pytest.mark.parametrize(
    ("chunk", "names"),
    [
        (None, ["head_decay", "head_decay_delta_chunk_32"]),
        (32, ["head_decay_chunk_32", "head_decay_delta_chunk_32"]),
        (16, ["head_decay_chunk_16", "head_decay_delta_chunk_16"]),  # never larger than the spec's
    ],
)
def test_chunks_are_those_of_the_targets_tiles(chunk: int | None, names: list[str]) -> None:
    graph = graph_of(spec(chunk))
    cut = fit_chunks(graph, TARGET)
    assert sorted(recurrence_kinds(cut)) == names
    assert fit_chunks(cut, TARGET) == cut
    tokens = {
        kernel.file: kernel.constants["C"] for kernel in kernels_of(cut, TARGET) if kernel.role == "walk"
    }
    assert tokens == {f"{name}_kernels.py": kind.chunk for name, kind in recurrence_kinds(cut).items()}


def test_a_row_for_normalisers_is_taken_for_them() -> None:
    tiles = {"chunk": 16, "columns": 64, "channels": 64, "num_warps": 4, "num_stages": 1}
    row = {"role": "walk", "normalize": "sum", **tiles}
    cut = fit_chunks(
        graph_of(spec(plain=", normalize=sum, eps=1e-6")), replace(TARGET, tiles=(row, *TARGET.tiles))
    )
    kinds = recurrence_kinds(cut).values()
    assert {kind.chunk for kind in kinds if kind.normalize == "sum"} == {16}
    assert {kind.chunk for kind in kinds if kind.normalize == "none"} == {32}


def test_a_target_without_such_tiles_changes_nothing() -> None:
    graph = graph_of(spec())
    assert fit_chunks(graph, load_target("h100")) is graph


def test_a_package_has_the_chunks_of_its_target() -> None:
    files = sources_of(spec(), "rtx5090")
    assert "head_decay_delta.py" not in files
    for name, chunk in (("head_decay_delta_chunk_32", 32), ("head_decay", 64)):
        assert f"CHUNK = {chunk}\n" in files[f"{name}.py"]
        assert f"CHUNK = {chunk}\n" in files[f"{name}_kernels.py"]
    assert "head_decay_delta.py" in sources_of(spec())
