"""Shipped models made small: their equations and their layers, with other numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from tests.support.packages import SPECS


def shrunk(name: str, n_layers: int, edits: Mapping[str, Any], layers: Any = None) -> dict[str, Any]:
    """A shipped model with the numbers at some paths replaced: `blocks.main.mixer.n_heads`.

    A path in which a `*` stands for a key holds wherever the rest is there.
    """
    spec: dict[str, Any] = copy.deepcopy(yaml.safe_load((SPECS / "models" / f"{name}.yaml").read_text()))
    spec["model"] |= {"vocab_size": 64, "d_model": 48, "context": 96, "n_layers": n_layers}
    if layers is not None:
        spec["layers"] = layers
    for path, value in edits.items():
        *way, last = path.split(".")
        owners = list(_owners(spec, way, last, "*" in path))
        assert owners, f"{name} has no {path}"
        for owner in owners:
            owner[last] = value
    return spec


def _owners(node: Any, way: list[str], last: str, existing: bool) -> Iterator[dict[str, Any]]:
    if not isinstance(node, dict):
        return
    if not way:
        if last in node or not existing:
            yield node
        return
    for key in node if way[0] == "*" else [way[0]]:
        if key in node:
            yield from _owners(node[key], way[1:], last, existing)
