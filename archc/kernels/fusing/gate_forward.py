"""An elementwise region forward: its torch form, and the lines of a kernel from memory to memory."""

from __future__ import annotations

from collections.abc import Mapping

from archc.graph.types import Module, Node, Ref, Subgraph, ValueType
from archc.kernels.fusing.gate_counts import Counts, counted
from archc.kernels.fusing.gate_functions import OWN_HELPERS, form_of
from archc.kernels.fusing.gate_lines import MASKS, Lines, Value, fresh, loads_first
from archc.kernels.fusing.regions import Region
from archc.kernels.triton_derivatives import SIGN
from archc.kernels.triton_functions import HELPERS
from archc.passes.precision import FOLLOW, INSIDE
from archc.printing.printer import Code, Printer, decimal
from archc.spec import expressions as ex
from archc.spec.axes import Axis

RESERVED = frozenset(
    "h j pid parts span tokens in_T in_C in_TC t_T c_C at_C at_TC BLOCK_T BLOCK_C BLOCKS HEADS CHANNELS "
    "torch triton tl F Tensor re WARPS TOKENS COLUMNS wide inputs output ctx".split()
).union(HELPERS, OWN_HELPERS)


def single_nodes(graph: Subgraph) -> set[int]:
    """The nodes whose values are float32 whatever the dtype of the model."""
    found: set[int] = set()
    for node in graph.nodes:
        wide = [ref.node in found for ref in node.inputs]
        function = node.attrs.get("function")
        if node.attrs.get("float32") or function == "fp32":
            found.add(node.id)
        elif node.op == "cast_like":
            found |= {node.id} if wide[1] else set()
        elif node.op in FOLLOW:
            found |= {node.id} if wide[0] else set()
        elif node.op in (*INSIDE, "contract") and any(wide):
            found.add(node.id)
    return found


class Forward:
    """Writes one region."""

    def __init__(self, module: Module, region: Region, letters: Mapping[Axis, str]) -> None:
        self.module = module
        self.graph = module.subgraph
        self.region = region
        self.inside = {node.id for node in region.nodes}
        self.printer = Printer(module, letters, lambda kind: "")
        self.labels: dict[Ref, str] = {}
        for name, ref in self.graph.equations.items():
            self.labels.setdefault(ref, name)
        self.single = single_nodes(self.graph)
        self.taken = set(RESERVED)
        self.numbers: dict[str, ex.Expr] = {}
        self.number_of: dict[str, str] = {}
        self.plain: dict[Ref, str] = {}
        for ref in (*region.operands, *region.results):
            wish = name = self.wish(ref)
            number = 2
            while name in self.taken or f"d{name}" in self.taken:  # what reaches it is called so
                name, number = f"{wish}_{number}", number + 1
            self.taken |= {name, f"d{name}"}
            self.plain[ref] = name
        # Of `cast_like` the second operand gives its dtype alone.
        read = {ref for node in region.nodes for ref in node.inputs[: 1 if node.op == "cast_like" else None]}
        self.loaded = read & {*region.operands}
        self.values: dict[Ref, Value] = {}
        self.entries = "(HEADS * CHANNELS)" if region.outer else "CHANNELS"  # of a token

    def wish(self, ref: Ref) -> str:
        """What a value is called."""
        node = self.graph.nodes[ref.node]
        own = node.name if node.op in ("param", "input") else ""
        return (
            self.labels.get(ref) or own or f"{node.equation or 'part'}_{node.attrs.get('function', node.op)}"
        )

    def kind(self, type_: ValueType) -> str:
        if type_.rate == "token":
            return "TC" if type_.axes == self.region.axes else "T"
        channels = self.region.axes[self.region.outer :]
        whole = type_.axes == self.region.axes or type_.axes == channels
        return "C" if whole and type_.axes else ""

    def dtype(self, ref: Ref) -> frozenset[Ref] | None:
        """The operands whose dtypes a value's is promoted from; None for float32."""
        if ref.node not in self.inside:
            return frozenset([ref])
        node = self.graph.nodes[ref.node]
        if node.op == "cast_like":
            return self.dtype(node.inputs[1])
        if node.attrs["function"] == "fp32":
            return None
        found: set[Ref] = set()
        scalars: set[Ref] = set()
        for operand in node.inputs:
            type_ = self.graph.type_of(operand)
            if type_.rate == "static":
                continue
            of = self.dtype(operand)
            if of is None:
                return None
            (scalars if type_.rate == "model" and not type_.axes else found).update(of)
        return frozenset(found or scalars)

    # -- the torch form -------------------------------------------------------------------------------------

    def form(self) -> tuple[tuple[str, ...], str]:
        """Statements over the operands, and the results."""
        from archc.operations.registry import operations

        codes = {
            ref: Code(f"{self.plain[ref]}{self.printer.suffix(self.graph.type_of(ref))}")
            for ref in self.region.operands
        }
        uses: dict[Ref, int] = {}
        for node in self.region.nodes:
            for ref in node.inputs:
                uses[ref] = uses.get(ref, 0) + 1
        taken = {code.text for code in codes.values()} | {self.lettered(ref) for ref in self.region.results}
        lines = []
        for node in self.region.nodes:
            ref = Ref(node.id)
            inputs = [codes[r] if r in codes else self._static(r) for r in node.inputs]
            code = operations()[node.op].emit(node, inputs, self.printer)
            result = ref in self.region.results
            if uses.get(ref, 0) + result > 1 or result and len(self.region.results) > 1:
                name = self.lettered(ref) if result else fresh(f"{self.wish(ref)}{self.suffix(ref)}", taken)
                lines.append(f"{name} = {code.text}")
                code = Code(name)
            codes[ref] = code
        return tuple(lines), ", ".join(codes[ref].text for ref in self.region.results)

    def lettered(self, ref: Ref) -> str:
        """A value's name with the letters of its axes."""
        return f"{self.plain[ref]}{self.suffix(ref)}"

    def suffix(self, ref: Ref) -> str:
        return self.printer.suffix(self.graph.type_of(ref))

    def _static(self, ref: Ref) -> Code:
        """A literal, or the argument that carries a static number."""
        expr = self.graph.nodes[ref.node].attrs["expr"]
        if isinstance(expr, ex.Number):
            return self.printer.number(expr)
        return Code(self._number(expr))

    def _number(self, expr: ex.Expr) -> str:
        text = self.printer.number(expr).text
        if text not in self.number_of:
            plain = text.removeprefix("self.")
            name = fresh(plain if plain.isidentifier() else "number", self.taken)
            self.number_of[text] = name
            self.numbers[name] = expr
        return self.number_of[text]

    # -- the forward ----------------------------------------------------------------------------------------

    def where(self, ref: Ref) -> str:
        """The address of an operand's entries that a program has."""
        type_, name = self.graph.type_of(ref), self.plain[ref]
        outer = self.region.outer
        kind = self.kind(type_)
        if kind == "TC":
            return f"{name}_ptr + (t_T * {name}_row)[:, None] + at_C[None, :]"
        if kind == "T":
            return f"{name}_ptr + t_T * {name}_row" + (" + h" if outer else "")
        if kind == "C":
            return f"{name}_ptr + {'at_C' if type_.axes == self.region.axes else 'c_C'}"
        return f"{name}_ptr" + (" + h" if outer and type_.axes else "")

    def place(self, kind: str) -> str:
        """Where a program's entries lie in a tensor without gaps that tokens have."""
        return "at_TC" if kind == "TC" else f"t_T{' * HEADS + h' if self.region.outer else ''}"

    def load(self, ref: Ref) -> Value:
        kind = self.kind(self.graph.type_of(ref))
        mask = f", {MASKS[kind]}, 0.0" if kind else ""
        text = f"tl.load({self.where(ref)}{mask}).to(tl.float32)"
        model = self.graph.type_of(ref).rate == "model"
        return Value(text, kind=kind, wish=self.plain[ref], keep=True, model=model)

    def value(self, node: Node) -> Value:
        """A node of the region from its operands."""
        ref = Ref(node.id)
        if node.op == "cast_like" or node.attrs["function"] in ("fp32", "detach"):
            return self.operand_value(node.inputs[0])
        form = form_of(node, self.graph)
        assert form is not None
        made = Value(
            form.triton, tuple(self.operand_value(r) for r in node.inputs), self.kind(node.type),
            form.level, form.operand, self.plain.get(ref) or self.wish(ref), model=node.type.rate == "model",
        )  # fmt: skip
        if ref not in self.labels or node.type.rate == "model":
            return made
        made.keep = True
        rounded = self._rounded_to(ref)
        if rounded is None or ref in self.region.results and not self._read_inside(ref):
            return made
        made.keep = False
        text = f"{{0}}.to({rounded}_ptr.dtype.element_ty).to(tl.float32)"
        return Value(text, (made,), made.kind, need=12, wish=made.wish, keep=True)

    def _read_inside(self, ref: Ref) -> bool:
        return any(ref in node.inputs for node in self.region.nodes)

    def _rounded_to(self, ref: Ref) -> str | None:
        """The operand to whose dtype an equation's value is rounded, where that is the dtype of all it is made of."""
        made_of = self.dtype(ref)
        if made_of is None:
            return None
        sources = {self._source(r) for r in made_of if self.graph.type_of(r).rate == "token"}
        if len(sources) != 1:
            return None
        return next((self.plain[r] for r in self.region.operands if r in made_of and r in self.values), None)

    def _source(self, ref: Ref) -> Ref:
        """The value whose dtype another has."""
        node = self.graph.nodes[ref.node]
        follows = node.op in FOLLOW or node.op in ("reshape", "split", "select", "repeat", "roll")
        return self._source(node.inputs[0]) if follows else ref

    def operand_value(self, ref: Ref) -> Value:
        if ref in self.values:
            return self.values[ref]
        node = self.graph.nodes[ref.node]
        expr = node.attrs["expr"]
        if isinstance(expr, ex.Number):
            number = float(decimal(expr.value))
            return Value(repr(number), level=12 if number >= 0 else SIGN, model=True)
        return Value(self._number(expr), model=True)

    def lines(self) -> tuple[tuple[str, ...], Counts]:
        """The lines of the kernel, and what they compute."""
        self.values |= {ref: self.load(ref) for ref in self.region.operands if ref in self.loaded}
        for node in self.region.nodes:
            self.values[Ref(node.id)] = self.value(node)
        values = [self.values[ref] for ref in self.region.results]
        lines = Lines(self.named(), values)
        body: list[str] = []
        for ref, value in zip(self.region.results, values):
            kind = self.kind(self.graph.type_of(ref))
            lines.bind(value)
            text = lines.text(value, kind).text
            body.append(f"tl.store({self.plain[ref]}_ptr + {self.place(kind)}, {text}, {MASKS[kind]})")
        return (*loads_first(lines.model), *loads_first(lines.own), *body), counted(values)

    def named(self) -> set[str]:
        """Names that kernels have already."""
        ends = ("_ptr", "_row")
        return {
            *RESERVED,
            *self.numbers,
            *(f"{lead}{n}{end}" for n in self.plain.values() for end in ends for lead in ("", "d")),
        }
