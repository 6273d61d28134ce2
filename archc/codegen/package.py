"""A graph as the files of a package."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from archc.codegen.class_names import names_of
from archc.codegen.config import config_view
from archc.codegen.format import format_files
from archc.codegen.layer_order import layer_lines
from archc.codegen.module import ModuleWriter
from archc.codegen.views import ClassView
from archc.codegen.weights import declarations, initial_lines, owned_nodes
from archc.data import data_folder
from archc.graph.costs import Sizes
from archc.graph.types import Graph, Module
from archc.kernels.fusing.gate_files import gate_files, once
from archc.kernels.fusing.gates import gates_of
from archc.kernels.selftest_cases import recurrence_cases
from archc.kernels.targets import Target
from archc.operations.registry import operations, source_path, with_kernels
from archc.printing.equations import wrapped
from archc.printing.letters import assign_letters
from archc.printing.printer import Printer
from archc.spec.exact import __file__ as exact_file
from archc.templates import environment, prose
from archc.tiles.kind import RecurrenceKind, recurrence_name

STANDARD = ("math",)
ALWAYS = ("language_model", "place", "state")
NORMS = {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}


def package_files(
    graph: Graph,
    *,
    spec_name: str = "",
    facts: Iterable[str] = (),
    target: Target | None = None,
    torch_forms: frozenset[str] = frozenset(),
) -> dict[str, str]:
    """Path -> source of the package, formatted; the same bytes for the same graph on every machine.

    Without a target the torch form alone, with one its kernels beside it; `torch_forms`: classes of recurrence that
    run over chunks in the torch form all the same.
    """
    return format_files(_Package(graph, spec_name, tuple(facts), target, torch_forms).files())


class _Package:
    """Renders one graph."""

    def __init__(
        self,
        graph: Graph,
        spec_name: str,
        facts: tuple[str, ...],
        target: Target | None = None,
        torch_forms: frozenset[str] = frozenset(),
    ) -> None:
        self.graph = graph
        self.spec_name = spec_name
        self.facts = facts
        self.target = target
        self.torch_forms = torch_forms
        self.letters = assign_letters(graph)
        self.gates = {} if target is None else gates_of(graph, self.letters)
        self.kinds: dict[str, RecurrenceKind] = {}
        self.model_owned: dict[str, str] = {}  # weights of the model itself: name -> constructor line
        self.model_initial: list[str] = []
        self.model_imports: set[tuple[str, str]] = set()  # what those lines need
        self.names = names_of(graph)
        self.class_names = self.names.classes
        self.top = next(graph.layers())  # one of the modules that are layers; they take the same arguments
        self.environment = environment(data_folder("templates") / "package")

    def files(self) -> dict[str, str]:
        """All files, unformatted."""
        classes, used = self._classes()
        found = {
            "config.py": self._config(used),
            "model.py": self._model(classes),
            "__init__.py": self._render(
                "__init__.py.jinja",
                heading=self._heading(),
                spec_name=self.spec_name or f"{self.graph.name}.yaml",
                target="" if self.target is None else self.target.title,
                package=self.graph.name,
                vocab_size=self.graph.settings.vocab_size,
            ),
        }
        needed = {file for view in classes for file, _ in view.imports} | set(ALWAYS) | self._norm_files()
        needed -= set(self.kinds)
        for name, kind in sorted(self.kinds.items()):
            found |= self._recurrence(kind, name)
        if self.target is not None:
            found |= self._fused_tokens() | gate_files(once(self.gates), self._legend())
        if "from .exact import" in found["config.py"]:
            needed.add("exact")
        if self.target is not None:
            cases = recurrence_cases(self.graph, recurrence_name)
            found["selftest_cases.py"] = self._render(
                "selftest_cases.py.jinja", target=self.target.name, recurrences=cases
            )
            needed.add("selftest")
        found |= self._runtime(needed, found)
        found["py.typed"] = ""
        return found

    def _recurrence_function(self, kind: Any) -> str:
        name = recurrence_name(kind)
        self.kinds[name] = kind
        return name

    # -- parts ----------------------------------------------------------------------------------------------

    def _classes(self) -> tuple[list[ClassView], dict[str, list[str]]]:
        views: list[ClassView] = []
        used: dict[str, dict[str, None]] = {}
        for module in self.graph.modules.values():
            writer = ModuleWriter(
                self.graph,
                module,
                self.names,
                self.letters,
                self._recurrence_function,
                self.target,
                self.gates.get(module.key, ()),
            )
            found = writer.views()
            found[0].imports |= {
                (recurrence_name(node.attrs["kind"]), recurrence_name(node.attrs["kind"]))
                for node in module.subgraph.nodes
                if node.op == "recurrence"
            }
            views += found
            used.setdefault(module.prefix, {}).update(writer.numbers)
            used[module.prefix].update(self._model_owned(module).numbers)
        return views, {prefix: list(names) for prefix, names in used.items()}

    def _model_owned(self, module: Module) -> Printer:
        """Prints the weights that a module leaves to the model into `constructor` and `initial`."""
        printer = Printer(module, self.letters, self._recurrence_function)
        printer.from_config = True
        if self.target is not None:
            printer.for_gpu, printer.with_kernels = True, with_kernels()
        owned = [
            (graph, node) for graph, node in owned_nodes(module, "model") if node.name not in self.model_owned
        ]
        lines, initial = declarations(owned, printer), initial_lines(owned, printer)
        for (_, node), line in zip(owned, lines):
            self.model_owned[node.name] = line
        self.model_initial += initial
        self.model_imports |= printer.imports
        return printer

    def _config(self, used: Mapping[str, list[str]]) -> str:
        view = config_view(self.graph, used)
        exact = sorted(view.imports - {"Fraction", "math", "whole"})
        imports = view.imports | ({"Fraction"} if "whole" in view.imports else set())
        return self._render(
            "config.py.jinja",
            name=self.graph.name,
            fields=view.fields,
            properties=view.properties,
            imports=imports,
            exact=exact,
        )

    def _model(self, classes: list[ClassView]) -> str:
        settings = self.graph.settings
        imports: dict[str, set[str]] = {
            "config": {"Config"},
            "language_model": {"LanguageModel"},
            "place": {"Place"},
        }
        for file, name in self.model_imports.union(*(view.imports for view in classes)):
            imports.setdefault(file, set()).add(name)
        for norm in filter(None, (settings.norm, settings.embedding_norm)):
            plain = ("norm_modules", NORMS[norm])
            file, name = plain if self.target is None else with_kernels().get(plain, plain)
            imports.setdefault(file, set()).add(name)
        if self.names.sites[self.top]:
            imports["place"].add("Sites")
        eps = repr(float(settings.norm_eps))
        lines, text = layer_lines(self.graph, self.class_names)
        embedding_norm = (
            None
            if settings.embedding_norm is None
            else f"{NORMS[settings.embedding_norm]}((config.d_model,), eps={eps})"
        )
        return self._render(
            "model.py.jinja",
            name=self.graph.name,
            heading=self._heading(),
            source=self.graph.source,
            facts=self.facts,
            classes=classes,
            joined=[view.name for view in classes if view.joined],
            legend=self._legend(),
            standard=sorted({m for view in classes for m in view.modules_used if m in STANDARD}),
            functional=any("F" in view.modules_used for view in classes),
            imports=sorted((file, sorted(names)) for file, names in imports.items()),
            layers_text=text,
            layer_lines=lines,
            make_layer=f"block({self.names.constructor(self.top)})",
            sites=self.names.sites[self.top],
            shared=[
                (name, f"{self.class_names[key]}({self.names.constructor(key)})")
                for name, key in self.graph.shared.items()
            ],
            model_owned=list(self.model_owned.values()),
            model_initial=self.model_initial,
            final_norm=f"{NORMS[settings.norm]}((config.d_model,), eps={eps})",
            embedding_norm=embedding_norm,
            tied=settings.tie_embeddings,
            causal=settings.causal and self._looks_back(),
            float32=self._float32(),
            undecayed=self._undecayed(),
            logit_scale=self._setting(settings.logit_scale, 1),
            softcap=self._setting(settings.logit_softcap, None),
            embed=self._embed(),
        )

    def _setting(self, value: Any, neutral: Any) -> str:
        """A setting of the model as source, empty where it changes nothing."""
        if value is None or value == neutral:
            return ""
        return self._setting_source(value)

    def _setting_source(self, value: Any) -> str:
        from archc.spec.expressions import Expr

        if isinstance(value, Expr):
            first = next(iter(self.graph.modules.values()))
            return Printer(first, {}, lambda kind: "").number(value).text.replace("self.", "config.")
        return repr(int(value)) if value == int(value) else repr(float(value))

    def _embed(self) -> str:
        settings = self.graph.settings
        scale = self._setting(settings.embedding_scale, 1)
        text = "self.embedding(tokens_BT)" + (
            f" * ({scale.replace('config.', 'self.config.')})" if scale else ""
        )
        if settings.embedding_norm is not None:
            return f"self.embedding_norm({text})"
        return text if scale else ""

    def _looks_back(self) -> bool:
        """Whether every attention sees earlier tokens only."""
        nodes = (node for module in self.graph.modules.values() for node in module.subgraph.nodes)
        return all(node.attrs.get("causal", True) for node in nodes)

    def _float32(self) -> list[str]:
        """Ends of the names of parameters that keep float32."""
        found: dict[str, None] = {}
        for module in self.graph.modules.values():
            for node in module.subgraph.nodes:
                if node.attrs.get("float32", False):
                    paths = operations()[node.op].parameters(node, Sizes(module.values))
                    found |= {f".{path}": None for path, _ in paths}
        return sorted(found)

    def _legend(self) -> list[str]:
        """What the letters in names stand for."""
        named = sorted((letter, str(axis)) for axis, letter in self.letters.items())
        letters = ["B batch", "T tokens", *(f"{letter} {axis}" for letter, axis in named)]
        return wrapped(f"Axes: {', '.join(letters)}.")

    def _undecayed(self) -> list[str]:
        """Ends of the names of parameters that the spec takes out of weight decay."""
        found = {
            f".{node.name}"
            for module in self.graph.modules.values()
            for node in module.subgraph.nodes
            if node.attrs.get("weight_decay") is False
        }
        return sorted(found)

    def _heading(self) -> list[str]:
        """The model's name and what its spec says it is, as lines of a docstring."""
        title = prose(self.graph.title).removesuffix(".")
        return textwrap.wrap(f"{self.graph.name}: {title}." if title else f"{self.graph.name}.", 104)

    # -- run-time sources -----------------------------------------------------------------------------------

    def _norm_files(self) -> set[str]:
        return {"norm_modules"}

    def _recurrence(self, kind: RecurrenceKind, name: str) -> dict[str, str]:
        """The module of a class of recurrence and, for a GPU, that of its kernels."""
        from archc.tiles.torch_source import emit

        if self.target is None:
            return {f"{name}.py": emit(kind, name)}
        from archc.kernels.recurrence import gradients_since, has_reverse, sizes_of, source_of, uses_of

        uses = uses_of(self.graph)[kind]
        sizes = [] if name in self.torch_forms else sizes_of(kind, uses, self.target)
        backward = has_reverse(kind, sizes, self.target)
        since = gradients_since(kind, self.target) if backward else None
        return {
            f"{name}.py": emit(
                kind, name, kernel_sizes=sizes, reverse_kernels=backward, gradients_since=since
            ),
            f"{name}_kernels.py": source_of(kind, name, sizes, self.target),
        }

    def _fused_tokens(self) -> dict[str, str]:
        """The kernels of each body that decodes a token in a few launches."""
        from archc.kernels.fusing.decode import fuse_decode, module_file, module_source

        bodies = [(module, fuse_decode(module)) for module in self.graph.modules.values()]
        return {
            f"{module_file(module)}.py": module_source(fused) for module, fused in bodies if fused is not None
        }

    def _runtime(self, needed: set[str], made: Mapping[str, str]) -> dict[str, str]:
        """Run-time files that are needed beside those made here, and those that they import in turn."""
        pending = set(needed)
        for source in made.values():
            pending |= _relative_imports(source)
        found: dict[str, str] = {}
        own = {path.removesuffix(".py") for path in made}
        while pending:
            name = pending.pop()
            if f"{name}.py" in found or name in own:
                continue
            source = runtime_path(name).read_text(encoding="utf-8")
            found[f"{name}.py"] = source
            pending |= _relative_imports(source)
        return found

    def _render(self, template: str, **values: Any) -> str:
        return self.environment.get_template(template).render(**values)


def runtime_path(name: str) -> Path:
    """Where a run-time source lies: beside the templates, or in an operation's folder."""
    if name == "exact":
        return Path(exact_file)
    of_operation = source_path(name)
    return of_operation or data_folder("templates") / "runtime" / f"{name}.py"


def _relative_imports(source: str) -> set[str]:
    return set(re.findall(r"^\s*from \.(\w+) import", source, re.MULTILINE))
