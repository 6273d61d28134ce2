"""Build the tile program of a recurrence class in normal form: equal rows are one tile."""

from __future__ import annotations

from archc.tiles.kind import RecurrenceKind, form_of
from archc.tiles.program import Row, Step, TileProgram


def forward(kind: RecurrenceKind, *, weighted: bool = False) -> TileProgram:
    """The program of one chunk of the class's core. Raises ValueError for a class without a chunk form.

    weighted: what writes is `weight * k`, with a number a token.

    With the rows of normal form, `S_t = D_t S_(t-1) + sum over writes x_t y_t^T`:

    none    x = k, y = v.
    delta   -beta k (k^T S') + beta k v^T has one row beta*k, so y = U = v - S'^T k, and
            `(I + tril(k (beta k)^T, -1)) U = v - k S`.
    pair    x = w, y = U = S'^T r and x = k, y = v, and
            `(I - tril(r w^T, -1)) U = r S + tril(r k^T, -1) v`.
    """
    core = kind.core()
    verdict = form_of(kind)
    if verdict.form != "chunk":
        raise ValueError(verdict.reason)
    build = _Builder(core, weighted)
    {"none": build.plain, "delta": build.delta, "pair": build.pair}[core.erase]()
    return build.program()


class _Builder:
    def __init__(self, kind: RecurrenceKind, weighted: bool = False) -> None:
        self.kind = kind
        self.steps: list[Step] = []
        self.axes: dict[str, str] = {"q": "CK", "k": "CK", "v": "CV", "S": "KV", "S_next": "KV", "o": "CV"}
        decayed = kind.decay != "none"
        on_value = kind.decay == "value"
        exclusive = kind.read == "exclusive"
        before = "<" if decayed else ""
        after = "+" if decayed else ""
        self.mask = "strict" if exclusive else "inclusive"
        read = before if exclusive else after
        self.q = Row("q", "" if on_value else read)
        self.out = read if on_value else ""
        write = "-" if decayed else ""
        scalar = "weight" if weighted else "beta" if kind.erase == "delta" else ""
        self.k = Row("k", "" if on_value else write, scalar)
        self.v = Row("v", write if on_value else "")
        self.w = Row("w", write)
        self.r = Row("r", before if kind.erase_from == "previous" else after)
        self.key = Row("k", after)
        if weighted:
            self.axes["weight"] = "C"
        if decayed:
            self.axes["decay"] = {"head": "C", "key": "CK", "value": "CV"}[kind.decay]
            self.axes["G"] = self.axes["decay"]
            self.add("G", "cumulative", Row("decay"))

    def add(
        self,
        result: str,
        operation: str,
        *operands: Row,
        axes: str = "",
        mask: str = "",
        sign: int = 1,
        minus: bool = False,
        into: str = "",
    ) -> Row:
        """Append a step, which adds to its result if an earlier one defined it."""
        adds = any(step.result == result for step in self.steps)
        number = len({step.number for step in self.steps}) + 1
        if adds:
            number = next(step.number for step in self.steps if step.result == result)
        if axes:
            self.axes[result] = axes
        self.steps.append(Step(result, operation, operands, number, mask, sign, minus, into=into, adds=adds))
        return Row(result)

    def plain(self) -> None:
        scores = self.add("qk", "pair", self.q, self.k, axes="CC", mask=self.mask)
        self.add("S_next", "update", Row("S"), self.k, self.v)
        self.add("o", "read", self.q, Row("S"), into=self.out)
        self.add("o", "apply", scores, self.v, into=self.out, mask=self.mask)

    def delta(self) -> None:
        self.axes["beta"] = "C"
        erase = self.add("kk", "pair", self.key, self.k, axes="CC", mask="strict")
        scores = self.add("qk", "pair", self.q, self.k, axes="CC", mask=self.mask)
        inverse = self.add("X", "invert", erase, axes="CC")
        seen = self.add("R", "read", self.key, Row("S"), axes="CV")
        residual = self.add("E", "combine", self.v, seen, axes="CV", sign=-1)
        u = self.add("U", "solve", inverse, residual, erase, axes="CV")
        self.add("S_next", "update", Row("S"), self.k, u)
        self.add("o", "read", self.q, Row("S"))
        self.add("o", "apply", scores, u, mask=self.mask)

    def pair(self) -> None:
        self.axes["w"] = self.axes["r"] = "CK"
        erase = self.add("rw", "pair", self.r, self.w, axes="CC", mask="strict")
        write = self.add("rk", "pair", self.r, self.k, axes="CC", mask="strict")
        erased = self.add("qw", "pair", self.q, self.w, axes="CC", mask=self.mask)
        scores = self.add("qk", "pair", self.q, self.k, axes="CC", mask=self.mask)
        inverse = self.add("X", "invert", erase, axes="CC", minus=True)
        inside = self.add("E", "apply", write, self.v, axes="CV", mask="strict")
        self.add("E", "read", self.r, Row("S"))
        u = self.add("U", "solve", inverse, inside, erase, axes="CV", minus=True)
        self.add("S_next", "update", Row("S"), self.w, u, self.k, self.v)
        self.add("o", "read", self.q, Row("S"))
        self.add("o", "apply", scores, self.v, mask=self.mask)
        self.add("o", "apply", erased, u, mask=self.mask)

    def program(self) -> TileProgram:
        named = ["q", "k", "v", "decay", "beta", "w", "r", "weight"]
        inputs = tuple(name for name in named if name in self.axes)
        return TileProgram(tuple(self.steps), self.axes, inputs, "S", "o")
