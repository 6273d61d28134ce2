"""Studies as a whole: what points there are, that each is what its file says, and every mistake of a sweep file."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import archc
from archc.pipeline import check, cost, graph_of, parameters
from archc.spec.diagnostics import SpecError
from archc.spec.render import render
from archc.sweeps import Point, study
from archc.totals import count_parameters

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGED = REPOSITORY / "specs" / "sweeps" / "hybrid_linear_attention.yaml"

SPEC = """
spec:
  model: {vocab_size: 128, d_model: 64, n_layers: 4, context: 64}
  blocks:
    linear: {mixer: {use: gla}, mlp: {use: swiglu, multiple_of: 8}}
    full: {mixer: {use: attention, n_heads: 4, window: 100}, mlp: {use: swiglu, multiple_of: 8}}
"""
OVER = """
over:
  ratio:
    at: layers
    values: {0:1: [1 full], 3:1: [3 linear, 1 full], 1:0: [1 linear]}
  mixer:
    at: blocks.linear.mixer
    values: {gated: {use: gla}, selective: {use: mamba2, head_dim: 16, d_state: 16}}
"""
MATCH = "match: {parameters: 250K, by: blocks.*.mlp.d_ff, step: 4}\n"
TOKENS = "tokens: [16, 4096]\n"
WHOLE = "sweep: study\n" + SPEC + OVER + MATCH + TOKENS


@pytest.fixture
def points(tmp_path: Path) -> list[Point]:
    return made(tmp_path, WHOLE)


def made(folder: Path, text: str) -> list[Point]:
    path = folder / "study.yaml"
    path.write_text(text)
    return archc.sweep(path)


def codes(folder: Path, text: str) -> list[str]:
    path = folder / "study.yaml"
    path.write_text(text)
    return [found.code for found in check(path)]


def test_points_in_the_order_of_the_axes_with_one_baseline(points: list[Point]) -> None:
    assert [point.name for point in points] == [
        "study_0_1",
        "study_3_1_gated",
        "study_3_1_selective",
        "study_1_0_gated",
        "study_1_0_selective",
    ]
    assert points[0].values == {"ratio": "0:1"}
    assert points[1].values == {"ratio": "3:1", "mixer": "gated"}
    assert not any(point.errors for point in points)


def test_each_point_is_the_model_that_its_text_says(points: list[Point], tmp_path: Path) -> None:
    """Counted along the way, and counted again from the file that is written for the point."""
    for point in points:
        path = tmp_path / f"{point.name}.yaml"
        path.write_text(point.text)
        assert check(path) == []
        total = sum(_product(shape) for shape in parameters(path).values())
        assert point.match is not None and point.parameters == point.match.parameters == total
        assert point.at_context == cost(path) and point.context == 64
        assert [report.tokens for report in point.costs] == [16, 4096]
        assert list(point.costs) == [cost(path, tokens=tokens) for tokens in (16, 4096)]
        assert point.costs[0].name == point.name
        assert f"d_ff: {point.match.number}" in point.text


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def test_no_neighbour_is_nearer(points: list[Point], tmp_path: Path) -> None:
    path = tmp_path / "neighbour.yaml"
    for point in points:
        assert point.match is not None and point.match.number % 4 == 0
        off = abs(point.match.parameters - 250_000)
        assert point.match.deviation == pytest.approx((point.match.parameters - 250_000) / 2500)
        for number in (point.match.number - 4, point.match.number + 4):
            path.write_text(point.text.replace(f"d_ff: {point.match.number}", f"d_ff: {number}"))
            assert abs(sum(map(_product, parameters(path).values())) - 250_000) >= off


def test_a_point_does_not_depend_on_the_others(points: list[Point], tmp_path: Path) -> None:
    """What was solved before only says where to begin."""
    alone = made(tmp_path, WHOLE + "where:\n  - {when: {ratio: [0:1, 3:1]}, skip: true}\n")
    assert [point.text for point in alone] == [point.text for point in points[-2:]]
    assert [point.match for point in alone] == [point.match for point in points[-2:]]


def test_several_processes_find_the_same(tmp_path: Path) -> None:
    """In a process of its own: one with torch's threads is never copied."""
    depths = "  depth: {at: model.n_layers, values: [4, 8, 12]}\n"
    (tmp_path / "study.yaml").write_text(WHOLE.replace("over:\n", "over:\n" + depths).replace("250K", "1M"))
    program = (
        "from archc.sweeps import run\n"
        "alone, both = run.study('study.yaml'), run.study('study.yaml', processes=2)\n"
        "print(run._can_fork(), len(both.points), alone == both)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [str(sys.platform == "linux"), "15", "True"], done.stderr


def test_the_width_is_solved_too(tmp_path: Path) -> None:
    """All sizes that follow from it move along, whatever is rounded on the way."""
    text = WHOLE.replace(
        "250K, by: blocks.*.mlp.d_ff, step: 4", "600K, by: model.d_model, step: 16, within: 30%"
    )
    for point in made(tmp_path, text):
        assert point.match is not None and f"d_model: {point.match.number}" in point.text
        assert point.match.number != 64


def test_a_mapping_is_read_like_a_file(points: list[Point]) -> None:
    data = yaml.load(WHOLE, Loader=yaml.BaseLoader)
    assert archc.sweep(data) == points


def test_a_target_for_each_value_of_an_axis(tmp_path: Path) -> None:
    text = WHOLE.replace("parameters: 250K", "parameters: {mixer: {gated: 0.25M, selective: 300000}}")
    found = {point.name: point.match.wanted for point in made(tmp_path, text) if point.match is not None}
    assert found["study_1_0_gated"] == 250_000 and found["study_1_0_selective"] == 300_000
    # The baseline is not the same model any more: it is solved for two targets.
    assert found["study_0_1_gated"] == 250_000 and found["study_0_1_selective"] == 300_000


def test_values_are_merged_as_by_a_file_that_extends(tmp_path: Path) -> None:
    """Key by key, another body whole, null removes, the last axis wins; a list names several places."""
    text = """
sweep: study
spec:
  model: {vocab_size: 64, d_model: 64, n_layers: 2, context: 64, norm_eps: 1e-6}
  blocks:
    a: {mixer: {use: gla, n_heads: 2, tau: 8}, mlp: {use: swiglu, d_ff: 32}}
    b: {mixer: {use: gla, n_heads: 2}, mlp: {use: swiglu, d_ff: 32}}
  layers: [a, b]
over:
  mixer:
    at: [blocks.a.mixer, blocks.b.mixer]
    values: {same: {use: gla, n_heads: 4}, other: {use: attention, n_heads: 8}}
  d_ff: {at: blocks.*.mlp.d_ff, values: [48, d_model]}
  rest:
    values:
      plain: {model: {norm_eps: null}}
      wide: {model: {d_model: 128}, blocks: {b: {mlp: {d_ff: 24}}}}
"""
    found = {point.name: yaml.load(point.text, Loader=yaml.BaseLoader) for point in made(tmp_path, text)}
    assert list(found) == [
        f"study_{mixer}_{d_ff}_{rest}"
        for mixer in ("same", "other")
        for d_ff in ("48", "d_model")
        for rest in ("plain", "wide")
    ]
    first = found["study_same_48_plain"]
    assert first["blocks"]["a"]["mixer"] == {"use": "gla", "n_heads": "4", "tau": "8"}
    assert first["blocks"]["b"]["mixer"] == {"use": "gla", "n_heads": "4"}
    assert first["blocks"]["b"]["mlp"] == {"use": "swiglu", "d_ff": "48"}
    assert "norm_eps" not in first["model"]
    last = found["study_other_d_model_wide"]
    assert last["blocks"]["a"]["mixer"] == {"use": "attention", "n_heads": "8"}
    assert last["blocks"]["a"]["mlp"]["d_ff"] == "d_model" and last["blocks"]["b"]["mlp"]["d_ff"] == "24"
    assert last["model"]["d_model"] == "128" and last["model"]["norm_eps"] == "0.000001"


def test_exceptions_change_points_or_leave_them_out(tmp_path: Path) -> None:
    text = WHOLE.replace(MATCH, "") + (
        "where:\n"
        "  - {when: {mixer: selective, ratio: [3:1, 1:0]}, set: {blocks: {linear: {mixer: {conv: 3}}}}}\n"
        '  - {when: {ratio: "3:1", mixer: gated}, skip: true}\n'
    )
    found = {point.name: point for point in made(tmp_path, text)}
    assert list(found) == ["study_0_1", "study_3_1_selective", "study_1_0_gated", "study_1_0_selective"]
    assert "conv: 3}" in found["study_3_1_selective"].text and "conv: 3}" not in found["study_1_0_gated"].text
    assert found["study_0_1"].match is None and found["study_0_1"].parameters > 0


def test_the_base_is_a_file_or_a_packaged_model(tmp_path: Path) -> None:
    """With what it extends, and bodies beside the sweep and beside the base."""
    for place in ("models", "mixers", "base/mixers"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
    body = (
        "params: {n: {type: int, default: 4}}\nbody:\n  y: linear(silu(linear(x, 8 * n)), d_model, name=up)\n"
    )
    (tmp_path / "mixers" / "near.yaml").write_text("mixer: near\n" + body)
    (tmp_path / "base" / "mixers" / "far.yaml").write_text("mixer: far\n" + body)
    (tmp_path / "base" / "whole.yaml").write_text(
        "model: {vocab_size: 64, d_model: 64, n_layers: 2, context: 64}\n"
        "blocks:\n  main: {mixer: {use: far}, mlp: {use: swiglu}}\n"
    )
    (tmp_path / "base" / "more.yaml").write_text("extends: whole.yaml\nmodel: {d_model: 32}\n")
    over = "over:\n  mixer: {at: blocks.*.mixer.use, values: [near, far]}\n"
    points = made(tmp_path, "sweep: study\nbase: base/more.yaml\n" + over)
    assert [point.errors for point in points] == [(), ()]
    assert points[0].parameters == points[1].parameters and "d_model: 32" in points[0].text
    packaged = made(
        tmp_path, "sweep: study\nbase: gla_small\nover:\n  d: {at: model.n_layers, values: [2, 4]}\n"
    )
    assert packaged[1].parameters == cost(REPOSITORY / "specs" / "models" / "gla_small.yaml").parameters


def test_one_point_that_is_no_model_leaves_the_others(tmp_path: Path, points: list[Point]) -> None:
    found = made(tmp_path, WHOLE.replace("head_dim: 16,", "head_dim: 24,"))
    assert [point.name for point in found] == [point.name for point in points]
    assert [bool(point.errors) for point in found] == [False, False, True, False, True]
    assert [point for point in found if not point.errors] == [p for p in points if "selective" not in p.name]
    bad = found[2]
    assert bad.at_context is None and bad.text == "" and bad.errors[0].span.path.endswith("study.yaml")
    (error,) = study(tmp_path / "study.yaml").errors
    assert "study_3_1_selective, study_1_0_selective" in error.note


def test_what_only_one_number_makes_wrong_says_which(tmp_path: Path) -> None:
    text = WHOLE.replace("blocks.*.mlp.d_ff, step: 4", "model.d_model, step: 6, within: 100%")
    errors = [error for point in made(tmp_path, text) for error in point.errors]
    assert errors and all("while `model.d_model` is" in error.note for error in errors)


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("sweep: study", "sweep: 3d", "E208"),
        ("sweep: study", "sweep: class", "E141"),
        ("sweep: study", "sweep: [a]", "E204"),
        ("sweep: study", "sweep: " + "s" * 60, "E140"),
        ("\nspec:", "\nbase: gla_small\nspec:", "E203"),
        ("\nspec:", "\nspecs:", "E202"),
        ("\nspec:\n", "\nbase: gla_smal\nold:\n", "E260"),
        ("spec:\n  model", "spec:\n  extends: nowhere.yaml\n  model", "E260"),
        ("d_model: 64,", "d_model: 64, d_ff: 3,", "E202"),
        ("over:", "over: 3\nnot:", "E204"),
        ("over:", "over: {}\nnot:", "E206"),
        ("over:", "vary:", "E203"),
        ("ratio:\n", "ratio: [1]\n  x:\n", "E204"),
        ("    at: layers", "    on: layers", "E202"),
        ("at: layers", "at: layers..x", "E208"),
        ("at: layers", "at: '*.layers'", "E208"),
        ("at: layers", "at: []", "E204"),
        ("at: layers", "at: extends", "E401"),
        ("at: blocks.linear.mixer", "at: blocks.linear.mixer.use.x", "E401"),
        ("    at: layers\n", "", "E204"),
        ("{gated: {use: gla}, ", "{gated: null, ", "E209"),
        ("{gated: {use: gla}, ", "{a b: {use: gla}, ", "E208"),
        ("values: {0:1: [1 full], 3:1: [3 linear, 1 full], 1:0: [1 linear]}", "values: {}", "E203"),
        ("values: {0:1: [1 full], 3:1: [3 linear, 1 full], 1:0: [1 linear]}", "values: [[1]]", "E204"),
        ("values: {0:1: [1 full], 3:1: [3 linear, 1 full], 1:0: [1 linear]}", "values: [3:1, 3:1]", "E407"),
        ("{gated: {use: gla}, ", "{gated: {extends: a.yaml, use: gla}, ", "E220"),
        ("250K", "250k", "E205"),
        ("250K", "0", "E205"),
        ("250K", "0.1K5", "E205"),
        ("250K", "{mixer: {gated: 250K}}", "E203"),
        ("250K", "{mixers: {gated: 250K}}", "E406"),
        ("250K", "{mixer: 250K}", "E204"),
        ("by: blocks.*.mlp.d_ff, ", "", "E203"),
        ("by: blocks.*.mlp.d_ff", "by: blocks.*.mlb.d_ff", "E401"),
        ("by: blocks.*.mlp.d_ff", "by: blocks.*.mlp.d_f", "E220"),
        ("step: 4", "step: 0", "E206"),
        ("step: 4", "step: 64, from: 65, to: 100", "E206"),
        ("step: 4", "stride: 4", "E202"),
        ("step: 4", "within: 3", "E205"),
        ("step: 4", "within: 200%", "E205"),
        ("tokens: [16, 4096]", "tokens: [16, 0]", "E206"),
        ("tokens: [16, 4096]", "tokens: 2k", "E205"),
        ("tokens: [16, 4096]", "where: {}", "E204"),
        ("tokens: [16, 4096]", "where: [{set: {}}]", "E203"),
        ("tokens: [16, 4096]", "where: [{when: {mixer: gated}}]", "E203"),
        ("tokens: [16, 4096]", "where: [{when: {mixer: gates}, skip: true}]", "E406"),
        ("tokens: [16, 4096]", "where: [{when: {mixer: gated}, skip: no}]", "E222"),
        ("tokens: [16, 4096]", "where: [{when: {mixer: gated}, skip: true, set: {}}]", "E203"),
        ("tokens: [16, 4096]", "where: [{when: {mixer: gated}, set: {extends: a.yaml}}]", "E202"),
        ("tokens: [16, 4096]", "where: [{when: {mixer: [[a]]}, skip: true}]", "E204"),
        ("full: {mixer", "spare: {mixer: {use: gla}, mlp: {use: swiglu}}\n    full: {mixer", "E244"),
    ],
)
def test_every_mistake_has_its_code(tmp_path: Path, old: str, new: str, code: str) -> None:
    assert old in WHOLE
    found = codes(tmp_path, WHOLE.replace(old, new, 1))
    assert code in found, found


def test_mistakes_of_all_sections_come_at_once(tmp_path: Path) -> None:
    text = WHOLE.replace("250K", "250k").replace("at: layers", "at: layers..x").replace("[16, ", "[-1, ")
    assert codes(tmp_path, text) == ["E208", "E205", "E206"]


def test_mistakes_of_the_sweep_are_raised(tmp_path: Path) -> None:
    with pytest.raises(SpecError):
        made(tmp_path, WHOLE.replace("250K", "250k"))
    for mapping in ({"sweep": "s"}, {"sweep": object()}, {}):
        with pytest.raises(SpecError):
            archc.sweep(mapping)


DAMAGE = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.integers(0, 12),
        st.sampled_from(
            ["", "\n", "  ", ":", "- ", ",", "[", "}", "*", ".", "null", "0", "-1", "%", "at", "3:1", "é"]
        ),
    ),
    min_size=1,
    max_size=3,
)


@given(cuts=DAMAGE)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_sweeps_are_refused_cleanly(tmp_path: Path, cuts: list[tuple[float, int, str]]) -> None:
    text = WHOLE
    for where, length, piece in cuts:
        at = int(where * len(text))
        text = text[:at] + piece + text[at + length :]
    path = tmp_path / "damaged.yaml"
    path.write_text(text, newline="")
    sources: dict[str, str] = {}
    assert isinstance(render(check(path, sources), sources), str)


MODELS = sorted((REPOSITORY / "specs" / "models").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_counting_without_names_counts_the_same(path: Path) -> None:
    assert count_parameters(graph_of(path)) == sum(_product(shape) for shape in parameters(path).values())


def test_the_packaged_study() -> None:
    """Two sizes of six mixers in five ratios, and a baseline of each size, in less than ten seconds."""
    begun = time.process_time()
    found = study(PACKAGED)
    taken = time.process_time() - begun
    assert not found.errors and len(found.points) == 2 * (6 * 5 + 1)
    assert all(point.match is not None and abs(point.match.deviation) < 0.8 for point in found.points)
    baselines = [point for point in found.points if "mixer" not in point.values]
    assert [point.values for point in baselines] == [
        {"size": "340m", "ratio": "0:1"},
        {"size": "1.3b", "ratio": "0:1"},
    ]
    for point in found.points:
        caches = [report.cache_bytes for report in point.costs]
        assert caches[1] == 16 * caches[0] and caches[2] == 512 * caches[0]
        assert (point.costs[0].state_bytes == 0) == ("mixer" not in point.values)
        assert (caches[0] == 0) == (point.values["ratio"] == "1:0")
    assert taken < 10 * _slower()


def _slower() -> float:
    """How much slower this machine is than one that takes 0.05 s for this loop."""
    begun = time.process_time()
    total = 0
    for number in range(1_000_000):
        total += number * number % 7
    return max(1.0, (time.process_time() - begun) / 0.05)
