"""Targets: the limits and rates of a GPU, and the tiles that its kernels use; rows of specs/targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from archc.data import data_folder


@dataclass(frozen=True, slots=True)
class Tile:
    """How one kernel is cut: value columns of a program and the launch's warps and stages."""

    columns: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class Target:
    """A GPU. Bytes, bytes a second, FLOP a second, hertz."""

    name: str
    title: str
    backend: str
    arch: int | str
    warp_size: int
    multiprocessors: int
    shared_memory: int
    bandwidth: float
    matrix_rate: Mapping[str, float]
    exponentials: int
    clock: float
    matrix_instruction: str
    tiles: tuple[Mapping[str, Any], ...]

    def tile(self, role: str, **facts: object) -> Tile | None:
        """The first row for the role whose other conditions equal the facts (decay, erase, K, V, dtype), if any.

        A condition that is a list holds if it contains the fact; a fact that a row does not name is free.
        """
        settings = ("role", "columns", "num_warps", "num_stages", "screened")
        for row in self.tiles:
            conditions = {key: value for key, value in row.items() if key not in settings}
            if row["role"] == role and all(
                facts.get(key) in (value if isinstance(value, list) else [value])
                for key, value in conditions.items()
            ):
                return Tile(row.get("columns", 0), row["num_warps"], row["num_stages"])
        return None


def target_names() -> list[str]:
    """All targets with kernels, sorted."""
    return sorted(file.stem for file in (data_folder("specs") / "targets").glob("*.yaml"))


@cache
def load_target(name: str) -> Target:
    """The target of that name. Raises ValueError for one that is not there."""
    if name not in target_names():
        raise ValueError(f"there is no target {name!r}; there are cpu, {', '.join(target_names())}")
    found = yaml.safe_load((data_folder("specs") / "targets" / f"{name}.yaml").read_text(encoding="utf-8"))
    numbers = {key: float(found[key]) for key in ("bandwidth", "clock")}
    rates = {key: float(value) for key, value in found["matrix_rate"].items()}
    tiles = tuple(found.pop("tiles"))
    return Target(found.pop("target"), **{**found, **numbers, "matrix_rate": rates}, tiles=tiles)
