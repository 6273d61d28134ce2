"""A region of elementwise equations as the lines of two kernels, forward and backward, and as its torch form.

The forward goes from memory to memory in float32, rounded where an equation of the body has a name. The backward
computes again what it needs and passes slopes back by the rule of each function. What reaches a value of the model is
summed over the tokens of a program; the sums of all programs are added up by torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from archc.graph.reach import reached
from archc.graph.types import Graph, Module, Node, Ref, Subgraph, ValueType
from archc.kernels.fusing.gate_functions import OWN
from archc.kernels.fusing.gate_lines import MASKS, Lines, Value, fresh, loads_first, summed
from archc.kernels.fusing.gate_view import Gate, Operand, Result
from archc.kernels.fusing.producers import conv_groups
from archc.kernels.fusing.regions import Region, regions
from archc.kernels.fusing.select import products
from archc.kernels.triton_derivatives import ITSELF, PRODUCT, SIGN, SUM, slopes
from archc.kernels.triton_functions import FUNCTIONS, HELPERS
from archc.passes.precision import FOLLOW, INSIDE
from archc.printing.printer import Code, Printer, decimal
from archc.spec import expressions as ex
from archc.spec.axes import Axis

RESERVED = frozenset(
    "h j pid parts span tokens in_T in_C in_TC t_T c_C at_C at_TC BLOCK_T BLOCK_C BLOCKS HEADS CHANNELS "
    "torch triton tl F Tensor re WARPS TOKENS COLUMNS wide inputs output ctx".split()
).union(HELPERS)


def gates_of(graph: Graph, letters: Mapping[Axis, str]) -> dict[str, list[Gate]]:
    """The regions of each module of a model, by the module's key; equal ones have one name."""
    found: dict[str, list[Gate]] = {}
    named: dict[str, Gate] = {}
    for key, module in graph.modules.items():
        found[key] = []
        for region in regions(module.subgraph, free_nodes(module.subgraph), module.values):
            gate = _Writer(module, region, letters).gate()
            if not gate.sloped:
                continue
            name, number = gate.name, 2
            while name in named and not _same(named[name], gate):
                name, number = f"{gate.name}_{number}", number + 1
            gate = replace(gate, name=name)
            named.setdefault(name, gate)
            found[key].append(gate)
    return found


def _same(a: Gate, b: Gate) -> bool:
    """Whether two regions are the same text."""
    texts = [(g.operands, g.results, list(g.numbers), g.form, g.formed, g.forward, g.inner) for g in (a, b)]
    plain = [
        ([(o.name, o.kind, o.where) for o in operands], [(r.name, r.dtype) for r in results], *rest)
        for operands, results, *rest in texts
    ]
    return plain[0] == plain[1] and a.outer == b.outer


def free_nodes(graph: Subgraph) -> set[int]:
    """The nodes that no other launch of a body has."""
    always = reached(graph, [graph.output, *graph.exports.values(), *graph.carried.values()])
    free = always - {node.id for group in conv_groups(graph, always) for c in group for node in c.nodes}
    taken = products(graph, free)
    return free - set(taken) - {node.id for product in taken.values() for node in product.inside}


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


class _Writer:
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
            wish = name = self._wish(ref)
            number = 2
            while name in self.taken or f"d{name}" in self.taken:  # what reaches it is called so
                name, number = f"{wish}_{number}", number + 1
            self.taken |= {name, f"d{name}"}
            self.plain[ref] = name
        self.values: dict[Ref, Value] = {}
        self.entries = "(HEADS * CHANNELS)" if region.outer else "CHANNELS"  # of a token

    def _wish(self, ref: Ref) -> str:
        """What a value is called."""
        node = self.graph.nodes[ref.node]
        own = node.name if node.op in ("param", "input") else ""
        return (
            self.labels.get(ref) or own or f"{node.equation or 'part'}_{node.attrs.get('function', node.op)}"
        )

    def _kind(self, type_: ValueType) -> str:
        if type_.rate == "token":
            return "TC" if type_.axes == self.region.axes else "T"
        channels = self.region.axes[self.region.outer :]
        whole = type_.axes == self.region.axes or type_.axes == channels
        return "C" if whole and type_.axes else ""

    # -- the whole ------------------------------------------------------------------------------------------

    def gate(self) -> Gate:
        """All that the templates show."""
        loaded = {ref for node in self.region.nodes for ref in node.inputs[: _read(node)]}
        form, formed = self._form()
        for ref in self.region.operands:
            if ref in loaded:
                self.values[ref] = self._load(ref)
        for node in self.region.nodes:
            self.values[Ref(node.id)] = self._value(node)
        forward = self._forward()
        before, inner, after, sloped = self._backward()
        operands = tuple(self._operand(ref, ref in loaded, ref in sloped) for ref in self.region.operands)
        named = {operand.ref: operand.name for operand in operands}
        results = tuple(self._result(ref, named) for ref in self.region.results)
        like = next(operand.name for operand in operands if operand.kind == "TC")
        ends = [(self.labels.get(r.ref) or self.graph.nodes[r.ref.node].equation or r.plain) for r in results]
        names = list(dict.fromkeys(ends))
        name = "_".join([self.module.prefix, *(names if len(names) < 4 else [names[0], "to", names[-1]])])
        texts = {text.split(":")[0]: text for text in self.graph.texts}
        equations = dict.fromkeys(self.graph.nodes[ref.node].equation for ref in self.region.results)
        title = tuple(texts[equation] for equation in equations if equation in texts)
        return Gate(
            name, title, self.region, operands, results, self.numbers, like, form, formed,
            frozenset(self.printer.imports), "F" in self.printer.modules_used, forward, before, inner, after,
        )  # fmt: skip

    def _operand(self, ref: Ref, loaded: bool, sloped: bool) -> Operand:
        type_ = self.graph.type_of(ref)
        return Operand(
            f"{self.plain[ref]}{self.printer.suffix(type_)}", self.plain[ref], ref, self._kind(type_),
            self._where(ref), loaded, sloped, ref.node in self.single,
        )  # fmt: skip

    def _result(self, ref: Ref, named: Mapping[Ref, str]) -> Result:
        made_of = self._dtype(ref)
        names = [named[r] for r in self.region.operands if made_of is not None and r in made_of]
        dtype = "torch.float32" if made_of is None else f"{names[0]}.dtype"
        if len(names) > 1:
            dtype = f"_promoted({', '.join(names)})"
        name = f"{self.plain[ref]}{self.printer.suffix(self.graph.type_of(ref))}"
        return Result(name, self.plain[ref], ref, dtype, made_of is None or ref.node in self.single)

    def _dtype(self, ref: Ref) -> frozenset[Ref] | None:
        """The operands whose dtypes a value's is promoted from; None for float32."""
        if ref.node not in self.inside:
            return frozenset([ref])
        node = self.graph.nodes[ref.node]
        if node.op == "cast_like":
            return self._dtype(node.inputs[1])
        if node.attrs["function"] == "fp32":
            return None
        found: set[Ref] = set()
        scalars: set[Ref] = set()
        for operand in node.inputs:
            type_ = self.graph.type_of(operand)
            if type_.rate == "static":
                continue
            of = self._dtype(operand)
            if of is None:
                return None
            (scalars if type_.rate == "model" and not type_.axes else found).update(of)
        return frozenset(found or scalars)

    # -- the torch form -------------------------------------------------------------------------------------

    def _form(self) -> tuple[tuple[str, ...], str]:
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
        taken = {code.text for code in codes.values()} | {self._lettered(ref) for ref in self.region.results}
        lines = []
        for node in self.region.nodes:
            ref = Ref(node.id)
            inputs = [codes[r] if r in codes else self._static(r) for r in node.inputs]
            code = operations()[node.op].emit(node, inputs, self.printer)
            result = ref in self.region.results
            if uses.get(ref, 0) + result > 1 or result and len(self.region.results) > 1:
                name = (
                    self._lettered(ref) if result else fresh(f"{self._wish(ref)}{self._suffix(ref)}", taken)
                )
                lines.append(f"{name} = {code.text}")
                code = Code(name)
            codes[ref] = code
        return tuple(lines), ", ".join(codes[ref].text for ref in self.region.results)

    def _lettered(self, ref: Ref) -> str:
        return f"{self.plain[ref]}{self._suffix(ref)}"

    def _suffix(self, ref: Ref) -> str:
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

    def _where(self, ref: Ref) -> str:
        """The address of an operand's entries that a program has."""
        type_, name = self.graph.type_of(ref), self.plain[ref]
        outer = self.region.outer
        kind = self._kind(type_)
        if kind == "TC":
            return f"{name}_ptr + (t_T * {name}_row)[:, None] + at_C[None, :]"
        if kind == "T":
            return f"{name}_ptr + t_T * {name}_row" + (" + h" if outer else "")
        if kind == "C":
            return f"{name}_ptr + {'at_C' if type_.axes == self.region.axes else 'c_C'}"
        return f"{name}_ptr" + (" + h" if outer and type_.axes else "")

    def _load(self, ref: Ref) -> Value:
        kind = self._kind(self.graph.type_of(ref))
        mask = f", {MASKS[kind]}, 0.0" if kind else ""
        text = f"tl.load({self._where(ref)}{mask}).to(tl.float32)"
        model = self.graph.type_of(ref).rate == "model"
        return Value(text, kind=kind, wish=self.plain[ref], keep=True, model=model)

    def _value(self, node: Node) -> Value:
        """A node of the region from its operands."""
        ref = Ref(node.id)
        if node.op == "cast_like" or node.attrs["function"] in ("fp32", "detach"):
            return self._operand_value(node.inputs[0])
        function = node.attrs["function"]
        form = FUNCTIONS.get(function) or OWN[function]
        made = Value(
            form.triton, tuple(self._operand_value(r) for r in node.inputs), self._kind(node.type),
            form.level, form.operand, self.plain.get(ref) or self._wish(ref), model=node.type.rate == "model",
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
        made_of = self._dtype(ref)
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

    def _operand_value(self, ref: Ref) -> Value:
        if ref in self.values:
            return self.values[ref]
        node = self.graph.nodes[ref.node]
        expr = node.attrs["expr"]
        if isinstance(expr, ex.Number):
            number = float(decimal(expr.value))
            return Value(repr(number), level=12 if number >= 0 else SIGN, model=True)
        return Value(self._number(expr), model=True)

    def _forward(self) -> tuple[str, ...]:
        values = [self.values[ref] for ref in self.region.results]
        lines = Lines(self._named(), values)
        body: list[str] = []
        for ref, value in zip(self.region.results, values):
            lines.bind(value)
            text = lines.text(value, "TC").text
            body.append(f"tl.store({self.plain[ref]}_ptr + at_TC, {text}, in_TC)")
        return (*loads_first(lines.model), *loads_first(lines.own), *body)

    def _named(self) -> set[str]:
        """Names that kernels have already."""
        ends = ("_ptr", "_row")
        return {
            *RESERVED,
            *self.numbers,
            *(f"{lead}{n}{end}" for n in self.plain.values() for end in ends for lead in ("", "d")),
        }

    # -- the backward ---------------------------------------------------------------------------------------

    def _backward(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], set[Ref]]:
        """The lines before the loop over tokens, in it and after it; and the operands that something reaches."""
        reaching: dict[Ref, list[Value]] = {}
        for ref in self.region.results:
            name = self.plain[ref]
            text = f"tl.load(d{name}_ptr + at_TC, in_TC, 0.0).to(tl.float32)"
            reaching[ref] = [Value(text, kind="TC", wish=f"d{name}", keep=True)]
        sums: dict[Ref, list[Value]] = {}
        for node in reversed(self.region.nodes):
            if node.type.rate == "token":
                self._pass_back(node, reaching, sums)
        own = [ref for ref in self.region.operands if reaching.get(ref)]
        stored = [self._total(ref, reaching) for ref in own]
        added = {ref: self._added(ref, parts) for ref, parts in sums.items()}
        collected = {
            ref: Value(f"d{self._wish(ref)}", kind=self._kind(self.graph.type_of(ref)), model=True)
            for ref in sums
        }
        later: dict[Ref, list[Value]] = {ref: [value] for ref, value in collected.items()}
        for node in reversed(self.region.nodes):
            if node.type.rate == "model":
                self._pass_back(node, later, later)
        shared = [ref for ref in self.region.operands if later.get(ref)]
        last = [self._total(ref, later) for ref in shared]

        lines = Lines(self._named(), [*stored, *added.values(), *last])
        before, after = [], []
        for value in collected.values():
            name = fresh(f"{value.text}{'_' if value.kind else ''}{value.kind}", lines.taken)
            lines.names[value] = name
            start = "tl.zeros([BLOCK_C], tl.float32)" if value.kind else "0.0"
            before.append(f"{name} = {start}")
        inner = []
        for ref, value in added.items():
            text = lines.text(value).text
            inner.append(f"{lines.names[collected[ref]]} += {text}")
        stores = []
        for ref, value in zip(own, stored):
            kind = self._kind(self.graph.type_of(ref))
            at = "at_TC" if kind == "TC" else f"t_T{' * HEADS + h' if self.region.outer else ''}"
            text = lines.text(value, kind).text
            stores.append(f"tl.store(d{self.plain[ref]}_ptr + {at}, {text}, {MASKS[kind]})")
        own_lines = loads_first(lines.own)
        lines.own = []
        ahead, lines.model = lines.model, []
        for ref, value in zip(shared, last):
            kind = self._kind(self.graph.type_of(ref))
            text = lines.text(value, kind).text
            at, mask = (f"span * {self.entries} + at_C", ", in_C") if kind else ("pid", "")
            after.append(f"tl.store(d{self.plain[ref]}_ptr + {at}, {text}{mask})")
        behind = (*lines.model, *lines.own, *after)
        return (*loads_first(ahead), *before), (*own_lines, *inner, *stores), behind, {*own, *shared}

    def _pass_back(self, node: Node, reaching: dict[Ref, list[Value]], sums: dict[Ref, list[Value]]) -> None:
        """Hand what reaches a node on to its operands; what tokens send to values of the model into `sums`."""
        ref = Ref(node.id)
        if not reaching.get(ref):
            return
        d = self._total(ref, reaching)
        static = [self.graph.type_of(r).rate == "static" for r in node.inputs]
        rules = (ITSELF, None) if node.op == "cast_like" else slopes(node.attrs["function"], static)
        assert rules is not None
        for operand, rule in zip(node.inputs, rules):
            if rule is None or self.graph.type_of(operand).rate == "static":
                continue
            sent = d
            if rule.text:
                operands = tuple(self._operand_value(r) for r in node.inputs)
                places = {"y": f"{{{len(operands)}}}", "d": f"{{{len(operands) + 1}}}"}
                text = rule.text.replace("{y}", places["y"]).replace("{d}", places["d"])
                made = (*operands, self.values[ref], d)
                kept = [number for number in range(len(made)) if f"{{{number}}}" in text]
                for place, number in enumerate(kept):
                    text = text.replace(f"{{{number}}}", f"{{#{place}}}")
                sent = Value(
                    text.replace("#", ""), tuple(made[number] for number in kept), self._kind(node.type),
                    rule.level, SIGN, f"d{self._wish(operand)}", model=node.type.rate == "model",
                )  # fmt: skip
            type_ = self.graph.type_of(operand)
            kind, whole = self._kind(type_), self._kind(node.type)
            if node.type.rate == "token" and type_.rate == "model":
                sums.setdefault(operand, []).append(sent)
            elif kind == whole:
                reaching.setdefault(operand, []).append(sent)
            else:
                reaching.setdefault(operand, []).append(summed(sent, kind, type_.rate == "model"))

    def _total(self, ref: Ref, reaching: Mapping[Ref, list[Value]]) -> Value:
        """The sum of all that reaches a value."""
        parts = reaching[ref]
        if len(parts) == 1:
            return parts[0]
        text = " + ".join(f"{{{number}}}" for number in range(len(parts)))
        kind, model = self._kind(self.graph.type_of(ref)), all(part.model for part in parts)
        return Value(text, tuple(parts), kind, SUM, PRODUCT, f"d{self._wish(ref)}", model=model)

    def _added(self, ref: Ref, parts: Sequence[Value]) -> Value:
        """What the tokens of a block add to the slope of a value of the model."""
        kind = self._kind(self.graph.type_of(ref))
        by_kind: dict[str, list[Value]] = {}
        for part in parts:
            by_kind.setdefault(part.kind, []).append(part)
        found = []
        for of, same in by_kind.items():
            text = " + ".join(f"{{{number}}}" for number in range(len(same)))
            whole = same[0] if len(same) == 1 else Value(text, tuple(same), of, SUM, PRODUCT)
            found.append(summed(whole, kind, False))
        if len(found) == 1:
            return found[0]
        return Value(" + ".join(f"{{{n}}}" for n in range(len(found))), tuple(found), kind, SUM, PRODUCT)


def _read(node: Node) -> int:
    """How many of its operands a node reads: of `cast_like` the second gives its dtype alone."""
    return 1 if node.op == "cast_like" else len(node.inputs)
