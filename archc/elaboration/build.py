"""From a resolved spec to a graph: one module for each distinct body, layers as runs of modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from archc.elaboration.body import BodyReader
from archc.elaboration.context import Context, Interface
from archc.elaboration.instances import MODEL_NAMES, Instance, statics_of
from archc.elaboration.runs import compress
from archc.graph.types import Decision, Graph, Module, ValueType
from archc.operations.registry import operations
from archc.spec import expressions as ex
from archc.spec import statics
from archc.spec.axes import Axis
from archc.spec.diagnostics import Reporter, Span
from archc.spec.spec import Body, Shared, Spec, Static, Use


@dataclass(slots=True)
class _Layer:
    """The layer being built: its number, and how often each body was used before it."""

    index: int
    sites: Counter[str]


class GraphBuilder:
    """Builds the graph of one spec. Use `build_graph`."""

    def __init__(self, spec: Spec, report: Reporter) -> None:
        self.spec = spec
        self.report = report
        self.modules: dict[str, Module] = {}
        self.instances: dict[int, Instance] = {}
        self.by_text: dict[str, Instance] = {}
        self.prefixes: dict[str, str] = {}
        self.exported: dict[str, ValueType] = {}
        self.failed: set[tuple[int, tuple[bool, ...]]] = set()
        self.failed_blocks: set[str] = set()
        self.shared_keys: dict[str, str] = {}
        self.settled: dict[str, str] = {}  # blocks whose class is the same in every layer
        self.bodies = {name: self._bodies(use) for name, use in spec.blocks.items()}
        self.site_totals = self._count_sites()

    def run(self) -> Graph | None:
        """The graph, or None after errors."""
        keys: list[str] = []
        sites: Counter[str] = Counter()
        for index, block in enumerate(self.spec.layers.names):
            use = self.spec.blocks[block]
            if block in self.failed_blocks:
                continue
            if block in self.settled:
                keys.append(self.settled[block])
                sites.update(self.bodies[block])
                continue
            key = self._module(use, block, _Layer(index, sites), top=True)
            if key is None:
                self.failed_blocks.add(block)
                sites.update(self.bodies[block])
                continue
            keys.append(key)
            self.exported.update(self._exports_of(key))
            sites.update(self.bodies[block])
            if not self._depends_on_layer(key):
                self.settled[block] = key
        if self.report.diagnostics:
            return None
        runs, cycle, repeats, tail = compress(keys, sum(count for _, count in self.spec.layers.cycle))
        shared = dict(self.shared_keys)
        return Graph(
            self.spec.name,
            self.spec.settings,
            self.modules,
            runs,
            cycle,
            repeats,
            tail,
            shared,
            self.spec.init,
            self.spec.title,
            self.spec.source,
        )

    def _depends_on_layer(self, key: str) -> bool:
        """Whether a class was decided by the layer it stands at, or holds one that was."""
        module = self.modules[key]
        inner = (k for keys in module.slots.values() for k in keys)
        return bool(module.decisions) or any(self._depends_on_layer(k) for k in inner)

    # -- sites ----------------------------------------------------------------------------------------------

    def _bodies(self, use: Use) -> list[str]:
        """The bodies that one layer of a block uses, by name: what `site` counts."""
        found = [self._site_name(use.body)]
        for filler in use.slots.values():
            if isinstance(filler, Use):
                found += self._bodies(filler)
        return found

    def _site_name(self, body: Body) -> str:
        return f"{body.kind}:{body.name}"

    def _count_sites(self) -> Counter[str]:
        totals: Counter[str] = Counter()
        for name, count in Counter(self.spec.layers.names).items():
            for body in self.bodies[name]:
                totals[body] += count
        return totals

    # -- modules --------------------------------------------------------------------------------------------

    def _module(self, use: Use, name: str, layer: _Layer, *, top: bool = False) -> str | None:
        """The key of the class that serves a use at this layer; made where there is none yet."""
        instance = self._instance(use, name, top)
        environment = self._environment(instance, layer)
        fillers: dict[str, Interface] = {}
        for slot, filler in use.slots.items():
            interface = self._filler(filler, slot, name, layer)
            if interface is None:
                return None
            fillers[slot] = interface
        slots = {slot: interface.modules for slot, interface in fillers.items()}
        for module in instance.variants:
            used = {slot: keys for slot, keys in slots.items() if slot in module.slots}
            if dict(module.slots) == used and self._holds(module.decisions, environment):
                return module.key
        return self._new_module(instance, fillers, environment)

    def _holds(self, decisions: tuple[Decision, ...], environment: Mapping[str, Static]) -> bool:
        return all(
            statics.is_true(statics.evaluate(d.test, environment, self.report)) is d.value for d in decisions
        )

    def _new_module(
        self, instance: Instance, fillers: Mapping[str, Interface], environment: Mapping[str, Static]
    ) -> str | None:
        body = instance.use.body
        for part_name, part in body.parts.items():
            interface = self._part(part, part_name, instance, environment)
            if interface is None:
                return None
            fillers = {**fillers, part_name: interface}
        context = Context(
            body,
            self.spec.settings,
            self.spec.functions,
            instance.statics,
            instance.sizes,
            environment,
            fillers,
            self.exported,
            self.report,
            self._default_init(instance.use),
            instance.use.base,
        )
        subgraph = BodyReader(context).run()
        if subgraph is None:
            return None
        count = len(instance.variants)
        key = instance.prefix if not count else f"{instance.prefix}_{count + 1}"
        shared = {slot: interface.shared for slot, interface in fillers.items() if interface.shared}
        module = Module(
            key,
            instance.prefix,
            body,
            instance.sizes,
            dict(environment),
            subgraph,
            context.builder.decision_list(),
            dict(context.builder.slots),
            shared,
        )
        instance.variants.append(module)
        self.modules[key] = module
        return key

    def _part(
        self, part: Body, name: str, instance: Instance, environment: Mapping[str, Static]
    ) -> Interface | None:
        """A part shares the namespace of the body that it stands in."""
        context = Context(
            part,
            self.spec.settings,
            self.spec.functions,
            instance.statics,
            instance.sizes,
            environment,
            {},
            self.exported,
            self.report,
            self._default_init(instance.use),
        )
        subgraph = BodyReader(context).run()
        if subgraph is None:
            return None
        key = f"{instance.prefix}_{name}"
        self.modules[key] = Module(
            key,
            instance.prefix,
            part,
            instance.sizes,
            dict(environment),
            subgraph,
            context.builder.decision_list(),
            {},
        )
        inputs = tuple(subgraph.type_of(ref).axes for ref in subgraph.inputs.values())
        tokenwise = all(operations()[node.op].tokenwise for node in subgraph.nodes)
        return Interface(
            inputs,
            subgraph.type_of(subgraph.output),
            (key,),
            result=_result(part),
            tokenwise=tokenwise,
            carries=bool(subgraph.carried),
        )

    def _default_init(self, use: Use) -> ex.Expr | None:
        """How matrices start that do not say it themselves: as the use, the body or the model says."""
        return use.init or use.body.init or self.spec.init

    def _filler(self, filler: Use | Shared, slot: str, block: str, layer: _Layer) -> Interface | None:
        uses = [filler] if isinstance(filler, Use) else [self.spec.shared[name] for name in filler.names]
        names = [f"{block}_{slot}"] if isinstance(filler, Use) else list(filler.names)
        keys: list[str] = []
        for use, name in zip(uses, names):
            key = self._module(use, name, layer)
            if key is None:
                return None
            keys.append(key)
            if isinstance(filler, Shared):
                self.shared_keys[name] = key
        subgraph = self.modules[keys[0]].subgraph
        instance = self._instance(uses[0], names[0], False)
        inputs = tuple(
            tuple(self._outer(axis, instance) for axis in subgraph.type_of(ref).axes)
            for ref in subgraph.inputs.values()
        )
        output = subgraph.type_of(subgraph.output)
        axes = tuple(self._outer(axis, instance) for axis in output.axes)
        type_ = ValueType(axes, output.rate, output.low, output.high)
        shared = filler.names if isinstance(filler, Shared) else ()
        return Interface(inputs, type_, tuple(keys), shared, result=_result(uses[0].body))

    def _outer(self, axis: Axis, instance: Instance) -> Axis:
        """An axis of an inner body in names that every body knows; a number where it has no such name."""
        known = {**instance.statics, **instance.sizes}
        for _ in range(20):
            wider = axis.substitute(
                {
                    name: Axis.of(e)
                    for name in axis.names() & known.keys()
                    if isinstance(instance.values.get(name), Fraction)
                    and name not in MODEL_NAMES
                    and (e := known[name]) != ex.Name(e.span, name)
                }
            )
            if wider == axis:
                break
            axis = wider
        return axis

    # -- statics --------------------------------------------------------------------------------------------

    def _instance(self, use: Use, name: str, top: bool) -> Instance:
        """The instance of a use: uses of the same body with the same arguments are one."""
        found = self.instances.get(id(use))
        if found is not None:
            return found
        body = use.body
        statics_, sizes, values = statics_of(use, self.spec.settings, self.report)
        text = repr(
            (
                body.kind,
                body.name,
                [e.text for e in body.equations],
                sorted(map(str, values.items())),
                {
                    slot: f.names
                    if isinstance(f, Shared)
                    else self._instance(f, f"{name}_{slot}", False).prefix
                    for slot, f in use.slots.items()
                },
                name if top else "",
            )
        )
        found = self.by_text.get(text)
        if found is None:
            wanted = name if top else (body.name or name)
            prefix = wanted if wanted not in self.prefixes else (f"{wanted}_{name}" if not top else wanted)
            while prefix in self.prefixes or prefix in MODEL_NAMES:
                prefix += "_block" if top else "_2"
            self.prefixes[prefix] = text
            found = Instance(use, prefix, statics_, sizes, values, self.site_totals[self._site_name(body)])
            self.by_text[text] = found
        self.instances[id(use)] = found
        return found

    def _environment(self, instance: Instance, layer: _Layer) -> dict[str, Static]:
        site = layer.sites[self._site_name(instance.use.body)]
        return {
            **instance.values,
            "layer": Fraction(layer.index),
            "site": Fraction(site),
            "n_sites": Fraction(max(instance.n_sites, 1)),
        }

    # -- exports --------------------------------------------------------------------------------------------

    def _exports_of(self, key: str) -> dict[str, ValueType]:
        module = self.modules[key]
        found = {name: module.subgraph.type_of(ref) for name, ref in module.subgraph.exports.items()}
        for keys in module.slots.values():
            for inner in keys:
                found |= self._exports_of(inner)
        return found


def _result(body: Body) -> Span | None:
    """Where a body defines what it returns."""
    return next((e.span for e in body.equations if any(t.name == "y" for t in e.targets)), None)


def build_graph(spec: Spec, report: Reporter) -> Graph | None:
    """The graph of a spec, or None with the errors recorded in `report`."""
    builder = GraphBuilder(spec, report)
    before = len(report.diagnostics)
    graph = builder.run()
    return None if len(report.diagnostics) > before else graph
