"""What a user sees of failures: diagnostics, exit codes, JSON, and never a traceback."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner, Result

from archc.cli.answers import json_value
from archc.cli.app import app
from archc.spec.diagnostics import Diagnostic, MachineError, Span, SpecError

RUNNER = CliRunner()
MISTAKE = Diagnostic("E101", "no such thing", Span("model.yaml", 2, 1, 2, 5), help="say something else")


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Stands in for the compiler."""
    module = ModuleType("archc.pipeline")
    monkeypatch.setitem(sys.modules, "archc.pipeline", module)
    return module


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.yaml").write_text("archc: 1\nname: thing\n")
    return "model.yaml"


def run(*arguments: str) -> Result:
    return RUNNER.invoke(app, list(arguments))


def raising(error: BaseException) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise error

    return fail


def test_check_without_mistakes(pipeline: ModuleType, spec: str) -> None:
    pipeline.check = lambda source: []
    done = run("check", spec)
    assert done.exit_code == 0 and done.stdout == "model.yaml: no mistakes\n"
    assert json.loads(run("check", "--json", spec).stdout) == {"diagnostics": []}


def test_check_prints_mistakes_with_their_excerpt(pipeline: ModuleType, spec: str) -> None:
    pipeline.check = lambda source: [MISTAKE]
    done = run("check", spec)
    assert done.exit_code == 1
    for piece in ("E101", "no such thing", "model.yaml:2:1", "name: thing", "say something else"):
        assert piece in done.stdout
    (found,) = json.loads(run("check", "--json", spec).stdout)["diagnostics"]
    assert found["code"] == "E101" and found["line"] == 2 and found["help"] == "say something else"


def test_mistakes_of_a_build_go_to_standard_error(pipeline: ModuleType, spec: str) -> None:
    pipeline.build = raising(SpecError([MISTAKE]))
    done = run("build", spec)
    assert done.exit_code == 1 and "E101" in done.stderr and not done.stdout
    asked = run("build", "--json", spec)
    assert asked.exit_code == 1 and json.loads(asked.stdout)["diagnostics"][0]["code"] == "E101"


@pytest.mark.parametrize(
    "error",
    [
        MachineError("no space left"),
        OSError(28, "No space left on device", "/somewhere"),
        MemoryError(),
        ValueError("a mistake of ours"),
        RecursionError("too deep"),
        AssertionError(),
        KeyError("x" * 10_000),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("command", ["check", "build", "show", "cost", "diff"])
def test_no_failure_shows_a_traceback(
    pipeline: ModuleType, spec: str, error: BaseException, command: str
) -> None:
    for name in ("check", "build", "show", "cost", "parameters"):
        setattr(pipeline, name, raising(error))
    arguments = (command, spec, spec) if command == "diff" else (command, spec)
    done = run(*arguments)
    assert done.exit_code == 3
    assert done.stderr.startswith("archc: ") and "Traceback" not in done.output and len(done.stderr) < 1500
    asked = run(*arguments, "--json")
    assert asked.exit_code == 3 and set(json.loads(asked.stdout)) == {"failure"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "no_such_file.yaml"],
        ["build", "."],
        ["build", "model.yaml", "--force", "--keep"],
        ["build", "model.yaml", "--target", "abacus"],
        ["show", "model.yaml", "--params", "--resolved"],
        ["explain", "E999"],
        ["library", "no_such_entry"],
        ["new", "not-a-name"],
        ["new", "class"],
        ["cost", "model.yaml", "--batch-size", "0"],
        ["frobnicate"],
        ["check"],
        ["check", "--no-such-option", "model.yaml"],
        ["check", "a\0b"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_code_2(pipeline: ModuleType, spec: str, arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.exit_code == 2 and "Traceback" not in done.output


def test_a_misspelt_model_gets_a_suggestion(spec: str) -> None:
    assert "smollm2_135m" in run("check", "smolm2_135m").output


def test_explain_prints_the_page(spec: str) -> None:
    assert "edited by hand" in run("explain", "E901").stdout
    assert json.loads(run("explain", "e901", "--json").stdout)["code"] == "E901"


def test_library_lists_entries_and_prints_one(spec: str) -> None:
    listed = run("library")
    assert listed.exit_code == 0 and "gated_deltanet" in listed.stdout and "arXiv" in listed.stdout
    entries = json.loads(run("library", "--json").stdout)
    assert {entry["kind"] for entry in entries} == {"mixer", "mlp", "block", "function", "model", "sweep"}
    assert all(entry["title"] for entry in entries)
    assert "recurrence(" in run("library", "gated_deltanet").stdout


def test_library_says_what_runs_token_by_token(spec: str) -> None:
    forms = {
        e["name"]: e["form"] for e in json.loads(run("library", "--json").stdout) if e["kind"] == "mixer"
    }
    assert (forms["slstm"], forms["gla"]) == ("sequential", "")
    (line,) = (line for line in run("library").stdout.splitlines() if " slstm " in f" {line} ")
    assert "(sequential)" in line


def test_library_lists_the_users_own_entries_too(spec: str, tmp_path: Path) -> None:
    for place, name in (("mixers", "mine"), ("lib/mlps", "ours"), ("mixers", "gla")):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / f"{name}.yaml").write_text(f"{place[-6:-1]}: {name}\ntitle: Of our own\n")
    (tmp_path / "archc.toml").write_text('[library]\nfolders = ["lib"]\n')
    found = {(e["kind"], e["name"]): e["library"] for e in json.loads(run("library", "--json").stdout)}
    assert found["mixer", "mine"] == "." and found["mlp", "ours"] == "lib"
    assert found["mixer", "gla"] == ".", "the nearer entry hides archc's own"
    assert found["mixer", "kda"] == "archc"
    (tmp_path / "archc.toml").write_text("[library\n")
    assert run("library").exit_code == 1


def test_new_writes_a_spec_once(spec: str, tmp_path: Path) -> None:
    assert run("new", "mine").exit_code == 0
    text = (tmp_path / "mine.yaml").read_text()
    assert "\nname: mine\n" in text and "recurrence(" in text
    again = run("new", "mine")
    assert again.exit_code == 1 and "left as it is" in again.stderr
    assert (tmp_path / "mine.yaml").read_text() == text


def test_facts_become_json() -> None:
    from fractions import Fraction

    assert json_value({"a": (Fraction(8, 3), Fraction(4)), "b": {Path("x")}, "c": Span("p", 1, 2, 3, 4)}) == {
        "a": ["8/3", 4],
        "b": ["x"],
        "c": {"path": "p", "line": 1, "column": 2, "end_line": 3, "end_column": 4},
    }
