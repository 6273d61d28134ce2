"""attention: softmax over earlier tokens, with declared mask and score, grouped heads, caches and windows."""

from __future__ import annotations

from collections.abc import Sequence

from archc.codegen.printer import Code, Printer, call
from archc.graph.calls import Call, Pair, shape
from archc.graph.costs import Cost, Sizes
from archc.graph.types import Node, Ref, Subgraph, ValueType
from archc.graph.values import Traced, Value
from archc.operations.base import Operation, Signature, StateSpec
from archc.operations.heads import fail_operand, split_heads, widest_heads
from archc.spec import expressions as ex
from archc.spec.axes import Axis

OUTPUTS = ("out", "lse", "max")


class Attention(Operation):
    """o_t = sum_j softmax_j(scale * q_t . k_j) v_j over the tokens j <= t of the same document (Vaswani et al. 2017).

    `mask=` and `score=` are expressions over `i`, `j` and `s`; a mask only removes. The default scale is
    K ** -0.5. Head counts that differ must be declared with `divides:`.
    """

    name = "attention"
    title = "softmax attention over earlier tokens"
    signature = Signature.parse(
        "q, k, v, *, mask: pair?, score: pair?, scale: static?, sink?, outputs: words?, "
        "causal: static?, name: word?"
    )

    def build(self, call: Call) -> Value:
        """Shapes: q [H, K], k [G, K], v [G, V] -> [H, V]; the head axis may be absent."""
        q, k, v = call.value("q"), call.value("k"), call.value("v")
        for value, name in ((q, "q"), (k, "k"), (v, "v")):
            if value.type.rate != "token" or not 1 <= len(value.type.axes) <= 2:
                fail_operand(call, name, value.type)
        if q.type.axes[-1] != k.type.axes[-1]:
            call.fail(
                "E371",
                f"the last axes of q and k differ: `{q.type.axes[-1]}` and `{k.type.axes[-1]}`",
                call.span_of("k"),
                help="give the key the axis of the query: their product is taken along it",
            )
        heads = widest_heads(call, {"q": q.type.axes[:-1], "k": k.type.axes[:-1], "v": v.type.axes[:-1]})
        if split_heads(k)[0] != split_heads(v)[0]:
            call.fail(
                "E371",
                f"k and v must have the same heads, they are {shape(k.type.axes)} and {shape(v.type.axes)}",
                call.span_of("v"),
                help="repeat(v, few, many) gives each head several times",
            )
        if split_heads(q)[0] != heads:
            call.fail(
                "E371",
                f"q has the heads `{split_heads(q)[0] or 'none'}`, k and v have more: `{heads}`",
                call.span_of("q"),
                note="each key head serves one or several query heads",
                help="let the number of key heads divide that of query heads",
            )
        outputs = call.words("outputs", OUTPUTS) or ("out",)
        causal = call.flag("causal", True)
        mask, score = call.pair("mask"), call.pair("score")
        window = _window(mask) if causal else None
        inputs: list[Traced] = [q, k, v]
        sink = call.optional("sink")
        if sink is not None:
            inputs.append(sink)
        names: dict[str, int] = {}
        for pair in (mask, score):
            for name, value in pair.values if pair is not None else ():
                if name not in names:
                    names[name] = len(inputs)
                    inputs.append(value)
        attrs = {
            "heads": heads,
            "scale": call.static("scale"),
            "causal": causal,
            "window": window,
            "mask": None if window is not None else mask,
            "score": score,
            "outputs": outputs,
            "sink": sink is not None,
            "pair_inputs": names,
            "keys": self._entry(call, k, "k"),
            "values": self._entry(call, v, "v"),
        }
        full = ValueType((*((heads,) if heads else ()), v.type.axes[-1]), "token")
        per_head = ValueType((heads,) if heads else ())
        types = [full if output == "out" else per_head for output in outputs]
        if len(types) == 1:
            return call.add(inputs, types[0], attrs)
        return call.add_several(inputs, types, attrs)

    def _entry(self, call: Call, value: Traced, fallback: str) -> str:
        """The name of a cached value: the equation that it is (rule 12: one cache for each distinct k or v)."""
        for name, known in call.scope.values.items():
            if isinstance(known, Traced) and known.ref == value.ref:
                return name
        return f"{call.scope.equation}_{fallback}"

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`attention(q, k, v, scale=..., place=place, keys="k", values="v")`."""
        printer.use("attention", "attention")
        q, k, v = (
            printer.with_heads(code, printer.type_of(ref)) for code, ref in zip(inputs[:3], node.inputs[:3])
        )
        attrs = node.attrs
        scale = (
            printer.number(attrs["scale"]).text
            if attrs["scale"] is not None
            else f"{printer.size(printer.type_of(node.inputs[0]).axes[-1]).at(11)} ** -0.5"
        )
        window = None if attrs["window"] is None else printer.whole(attrs["window"])
        sink = inputs[3] if attrs["sink"] else None
        names = {name: inputs[index] for name, index in attrs["pair_inputs"].items()}
        lambdas = {key: self._lambda(key, attrs[key], names, node, printer) for key in ("mask", "score")}
        outputs = (
            None
            if attrs["outputs"] == ("out",)
            else f"({', '.join(repr(o) for o in attrs['outputs'])})".replace("'", '"')
        )
        found = call(
            "attention",
            q,
            k,
            v,
            scale=scale,
            place=printer.place(),
            keys=f'"{attrs["keys"]}"',
            values=f'"{attrs["values"]}"',
            window=window,
            mask=lambdas["mask"],
            score=lambdas["score"],
            sink=sink,
            causal=None if attrs["causal"] else "False",
            outputs=outputs,
        )
        return found if attrs["heads"] is not None else Code(f"{found.text}.squeeze(2)")

    def _lambda(
        self, kind: str, pair: Pair | None, names: dict[str, Code], node: Node, printer: Printer
    ) -> str | None:
        if pair is None:
            return None
        args = "i, j" if kind == "mask" else "s, i, j"
        return f"lambda {args}: {printer.pair(pair.expr, names)}"

    def states(self, node: Node, graph: Subgraph) -> list[StateSpec]:
        """Keys and values of every token, or of the window."""
        if not node.attrs["causal"]:
            return []
        slots: Axis | str = "all" if node.attrs["window"] is None else Axis.of(node.attrs["window"])
        found = []
        for ref, name in zip(node.inputs[1:3], (node.attrs["keys"], node.attrs["values"])):
            axes = graph.type_of(ref).axes
            shape = axes if len(axes) == 2 else (Axis.number(1), *axes)
            found.append(StateSpec(name, shape, "compute", slots))
        return found

    def cost(self, node: Node, graph: Subgraph, sizes: Sizes) -> Cost:
        """For each visible key 2 K FLOPs of the score, 2 V of the sum and about 6 of the softmax, a head."""
        q, v = graph.type_of(node.inputs[0]), graph.type_of(node.inputs[2])
        heads = sizes.axis(node.attrs["heads"]) if node.attrs["heads"] is not None else 1
        per_key = heads * (2 * sizes.axis(q.axes[-1]) + 2 * sizes.axis(v.axes[-1]) + 6)
        window = node.attrs["window"]
        return Cost(key_flops=per_key, window=None if window is None else int(sizes.number(window)))


def _window(mask: Pair | None) -> ex.Expr | None:
    """`w` where the mask is `i - j < w` or `i - j <= w - 1`: kept as a ring of w tokens."""
    if mask is None or mask.values or not isinstance(mask.expr, ex.Compare) or len(mask.expr.ops) != 1:
        return None
    left, right = mask.expr.operands
    distance = (
        isinstance(left, ex.Binary)
        and left.op == "-"
        and isinstance(left.left, ex.Name)
        and isinstance(left.right, ex.Name)
        and (left.left.id, left.right.id) == ("i", "j")
    )
    free = {node.id for node in right.walk() if isinstance(node, ex.Name)}
    return right if distance and mask.expr.ops[0] == "<" and not free & {"i", "j", "s"} else None


OPERATIONS = (Attention(),)
__all__ = ["OPERATIONS", "Ref"]
