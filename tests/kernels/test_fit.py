"""Kernels compiled ahead of time: what fits, what does not and why, and that one failure does not harm others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from archc.kernels import compile as compiling
from archc.kernels.compile import triton_version, verify
from archc.kernels.fit import Fit, Found, judge, misfits
from archc.kernels.targets import load_target
from archc.kernels.worker import amd_facts
from archc.spec.diagnostics import MachineError
from tests.kernels import samples

pytest.importorskip("triton")

H100 = load_target("h100")


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Fit]:
    """Good and bad samples, compiled together."""
    names = ["FITS", "DIES", "PLAIN", "NO_MATRIX", "BROKEN", "MISNAMED", "SPILLS", "SHARED"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARCHC_CACHE", str(tmp_path_factory.mktemp("cache")))
        return dict(zip(names, verify([getattr(samples, name) for name in names], H100)))


def test_a_kernel_that_fits(fits: dict[str, Fit]) -> None:
    fit = fits["FITS"]
    assert fit.fits and fit.verdict == "fits" and fit.triton == triton_version()
    found = fit.found
    assert found is not None and 0 < found.registers < 256 and found.stack == found.spills == 0
    assert found.shared == 32768 and not found.trap  # two stages of two tiles of 64 x 64 x 2 bytes
    assert list(found.matrix) == ["wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16"]


def test_a_kernel_that_spills(fits: dict[str, Fit]) -> None:
    fit = fits["SPILLS"]
    assert "bytes in local memory where 128 may be" in fit.verdict
    found = fit.found
    assert found is not None and found.stack > 128 and found.spills > 0
    assert found.local_loads > 0 and found.local_stores > 0
    assert 0 < found.local_in_loops < found.local_loads + found.local_stores


def test_a_kernel_with_too_much_shared_memory(fits: dict[str, Fit]) -> None:
    assert fits["SHARED"].verdict == "it needs 294,912 bytes of shared memory of 232,448"


def test_a_kernel_without_matrix_instructions(fits: dict[str, Fit]) -> None:
    assert fits["NO_MATRIX"].verdict == "it has no wgmma instructions"
    assert fits["PLAIN"].fits


def test_a_broken_kernel_says_where_and_leaves_the_others(fits: dict[str, Fit]) -> None:
    fit = fits["BROKEN"]
    assert not fit.fits and fit.found is None and "no_such_name is not defined" in fit.said
    assert "neither a type nor a value: out" in fits["MISNAMED"].said


def test_a_kernel_that_kills_the_compiler_leaves_the_others(fits: dict[str, Fit]) -> None:
    fit = fits["DIES"]
    assert not fit.fits and f"status {-signal.SIGKILL}" in fit.said
    assert fits["FITS"].fits


def test_errors_name_the_line_of_the_spec(fits: dict[str, Fit]) -> None:
    found = misfits(fits.values(), H100)
    assert len(found) == 6
    assert {error.span for error in found} == {samples.SPAN}
    codes = {name: error.code for name, error in zip((n for n in fits if not fits[n].fits), found)}
    assert codes == dict.fromkeys(("DIES", "BROKEN", "MISNAMED"), "E502") | dict.fromkeys(
        ("NO_MATRIX", "SPILLS", "SHARED"), "E501"
    )


def test_the_second_time_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ARCHC_CACHE", str(tmp_path))
    told: list[tuple[int, int]] = []
    first = verify([samples.PLAIN, samples.PLAIN], H100, lambda *counts: told.append(counts))
    assert told == [(0, 2), (2, 2)]
    monkeypatch.setattr(compiling, "_Worker", None)
    assert verify([samples.PLAIN], H100) == first[:1]
    assert verify([samples.PLAIN], load_target("h200"))[0].found == first[0].found  # the same architecture
    beside = f"# A remark.\n{samples.PLAIN.source}\n\ndef another():\n    return 1\n"
    assert verify([replace(samples.PLAIN, file="other.py", source=beside)], H100)[0].found == first[0].found
    other = samples.PLAIN.source.replace("2.0 * x_C", "3.0 * x_C")
    for changed in (replace(samples.PLAIN, num_warps=8), replace(samples.PLAIN, source=other)):
        with pytest.raises(TypeError):  # another content is compiled
            verify([changed], H100)


def test_what_a_kernel_reaches_is_its_content() -> None:
    source = "import triton.language as tl\nN = 2\nM = 3\n\ndef f():\n    return tl.arange(0, N)\n"
    source += "\ndef g():\n    return f()\n"
    assert compiling._reached(source, "g") == [
        "N = 2",
        "def f():\n    return tl.arange(0, N)",
        "def g():\n    return f()",
        "import triton.language as tl",
    ]
    assert compiling._reached(source, "g") == compiling._reached(
        f"# Why.\n{source}".replace("M = 3", "M = 4"), "g"
    )
    assert compiling._reached(source, "g") != compiling._reached(source.replace("N = 2", "N = 4"), "g")


def test_a_damaged_entry_of_the_cache_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHC_CACHE", str(tmp_path))
    first = verify([samples.PLAIN], H100)
    (entry,) = tmp_path.rglob("*.json")
    entry.write_text(entry.read_text()[:40])
    assert verify([samples.PLAIN], H100) == first


def test_settings_of_the_environment_do_not_reach_the_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARCHC_CACHE", str(tmp_path))
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # a process that interprets cannot compile
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/nowhere")
    assert verify([samples.PLAIN], H100)[0].fits


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "triton_version", lambda search: None)
    with pytest.raises(MachineError, match=r"archc-compiler\[kernels\]"):
        verify([samples.PLAIN], H100)


def test_the_version_is_known_without_importing(tmp_path: Path) -> None:
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("__version__ = '9.8.7'\nraise RuntimeError\n")
    assert triton_version([tmp_path]) == "9.8.7"
    assert triton_version() != "9.8.7"


# -- the limits, without compiling ----------------------------------------------------------------------------------

GOOD = Found(registers=200, shared=1000, matrix={"wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16": 4})


@pytest.mark.parametrize(
    ("changes", "target", "role", "verdict"),
    [
        ({}, "h100", "walk", "fits"),
        ({"stack": 128, "local_in_loops": 4}, "h100", "walk", "fits"),
        ({"stack": 129}, "h100", "walk", "it keeps 129 bytes in local memory where 128 may be"),
        ({"shared": 101377}, "rtx4090", "walk", "it needs 101,377 bytes of shared memory of 101,376"),
        ({"tensor_memory": 513}, "b200", "walk", "it needs 513 columns of tensor memory of 512"),
        ({"trap": True, "matrix": {}}, "h100", "walk", "the compiler has put a trap in its place"),
        ({"matrix": {"mma.sync.aligned.m16n8k16": 4}}, "h100", "walk", "it has no wgmma instructions"),
        ({}, "b200", "walk", "it has no tcgen05 instructions"),
        ({"matrix": {"v_mfma_f32_32x32x8_bf16": 4}}, "mi300x", "walk", "fits"),
    ],
)
def test_limits(changes: dict[str, object], target: str, role: str, verdict: str) -> None:
    found = replace(GOOD, **changes)  # type: ignore[arg-type]
    if target in ("rtx4090",):
        found = replace(found, matrix={"mma.sync.aligned.m16n8k16": 4})
    if target == "b200" and changes:
        found = replace(found, matrix={"tcgen05.mma.cta_group::1.kind::f16": 4})
    fit = judge(replace(samples.FITS, role=role), load_target(target), found, "3.7.1")
    assert fit.verdict == verdict


@pytest.mark.parametrize(("K", "V", "role", "fits"), [
    (32, 32, "walk_ahead", True), (64, 32, "walk_ahead", False), (32, 64, "walk_ahead", False), (32, 32, "walk", False),
])  # fmt: skip
def test_products_too_small_for_wide_instructions(K: int, V: int, role: str, fits: bool) -> None:
    """A walk without outputs has products as small as the state; others have those of a whole chunk."""
    found = replace(GOOD, matrix={"mma.sync.aligned.m16n8k16": 4})
    kernel = replace(samples.FITS, role=role, constants={"BLOCK_K": K, "COLUMNS": V})
    assert judge(kernel, load_target("h100"), found, "3.7.1").fits == fits


def test_a_triton_that_tiles_were_not_chosen_with() -> None:
    """Tiles that fit with one version need not fit with another: the way out is named."""
    found, target = replace(GOOD, stack=200), load_target("h100")
    for version, other in (("3.7.1", False), ("3.5.0", True)):
        (said,) = misfits([judge(samples.FITS, target, found, version)], target)
        assert said.note is not None and said.help is not None
        assert f"compiled by Triton {version}" in said.note
        assert ("chosen with Triton 3.7.1" in said.note) == other == ("that Triton" in said.help)
    rows = (
        {"role": "a", "screened": ("3.7.1", "3.6.0")},
        {"role": "b"},
        {"role": "c", "screened": ("3.6.0",)},
    )
    assert replace(target, tiles=rows).screened == ("3.6.0",)
    assert replace(target, tiles=rows[1:2]).screened == ()


def test_facts_of_amd_assembly() -> None:
    facts = amd_facts("""
walk:
    scratch_store_dword off, v1, off offset:4
.LBB0_1:
    v_mfma_f32_32x32x8_bf16 v[0:15], v[16:17], v[18:19], v[0:15]
    scratch_load_dword v1, off, off offset:4
    s_cbranch_scc1 .LBB0_1
    s_endpgm
  - .agpr_count:     0
    .private_segment_fixed_size: 8
    .vgpr_count:     256
    .vgpr_spill_count: 2
""")
    assert facts == {
        "registers": 256,
        "stack": 8,
        "spills": 8,
        "local_loads": 1,
        "local_stores": 1,
        "local_in_loops": 1,
        "matrix": {"v_mfma_f32_32x32x8_bf16": 1},
        "trap": False,
    }


# -- every target ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a100", "rtx4090", "b200", "rtx5090", "mi300x", "mi355x"])
def test_other_targets_compile(name: str) -> None:
    target = load_target(name)
    (fit,) = verify([samples.FITS], target)
    assert fit.fits, fit


@pytest.mark.slow
def test_a_trap_is_found() -> None:
    (fit,) = verify([samples.TRAPS], load_target("b200"))
    assert fit.found is not None and fit.found.trap
    assert "columns of tensor memory of 512" in fit.verdict and "trap" in fit.verdict


@pytest.mark.slow
def test_assembly_of_another_vendor_is_reported() -> None:
    plain, fit = verify([samples.PLAIN, samples.ASSEMBLY], load_target("mi300x"))
    assert plain.fits and not fit.fits and "couldn't allocate" in fit.said


@pytest.mark.slow
def test_the_worker_leaves_nothing_behind(tmp_path: Path) -> None:
    code = (
        "from archc.kernels.compile import verify; from archc.kernels.targets import load_target; "
        "from tests.kernels import samples; verify([samples.PLAIN, samples.DIES], load_target('h100'))"
    )
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "TMPDIR": str(tmp_path),
        "HOME": str(tmp_path / "home"),
    }
    environment["ARCHC_CACHE"] = str(tmp_path / "cache")
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]
