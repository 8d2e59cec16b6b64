"""What every family of hooks has in common once it is attached: a ring of events to read."""

from __future__ import annotations

import contextlib
import threading

from procnet.bpf.events import decode_events
from procnet.bpf.ring import Counter, Ring
from procnet.model import OwnerEvent


class Telling:
    """Attached hooks that tell owners through a ring. Any thread may read or close it.

    ``held`` is what keeps them attached: it is closed with this, and nothing is left behind.
    """

    def __init__(
        self, ring: Ring, lost: Counter, descriptor: int, held: contextlib.ExitStack
    ) -> None:
        self._ring = ring
        self._lost = lost
        self._descriptor = descriptor
        self._held = held
        self._lock = threading.Lock()
        self._unknown_records = 0
        self._final_loss: int | None = None

    def fileno(self) -> int:
        """For select and poll: readable when there are events to read. -1 when closed."""
        with self._lock:
            return -1 if self._final_loss is not None else self._descriptor

    def read(self) -> list[OwnerEvent]:
        """What has happened since the last call, oldest first; never waits, empty when closed.

        Raises LayoutError if the kernel's records are not ours.
        """
        with self._lock:
            if self._final_loss is not None:
                return []
            events, unknown = decode_events(self._ring.read())
            self._unknown_records += unknown
            return events

    def events_lost(self) -> int:
        """Events that found the ring full, or that could not be understood; only grows."""
        with self._lock:
            if self._final_loss is not None:
                return self._final_loss
            return self._lost.read() + self._unknown_records

    def close(self) -> None:
        """Detach and give everything back. May be called again."""
        with self._lock:
            if self._final_loss is not None:
                return
            self._final_loss = self._lost.read() + self._unknown_records
            self._held.close()
