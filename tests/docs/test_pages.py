"""The documentation is done as it is written: every example runs, every output shown is what comes out."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, examples, links, matches
from tests.docs.reader import Reader

NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """A reader in an empty folder, whose packages are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = dict(sys.modules)
    for name in [name for name in before if name.split(".")[0] == "generated"]:
        monkeypatch.delitem(sys.modules, name)
    yield Reader(tmp_path)
    for name in set(sys.modules) - set(before):
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)) or name == "generated":
            del sys.modules[name]


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", NAMES)
def test_examples(name: str, reader: Reader) -> None:
    """Every block of a page, in order."""
    for example in examples(ROOT / name):
        reader.do(example)


@pytest.mark.parametrize("name", NAMES)
def test_links(name: str) -> None:
    """Links lead to files that exist and to headings that they have."""
    page = ROOT / name
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name}: {path}"
        assert not anchor or anchor in anchors(target), f"{name}: {path}#{anchor}"


@pytest.mark.parametrize("name", NAMES)
def test_says_nothing_it_should_not(name: str) -> None:
    """No page speaks of anyone's machine, and no line is wider than the others."""
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"/(home|work|Users|tmp)/", text)
    if text.startswith("<!-- Written by"):
        return
    prose = re.sub(r"```.*?\n```", "", text, flags=re.DOTALL)
    wide = [
        line for line in prose.split("\n") if len(line) > 120 and not line.lstrip().startswith(("|", "-"))
    ]
    assert not wide


def test_the_readme_opens_with_the_two_commands() -> None:
    """`make demo` and `make test`, before anything else."""
    first = next(examples(ROOT / "README.md"))
    assert [line.split("#")[0].split() for line in first.text.split("\n")] == [
        ["make", "demo"],
        ["make", "test"],
    ]
    assert first.line <= 4


def test_forms_of_layers(tmp_path: Path) -> None:
    """Each form in the language's table gives a model, and what the table says of it."""
    from archc.pipeline import graph_of

    text = (ROOT / "docs" / "language.md").read_text(encoding="utf-8")
    forms = re.findall(
        r"^\| `([^`]+)`( without `n_layers`)? \| ", text.partition("**Layers.**")[2], flags=re.M
    )
    found = {}
    for form, own_depth in forms:
        depth = "" if own_depth or "pattern" in form else "n_layers: 10, "
        spec = (
            f"archc: 1\nname: forms\nmodel: {{vocab_size: 8, d_model: 64, {depth}context: 8}}\nblocks:\n"
            "  linear: {mixer: {use: gla}, mlp: {use: swiglu}}\n"
            "  full: {mixer: {use: attention, n_heads: 4}, mlp: {use: swiglu}}\n"
            f"layers: {form}\n"
        )
        (tmp_path / "forms.yaml").write_text(spec, encoding="utf-8")
        found[form] = "".join(key[0] for key in graph_of(tmp_path / "forms.yaml").layers())
    assert list(found.values()) == ["lllflllfll"] * 3 + ["lfl", "lllflllfff", "lllf"]


@pytest.mark.parametrize(
    ("shown", "real", "same"),
    [
        ("a\nb", "a\nb\n", True),
        ("a\nb", "a\nc", False),
        ("a ... (...)", "a 12 (0.3 s)", True),
        ("a\n...\nd", "a\nb\nc\nd", True),
        ("a\n...\nd", "a\nd", True),
        ("a\n...\nd", "a\nb\nc", False),
        ("a.b", "axb", False),
    ],
)
def test_comparing(shown: str, real: str, same: bool) -> None:
    """`...` stands for text, everything else for itself."""
    assert matches(shown, real) is same


def test_the_compiler_is_described_as_it_is() -> None:
    """Every pass in its order, every target of make with its own words, every folder of tests."""
    from archc.passes import PASSES

    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("| pass | does |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE) == [name for name, _ in PASSES]
    text = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):.*## ", makefile, flags=re.MULTILINE)
    assert re.findall(r"^make ([a-z-]+) +#", text, flags=re.MULTILINE) == targets
    assert all((ROOT / "tests" / name).is_dir() for name in re.findall(r"`tests/(\w+)/`", text))
    from archc.cli.app import app

    text = (
        (ROOT / "README.md")
        .read_text(encoding="utf-8")
        .partition("| command | does |")[2]
        .partition("\n\n")[0]
    )
    commands = {str(command.name) for command in app.registered_commands}
    assert set(re.findall(r"^\| `archc (\w+)", text, flags=re.MULTILINE)) == commands
