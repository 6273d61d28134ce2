"""Count exactly what runs inside a `with`: kernels in Triton's interpreter, and every other operation of torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from archc.kernels.counting.counted import Counted, Other
from archc.kernels.counting.watch import Watch
from archc.spec.diagnostics import MachineError


@contextmanager
def counting() -> Iterator[Counted]:
    """Count every launch and every other operation of torch inside the `with`.

    Raises MachineError where kernels do not run in the interpreter, and AccessError after a launch that left its
    arguments or whose programs raced; what leaves an argument is not carried out.
    """
    try:
        import triton
        from triton.runtime import interpreter
    except ImportError as error:
        raise MachineError("counting needs Triton's interpreter, and Triton is not installed") from error
    if not triton.knobs.runtime.interpret:
        raise MachineError(
            "counting needs Triton's interpreter: set TRITON_INTERPRET=1 before the process starts"
        )
    if isinstance(interpreter._interpreter, SimpleNamespace):
        raise RuntimeError("counting() inside counting()")
    counted = Counted()
    watch = Watch(counted, interpreter)
    with ExitStack() as stack:
        for owner, name, replacement in watch.replacements():
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, replacement)
        stack.enter_context(_Others(counted, watch))
        yield counted


class _Others(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations of torch that move data; in an operation of a library, those that it is made of."""

    def __init__(self, counted: Counted, watch: Watch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counted = counted
        self.watch = watch

    def __torch_dispatch__(self, operation: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        named = named or {}
        if operation.namespace not in ("aten", "prim", "prims", "profiler"):
            backend = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
            with self:
                return operation.redispatch(backend, *given, **named)
        made = operation(*given, **named)
        if not self.watch.running:
            self._count(operation, given, named, made)
        return made

    def _count(self, operation: Any, given: Any, named: dict[str, Any], made: Any) -> None:
        read: list[torch.Tensor] = []
        written = _tensors(made)
        schema = operation._schema
        shaped = schema.name.endswith("_like") or schema.name.startswith("aten::new_")  # reads a shape only
        for position, argument in enumerate(schema.arguments):
            value = given[position] if position < len(given) else named.get(argument.name)
            tensors = _tensors(value)
            if argument.alias_info is not None and argument.alias_info.is_write:
                written += [tensor for tensor in tensors if not any(tensor is known for known in written)]
                if schema.name in _OVERWRITES or argument.is_out:
                    continue
            if not shaped:
                read += tensors
        held = {tensor.untyped_storage().data_ptr() for tensor in read}
        view = written and all(tensor.untyped_storage().data_ptr() in held for tensor in written)
        moved = sum(map(_bytes, read)), sum(map(_bytes, written))
        if any(moved) and schema.name not in _MOVES_NOTHING and (schema.is_mutable or not view):
            self.counted.others.append(Other(str(operation), *moved))


_OVERWRITES = ("aten::copy_", "aten::fill_", "aten::zero_")
_MOVES_NOTHING = (
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::set_",
)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, (list, tuple)) else []


def _bytes(tensor: torch.Tensor) -> int:
    """Bytes of the distinct elements: an axis of stride 0 repeats the same ones."""
    count = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride()):
        count *= min(size, 1) if stride == 0 else size
    return count
