"""The self-test that packages for a GPU carry: it passes as built, and names what a broken equation breaks."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from archc.pipeline import build, sources_of
from tests.support.imports import imported
from tests.support.packages import SPECS, import_folder
from tests.support.slow import mostly_slow

SPEC: dict[str, Any] = {
    "archc": 1,
    "name": "tested",
    "model": {"vocab_size": 32, "d_model": 32, "n_layers": 2, "context": 64, "norm": "rmsnorm"},
    "blocks": {
        "main": {
            "mixer": {"use": "gated_deltanet", "n_heads": 2, "head_dim": 16, "expand_v": 1},
            "mlp": {"use": "swiglu", "d_ff": 32},
        }
    },
    "layers": ["1 main"],
}
MODULE = "head_decay_delta"

# What is changed in the emitted module, and the checks that must see it: (text, new text, part of a failed line).
BREAKS = {
    "forward": ("U_MCV[m] * beta_out_MC1[m])", "U_MCV[m])", "float64   forward"),
    "backward": ("dk_read_MCK.baddbmm_(dkk_MCC * beta_M1C, k_MCK)", "pass", "float64   gradients"),
    "decode": (
        "u_A1V = (v_AV[:, None] - seen_A1V)",
        "u_A1V = (v_AV[:, None] + seen_A1V)",
        "float64   decode",
    ),
    "definition": ("q_BHK = q[:, t] * scale", "q_BHK = q[:, t]", "float64   forward"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("built") / "tested"
    with pytest.MonkeyPatch.context() as patch:
        # That kernels compile is tested elsewhere.
        patch.setattr("archc.kernels.check.unfit", lambda *_: None)
        build(SPEC, found, target="h100", allow_torch=True)
    return found


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"{folder.name}.selftest", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder.parent)


def failures(folder: Path, name: str) -> list[str]:
    """The lines of the checks that fail, run in this process."""
    import_folder(folder, name)
    selftest = __import__(f"{name}.selftest", fromlist=["run"])
    found = list(selftest.run(torch.device("cpu"), quick=True))
    assert found
    return [str(check) for check in found if not check.passed]


@pytest.mark.slow
def test_passes_as_built(folder: Path, tmp_path: Path) -> None:
    done = run(folder, "--device", "cpu", "--quick", "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["passed"] and found["target"] == "h100" and found["torch"] == torch.__version__
    checks = found["checks"]
    assert f"{len(checks)} checks passed, 0 failed" in done.stdout
    assert {check["dtype"] for check in checks} == {"float64", "float32", "float16", "bfloat16"}
    assert {check["what"] for check in checks} == {"forward", "gradients", "decode", "packed"}
    assert {check["kernel"] for check in checks} == {MODULE, "model"}
    assert all(check["implementation"] == "torch form" for check in checks)
    assert any("packed" in check["case"] for check in checks)


def test_says_that_there_is_no_gpu(folder: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = run(folder)
    assert done.returncode == 2 and "no GPU" in done.stderr and not done.stdout


@pytest.mark.parametrize("name", mostly_slow(BREAKS, lambda name: name == "definition"))
def test_a_broken_equation_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    before, after, line = BREAKS[name]
    broken = tmp_path / f"broken_{name}"
    shutil.copytree(folder, broken, ignore=shutil.ignore_patterns("__pycache__"))
    source = (broken / f"{MODULE}.py").read_text()
    assert source.count(before) == 1
    (broken / f"{MODULE}.py").write_text(source.replace(before, after))
    if name == "forward":  # the whole command once
        done = run(broken, "--device", "cpu", "--quick")
        assert done.returncode == 1, done.stdout + done.stderr
        failed = [text for text in done.stdout.splitlines() if text.startswith("FAIL")]
    else:
        failed = failures(broken, f"broken_{name}")
    assert failed and all(MODULE in text or "model" in text for text in failed)
    assert any(line in text for text in failed), failed[:3]


@pytest.mark.slow
def test_memory_that_a_kernel_leaves_unwritten_is_found(folder: Path, tmp_path: Path) -> None:
    """An output that is not written everywhere holds NaN, not what an earlier call left there."""
    broken = tmp_path / "broken_unwritten"
    shutil.copytree(folder, broken, ignore=shutil.ignore_patterns("__pycache__"))
    source = (broken / "tiling.py").read_text()
    before = "out[:, whole * C :].copy_(steps[whole, :, : self.length - whole * C])"
    after = "out[:, whole * C + 1 :].copy_(steps[whole, :, 1 : self.length - whole * C])"
    assert source.count(before) == 1
    (broken / "tiling.py").write_text(source.replace(before, after))
    failed = failures(broken, "broken_unwritten")
    assert any("nan" in text for text in failed), failed[:3]


def test_a_wrong_kernel_in_the_model_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the device computes is held against the CPU; here the device has one wrong entry of a norm."""
    import_folder(folder, "wrong_norm")
    selftest = __import__("wrong_norm.selftest", fromlist=["run"])
    model = __import__("wrong_norm.model", fromlist=["Model"]).Model
    move = model.to

    def to(self: Any, where: Any) -> Any:
        moved = move(self, where)
        if isinstance(where, torch.device):
            moved.layers[1].h_norm.weight.data[0] *= 1.5
        return moved

    monkeypatch.setattr(model, "to", to)
    monkeypatch.setattr(selftest, "RECURRENCES", [])
    found = list(selftest.run(torch.device("cpu"), quick=True))
    failed = {(check.dtype, check.what) for check in found if not check.passed}
    assert failed >= {("float32", what) for what in ("forward", "gradients", "packed", "decode")}
    assert all(check.passed for check in found if check.dtype == "float64")


def test_layers_too_large_for_the_host_are_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_folder(folder, "too_large")
    selftest = __import__("too_large.selftest", fromlist=["run"])
    monkeypatch.setattr(selftest, "RECURRENCES", [])
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 256}
    monkeypatch.setattr("os.sysconf", lambda name: sizes[name])
    (found,) = selftest.run(torch.device("cpu"), quick=True)
    assert found.passed and (found.what, found.case) == ("left out", "its layers are too large")


def test_only_packages_with_kernels_carry_it() -> None:
    assert not any("selftest" in path for path in sources_of(SPEC))
    named = {path for path in sources_of(SPEC, target="h100") if "selftest" in path}
    assert named == {"selftest.py", "selftest_cases.py", "selftest_inputs.py"} | {
        "selftest_oracle.py",
        "selftest_model.py",
    }


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("model", ["gla_small", "kda_small", "mamba2_small", "rwkv7_small", "xlstm_small"])
def test_other_classes_pass(tmp_path: Path, model: str) -> None:
    build(SPECS / "models" / f"{model}.yaml", tmp_path / f"tested_{model}", target="h100", allow_torch=True)
    assert failures(tmp_path / f"tested_{model}", f"tested_{model}") == []


def test_a_result_below_the_smallest_step_of_its_dtype_may_be_zero(folder: Path) -> None:
    """A decay of -50 leaves gradients of 1e-22, of which float16 has nothing."""
    import_folder(folder, "floors")
    rounding = imported("floors.selftest_oracle").rounding
    assert rounding(torch.float16, torch.tensor([5e-22])) == 2.0**-24
    assert rounding(torch.bfloat16, torch.tensor([5e-22])) == pytest.approx(5e-22 * 2**-7)
    assert rounding(torch.float16, torch.tensor([1.0, -3.0])) == 3 * 2.0**-10


def test_chance_is_drawn_where_the_operands_lie(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a CPU's random numbers would take most of the time; a seed gives the same ones each time."""
    import_folder(folder, "chances")
    rounded = imported("chances.selftest_oracle").RoundedProducts
    devices: list[object] = []
    draw = torch.randint

    def seen(*given: Any, **named: Any) -> torch.Tensor:
        devices.append((named.get("device"), named["generator"].device))
        return draw(*given, **named)

    monkeypatch.setattr(torch, "randint", seen)
    x = torch.randn(2, 16, 16)
    found = []
    for seed in (1, 1, 2):
        with rounded(torch.bfloat16, seed):
            found.append(torch.bmm(x, x))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert devices == [(x.device, x.device)] * 6


def test_chance_adds_even_and_odd_terms_apart(folder: Path) -> None:
    """2^24 - 2^24 + 1 + 1 is 2 in order; apart, a 1 is lost beside 2^24."""
    import_folder(folder, "orders")
    rounded = imported("orders.selftest_oracle").RoundedProducts
    a, b = torch.tensor([[2.0**24, -(2.0**24), 1.0, 1.0]]), torch.ones(4, 1)
    written, zero = torch.full((1, 1, 1), 5.0), torch.zeros(1, 1, 1)
    with rounded(torch.float32, 1):
        found = [a @ b, torch.bmm(a[None], b[None]), torch.bmm(a[None], b[None], out=written), written]
        found += [
            torch.addmm(zero[0], a, b),
            torch.baddbmm(zero, a[None], b[None]),
            zero.baddbmm_(a[None], b[None]),
        ]
        assert float(torch.addmm(torch.ones(1, 1), torch.ones(1, 2), b[:2], beta=3, alpha=-1)) == 3 - 2
        assert float(a[:, :1] @ b[:1]) == 2.0**24
    assert [float(x) for x in found] == [1.0] * len(found)


def test_on_a_gpu_one_sequence_is_walked_in_spans() -> None:
    """It begins with a state, decays little, and has a border of kept states inside: quick runs have it as well."""
    pytest.importorskip("triton")
    package = "generated.gdn_hybrid_340m_h100"
    inputs = importlib.import_module(f"{package}.selftest_inputs")
    kernels = importlib.import_module(f"{package}.head_decay_delta_kernels")
    case = importlib.import_module(f"{package}.selftest_cases").RECURRENCES[0]
    programs = -(-case.shapes["v"][-1] // min(kernels.COLUMNS, kernels.BACK_COLUMNS)) * case.queries
    for quick in (True, False):
        long = next(draw for draw in inputs.draws(case, quick, True) if draw.lengths == (inputs.LONG,))
        assert long.state and not long.packed
        assert 3 * kernels.span_of(inputs.LONG, 1, programs) <= inputs.LONG
        assert inputs.LONG > kernels.SEGMENT * kernels.CHUNK
    assert all(max(draw.lengths) < inputs.LONG for draw in inputs.draws(case, True))
