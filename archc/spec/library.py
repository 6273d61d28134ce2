"""Where bodies are found: in the spec, beside it, in folders that are named, in packages, in archc's own."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from functools import cache
from pathlib import Path

from archc.data import data_folder
from archc.spec import text, yaml_reader
from archc.spec.bodies import SECTIONS, find_cycle, read_body
from archc.spec.diagnostics import Label, Reporter, Span
from archc.spec.expressions import Call, Expr
from archc.spec.fields import WORD, Fields, a_noun, noun, shorten, suggestion
from archc.spec.spec import Body
from archc.spec.yaml_nodes import YMapping, YScalar

FOLDERS = {"mixer": "mixers", "mlp": "mlps", "block": "blocks", "function": "functions"}
ENTRY_POINTS = "archc.library"


def shown(path: Path) -> str:
    """How errors name a file: below `<archc>` in archc's library, relative where it is below this folder."""
    if path.is_relative_to(data_folder("specs")):
        return f"<archc>/{path.relative_to(data_folder('specs')).as_posix()}"
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def read_file(path: Path, name: str, sources: MutableMapping[str, str], report: Reporter) -> YMapping | None:
    """The mapping in a YAML file, or None after an error. Its text is added to `sources` under `name`."""
    try:
        content = text.read(path, name, report)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        report.error(
            "E200",
            f"cannot read {name}: {reason.lower()}",
            Span(name, 1, 1, 1, 1),
            help="check the path and its permissions",
        )
        return None
    if content is None:
        return None
    sources[name] = content
    return read_text(content, name, report)


def read_text(content: str, name: str, report: Reporter) -> YMapping | None:
    """The mapping in a YAML text, or None after an error."""
    node = yaml_reader.parse(content, name, report)
    if node is not None and not isinstance(node, YMapping):
        report.error(
            "E201",
            "a spec is a mapping: `key: value` lines",
            node.span,
            help="`archc new` writes a first spec",
        )
        return None
    return node


def is_sweep(source: str | Path | Mapping[str, object]) -> bool:
    """Whether a file or a mapping is a sweep: `sweep:` stands at its top level. False where it cannot be read."""
    if isinstance(source, Mapping):
        return "sweep" in source
    try:
        with Path(source).open("rb") as file:
            text = file.read(1_000_000).decode(errors="replace")
    except (OSError, ValueError):
        return False
    return re.search(r"^sweep\s*:", text, re.MULTILINE) is not None


def body_kind(node: YMapping) -> tuple[str, YScalar] | None:
    """Kind and name of a body file, from its key `mixer:`, `mlp:`, `block:` or `function:`; else None."""
    if any(key.text in ("archc", "model", "blocks", "layers", "extends") for key, _ in node.entries):
        return None
    for key, value in node.entries:
        if key.text in FOLDERS and isinstance(value, YScalar):
            return key.text, value
    return None


def read_body_file(node: YMapping, kind: str, name: YScalar, report: Reporter) -> Body:
    """The body that a file of its own holds."""
    fields = Fields(node, f"a {kind} file", report)
    fields.take_word(kind, f"the name of the {kind}")
    body = read_body(fields, kind, name.text, name.span, report)
    fields.finish((kind, *SECTIONS))
    return body


def configured_folders(start: Path, report: Reporter) -> list[Path]:
    """The `folders` in the table `[library]` of the nearest `archc.toml` at or above `start`."""
    for folder in (start, *start.parents):
        path = folder / "archc.toml"
        if not path.is_file():
            continue
        place = Span(shown(path), 1, 1, 1, 1)
        try:
            settings = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            report.error("E215", f"{shown(path)} is not readable TOML: {shorten(str(error), 100)}", place)
            return []
        library = settings.get("library", {})
        names = library.get("folders", []) if isinstance(library, dict) else None
        if (
            not isinstance(names, list)
            or not all(isinstance(name, str) for name in names)
            or set(library) - {"folders"}
        ):
            report.error(
                "E215",
                f"the table `[library]` of {shown(path)} holds something else than folders",
                place,
                help='write `[library]` and below it `folders = ["path/to/library"]`',
            )
            return []
        missing = [name for name in names if not (folder / name).is_dir()]
        for name in missing:
            report.error(
                "E215",
                f"{shown(path)} names the library folder `{shorten(name)}`, which does not exist",
                place,
            )
        return [folder / name for name in names if name not in missing]
    return []


@cache
def installed_folders() -> tuple[Path, ...]:
    """Folders of installed libraries: entry points `package` or `package:folder` in `archc.library`.

    A package is located and not imported.
    """
    found = []
    for entry in sorted(importlib.metadata.entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        try:
            package = importlib.util.find_spec(entry.module)
        except (ImportError, ValueError):
            continue
        for location in (package.submodule_search_locations or ()) if package else ():
            folder = Path(location, *entry.attr.split(".")) if entry.attr else Path(location)
            if folder.is_dir():
                found.append(folder)
    return tuple(found)


class Library:
    """Finds bodies by kind and name; each file is read once."""

    def __init__(self, folders: Iterable[Path], report: Reporter, sources: MutableMapping[str, str]) -> None:
        self.report = report
        self.sources = sources
        self._near = list(folders)
        self._found: dict[tuple[str, str], Body | None] = {}
        self._paths: dict[tuple[str, str], Path | None] = {}
        self._read_well: dict[
            tuple[str, str], Body
        ] = {}  # from files; a faulty one is read and reported again

    def fork(self, report: Reporter) -> Library:
        """A library for another model in the same place, which need not read sound files again."""
        other = Library(self._near, report, self.sources)
        other._paths, other._read_well = self._paths, self._read_well
        return other

    def add(self, body: Body) -> None:
        """Put a body of the spec itself before everything that lies in files."""
        self._found[body.kind, body.name] = body

    def lookup(self, kind: str, name: str) -> Body | None:
        """The body of this kind and name, or None if there is none; a faulty file is reported."""
        if (kind, name) not in self._found:
            body = self._read_well.get((kind, name))
            if body is None and (path := self._path(kind, name)) is not None:
                self._found[kind, name] = None  # while it is read, and if it is faulty
                body = self._read(path, kind, name)
                if body is not None:
                    self._read_well[kind, name] = body
            self._found[kind, name] = body
        return self._found[kind, name]

    def find(self, kinds: Iterable[str], name: YScalar) -> Body | None:
        """The body that a user named, of one of these kinds, or None after an error with a suggestion."""
        kinds = tuple(kinds)
        found = [body for body in (self.lookup(kind, name.text) for kind in kinds) if body is not None]
        if len(found) > 1:
            self.report.error(
                "E214",
                f"`{name.text}` is the name of a mixer and of an MLP",
                name.span,
                help="rename one of them",
                labels=[Label(body.span, f"{noun(body.kind)} here") for body in found],
            )
        if found:
            return found[0]
        if any(self._path(kind, name.text) for kind in kinds):
            return None  # the file is there and at fault, which has been reported
        kind_text = " or ".join(noun(kind) for kind in kinds)
        other = next((kind for kind in FOLDERS if kind not in kinds and self.exists(kind, name.text)), None)
        if other:
            self.report.error(
                "E211",
                f"`{name.text}` is {a_noun(other)}, and {' or '.join(map(a_noun, kinds))} stands here",
                name.span,
            )
        else:
            names = {known for kind in kinds for known in self.names(kind)}
            self.report.error(
                "E210",
                f"there is no {kind_text} `{shorten(name.text)}`",
                name.span,
                note="searched: the spec, folders beside it, `archc.toml`, installed libraries, archc's own",
                help=suggestion(name.text, names, "there are") or "`archc library` lists what there is",
            )
        return None

    def exists(self, kind: str, name: str) -> bool:
        """Whether a body of this kind and name can be found."""
        return self._found.get((kind, name)) is not None or self._path(kind, name) is not None

    def names(self, kind: str) -> set[str]:
        """The names of all bodies of a kind that can be found."""
        names = {name for (known, name), body in self._found.items() if known == kind and body is not None}
        for folder in self._folders():
            names.update(
                path.stem for path in (folder / FOLDERS[kind]).glob("*.yaml") if WORD.match(path.stem)
            )
        return names

    def _folders(self) -> Iterator[Path]:
        yield from self._near
        yield from installed_folders()
        yield data_folder("specs")

    def _path(self, kind: str, name: str) -> Path | None:
        if not WORD.match(name):
            return None
        if (kind, name) not in self._paths:
            paths = (folder / FOLDERS[kind] / f"{name}.yaml" for folder in self._folders())
            self._paths[kind, name] = next((path for path in paths if path.is_file()), None)
        return self._paths[kind, name]

    def _read(self, path: Path, kind: str, name: str) -> Body | None:
        known = len(self.report.diagnostics)
        node = read_file(path, shown(path), self.sources, self.report)
        if node is None:
            return None
        found = body_kind(node)
        if found is None or found[0] != kind or found[1].text != name:
            self.report.error(
                "E212",
                f"{shown(path)} does not hold the {kind} `{name}`",
                node.span,
                note="a library file is found by its folder and its name",
                help=f"begin the file with `{kind}: {name}`",
            )
            return None
        body = read_body_file(node, kind, found[1], self.report)
        return body if len(self.report.diagnostics) == known else None


def called_functions(
    bodies: Iterable[Body], extra: Iterable[str], inits: Iterable[Expr], library: Library, report: Reporter
) -> dict[str, Body]:
    """Every function that the bodies can reach, by name; functions that call each other are an error.

    `extra` are names that are called though no call names them: the model's norm, arguments of type function.
    """
    pending = [name for body in bodies for name in calls_of(body)]
    pending += [*extra, *(node.function for init in inits for node in init.walk() if isinstance(node, Call))]
    functions: dict[str, Body] = {}
    edges: dict[str, list[str]] = {}
    asked: set[str] = set()
    while pending:
        name = pending.pop()
        if name in asked:
            continue
        asked.add(name)
        body = library.lookup("function", name)
        if body is not None:
            functions[name] = body
            edges[name] = calls_of(body)
            pending += edges[name]
    cycle = find_cycle(edges)
    if cycle:
        report.error(
            "E213",
            f"the functions {' -> '.join(f'`{name}`' for name in cycle)} call each other",
            functions[cycle[0]].span,
            note="a function is written out where it is called, so it cannot contain itself",
        )
    return dict(sorted(functions.items()))


def calls_of(body: Body) -> list[str]:
    """The names that a body and its parts call, without its own slots, parts and parameters."""
    own = {*body.slots, *body.parts, *body.params}
    expressions = [equation.expr for equation in (*body.equations, *body.losses, *body.updates)]
    expressions += [body.init] if body.init is not None else []
    names = {node.function for expr in expressions for node in expr.walk() if isinstance(node, Call)}
    for part in body.parts.values():
        names.update(calls_of(part))
    names.update(
        str(param.default)
        for param in body.params.values()
        if param.type == "function" and isinstance(param.default, str)
    )
    return sorted(names - own)


@cache
def default_block(with_mlp: bool) -> str:
    """The library's block for a layer that names none, as `specs/defaults.yaml` says."""
    source = (data_folder("specs") / "defaults.yaml").read_text(encoding="utf-8")
    node = yaml_reader.parse(source, "<archc>/defaults.yaml", Reporter())
    entry = node.get("block" if with_mlp else "block_without_mlp") if isinstance(node, YMapping) else None
    if not isinstance(entry, YScalar):
        raise FileNotFoundError("archc's own defaults.yaml is damaged: the installation is incomplete")
    return entry.text
