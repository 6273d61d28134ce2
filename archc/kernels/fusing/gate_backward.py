"""An elementwise region backward: slopes passed back by the rule of each function, and summed over tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from archc.graph.types import Node, Ref
from archc.kernels.fusing.gate_counts import Counts, counted
from archc.kernels.fusing.gate_forward import Forward
from archc.kernels.fusing.gate_functions import slopes_of
from archc.kernels.fusing.gate_lines import MASKS, Lines, Value, fresh, loads_first, summed
from archc.kernels.triton_derivatives import ITSELF, PRODUCT, SIGN, SUM


@dataclass(frozen=True, slots=True)
class Written:
    """Lines before the loop over tokens, in it and after it; operands that something reaches; what is computed."""

    before: tuple[str, ...]
    inner: tuple[str, ...]
    after: tuple[str, ...]
    reached: frozenset[Ref]
    counts: Counts


class Backward:
    """Writes the backward of a region whose values the forward has."""

    def __init__(self, forward: Forward) -> None:
        self.own = forward
        self.region = forward.region
        self.graph = forward.graph

    def lines(self) -> Written:
        """Everything that the kernel does."""
        reaching: dict[Ref, list[Value]] = {}
        for ref in self.region.results:
            name = self.own.plain[ref]
            kind = self.own.kind(self.graph.type_of(ref))
            text = f"tl.load(d{name}_ptr + {self.own.place(kind)}, {MASKS[kind]}, 0.0).to(tl.float32)"
            reaching[ref] = [Value(text, kind=kind, wish=f"d{name}", keep=True)]
        sums: dict[Ref, list[Value]] = {}
        for node in reversed(self.region.nodes):
            if node.type.rate == "token":
                self._pass_back(node, reaching, sums)
        reached = [ref for ref in self.region.operands if reaching.get(ref)]
        stored = [self._total(ref, reaching) for ref in reached]
        added = {ref: self._added(ref, parts) for ref, parts in sums.items()}
        collected = {
            ref: Value(f"d{self.own.wish(ref)}", kind=self.own.kind(self.graph.type_of(ref)), model=True)
            for ref in sums
        }
        later: dict[Ref, list[Value]] = {ref: [value] for ref, value in collected.items()}
        for node in reversed(self.region.nodes):
            if node.type.rate == "model":
                self._pass_back(node, later, later)
        shared = [ref for ref in self.region.operands if later.get(ref)]
        last = [self._total(ref, later) for ref in shared]

        lines = Lines(self.own.named(), [*stored, *added.values(), *last])
        before, after = [], []
        for value in collected.values():
            name = fresh(f"{value.text}{'_' if value.kind else ''}{value.kind}", lines.taken)
            lines.names[value] = name
            start = "tl.zeros([BLOCK_C], tl.float32)" if value.kind else "0.0"
            before.append(f"{name} = {start}")
        inner = []
        for ref, value in added.items():
            lines.bind(value)
            text = lines.text(value).text
            inner.append(f"{lines.names[collected[ref]]} += {text}")
        stores = []
        for ref, value in zip(reached, stored):
            kind = self.own.kind(self.graph.type_of(ref))
            lines.bind(value)
            text = lines.text(value, kind).text
            stores.append(
                f"tl.store(d{self.own.plain[ref]}_ptr + {self.own.place(kind)}, {text}, {MASKS[kind]})"
            )
        own_lines = loads_first(lines.own)
        lines.own = []
        ahead, lines.model = lines.model, []
        for ref, value in zip(shared, last):
            kind = self.own.kind(self.graph.type_of(ref))
            lines.bind(value)
            text = lines.text(value, kind).text
            at, mask = (f"span * {self.own.entries} + at_C", ", in_C") if kind else ("pid", "")
            after.append(f"tl.store(d{self.own.plain[ref]}_ptr + {at}, {text}{mask})")
        behind = (*lines.model, *lines.own, *after)
        return Written(
            (*loads_first(ahead), *before), (*own_lines, *inner, *stores), behind,
            frozenset({*reached, *shared}), counted([*stored, *last], [*added.values()]),
        )  # fmt: skip

    def _pass_back(self, node: Node, reaching: dict[Ref, list[Value]], sums: dict[Ref, list[Value]]) -> None:
        """Hand what reaches a node on to its operands; what tokens send to values of the model into `sums`."""
        ref = Ref(node.id)
        if not reaching.get(ref):
            return
        d = self._total(ref, reaching)
        rules = (ITSELF, None) if node.op == "cast_like" else slopes_of(node, self.graph)
        assert rules is not None
        for operand, rule in zip(node.inputs, rules):
            if rule is None or self.graph.type_of(operand).rate == "static":
                continue
            sent = d
            if rule.text:
                operands = tuple(self.own.operand_value(r) for r in node.inputs)
                places = {"y": f"{{{len(operands)}}}", "d": f"{{{len(operands) + 1}}}"}
                text = rule.text.replace("{y}", places["y"]).replace("{d}", places["d"])
                made = (*operands, self.own.values[ref], d)
                kept = [number for number in range(len(made)) if f"{{{number}}}" in text]
                for place, number in enumerate(kept):
                    text = text.replace(f"{{{number}}}", f"{{#{place}}}")
                sent = Value(
                    text.replace("#", ""), tuple(made[number] for number in kept), self.own.kind(node.type),
                    rule.level, SIGN, f"d{self.own.wish(operand)}", model=node.type.rate == "model",
                )  # fmt: skip
            type_ = self.graph.type_of(operand)
            kind, whole = self.own.kind(type_), self.own.kind(node.type)
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
        kind, model = self.own.kind(self.graph.type_of(ref)), all(part.model for part in parts)
        return Value(text, tuple(parts), kind, SUM, PRODUCT, f"d{self.own.wish(ref)}", model=model)

    def _added(self, ref: Ref, parts: Sequence[Value]) -> Value:
        """What the tokens of a block add to the slope of a value of the model."""
        kind = self.own.kind(self.graph.type_of(ref))
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
