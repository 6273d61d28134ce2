"""Does what a page tells its reader to do: writes files, runs commands, builds specs, executes Python."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from archc.spec.diagnostics import SpecError
from tests.docs.pages import ROOT, Example, matches

# What a fragment is put into: a model around one mixer, with the names that fragments use.
PARAMS = """
    n_heads: {type: int, default: 4}
    n_kv_heads: {type: int, default: 2, divides: n_heads}
    head_dim: {type: int, default: 16}
    conv: {type: int, default: 4}
    rank: {type: int, default: 8}
    n_factors: {type: int, default: 2}
    width: {type: int, default: 16}
    window: {type: int, default: 8}
    theta: {type: number, default: 10000}
"""
MODEL = "archc: 1\nname: {name}\nmodel: {{vocab_size: 64, d_model: 64, n_layers: 2, context: 64}}\n"


class Reader:
    """One reader with an empty folder. Each block of a page is done in order; a failure says where."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.namespace: dict[str, object] = {"__name__": "__main__"}
        self.printed = ""

    def do(self, example: Example) -> None:
        """Do what one block says."""
        if example.note.startswith("not run: "):
            return
        action = getattr(self, f"_{example.language or 'nothing'}", None)
        assert action is not None, f"{example.place}: nobody knows what to do with {example.language!r}"
        with contextlib.chdir(self.folder):
            action(example)

    # -- specs ----------------------------------------------------------------------------------------------

    def _yaml(self, example: Example) -> None:
        """A spec or a library file is checked and built, a sweep checked; a fragment likewise, inside a small model."""
        wanted = example.note.removeprefix("errors: ").split() if example.note.startswith("errors: ") else []
        if example.file:
            path = Path(example.file)
            text = example.text + "\n"
        else:
            path = Path(f"fragment_{example.line}.yaml")
            text = self._around(example, path.stem)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        from archc.pipeline import check, sources_of
        from archc.spec.library import is_sweep

        found = sorted({diagnostic.code for diagnostic in check(path)})
        assert found == sorted(wanted), f"{example.place}: errors {found}, the page says {sorted(wanted)}"
        if not wanted and not is_sweep(path):
            try:
                sources = sources_of(path)
            except SpecError as error:
                raise AssertionError(f"{example.place}: {error}") from error
            for name, source in sources.items():
                if name.endswith(".py"):
                    compile(source, name, "exec")

    def _around(self, example: Example, name: str) -> str:
        kind = example.note.split(":")[0] if not example.note.startswith("errors: ") else "equations"
        assert kind in ("equations", "sections", "model"), f"{example.place}: a fragment of what?"
        if kind == "model":  # top-level sections of a model
            head = MODEL.partition("model:")[0] if example.text.startswith("model:") else MODEL
            return head.format(name=name) + self._completed(example.text)
        if kind == "equations":
            text = f"body:\n{textwrap.indent(example.text, '  ')}\n"
            defined = [
                line.split(":")[0].split(",")[-1].strip()
                for line in example.text.split("\n")
                if line[:1].strip("# ")
            ]
            if "y" not in defined:
                text += f"  y: linear({defined[-1]}, d_model)\n"
        else:
            text = example.text + "\n"
        params = "" if "params:" in text else f"params:{PARAMS}"
        mixer = textwrap.indent(params + text, "    ")
        return (
            f"{MODEL.format(name=name)}mixers:\n  fragment:\n{mixer}"
            "blocks:\n  main: {mixer: {use: fragment}, mlp: {use: swiglu}}\n"
        )

    def _completed(self, text: str) -> str:
        """Sections of a model with a block where the fragment has none."""
        sections = yaml.safe_load(text)
        if "blocks" not in sections:
            text += "\nblocks:\n  main: {mixer: {use: attention, n_heads: 4}, mlp: {use: swiglu}}"
        return text + "\n"

    # -- commands -------------------------------------------------------------------------------------------

    def _console(self, example: Example) -> None:
        """`$ archc ...` and what it prints, compared."""
        for command, shown in _commands(example.text):
            real = self._run(shlex.split(command))
            assert matches(shown, real), f"{example.place}: `{command}` printed\n{real}"

    def _sh(self, example: Example) -> None:
        """Commands without output: archc's are run, make's must exist, others install something."""
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
        for line in example.text.split("\n"):
            words = shlex.split(line, comments=True)
            if not words:
                continue
            assert words[0] in ("archc", "make", "pip"), f"{example.place}: {line}"
            if words[0] == "make":
                named = {word for word in words[1:] if "=" not in word}
                assert named <= targets, f"{example.place}: no target {named - targets}"
            elif words[0] == "archc":
                self._run(words)

    def _run(self, words: Sequence[str]) -> str:
        """What a command prints to both streams together."""
        if words[0] == "cat":
            return Path(words[1]).read_text(encoding="utf-8")
        assert words[0] == "archc", f"no such command here: {words[0]}"
        from archc.cli import main

        printed = io.StringIO()
        before = sys.argv, dict(os.environ)
        sys.argv = ["archc", *words[1:]]
        os.environ |= {"COLUMNS": "110", "NO_COLOR": "1", "TERM": "dumb"}
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                main()
        except SystemExit:
            pass  # a command that fails says so, and the page shows it
        finally:
            sys.argv = before[0]
            os.environ.clear()
            os.environ.update(before[1])
        return printed.getvalue()

    # -- Python ---------------------------------------------------------------------------------------------

    def _python(self, example: Example) -> None:
        """A file is written, a cut compared with the file it is cut from, everything else executed."""
        if example.note.startswith("cut: "):
            _check_cut(example, self._run_cut(example))
        elif example.file:
            Path(example.file).parent.mkdir(parents=True, exist_ok=True)
            Path(example.file).write_text(example.text + "\n", encoding="utf-8")
        else:
            printed = io.StringIO()
            source = "\n" * example.line + example.text
            with contextlib.redirect_stdout(printed):
                exec(compile(source, str(example.page), "exec"), self.namespace)
            self.printed = printed.getvalue()

    def _run_cut(self, example: Example) -> str:
        path = Path(example.note.removeprefix("cut: "))
        if not path.exists():  # `generated/NAME/...` comes from NAME.yaml
            self._run(["archc", "build", f"{path.parts[1]}.yaml"])
        return path.read_text(encoding="utf-8")

    def _toml(self, example: Example) -> None:
        """A file."""
        import tomllib

        tomllib.loads(example.text)
        if example.file:
            Path(example.file).write_text(example.text + "\n", encoding="utf-8")

    def _text(self, example: Example) -> None:
        """What the Python block before it printed."""
        assert matches(example.text, self.printed), f"{example.place}: printed\n{self.printed}"


def _commands(text: str) -> Iterator[tuple[str, str]]:
    """Each command with the lines that it prints."""
    for block in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, shown = block.partition("\n")
        yield command, shown


def _check_cut(example: Example, real: str) -> None:
    """Between the lines `...`, the cut's lines stand in the file one after the other, and in this order."""
    at = 0
    for piece in re.split(r"^\s*\.\.\.\n", example.text + "\n", flags=re.MULTILINE):
        found = real.find(piece, at)
        assert found >= 0, f"{example.place}: not in the file, or not in this order:\n{piece}"
        at = found + len(piece)
