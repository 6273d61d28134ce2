"""The order of the blocks: `layers:` in each of its forms, as one name a layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain, repeat

from archc.spec.diagnostics import Label, Reporter, Span
from archc.spec.fields import Fields, describe, items_of, shorten, suggestion
from archc.spec.spec import Layers
from archc.spec.yaml_nodes import YMapping, YNode, YScalar, YSequence

MAX_LAYERS = 10_000

_COUNTED = re.compile(r"(?:([0-9]{1,9})\s+)?([A-Za-z_][A-Za-z0-9_]*)\Z")
_RATIO = re.compile(r"[0-9]{1,9}(?:\s*:\s*[0-9]{1,9})+\Z")
_RANGE = re.compile(r"([0-9]{1,9})\s*-\s*([0-9]{1,9})\Z")
_INDEX = re.compile(r"-?[0-9]{1,9}\Z")

Runs = list[tuple[str, int]]


class LayerReader:
    """Reads `layers:` for a model of the given blocks; `depth` is `n_layers` where it is given."""

    def __init__(self, blocks: Sequence[str], depth: int | None, depth_span: Span, report: Reporter) -> None:
        self.blocks = blocks
        self.depth = depth
        self.depth_span = depth_span
        self.report = report

    def read(self, node: YNode | None, model_span: Span) -> Layers | None:
        """The layers, or None after an error. Without `layers:` a single block stands in every layer."""
        before = len(self.report.diagnostics)
        found = self._one_block(model_span) if node is None else self._read(node)
        return found if len(self.report.diagnostics) == before else None

    def _read(self, node: YNode) -> Layers | None:
        if isinstance(node, YSequence):
            return self._cycle([run for item in node.items for run in self._counted(item)], node.span)
        if isinstance(node, YScalar):
            if _RATIO.match(node.text):
                return self._cycle(self._ratio(node, self.blocks), node.span)
            return self._cycle(self._counted(node), node.span)
        if node.get("pattern") is not None:
            return self._pattern(node)
        if node.get("ratio") is not None:
            return self._named_ratio(node)
        return self._by_index(node)

    def _one_block(self, model_span: Span) -> Layers | None:
        if len(self.blocks) == 1 and self.depth is not None:
            return Layers((self.blocks[0],) * self.depth, (), model_span)
        if len(self.blocks) == 1:
            self.report.error(
                "E254",
                "nothing says how many layers there are",
                model_span,
                help="add `n_layers` to the `model:` section",
            )
        elif self.blocks:
            self.report.error(
                "E254",
                "several blocks and no `layers:`",
                model_span,
                help=f"add `layers: [{', '.join(self.blocks)}]`, in the order and numbers that you want",
            )
        return None

    def _known(self, name: str, span: Span) -> bool:
        if name in self.blocks:
            return True
        self.report.error(
            "E250", f"there is no block `{shorten(name)}`", span, help=suggestion(name, self.blocks, "blocks")
        )
        return False

    def _counted(self, node: YNode) -> Runs:
        match = _COUNTED.match(node.text) if isinstance(node, YScalar) else None
        if match is None:
            self.report.error(
                "E255",
                f"{describe(node)} is not a run of layers",
                node.span,
                help="write a block or a number and a block: `[3 linear, 1 full]`",
            )
            return []
        count = int(match.group(1)) if match.group(1) else 1
        if not self._count_fits(count, node.span) or not self._known(match.group(2), node.span):
            return []
        return [(match.group(2), count)]

    def _count_fits(self, count: int, span: Span) -> bool:
        if 1 <= count <= MAX_LAYERS:
            return True
        self.report.error(
            "E256",
            f"{count:,} layers are {'too many' if count else 'none'}",
            span,
            note=f"a model has 1 to {MAX_LAYERS:,} layers",
        )
        return False

    def _ratio(self, node: YScalar, blocks: Sequence[str]) -> Runs:
        counts = [int(part) for part in node.text.split(":")]
        if len(counts) != len(blocks):
            self.report.error(
                "E258",
                f"the ratio `{node.text}` has {len(counts)} numbers for {len(blocks)} blocks",
                node.span,
                note=f"blocks: {', '.join(f'`{block}`' for block in blocks)}",
            )
            return []
        good = [self._count_fits(count, node.span) for count in counts]
        return list(zip(blocks, counts, strict=True)) if all(good) else []

    def _named_ratio(self, node: YMapping) -> Layers | None:
        fields = Fields(node, "`layers:`", self.report)
        ratio = fields.take_scalar("ratio", "numbers such as `3:1`")
        listed = fields.take("blocks")
        fields.finish(("ratio", "blocks"))
        words = [item for item in items_of(listed) if isinstance(item, YScalar)] if listed is not None else []
        unknown = [word for word in words if not self._known(word.text, word.span)]
        if unknown or ratio is None:
            return None
        if not _RATIO.match(ratio.text):
            self.report.error(
                "E255", f"`{shorten(ratio.text)}` is not a ratio", ratio.span, help="write `ratio: 3:1`"
            )
            return None
        return self._cycle(self._ratio(ratio, [word.text for word in words] or self.blocks), node.span)

    def _cycle(self, runs: Runs, span: Span) -> Layers | None:
        if not runs:
            if not self.report.diagnostics:
                self.report.error(
                    "E255", "`layers:` is empty", span, help="name the blocks: `[3 linear, 1 full]`"
                )
            return None
        period = sum(count for _, count in runs)
        if not self._count_fits(period, span):
            return None
        group = tuple(chain.from_iterable(repeat(name, count) for name, count in runs))
        if self.depth is None or self.depth == period:
            return Layers(group, tuple(runs) if self.depth else (), span)
        if period > self.depth:
            self._disagree(period, span)
            return None
        names = (group * -(-self.depth // period))[: self.depth]
        return Layers(names, tuple(runs), span)

    def _disagree(self, count: int, span: Span) -> None:
        self.report.error(
            "E251",
            f"`layers:` has {count:,} layers and `n_layers` is {self.depth:,}",
            span,
            help="remove `n_layers`, or make them agree",
            labels=[Label(self.depth_span, f"`n_layers` is {self.depth:,} here")],
        )

    def _pattern(self, node: YMapping) -> Layers | None:
        fields = Fields(node, "`layers:`", self.report)
        pattern = fields.take_scalar("pattern", "a string of letters, one a layer")
        mapping = fields.take_mapping("letters", "one letter for each block")
        fields.finish(("pattern", "letters"))
        if pattern is None or mapping is None:
            if "letters" not in {key.text for key, _ in node.entries}:
                self.report.error(
                    "E203",
                    "`pattern` needs `letters`",
                    node.span,
                    help="write `letters: {L: linear, A: attend}`",
                )
            return None
        letters: dict[str, str] = {}
        for key, value in mapping.entries:
            if len(key.text) != 1 or not isinstance(value, YScalar):
                self.report.error(
                    "E255",
                    f"{describe(key)} is not a letter for a block",
                    key.span,
                    help="write one character and a block: `L: linear`",
                )
            elif self._known(value.text, value.span):
                letters[key.text] = value.text
            if key.text not in pattern.text:
                self.report.error(
                    "E257",
                    f"the letter `{shorten(key.text)}` is not in the pattern",
                    key.span,
                    labels=[Label(pattern.span, "the pattern")],
                )
        declared = {key.text for key, _ in mapping.entries}
        for letter in dict.fromkeys(pattern.text):
            if letter not in declared:
                self.report.error(
                    "E257",
                    f"the pattern has `{letter}`, which is no letter of a block",
                    pattern.span,
                    labels=[Label(mapping.span, "the letters")],
                )
        if len(letters) < len(declared) or not set(pattern.text) <= declared:
            return None
        names = tuple(letters[letter] for letter in pattern.text)
        if not self._count_fits(len(names), pattern.span):
            return None
        if self.depth is not None and self.depth != len(names):
            self._disagree(len(names), pattern.span)
            return None
        return Layers(names, (), node.span)

    def _by_index(self, node: YMapping) -> Layers | None:
        """`{default: conv, linear: [1, 6, 10-12], full: -1}`: everything else is the default."""
        if self.depth is None:
            self.report.error(
                "E254",
                "layers by index need `n_layers`",
                node.span,
                help="add `n_layers` to the `model:` section",
            )
            return None
        fields = Fields(node, "`layers:`", self.report)
        default = fields.take_word("default", "the name of a block")
        if default is not None and not self._known(default.text, default.span):
            return None
        names: list[str | None] = [default.text if default else None] * self.depth
        places: dict[int, Span] = {}
        for key, value in fields.rest():
            if not self._known(key.text, key.span):
                continue
            for item in items_of(value):
                for index in self._indices(item):
                    if index in places:
                        self.report.error(
                            "E253",
                            f"layer {index} is taken twice",
                            item.span,
                            labels=[Label(places[index], f"layer {index} is taken here")],
                        )
                        break
                    places[index] = item.span
                    names[index] = key.text
        gaps = [index for index, name in enumerate(names) if name is None]
        if gaps:
            self.report.error(
                "E254",
                f"layer {gaps[0]} has no block",
                node.span,
                note="layers count from 0",
                help="add `default:` with the block of all layers that are not named",
            )
        return Layers(tuple(name for name in names if name is not None), (), node.span)

    def _indices(self, node: YNode) -> range:
        assert self.depth is not None
        text = node.text if isinstance(node, YScalar) else ""
        span = _RANGE.match(text)
        if span:
            first, last = int(span.group(1)), int(span.group(2))
        elif _INDEX.match(text):
            first = last = int(text) + (self.depth if text.startswith("-") else 0)
        else:
            self.report.error(
                "E255",
                f"{describe(node)} is not a layer",
                node.span,
                help="write indices from 0, ranges such as `2-5`, or `-1` for the last layer",
            )
            return range(0)
        if not 0 <= first <= last < self.depth:
            self.report.error(
                "E252",
                f"layer {text} is not there",
                node.span,
                note=f"the layers of this model are 0 to {self.depth - 1}",
                labels=[Label(self.depth_span, f"`n_layers` is {self.depth:,} here")],
            )
            return range(0)
        return range(first, last + 1)
