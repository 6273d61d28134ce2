"""What rows of targets say of a Triton beside the usual one is what was seen, and so is what the documentation says."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from archc.kernels.targets import Target, load_target, read_target, target_names

ROOT = Path(__file__).parents[2]
SEEN: dict[str, Any] = json.loads((ROOT / "docs" / "screened.json").read_text(encoding="utf-8"))
USUAL = json.loads((ROOT / "docs" / "kernels.json").read_text(encoding="utf-8"))["triton"]
OTHERS = [(name, version) for name, versions in SEEN.items() for version in versions if version != USUAL]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """scripts/screen_rows.py as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        found = importlib.util.spec_from_file_location("screen_rows", ROOT / "scripts" / "screen_rows.py")
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules["screen_rows"] = module
        found.loader.exec_module(module)
        return module


@pytest.mark.parametrize(("name", "version"), OTHERS)
def test_rows_name_a_version_by_which_they_were_seen_to_fit(
    script: ModuleType, name: str, version: str
) -> None:
    seen = SEEN[name][version]
    named = {script.text_of(row): version in row.get("screened", ()) for row in load_target(name).tiles}
    assert any(named.values())
    for row, given in named.items():
        if given:
            assert row in seen and seen[row]["fits"], row


def test_no_row_names_a_version_that_is_not_recorded() -> None:
    for name in target_names():
        for row in load_target(name).tiles:
            for version in row.get("screened", ()):
                assert version == USUAL or version in SEEN.get(name, {}), (name, version)


def test_what_the_documentation_counts() -> None:
    text = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    counted = [
        (name, int(fit), int(others))
        for name, fit, others in re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    ]
    expected = []
    for name, version in OTHERS:
        fit = sum(version in row.get("screened", ()) for row in load_target(name).tiles)
        expected.append((name, fit, sum(not facts["fits"] for facts in SEEN[name][version].values())))
    assert counted == expected
    assert {version for _, version in OTHERS} == {"3.6.0"}  # which the page names


ROW = "role: walk, decay: [none, head], V: 64, columns: 64, num_warps: 4, num_stages: 1"
GPU = f"""\
target: gpu
title: A GPU
backend: cuda
arch: 90
warp_size: 32
multiprocessors: 4
shared_memory: 1000
bandwidth: 1e12
matrix_rate: {{bf16: 2e12}}
matrix_instruction: wgmma
tiles:
  - {{{ROW}, screened: [3.6.0]}}
  - {{role: walk, columns: 128, num_warps: 8, num_stages: 1}}
  - {{role: prepare, num_warps: 4, num_stages: 1}}
"""


def gpu() -> Target:
    return read_target(GPU, "gpu.yaml")


def test_each_row_gets_the_kernels_that_it_cuts(script: ModuleType) -> None:
    planned = script.plan(gpu(), range(3), ["head_decay", "delta"])
    cut = {index: {key for each, key, _ in planned if each == index} for index in range(3)}
    assert {key[:3] for key in cut[0] if key[0] == "head_decay"} == {("head_decay", 64, 64)}
    assert {key[:3] for key in cut[1] if key[0] == "head_decay"} == {("head_decay", 128, 128)}
    assert ("head_decay", 128, 128, "walk (packed)") in cut[1] and ("delta", 128, 128, "prepare") in cut[2]
    for index, (_, K, V, _), kernel in planned:
        if kernel.role in ("walk", "walk_ahead") and kernel.constants["K"] == kernel.constants["BLOCK_K"]:
            assert kernel.num_warps == gpu().tiles[index]["num_warps"], (index, K, V)


def test_results_are_kept_by_row(script: ModuleType, tmp_path: Path) -> None:
    def record(*rows: int) -> dict[str, Any]:
        target = gpu()
        found = [script.Screened(target.tiles[row], {("head_decay", 64, 64, "walk"): FIT}) for row in rows]
        script.record(tmp_path / "seen.json", target, "3.6.0", found)
        return dict(json.loads((tmp_path / "seen.json").read_text(encoding="utf-8"))["gpu"]["3.6.0"])

    FIT = script.Fit("", "walk", "walk", "gpu", "3.6.0", None, "it does not")
    assert list(record(1)) == ["role: walk, columns: 128, num_warps: 8, num_stages: 1"]
    both = record(0)
    assert list(both)[0] == ROW and len(both) == 2
    assert both[ROW]["refused"] == {"head_decay 64 x 64 walk": "it does not"} and not both[ROW]["fits"]
