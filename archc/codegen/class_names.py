"""Names for the classes that the modules of a graph become, and what they need of one another."""

from __future__ import annotations

from collections import Counter

from archc.codegen.weights import owned_nodes
from archc.graph.reach import static_names
from archc.graph.types import Graph, Module
from archc.printing.names import Names

# What modules of a package import or define themselves.
TAKEN = frozenset(
    "Model Config LanguageModel Tensor Place Entry RMSNorm LayerNorm CausalConv1d BlockLinear PerEntryLinear Cell "
    "F".split()
)


def camel(key: str) -> str:
    """`gated_mixer_2` -> `GatedMixer2`."""
    return "".join(part[:1].upper() + part[1:] for part in key.split("_"))


def class_names(graph: Graph) -> dict[str, str]:
    """The class of each module. Of the variants of one body the most used has the plain name."""
    taken = set(TAKEN)
    layers = Counter(graph.layers())
    first = next(graph.layers())
    uses: Counter[str] = Counter()
    for key, count in layers.items():
        uses.update(dict.fromkeys(below(graph, key), count))
    found: dict[str, str] = {}
    for key in sorted(graph.modules, key=lambda key: -uses[key]):
        module = graph.modules[key]
        name = camel(module.prefix if module.body.kind != "part" else key)
        name += "Block" if key in layers and not name.endswith("Block") else ""
        if name in taken and key in below(graph, first) and uses[key] == 1:
            name = f"First{name}"
        plain, number = name, 2
        while name in taken:
            name, number = f"{plain}Variant{number}", number + 1
        taken.add(name)
        found[key] = name
    return found


def below(graph: Graph, key: str) -> list[str]:
    """A module and those that fill its slots."""
    return [
        key,
        *(inner for keys in graph.modules[key].slots.values() for k in keys for inner in below(graph, k)),
    ]


def names_of(graph: Graph) -> Names:
    """What the classes are called and take, from the inside out."""
    classes = class_names(graph)
    modules = graph.modules
    counted = {m.body.name for m in modules.values() if _reads(m, "site")}
    layer: dict[str, bool] = {}
    sites: dict[str, bool] = {}
    owners: dict[str, dict[str, str]] = {}
    for key, module in modules.items():
        inner = [k for slot, keys in module.slots.items() if slot not in module.shared for k in keys]
        alternates = any(len(keys) > 1 for slot, keys in module.slots.items() if slot in module.shared)
        layer[key] = _reads(module, "layer") or any(layer[k] for k in inner)
        sites[key] = module.body.name in counted or alternates or any(sites[k] for k in inner)
        owners[key] = {}
        if owned_nodes(module, "mixer"):
            parent = next(k for k, m in modules.items() if any(key in keys for keys in m.slots.values()))
            owners[key]["mixer"] = classes[parent]
        if owned_nodes(module, "site"):
            owners[key]["site"] = f"{classes[key]}Site"
    tops = set(graph.layers())  # the model builds them all alike
    layer |= dict.fromkeys(tops, any(layer[key] for key in tops))
    sites |= dict.fromkeys(tops, any(sites[key] for key in tops))
    return Names(classes, owners, layer, sites, frozenset(counted))


def _reads(module: Module, name: str) -> bool:
    """Whether an expression of a module has this static name."""
    return any(name in static_names(node) for node in module.subgraph.nodes)
