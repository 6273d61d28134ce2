"""What the classes of a package are called, and what they are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Names:
    """Names that several classes share, by module key.

    `classes`: the class. `owners`: what `forward` needs beside the place, name -> class ("mixer", "site").
    `layer`, `sites`: whether the constructor takes the layer's number, the count of sites.
    """

    classes: Mapping[str, str]
    owners: Mapping[str, Mapping[str, str]]
    layer: Mapping[str, bool]
    sites: Mapping[str, bool]
    counted: frozenset[str]  # bodies that know which of their places they stand at

    def constructor(self, key: str) -> str:
        """The arguments that build a module: `config, layer`."""
        return ", ".join(
            ["config", *(["layer"] if self.layer[key] else []), *(["sites"] if self.sites[key] else [])]
        )

    def call_arguments(self, key: str, own: Mapping[str, str]) -> Sequence[str]:
        """The arguments that a call of a module needs beside its inputs; `own` gives them by name."""
        return [own[name] for name in self.owners[key]]
