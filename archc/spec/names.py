"""Which words may become names: they end up as identifiers, attributes of modules and keys of checkpoints."""

from __future__ import annotations

import keyword
import re

from archc.spec.diagnostics import Label, Reporter, Span
from archc.spec.lexer import describe
from archc.spec.spec import Target
from archc.spec.yaml_nodes import YScalar

MAX_NAME = 60

# Words with a meaning of their own in every body.
RESERVED = {
    "x": "the input of a body",
    "layer": "the index of the layer",
    "n_layers": "the number of layers",
    "site": "the index among the uses of a body",
    "n_sites": "the number of uses of a body",
    "d_model": "the width of the model",
    "context": "the number of tokens that the model is meant for",
    "embedding": "the embedded tokens",
    "tokens": "the axis of tokens",
    "keys": "the axis of keys",
    "i": "the query's position in masks and scores",
    "j": "the key's position in masks and scores",
    "s": "the score in `score=`",
    "true": "a constant",
    "false": "a constant",
    "none": "a constant",
}

# Public attributes of torch.nn.Module in torch 2.11 to 2.13; a test compares them with the installed torch.
MODULE_ATTRIBUTES = frozenset(
    """
    T_destination add_module apply bfloat16 buffers call_super_init children compile cpu cuda double
    dump_patches eval extra_repr float forward get_buffer get_extra_state get_parameter get_submodule
    half ipu load_state_dict modules mtia named_buffers named_children named_modules named_parameters
    parameters register_backward_hook register_buffer register_forward_hook register_forward_pre_hook
    register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook
    register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook
    register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory state_dict to
    to_empty train training type xpu zero_grad
""".split()
)

# Names that the generated source uses itself, and Python's builtins.
TAKEN = frozenset(
    """
    torch nn F math self cls super state cu_seqlens place layout config Tensor tl triton typing
    dataclass abs aiter all anext any ascii bin bool breakpoint bytearray bytes callable chr classmethod
    complex copyright credits delattr dict dir divmod enumerate exec exit filter format frozenset
    getattr globals hasattr hash help hex id input int isinstance issubclass iter len license list
    locals map max memoryview min next object oct open ord pow print property quit range repr reversed
    round set setattr slice sorted staticmethod str sum tuple vars zip
""".split()
)

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)
_LOOKALIKES = {"l": "one", "I": "one", "O": "zero"}


def check_name(
    name: str, span: Span, report: Reporter, *, what: str = "name", allow: frozenset[str] = frozenset()
) -> bool:
    """Whether a word may be declared as a name; reports why not.

    `what` says what is being named ("parameter", "block"). `allow` lifts single words, such as `x` for an
    input.
    """
    if name in allow:
        return True
    if not check_weight_name(name, span, report, what=what):
        return False
    if name in RESERVED:
        report.error(
            "E142", f"`{name}` is reserved: it is {RESERVED[name]}", span, help=f"choose another {what}"
        )
    elif name in TAKEN:
        report.error(
            "E144",
            f"`{name}` means something else in the generated source",
            span,
            help=f"choose another {what}, such as `{name}_`" if not name.endswith("_") else "",
        )
    elif name in _LOOKALIKES:
        report.error(
            "E144", f"`{name}` reads like a {_LOOKALIKES[name]}", span, help=f"choose another {what}"
        )
    else:
        return True
    return False


def check_weight_name(name: str, span: Span, report: Reporter, *, what: str = "name") -> bool:
    """Whether a word may name a weight: an identifier that is no attribute of `torch.nn.Module`."""
    if not _IDENTIFIER.fullmatch(name):
        _form(name, span, report, what)
    elif len(name) > MAX_NAME:
        report.error("E140", f"a {what} has at most {MAX_NAME} letters", span)
    elif keyword.iskeyword(name):
        report.error(
            "E141",
            f"`{name}` is a keyword of Python",
            span,
            note="every name becomes an identifier of the generated source",
            help=f"choose another {what}",
        )
    elif name in MODULE_ATTRIBUTES:
        report.error(
            "E143",
            f"`{name}` is an attribute of torch.nn.Module",
            span,
            note="a weight or value of this name would hide it",
            help=f"choose another {what}",
        )
    else:
        return True
    return False


def _form(name: str, span: Span, report: Reporter, what: str) -> None:
    if not name:
        report.error("E140", f"a {what} is missing here", span)
        return
    note = ""
    if name.startswith("_"):
        note = "names that begin with `_` belong to Python and torch"
    elif name[0].isdigit() and name.isalnum():
        note = "a name begins with a letter"
    else:
        wrong = next((c for c in name if not re.match(r"[A-Za-z0-9_]", c, re.ASCII)), "")
        note = f"the character {describe(wrong)} cannot be part of a name" if wrong else ""
    shown = name if len(name) <= 40 else name[:37] + "..."
    report.error(
        "E140",
        f"`{shown}` cannot be a {what}",
        span,
        note=note,
        help="a name is a letter and then letters, digits and `_`, all of them ASCII",
    )


def parse_targets(key: YScalar, report: Reporter) -> tuple[Target, ...]:
    """The names that an equation defines: `v, k, q` are three. Empty after an error in any of them."""
    if key.style != "plain" or "\n" in key.raw:
        report.error("E140", "the name of an equation stands on one line, without quotes", key.span)
        return ()
    found: dict[str, Target] = {}
    good = True
    offset = 0
    for part in key.raw.split(","):
        name = part.strip()
        start = key.span.column + offset + len(part) - len(part.lstrip())
        offset += len(part) + 1
        span = Span(key.span.path, key.span.line, start, key.span.line, start + len(name))
        if name in found:
            report.error(
                "E145",
                f"`{name}` is defined twice",
                span,
                labels=[Label(found[name].span, "first here")],
                help="give each part a name of its own",
            )
            good = False
        elif check_name(name, span, report):
            found[name] = Target(name, span)
        else:
            good = False
    return tuple(found.values()) if good else ()
