"""Names of what calls own, their weights and memories, by language rule 9."""

from __future__ import annotations

from archc.elaboration.scope import Scope
from archc.graph.calls import Call
from archc.spec.diagnostics import Label


def member_name(scope: Scope, call: Call, given: str | None, suffix: str) -> str:
    """The attribute of a weighted call (rule 9); a second one of the same name must say `name=`."""
    stem = scope.local if scope.prefix else scope.equation
    weighted = call.operation.weighted
    if given is not None:
        name = f"{scope.prefix}_{given}" if scope.prefix else given
    elif scope.targets > 1 and not scope.prefix and weighted:
        raise scope.fail(
            "E360",
            f"`{call.operation.name}` stands under several targets and needs a name",
            call.span,
            help=f"write {call.operation.name}(..., name=in_proj)",
        )
    else:
        own = f"{stem}_{suffix}" if suffix and stem != suffix and not stem.endswith(f"_{suffix}") else stem
        name = f"{scope.prefix}_{own}" if scope.prefix else own
        plain, count = name, 2
        while not weighted and name in scope.builder.members:  # no checkpoint holds the name of a memory
            name, count = f"{plain}_{count}", count + 1
    before = scope.builder.members.get(name)
    remembers = call.operation.remembers()
    if before is not None and (given is None or remembers):
        raise scope.fail(
            "E361",
            f"another call is called `{name}` already"
            + (", and each keeps a memory of its own" if remembers and given is not None else ""),
            call.span,
            labels=[Label(before, "the first one")],
            help=f"give this one a name of its own: {call.operation.name}(..., name=...)",
        )
    scope.builder.members.setdefault(name, call.span)
    return name


def state_name(scope: Scope, call: Call) -> str:
    """The name of an operation's memory, else that of its equation; two in one body must differ."""
    name = call.word("name") or scope.local or scope.equation
    name = f"{scope.prefix}_{name}" if scope.prefix else name
    before = scope.builder.members.get(name)
    if before is not None:
        raise scope.fail(
            "E361",
            f"two operations with memory would both be called `{name}`",
            call.span,
            labels=[Label(before, "the first one")],
            help=f"give this one a name of its own: {call.operation.name}(..., name=...)",
        )
    scope.builder.members[name] = call.span
    return name
