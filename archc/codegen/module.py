"""A module of the graph as one class: constructor, initial weights, memory, forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from archc.codegen.printer import Code, Printer
from archc.graph.types import Module, Node, Ref, Subgraph, ValueType
from archc.operations.base import StateSpec
from archc.operations.registry import operations
from archc.spec.axes import Axis
from archc.spec.spec import Settings

INIT_ATTRS = ("init", "bias_init")
TRIVIAL = ("input", "static", "param")  # printed by name wherever they are used
MODEL_NUMBERS = ("d_model", "n_layers", "vocab_size", "context")


@dataclass(slots=True)
class ClassView:
    """Everything the template of a class shows, decided."""

    name: str
    title: str
    source: str
    equations: list[str]
    numbers: list[str] = field(default_factory=list)
    constructor: list[str] = field(default_factory=list)
    initial: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    signature: str = ""
    forward: list[str] = field(default_factory=list)
    result: str = ""
    layer: bool = False
    imports: set[tuple[str, str]] = field(default_factory=set)
    modules_used: set[str] = field(default_factory=set)


class ModuleWriter:
    """Prints one module. Use `view`."""

    def __init__(
        self,
        module: Module,
        class_names: Mapping[str, str],
        letters: Mapping[Axis, str],
        recurrence: Callable[[Any], str],
        needs_layer: Mapping[str, bool],
        settings: Settings,
    ) -> None:
        self.module = module
        self.graph: Subgraph = module.subgraph
        self.class_names = class_names
        self.needs_layer = needs_layer
        self.settings = settings
        self.printer = Printer(module, letters, recurrence)
        self.names: dict[Ref, str] = {}  # printed variables
        self.codes: dict[Ref, Code] = {}  # expressions printed where they are used
        self.taken: set[str] = {"place"}

    def view(self) -> ClassView:
        """The class, ready for the template."""
        body = self.module.body
        found = ClassView(
            self.class_names[self.module.key],
            body.title or body.name.replace("_", " "),
            body.source,
            list(self.graph.texts),
        )
        reached = self._reached(self.graph.roots())
        self._forward(found, reached)
        constructor = self._constructor(reached)
        found.initial = self._initial(reached)
        found.states = self._states(reached)
        found.layer = self.needs_layer[self.module.key]
        found.numbers = self._numbers()
        found.constructor = constructor
        found.imports = self.printer.imports
        found.modules_used = self.printer.modules_used
        return found

    def _reached(self, roots: Iterable[Ref]) -> set[int]:
        pending = [ref.node for ref in roots]
        seen: set[int] = set()
        while pending:
            node = pending.pop()
            if node not in seen:
                seen.add(node)
                pending += [ref.node for ref in self.graph.nodes[node].inputs]
        return seen

    # -- forward --------------------------------------------------------------------------------------------

    def _forward(self, found: ClassView, reached: set[int]) -> None:
        args = []
        for name, ref in self.graph.inputs.items():
            variable = name + self.printer.suffix(self.graph.type_of(ref))
            self.codes[ref] = Code(variable)
            self.taken.add(variable)
            args.append(f"{variable}: Tensor")
        labels = self._labels()
        uses = self._uses(reached)
        for node in self.graph.nodes:
            if node.id in reached and node.op != "input":
                found.forward += self._statement(node, labels, uses)
        result = self.codes[self.graph.output]
        output_name = self._variable("y", self.graph.type_of(self.graph.output))
        if result.text != output_name:
            found.forward.append(f"{output_name}: Tensor = {result.text}")
        else:
            found.forward[-1] = found.forward[-1].replace(f"{output_name} = ", f"{output_name}: Tensor = ", 1)
        found.result = output_name
        for name, ref in self.graph.exports.items():
            found.forward.append(f'{self.printer.place()}.export("{name}", {self.codes[ref].text})')
        for name, ref in self.graph.losses.items():
            found.forward.append(f'{self.printer.place()}.loss("{name}", {self.codes[ref].text})')
        found.signature = ", ".join(["self", *args, "place: Place"])

    def _labels(self) -> dict[Ref, str]:
        """The equation that each value is, the first of those that only rename it."""
        found: dict[Ref, str] = {}
        for name, ref in self.graph.equations.items():
            found.setdefault(ref, name)
        return found

    def _uses(self, reached: set[int]) -> dict[Ref, int]:
        found: dict[Ref, int] = {}
        for node in self.graph.nodes:
            if node.id in reached:
                for ref in node.inputs:
                    found[ref] = found.get(ref, 0) + 1
        return found

    def _statement(self, node: Node, labels: Mapping[Ref, str], uses: Mapping[Ref, int]) -> list[str]:
        operation = operations()[node.op]
        code = operation.emit(node, [self.codes[ref] for ref in node.inputs], self.printer)
        if len(node.types) > 1:
            return self._several(node, code, labels, uses)
        ref = Ref(node.id)
        name = labels.get(ref)
        if node.op in TRIVIAL and node.op != "param":
            self.codes[ref] = code
            return []
        if node.op == "param":
            self.codes[ref] = code
            return []
        if name is None and uses.get(ref, 0) <= 1:
            self.codes[ref] = code
            return []
        if name == "y" and ref == self.graph.output and not uses.get(ref):
            self.codes[ref] = code
            return []
        variable = self._variable(name or self._temporary(node), node.type)
        self.codes[ref] = Code(variable)
        return [f"{variable} = {code.text}"]

    def _several(
        self, node: Node, code: Code, labels: Mapping[Ref, str], uses: Mapping[Ref, int]
    ) -> list[str]:
        """`a, b = x.split(...)`, and a line for each piece that has several axes."""
        targets: list[str] = []
        after: list[str] = []
        pieces = node.attrs.get("pieces")
        for index, type_ in enumerate(node.types):
            ref = Ref(node.id, index)
            if (
                not uses.get(ref)
                and ref not in labels
                or not uses.get(ref)
                and ref not in set(self.graph.roots())
            ):
                targets.append("_")
                continue
            name = labels.get(ref) or self._temporary(node)
            if pieces is not None and len(pieces[index]) != 1:
                flat = self._variable(name, None)
                variable = self._variable(name, type_)
                variable = variable if variable != flat else self._variable(f"{name}_parts", None)
                targets.append(flat)
                after.append(f"{variable} = {self.printer.unfold(Code(flat), pieces[index]).text}")
            else:
                variable = self._variable(name, type_)
                targets.append(variable)
            self.codes[ref] = Code(variable)
        return [f"{', '.join(targets)} = {code.text}", *after]

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

    # -- constructor ----------------------------------------------------------------------------------------

    def _owned(self, reached: set[int]) -> list[Node]:
        """The nodes that own an attribute, once each, in the order of the equations."""
        found: dict[str, Node] = {}
        for node in self.graph.nodes:
            if node.id in reached and node.name and operations()[node.op].declare(node, self.printer):
                found.setdefault(node.name, node)
        return list(found.values())

    def _constructor(self, reached: set[int]) -> list[str]:
        lines: list[str] = []
        for node in self._owned(reached):
            lines += operations()[node.op].declare(node, self.printer)
        for name, keys in self.module.slots.items():
            layer = ", layer" if self.needs_layer[keys[0]] else ""
            lines.append(f"self.{name} = {self.class_names[keys[0]]}(config{layer})")
        return lines

    def _numbers(self) -> list[str]:
        """`self.n_heads = config.attention_n_heads` for each number that the class reads."""
        lines = []
        for name in self.printer.numbers:
            attribute = name.replace(".", "_")
            if name in ("layer", "site"):
                lines.append(f"self.{name} = {name}")
            elif name in MODEL_NUMBERS:
                lines.append(f"self.{attribute} = config.{name}")
            else:
                lines.append(f"self.{attribute} = config.{self.module.prefix}_{attribute}")
        return lines

    def _initial(self, reached: set[int]) -> list[str]:
        """Lines that draw the weights whose equations say how they start; values they share come first."""
        wanted = [
            (f"self.{path}", axes, ref)
            for node in self._owned(reached)
            for path, axes, ref in operations()[node.op].initial(node)
            if ref is not None
        ]
        if not wanted:
            return []
        lines: list[str] = []
        codes: dict[Ref, Code] = {}
        labels, taken = self._labels(), set[str]()
        self.printer.drawn = wanted[0][0]
        for number in sorted(self._reached(ref for _, _, ref in wanted)):
            node, ref = self.graph.nodes[number], Ref(number)
            if self._draws(ref):
                continue
            codes[ref] = operations()[node.op].emit(
                node, [codes[given] for given in node.inputs], self.printer
            )
            if ref in labels and node.op != "static":
                variable = labels[ref] + self.printer.suffix(node.type)
                if variable not in taken:
                    taken.add(variable)
                    lines.append(f"{variable} = {codes[ref].text}")
                    codes[ref] = Code(variable)
        for target, axes, ref in wanted:
            lines += self._initial_value(target, axes, ref, codes)
        return lines

    def _draws(self, ref: Ref) -> bool:
        return any(self.graph.nodes[number].op == "draw" for number in self._reached([ref]))

    def _initial_value(
        self, target: str, axes: tuple[Axis, ...], ref: Ref, shared: Mapping[Ref, Code]
    ) -> list[str]:
        printer = self.printer
        printer.drawn = target
        codes = dict(shared)
        for number in sorted(self._reached([ref])):
            node = self.graph.nodes[number]
            if Ref(number) not in codes:
                codes[Ref(number)] = operations()[node.op].emit(
                    node, [codes[i] for i in node.inputs], printer
                )
        printer.drawn = ""
        type_ = self.graph.type_of(ref)
        if type_.rate == "static":
            return [f"{target}.fill_({codes[ref].text})"]
        if not type_.axes:
            return [f"{target}.copy_({codes[ref].text})"]
        code = printer.align(codes[ref], type_, ValueType(axes, "model"))
        if len(type_.axes) < len(axes):
            code = Code(f"{code.at(12)}.expand({printer.sizes(axes)})")
        own_shape = target.count(".") == 1 or len(axes) == 1
        return [
            f"{target}.copy_({code.text})"
            if own_shape
            else f"{target}.copy_({code.at(12)}.reshape({target}.shape))"
        ]

    def _states(self, reached: set[int]) -> list[str]:
        """`"q_conv": Entry((3, 64))` for each tensor of memory."""
        lines: dict[str, str] = {}
        for node in self.graph.nodes:
            if node.id in reached:
                for state in operations()[node.op].states(node, self.graph):
                    lines.setdefault(state.name, self._entry(state))
        return list(lines.values())

    def _entry(self, state: StateSpec) -> str:
        printer = self.printer
        printer.use("state", "Entry")
        parts = [printer.shape(state.shape)]
        if state.dtype == "float32":
            parts.append("dtype=torch.float32")
        if state.slots == "all":
            parts.append("grows=True")
        elif isinstance(state.slots, Axis):
            parts.append(f"ring={printer.size(state.slots).text}")
        if state.fill != "zeros":
            parts.append('fill=float("-inf")')
        return f'"{state.name}": Entry({", ".join(parts)})'
