"""`archc sweep`: what it prints, what it writes, and its exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import archc
from archc.cli.app import app

RUNNER = CliRunner()

STUDY = """
sweep: study
title: A small study
source: nobody
spec:
  model: {vocab_size: 128, d_model: 64, n_layers: 4, context: 64}
  blocks:
    linear: {mixer: {use: gla}, mlp: {use: swiglu, multiple_of: 8}}
    full: {mixer: {use: attention, n_heads: 4}, mlp: {use: swiglu, multiple_of: 8}}
over:
  ratio:
    at: layers
    values: {0:1: [1 full], 3:1: [3 linear, 1 full]}
  mixer:
    at: blocks.linear.mixer
    values: {gated: {use: gla}, selective: {use: mamba2, head_dim: 16, d_state: 16}}
match: {parameters: 250K, by: blocks.*.mlp.d_ff, step: 4}
tokens: [16, 4096]
"""
NAMES = ["study_0_1", "study_3_1_gated", "study_3_1_selective"]
BROKEN = STUDY.replace("head_dim: 16,", "head_dim: 24,")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(STUDY)
    (tmp_path / "broken.yaml").write_text(BROKEN)
    return tmp_path


def run(*arguments: str) -> Result:
    return RUNNER.invoke(app, ["sweep", *arguments])


def test_the_table_has_a_row_for_each_point(folder: Path) -> None:
    done = run("study.yaml")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "study: A small study"
    head = "ratio mixer d_ff parameters off prefill decode training state cache 16 cache 4,096"
    assert lines[1].split() == head.split()
    rows = [line.split() for line in lines[2:5]]
    assert [row[:2] for row in rows] == [["0:1", "any"], ["3:1", "gated"], ["3:1", "selective"]]
    for row, point in zip(rows, archc.sweep("study.yaml"), strict=True):
        assert point.match is not None
        assert row[2] == str(point.match.number) and row[5] == f"{point.match.deviation:+.2f}%"
    assert lines[5].startswith("3 models from 4 combinations. ")


def test_json_has_everything(folder: Path) -> None:
    found = json.loads(run("study.yaml", "--json").stdout)
    assert found["title"] == "A small study" and found["source"] == "nobody"
    assert found["axes"] == ["ratio", "mixer"] and found["tokens"] == [16, 4096]
    assert [point["name"] for point in found["points"]] == NAMES
    for shown, point in zip(found["points"], archc.sweep("study.yaml"), strict=True):
        assert point.match is not None
        assert shown["values"] == point.values and shown["parameters"] == point.parameters
        assert shown["match"]["number"] == point.match.number and shown["match"]["wanted"] == 250_000
        assert shown["match"]["deviation_percent"] == pytest.approx(point.match.deviation, abs=1e-4)
        assert [cost["tokens"] for cost in shown["costs"]] == [64, 16, 4096]
        for cost, report in zip(shown["costs"][1:], point.costs, strict=True):
            assert cost["prefill_flops_per_token"] == round(report.prefill_flops / report.tokens)
            assert cost["training_flops_per_token"] == round(report.training_flops / report.tokens)
            for name in ("state_bytes", "window_bytes", "cache_bytes"):
                assert cost[name] == getattr(report, name)
            assert cost["decode_flops_per_token"] == report.decode_flops


def test_csv_has_a_line_for_each_length(folder: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(run("study.yaml", "--csv").stdout)))
    assert [(row["name"], row["tokens"]) for row in rows] == [(n, t) for n in NAMES for t in ("16", "4096")]
    points = {point.name: point for point in archc.sweep("study.yaml")}
    for row in rows:
        point = points[row["name"]]
        report = next(cost for cost in point.costs if str(cost.tokens) == row["tokens"])
        assert row["mixer"] == point.values.get("mixer", "") and int(row["parameters"]) == point.parameters
        assert int(row["cache_bytes"]) == report.cache_bytes and row["error"] == ""


def test_a_window_has_a_column(folder: Path) -> None:
    text = STUDY.replace("n_heads: 4}", "n_heads: 4, window: 8}")
    (folder / "study.yaml").write_text(text)
    assert " windows " in run("study.yaml").stdout
    assert " windows " not in run("broken.yaml").stdout


def test_specs_are_written_and_are_models(folder: Path) -> None:
    done = run("study.yaml", "--out", "specs")
    assert done.exit_code == 0 and done.stdout.endswith("specs: 3 specs written\n")
    assert sorted(os.listdir("specs")) == ["manifest.json", *(f"{name}.yaml" for name in NAMES)]
    for name in NAMES:
        path = f"specs/{name}.yaml"
        assert archc.check(path) == []
        assert archc.build(path, f"generated/{name}").name == name
    before = {name: (folder / "specs" / f"{name}.yaml").read_bytes() for name in NAMES}
    again = run("study.yaml", "--out", "specs")
    assert again.exit_code == 0 and again.stdout.endswith("specs: nothing to change\n")
    assert before == {name: (folder / "specs" / f"{name}.yaml").read_bytes() for name in NAMES}


def test_edited_specs_are_protected(folder: Path) -> None:
    run("study.yaml", "--out", "specs")
    edited = folder / "specs" / "study_0_1.yaml"
    edited.write_text("mine")
    refused = run("study.yaml", "--out", "specs")
    assert refused.exit_code == 1 and "E901" in refused.stderr and edited.read_text() == "mine"
    kept = run("study.yaml", "--out", "specs", "--keep")
    assert kept.exit_code == 0 and edited.read_text() == "mine" and "edited by hand" in kept.stderr
    forced = run("study.yaml", "--out", "specs", "--force")
    assert forced.exit_code == 0 and edited.read_text() != "mine"


def test_a_folder_of_something_else_is_left_alone(folder: Path) -> None:
    (folder / "specs").mkdir()
    (folder / "specs" / "thesis.txt").write_text("mine")
    refused = run("study.yaml", "--out", "specs")
    assert refused.exit_code == 1 and "E902" in refused.stderr
    assert os.listdir("specs") == ["thesis.txt"]


def test_a_point_that_is_no_model_is_shown_and_the_others_too(folder: Path) -> None:
    done = run("broken.yaml", "--out", "specs")
    assert done.exit_code == 1
    rows = [line.split() for line in done.stdout.splitlines()[2:5]]
    assert rows[2] == ["3:1", "selective", "error", "E224"]
    assert len(rows[0]) == len(rows[1]) > 10
    assert "study_3_1_selective" in done.stderr and "broken.yaml:16" in done.stderr
    assert "nothing is written to specs: 1 of 3 points" in done.stderr and not Path("specs").exists()
    good, _, bad = json.loads(run("broken.yaml", "--json").stdout)["points"]
    assert bad["errors"][0]["code"] == "E224" and bad["errors"][0]["line"] == 16 and "costs" in good
    assert run("broken.yaml", "--json").exit_code == 1
    rows = list(csv.DictReader(io.StringIO(run("broken.yaml", "--csv").stdout)))
    assert [row["error"] for row in rows] == ["", "", "", "", "E224"]


def test_mistakes_of_the_file_have_their_place(folder: Path) -> None:
    (folder / "study.yaml").write_text(STUDY.replace("250K", "much"))
    done = run("study.yaml")
    assert done.exit_code == 1 and "study.yaml:17:" in done.stderr and "E205" in done.stderr
    assert not done.stdout
    asked = run("study.yaml", "--json")
    assert asked.exit_code == 1 and json.loads(asked.stdout)["diagnostics"][0]["code"] == "E205"


@pytest.mark.parametrize(
    "arguments",
    [
        ["no_such_file.yaml"],
        ["."],
        ["study.yaml", "--force", "--keep"],
        ["study.yaml", "--csv", "--json"],
        [],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_code_2(folder: Path, arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_a_misspelt_name_gets_a_suggestion(folder: Path) -> None:
    assert "hybrid_linear_attention" in run("hybrid_linear_atention").output


def test_check_reads_sweeps_and_build_says_what_they_are(folder: Path) -> None:
    assert RUNNER.invoke(app, ["check", "study.yaml"]).stdout == "study.yaml: no mistakes\n"
    assert "E224" in RUNNER.invoke(app, ["check", "broken.yaml"]).stdout
    for command in ("build", "cost", "show"):
        done = RUNNER.invoke(app, [command, "study.yaml"])
        assert done.exit_code == 1 and "E201" in done.stderr and "archc sweep" in done.stderr
    refused = run(str(Path(archc.__file__).parents[1] / "specs" / "models" / "gla_small.yaml"))
    assert refused.exit_code == 1 and "E201" in refused.stderr


def test_the_library_lists_sweeps_and_prints_them(folder: Path) -> None:
    entries = json.loads(RUNNER.invoke(app, ["library", "--json"]).stdout)
    assert "hybrid_linear_attention" in [entry["name"] for entry in entries if entry["kind"] == "sweep"]
    assert "sweep: hybrid" in RUNNER.invoke(app, ["library", "hybrid_linear_attention"]).stdout
    assert json.loads(RUNNER.invoke(app, ["schema", "sweep"]).stdout)["title"] == "archc sweep"
