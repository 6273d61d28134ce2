"""recurrence: a matrix state per head that decays, is erased from, and is written to (docs/algebra.md)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import cast

from archc.graph.calls import Call
from archc.graph.costs import Cost, Sizes
from archc.graph.types import Node, Subgraph, ValueType
from archc.graph.values import Several, Traced, Value
from archc.operations.base import Operation, Signature, StateSpec
from archc.operations.heads import divides, fail_operand, widest_heads
from archc.operations.recurrence.rate import step_and_rate
from archc.printing.printer import Code, Printer, call
from archc.spec import expressions as ex
from archc.spec.axes import Axis
from archc.spec.diagnostics import Label
from archc.tiles.kind import Decay, Erase, EraseFrom, Normalize, Read, RecurrenceKind, form_of

OUTPUTS = ("out", "numerator", "denominator")


class Recurrence(Operation):
    """S_t = D_t S_{t-1} + w_t (r_t^T S'_{t-1}) + k_t v_t^T,  o_t = scale * S_t^T q_t.

    `outputs=[numerator, denominator]` gives o beside what it would be for v = 1, of the same state.

    The state has the heads of what writes and decays it; heads of q beyond those read it in groups. The decay's kind
    follows from its axes. `beta=` is the delta rule; `erase_write=, erase_read=, erase_from=` the general erase.
    `scale` must be said: `scale=1`, or `scale=auto` for K ** -0.5.
    """

    name = "recurrence"
    forms = ("step", "chunk")
    title = "a matrix state that decays, is erased from and written to"
    signature = Signature.parse(
        "q, k, v, *, decay?, decay_v?, beta?, erase_write?, erase_read?, erase_from: word?, read: word?, "
        "log_input?, normalize: word?, factors: axes?, eps: static?, scale: static?, bonus?, chunk: static?, "
        "outputs: words?, name: word?"
    )

    def build(self, call: Call) -> Value:
        """Shapes: q [Hq, K], k [Hk, K], v [Hv, V] -> [H, V], H the head count that the others divide."""
        factors = call.axes("factors")
        parts: dict[str, Traced] = {}
        for name in ("q", "k", "v", "decay", "decay_v", "beta", "erase_write", "erase_read", "log_input"):
            value = call.optional(name)
            if value is not None:
                parts[name] = value
        outputs = call.words("outputs", OUTPUTS)
        if outputs not in ((), ("out",)):
            parts["v"] = self._with_one(call, parts, outputs)
        factor = factors[0] if factors else None
        axes = {
            name: tuple(axis for axis in value.type.axes if axis != factor) for name, value in parts.items()
        }
        for name in ("q", "k", "v"):
            if parts[name].type.rate != "token" or not 1 <= len(axes[name]) <= 2:
                fail_operand(call, name, parts[name].type)
        key, value_axis = axes["q"][-1], axes["v"][-1]
        self._check_keys(call, parts, axes, key)
        self._number_a_head(call, parts, axes, factor)
        decay, decay_name = self._decay(call, parts, axes, key, value_axis)
        if decay == "elementwise" and (product := step_and_rate(call, parts[decay_name], key, value_axis)):
            parts[decay_name], parts["decay_rate"] = product
            axes |= {name: parts[name].type.axes for name in (decay_name, "decay_rate")}
        groups = self._heads_of(call, axes, decay_name, key, value_axis)
        self._check_gates(call, groups, {"beta", "log_input", decay_name, "decay_rate"})
        heads = widest_heads(call, groups)
        held = _state_heads(call, groups, heads)
        kind = replace(self._kind(call, decay, parts, decay_name), grouped=held != heads)
        verdict = form_of(kind)
        if verdict.form == "error":
            call.fail("E374", "there is no form of this recurrence", call.span, note=verdict.reason)
        scale = self._scale(call)
        order = [
            "q",
            "k",
            "v",
            *([decay_name] if decay_name else []),
            *(n for n in ("decay_rate", "beta", "erase_write", "erase_read", "log_input") if n in parts),
        ]
        attrs = {
            "kind": kind,
            "order": tuple(order),
            "heads": heads,
            "state_heads": held,
            "key": key,
            "value": value_axis,
            "scale": scale,
            "factor": factor,
            "eps": call.static("eps"),
            "decay": decay_name,
            "grouped": {name: (group[-1] if group else None) for name, group in groups.items()},
        }
        out = ValueType((*((heads,) if heads is not None else ()), value_axis))
        result = call.add([parts[n] for n in order], out, attrs, name=call.memory())
        if outputs not in ((), ("out",)):
            return self._sums(call, result, outputs)
        if call.has("bonus"):
            return self._bonus(call, result, parts, call.value("bonus"))
        return result

    def _check_keys(
        self, call: Call, parts: Mapping[str, Traced], axes: Mapping[str, tuple[Axis, ...]], key: Axis
    ) -> None:
        """Keys and erase vectors meet the queries along the key axis of the state."""
        for name in ("k", "erase_write", "erase_read"):
            if name in axes and (not 1 <= len(axes[name]) <= 2 or parts[name].type.rate != "token"):
                fail_operand(call, name, parts[name].type)
            if name in axes and axes[name][-1] != key:
                call.fail(
                    "E371",
                    f"the last axis of `{name}` is `{axes[name][-1]}`, that of q is `{key}`",
                    call.span_of(name),
                    help="queries, keys and erase vectors share the key axis of the state",
                )

    def _heads_of(
        self, call: Call, axes: Mapping[str, tuple[Axis, ...]], decay_name: str, key: Axis, value_axis: Axis
    ) -> dict[str, tuple[Axis, ...]]:
        """The axes of heads of each operand: what is left beside those of the state."""
        vectors = ("q", "k", "v", "erase_write", "erase_read")
        groups = {name: axes[name][:-1] for name in vectors if name in axes}
        for name in ("beta", "log_input"):
            if name in axes:
                groups[name] = axes[name]
                if len(axes[name]) > 1:
                    call.fail(
                        "E373",
                        f"`{name}` is one number a head, this has [{', '.join(map(str, axes[name]))}]",
                        call.span_of(name),
                        help=f"linear(..., [{axes[name][0]}]) makes one number a head",
                    )
        for name in (decay_name, "decay_rate"):
            if name in axes:
                groups[name] = tuple(a for a in axes[name] if a not in (key, value_axis))
        return groups

    def _number_a_head(
        self,
        call: Call,
        parts: dict[str, Traced],
        axes: dict[str, tuple[Axis, ...]],
        factor: Axis | None,
    ) -> None:
        """A gate that is a number, such as `beta=1`, becomes a value with the heads of k."""
        for name in ("decay", "decay_v", "beta", "log_input"):
            if name not in parts or parts[name].type.rate != "static":
                continue
            of = tuple(axis for axis in parts["k"].type.axes[:-1] if axis != factor or name == "beta")
            ones = call.scope.add("ones", [], (ValueType(of, "model", 1.0, 1.0),), {}, call.span)[0]
            parts[name] = call.scope.elementwise("mul", [parts[name], ones], call.span)
            axes[name] = tuple(axis for axis in of if axis != factor)

    def _check_gates(self, call: Call, groups: Mapping[str, Sequence[Axis]], gates: Collection[str]) -> None:
        """A gate has the heads of q, k or v, or none: any other axis is not a head count that differs."""
        heads = [group[-1] for name, group in groups.items() if group and name not in gates]
        for name in groups:
            for axis in groups[name] if name in gates else ():
                if not any(axis == h or divides(call, axis, h) or divides(call, h, axis) for h in heads):
                    has = ", ".join(f"`{h}`" for h in dict.fromkeys(heads)) or "none"
                    call.fail(
                        "E373",
                        f"`{name}` has the axis `{axis}`, the heads here are {has}",
                        call.span_of(name),
                        help="a gate has the heads of q, k or v; a decay may also have the last axis of k or v",
                    )

    def _with_one(self, call: Call, parts: Mapping[str, Traced], outputs: Sequence[str]) -> Traced:
        """v with a column of ones: what it gathers is the denominator, the sum of the weights of all writes."""
        v = parts["v"]
        if "out" in outputs or len(set(outputs)) != len(outputs):
            call.fail(
                "E322",
                "outputs are `out` alone, or `numerator` and `denominator`",
                call.span_of("outputs"),
            )
        unfit = [n for n in ("normalize", "factors", "decay_v", "bonus") if call.has(n)]
        decay = parts.get("decay")
        if decay is not None and v.type.axes and v.type.axes[-1] in decay.type.axes:
            shared = parts["k"].type.axes[-1:] == v.type.axes[-1:]
            unfit += [] if shared else ["decay"]
        if unfit:
            call.fail(
                "E374",
                f"with {unfit[0]}= there is no one denominator beside the numerator",
                call.span_of(unfit[0]),
                note="the denominator is what the recurrence gives for v = 1, a single number a head",
                help="write a second recurrence for it",
            )
        if v.type.rate != "token" or not v.type.axes:
            fail_operand(call, "v", v.type)
        scope, span, one = call.scope, call.span, Axis.number(1)
        ones = scope.add("ones", [], (ValueType((one,), "model", 1.0, 1.0),), {}, span)[0]
        like = scope.add("cast_like", [ones, v], (ones.type,), {}, span)[0]
        type_ = ValueType((*v.type.axes[:-1], v.type.axes[-1] + one))
        return scope.add("concat", [v, like], (type_,), {}, span)[0]

    def _sums(self, call: Call, result: Traced, outputs: Sequence[str]) -> Several:
        """The result's columns apart: those of v, and the last one."""
        *heads, last = result.type.axes
        value = last - Axis.number(1)
        types = (ValueType((*heads, value)), ValueType(tuple(heads)))
        pieces: tuple[tuple[Axis, ...], ...] = ((value,), ())
        found = call.scope.add("split", [result], types, {"pieces": pieces}, call.span)
        named = dict(zip(("numerator", "denominator"), found))
        return Several(tuple(named[output] for output in outputs))

    def _decay(
        self, call: Call, parts: dict[str, Traced], axes: dict[str, tuple[Axis, ...]], key: Axis, value: Axis
    ) -> tuple[str, str]:
        """The decay's kind from its axes, and the argument it came by (rule 5)."""
        if "decay" in parts and "decay_v" in parts:
            call.fail(
                "E312",
                "a recurrence has one decay: decay= or decay_v=",
                call.span_of("decay_v"),
                labels=[Label(call.span_of("decay"), "the first one")],
                help="a decay along both state axes is written decay= with both axes",
            )
        name = next((n for n in ("decay", "decay_v") if n in parts), "")
        if not name:
            return "none", ""
        type_ = parts[name].type
        if type_.high > 0:
            call.fail(
                "E375",
                "this decay is not known to be at most 0, so the state could grow without bound",
                call.span_of(name),
                note="decay is the logarithm of what is kept; "
                + (
                    f"archc finds at most {type_.high:g}"
                    if math.isfinite(type_.high)
                    else "archc finds no bound"
                ),
                help="write what cannot be positive: -exp(...) * softplus(...), logsigmoid(...), or min(..., 0)",
            )
        last = axes[name][-1:] if axes[name] else ()
        if key in axes[name] and value in axes[name] and key != value:
            return "elementwise", name
        if name == "decay_v":
            if last != (value,):
                call.fail("E373", f"decay_v needs the last axis of v, `{value}`", call.span_of(name))
            return "value", name
        if last == (key,) and key not in axes["k"][:-1]:
            return "key", name
        if value in axes[name]:
            call.fail("E373", f"a decay along `{value}` is written decay_v=", call.span_of(name))
        return ("head" if type_.rate == "token" else "constant"), name

    def _kind(self, call: Call, decay: str, parts: dict[str, Traced], decay_name: str) -> RecurrenceKind:
        pair = [n for n in ("erase_write", "erase_read") if n in parts]
        if len(pair) == 1:
            call.fail(
                "E376",
                f"an erase needs both erase_write= and erase_read=, here is only {pair[0]}=",
                call.span_of(pair[0]),
                note="the erase adds w (r^T S): r reads what the state holds, w writes the change",
            )
        if pair and "beta" in parts:
            call.fail(
                "E376",
                "beta= is an erase of its own; give it or the pair",
                call.span_of("beta"),
                labels=[Label(call.span_of(pair[0]), "the pair")],
                note="beta= stands for erase_write=-beta * k, erase_read=k on the decayed state",
            )
        erase_from = call.word("erase_from", ("previous", "decayed"))
        if pair and erase_from is None:
            call.fail(
                "E376",
                "a general erase must say which state it reads",
                call.span,
                help="write erase_from=previous or erase_from=decayed",
            )
        erase = "pair" if pair else "delta" if "beta" in parts else "none"
        bounded = bool(decay_name) and parts[decay_name].type.low >= -5
        read = call.word("read", ("inclusive", "exclusive")) or (
            "exclusive" if call.has("bonus") else "inclusive"
        )
        if call.has("bonus") and read == "inclusive":
            call.fail(
                "E374",
                "bonus= stands in the place of the token's own write, so the read must leave that out",
                call.span_of("read"),
                labels=[Label(call.span_of("bonus"), "the bonus")],
                help="leave out read=: with bonus= it is exclusive",
            )
        chunk = int(call.number("chunk", Fraction(64)))
        if chunk < 16 or chunk & (chunk - 1) or chunk > 1024:
            call.fail("E321", "a chunk is 16, 32, 64, ... up to 1024 tokens", call.span_of("chunk"))
        normalize = call.word("normalize", ("sum", "max", "none")) or "none"
        return RecurrenceKind(
            cast(Decay, decay),
            cast(Erase, erase),
            cast(EraseFrom, erase_from or "decayed"),
            cast(Read, read),
            cast(Normalize, normalize),
            "log_input" in parts,
            call.has("factors"),
            chunk,
            bounded,
            "decay_rate" in parts,
        )

    def _scale(self, call: Call) -> ex.Expr | None:
        """The static scale, or None for `auto`."""
        given = call.given.get("scale")
        if given is None:
            call.fail(
                "E377",
                "a recurrence must say its scale",
                call.span,
                note="published mixers differ, and the wrong one is off without an error",
                help="write scale=1, or scale=auto for K ** -0.5",
            )
        if isinstance(given, ex.Name) and given.id == "auto":
            return None
        return call.static("scale")

    def _bonus(self, call: Call, result: Traced, parts: dict[str, Traced], bonus: Traced) -> Traced:
        """(q^T (u * k)) v beside an exclusive read (RWKV-4 to 6)."""
        scope, span = call.scope, call.span
        weighted = scope.elementwise(
            "mul", [scope.elementwise("mul", [parts["q"], parts["k"]], span), bonus], span
        )
        summed = scope.add(
            "sum", [weighted], (ValueType(weighted.type.axes[:-1]),), {"over": weighted.type.axes[-1:]}, span
        )[0]
        return scope.elementwise("add", [result, scope.elementwise("mul", [parts["v"], summed], span)], span)

    def emit(self, node: Node, inputs: Sequence[Code], printer: Printer) -> Code:
        """`head_decay_delta(q, k, v, decay, beta, scale=..., place=place, key="o")`."""
        function = printer.recurrence(node.attrs["kind"])
        attrs = node.attrs
        args: dict[str, Code] = {}
        for name, code, ref in zip(attrs["order"], inputs, node.inputs):
            args["decay" if name == "decay_v" else name] = self._shaped(
                name, code, printer.type_of(ref), node, printer
            )
        scale = (
            printer.number(attrs["scale"]).text
            if attrs["scale"] is not None
            else f"{printer.size(attrs['key']).at(11)} ** -0.5"
        )
        eps = None
        if attrs["kind"].normalize != "none":
            eps = Code("1e-06") if attrs["eps"] is None else printer.number(attrs["eps"])
        found = call(
            function, *args.values(), scale=scale, eps=eps, place=printer.place(), key=f'"{node.name}"'
        )
        return found if attrs["heads"] is not None else Code(f"{found.text}.squeeze(2)")

    def _shaped(self, name: str, code: Code, type_: ValueType, node: Node, printer: Printer) -> Code:
        """The operand in the order [factors, heads, K, V], with a head axis of 1 where it has none."""
        attrs = node.attrs
        head = attrs["grouped"].get(name)
        wanted = [attrs["factor"]] if attrs["factor"] in type_.axes else []
        wanted += [head] if head is not None else []
        last = dict.fromkeys((attrs["key"], attrs["value"]))  # one axis where K and V are the same
        wanted += [axis for axis in last if axis in type_.axes and axis != head]
        wanted += [axis for axis in type_.axes if axis not in wanted]
        if tuple(wanted) != type_.axes:
            lead = 2 if type_.rate == "token" else 0
            places = ", ".join(str(type_.axes.index(axis) + lead) for axis in wanted)
            code = Code(f"{code.at(12)}.permute({'0, 1, ' if lead else ''}{places})")
        if head is None:
            at = (2 if type_.rate == "token" else 0) + (1 if attrs["factor"] in type_.axes else 0)
            code = Code(f"{code.at(12)}.unsqueeze({at})")
        constant = name == "decay_rate" or name == attrs["decay"] and attrs["kind"].decay == "constant"
        if type_.rate != "token" and not constant:
            kept = "-1, " * (len(wanted) + (head is None))
            code = Code(f"{code.at(12)}.expand(*{printer.example()}.shape[:2], {kept.removesuffix(', ')})")
        return code

    def states(self, node: Node, graph: Subgraph) -> list[StateSpec]:
        """The state `[H, K, V]`, and for a normaliser `[H, K]` and `[H]`; float32. H is without the queries' groups."""
        attrs = node.attrs
        heads = attrs["state_heads"] if attrs["state_heads"] is not None else Axis.number(1)
        found = [StateSpec(node.name, (heads, attrs["key"], attrs["value"]), "float32")]
        kind: RecurrenceKind = attrs["kind"]
        if kind.normalize != "none":
            found.append(StateSpec(f"{node.name}.normaliser", (heads, attrs["key"]), "float32"))
        if kind.normalize == "max":
            found.append(StateSpec(f"{node.name}.maximum", (heads,), "float32"))
        return found

    def cost(self, node: Node, graph: Subgraph, sizes: Sizes) -> Cost:
        """The chunk form's FLOPs from the tile program; decoding touches each element of the state a few times."""
        from archc.tiles.costs import count

        attrs = node.attrs
        queries = sizes.axis(attrs["heads"]) if attrs["heads"] is not None else 1
        heads = sizes.axis(attrs["state_heads"]) if attrs["state_heads"] is not None else 1
        key, value = sizes.axis(attrs["key"]), sizes.axis(attrs["value"])
        found = count(attrs["kind"], key, value, queries=queries // heads)
        factors = sizes.axis(attrs["factor"]) if attrs["factor"] is not None else 1
        return Cost(
            chunk_flops=int(heads * factors * found.forward.flops),
            step_flops=int(heads * found.decode.flops),
            chunk_backward_flops=int(heads * factors * found.backward.flops),
        )


def _state_heads(call: Call, groups: Mapping[str, Sequence[Axis]], widest: Axis | None) -> Axis | None:
    """The heads of the state: the widest of all operands but q, where one holds the others; else the widest of all."""
    others = [group[-1] for name, group in groups.items() if group and name != "q"]
    if not others:
        return None
    for axis in others:
        if all(other == axis or divides(call, other, axis) for other in others):
            return axis
    return widest


OPERATIONS = (Recurrence(),)
