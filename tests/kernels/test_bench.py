"""`archc bench --gpu` without a GPU: every path is walked, and what fails or must not be timed is said, not fatal."""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from archc.cli.app import app
from archc.kernels.bench import cases, models, operations, record, session, timing
from archc.kernels.bench.run import measure_gpu
from archc.spec.diagnostics import MachineError

SPEC = """\
archc: 1
name: tiny
model: {vocab_size: 32, d_model: 32, n_layers: 2, context: 64, tie_embeddings: true, norm: rmsnorm}
blocks:
  linear:
    mixer: {use: gated_deltanet, n_heads: 2, head_dim: 16, expand_v: 1}
    mlp: {use: swiglu, d_ff: 32}
  full:
    mixer: {use: attention, n_heads: 2, n_kv_heads: 1}
    mlp: {use: swiglu, d_ff: 32}
layers: [1 linear, 1 full]
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(SPEC)
    return tmp_path / "tiny.yaml"


@pytest.fixture(autouse=True)
def without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages are built as where Triton is missing: the same files, and no kernel is compiled first."""
    monkeypatch.setattr("archc.kernels.check.triton_version", lambda: None)


class Ticks:
    """A clock that believes a list: the n-th work takes the n-th number of seconds."""

    def __init__(self, times: Mapping[str, float]) -> None:
        self.times, self.order, self.now = times, [], ""
        self.forgotten = 0

    def side(self, name: str, fails: bool = False) -> timing.Side:
        def run(number: int) -> None:
            self.order.append((name, number))
            self.now = name
            if fails:
                raise RuntimeError("out of memory\nand more")

        return timing.Side(name, run)

    def seconds(self, work: Callable[[], object]) -> float:
        before = len(self.order)
        work()
        return self.times[self.now] * (len(self.order) - before)

    def peak(self, work: Callable[[], object]) -> int | None:
        work()
        return 1000

    def forget(self) -> None:
        self.forgotten += 1

    def alive(self) -> bool:
        return True


def test_sides_take_turns_and_copies_rotate() -> None:
    clock = Ticks({"ours": 0.01, "peer": 0.03})
    result = timing.compare(
        timing.Result("operations", "a case", "forward"),
        [clock.side("ours"), clock.side("peer")],
        2,
        clock,
        3,
    )
    assert result.sides["ours"].seconds == pytest.approx(0.01) and result.sides["ours"].peak_bytes == 1000
    assert result.ratios["peer"].median == pytest.approx(3) and "ours" not in result.ratios
    turns = clock.order[8:]  # two to warm up, one for the memory, one to see how long it takes, on each side
    # At least 0.02 seconds a timing: twice ours, once the peer, in every round.
    assert turns == [("ours", 0), ("ours", 1), ("peer", 0)] * 3


def test_a_side_that_fails_costs_its_own_figure_only() -> None:
    clock = Ticks({"ours": 0.01, "peer": 0.03})
    sides = [clock.side("ours"), clock.side("bad", fails=True), clock.side("peer")]
    result = timing.compare(timing.Result("operations", "a case", "forward"), sides, 2, clock, 2)
    assert result.why_not == {"bad": "RuntimeError: out of memory"} and clock.forgotten == 1
    assert set(result.sides) == {"ours", "peer"} and set(result.ratios) == {"peer"}
    sides = [clock.side("ours", fails=True), clock.side("peer")]
    result = timing.compare(timing.Result("operations", "a case", "forward"), sides, 2, clock, 2)
    assert set(result.sides) == {"peer"} and not result.ratios


def test_outputs_are_not_kept() -> None:
    """A run finds the memory of the one before it: outputs that pile up cost allocations in the time that counts."""
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def run(number: int) -> torch.Tensor:
        nonlocal most
        most = max(most, len(alive))
        found = torch.zeros(1)
        alive.add(found)
        return found

    clock = timing.WallClock()
    timing.compare(timing.Result("operations", "a case", "forward"), [timing.Side("ours", run)], 2, clock, 3)
    assert most <= 1


def peers(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stand-ins for the peers' packages; what their operations were called with."""
    calls: list[dict[str, Any]] = []

    def operation(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **given: Any) -> Any:
        calls.append(given)
        gate = next(x for name, x in given.items() if name in ("g", "gk"))
        state = given.get("initial_state")
        return v * q.sum(-1, keepdim=True) + gate.sum(), None if state is None else state + 1

    class Causal(torch.nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(config.vocab_size, config.hidden_size)

        def forward(self, input_ids: torch.Tensor, labels: Any = None, **_: Any) -> Any:
            x = self.embedding(input_ids)
            return SimpleNamespace(loss=x.sum(), past_key_values="cache")

    class Layer(torch.nn.Module):
        def __init__(self, hidden_size: int, **sizes: Any) -> None:
            super().__init__()
            assert sizes["num_heads"] == 2 and sizes["head_dim"] == 16 and sizes["expand_v"] == 1
            self.linear = torch.nn.Linear(hidden_size, hidden_size)

        def forward(self, x: torch.Tensor) -> Any:
            return self.linear(x), None

    names = [name for timed in operations.TIMED for name in (timed.chunk, timed.recurrent)]
    modules: dict[str, dict[str, Any]] = {
        "fla": {},
        "fla.ops": dict.fromkeys(names, operation),
        "fla.layers": {"GatedDeltaNet": Layer},
        "fla.layers.attn": {"flash_attn_func": None},
        "fla.models": {"GatedDeltaNetConfig": SimpleNamespace, "GatedDeltaNetForCausalLM": Causal},
        "transformers": {"LlamaConfig": SimpleNamespace, "LlamaForCausalLM": Causal},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return calls


@pytest.mark.slow
def test_every_path_is_walked(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "TIMED", (operations.TIMED[0], operations.TIMED[3]))
    # A CPU has no graphs of its own: the step itself stands for its replay.
    monkeypatch.setattr(timing, "captured", lambda step: step)
    calls = peers(monkeypatch)
    save = tmp_path / "found.json"
    found = measure_gpu(spec, device="cpu", tiny=True, rounds=1, save=save)
    assert [(result.group, result.case, result.why_not) for result in found.results if result.why_not] == []
    for result in found.results:
        assert "ours" in result.sides and result.sides["ours"].seconds > 0
        assert "fla" in result.ratios or "decoding, CUDA graphs" in result.what
    whats = {(result.group, result.what) for result in found.results}
    assert len(whats) == 8 and {group for group, _ in whats} == set(cases.GROUPS)
    assert all(test["failed"] == [] and test["checks"] for test in found.selftests.values())
    assert found.measured["copy_bandwidth"] > 0 and found.measured["matrix_rate"] > 0
    assert "trial" in found.surroundings["device"]
    # Gate, beta and norms inside the peer's kernels where it has them; its gate beside the call where not.
    inside = [call for call in calls if "use_gate_in_kernel" in call]
    assert inside and all(call["use_qk_l2norm_in_kernel"] and call["A_log"].shape == (2,) for call in inside)
    assert any("gk" in call for call in calls) and any("initial_state" in call for call in calls)
    written = json.loads(save.read_text())
    assert len(written["results"]) == len(found.results) and written["geometric_means"]
    assert not any(name.startswith("bench_model") for name in sys.modules), "packages are gone afterwards"
    assert "times ours" in "\n".join(record.lines(found))


def test_what_fails_its_self_test_is_not_timed(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "TIMED", operations.TIMED[:1])
    monkeypatch.setattr(session.Session, "selftest", lambda self, name: f"FAIL {name}")
    found = measure_gpu(spec, device="cpu", tiny=True, rounds=1)
    assert found.results and not any(result.sides for result in found.results)
    reasons = {result.why_not["case"] for result in found.results}
    assert reasons == {f"{session.REFUSED}FAIL {name}" for name in ("gated_delta_2_16", "bench_model")}


def test_the_budget_ends_a_run(spec: Path) -> None:
    found = measure_gpu(spec, device="cpu", tiny=True, rounds=1, seconds=1e-9)
    assert {result.why_not["case"] for result in found.results} == {"the time was up"}


def test_what_cannot_be_built_is_tried_once(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def refuse(source: Any, folder: Path, **_: Any) -> None:
        tried.append(folder.name)
        raise ValueError("no room\nand more")

    monkeypatch.setattr(cases, "TIMED", operations.TIMED[:1])
    monkeypatch.setattr("archc.pipeline.build", refuse)
    found = measure_gpu(spec, device="cpu", tiny=True, rounds=1)
    assert sorted(tried) == ["bench_model", "gated_delta_2_16"]
    assert {result.why_not["case"] for result in found.results} == {"not timed: ValueError: no room"}


def test_a_device_that_fails_costs_one_case(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are left to another process, which neither repeats what is there nor what ended the first."""
    done: list[str] = []

    def case(name: str, fails: bool) -> cases.Case:
        def run(_: session.Session, result: timing.Result) -> None:
            done.append(name)
            if fails:
                raise RuntimeError("an illegal memory access")
            result.sides["ours"], result.ratios["fla"] = timing.Figure(1, 1, 1), timing.Ratio(2, 2, 2)

        return cases.Case("layer", name, "forward", run)

    listed = [case("first", False), case("second", True), case("third", False)]
    monkeypatch.setattr("archc.kernels.bench.run.cases", lambda scale: listed)
    monkeypatch.setattr(timing.WallClock, "alive", lambda self: "second" not in done or "third" in done)
    save = tmp_path / "found.json"
    with pytest.raises(MachineError, match="--resume"):
        measure_gpu(spec, device="cpu", tiny=True, save=save)
    reasons = [result.why_not.get("case") for result in record.load(save).results]
    assert reasons == [None, "RuntimeError: an illegal memory access", timing.DEVICE_FAILED]
    found = measure_gpu(spec, device="cpu", tiny=True, save=save, resume=True)
    assert done == ["first", "second", "third"]
    assert [bool(result.sides) for result in found.results] == [True, False, True]
    assert record.load(save) == found


def test_a_run_that_is_killed_says_where(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(_: session.Session, result: timing.Result) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(
        "archc.kernels.bench.run.cases", lambda scale: [cases.Case("layer", "a", "b", killed)] * 2
    )
    save = tmp_path / "found.json"
    with pytest.raises(KeyboardInterrupt):
        measure_gpu(spec, device="cpu", tiny=True, save=save)
    (result,) = record.load(save).results
    assert result.why_not == {"case": timing.ENDED} and not result.left_out


def test_peers_are_drawn_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The initial values of a billion weights take minutes of a CPU."""
    peers(monkeypatch)
    where: list[str] = []
    embedding = torch.nn.Embedding.__init__

    def seen(self: Any, *given: Any, **named: Any) -> None:
        where.append(torch.empty(0).device.type)
        embedding(self, *given, **named)

    monkeypatch.setattr(torch.nn.Embedding, "__init__", seen)
    mixer = SimpleNamespace(n_heads=2, n_v_heads=2, head_dim=16, v_dim=16, conv=4, beta=0, decay=0, gate=0)
    layer = SimpleNamespace(mixer=mixer, mlp=SimpleNamespace(d_ff=8))
    config = SimpleNamespace(d_model=64, n_layers=1, vocab_size=8, context=8)
    ours = SimpleNamespace(config=config, layers=[layer])
    for name in models.PEERS:
        found = models.peer_model(name, ours, torch.device("meta"), torch.bfloat16)
        assert found.embedding.weight.device.type == "meta"
    assert where == ["meta", "meta"]


def test_softmax_layers_of_a_peer_without_flash_attn() -> None:
    """Grouped heads, whole sequences and one token after the others; anything else is refused, not computed wrongly."""
    q, k, v = torch.randn(2, 5, 4, 8), torch.randn(2, 5, 2, 8), torch.randn(2, 5, 2, 8)
    scores = torch.einsum("bihd,bjhd->bhij", q, k.repeat_interleave(2, 2)) * 8**-0.5
    weights = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf).softmax(-1)
    want = torch.einsum("bhij,bjhd->bihd", weights, v.repeat_interleave(2, 2))
    every = (-1, -1)
    torch.testing.assert_close(models.causal_attention(q, k, v, causal=True, window_size=every), want)
    last = models.causal_attention(q[:, 4:], k, v, causal=True, window_size=every)
    torch.testing.assert_close(last, want[:, 4:])
    for queries, window in ((q[:, 3:], every), (q, (3, 0))):
        with pytest.raises(ValueError, match="flash-attn"):
            models.causal_attention(queries, k, v, causal=True, window_size=window)


def test_decoding_is_timed_with_joined_matrices(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels that decode a token want them."""
    prepared: list[bool] = []

    def decoding(model: Any, tokens: torch.Tensor, room: int) -> Callable[[], object]:
        prepared.append(model.head_weight().stride() != (model.config.d_model, 1))
        return lambda: None

    monkeypatch.setattr("archc.kernels.bench.model_runs.our_decoding", decoding)
    monkeypatch.setattr("archc.kernels.bench.model_runs.PEERS", ())
    monkeypatch.setattr(session.Session, "selftest", lambda self, name: "")
    monkeypatch.setattr(
        "archc.kernels.bench.run.cases",
        lambda scale: [case for case in cases.cases(scale) if case.what == "decoding"],
    )
    measure_gpu(spec, device="cpu", tiny=True, rounds=1)
    assert prepared == [True]


@pytest.mark.slow
def test_peers_that_are_missing_are_noted(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "TIMED", operations.TIMED[:1])
    monkeypatch.setitem(sys.modules, "fla.ops", None)
    found = measure_gpu(spec, device="cpu", tiny=True, rounds=1, groups=("operations",))
    assert all("sdpa" in result.ratios and "fla" in result.why_not for result in found.results)


@pytest.mark.slow
def test_the_command(spec: Path, tmp_path: Path) -> None:
    def run(*options: str) -> Any:
        return CliRunner().invoke(app, ["bench", str(spec), *options])

    assert run("--gpu", "--cpu").exit_code == 2 and run().exit_code == 2
    assert run("--gpu", "--only", "operations,weather").exit_code == 2
    assert run("--gpu", "--target", "abacus").exit_code == 2
    assert run("--gpu", "--device", "tpu").exit_code == 2
    assert run("--gpu", "--resume").exit_code == 2
    if not torch.cuda.is_available():
        assert run("--gpu").exit_code == 3
    save = tmp_path / "found.json"
    options = ["--gpu", "--device", "cpu", "--tiny", "--rounds", "1", "--only", "layer", "--save", str(save)]
    done = run(*options, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(save.read_text())["results"][0]["group"] == "layer"


def test_without_a_gpu_it_says_so(spec: Path) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(MachineError, match="no GPU"):
            measure_gpu(spec)


def test_our_side_computes_the_recurrence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The emitted mixer with handed-out projections is the recurrence of the normed, gated inputs."""
    from archc.pipeline import build

    monkeypatch.syspath_prepend(str(tmp_path))
    timed, shape = operations.TIMED[0], operations.Shape(2, 5, 2, 16)
    source = operations.spec_of(timed, shape.H, shape.D)
    build(source, tmp_path / "timed_alone", target="h100")
    (raw,) = operations.raw_inputs(timed, shape, torch.device("cpu"), torch.float64, 1)
    ours = operations.OurSide("timed_alone", torch.device("cpu"))
    got = ours(raw).view(2, 5, 2, 16)
    q, k = (torch.nn.functional.normalize(raw[name], dim=-1) for name in "qk")
    step = torch.nn.functional.softplus(raw["decay"] + raw["dt_bias"])
    decay, beta = -raw["A_log"].exp() * step, raw["beta"].sigmoid()
    S = torch.zeros(2, 2, 16, 16, dtype=torch.float64)
    for t in range(5):
        S = S * decay[:, t, :, None, None].exp()
        u = beta[:, t, :, None] * (raw["v"][:, t] - torch.einsum("bhkv,bhk->bhv", S, k[:, t]))
        S = S + torch.einsum("bhk,bhv->bhkv", k[:, t], u)
        o = torch.einsum("bhkv,bhk->bhv", S, q[:, t]) * 16**-0.5
        # Float32 parameters and an eps of 1e-6 in the norm of vectors of length four.
        torch.testing.assert_close(got[:, t], o, rtol=0, atol=1e-5)
