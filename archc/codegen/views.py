"""What the templates show: everything decided, nothing looked up."""

from __future__ import annotations

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
