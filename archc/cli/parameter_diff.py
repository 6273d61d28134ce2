"""What becomes of a checkpoint when a spec changes: parameters kept, renamed, reshaped, new and gone."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]

_INDEX = re.compile(r"(?<=\.)\d+(?=\.|$)")
_LIKE_ENOUGH = 0.5  # of difflib's ratio, below which two names of one shape are a coincidence


@dataclass(frozen=True, slots=True)
class ParameterDiff:
    """The parameters of two models, compared. `renamed` and `reshaped` are old -> new."""

    kept: tuple[str, ...]
    renamed: Mapping[str, str]
    reshaped: Mapping[str, tuple[Shape, Shape]]
    new: Mapping[str, Shape]
    gone: Mapping[str, Shape]


def compare(old: Mapping[str, Shape], new: Mapping[str, Shape]) -> ParameterDiff:
    """Compare parameters by name and shape.

    A parameter counts as renamed when one of the same shape is gone in exactly the same layers and the names
    are alike; the most alike names are paired first.
    """
    gone = {name: shape for name, shape in old.items() if name not in new}
    fresh = {name: shape for name, shape in new.items() if name not in old}
    renamed = _renamed(gone, fresh)
    return ParameterDiff(
        kept=tuple(name for name, shape in old.items() if new.get(name) == shape),
        renamed=renamed,
        reshaped={n: (s, new[n]) for n, s in old.items() if n in new and new[n] != s},
        new={name: shape for name, shape in fresh.items() if name not in renamed.values()},
        gone={name: shape for name, shape in gone.items() if name not in renamed},
    )


def summarise(names: Iterable[str]) -> list[str]:
    """Names with the numbers of layers folded together: `layers.{0-2,4}.mixer.q.weight`."""
    folded: dict[str, list[int]] = defaultdict(list)
    for name in names:
        template, indices = _template(name)
        folded[template] += indices[:1]
    return [_fold(template, indices) for template, indices in folded.items()]


def summarise_renames(renamed: Mapping[str, str]) -> list[str]:
    """`old -> new`, folded the same way on both sides."""
    folded: dict[tuple[str, str], list[int]] = defaultdict(list)
    for old, new in renamed.items():
        (template, indices), (other, _) = _template(old), _template(new)
        folded[template, other] += indices[:1]
    return [f"{_fold(a, indices)} -> {_fold(b, indices)}" for (a, b), indices in folded.items()]


def _fold(template: str, indices: list[int]) -> str:
    return template.replace("*", _ranges(indices), 1) if indices else template


def _renamed(gone: Mapping[str, Shape], fresh: Mapping[str, Shape]) -> dict[str, str]:
    old_groups, new_groups = _groups(gone), _groups(fresh)
    candidates = sorted(
        (
            (difflib.SequenceMatcher(None, a, b).ratio(), a, b, shape_a)
            for (a, shape_a), places_a in old_groups.items()
            for (b, shape_b), places_b in new_groups.items()
            if shape_a == shape_b and places_a.keys() == places_b.keys()
        ),
        key=lambda c: (-c[0], c[1], c[2]),
    )
    found: dict[str, str] = {}
    taken: set[tuple[str, Shape]] = set()
    for ratio, a, b, shape in candidates:
        sources = old_groups[a, shape]
        if ratio < _LIKE_ENOUGH or (b, shape) in taken or any(name in found for name in sources.values()):
            continue
        taken.add((b, shape))
        found |= {sources[place]: new_groups[b, shape][place] for place in sources}
    return found


def _groups(parameters: Mapping[str, Shape]) -> dict[tuple[str, Shape], dict[tuple[int, ...], str]]:
    """Parameters that differ only by the numbers in their names: (template, shape) -> numbers -> name."""
    groups: dict[tuple[str, Shape], dict[tuple[int, ...], str]] = defaultdict(dict)
    for name, shape in parameters.items():
        template, indices = _template(name)
        groups[template, shape][tuple(indices)] = name
    return groups


def _template(name: str) -> tuple[str, list[int]]:
    return _INDEX.sub("*", name), [int(number) for number in _INDEX.findall(name)]


def _ranges(numbers: list[int]) -> str:
    """`{0-2,4}`, or the number alone where there is one."""
    pieces: list[list[int]] = []
    for number in sorted(set(numbers)):
        if pieces and number == pieces[-1][-1] + 1:
            pieces[-1].append(number)
        else:
            pieces.append([number])
    text = ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in pieces)
    return text if len(numbers) == 1 else "{" + text + "}"
