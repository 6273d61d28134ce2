"""What the templates show: everything decided, nothing looked up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MODEL_NUMBERS = ("d_model", "n_layers", "vocab_size", "context")


@dataclass(slots=True)
class ClassView:
    """One class of `model.py`."""

    name: str
    title: str
    source: str = ""
    equations: list[str] = field(default_factory=list)
    arguments: str = ""  # of the constructor, beside the config
    numbers: list[str] = field(default_factory=list)
    constructor: list[str] = field(default_factory=list)
    initial: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    signature: str = ""  # empty: the class only holds weights
    forward: list[str] = field(default_factory=list)
    watched: list[str] = field(default_factory=list)  # values that are only computed to be captured
    result: str = ""
    base: str = "nn.Module"
    returns: str = "Tensor"
    joined: list[str] = field(default_factory=list)  # matrices that decoding on a GPU reads as one each
    has_place: bool = True  # it is told where its tokens lie, and what of it is captured
    imports: set[tuple[str, str]] = field(default_factory=set)
    modules_used: set[str] = field(default_factory=set)


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
