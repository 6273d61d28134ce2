"""Random bodies: well-formed equations over operations and functions, most of them of fitting axes."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

WIDE, HEADS, PER_HEAD, ONE = "d_model", "[n_heads, head_dim]", "[n_heads]", "1"
SHAPES = (WIDE, HEADS, PER_HEAD, ONE)
UNARY = (
    "silu", "sigmoid", "exp", "log", "tanh", "softplus", "logsigmoid", "relu", "gelu", "abs", "sqrt", "rsqrt", "sign",
    "square", "reciprocal", "erf", "sin", "cos", "elu", "expm1", "log1p", "inverse_softplus", "fp32", "floor", "round",
    "logical_not", "golu", "mish", "elu1", "relu2", "hedgehog", "taylor_exp", "rebased", "mamba_decay", "l2norm",
    "lower_bound_decay", "softmax", "cumsum", "sum", "mean", "max_over", "shift", "tensor_square", "norm", "embedding",
)  # fmt: skip
BINARY = ("+", "-", "*", "/", "//", "%", "**", "<", ">=", "==", "and", "or")
CALLS = (
    "max",
    "min",
    "logaddexp",
    "outer",
    "concat",
    "scan",
    "topk",
    "clip",
    "where",
    "atan2",
    "elementwise",
    "slot",
)
NUMBERS = (
    "0",
    "1",
    "2",
    "-1",
    "0.5",
    "1/3",
    "n_heads",
    "head_dim",
    "layer",
    "site",
    "n_layers",
    "d_model",
    "none",
)
NAMES = ("x", "q", "k", "v", "a", "i", "s", "tokens", "embedding", "option", "sizes", "mode", "true")
AXES = (
    WIDE,
    HEADS,
    PER_HEAD,
    ONE,
    "head_dim",
    "[]",
    "[n_heads, n_heads]",
    "x",
    "0",
    "d_model / 3",
    "none",
    "wide",
)
CONDITIONS = (
    "layer > 0",
    "site == 0",
    "option",
    'mode == "fast"',
    "n_heads > 2",
    "x",
    "not option",
    "layer % 2",
    "a",
)
MATRIX = ("over=n_heads", "over=head_dim", "bias=true", "name=w", "init=zeros", "init=normal(0, 1)", "init=x",
          "blocks=2", "init=arange(d_model)", "share=model", "per=n_heads")  # fmt: skip
NORM = (
    "over=n_heads",
    "over=[n_heads, head_dim]",
    "weight=none",
    "weight=[n_heads, head_dim]",
    "eps=1e-5",
    "name=n",
)
LOOK = ("mask=i - j < 8", "mask=x", "mask=i - j < 8 and j % 2 == 0", "score=s * 2", "score=tanh(s) + a[j]", "sink=a",
        "outputs=[out, lse]", "causal=false", "scale=1/8", "score=s + a", "mask=a[i] > a[j]", "sink=x")  # fmt: skip
STATE = ("decay=a", "decay_v=a", "beta=a", "beta=sigmoid(a)", "decay=-exp(a)", "decay=-exp(k)", "decay_v=-exp(v)",
         "normalize=max", "normalize=sum", "log_input=a", "read=exclusive", "erase_write=k", "erase_read=k",
         "chunk=16", "erase_from=previous", "erase_from=decayed", "factors=n_heads", "bonus=k", "decay=-1",
         "scale=auto", "decay=-exp(param(l, [n_heads]))", "bonus=param(u, [n_heads, head_dim])")  # fmt: skip
ANY = ("unknown=1", "scale=1", "name=w", "over=x")


@st.composite
def expressions(draw: st.DrawFn, shape: str = WIDE, depth: int = 3) -> str:
    """An expression that, as often as not, has the axes `shape`."""
    wanted = shape if draw(st.integers(0, 9)) else draw(st.sampled_from(SHAPES))
    if depth == 0:
        leaf = {
            WIDE: "x",
            HEADS: draw(st.sampled_from("qkv")),
            PER_HEAD: "a",
            ONE: draw(st.sampled_from(NUMBERS)),
        }
        return leaf[wanted] if draw(st.integers(0, 7)) else draw(st.sampled_from(NAMES))

    def inner(of: str) -> str:
        return draw(expressions(of, depth - 1))

    def keywords(words: tuple[str, ...], most: int = 2) -> str:
        words = words if draw(st.integers(0, 9)) else ANY
        return "".join(
            f", {word}" for word in draw(st.lists(st.sampled_from(words), max_size=most, unique=True))
        )

    forms: dict[str, Callable[[], str]] = {
        "unary": lambda: f"{draw(st.sampled_from(UNARY))}({inner(wanted)})",
        "pipe": lambda: f"({inner(wanted)}) | {draw(st.sampled_from(UNARY))}",
        "binary": lambda: (
            f"({inner(wanted)}) {draw(st.sampled_from(BINARY))} ({inner(draw(st.sampled_from(SHAPES)))})"
        ),
        "linear": lambda: f"linear({inner(draw(st.sampled_from(SHAPES)))}, {wanted}{keywords(MATRIX)})",
        "norm": lambda: (
            f"{draw(st.sampled_from(('rmsnorm', 'layernorm', 'l2norm')))}({inner(wanted)}{keywords(NORM)})"
        ),
        "call": lambda: f"{draw(st.sampled_from(CALLS))}({inner(wanted)}, {inner(wanted)})",
        "axes": lambda: (
            f"{draw(st.sampled_from(('reshape', 'linear', 'sum', 'select', 'repeat', 'arange', 'ones', 'split')))}"
            f"({inner(wanted)}, {draw(st.sampled_from(AXES))}, {draw(st.sampled_from(AXES))})"
        ),
        "param": lambda: (
            f"param({draw(st.sampled_from('abcx'))}, {draw(st.sampled_from((wanted, *AXES)))}{keywords(MATRIX)})"
        ),
        "if": lambda: f"({inner(wanted)} if {draw(st.sampled_from(CONDITIONS))} else {inner(wanted)})",
        "look": lambda: f"attention({inner(HEADS)}, {inner(HEADS)}, {inner(HEADS)}{keywords(LOOK)})",
        "state": lambda: (
            f"recurrence({inner(HEADS)}, {inner(HEADS)}, {inner(HEADS)}, scale=1{keywords(STATE, 3)})"
        ),
        "token": lambda: (
            f"{draw(st.sampled_from(('conv1d', 'shift', 'rope', 'dropout', 'topk')))}"
            f"({inner(wanted)}, {draw(st.sampled_from(('1', '2', '4', '10000', *NUMBERS)))})"
        ),
        "across": lambda: f"{draw(st.sampled_from(('first', 'previous')))}({draw(st.sampled_from(NAMES))})",
    }
    return forms[draw(st.sampled_from(tuple(forms)))]()


def model(body: dict[str, str]) -> dict[str, object]:
    """A model of three layers around the equations of one mixer."""
    params = {
        "n_heads": {"type": "int", "default": 4},
        "option": {"type": "bool", "default": False},
        "mode": {"type": "choice", "of": ["fast", "slow"], "default": "fast"},
        "sizes_": {"type": "list", "default": [1, 2]},
    }
    mixer = {"params": params, "sizes": {"head_dim": "d_model / n_heads"}, "body": body}
    return {
        "archc": 1,
        "name": "random",
        "model": {"vocab_size": 32, "d_model": 16, "n_layers": 3, "context": 32},
        "mixers": {"mine": mixer},
        "blocks": {"main": {"mixer": {"use": "mine"}}},
    }


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, object]:
    """A model whose mixer has two random equations beside plain queries, keys, values and gates."""
    body = {
        "q": "linear(x, [n_heads, head_dim])",
        "k": "linear(x, [n_heads, head_dim])",
        "v": "linear(x, [n_heads, head_dim])",
        "a": draw(st.sampled_from(("logsigmoid(linear(x, [n_heads]))", "linear(x, [n_heads])"))),
    }
    shape = draw(st.sampled_from((WIDE, HEADS)))
    body["h"] = draw(expressions(shape, draw(st.integers(1, 3))))
    body["y"] = f"linear(h, d_model) + linear({draw(expressions(WIDE, 1))}, d_model, name=w2)"
    read = " ".join((body["h"], body["y"]))
    for name in "qkva":
        if not any(name == word for word in _words(read)):
            del body[name]
    return model(body)


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() or c == "_" else " " for c in text).split()
