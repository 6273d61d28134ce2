"""What kernels moved and computed, launch by launch, as `counting()` hands it out."""

from __future__ import annotations

from dataclasses import dataclass, field


class AccessError(Exception):
    """A kernel left its arguments, or programs of one launch raced. The message names argument and offset."""


@dataclass(slots=True)
class Traffic:
    """Bytes. requested: elements under the mask times their size; distinct: each address once."""

    requested_read: int = 0
    requested_written: int = 0
    distinct_read: int = 0
    distinct_written: int = 0

    @property
    def requested(self) -> int:
        return self.requested_read + self.requested_written

    @property
    def distinct(self) -> int:
        return self.distinct_read + self.distinct_written


@dataclass(slots=True)
class Launch(Traffic):
    """One kernel over its grid. An address that several arguments share is distinct once in the launch.

    flop: 2 M N K of every matrix product executed. exponentials: elements of `exp` and `exp2`.
    """

    name: str = ""
    grid: tuple[int, ...] = ()
    by_argument: dict[str, Traffic] = field(default_factory=dict)
    flop: int = 0
    exponentials: int = 0


@dataclass(slots=True)
class Other:
    """An operation of torch that moves data: bytes of the tensors that it reads and of those that it writes."""

    name: str
    read: int
    written: int


@dataclass(slots=True)
class Counted:
    """What ran, in order."""

    launches: list[Launch] = field(default_factory=list)
    others: list[Other] = field(default_factory=list)

    @property
    def distinct(self) -> int:
        """Bytes that memory has to move: launches do not share what they leave in caches."""
        return sum(launch.distinct for launch in self.launches) + self.moved_by_others

    @property
    def requested(self) -> int:
        return sum(launch.requested for launch in self.launches) + self.moved_by_others

    @property
    def moved_by_others(self) -> int:
        return sum(other.read + other.written for other in self.others)

    @property
    def flop(self) -> int:
        return sum(launch.flop for launch in self.launches)

    @property
    def exponentials(self) -> int:
        return sum(launch.exponentials for launch in self.launches)

    def table(self) -> str:
        """Launches with their arguments, then the other operations, in bytes."""
        rows: list[tuple[str, ...]] = [("", "read", "written", "requested", "flop", "exponentials")]

        def add(name: str, *numbers: int) -> None:
            rows.append((name, *(f"{number:,}" for number in numbers)))

        for launch in self.launches:
            name = f"{launch.name} {launch.grid}"
            sums = launch.distinct_read, launch.distinct_written, launch.requested
            add(name, *sums, launch.flop, launch.exponentials)
            for name, part in launch.by_argument.items():
                add(f"  {name}", part.distinct_read, part.distinct_written, part.requested)
        for other in self.others:
            add(other.name, other.read, other.written, other.read + other.written)
        add("distinct and requested", self.distinct, self.requested)
        return "\n".join(f"{name:40s}" + "".join(f"{text:>16s}" for text in texts) for name, *texts in rows)
