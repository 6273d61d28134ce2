"""Targets: the limits and rates of a GPU, and the tiles that its kernels use; rows of specs/targets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from typing import Any, get_args

from archc.data import data_folder
from archc.spec.diagnostics import Reporter, Span
from archc.spec.yaml_nodes import YMapping, YNode, YScalar, YSequence, core_value
from archc.spec.yaml_reader import parse
from archc.tiles.kind import DECAYS, ERASES, Normalize

SETTINGS = ("role", "columns", "channels", "chunk", "num_warps", "num_stages", "screened")
"""What a row of `tiles` says of a kernel; everything else in it is a condition."""


@dataclass(frozen=True, slots=True)
class Tile:
    """How one kernel is cut: value columns of a program, the launch's warps and stages, key channels at once.

    chunk: the most tokens of a chunk, in rows of walks; None where the class's own fits.
    """

    columns: int
    num_warps: int
    num_stages: int
    channels: int = 256
    chunk: int | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A GPU. Bytes, bytes a second, FLOP a second, hertz.

    matrix_rate: by type of the operands; a type that is not there has no matrix instruction. shared_memory: of a
    block. tensor_memory: columns of it, 0 on a GPU that has none. vector_rate: of float32 beside the matrix unit.
    exponentials: of a multiprocessor and clock. What no public source gives is None: the limit or the bound that needs
    it is then unknown, not zero.
    gated_gradients_since: the first version of Triton that compiles products under a decay rightly in a backward, None
    where no version is known not to.
    """

    name: str
    title: str
    backend: str
    arch: int | str
    warp_size: int
    multiprocessors: int
    shared_memory: int
    bandwidth: float
    matrix_rate: Mapping[str, float]
    matrix_instruction: str
    tensor_memory: int = 0
    vector_rate: float | None = None
    exponentials: int | None = None
    gated_gradients_since: tuple[int, ...] | None = None
    clock: float | None = None
    tiles: tuple[Mapping[str, Any], ...] = field(default=())

    @property
    def screened(self) -> tuple[str, ...]:
        """The versions of Triton by which every row was seen to fit that was seen to fit by any."""
        seen = [set(row["screened"]) for row in self.tiles if "screened" in row]
        return tuple(sorted(set.intersection(*seen))) if seen else ()

    def tile(self, role: str, **facts: object) -> Tile | None:
        """The first row for the role whose other conditions equal the facts (decay, erase, K, V, ...), if any.

        A condition that is a list holds if it contains the fact; a fact that a row does not name is free.
        """
        for row in self.tiles:
            if row["role"] == role and all(
                facts.get(key) in (value if isinstance(value, tuple) else (value,))
                for key, value in _conditions(row).items()
            ):
                return Tile(
                    row.get("columns", 0),
                    row["num_warps"],
                    row["num_stages"],
                    row.get("channels", 256),
                    row.get("chunk"),
                )
        return None


def target_names() -> list[str]:
    """All targets with kernels, sorted."""
    return sorted(file.stem for file in (data_folder("specs") / "targets").glob("*.yaml"))


@cache
def load_target(name: str) -> Target:
    """The target of that name. Raises ValueError for one that is not there, SpecError for a file with mistakes."""
    if name not in target_names():
        raise ValueError(f"there is no target {name!r}; there are cpu, {', '.join(target_names())}")
    file = data_folder("specs") / "targets" / f"{name}.yaml"
    return read_target(file.read_text(encoding="utf-8"), f"<archc>/targets/{name}.yaml")


def read_target(text: str, path: str) -> Target:
    """A target from the text of its file. Raises SpecError with every mistake, each at its line."""
    reader = _Reader(Reporter())
    root = parse(text, path, reader.report)
    reader.report.raise_if_any()
    found = reader.mapping(root, _FIELDS, Span(path, 1, 1, 1, 1)) if root is not None else {}
    for name in _NEEDED:
        if name not in found and not reader.report.diagnostics:
            reader.fail(root, f"`{name}` is missing", path)
    reader.report.raise_if_any()
    return Target(found.pop("target"), **found)


# -- reading ------------------------------------------------------------------------------------------------------


def _conditions(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in SETTINGS}


@dataclass(slots=True)
class _Reader:
    """Turns nodes into values; what is wrong goes to the reporter, and the value is then None."""

    report: Reporter

    def fail(self, node: YNode | None, message: str, path: str = "") -> None:
        span = node.span if node is not None else Span(path, 1, 1, 1, 1)
        self.report.error("E503", message, span)

    def mapping(self, node: YNode, fields: Mapping[str, _Field], where: Span) -> dict[str, Any]:
        """The entries of a mapping, each read by its field."""
        if not isinstance(node, YMapping):
            self.fail(node, "here stand names with values, as `title: ...`")
            return {}
        found = {}
        for key, value in node.entries:
            if key.text not in fields:
                self.fail(key, f"there is no `{key.text}` here; there are {', '.join(fields)}")
            elif (read := fields[key.text](self, value, key.text)) is not None:
                found[key.text] = read
        return found


_Field = Callable[[_Reader, YNode, str], Any]


def _scalar(reader: _Reader, node: YNode, name: str) -> Any:
    if isinstance(node, YScalar):
        return core_value(node)
    reader.fail(node, f"`{name}` is one value")
    return None


def _word(*choices: str) -> _Field:
    """One word, of the choices if there are any."""

    def read(reader: _Reader, node: YNode, name: str) -> str | None:
        value = _scalar(reader, node, name)
        if isinstance(value, str) and (not choices or value in choices):
            return value
        if isinstance(node, YScalar):
            reader.fail(node, f"`{name}` is {' or '.join(choices) or 'a text'}, not {node.raw}")
        return None

    return read


def _count(*choices: int, multiple: int = 1, least: int = 1) -> _Field:
    """A whole number, of the choices if there are any."""
    wanted = ", ".join(map(str, choices))
    wanted = f"one of {wanted}" if wanted else f"a whole number of at least {least}"
    wanted += f" and a multiple of {multiple}" if multiple > 1 else ""

    def read(reader: _Reader, node: YNode, name: str) -> int | None:
        value = _scalar(reader, node, name)
        if (
            isinstance(value, Fraction)
            and value.denominator == 1
            and value >= least
            and value % multiple == 0
        ):
            if not choices or value in choices:
                return int(value)
        if isinstance(node, YScalar):
            reader.fail(node, f"`{name}` is {wanted}, not {node.raw}")
        return None

    return read


def _rate(reader: _Reader, node: YNode, name: str) -> float | None:
    value = _scalar(reader, node, name)
    if isinstance(value, Fraction) and value > 0:
        return float(value)
    if isinstance(node, YScalar):
        reader.fail(node, f"`{name}` is a number above 0, not {node.raw}")
    return None


def _rates(reader: _Reader, node: YNode, name: str) -> dict[str, float]:
    return reader.mapping(node, dict.fromkeys(("bf16", "fp16", "tf32", "fp32"), _rate), node.span)


def _arch(reader: _Reader, node: YNode, name: str) -> int | str | None:
    value = _scalar(reader, node, name)
    if isinstance(value, Fraction) and value.denominator == 1:
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"gfx[0-9a-f]+", value):
        return value
    if isinstance(node, YScalar):
        reader.fail(node, f"`{name}` is a number such as 90, or a name such as gfx942, not {node.raw}")
    return None


def _some(inner: _Field) -> _Field:
    """A condition: one value, or a list of them of which one is met."""

    def read(reader: _Reader, node: YNode, name: str) -> Any:
        if isinstance(node, YSequence):
            return tuple(inner(reader, item, name) for item in node.items)
        return inner(reader, node, name)

    return read


def _version(reader: _Reader, node: YNode, name: str) -> tuple[int, ...] | None:
    if isinstance(node, YScalar) and re.fullmatch(r"\d+\.\d+\.\d+", node.text):
        return tuple(map(int, node.text.split(".")))
    reader.fail(node, f"`{name}` is a version of Triton, as 3.7.1")
    return None


def _versions(reader: _Reader, node: YNode, name: str) -> tuple[str, ...] | None:
    items = node.items if isinstance(node, YSequence) else ()
    texts = tuple(item.text for item in items if isinstance(item, YScalar))
    if len(texts) == len(items) > 0 and all(re.fullmatch(r"\d+\.\d+\.\d+", text) for text in texts):
        return texts
    reader.fail(node, f"`{name}` is a list of versions of Triton, as [3.7.1]")
    return None


def _tiles(reader: _Reader, node: YNode, name: str) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(node, YSequence):
        reader.fail(node, f"`{name}` is a list of rows")
        return ()
    rows: list[dict[str, Any]] = []
    for item in node.items:
        before = len(reader.report.diagnostics)
        row = reader.mapping(item, _ROW, item.span)
        if len(reader.report.diagnostics) > before:
            continue
        for needed in ("role", "num_warps", "num_stages"):
            if needed not in row:
                reader.fail(item, f"this row does not say its `{needed}`")
        hidden = next((line for line, earlier in enumerate(rows, 1) if _covers(earlier, row)), None)
        if hidden is not None:
            reader.fail(item, f"this row is never used: row {hidden} holds wherever it does")
        rows.append(row)
    return tuple(rows)


def _covers(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> bool:
    """Whether the earlier of two rows is taken wherever the later one could be."""

    def values(value: Any) -> set[Any]:
        return set(value) if isinstance(value, tuple) else {value}

    return earlier.get("role") == later.get("role") and all(
        key in later and values(later[key]) <= values(value) for key, value in _conditions(earlier).items()
    )


_FIELDS: dict[str, _Field] = {
    "target": _word(),
    "title": _word(),
    "backend": _word("cuda", "hip"),
    "arch": _arch,
    "warp_size": _count(32, 64),
    "multiprocessors": _count(),
    "shared_memory": _count(),
    "tensor_memory": _count(),
    "bandwidth": _rate,
    "matrix_rate": _rates,
    "vector_rate": _rate,
    "exponentials": _count(),
    "gated_gradients_since": _version,
    "clock": _rate,
    "matrix_instruction": _word("mma", "wgmma", "tcgen05", "mfma"),
    "tiles": _tiles,
}
_OPTIONAL = ("tensor_memory", "vector_rate", "exponentials", "gated_gradients_since", "clock", "tiles")
_NEEDED: Iterable[str] = tuple(name for name in _FIELDS if name not in _OPTIONAL)
_ROW: dict[str, _Field] = {
    "role": _word(),
    "columns": _count(16, 32, 64, 128, 256),
    "channels": _count(16, 32, 64, 128, 256),
    "chunk": _count(16, 32, 64),
    "num_warps": _count(1, 2, 4, 8, 16),
    "num_stages": _count(1, 2, 3, 4, 5),
    "screened": _versions,
    "decay": _some(_word(*DECAYS)),
    "erase": _some(_word(*ERASES)),
    "normalize": _some(_word(*get_args(Normalize))),
    "K": _some(_count(multiple=16)),
    "V": _some(_count(multiple=16)),
    "dtype": _some(_word("bf16", "fp16", "fp32")),
}
