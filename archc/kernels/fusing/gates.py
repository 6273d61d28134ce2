"""The elementwise regions of a model, each as its torch form and as the lines of two kernels.

The forward goes from memory to memory in float32, rounded where an equation of the body has a name. The backward
computes again what it needs and passes slopes back by the rule of each function. What reaches a value of the model is
summed over the tokens of a program; the sums of all programs are added up by torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from archc.graph.reach import reached
from archc.graph.types import Graph, Module, Ref, Subgraph
from archc.kernels.fusing.gate_backward import Backward
from archc.kernels.fusing.gate_forward import Forward
from archc.kernels.fusing.gate_view import Gate, Operand, Result
from archc.kernels.fusing.producers import conv_groups
from archc.kernels.fusing.regions import Region, regions
from archc.kernels.fusing.select import products
from archc.printing.equations import wrapped
from archc.spec.axes import Axis


def gates_of(graph: Graph, letters: Mapping[Axis, str]) -> dict[str, list[Gate]]:
    """The regions of each module of a model, by the module's key; equal ones have one name."""
    found: dict[str, list[Gate]] = {}
    named: dict[str, Gate] = {}
    for key, module in graph.modules.items():
        found[key] = []
        for region in regions(module.subgraph, free_nodes(module.subgraph), module.values):
            gate = _gate(module, region, letters)
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


def _gate(module: Module, region: Region, letters: Mapping[Axis, str]) -> Gate:
    """All that the templates show of a region."""
    graph, writer = module.subgraph, Forward(module, region, letters)
    form, formed = writer.form()
    forward, counts = writer.lines()
    backward = Backward(writer).lines()
    sloped = backward.reached
    operands = tuple(
        Operand(
            writer.lettered(ref), writer.plain[ref], ref, writer.kind(graph.type_of(ref)), writer.where(ref),
            ref in writer.loaded, ref in sloped, ref.node in writer.single,
        )
        for ref in region.operands
    )  # fmt: skip
    results = tuple(_result(ref, writer) for ref in region.results)
    like = next(operand.name for operand in operands if operand.kind == "TC")
    ends = [
        writer.labels.get(ref) or graph.nodes[ref.node].equation or writer.plain[ref]
        for ref in region.results
    ]
    names = list(dict.fromkeys(ends))
    name = "_".join([module.prefix, *(names if len(names) < 4 else [names[0], "to", names[-1]])])
    texts = {text.split(":")[0]: text for text in graph.texts}
    equations = dict.fromkeys(graph.nodes[ref.node].equation for ref in region.results)
    title = tuple(line for equation in equations if equation in texts for line in wrapped(texts[equation]))
    return Gate(
        name, title, region, operands, results, writer.numbers, like, form, formed,
        frozenset(writer.printer.imports), "F" in writer.printer.modules_used, forward,
        backward.before, backward.inner, backward.after, (counts, backward.counts),
    )  # fmt: skip


def _result(ref: Ref, writer: Forward) -> Result:
    """What a launch gives, with its dtype as Python reads it off the operands."""
    made_of = writer.dtype(ref)
    names = [writer.lettered(r) for r in writer.region.operands if made_of is not None and r in made_of]
    dtype = "torch.float32" if made_of is None else f"{names[0]}.dtype"
    if len(names) > 1:
        dtype = f"_promoted({', '.join(names)})"
    single = made_of is None or ref.node in writer.single
    kind = writer.kind(writer.graph.type_of(ref))
    return Result(writer.lettered(ref), writer.plain[ref], ref, kind, dtype, single)
