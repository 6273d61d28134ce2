"""Stand between Triton's interpreter and memory.

Everything that the interpreter reads or writes goes through four functions, also through tensor descriptors. Here
each tensor argument of a launch gets addresses of its own, far apart from all others; the four functions are given
back the real ones. So every byte belongs to exactly one argument, and a kernel that leaves its argument is found
even where it would have met another tensor. So are programs of one launch that touch the same bytes, at least one of
them to write: the interpreter runs programs in order, a GPU does not.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from archc.kernels.counting.counted import AccessError, Counted, Launch, Traffic

Array = NDArray[Any]

# Addresses of argument n lie around (n + 1/2) * 2^44; the lowest 12 bits are real, because descriptors are aligned.
_SPAN = 44
_MIDDLE = 1 << (_SPAN - 1)
_LOW = (1 << 12) - 1

_SEVERAL = -1  # in place of a program's number


class _Argument:
    """A tensor argument: its elements' bytes, and which program read and wrote each (0: none, -1: several)."""

    def __init__(self, name: str, host: Any, number: int) -> None:
        tensor: torch.Tensor = getattr(host, "base", host)  # `triton.reinterpret` wraps one
        self.name = name
        self.host = host
        self.storage = tensor.untyped_storage().data_ptr()
        self.real = tensor.data_ptr()
        self.base = (number << _SPAN) + _MIDDLE + (self.real & _LOW)
        self.traffic = Traffic()
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
        elements = torch.zeros(reach + 1 if tensor.numel() else 0, dtype=torch.bool)
        if tensor.numel():
            elements.as_strided(tensor.shape, tensor.stride()).fill_(True)
        self.inside: Array = np.repeat(elements.numpy(), tensor.element_size())
        self.reader = np.zeros(len(self.inside), np.int32)
        self.writer = np.zeros(len(self.inside), np.int32)

    def holds(self, offsets: Array, size: int) -> Array:
        """Which elements of `size` bytes at these offsets lie wholly inside the tensor's own elements."""
        here: Array = (offsets >= 0) & (offsets + size <= len(self.inside))
        safe = np.where(here, offsets, 0)
        for byte in range(size if here.any() else 0):
            here &= self.inside[np.where(here, safe + byte, 0)]
        return here

    def mark(self, offsets: Array, size: int, program: int, verb: str) -> Array:
        """Note who touched these bytes; offsets of those that another program touched in a way that races."""
        touched = (offsets[:, None] + np.arange(size)).reshape(-1)
        readers, writers = self.reader[touched], self.writer[touched]
        raced = (writers != 0) & (writers != program)
        if verb != "reads":
            raced |= (readers != 0) & (readers != program)
            self.writer[touched] = np.where(raced & (writers != 0), _SEVERAL, program)
        if verb != "writes":
            self.reader[touched] = np.where((readers != 0) & (readers != program), _SEVERAL, program)
        found: Array = touched[raced]
        return found


class Watch:
    """Stands between the interpreter and memory while one launch runs."""

    def __init__(self, counted: Counted, interpreter: Any) -> None:
        self.counted = counted
        self.interpreter = interpreter
        self.native = interpreter._interpreter
        self.running = False
        self.launch = Launch()
        self.arguments: list[_Argument] = []
        self.program = 0
        self.faults: list[str] = []

    def replacements(self) -> list[tuple[Any, str, Any]]:
        """(owner, name, what takes its place) for everything of the interpreter that is watched."""
        builder, executor = self.interpreter.InterpreterBuilder, self.interpreter.GridExecutor
        memory = {**vars(self.native), "load": self._load, "store": self._store}
        memory |= {"atomic_rmw": self._atomic_rmw, "atomic_cas": self._atomic_cas}
        return [
            (self.interpreter, "_interpreter", SimpleNamespace(**memory)),
            (self.interpreter, "_implicit_cvt", self._pointer(self.interpreter._implicit_cvt)),
            (executor, "__call__", self._run(executor.__call__)),
            (executor, "_init_args_hst", self._bind(executor._init_args_hst)),
            (builder, "set_grid_dim", self._grid(builder.set_grid_dim)),
            (builder, "set_grid_idx", self._next_program(builder.set_grid_idx)),
            (builder, "create_dot", self._dot(builder.create_dot)),
            (builder, "create_exp", self._exponential(builder.create_exp)),
            (builder, "create_exp2", self._exponential(builder.create_exp2)),
        ]

    # A launch: its name and grid, its arguments, the program at work.

    def _run(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def run(executor: Any, *given: Any, **named: Any) -> None:
            self.launch = Launch(name=executor.fn.__name__)
            self.arguments, self.program, self.faults = [], 0, []
            self.running = True
            try:
                original(executor, *given, **named)
            finally:
                self.running = False
            self._finish()

        return run

    def _bind(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def bind(executor: Any, given: Any, named: dict[str, Any]) -> Any:
            hosts, named_hosts = original(executor, given, named)
            for name, host in [*zip(executor.arg_names, hosts), *named_hosts.items()]:
                self._argument(name, host)
            return hosts, named_hosts

        return bind

    def _argument(self, name: str, host: Any) -> None:
        if isinstance(host, tuple):
            for number, part in enumerate(host):
                self._argument(f"{name}[{number}]", part)
        elif hasattr(host, "block_shape"):  # a tensor descriptor
            self._argument(name, host.base)
        elif hasattr(host, "data_ptr"):
            self.arguments.append(_Argument(name, host, len(self.arguments)))

    def _pointer(self, original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def pointer(given: Any) -> Any:
            made = original(given)
            for argument in self.arguments:
                if argument.host is given:
                    made.handle.data = np.array([argument.base], np.uint64)
            return made

        return pointer

    def _grid(self, original: Callable[..., None]) -> Callable[..., None]:
        def grid(builder: Any, *sizes: int) -> None:
            self.launch.grid = sizes
            original(builder, *sizes)

        return grid

    def _next_program(self, original: Callable[..., None]) -> Callable[..., None]:
        def next_program(builder: Any, *index: int) -> None:
            self.program += 1
            original(builder, *index)

        return next_program

    def _finish(self) -> None:
        storages: dict[int, list[_Argument]] = {}
        for argument in self.arguments:
            argument.traffic.distinct_read = int(np.count_nonzero(argument.reader))
            argument.traffic.distinct_written = int(np.count_nonzero(argument.writer))
            storages.setdefault(argument.storage, []).append(argument)
            self.launch.by_argument[argument.name] = argument.traffic
            self.launch.requested_read += argument.traffic.requested_read
            self.launch.requested_written += argument.traffic.requested_written
        for sharing in storages.values():
            first = min(argument.real for argument in sharing)
            last = max(argument.real + len(argument.inside) for argument in sharing)
            read, written = np.zeros(last - first, bool), np.zeros(last - first, bool)
            for argument in sharing:
                place = slice(argument.real - first, argument.real - first + len(argument.inside))
                read[place] |= argument.reader != 0
                written[place] |= argument.writer != 0
            self.launch.distinct_read += int(np.count_nonzero(read))
            self.launch.distinct_written += int(np.count_nonzero(written))
        self.counted.launches.append(self.launch)
        if self.faults:
            more = [f"and {len(self.faults) - 8} more"] if len(self.faults) > 8 else []
            raise AccessError("\n".join([*self.faults[:8], *more]))

    # Memory.

    def _touch(
        self, addresses: Array, mask: Any, size: int, verb: str, atomic: bool = False
    ) -> tuple[Array, Array]:
        """Count an access; the real addresses and the mask of those that are inside their argument."""
        wanted = np.broadcast_to(np.asarray(mask, bool), addresses.shape)
        real, allowed = np.zeros_like(addresses), np.zeros(addresses.shape, bool)
        numbers = addresses >> np.uint64(_SPAN)
        for number in np.unique(numbers[wanted]):
            here = wanted & (numbers == number)
            if number >= len(self.arguments):
                self._fault(f"{verb} at an address that is in none of its arguments")
                continue
            argument = self.arguments[number]
            offsets = addresses[here].astype(np.int64) - argument.base
            inside = argument.holds(offsets, size)
            if not inside.all():
                out = offsets[~inside]
                within = f"its {len(argument.inside)} bytes" if argument.inside.all() else "its elements"
                reach = f"offsets {out.min()} to {out.max() + size - 1} are outside {within}"
                self._fault(f"{verb} {argument.name} out of bounds: {reach}")
            raced = argument.mark(offsets[inside], size, self.program, verb)
            if len(raced) and not atomic:
                self._fault(
                    f"{verb} {argument.name} at offset {raced.min()}, which another program touched: a race"
                )
            if verb != "writes":
                argument.traffic.requested_read += size * len(offsets)
            if verb != "reads":
                argument.traffic.requested_written += size * len(offsets)
            allowed[here] = inside
            real[here] = np.where(inside, offsets + argument.real, 0).astype(np.uint64)
        return real, allowed

    def _fault(self, text: str) -> None:
        self.faults.append(
            f"{self.launch.name}, program {self.program - 1} of grid {self.launch.grid}, {text}"
        )

    def _load(self, addresses: Array, mask: Any, other: Array, dtype: Any) -> Any:
        real, allowed = self._touch(addresses, mask, np.dtype(dtype).itemsize, "reads")
        return self.native.load(real, allowed, other, dtype)

    def _store(self, addresses: Array, value: Array, mask: Any) -> Any:
        real, allowed = self._touch(addresses, mask, value.itemsize, "writes")
        return self.native.store(real, value, allowed)

    def _atomic_rmw(self, operation: Any, addresses: Array, value: Array, mask: Any, order: Any) -> Any:
        real, allowed = self._touch(addresses, mask, value.itemsize, "reads and writes", atomic=True)
        return self.native.atomic_rmw(operation, real, value, allowed, order)

    def _atomic_cas(self, addresses: Array, compare: Array, value: Array, order: Any) -> Any:
        real, allowed = self._touch(addresses, True, value.itemsize, "reads and writes", atomic=True)
        if not allowed.all():  # it has no mask, so that the launch cannot go on
            raise AccessError(self.faults[-1])
        return self.native.atomic_cas(real, compare, value, order)

    # Work.

    def _dot(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def dot(builder: Any, a: Any, b: Any, *rest: Any, **named: Any) -> Any:
            self.launch.flop += 2 * a.data.size * b.data.shape[-1]
            return original(builder, a, b, *rest, **named)

        return dot

    def _exponential(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def exponential(builder: Any, x: Any) -> Any:
            self.launch.exponentials += x.data.size
            return original(builder, x)

        return exponential
