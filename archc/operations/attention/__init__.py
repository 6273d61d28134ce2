"""attention: softmax over earlier tokens, with declared mask and score, grouped heads, caches and windows."""

from __future__ import annotations

from collections.abc import Sequence

from archc.graph.calls import Call, Pair, shape
from archc.graph.costs import Cost, Sizes
from archc.graph.types import Node, Ref, Subgraph, ValueType
from archc.graph.values import Traced, Value
from archc.operations.attention.cut import Cached, check_cut
from archc.operations.base import Operation, Signature, StateSpec
from archc.operations.blocks import printed
from archc.operations.blocks.rate import KEYS, BlockRate, blocks_of, same
from archc.operations.heads import fail_operand, split_heads, widest_heads
from archc.operations.registry import operations
from archc.printing.printer import Code, Printer, call
from archc.spec import expressions as ex
from archc.spec.axes import Axis

OUTPUTS = ("out", "lse", "max", "probs")


class Attention(Operation):
    """o_t = sum_j softmax_j(scale * q_t . k_j) v_j over the tokens j <= t of the same document (Vaswani et al. 2017).

    `mask=` and `score=` are expressions over `i`, `j` and `s`, values of the model, and values of the two tokens as
    `v[i]` and `v[j]`; a mask only removes. The default scale is K ** -0.5. Head counts that differ must be declared
    with `divides:`. Keys and values at block rate are visible when their block is whole, and `j` counts blocks;
    `select=` leaves the tokens of chosen blocks. `cache=` names what is kept of each token instead of k and v.
    """

    name = "attention"
    forms = ("softmax over the cache",)
    title = "softmax attention over earlier tokens"
    signature = Signature.parse(
        "q, k, v, *, mask: pair?, score: pair?, scale: static?, sink?, cache: cut?, select?, "
        "outputs: words?, causal: static?, name: word?"
    )

    def build(self, call: Call) -> Value:
        """Shapes: q [H, K], k [G, K], v [G, V] -> [H, V]; the head axis may be absent."""
        q, k, v = call.value("q"), call.value("k"), call.value("v")
        heads = self._heads(call, q, k, v)
        outputs = call.words("outputs", OUTPUTS) or ("out",)
        causal = call.flag("causal", call.scope.settings.causal)
        mask, score = call.pair("mask"), call.pair("score")
        blocks = self._blocks(call, k, v, causal)
        # A ring's keys have no places for probs.
        ringed = causal and blocks is None and "probs" not in outputs
        window, rest = _window(mask) if ringed else (None, mask)
        inputs: list[Traced] = [q, k, v]
        sink = call.optional("sink")
        if sink is not None:
            inputs.append(sink)
        names = self._pair_inputs(call, (mask, score), heads, blocks is not None, inputs)
        kept = {
            name: self._entry(call, inputs[index], name)
            for name, index in names.items()
            if inputs[index].type.rate == "token"
        }
        select = self._select(call, k, heads, blocks)
        if select is not None:
            inputs.append(select[0])
        cut = call.cut("cache")
        if cut:
            check_cut(call, cut, {"k": k, "v": v})
        entries = tuple(self._entry(call, value, f"kept{n}") for n, value in enumerate(cut))
        inputs += cut
        attrs = {
            "heads": heads,
            "scale": call.static("scale"),
            "causal": causal,
            "window": window,
            "mask": rest,
            "score": score,
            "outputs": outputs,
            "sink": sink is not None,
            "pair_inputs": names,
            "pair_entries": kept,
            "blocks": BlockRate.tokens(call.span) if blocks is None else blocks,
            "in_blocks": blocks is not None,
            "select": None if select is None else select[1],
            "cut": entries,
            "keys": self._entry(call, k, "k"),
            "values": self._entry(call, v, "v"),
        }
        full = ValueType((*((heads,) if heads else ()), v.type.axes[-1]), "token")
        per_head = ValueType((heads,) if heads else ())
        over_keys = ValueType((*per_head.axes, KEYS), "token", 0.0, 1.0)
        types = [{"out": full, "probs": over_keys}.get(output, per_head) for output in outputs]
        if len(types) == 1:
            return call.add(inputs, types[0], attrs)
        return call.add_several(inputs, types, attrs)

    def _heads(self, call: Call, q: Traced, k: Traced, v: Traced) -> Axis | None:
        """The heads of the queries, which those of keys and values divide."""
        for value, name in ((q, "q"), (k, "k"), (v, "v")):
            rates = ("token",) if name == "q" else ("token", "block")
            if value.type.rate not in rates or not 1 <= len(value.type.axes) <= 2:
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
        return heads

    def _pair_inputs(
        self,
        call: Call,
        pairs: Sequence[Pair | None],
        heads: Axis | None,
        in_blocks: bool,
        inputs: list[Traced],
    ) -> dict[str, int]:
        """Values that masks and scores read, appended to the inputs: name -> place there."""
        names: dict[str, int] = {}
        for pair in pairs:
            for name, value in pair.values if pair is not None else ():
                self._check_heads(call, name, value, heads, pair)
                if in_blocks and value.type.rate == "token":
                    call.fail(
                        "E382",
                        f"`{name}` has tokens, the keys here are blocks: there is no `{name}` of a key",
                        pair.expr.span if pair is not None else call.span,
                        help="make a value of the blocks part of their keys instead",
                    )
                if name not in names:
                    names[name] = len(inputs)
                    inputs.append(value)
        return names

    def _blocks(self, call: Call, k: Traced, v: Traced, causal: bool) -> BlockRate | None:
        """The blocks that keys and values count in, or None for tokens."""
        if {k.type.rate, v.type.rate} == {"token"}:
            return None
        if k.type.rate != v.type.rate:
            call.fail(
                "E382",
                "of k and v one has tokens and one has blocks",
                call.span_of("v"),
                help="make blocks of both, of the same size",
            )
        if not causal:
            call.fail(
                "E382",
                "attention over blocks sees whole blocks only, so it is causal",
                call.span_of("causal"),
            )
        found, other = blocks_of(call, k), blocks_of(call, v)
        if not (same(call, found.width, other.width) and same(call, found.stride, other.stride)):
            call.fail(
                "E382",
                "k and v count in blocks of different sizes",
                call.span_of("v"),
                help="make blocks of both, of the same size",
            )
        if call.has("cache"):
            call.fail(
                "E381",
                "values at block rate are kept as they are",
                call.span_of("cache"),
                help="leave out cache=",
            )
        return found

    def _select(
        self, call: Call, k: Traced, heads: Axis | None, blocks: BlockRate | None
    ) -> tuple[Traced, ex.Expr] | None:
        """The chosen blocks, and how many tokens each has."""
        given = call.optional("select")
        if given is None:
            return None
        wrong = given.type.axes[-1:] != (KEYS,) or blocks is not None
        allowed = ((KEYS,), (*k.type.axes[:-1], KEYS), (heads, KEYS))
        if wrong or given.type.axes not in allowed:
            call.fail(
                "E382",
                f"select= takes chosen blocks of tokens, with the heads of k, this has {shape(given.type.axes)}",
                call.span_of("select"),
                help="topk(probs, n, over=keys) chooses them",
            )
        rate = blocks_of(call, given)
        if not same(call, rate.width, rate.stride):
            call.fail(
                "E382",
                "the chosen blocks overlap, so they cannot be looked at one by one",
                call.span_of("select"),
                help="regroup(probs, n) counts the weights in blocks of n tokens that do not",
            )
        return given, rate.width

    def _check_heads(
        self, call: Call, name: str, value: Traced, heads: Axis | None, pair: Pair | None
    ) -> None:
        """A value in a mask or score is one number, or one for each query head."""
        if value.type.axes not in ((), (heads,)):
            call.fail(
                "E380",
                f"`{name}` has {shape(value.type.axes)}: a mask or score takes one number a head",
                pair.expr.span if pair is not None else call.span,
                help=f"the query heads are `{heads or 'none'}`",
            )

    def _entry(self, call: Call, value: Traced, fallback: str) -> str:
        """The name of a cached value: the equation that it is (rule 12: one cache for each distinct value)."""
        for name, known in call.scope.values.items():
            if isinstance(known, Traced) and known.ref == value.ref:
                node = call.scope.nodes[value.ref.node]
                remembers = node.name == name and not operations()[node.op].tokenwise
                return f"{name}_kept" if remembers else name  # the operation's own memory has the plain name
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
        names, tokens = self._pair_values(node, inputs, printer)
        lambdas = {
            key: self._lambda(key, attrs[key], names, list(tokens), printer) for key in ("mask", "score")
        }
        given = ", ".join(f'"{attrs["pair_entries"][name]}": {code.text}' for name, code in tokens.items())
        select = None
        if attrs["select"] is not None:
            at = 3 + attrs["sink"] + len(attrs["pair_inputs"])
            type_ = printer.type_of(node.inputs[at])
            select = printer.with_heads(inputs[at], type_)
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
            place=_keeper(node, printer),
            keys=f'"{attrs["keys"]}"',
            values=f'"{attrs["values"]}"',
            window=window,
            mask=lambdas["mask"],
            score=lambdas["score"],
            sink=sink,
            causal=None if attrs["causal"] else "False",
            outputs=outputs,
            tokens=f"{{{given}}}" if given else None,
            kept=f'"{attrs["cut"][0]}"' if attrs["cut"] else None,
            blocks=printed(attrs["blocks"], printer) if attrs["in_blocks"] else None,
            select=select,
            select_width=None if select is None else printer.whole(attrs["select"]),
        )
        if attrs["heads"] is not None:
            return found
        if len(attrs["outputs"]) == 1:
            return Code(f"{found.text}.squeeze(2)")
        return Code(f"(found.squeeze(2) for found in {found.text})")

    def _pair_values(
        self, node: Node, inputs: Sequence[Code], printer: Printer
    ) -> tuple[dict[str, Code], dict[str, Code]]:
        """Values of the model as they stand in a mask or score, `[H, 1, 1]`; and values of tokens."""
        names: dict[str, Code] = {}
        tokens: dict[str, Code] = {}
        for name, index in node.attrs["pair_inputs"].items():
            type_ = printer.type_of(node.inputs[index])
            if type_.rate == "token":
                tokens[name] = inputs[index]
            else:
                code = inputs[index]
                names[name] = code if not type_.axes else Code(f"{code.at(12)}[:, None, None]")
        return names, tokens

    def _lambda(
        self, kind: str, pair: Pair | None, names: dict[str, Code], tokens: Sequence[str], printer: Printer
    ) -> str | None:
        if pair is None:
            return None
        args = ["i", "j"] if kind == "mask" else ["s", "i", "j"]
        args += [f"{name}_{at}" for name in tokens for at in ("i", "j")]
        return f"lambda {', '.join(args)}: {printer.pair(pair.expr, names)}"

    def states(self, node: Node, graph: Subgraph) -> list[StateSpec]:
        """Keys and values of every token, block or token of the window, and values that masks and scores read."""
        if not node.attrs["causal"]:
            return []
        attrs = node.attrs
        slots: Axis | str = "all" if attrs["window"] is None else Axis.of(attrs["window"])
        found = [
            StateSpec(entry, graph.type_of(node.inputs[attrs["pair_inputs"][name]]).axes, "float32", slots)
            for name, entry in attrs["pair_entries"].items()
        ]
        if attrs["cut"] or "kept_by" in attrs:
            return found  # each cached value keeps itself, or an earlier layer does
        every = attrs["blocks"].stride if attrs["in_blocks"] else None
        for ref, name in zip(node.inputs[1:3], (node.attrs["keys"], node.attrs["values"])):
            axes = graph.type_of(ref).axes
            shaped = axes if len(axes) == 2 else (Axis.number(1), *axes)
            found.append(StateSpec(name, shaped, "compute", slots, every=every))
        return found

    def cost(self, node: Node, graph: Subgraph, sizes: Sizes) -> Cost:
        """For each visible key 2 K FLOPs of the score, 2 V of the sum and about 6 of the softmax, a head."""
        q, v = graph.type_of(node.inputs[0]), graph.type_of(node.inputs[2])
        heads = sizes.axis(node.attrs["heads"]) if node.attrs["heads"] is not None else 1
        per_key = heads * (2 * sizes.axis(q.axes[-1]) + 2 * sizes.axis(v.axes[-1]) + 6)
        if node.attrs["in_blocks"]:
            per_key = max(1, int(per_key / sizes.number(node.attrs["blocks"].stride)))
        window = node.attrs["window"]
        return Cost(key_flops=per_key, window=None if window is None else int(sizes.number(window)))


def _keeper(node: Node, printer: Printer) -> str:
    """The place whose memory holds keys and values: this layer's, or an earlier one's (see `share_caches`)."""
    if "kept_by" not in node.attrs:
        return printer.place()
    which, name = node.attrs["kept_by"]
    return f'{printer.place()}.keeper("{which}", "{name}")'


def _window(mask: Pair | None) -> tuple[ex.Expr | None, Pair | None]:
    """`w` where the mask is `i - j < w`, or that and other conditions: kept as a ring of w tokens; and the others."""
    if mask is None:
        return None, None
    parts = mask.expr.values if isinstance(mask.expr, ex.Boolean) and mask.expr.op == "and" else (mask.expr,)
    for index, part in enumerate(parts):
        width = _width(part, mask)
        if width is not None:
            rest = parts[:index] + parts[index + 1 :]
            if not rest:
                return width, None
            joined = rest[0] if len(rest) == 1 else ex.Boolean(mask.expr.span, "and", rest)
            return width, Pair(joined, mask.values)
    return None, mask


def _width(condition: ex.Expr, mask: Pair) -> ex.Expr | None:
    """`w` of the condition `i - j < w`, where w is a number that is known before the model runs."""
    if not isinstance(condition, ex.Compare) or condition.ops != ("<",):
        return None
    left, right = condition.operands
    distance = (
        isinstance(left, ex.Binary)
        and left.op == "-"
        and isinstance(left.left, ex.Name)
        and isinstance(left.right, ex.Name)
        and (left.left.id, left.right.id) == ("i", "j")
    )
    free = {node.id for node in right.walk() if isinstance(node, ex.Name)}
    return right if distance and not free & {"i", "j", "s", *(name for name, _ in mask.values)} else None


OPERATIONS = (Attention(), Cached())
__all__ = ["OPERATIONS", "Ref"]
