"""How commands answer: facts as text or JSON, failures with the exit code of whose fault it is."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TextIO

import typer

from archc.data import data_folder
from archc.spec.diagnostics import Diagnostic, MachineError, SpecError

DONE, INPUT, USAGE, MACHINE = 0, 1, 2, 3

_LARGEST_EXCERPT = 1_000_000  # bytes of a file that excerpts are taken from, as much as the loader reads


@contextmanager
def answering(as_json: bool = False) -> Iterator[None]:
    """Turn failures inside into what a user sees and the exit code that says whose fault it is."""
    try:
        yield
    except SpecError as error:
        print_diagnostics(error.diagnostics, as_json=as_json, to=sys.stderr)
        raise typer.Exit(INPUT) from None
    except MachineError as error:
        _fail(str(error), MACHINE, as_json)
    except BrokenPipeError:  # the reader of a pipe has gone, which is no failure
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(DONE) from None
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        _fail(f"cannot use{place}: {error.strerror or error}", MACHINE, as_json)
    except MemoryError:
        _fail("out of memory", MACHINE, as_json)
    except Exception as error:
        if isinstance(error, typer.Abort) or hasattr(error, "exit_code"):  # typer's own ways to end a command
            raise
        weights = sys.modules.get("archc.weights.errors")
        if weights is not None and isinstance(error, weights.WeightsError):
            _fail(str(error), INPUT, as_json)
        if os.environ.get("ARCHC_TRACEBACK"):
            traceback.print_exc()
        last = traceback.extract_tb(error.__traceback__)[-1]
        _fail(
            f"archc itself has failed, which is a mistake in archc and not in your spec: "
            f"{type(error).__name__}: {str(error)[:500]} ({Path(last.filename).name}:{last.lineno}). "
            "Set ARCHC_TRACEBACK=1 to see where, and please report it.",
            MACHINE,
            as_json,
        )


def print_json(facts: object) -> None:
    """Print facts as JSON with stable order: dataclasses as objects, exact numbers as numbers or "a/b"."""
    print(json.dumps(json_value(facts), indent=2, ensure_ascii=False))


def json_value(facts: object) -> object:
    """`facts` as what JSON has: objects, lists, numbers, text, true, false and null."""
    if facts is None or isinstance(facts, bool | int | float | str):
        return facts
    if isinstance(facts, Fraction):
        return int(facts) if facts.denominator == 1 else str(facts)
    if dataclasses.is_dataclass(facts) and not isinstance(facts, type):
        return {field.name: json_value(getattr(facts, field.name)) for field in dataclasses.fields(facts)}
    if isinstance(facts, Mapping):
        return {str(key): json_value(value) for key, value in facts.items()}
    if isinstance(facts, set | frozenset):
        return sorted((json_value(value) for value in facts), key=str)
    if isinstance(facts, Iterable):
        return [json_value(value) for value in facts]
    return str(facts)


def print_diagnostics(found: Iterable[Diagnostic], *, as_json: bool, to: TextIO) -> None:
    """Print diagnostics with excerpts, or as one JSON object on standard output."""
    found = list(found)
    from archc.spec.render import render, to_json

    if as_json:
        print_json({"diagnostics": json.loads(to_json(found))})
        return
    colour = to.isatty() and not os.environ.get("NO_COLOR")
    print(render(found, _sources(found), colour=colour).rstrip("\n"), file=to)


def warn(text: str) -> None:
    """Say something on standard error that is not part of the answer."""
    print(text, file=sys.stderr)


def _fail(message: str, code: int, as_json: bool) -> None:
    if as_json:
        print_json({"failure": message})
    else:
        print(f"archc: {message}", file=sys.stderr)
    raise typer.Exit(code) from None


def _file(shown: str) -> Path:
    """The file that diagnostics call `shown`: archc's own library stands under `<archc>`."""
    if shown.startswith("<archc>/"):
        return data_folder("specs") / shown.removeprefix("<archc>/")
    return Path(shown)


def _sources(found: Iterable[Diagnostic]) -> dict[str, str]:
    """The text of every file that a diagnostic points into, where it can be read."""
    sources: dict[str, str] = {}
    for span in (s for d in found for s in (d.span, *(label.span for label in d.labels))):
        if span.path and span.path not in sources:
            try:
                with _file(span.path).open("rb") as file:
                    sources[span.path] = file.read(_LARGEST_EXCERPT).decode(errors="replace")
            except (OSError, ValueError):
                continue
    return sources
