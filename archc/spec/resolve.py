"""From a file or a mapping to a resolved `Spec`: everything looked up, every argument bound and checked."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from fractions import Fraction
from pathlib import Path

from archc.spec.blocks import BlockReader, Entry, used_entries
from archc.spec.bodies import SECTIONS, read_body
from archc.spec.diagnostics import NOWHERE, Label, Reporter, Span
from archc.spec.emit import to_yaml
from archc.spec.expressions import Expr
from archc.spec.extends import extended
from archc.spec.fields import Fields, closest, describe, noun, suggestion, unknown_key
from archc.spec.layers import LayerReader
from archc.spec.library import (
    FOLDERS,
    Library,
    body_kind,
    called_functions,
    configured_folders,
    read_body_file,
    read_file,
    read_text,
)
from archc.spec.parser import check_name
from archc.spec.settings import ModelSection, read_model
from archc.spec.single import small_models
from archc.spec.sound import sound_part
from archc.spec.spec import Body, Shared, Spec, Use
from archc.spec.uses import Binder
from archc.spec.values import parse_scalar
from archc.spec.yaml_nodes import YMapping, YScalar

KEYS = (
    "archc",
    "name",
    "title",
    "source",
    "extends",
    "model",
    "mixers",
    "mlps",
    "functions",
    "blocks",
    "block",
    "shared",
    "layers",
    "init",
)
VERSION = "1"
MAPPING = "<mapping>"  # how errors name a spec that was given as a Python mapping


def load(
    source: str | Path | Mapping[str, object],
    report: Reporter,
    sources: MutableMapping[str, str] | None = None,
    *,
    sound: list[Spec] | None = None,
) -> Spec | None:
    """Load a model, or a single body inside a small model; None after errors, all of them in `report`.

    `source` is a path or a mapping with the same content. `sources` receives the text of every file that was
    read, by the name under which errors speak of it; a spec that loads has them in `Spec.sources` too. `sound`
    receives, after errors, a spec of the layers whose blocks and bodies have none, so that they can be checked.
    """
    texts: MutableMapping[str, str] = {} if sources is None else sources
    path = None
    if isinstance(source, Mapping):
        try:
            texts[MAPPING] = to_yaml(source)
        except (TypeError, ValueError, RecursionError) as error:
            report.error("E204", f"the mapping is no spec: {error}", Span(MAPPING, 1, 1, 1, 1))
            return None
        node = read_text(texts[MAPPING], MAPPING, report)
        folder, name = Path.cwd(), "model"
    else:
        path = Path(source)
        node = read_file(path, str(source), texts, report)
        folder, name = path.parent, path.stem
    return _load(node, folder, name, path, texts, report, sound) if node is not None else None


def load_text(text: str, report: Reporter, name: str = "<text>", folder: Path | None = None) -> Spec | None:
    """Load a spec from YAML text; bodies beside it are looked for in `folder`, the current one by default."""
    texts: dict[str, str] = {name: text}
    node = read_text(text, name, report)
    return _load(node, folder or Path.cwd(), "model", None, texts, report) if node is not None else None


def _load(
    node: YMapping,
    folder: Path,
    name: str,
    path: Path | None,
    texts: MutableMapping[str, str],
    report: Reporter,
    sound: list[Spec] | None = None,
) -> Spec | None:
    single = body_kind(node)
    if single is not None:
        return _load_single(node, *single, library_folders([folder], report), texts, report)
    merged = extended(node, folder, texts, report, path)
    if merged is None:
        return None
    node, folders = merged
    library = Library(library_folders(folders, report), report, texts)
    return _Resolver(node, name, library, texts, report, sound).resolve()


def resolve_node(
    node: YMapping,
    name: str,
    library: Library,
    texts: MutableMapping[str, str],
    report: Reporter,
    *,
    spare_blocks: bool = False,
) -> Spec | None:
    """A model whose text is read and merged already; None after errors.

    `name` is that of a model that says none. With `spare_blocks`, blocks that no layer uses are left out in silence:
    specs that are made by varying others have them.
    """
    return _Resolver(node, name, library, texts, report, spare_blocks=spare_blocks).resolve()


def _load_single(
    node: YMapping,
    kind: str,
    name: YScalar,
    folders: list[Path],
    texts: MutableMapping[str, str],
    report: Reporter,
) -> Spec | None:
    """A body inside the first small model that its declarations allow."""
    body = read_body_file(node, kind, name, report)
    if report.diagnostics:
        return None
    first: Reporter | None = None
    for text in small_models(body):
        trial = Reporter()
        library = Library(folders, trial, texts)
        library.add(body)
        around = f"<model around {name.text}>"
        texts[around] = text
        model = read_text(text, around, trial)
        spec = _Resolver(model, name.text, library, texts, trial).resolve() if model is not None else None
        if spec is not None:
            return spec
        first = first or trial
    report.diagnostics += first.diagnostics if first is not None else []
    return None


def library_folders(places: list[Path], report: Reporter) -> list[Path]:
    """Where a spec's own library lies: beside it, above `models/`, and where `archc.toml` says."""
    found: dict[Path, None] = {}
    for place in (place.resolve() for place in places):
        found[place] = None
        if place.name == "models":
            found[place.parent] = None
        found.update(dict.fromkeys(configured_folders(place, report)))
    return list(found)


class _Resolver:
    """One model file, section by section; each reports what is wrong in it, and the next one is read."""

    def __init__(
        self,
        node: YMapping,
        name: str,
        library: Library,
        texts: MutableMapping[str, str],
        report: Reporter,
        sound: list[Spec] | None = None,
        *,
        spare_blocks: bool = False,
    ) -> None:
        self.node = node
        self.default_name = name
        self.spare_blocks = spare_blocks
        self.library = library
        self.texts = texts
        self.report = report
        self.sound = sound
        self.place = Span(
            node.span.path, node.span.line, node.span.column, node.span.line, node.span.column + 1
        )

    def resolve(self) -> Spec | None:
        fields = Fields(self.node, "the spec", self.report)
        if not any(name in fields for name in ("model", "blocks", "layers")):
            self._not_a_model(fields)
            return None
        self._check_version(fields)
        name = self._name(fields)
        title, source = self._line(fields, "title"), self._line(fields, "source")
        model = read_model(fields.take_mapping("model", "the sizes of the model"), self.place, self.report)
        self._own_bodies(fields)
        blocks = BlockReader(self.library, self.report, fields.take("block"))
        block_node = fields.take_mapping("blocks", "the blocks of the model by name")
        if block_node is None and "blocks" not in {key.text for key, _ in self.node.entries}:
            self.report.error(
                "E203",
                "the spec has no `blocks:`",
                self.place,
                help="add `blocks: {main: {mixer: {use: ...}, mlp: {use: ...}}}`",
            )
        entries = blocks.read_entries(block_node) if block_node is not None else {}
        self._check_block_names(entries)
        real = [entry.name for entry in entries.values() if not entry.template]
        layer_node = fields.take("layers")
        reader = LayerReader(real, model.n_layers, model.n_layers_span, self.report)
        layers = None
        if layer_node is not None or self._follows(model):
            layers = reader.read(layer_node, model.span)
        init_node = fields.take_scalar("init", "an initialiser, such as `normal(0, 0.02)`")
        init = parse_scalar(init_node, self.report) if init_node is not None else None
        shared_node = fields.take_mapping("shared", "shared bodies by name, each with a `use:`")
        fields.finish(KEYS)
        binder = self._binder(model, len(layers.names) if layers else model.n_layers, shared_node)
        shared = self._bind_shared(shared_node, binder)
        used = (
            used_entries(entries, layers.names, Reporter() if self.spare_blocks else self.report)
            if layers
            else [e for e in entries.values() if not e.template]
        )
        uses = {entry.name: use for entry in used if (use := blocks.bind(entry, binder)) is not None}
        for name_, span in binder.shared.items():
            if name_ not in binder.used_shared:
                self.report.error(
                    "E243",
                    f"no block uses the shared body `{name_}`",
                    span,
                    help=f"fill a slot with it, `{{shared: [{name_}]}}`, or remove it",
                )
        settings = model.settings(len(layers.names)) if layers is not None else None
        bodies = [body for use in (*uses.values(), *shared.values()) for body in bodies_of(use)]
        extra = [word for use in (*uses.values(), *shared.values()) for word in function_arguments(use)]
        extra += [word for word in (settings.norm, settings.embedding_norm) if word] if settings else []
        inits = [each for use in (*uses.values(), *shared.values()) for each in _inits(use)]
        functions = called_functions(
            bodies, extra, [*inits, *([init] if init is not None else [])], self.library, self.report
        )
        if settings is None or layers is None:
            return None
        texts = dict(self.texts)
        spec = Spec(
            name, self.place, settings, uses, shared, layers, functions, init, texts, title, source
        )  # fmt: skip
        if not self.report.diagnostics:
            return spec
        if self.sound is not None:
            self.sound.extend(sound_part(spec, self.node, self.report))
        return None

    def _line(self, fields: Fields, name: str) -> str:
        """A line of text on this model; what another file says is of the model that this one extends."""
        node = fields.take_scalar(name, "a line of text")
        return node.text if node is not None and node.span.path == self.node.span.path else ""

    def _check_block_names(self, entries: Mapping[str, Entry]) -> None:
        """Names become files and classes, so two of them differ by more than their case."""
        seen: dict[str, Entry] = {}
        for entry in entries.values():
            check_name(entry.name, entry.span, self.report, what="block")
            other = seen.setdefault(entry.name.lower(), entry)
            if other is not entry:
                self.report.error(
                    "E231",
                    f"the blocks `{other.name}` and `{entry.name}` differ only by their case",
                    entry.span,
                    note="names of blocks become names of files and classes",
                    labels=[Label(other.span, "the other one")],
                )

    def _follows(self, model: ModelSection) -> bool:
        """Whether the layers can follow from a single block: nothing that says more was wrong."""
        tried = "model" not in self._keys() or (model.n_layers is None and model.n_layers_span != NOWHERE)
        return "layers" not in self._keys() and not tried

    def _keys(self) -> set[str]:
        return {key.text for key, _ in self.node.entries}

    def _not_a_model(self, fields: Fields) -> None:
        if (study := fields.key("sweep")) is not None:
            self.report.error(
                "E201",
                "this is a sweep of models, and a model stands here",
                study.span,
                help="`archc sweep FILE` compiles all its points; with `--out` it writes a spec for each",
            )
            return
        kinds = (*KEYS, *FOLDERS)
        for key, _ in fields.rest():
            if key.text not in kinds and closest(key.text, kinds):
                unknown_key(key, "the spec", kinds, self.report)
        self.report.error(
            "E201",
            "this is neither a model nor a body",
            self.place,
            note="a model has `model:` and `blocks:`; a file with one body begins with `mixer: name`, "
            "`mlp: name`, `block: name` or `function: name`",
            help="`archc new` writes a first spec",
        )

    def _check_version(self, fields: Fields) -> None:
        version = fields.take_scalar("archc", "the version of the language, 1")
        if version is not None and version.text != VERSION:
            self.report.error(
                "E207",
                f"this archc reads version {VERSION} of the language, not {describe(version)}",
                version.span,
                help=f"write `archc: {VERSION}`",
            )

    def _name(self, fields: Fields) -> str:
        node = fields.take_scalar("name", "the name of the model")
        if node is None:
            return self.default_name
        check_name(node.text, node.span, self.report, what="model")
        return node.text

    def _own_bodies(self, fields: Fields) -> None:
        for kind in ("mixer", "mlp", "function"):
            section = f"{kind}s"
            node = fields.take_mapping(section, f"bodies of the kind {kind} by name")
            for key, value in node.entries if node is not None else ():
                if not isinstance(value, YMapping):
                    self.report.error(
                        "E204",
                        f"{noun(kind)} `{key.text}` needs a mapping, not {describe(value)}",
                        value.span,
                    )
                elif check_name(key.text, key.span, self.report, what=kind):
                    inner = Fields(value, f"{noun(kind)} `{key.text}`", self.report)
                    self.library.add(read_body(inner, kind, key.text, key.span, self.report))
                    inner.finish(SECTIONS)

    def _binder(self, model: ModelSection, depth: int | None, shared: YMapping | None) -> Binder:
        statics = model.statics()
        if depth is not None:
            statics["n_layers"] = Fraction(depth)
        names = {key.text: key.span for key, _ in shared.entries} if shared is not None else {}
        return Binder(self.library, statics, self.report, names)

    def _bind_shared(self, node: YMapping | None, binder: Binder) -> dict[str, Use]:
        found: dict[str, Use] = {}
        for key, value in node.entries if node is not None else ():
            binder.owner = "shared"
            filled = binder.fill(value, ("mixer", "mlp"), key.text)
            if isinstance(filled, Shared):
                self.report.error(
                    "E242",
                    f"`{key.text}` is shared already and cannot be filled with a shared body",
                    value.span,
                    help=suggestion("use", ("use",), ""),
                )
            elif filled is not None:
                found[key.text] = filled
        return found


def bodies_of(use: Use) -> list[Body]:
    """The body of a use and those of everything in its slots."""
    found = [use.body]
    for filled in use.slots.values():
        if isinstance(filled, Use):
            found += bodies_of(filled)
    return found


def function_arguments(use: Use) -> list[str]:
    """The functions that a use and everything in its slots name as arguments of type function."""
    found = [
        value
        for name, value in use.arguments.items()
        if use.body.params[name].type == "function" and isinstance(value, str)
    ]
    for filled in use.slots.values():
        if isinstance(filled, Use):
            found += function_arguments(filled)
    return found


def _inits(use: Use) -> list[Expr]:
    found = [use.init] if use.init is not None else []
    for filled in use.slots.values():
        if isinstance(filled, Use):
            found += _inits(filled)
    return found
