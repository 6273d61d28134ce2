"""A module of the graph as one class: constructor, initial weights, memory, forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from archc.codegen.forward import ForwardWriter
from archc.codegen.views import MODEL_NUMBERS, ClassView
from archc.codegen.weights import declarations, initial_lines, owned_nodes, remembers, state_lines
from archc.graph.types import Graph, Module
from archc.kernels.fusing.decode import fuse_decode, joined_names, module_file
from archc.kernels.fusing.gate_view import Gate
from archc.kernels.targets import Target
from archc.operations.registry import with_kernels
from archc.printing.equations import wrapped
from archc.printing.names import Names
from archc.printing.printer import Printer
from archc.spec.axes import Axis


class ModuleWriter:
    """Prints the classes of one module: its own, and one for the weights of its sites if it has such."""

    def __init__(
        self,
        graph: Graph,
        module: Module,
        names: Names,
        letters: Mapping[Axis, str],
        recurrence: Callable[[Any], str],
        target: Target | None = None,
        gates: Sequence[Gate] = (),
    ) -> None:
        self.graph = graph
        self.module = module
        self.names = names
        self.letters = letters
        self.recurrence = recurrence
        self.target = target
        self.gates = gates
        self.numbers: dict[str, None] = {}  # static names read from the config
        self.counted = module.body.name in names.counted

    def views(self) -> list[ClassView]:
        """The classes, ready for the template."""
        site = owned_nodes(self.module, "site")
        found = [self._own()]
        if site:
            printer = self._printer()
            holder = ClassView(
                f"{self.names.classes[self.module.key]}Site",
                f"The weights of {self.names.classes[self.module.key]} that belong to one site",
            )
            holder.constructor = declarations(site, printer)
            holder.initial = initial_lines(site, printer)
            self._close(holder, printer)
            found.append(holder)
        return found

    def _printer(self) -> Printer:
        printer = Printer(self.module, self.letters, self.recurrence)
        printer.names = self.names
        if self.target is not None:
            printer.for_gpu, printer.with_kernels = True, with_kernels()
        return printer

    def _own(self) -> ClassView:
        module, names = self.module, self.names
        printer = self._printer()
        found = ClassView(
            names.classes[module.key],
            module.body.title or module.body.name.replace("_", " "),
            module.body.source,
            [line for text in module.subgraph.texts for line in wrapped(text)],
        )
        forward = ForwardWriter(module, printer, self.gates)
        owned = owned_nodes(module, "self")
        for keys in module.slots.values():
            inner = self.graph.modules[keys[0]]
            if inner.body.kind == "part":
                owned += owned_nodes(inner, "mixer")
        found.constructor = declarations(owned, printer)
        found.initial = initial_lines(owned, printer)
        for slot in module.slots:
            found.constructor += self._slot(slot, printer)
        if module.shared:
            slots = ", ".join(f'"{slot}"' for slot in module.shared)
            found.constructor.append(f"self.shared_slots = ({slots},)")
        found.states = state_lines(module, printer, lambda key: remembers(self.graph, key))
        printer.graph = module.subgraph
        found.forward, found.result, found.watched = forward.lines, forward.result, forward.watched
        owners = [f"{name}: {class_}" for name, class_ in names.owners[module.key].items()]
        found.signature = ", ".join(["self", *forward.arguments, "place: Place", *owners])
        if self.target is not None:
            self._decode(found, forward.arguments, printer)
        if module.subgraph.carried:  # evaluated token by token: it knows its values only
            printer.use("sequential", "Cell")
            found.base, found.returns, found.has_place = "Cell", "tuple[Tensor, ...]", False
            found.signature = ", ".join(["self", *forward.arguments])
        self._close(found, printer)
        return found

    def _decode(self, view: ClassView, arguments: list[str], printer: Printer) -> None:
        """One token at a time on a GPU takes the fused step, where the body has one."""
        fused = fuse_decode(self.module)
        if fused is None:
            return
        printer.use("joined", "Joined", "decodes", "join")
        view.constructor.append("self.joined: list[Joined] = []")
        for names in joined_names(fused):
            view.joined.append(", ".join(f'"{name}"' for name in names))
        x = arguments[0].split(":")[0]
        view.forward[:0] = [
            f"if self.joined and decodes(self.joined, {x}, place):",
            f"    from .{module_file(self.module)} import decode_token",
            "",
            f"    return decode_token(self, {x}, place)",
        ]

    def _slot(self, slot: str, printer: Printer) -> list[str]:
        """The attribute that fills a slot: a module, several for a mixture, or the site's share of a shared one."""
        keys = self.module.slots[slot]
        made = f"{self.names.classes[keys[0]]}({self.names.constructor(keys[0])})"
        if slot in self.module.shared:
            names = self.module.shared[slot]
            chosen = f'"{names[0]}"'
            if len(names) > 1:
                listed = ", ".join(f'"{name}"' for name in names)
                chosen = f'({listed})[sites.take("{self.module.prefix}") % {len(names)}]'
            lines = [f"self.{slot}_name = {chosen}"]
            if "site" in self.names.owners[keys[0]]:
                lines.append(f"self.{slot} = {self.names.classes[keys[0]]}Site(config)")
            return lines
        for node in self.module.subgraph.nodes:
            if node.op == "mixture" and node.name == slot:
                count = printer.size(node.attrs["count"]).text
                return [f"self.{slot} = nn.ModuleList({made} for _ in range({count}))"]
        return [f"self.{slot} = {made}"]

    def _close(self, view: ClassView, printer: Printer) -> None:
        """Numbers, arguments and imports, which are known once everything is printed."""
        key = self.module.key
        own = view.signature != ""
        if own and self.names.layer[key]:
            view.arguments += ", layer: int"
        if own and self.names.sites[key]:
            view.arguments += ", sites: Sites"
            printer.use("place", "Sites")
        if own and self.counted:
            printer.numbers["site"] = None  # counted at every place, also where it is not read
        for name in printer.numbers:
            attribute = name.replace(".", "_")
            if name == "layer":
                source = "layer"
            elif name == "site":
                source = f'sites.take("{self.module.body.name}")'
            elif name in MODEL_NUMBERS:
                source = f"config.{name}"
            else:
                source = f"config.{self.module.prefix}_{attribute}"
                if self.module.may_be_exact(name):
                    source = f"float({source})"
            view.numbers.append(f"self.{attribute} = {source}")
        self.numbers.update(printer.numbers)
        view.imports = printer.imports
        view.modules_used = printer.modules_used
