"""Prints the `forward` of a module: a statement for each equation, with the equation's name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from archc.graph.reach import reached
from archc.graph.types import Module, Node, Ref, ValueType
from archc.kernels.fusing.gate_view import Gate
from archc.kernels.fusing.producers import Chain, conv_groups
from archc.kernels.fusing.select import Product, products
from archc.operations.conv1d import Conv1d
from archc.operations.norms import RmsNorm
from archc.operations.registry import operations
from archc.passes.share_caches import passed_on
from archc.printing.printer import Code, Printer, call

INLINE = ("input", "static", "param")  # printed by name wherever they are used


class ForwardWriter:
    """The statements of one module, in `lines`; what it returns, in `result`.

    `watched`: statements of values that kernels keep to themselves, for those who look at them.
    """

    def __init__(self, module: Module, printer: Printer, gates: Sequence[Gate] = ()) -> None:
        self.module = module
        self.graph = module.subgraph
        self.printer = printer
        self.gates = gates
        self.codes: dict[Ref, Code] = {}
        self.taken: set[str] = {"place", "mixer", "site"}
        self.arguments: list[str] = []
        self.lines: list[str] = []
        self.watched: list[str] = []
        self.products: dict[int, Product] = {}
        self.labels: dict[Ref, str] = {}
        for name, ref in self.graph.equations.items():
            self.labels.setdefault(ref, name)
        self.needed = reached(self.graph, self.graph.roots())
        self.uses: dict[Ref, int] = {}
        for number in self.needed:
            for ref in self.graph.nodes[number].inputs:
                self.uses[ref] = self.uses.get(ref, 0) + 1
        self.result = self._write()

    def _write(self) -> str:
        for name, ref in self.graph.inputs.items():
            variable = name + self.printer.suffix(self.graph.type_of(ref))
            self.codes[ref] = Code(variable)
            self.taken.add(variable)
            self.arguments.append(f"{variable}: Tensor")
        for node in self.graph.nodes:
            if node.op == "before":
                variable = f"{node.attrs['equation']}_before{self.printer.suffix(node.type)}"
                self.codes[Ref(node.id)] = Code(variable)
                self.taken.add(variable)
                self.arguments.append(f"{variable}: Tensor")
        carried = self.graph.carried.values()
        always = reached(self.graph, [self.graph.output, *self.graph.exports.values(), *carried])
        groups = conv_groups(self.graph, always) if self.printer.for_gpu else []
        in_groups = {node.id: group for group in groups for chain in group for node in chain.nodes}
        if self.printer.for_gpu:
            self.products = products(self.graph, always - set(in_groups))
        inside = [node for product in self.products.values() for node in product.inside]
        watched = [node for node in inside if Ref(node.id) in self.labels]
        hidden = self._hidden()
        watched += [node for node in hidden if self._shown(node, hidden)]
        for node in watched:  # what they are made of gets a name
            self.uses |= {ref: self.uses.get(ref, 0) + 1 for ref in node.inputs}
        gates = {gate.region.at: gate for gate in self.gates}
        for node in self.graph.nodes:
            if node.id in gates:
                self._gate(gates[node.id])
                continue
            if node in inside or node in hidden:
                continue
            if node.id in in_groups:
                self._beside(node, in_groups[node.id])
            elif node.id in always and node.op not in ("input", "before"):
                self._statement(node)
        output = self.graph.output
        result = self.codes[output].text
        if output not in self.labels or self.labels[output] == "y" and result not in self.taken:
            result = self._variable("y", self.graph.type_of(output))
            self.lines.append(f"{result}: Tensor = {self.codes[output].text}")
            self.codes[output] = Code(result)
        result = ", ".join([result, *(self.codes[ref].text for ref in carried)])
        for name, ref in self.graph.exports.items():
            self.lines.append(
                f'{self.printer.place()}.export("{name}", {self.codes[ref].text}{self._kept(name, ref)})'
            )
        if self.graph.losses or self.graph.updates:
            self._losses(always)
        kept, self.lines = self.lines, self.watched
        for node in watched:
            self._statement(node)
        self.lines = kept
        return result

    def _hidden(self) -> list[Node]:
        """The nodes that launches of elementwise equations have; what those read is read once by each."""
        regions = [gate.region for gate in self.gates]
        results = {ref.node for region in regions for ref in region.results}
        taken = {node.id for region in regions for node in region.nodes}
        for node in self.graph.nodes:  # conversions to float32 that others read, too, stay
            if node.id in self.needed - taken:
                taken -= {ref.node for ref in node.inputs} - results
        taken -= {ref.node for ref in self.graph.roots()} - results
        hidden = [node for node in self.graph.nodes if node.id in taken]
        for node in hidden:
            for ref in node.inputs:
                self.uses[ref] -= 1
        for ref in (ref for region in regions for ref in region.operands):
            self.uses[ref] = self.uses.get(ref, 0) + 1
        return hidden

    def _shown(self, node: Node, hidden: list[Node]) -> bool:
        """Whether somebody may look at a hidden value, or at what is made of it in the same launch."""
        ref = Ref(node.id)
        for gate in self.gates:
            if node in gate.region.nodes and ref not in gate.region.results:
                readers = [n for n in gate.region.nodes if ref in n.inputs]
                if ref in self.labels or any(self._shown(reader, hidden) for reader in readers):
                    return True
        return False

    def _gate(self, gate: Gate) -> None:
        """`beta, decay = gated_deltanet_beta_decay(self.beta(x), ...)`."""
        self.printer.use("gates", gate.name)
        numbers = [self.printer.number(expr) for expr in gate.numbers.values()]
        code = call(gate.name, *(self.codes[ref] for ref in gate.region.operands), *numbers)
        if len(gate.results) == 1:
            ref = gate.results[0].ref
            self._bind(self.graph.nodes[ref.node], code)
            return
        names = []
        for result in gate.results:
            node = self.graph.nodes[result.ref.node]
            names.append(self._variable(self.labels.get(result.ref) or self._temporary(node), node.type))
            self.codes[result.ref] = Code(names[-1])
        self.lines.append(f"{', '.join(names)} = {code.text}")

    def _kept(self, name: str, ref: Ref) -> str:
        """Who keeps an exported value, where that is an earlier layer: the argument with the comma before it."""
        node = self.graph.nodes[ref.node]
        if not passed_on(node, name):
            return ""
        return f', {self.printer.place()}.keeper("{node.attrs["which"]}", "{name}")'

    def _losses(self, done: set[int]) -> None:
        """What only auxiliary losses and buffers need is computed where a loss is asked for."""
        before = len(self.lines)
        for node in self.graph.nodes:
            if node.id in self.needed - done and node.op != "input":
                self._statement(node)
        for name, ref in self.graph.losses.items():
            self.lines.append(f'{self.printer.place()}.loss("{name}", {self.codes[ref].text})')
        for name, ref in self.graph.updates.items():
            self.lines.append(f'{self.printer.place()}.update(self, "{name}", {self.codes[ref].text})')
        self.lines[before:] = [
            f"if {self.printer.place()}.wants_losses:",
            *(f"    {line}" for line in self.lines[before:]),
        ]

    def _statement(self, node: Node) -> None:
        """Print a node."""
        if node.id in self.products:
            code = self._product(self.products[node.id])
        else:
            code = operations()[node.op].emit(node, [self.codes[ref] for ref in node.inputs], self.printer)
        if len(node.types) > 1:
            self._several(node, code)
        else:
            self._bind(node, code)

    def _product(self, product: Product) -> Code:
        """`self.y_norm(o, gate=z, activation="silu")`, or `gated(gate, up, "silu")`."""
        value, gate = self.codes[product.value], self.codes[product.gate]
        if product.norm is None:
            self.printer.use("fused_glu", "gated")
            return call("gated", gate, value, f'"{product.activation}"')
        rmsnorm = cast(RmsNorm, operations()["rmsnorm"])
        return rmsnorm.emit_gated(product.norm, value, gate, product.activation, self.printer)

    def _bind(self, node: Node, code: Code) -> None:
        """Print a node's value: as a statement if it is an equation or is used twice, else where it is used."""
        ref = Ref(node.id)
        name = self.labels.get(ref)
        unnamed = name is None and self.uses.get(ref, 0) <= 1
        last = name == "y" and ref == self.graph.output and not self.uses.get(ref)
        if node.op in INLINE or unnamed or last:
            self.codes[ref] = code
            return
        variable = self._variable(name or self._temporary(node), node.type)
        self.codes[ref] = Code(variable)
        typed = ": Tensor" if ref == self.graph.output else ""
        if name is not None and self._once_a_call(ref):
            code = Code(f'{self.printer.place()}.once("{self.module.prefix}.{name}", lambda: {code.text})')
        self.lines.append(f"{variable}{typed} = {code.text}")

    def _beside(self, node: Node, group: tuple[Chain, ...]) -> None:
        """`q, k = conv_act_norm(place, Conv(...), Conv(...))` once the last chain ends."""
        if node != group[-1].end:
            return
        conv1d = cast(Conv1d, operations()["conv1d"])
        branches = [
            conv1d.emit_branch(
                c.conv, self.codes[c.conv.inputs[0]], self.printer, c.activation, c.norm, c.eps
            )
            for c in group
        ]
        code = call("conv_act_norm", self.printer.place(), *branches)
        if len(group) == 1:
            self._bind(node, Code(f"{code.text}[0]"))
            return
        targets = []
        for chain in group:
            ref = Ref(chain.end.id)
            self.codes[ref] = Code(self._variable(self.labels[ref], chain.end.type))
            targets.append(self.codes[ref].text)
        self.lines.append(f"{', '.join(targets)} = {code.text}")

    def _several(self, node: Node, code: Code) -> None:
        """`a, b = x.split(...)`, and a line for each piece that has several axes."""
        targets: list[str] = []
        after: list[str] = []
        pieces = node.attrs.get("pieces")
        wanted = {*self.uses, *self.graph.roots()}
        for index, type_ in enumerate(node.types):
            ref = Ref(node.id, index)
            if ref not in wanted:
                targets.append("_")
                continue
            name = self.labels.get(ref) or self._temporary(node)
            variable = self._variable(name, type_)
            if pieces is not None and len(pieces[index]) != 1:
                flat = self._variable(name if variable != name else f"{name}_flat", None)
                targets.append(flat)
                after.append(f"{variable} = {self.printer.unfold(Code(flat), pieces[index]).text}")
            else:
                targets.append(variable)
            self.codes[ref] = Code(variable)
        self.lines += [f"{', '.join(targets)} = {code.text}", *after]

    def _once_a_call(self, ref: Ref) -> bool:
        """Whether a value is the same in every layer: it comes from weights of the model alone (design, rates)."""
        nodes = [self.graph.nodes[number] for number in reached(self.graph, [ref])]
        shared = any(node.attrs.get("share") == "model" for node in nodes)
        return (
            shared
            and all(node.type.rate in ("static", "model") for node in nodes)
            and not any(
                node.op == "param" and node.attrs.get("share") != "model" or self._layered(node)
                for node in nodes
            )
        )

    def _layered(self, node: Node) -> bool:
        from archc.graph.reach import static_names

        return bool(static_names(node) & {"layer", "site"})

    def _temporary(self, node: Node) -> str:
        """A name for a value that is used twice but is no equation."""
        return f"{node.equation or 'part'}_{node.attrs.get('function', node.op)}"

    def _variable(self, name: str, type_: ValueType | None) -> str:
        suffix = self.printer.suffix(type_) if type_ is not None else ""
        found, count = f"{name}{suffix}", 2
        while found in self.taken:
            found, count = f"{name}_{count}{suffix}", count + 1
        self.taken.add(found)
        return found
