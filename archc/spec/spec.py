"""The resolved spec: bodies of equations bound to their arguments, and the order of the layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from archc.spec.diagnostics import Span
from archc.spec.expressions import Expr, ListExpr

# What a static expression can come to. A float stands for an infinity only; every other number is exact.
Static = Fraction | float | bool | str | None | tuple["Static", ...] | Mapping[str, "Static"]


@dataclass(frozen=True, slots=True)
class Param:
    """A declared parameter. `default` is an expression over other statics; `required` if there is none."""

    name: str
    span: Span
    type: str  # int, number, bool, choice, list, mapping, axes, function, text or any
    default: Expr | Static = None
    required: bool = False
    minimum: Fraction | None = None
    maximum: Fraction | None = None
    choices: tuple[str, ...] = ()
    of: str | None = None  # element type of a list
    length: int | None = None
    divides: Expr | None = None  # this parameter divides that one
    help: str = ""
    entries: Mapping[str, Param] = field(default_factory=dict)  # what a mapping may hold; empty: not declared


@dataclass(frozen=True, slots=True)
class Target:
    """A name that an equation defines."""

    name: str
    span: Span


@dataclass(frozen=True, slots=True)
class Equation:
    """`targets: text`."""

    targets: tuple[Target, ...]
    expr: Expr
    text: str
    span: Span


@dataclass(frozen=True, slots=True)
class Input:
    """A declared input of a body: `x: [d_model]`. Axes with `...` or unbound names are variables."""

    name: str
    axes: ListExpr | None  # None: the default `[d_model]`
    span: Span


@dataclass(frozen=True, slots=True)
class Body:
    """A list of equations under a name: a mixer, an MLP, a block, a function or a part."""

    kind: str  # "mixer", "mlp", "block", "function", "part"
    name: str
    span: Span
    title: str = ""
    source: str = ""
    inputs: tuple[Input, ...] = ()
    params: Mapping[str, Param] = field(default_factory=dict)
    sizes: Mapping[str, Expr] = field(default_factory=dict)
    slots: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # slot -> kinds it accepts
    parts: Mapping[str, Body] = field(default_factory=dict)
    exports: tuple[Target, ...] = ()
    equations: tuple[Equation, ...] = ()
    losses: tuple[Equation, ...] = ()
    updates: tuple[Equation, ...] = ()  # the value of a buffer after a training step
    init: Expr | None = None  # the default init of this body's weights


@dataclass(frozen=True, slots=True)
class Use:
    """A body bound to arguments. Arguments hold given values and defaults alike, for every parameter.

    Arguments and defaults are written in the body's own names: parameters, sizes and the model's statics.
    """

    body: Body
    arguments: Mapping[str, Expr | Static]
    given: frozenset[str]  # names of the arguments that the user wrote
    span: Span
    slots: Mapping[str, Use | Shared] = field(default_factory=dict)
    base: Body | None = None  # the body before equations were replaced here; None: nothing was replaced
    init: Expr | None = None  # a default init given at this use, before the body's and the model's


@dataclass(frozen=True, slots=True)
class Shared:
    """A slot filled by shared bodies, taken in turn over the sites of the block: A, B, A, B."""

    names: tuple[str, ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Layers:
    """The order of the blocks.

    `names` has one entry a layer. `cycle` is the group that repeats, such as `(("linear", 3), ("full", 1))`,
    empty when the order is explicit.
    """

    names: tuple[str, ...]
    cycle: tuple[tuple[str, int], ...]
    span: Span


@dataclass(frozen=True, slots=True)
class Settings:
    """The `model:` section."""

    vocab_size: int
    d_model: int
    n_layers: int
    context: int
    tie_embeddings: bool = False
    norm: str = "rmsnorm"  # the operation behind `norm(x)` in blocks, and the final norm
    norm_eps: Fraction = Fraction(1, 100_000)
    embedding_norm: str | None = None  # a norm right after the embedding
    embedding_scale: Expr | Static = Fraction(1)
    logit_scale: Expr | Static = Fraction(1)
    logit_softcap: Fraction | None = None
    causal: bool = True


@dataclass(frozen=True, slots=True)
class Spec:
    """A whole model, resolved: nothing is looked up after this."""

    name: str
    span: Span
    settings: Settings
    blocks: Mapping[str, Use]  # each a use of a body of kind "block"
    shared: Mapping[str, Use]
    layers: Layers
    functions: Mapping[str, Body]  # every function that can be called: the spec's own before the library's
    init: Expr | None = None  # the default init of weights
    sources: Mapping[str, str] = field(default_factory=dict)  # path -> text, for excerpts in errors
    title: str = ""
    source: str = ""  # where the model is from
