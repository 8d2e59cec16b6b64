"""What an engine in the kernel has counted becomes what ``Counter`` would have said."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Protocol

from procnet.capture.whose import View, Whose
from procnet.model import Counted, Ends, FlowCount, Reason

_KNOWN_VIEWS = 1 << 17
# The constructor of a NamedTuple takes three times as long.
_new = tuple.__new__


class Engine(Protocol):
    """Counts for the handles that it is attached to; what it cannot read still comes to them."""

    def attach(self, descriptor: int) -> None:
        """Counts what a packet socket would be given, from now on and until it is closed."""

    def drain(self, *, surely: bool = False) -> Iterator[Counted]:
        """What was counted since the last call; ``surely`` for the last of a socket."""

    def close(self) -> None:
        """Gives everything back. Idempotent."""


class KernelSide:
    """An engine and the rules by which its rows are counts of flows, for a set of handles."""

    def __init__(self, engine: Engine, netns: int) -> None:
        self._engine = engine
        self._netns = netns
        self._local_addresses: frozenset[bytes] = frozenset()
        self._interfaces: dict[int, tuple[str, Whose]] = {}
        self._known: dict[tuple[int, bool, Ends | None], tuple[str, tuple[View, ...]]] = {}
        self._left: list[FlowCount] = []

    def attach(self, descriptor: int, index: int, name: str, *, loopback: bool) -> None:
        """Counts what comes to a packet socket of that interface."""
        whose = Whose(self._netns, self._local_addresses, loopback=loopback)
        self._interfaces[index] = (name, whose)
        self._engine.attach(descriptor)

    def release(self, *indices: int) -> list[FlowCount]:
        """To be told when the sockets of these interfaces are closed; what is left to be counted.

        It is all that there is: nothing is counted for a socket once it is closed.
        """
        counts = self.drain(surely=True)
        for index in indices:
            self._interfaces.pop(index, None)
        self._known.clear()
        return counts

    def set_local_addresses(self, addresses: frozenset[bytes]) -> None:
        """Decide direction by these from now on; what was counted stays as it is."""
        if addresses == self._local_addresses:
            return
        self._left = self.drain()
        self._local_addresses = addresses
        for _, whose in self._interfaces.values():
            whose.local_addresses = addresses
        self._known.clear()

    def drain(self, *, surely: bool = False) -> list[FlowCount]:
        """What was counted since the last call: a count for each flow that a row belongs to."""
        found, self._left = self._left, []
        with _collector_at_rest():
            self._drain_into(found, surely)
        return found

    def _drain_into(self, found: list[FlowCount], surely: bool) -> None:
        known = self._known
        for row in self._engine.drain(surely=surely):
            index, outgoing, ends, packets, wire, payload, first_ns, last_ns, opens = row
            place = (index, outgoing, ends)
            whom = known.get(place)
            if whom is None:
                if len(known) >= _KNOWN_VIEWS:
                    known.clear()
                whom = known[place] = self._whom(*place)
            name, views = whom
            for key, sent, reason in views:
                found.append(_new(FlowCount, (
                    name, key, sent, packets, wire, payload, first_ns, last_ns, opens, reason
                )))  # fmt: skip

    def close(self) -> None:
        """Closes the engine. Idempotent."""
        self._engine.close()

    def _whom(self, index: int, outgoing: bool, ends: Ends | None) -> tuple[str, tuple[View, ...]]:
        # One that we were never told of is none of ours, yet what it counted must be somewhere.
        unheard_of = (f"#{index}", Whose(self._netns, self._local_addresses))
        name, whose = self._interfaces.get(index, unheard_of)
        if ends is None:
            return name, ((None, outgoing, Reason.EVICTED),)
        return name, whose.views_of_copy(ends, outgoing)


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
