"""Prints what a class owns: its constructor lines, its initial weights, its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from archc.graph.reach import reached
from archc.graph.types import Graph, Module, Node, Ref, Subgraph, ValueType
from archc.operations.base import StateSpec, widest
from archc.operations.registry import operations
from archc.printing.printer import Code, Printer, owner_of
from archc.spec.axes import Axis

Owned = tuple[Subgraph, Node]


def owned_nodes(module: Module, owner: str) -> list[Owned]:
    """The nodes of a module whose weights belong to `owner`, each name once, in the order of the equations."""
    from archc.passes.rebuild import reached as needed

    graph = module.subgraph
    keep = needed(graph)
    found: dict[str, Owned] = {}
    for node in graph.nodes:
        if (
            node.id in keep
            and node.name
            and operations()[node.op].owns(node)
            and owner_of(node, module) == owner
        ):
            found.setdefault(node.name, (graph, node))
    return list(found.values())


def declarations(owned: Iterable[Owned], printer: Printer) -> list[str]:
    """`self.q = nn.Linear(...)` for each."""
    lines: list[str] = []
    for graph, node in owned:
        printer.graph = graph
        lines += operations()[node.op].declare(node, printer)
    return lines


def initial_lines(owned: Sequence[Owned], printer: Printer) -> list[str]:
    """Lines that draw the weights whose equations say how they start; values that several need come first."""
    lines: list[str] = []
    for graph in dict.fromkeys(id(graph) for graph, _ in owned):
        here = [(g, node) for g, node in owned if id(g) == graph]
        lines += _Initial(here[0][0], printer).lines([node for _, node in here])
    return lines


class _Initial:
    """The initial weights of one subgraph."""

    def __init__(self, graph: Subgraph, printer: Printer) -> None:
        self.graph = graph
        self.printer = printer
        self.labels: dict[Ref, str] = {}
        for name, ref in graph.equations.items():
            self.labels.setdefault(ref, name)

    def lines(self, nodes: Iterable[Node]) -> list[str]:
        """Shared values, then a line for each weight; what starts from another weight comes after it."""
        listed = [(node, *start) for node in nodes for start in operations()[node.op].initial(node)]
        wanted = [(node, f"self.{path}", axes, ref) for node, path, axes, ref in listed if ref is not None]
        free = {
            node.id: f"nn.init.normal_(self.{path}, 0.0, 0.02)"
            for node, path, _, ref in listed
            if ref is None and node.op == "param"
        }
        if not wanted:
            return list(free.values())
        self.printer.graph = self.graph
        self.printer.drawn = wanted[0][1]
        lines: list[str] = []
        codes: dict[Ref, Code] = {}
        weights = {node.id for node, *_ in listed}
        done: set[int] = set()

        def share(refs: Iterable[Ref], known: set[int]) -> None:
            """Lines for the values that `refs` need, but those of weights that are not in `known` and of draws."""
            for number in sorted(reached(self.graph, refs)):
                node, ref = self.graph.nodes[number], Ref(number)
                behind = reached(self.graph, [ref])
                drawn = any(self.graph.nodes[n].op == "draw" for n in behind)
                if ref in codes or drawn or not (weights & set(behind)) <= known:
                    continue
                codes[ref] = self._emit(node, codes)
                if ref in self.labels and node.op != "static":
                    variable = self.labels[ref] + self.printer.suffix(node.type)
                    lines.append(f"{variable} = {codes[ref].text}")
                    codes[ref] = Code(variable)

        def start(node: Node) -> None:
            """Lines for a weight, after those it starts from."""
            if node.id in done:
                return
            done.add(node.id)
            for owner, target, axes, ref in wanted:
                if owner.id != node.id:
                    continue
                needs = weights & set(reached(self.graph, [ref]))
                for number in sorted(needs):
                    start(self.graph.nodes[number])
                if needs:
                    share([ref], done)
                lines.append(self._line(target, axes, ref, codes))
            if node.id in free and any(node.id in reached(self.graph, [ref]) for *_, ref in wanted):
                lines.append(free.pop(node.id))

        share((ref for *_, ref in wanted), set())
        for node, *_ in wanted:
            start(node)
        return [*lines, *free.values()]

    def _emit(self, node: Node, codes: Mapping[Ref, Code]) -> Code:
        return operations()[node.op].emit(node, [codes[ref] for ref in node.inputs], self.printer)

    def _line(self, target: str, axes: tuple[Axis, ...], ref: Ref, shared: Mapping[Ref, Code]) -> str:
        self.printer.drawn = target
        codes = dict(shared)
        for number in sorted(reached(self.graph, [ref])):
            if Ref(number) not in codes:
                codes[Ref(number)] = self._emit(self.graph.nodes[number], codes)
        self.printer.drawn = ""
        type_ = self.graph.type_of(ref)
        if type_.rate == "static":
            return f"{target}.fill_({codes[ref].text})"
        if not type_.axes:
            return f"{target}.copy_({codes[ref].text})"
        code = self.printer.align(codes[ref], type_, ValueType(axes, "model"))
        if len(type_.axes) < len(axes):
            code = Code(f"{code.at(12)}.expand({self.printer.sizes(axes)})")
        if target.count(".") == 1 or len(axes) == 1:
            return f"{target}.copy_({code.text})"
        return f"{target}.copy_({code.at(12)}.reshape({target}.shape))"


def remembers(graph: Graph, key: str) -> bool:
    """Whether a module, or one in its slots, keeps memory."""
    module = graph.modules[key]
    own = any(operations()[node.op].states(node, module.subgraph) for node in module.subgraph.nodes)
    return own or any(remembers(graph, inner) for keys in module.slots.values() for inner in keys)


def state_lines(module: Module, printer: Printer, remembers: Callable[[str], bool]) -> list[str]:
    """`"q_conv": Entry((3, 64))` for each tensor of memory; `remembers` says whether a module has any."""
    graph = module.subgraph
    needed = reached(graph, graph.roots())
    printer.graph = graph
    lines: dict[str, str] = {}
    entries: dict[str, StateSpec] = {}
    for node in graph.nodes:
        if node.id in needed:
            for state in operations()[node.op].states(node, graph):
                known = entries.get(state.name)
                entries[state.name] = state if known is None else widest(known, state)
                lines[state.name] = _entry(entries[state.name], printer)
            if node.op == "mixture" and remembers(node.attrs["modules"][0]):
                printer.use("state", "Entry")
                count = printer.size(node.attrs["count"]).text
                lines[node.name] = (
                    f'**{{f"{node.name}.{{m}}.length": Entry((), dtype=torch.int64) for m in range({count})}}'
                )
    return list(lines.values())


def _entry(state: StateSpec, printer: Printer) -> str:
    printer.use("state", "Entry")
    parts = [printer.shape(state.shape)]
    if state.dtype != "compute":
        parts.append(f"dtype=torch.{state.dtype}")
    if state.slots == "all":
        parts.append("grows=True")
        if state.every is not None:
            parts.append(f"every={printer.whole(state.every).text}")
    elif isinstance(state.slots, Axis):
        parts.append(f"ring={printer.size(state.slots).text}")
    if state.fill != "zeros":
        lowest = 'float("-inf")'
        parts.append(f"fill={lowest if isinstance(state.fill, str) else printer.number(state.fill).text}")
    return f'"{state.name}": Entry({", ".join(parts)})'
