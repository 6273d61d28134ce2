"""Bodies of the library with a name, an argument or an axis changed are refused or built, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from archc.pipeline import check, sources_of
from archc.spec.diagnostics import NOWHERE

SPECS = Path(__file__).resolve().parents[2] / "specs"
MIXERS = sorted(path.stem for path in (SPECS / "mixers").glob("*.yaml"))
MLPS = sorted(path.stem for path in (SPECS / "mlps").glob("*.yaml"))
WORD = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
ARGUMENT = re.compile(r",\s*[a-z_0-9=\[\]]+")


def swap_names(text: str, names: list[str], random: Random) -> str:
    """One name of the text becomes another name that stands somewhere in the body."""
    found = list(WORD.finditer(text))
    if not found:
        return text
    at = random.choice(found)
    return text[: at.start()] + random.choice(names) + text[at.end() :]


def drop_argument(text: str, names: list[str], random: Random) -> str:
    """One argument after the first is left out."""
    found = list(ARGUMENT.finditer(text))
    if not found:
        return text
    at = random.choice(found)
    return text[: at.start()] + text[at.end() :]


def change_axes(text: str, names: list[str], random: Random) -> str:
    """One list of axes becomes another."""
    found = list(re.finditer(r"\[[^\]]*\]", text))
    if not found:
        return text
    at = random.choice(found)
    axes = random.sample(names, random.randint(1, 2))
    return text[: at.start()] + f"[{', '.join(axes)}]" + text[at.end() :]


def swap_operator(text: str, names: list[str], random: Random) -> str:
    """One operator becomes another."""
    found = list(re.finditer(r" [-+*/|] ", text))
    if not found:
        return text
    at = random.choice(found)
    return text[: at.start()] + f" {random.choice('+-*/|<')} " + text[at.end() :]


CHANGES = (swap_names, drop_argument, change_axes, swap_operator)


def changed(kind: str, name: str, random: Random) -> dict[str, Any]:
    """A small model around a body of the library in which one to three equations are changed."""
    body = yaml.safe_load((SPECS / f"{kind}s" / f"{name}.yaml").read_text(encoding="utf-8"))
    del body[kind]
    equations: dict[str, str] = {str(key): str(text) for key, text in body["body"].items()}
    names = sorted(
        {word for text in equations.values() for word in WORD.findall(text)} | {"x", "d_model", "layer"}
    )
    for _ in range(random.randint(1, 3)):
        key = random.choice(sorted(equations))
        equations[key] = random.choice(CHANGES)(equations[key], names, random)
    body["body"] = equations
    sizes = {"n_heads": 2, "n_kv_heads": 2, "d_ff": 32, "head_dim": 8}
    use = {"use": "mine", **{size: value for size, value in sizes.items() if size in body.get("params", {})}}
    return {
        "archc": 1,
        "name": "changed",
        "model": {"vocab_size": 32, "d_model": 16, "n_layers": 2, "context": 32},
        f"{kind}s": {"mine": body},
        "blocks": {"main": {"mixer": {"use": "attention", "n_heads": 2}, kind: use}},
    }


@pytest.mark.parametrize(("kind", "names"), [("mixer", MIXERS), ("mlp", MLPS)])
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_changed_bodies_are_refused_or_built(kind: str, names: list[str], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(names))
    spec = changed(kind, name, Random(data.draw(st.integers(0, 10**9))))
    found = check(spec)
    for diagnostic in found:
        assert diagnostic.message and diagnostic.span != NOWHERE, diagnostic
        assert diagnostic.code != "E391", "an exception of an operation, caught"
    if not found:
        for path, text in sources_of(spec).items():
            if path.endswith(".py"):
                compile(text, path, "exec")
