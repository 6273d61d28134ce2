"""What the templates of elementwise regions show, everything decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from archc.graph.types import Ref
from archc.kernels.fusing.gate_counts import Counts
from archc.kernels.fusing.regions import Region
from archc.spec import expressions as ex


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor that a region reads.

    `name`: with the letters of its axes; `plain`: without, as pointers are called. `kind`: "TC" for a value of every
    entry, "T" of every head, both of tokens; "C" for a parameter of entries, "" of heads. `where`: its address in a
    kernel. `loaded`: a kernel reads it, not its dtype alone. `sloped`: something reaches it. `single`: it is float32
    whatever the dtype of the model.
    """

    name: str
    plain: str
    ref: Ref
    kind: str
    where: str
    loaded: bool
    sloped: bool
    single: bool

    @property
    def per_token(self) -> bool:
        """Whether every token has its own."""
        return "T" in self.kind


@dataclass(frozen=True, slots=True)
class Result:
    """What a launch gives. `kind`: as of operands. `dtype`: as Python reads it off them. `single`: it is float32."""

    name: str
    plain: str
    ref: Ref
    kind: str
    dtype: str
    single: bool


@dataclass(frozen=True, slots=True)
class Gate:
    """What the templates show of one region.

    `name`: of its function; `title`: the equations. `numbers`: static numbers, by the name of their argument. `like`:
    an operand that has all axes. `form`: the torch form's statements and what it returns. `before`,
    `inner`, `after`: lines of the backward ahead of its loop over tokens, in it, behind it. `counts`: what forward and
    backward compute.
    """

    name: str
    title: tuple[str, ...]
    region: Region
    operands: tuple[Operand, ...]
    results: tuple[Result, ...]
    numbers: Mapping[str, ex.Expr]
    like: str
    form: tuple[str, ...]
    formed: str
    imports: frozenset[tuple[str, str]]
    functional: bool
    forward: tuple[str, ...]
    before: tuple[str, ...]
    inner: tuple[str, ...]
    after: tuple[str, ...]
    counts: tuple[Counts, Counts]

    @property
    def outer(self) -> int:
        """How many axes count heads; with none of them columns of entries are cut among programs."""
        return self.region.outer

    @property
    def whole(self) -> bool:
        """Whether a program has all entries of a head, since it sums over them."""
        return bool(self.outer) or any(operand.kind == "T" for operand in self.operands)

    @property
    def entries(self) -> str:
        """Entries of a token, in a kernel."""
        return "(HEADS * CHANNELS)" if self.outer else "CHANNELS"

    @property
    def read(self) -> list[Operand]:
        """What the kernels load."""
        return [operand for operand in self.operands if operand.loaded]

    @property
    def strided(self) -> list[Operand]:
        """Those of them whose rows may lie apart."""
        return [operand for operand in self.read if operand.per_token]

    @property
    def kept(self) -> list[Operand]:
        """What the backward is given again: what it computes with, and what has sums of the same shape."""
        text = "\n".join((*self.before, *self.inner, *self.after))
        again = [o for o in self.operands if f"tl.load({o.plain}_ptr" in text]
        return [o for o in self.operands if o in again or o in self.summed]

    @property
    def reread(self) -> list[Operand]:
        """What its kernel loads."""
        return [operand for operand in self.kept if operand.loaded]

    @property
    def typed(self) -> list[Operand]:
        """Of these a gradient needs nothing but the dtype."""
        return [operand for operand in self.sloped if operand not in self.kept]

    @property
    def sloped(self) -> list[Operand]:
        """What has a gradient."""
        return [operand for operand in self.operands if operand.sloped]

    @property
    def gradients(self) -> str:
        """What the backward hands to autograd, an entry for each argument."""
        found = [f"d{operand.name}" if operand.sloped else "None" for operand in self.operands]
        found += ["None"] * len(self.numbers)
        return f"({found[0]},)" if len(found) == 1 else ", ".join(found)

    @property
    def lead(self) -> Result:
        """A result that has all axes."""
        return next(result for result in self.results if result.kind == "TC")

    def shape(self, result: Result) -> str:
        """The shape of a result: that of an operand, or of its heads alone."""
        return f"{self.like}.shape" if result.kind == "TC" else f"{self.like}.shape[:{2 + self.outer}]"

    def empty(self, operand: Operand) -> str:
        """Memory for its gradient, in the backward: in the shape of what is kept, else of what reaches a result."""
        if operand in self.kept:
            return f"{operand.name}.new_empty({operand.name}.shape)"
        like = f"d{self.lead.name}"
        shape = f"{like}.shape" if operand.kind == "TC" else f"{like}.shape[:{2 + self.outer}]"
        return f"{like}.new_empty({shape}, dtype={operand.name}_dtype)"

    @property
    def unpacked(self) -> str:
        """The forward's arguments where it is noted what the backward needs; what it does not need has no name."""
        wanted = {*self.kept, *self.typed}
        found = [operand.name if operand in wanted else "_" for operand in self.operands]
        return f"{found[0]}," if len(found) + len(self.numbers) == 1 else ", ".join([*found, *self.numbers])

    def passed(self, operands: Sequence[Operand]) -> list[str]:
        """What launchers pass for operands."""
        return [f"{o.plain}_rows" if o.per_token else f"{o.name}.contiguous()" for o in operands]

    def strides(self, operands: Sequence[Operand]) -> list[str]:
        """And for the distances of rows."""
        return [f"{operand.plain}_rows.stride(0)" for operand in operands if operand.per_token]

    def rows(self, operands: Sequence[Operand]) -> list[str]:
        """As kernels call those."""
        return [f"{operand.plain}_row" for operand in operands if operand.per_token]

    @property
    def slopes(self) -> str:
        """What the backward gives, in words."""
        names = [operand.plain for operand in self.sloped]
        return ", ".join(names if len(names) < 4 else [*names[:2], f"... and {names[-1]}"])

    @property
    def pointers(self) -> list[str]:
        """Of the forward's arguments those in memory."""
        return [*(f"{o.plain}_ptr" for o in self.read), *(f"{result.plain}_ptr" for result in self.results)]

    @property
    def backward_pointers(self) -> list[str]:
        """Of the backward's."""
        ahead = [f"d{result.plain}_ptr" for result in self.results]
        return [*ahead, *(f"{o.plain}_ptr" for o in self.reread), *(f"d{o.plain}_ptr" for o in self.sloped)]

    @property
    def summed(self) -> list[Operand]:
        """Values of the model that have one: it is a sum over tokens."""
        return [operand for operand in self.sloped if not operand.per_token]
