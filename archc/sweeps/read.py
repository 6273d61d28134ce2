"""Reads a sweep file: a spec, the axes that vary, exceptions, and what all points are matched in."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from pathlib import Path

from archc.data import data_folder
from archc.spec.diagnostics import Reporter, Span
from archc.spec.emit import to_yaml
from archc.spec.extends import extended
from archc.spec.fields import Fields, closest, describe, items_of, read_whole, shorten, suggestion
from archc.spec.library import Library, body_kind, read_file, read_text, shown
from archc.spec.names import check_name
from archc.spec.resolve import KEYS as MODEL_KEYS
from archc.spec.resolve import MAPPING, library_folders
from archc.spec.yaml_nodes import YMapping, YNode, YScalar
from archc.sweeps.axes import read_axes, read_rules
from archc.sweeps.target import read_target
from archc.sweeps.types import Sweep

KEYS = ("sweep", "title", "source", "base", "spec", "over", "where", "match", "tokens")
MAX_TOKENS = 10**9

Source = str | Path | Mapping[str, object]


def read_sweep(source: Source, report: Reporter, sources: MutableMapping[str, str]) -> Sweep | None:
    """The sweep in a file or in a mapping of the same content; None after errors, which are in `report`.

    `sources` receives the text of every file that was read, by the name under which errors speak of it.
    """
    if isinstance(source, Mapping):
        try:
            sources[MAPPING] = to_yaml(source)
        except (TypeError, ValueError, RecursionError) as error:
            report.error("E204", f"the mapping is no sweep: {error}", Span(MAPPING, 1, 1, 1, 1))
            return None
        node = read_text(sources[MAPPING], MAPPING, report)
        folder = Path.cwd()
    else:
        node = read_file(Path(source), shown(Path(source).absolute()), sources, report)
        folder = Path(source).absolute().parent
    return _Reader(node, folder, report, sources).read() if node is not None else None


class _Reader:
    """One sweep file, section by section; each reports what is wrong in it, and the next one is read."""

    def __init__(
        self, node: YMapping, folder: Path, report: Reporter, sources: MutableMapping[str, str]
    ) -> None:
        self.node = node
        self.folder = folder
        self.report = report
        self.sources = sources
        start = node.span
        self.place = Span(start.path, start.line, start.column, start.line, start.column + 1)

    def read(self) -> Sweep | None:
        known = len(self.report.diagnostics)
        fields = Fields(self.node, "the sweep", self.report)
        if "sweep" not in fields:
            near = next((key for key, _ in self.node.entries if closest(key.text, ("sweep",))), None)
            self.report.error(
                "E201",
                "this is no sweep",
                near.span if near is not None else self.place,
                note="a sweep begins with `sweep: NAME` and has `base:` or `spec:`, and `over:`",
                help="did you mean `sweep`?" if near is not None else "`archc cost SPEC` counts one model",
            )
            return None
        name = fields.take_word("sweep", "the name of the sweep")
        if name is not None:
            check_name(name.text, name.span, self.report, what="sweep")
        title, origin = (fields.take_scalar(line, "a line of text") for line in ("title", "source"))
        spec = self._spec(fields)
        axes = read_axes(
            self.node, fields.take_mapping("over", "what varies, by name"), self.place, self.report
        )
        rules = read_rules(fields.take("where"), axes, self.report)
        target = read_target(
            fields.take_mapping("match", "what all points are matched in"), axes, self.report
        )
        tokens = self._tokens(fields.take("tokens"))
        fields.finish(KEYS, note="a model is inside `spec:`" if self._model_keys() else "")
        if spec is None or name is None or len(self.report.diagnostics) > known:
            return None
        merged, folders = spec
        library = Library(library_folders([self.folder, *folders], self.report), self.report, self.sources)
        return Sweep(
            name.text,
            name.span,
            title.text if title is not None else "",
            origin.text if origin is not None else "",
            merged,
            axes,
            rules,
            target,
            tokens,
            library,
            self.sources,
        )

    def _model_keys(self) -> bool:
        return any(key.text in MODEL_KEYS and key.text not in KEYS for key, _ in self.node.entries)

    # -- the spec -------------------------------------------------------------------------------------------

    def _spec(self, fields: Fields) -> tuple[YMapping, list[Path]] | None:
        both = "base" in fields and "spec" in fields
        base_key = fields.key("base")
        base = fields.take_scalar("base", "the path of a spec, or the name of a packaged model")
        spec = fields.take_mapping("spec", "a whole spec")
        if both and base_key is not None:
            self.report.error(
                "E203",
                "`base:` and `spec:` are both the spec that varies",
                base_key.span,
                help="keep one of them; a `spec:` that changes a file begins with `extends:`",
            )
        elif base is not None:
            return self._base(base)
        elif spec is not None:
            return extended(spec, self.folder, self.sources, self.report)
        elif base_key is None and fields.node.get("spec") is None:
            self.report.error(
                "E203",
                "the sweep has no spec",
                self.place,
                help="add `base: PATH_OR_NAME`, or `spec:` with a whole spec below it",
            )
        return None

    def _base(self, node: YScalar) -> tuple[YMapping, list[Path]] | None:
        models = {path.stem: path for path in (data_folder("specs") / "models").glob("*.yaml")}
        try:
            path: Path | None = (self.folder / node.text).resolve()
            path = path if path is not None and path.is_file() else models.get(node.text)
        except (OSError, ValueError, RuntimeError):
            path = None
        if path is None:
            self.report.error(
                "E260",
                f"there is no spec `{shorten(node.text)}`",
                node.span,
                note="`base:` is a path, relative to this file, or the name of a model that ships with archc",
                help=suggestion(node.text, models, "models"),
            )
            return None
        found = read_file(path, shown(path), self.sources, self.report)
        if found is None:
            return None
        if body_kind(found) is not None or found.get("sweep") is not None:
            self.report.error("E260", f"`{shorten(node.text)}` is not a model", node.span)
            return None
        return extended(found, path.parent, self.sources, self.report, path)

    def _tokens(self, node: YNode | None) -> tuple[int, ...]:
        """Lengths at which costs are counted."""
        found: dict[int, None] = {}
        for item in items_of(node) if node is not None else ():
            if not isinstance(item, YScalar):
                self.report.error("E204", f"`tokens` needs whole numbers, not {describe(item)}", item.span)
            elif (count := read_whole(item, "tokens", 1, MAX_TOKENS, self.report)) is not None:
                found[count] = None
        return tuple(found)
