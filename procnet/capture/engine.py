"""What an engine in the kernel has counted becomes what ``Counter`` would have said."""

from __future__ import annotations

import contextlib
import gc
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

from procnet.capture.whose import Whose
from procnet.model import (
    MAPPED_PREFIX,
    Counted,
    CountedEnds,
    CountedSums,
    FlowCount,
    FlowKey,
    Reason,
)

CROWD_ENTRIES = 8192
"""The kernel's table has room for eight times as many."""
MAX_TAKEN = 1 << 18
"""Entries that wait here, at 100 bytes each; more stay in the kernel, which counts what it has no
room for."""

_Batch = tuple[int, Iterable[tuple[CountedEnds, CountedSums]]]
# The constructor of a NamedTuple takes three times as long.
_new = tuple.__new__


class Engine(Protocol):
    """Counts for the handles that it is attached to; what it cannot read still comes to them."""

    holds_back: bool
    """Could the last drain not read all that there was?"""

    def attach(self, descriptor: int) -> None:
        """Counts what a packet socket would be given, from now on and until it is closed."""

    def drain(self, *, surely: bool = False) -> Counted:
        """What was counted since the last call; ``surely`` for the last of a socket."""

    @property
    def waiting_entries(self) -> int:
        """How many entries there are to drain, about."""

    def close(self) -> None:
        """Gives everything back. Idempotent."""


class KernelSide:
    """An engine and the rules by which its rows are counts of flows, for a set of handles."""

    def __init__(self, engine: Engine, netns: int) -> None:
        self._engine = engine
        self._netns = netns
        self._interfaces = _Interfaces(netns)
        self._left: list[FlowCount] = []
        # Entries by the batch, with the wall-clock time of the boot.
        self._taken: deque[tuple[int, _Batch]] = deque()
        self._taken_entries = 0

    def attach(self, descriptor: int, index: int, name: str, *, loopback: bool) -> None:
        """Counts what comes to a packet socket of that interface."""
        whose = Whose(self._netns, self._interfaces.local_addresses, loopback=loopback)
        self._interfaces[index] = (name, whose)
        self._engine.attach(descriptor)

    def release(self, *indices: int) -> list[FlowCount]:
        """To be told when the sockets of these interfaces are closed; what is left to be counted.

        It is all that there is: nothing is counted for a socket once it is closed.
        """
        counts = self.drain(surely=True)
        for index in indices:
            self._interfaces.pop(index, None)
        return counts

    def set_local_addresses(self, addresses: frozenset[bytes]) -> None:
        """Decide direction by these from now on; what was counted stays as it is."""
        if addresses == self._interfaces.local_addresses:
            return
        self._left = self.drain()
        self._interfaces.local_addresses = addresses
        for _, whose in self._interfaces.values():
            whose.local_addresses = addresses

    def drain(self, most: int | None = None, *, surely: bool = False) -> list[FlowCount]:
        """What was counted since the last call: a count for each flow that an entry belongs to.

        About ``most``, if there are more: the rest waits here. All of them if that is None.
        """
        with _collector_at_rest():
            crowded = self._engine.waiting_entries > CROWD_ENTRIES
            if surely or not self._taken or (crowded and self._taken_entries < MAX_TAKEN):
                self._take(surely)
            # What there is stays here if it fails half-way.
            while self._taken and (most is None or len(self._left) < most):
                boot_ns, (number, entries) = self._taken.popleft()
                self._taken_entries -= number
                self._count(entries, boot_ns)
        found, self._left = self._left, []
        return found

    @property
    def holds_back(self) -> bool:
        """Was there more than the last drain asked for, or could be read?"""
        return bool(self._taken) or self._engine.holds_back

    def _take(self, surely: bool) -> None:
        boot_ns, batches, evicted = self._engine.drain(surely=surely)
        self._taken.extend((boot_ns, batch) for batch in batches)
        self._taken_entries += sum(number for number, _ in batches)
        for index, out, (packets, wire, payload, first_ns, last_ns, _) in evicted:
            self._left.append(FlowCount(
                self._interfaces[index][0], None, out, packets, wire, payload, first_ns + boot_ns,
                last_ns + boot_ns, False, Reason.EVICTED,
            ))  # fmt: skip

    def _count(self, entries: Iterable[tuple[CountedEnds, CountedSums]], boot_ns: int) -> None:
        # Measured, not guessed: see benchmarks/count_program.py before changing a line.
        netns, interfaces, found = self._netns, self._interfaces, self._left
        for ends, sums in entries:
            prefix, source, other_prefix, destination, port, other_port, protocol, out, index = ends
            packets, wire, payload, first_ns, last_ns, opens = sums
            if prefix != MAPPED_PREFIX:
                source = prefix + source
            if other_prefix != MAPPED_PREFIX:
                destination = other_prefix + destination
            name, whose = interfaces[index]
            for sent, reason in whose.sides_of_copy(source, destination, out):
                key: FlowKey = _new(
                    FlowKey,
                    (netns, protocol, source, port, destination, other_port)
                    if sent
                    else (netns, protocol, destination, other_port, source, port),
                )
                found.append(_new(FlowCount, (
                    name, key, sent, packets, wire, payload, first_ns + boot_ns, last_ns + boot_ns,
                    opens, reason,
                )))  # fmt: skip

    @property
    def waiting_entries(self) -> int:
        """How many entries there are to drain, about. Asking costs next to nothing."""
        return self._taken_entries + self._engine.waiting_entries

    def close(self) -> None:
        """Closes the engine. Idempotent."""
        self._engine.close()


class _Interfaces(dict[int, tuple[str, Whose]]):
    """By index: name, and whose its packets are."""

    def __init__(self, netns: int) -> None:
        super().__init__()
        self.netns = netns
        self.local_addresses: frozenset[bytes] = frozenset()

    def __missing__(self, index: int) -> tuple[str, Whose]:
        # One that we were never told of is none of ours, yet what it counted must be somewhere.
        return f"#{index}", Whose(self.netns, self.local_addresses)


@contextlib.contextmanager
def _collector_at_rest() -> Iterator[None]:
    """A drain makes objects by the hundred thousand and none of them in a circle: the collector of
    garbage would walk over them again and again, for as long as all the rest takes."""
    was_at_work = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_at_work:
            gc.enable()
