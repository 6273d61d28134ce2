"""Totals of a whole model: parameters by name, FLOPs, bytes of memory, before anything runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from archc.graph.costs import Cost, Sizes
from archc.graph.types import Graph, Module, Node, Ref
from archc.operations.base import StateSpec, widest
from archc.operations.registry import operations
from archc.spec.axes import Axis

Shape = tuple[int, ...]
LENGTH_BYTES = 8  # each body of a mixture that remembers counts its tokens


def parameter_shapes(graph: Graph) -> dict[str, Shape]:
    """Every parameter of the model by its name in the state dict, with its shape."""
    settings = graph.settings
    width = settings.d_model
    found: dict[str, Shape] = {"embedding.weight": (settings.vocab_size, width)}
    if settings.embedding_norm is not None:
        found |= _norm("embedding_norm", settings.embedding_norm, width)
    for index, key in enumerate(graph.layers()):
        found |= _module_parameters(graph, key, f"layers.{index}.")
    for name, key in graph.shared.items():
        found |= _module_parameters(graph, key, f"shared.{name}.")
    for module in graph.modules.values():
        for path, shape in _owned(module, "model", "").items():
            found.setdefault(path, shape)
    found |= _norm("norm", settings.norm, width)
    if not settings.tie_embeddings:
        found["head.weight"] = (settings.vocab_size, width)
    return found


def count_parameters(graph: Graph) -> int:
    """How many parameters `parameter_shapes` has, in the time of one layer of each class."""
    settings = graph.settings
    width = settings.d_model
    found: dict[str, Shape] = {"embedding.weight": (settings.vocab_size, width)}
    if not settings.tie_embeddings:
        found["head.weight"] = (settings.vocab_size, width)
    found |= _norm("norm", settings.norm, width)
    if settings.embedding_norm is not None:
        found |= _norm("embedding_norm", settings.embedding_norm, width)
    for module in graph.modules.values():
        for path, shape in _owned(module, "model", "").items():
            found.setdefault(path, shape)
    groups = [(found, 1), *((_module_parameters(graph, key, ""), 1) for key in graph.shared.values())]
    groups += [(_module_parameters(graph, key, ""), count) for key, count in Counter(graph.layers()).items()]
    return sum(count * _product(shape) for shapes, count in groups for shape in shapes.values())


def _norm(name: str, kind: str, width: int) -> dict[str, Shape]:
    found: dict[str, Shape] = {f"{name}.weight": (width,)}
    return found | ({f"{name}.bias": (width,)} if kind == "layernorm" else {})


def _module_parameters(graph: Graph, key: str, prefix: str) -> dict[str, Shape]:
    module = graph.modules[key]
    sizes = Sizes(module.values)
    found = _owned(module, "self", prefix)
    for slot, keys in module.slots.items():
        inner = graph.modules[keys[0]]
        if slot in module.shared:
            found |= _owned(inner, "site", f"{prefix}{slot}.")
            continue
        if inner.body.kind == "part":
            found |= _owned(inner, "mixer", prefix)
        for name in _instances(module, slot, sizes):
            found |= _module_parameters(graph, keys[0], f"{prefix}{name}.")
    return found


def _instances(module: Module, slot: str, sizes: Sizes) -> list[str]:
    """The attributes under which a slot's modules stand: itself, or `memory.0`, `memory.1` in a mixture."""
    for node in module.subgraph.nodes:
        if node.op == "mixture" and node.name == slot:
            return [f"{slot}.{index}" for index in range(sizes.axis(node.attrs["count"]))]
    return [slot]


def _owned(module: Module, owner: str, prefix: str) -> dict[str, Shape]:
    """The weights of a module that belong to `owner`: "self", "mixer", "site" or "model"."""
    sizes = Sizes(module.values)
    found: dict[str, Shape] = {}
    for node in module.subgraph.nodes:
        share = node.attrs.get("share")
        holder = "self" if share is None or share == "mixer" and module.body.kind != "part" else share
        if holder == owner:
            for path, shape in operations()[node.op].parameters(node, sizes):
                found.setdefault(prefix + path, shape)
    return found


@dataclass(frozen=True, slots=True)
class CostReport:
    """What a model costs. FLOPs count a multiply-add as two; bytes are for `batch_size` sequences.

    `cache_bytes_per_token`: keys and values of full attention, a token of one sequence.
    `matrix_flops_per_call`: matrices over values of the model, whatever the tokens.
    `window_bytes`: rings of windows, full; those that `tokens` do not fill count among the caches.
    `state_bytes`: everything that does not grow with the length.
    """

    name: str
    parameters: int
    parameter_bytes: int
    tokens: int
    batch_size: int
    prefill_flops: int
    decode_flops: int
    training_flops: int
    matrix_flops_per_token: int
    matrix_flops_per_call: int
    cache_bytes_per_token: int
    cache_bytes: int
    window_bytes: int
    state_bytes: int

    def facts(self) -> list[str]:
        """What the header of `model.py` says."""
        found = [
            f"{self.parameters:,} parameters, {self.matrix_flops_per_token:,} FLOPs a token in matrices."
        ]
        memory = [(self.state_bytes // self.batch_size, "bytes of state")]
        memory += [(self.window_bytes // self.batch_size, "bytes of windows")]
        memory += [(self.cache_bytes_per_token, "bytes of cache a token")]
        listed = ", ".join(f"{count:,} {what}" for count, what in memory if count)
        return [*found, f"Memory of a sequence, activations in 2 bytes: {listed}."] if listed else found

    def __str__(self) -> str:
        rows = [
            ("parameters", f"{self.parameters:,}", f"{bytes_text(self.parameter_bytes)} in bfloat16"),
            (
                "prefill",
                count_text(self.prefill_flops),
                f"FLOPs for {self.batch_size} x {self.tokens:,} tokens",
            ),
            ("decode", count_text(self.decode_flops), f"FLOPs a step at context {self.tokens:,}"),
            (
                "training",
                count_text(self.training_flops),
                f"FLOPs a step of {self.batch_size} x {self.tokens:,} tokens",
            ),
            (
                "cache",
                bytes_text(self.cache_bytes),
                f"keys and values at {self.tokens:,} tokens, {self.cache_bytes_per_token:,} bytes a token",
            ),
            ("windows", bytes_text(self.window_bytes), "keys and values of windows, once full"),
            ("state", bytes_text(self.state_bytes), "whatever the length"),
        ]
        wide = max(len(value) for _, value, _ in rows)
        return "\n".join([self.name, *(f"  {name:<11}{value:>{wide}}  {note}" for name, value, note in rows)])


def count_text(value: float, digits: int = 3) -> str:
    """A count as people read it, such as "341 M"."""
    for unit in ("", "K", "M", "G", "T", "P", "E"):
        if value < 1000:
            return f"{value:.{digits}g} {unit}".strip()
        value /= 1000
    return f"{value:.3g} Z"


def bytes_text(value: float) -> str:
    """A number of bytes as people read it, such as "13.8 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            return f"{value:.3g} {unit}" if value < 1000 else f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.3g} PiB"


def cost_report(
    graph: Graph, *, batch_size: int = 1, tokens: int | None = None, bytes_per_value: int = 2
) -> CostReport:
    """The costs of a model for sequences of `tokens` (default: its context), activations of 2 bytes."""
    length = graph.settings.context if tokens is None else tokens
    return cost_reports(graph, (length,), batch_size=batch_size, bytes_per_value=bytes_per_value)[0]


def cost_reports(
    graph: Graph, lengths: Sequence[int], *, batch_size: int = 1, bytes_per_value: int = 2
) -> list[CostReport]:
    """The costs of a model for sequences of several lengths; each operation is counted once for all of them."""
    layers = Counter(graph.layers())
    per_module = {key: _module_costs(graph, key) for key in layers}
    memory = _memory(graph, layers, bytes_per_value)
    parameters = count_parameters(graph)
    return [_cost_at(graph, length, batch_size, layers, per_module, memory, parameters) for length in lengths]


def _cost_at(
    graph: Graph,
    length: int,
    batch_size: int,
    layers: Counter[str],
    per_module: dict[str, list[Cost]],
    memory: Memory,
    parameters: int,
) -> CostReport:
    head = Cost(matrix_flops=2 * graph.settings.d_model * graph.settings.vocab_size)
    prefill = decode = training = batch_size * length * head.matrix_flops
    decode = batch_size * head.matrix_flops
    training *= 3
    matrix, matrix_a_call = head.matrix_flops, 0
    for key, count in layers.items():
        for cost in per_module[key]:
            matrix += count * cost.matrix_flops
            matrix_a_call += count * cost.call_matrix_flops
            pairs = _pairs(length, cost.window)
            seen = min(length, cost.window or length)
            prefill += (
                count
                * batch_size
                * (length * (cost.matrix_flops + cost.chunk_flops + cost.flops) + pairs * cost.key_flops)
            )
            decode += (
                count
                * batch_size
                * (
                    cost.matrix_flops
                    + cost.step_flops
                    + cost.flops
                    + seen * (cost.key_flops + cost.step_key_flops)
                )
            )
            training += (
                count
                * batch_size
                * (
                    length
                    * (3 * cost.matrix_flops + cost.chunk_flops + cost.chunk_backward_flops + 3 * cost.flops)
                    + 3 * pairs * cost.key_flops
                )
            )
    grows = memory.grows + sum(size for slots, size in memory.rings.items() if slots > length)
    return CostReport(
        graph.name,
        parameters,
        2 * parameters,
        length,
        batch_size,
        prefill + matrix_a_call,
        decode + matrix_a_call,
        training + 3 * matrix_a_call,
        matrix,
        matrix_a_call,
        grows,
        batch_size * length * grows,
        batch_size * sum(size * slots for slots, size in memory.rings.items() if slots <= length),
        batch_size * memory.fixed,
    )


@dataclass
class Memory:
    """Bytes of one sequence: a token of the growing caches, a slot of the rings by their slots, the rest."""

    grows: int = 0
    rings: Counter[int] = field(default_factory=Counter)
    fixed: int = 0


def _pairs(length: int, window: int | None) -> int:
    """How many (query, visible key) pairs a causal sequence has."""
    if window is None or window >= length:
        return length * (length + 1) // 2
    return window * (window + 1) // 2 + (length - window) * window


def _product(shape: Shape) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


class Visited(NamedTuple):
    """A node of a module or of one in its slots.

    `path`: the slots that lead to its module. `copies`: bodies that hold it, each with a memory of its own. `visits`:
    how many of them a token passes through.
    """

    path: str
    module: Module
    node: Node
    copies: int
    visits: int


def _nodes(graph: Graph, key: str, path: str = "", copies: int = 1, visits: int = 1) -> Iterator[Visited]:
    """The nodes of a module and of those in its slots."""
    module = graph.modules[key]
    for node in module.subgraph.nodes:
        yield Visited(path, module, node, copies, visits)
    sizes = Sizes(module.values)
    for slot, keys in module.slots.items():
        bodies, chosen = len(_instances(module, slot, sizes)), 1
        for node in module.subgraph.nodes:
            if node.op == "mixture" and node.name == slot:
                chosen = min(bodies, _sent_to(module, node, sizes) or bodies)
        yield from _nodes(graph, keys[0], f"{path}{slot}.", copies * bodies, visits * chosen)


def _sent_to(module: Module, mixture: Node, sizes: Sizes) -> int | None:
    """How many bodies a token is sent to: what `topk` keeps of the weights, or None where all are present."""
    pending = [mixture.inputs[1]]
    while pending:
        node = module.subgraph.nodes[pending.pop().node]
        if node.op == "topk":
            return int(sizes.number(node.attrs["k"]))
        if module.subgraph.type_of(Ref(node.id)).absent:
            pending += node.inputs
    return None


def _module_costs(graph: Graph, key: str) -> list[Cost]:
    """One cost for everything without a window, and one for each windowed attention."""
    total, windowed = Cost(), []
    for _, module, node, _, visits in _nodes(graph, key):
        cost = operations()[node.op].cost(node, module.subgraph, Sizes(module.values)).times(visits)
        if cost.window is None:
            total = total + cost
        else:
            windowed.append(cost)
    return [total, *windowed]


def _memory(graph: Graph, layers: Counter[str], width: int) -> Memory:
    """What one sequence keeps."""
    found = Memory()
    for key, count in layers.items():
        entries: dict[tuple[str, str], tuple[StateSpec, Sizes, int]] = {}
        counted: set[str] = (
            set()
        )  # mixtures whose bodies remember, and so count the tokens that they have seen
        for path, module, node, copies, _ in _nodes(graph, key):
            for state in operations()[node.op].states(node, module.subgraph):
                known, *_ = entries.get((path, state.name), (state, None, 0))
                entries[path, state.name] = widest(known, state), Sizes(module.values), copies
                counted.add(path)
        for state, sizes, copies in entries.values():
            size = copies * sizes.product(state.shape) * (4 if state.dtype == "float32" else width)
            if isinstance(state.slots, Axis):
                found.rings[sizes.axis(state.slots)] += count * size
            elif state.slots is None:
                found.fixed += count * size
            else:
                every = 1 if state.every is None else int(sizes.number(state.every))
                found.grows += count * -(-size // every)
        for path, module, node, copies, _ in _nodes(graph, key):
            if node.op == "mixture" and any(inner.startswith(f"{path}{node.name}.") for inner in counted):
                bodies = Sizes(module.values).axis(node.attrs["count"])
                found.fixed += count * copies * bodies * LENGTH_BYTES
    return found


__all__ = [
    "CostReport",
    "bytes_text",
    "cost_report",
    "cost_reports",
    "count_parameters",
    "count_text",
    "parameter_shapes",
]
