"""JSON Schemas of the kinds of spec files, for editors: keys, forms and words, and no arithmetic."""

from __future__ import annotations

from archc.spec.bodies import NEED_INPUTS, PART_SECTIONS, SECTIONS, SLOT_KINDS
from archc.spec.layers import MAX_LAYERS
from archc.spec.library import FOLDERS
from archc.spec.params import ELEMENTS
from archc.spec.settings import MAX_SIZE
from archc.spec.values import TYPES

Schema = dict[str, object]

KINDS = ("model", *FOLDERS, "sweep")
DIALECT = "https://json-schema.org/draft/2020-12/schema"

_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
_VALUE = r"^[A-Za-z0-9][A-Za-z0-9_.:+-]*$"
_TARGETS = r"^[A-Za-z][A-Za-z0-9_]*(\s*,\s*[A-Za-z][A-Za-z0-9_]*)*$"


def generate(kind: str) -> Schema:
    """The JSON Schema (draft 2020-12) of a kind of file: one of `KINDS`. Raises KeyError for any other word.

    The data that it describes is that of YAML 1.2: `8/3`, `none` and equations are strings.
    """
    if kind not in KINDS:
        raise KeyError(kind)
    content = _model() if kind == "model" else _sweep() if kind == "sweep" else _body_file(kind)
    return {"$schema": DIALECT, "title": f"archc {kind}", **content, "$defs": _definitions()}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _object(properties: Schema, required: tuple[str, ...] = (), others: Schema | bool = False) -> Schema:
    found: Schema = {"type": "object", "properties": properties, "additionalProperties": others}
    return {**found, "required": list(required)} if required else found


def _named(values: Schema, pattern: str = _NAME) -> Schema:
    return {"type": "object", "propertyNames": {"pattern": pattern}, "additionalProperties": values}


def _one_or_many(item: Schema) -> Schema:
    return {"anyOf": [item, {"type": "array", "items": item, "minItems": 1}]}


def _sections(names: tuple[str, ...] = SECTIONS) -> Schema:
    """The sections of a body, with a line for editors to show."""
    known: Schema = {
        "title": {"type": "string", "description": "A line that says what this is."},
        "source": {"type": "string", "description": "Where it was published."},
        "params": _ref("params"),
        "sizes": {**_named(_ref("expression")), "description": "Whole numbers worked out from parameters."},
        "inputs": {
            **_named(_ref("axes")),
            "description": "Inputs with their axes; `x: [d_model]` by default.",
        },
        "slots": {
            **_named(_one_or_many({"enum": list(SLOT_KINDS)})),
            "description": "Bodies that a use supplies, with the kinds that each slot takes.",
        },
        "parts": {**_named(_ref("part")), "description": "Bodies inside this body, called like operations."},
        "export": {**_one_or_many(_ref("name")), "description": "Equations that later layers can read."},
        "init": {**_ref("expression"), "description": "The default initialiser of the weights."},
        "body": {**_ref("equations"), "description": "Equations, one a line; the result is `y`."},
        "losses": {**_ref("equations"), "description": "Auxiliary losses; they may reduce over tokens."},
        "updates": {
            **_ref("equations"),
            "description": "The value of a buffer after a training step; may reduce over tokens.",
        },
    }
    return {name: known[name] for name in names}


def _body_file(kind: str) -> Schema:
    needed = (kind, "body", *(("inputs",) if kind in NEED_INPUTS else ()))
    name = {**_ref("name"), "description": f"The name of the {kind}, and of its file."}
    return _object({kind: name, **_sections()}, needed)


def _model() -> Schema:
    return _object(
        {
            "archc": {"const": 1, "description": "The version of the language."},
            "name": {**_ref("name"), "description": "The name of the generated package."},
            "title": {"type": "string"},
            "source": {"type": "string"},
            "extends": {
                "type": "string",
                "description": "A spec that this one changes; `null` removes a key.",
            },
            "model": _ref("settings"),
            **{f"{kind}s": _named(_ref(f"{kind}_body")) for kind in ("mixer", "mlp", "function")},
            "block": {
                "anyOf": [_ref("name"), _ref("block_body")],
                "description": "The body of blocks that name none.",
            },
            "blocks": {
                **_named({"anyOf": [_ref("block"), {"type": "null"}]}),
                "description": "Blocks by name.",
            },
            "shared": {**_named(_ref("filler")), "description": "Bodies whose weights several layers share."},
            "layers": _ref("layers"),
            "init": {**_ref("expression"), "description": "The default initialiser of all weights."},
        }
    )


def _sweep() -> Schema:
    """A study over models. Changes of its spec are mappings of any keys: what they come to is a model."""
    place: Schema = {"type": "string", "pattern": r"^[A-Za-z_][A-Za-z0-9_]*(\.([A-Za-z_][A-Za-z0-9_]*|\*))*$"}
    count: Schema = {
        "anyOf": [
            {"type": "integer", "minimum": 1},
            {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?[KMBT]$"},
        ]
    }
    scalar: Schema = {"type": ["string", "number", "boolean"]}
    values: Schema = {
        "anyOf": [
            {"type": "array", "items": scalar, "minItems": 1},
            {"type": "object", "propertyNames": {"pattern": _VALUE}, "minProperties": 1},
        ],
        "description": "Values by name, or a list of numbers and words.",
    }
    at: Schema = {
        **_one_or_many(place),
        "description": "Where the values go, such as `blocks.linear.mixer`; else each changes the whole spec.",
    }
    rule = _object(
        {"when": _named(_one_or_many(scalar)), "set": {"type": "object"}, "skip": {"const": True}}, ("when",)
    )
    whole: Schema = {"type": "integer", "minimum": 1}
    match = _object(
        {
            "parameters": {
                "anyOf": [count, _named({"type": "object", "additionalProperties": count})],
                "description": "A number such as `340M`, or `{AXIS: {VALUE: NUMBER}}`.",
            },
            "by": {**_one_or_many(place), "description": "The number that is solved for each point."},
            "step": {**whole, "description": "It is a multiple of this."},
            "from": whole,
            "to": whole,
            "within": {"type": "string", "pattern": "%$", "description": "More than this off is an error."},
        },
        ("parameters", "by"),
    )
    return _object(
        {
            "sweep": {**_ref("name"), "description": "The name of the study, with which its models begin."},
            "title": {"type": "string"},
            "source": {"type": "string"},
            "base": {"type": "string", "description": "The path of a spec, or a packaged model's name."},
            "spec": _model(),
            "over": {
                **_named(_object({"at": at, "values": values}, ("values",))),
                "description": "What varies, by name; applied in this order.",
            },
            "where": {"type": "array", "items": rule, "description": "What is different at some points."},
            "match": match,
            "tokens": _one_or_many(whole),
        },
        ("sweep", "over"),
    )


def _definitions() -> Schema:
    return {
        "name": {"type": "string", "pattern": _NAME},
        "expression": {"type": ["string", "number", "boolean"]},
        "axes": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": ["string", "integer"]}}]},
        "equations": _named(_ref("expression"), _TARGETS),
        "params": _named({"anyOf": [_ref("declaration"), _ref("short_declaration")]}),
        "declaration": _declaration(),
        "short_declaration": {
            "anyOf": [
                _ref("expression"),
                {"type": "array"},
                {"type": "object", "not": {"required": ["type"]}},
            ],
            "description": "A default; the type is that of the default.",
        },
        "part": _object(_sections(PART_SECTIONS), ("inputs", "body")),
        **{f"{kind}_body": _object(_sections(), ("body",)) for kind in ("mixer", "mlp", "block")},
        "function_body": _object(_sections(), ("inputs", "body")),
        "filler": {"anyOf": [_ref("use"), _ref("alternating"), _ref("mixer_body")]},
        "use": _object(
            {
                "use": {
                    **_ref("name"),
                    "description": "The body; every other key is an argument or a slot of it.",
                },
                "body": {
                    **_ref("equations"),
                    "description": "Equations that replace those of the same name.",
                },
                "init": _ref("expression"),
            },
            ("use",),
            True,
        ),
        "alternating": _object({"shared": _one_or_many(_ref("name"))}, ("shared",)),
        "block": {
            **_object(
                {
                    "block": {"anyOf": [_ref("name"), _ref("block_body")]},
                    "use": _ref("name"),
                    "mixer": _ref("filler"),
                    "mlp": _ref("filler"),
                    **_sections(),
                },
                others=True,
            ),
            "description": "Slots with what fills them, and arguments of the block's body.",
        },
        "settings": _settings(),
        "layers": _layers(),
    }


def _declaration() -> Schema:
    return _object(
        {
            "type": {"enum": list(TYPES)},
            "default": {"description": "A value or an expression; without it the parameter is required."},
            "min": _ref("expression"),
            "max": _ref("expression"),
            "of": {
                "anyOf": [
                    {"enum": list(ELEMENTS)},
                    {"type": "array", "items": {"type": ["string", "number", "boolean"]}},
                ],
                "description": "The choices, or the type of a list's elements.",
            },
            "length": {"type": "integer", "minimum": 0},
            "divides": {**_ref("expression"), "description": "This parameter divides that one."},
            "entries": {**_ref("params"), "description": "What a mapping may hold."},
            "help": {"type": "string"},
        },
        ("type",),
    )


def _settings() -> Schema:
    def whole(most: int, text: str) -> Schema:
        number: Schema = {"type": "integer", "minimum": 1, "maximum": most}
        return {"anyOf": [number, {"type": "string"}], "description": text}

    return _object(
        {
            "vocab_size": whole(MAX_SIZE, "Number of tokens in the vocabulary."),
            "d_model": whole(MAX_SIZE, "Width of the residual stream."),
            "n_layers": {"type": "integer", "minimum": 1, "maximum": MAX_LAYERS},
            "context": whole(MAX_SIZE, "Tokens that the model is meant for."),
            "tie_embeddings": {"type": "boolean", "description": "The output matrix is the embedding."},
            "norm": {**_ref("name"), "description": "The operation behind `norm(x)`, and the final norm."},
            "norm_eps": _ref("expression"),
            "embedding_norm": {**_ref("name"), "description": "A norm right after the embedding."},
            "embedding_scale": _ref("expression"),
            "logit_scale": _ref("expression"),
            "logit_softcap": _ref("expression"),
            "causal": {"type": "boolean"},
        }
    )


def _layers() -> Schema:
    index: Schema = {"type": ["integer", "string"]}
    return {
        "description": "The order of the blocks: runs that repeat, a ratio, indices, or letters.",
        "anyOf": [
            {"type": "string"},
            {"type": "array", "items": {"type": "string"}, "minItems": 1},
            _object(
                {"ratio": {"type": "string"}, "blocks": {"type": "array", "items": _ref("name")}}, ("ratio",)
            ),
            _object({"pattern": {"type": "string"}, "letters": {"type": "object"}}, ("pattern", "letters")),
            {
                **_object({"default": _ref("name")}, others=_one_or_many(index)),
                "not": {"anyOf": [{"required": ["pattern"]}, {"required": ["ratio"]}]},
            },
        ],
    }
