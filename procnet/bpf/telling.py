"""What every family of hooks has in common once it is attached: a ring of events to read."""

from __future__ import annotations

import contextlib
import logging
import threading
from pathlib import Path
from typing import NamedTuple

from procnet.bpf import layout
from procnet.bpf.events import decode_events
from procnet.bpf.processes import decode_process
from procnet.bpf.ring import Counters, Ring
from procnet.errors import LayoutError, LoadError
from procnet.model import OwnerEvent, Process

_EVENTS, _PROCESSES = 0, 1

_log = logging.getLogger("procnet")


class Sources(NamedTuple):
    """The memory that the hooks write into, and the descriptor of the ring of events."""

    events: Ring
    processes: Ring
    lost: Counters
    descriptor: int

    @classmethod
    def open(
        cls, events: int, processes: int, lost: int, proc_root: Path, held: contextlib.ExitStack
    ) -> Sources:
        """Maps three descriptors, which stay the caller's. Raises LoadError."""
        try:
            ring = Ring(events, proc_root)
            held.callback(ring.close)
            described = Ring(processes, proc_root)
            held.callback(described.close)
            counters = Counters(lost)
            held.callback(counters.close)
        except OSError as error:
            raise LoadError(f"a ring of the BPF program cannot be mapped: {error}") from error
        return cls(ring, described, counters, events)


class Telling:
    """Attached hooks that tell owners through a ring. Any thread may read or close it.

    ``held`` is what keeps them attached: it is closed with this, and nothing is left behind.
    ``netns``: the namespace to tell of, where the hooks cannot be told to pass over the others.
    """

    def __init__(
        self, sources: Sources, held: contextlib.ExitStack, netns: int | None = None
    ) -> None:
        self._ring = sources.events
        self._processes = sources.processes
        self._lost = sources.lost
        self._descriptor = sources.descriptor
        self._held = held
        self._netns = netns
        self._lock = threading.Lock()
        self._unknown_events = self._unknown_processes = 0
        self._final_loss: tuple[int, int] | None = None

    def fileno(self) -> int:
        """For select and poll: readable when there are events to read. -1 when closed."""
        with self._lock:
            return -1 if self._final_loss is not None else self._descriptor

    def read(self) -> list[OwnerEvent]:
        """What has happened since the last call, oldest first; never waits, empty when closed."""
        with self._lock:
            if self._final_loss is not None:
                return []
            events, unknown = decode_events(self._ring.read(), self._netns)
            if unknown:
                self._warn_once()
            self._unknown_events += unknown
            return events

    def read_processes(self) -> list[Process]:
        """The processes of the events that were read, and those that have another program now.

        Call it after read(): a process is told before its first event. Never waits, empty when
        closed.
        """
        processes: list[Process] = []
        with self._lock:
            if self._final_loss is not None:
                return processes
            for record in self._processes.read():
                try:
                    processes.append(decode_process(record))
                except LayoutError:
                    self._warn_once()
                    self._unknown_processes += 1
        return processes

    def _warn_once(self) -> None:
        if not self._unknown_events and not self._unknown_processes:
            _log.warning("what the hooks tell cannot be understood and is lost: %s", layout.REMEDY)

    def events_lost(self) -> int:
        """Events that found the ring full, whose hook was passed over, or that could not be
        understood; only grows."""
        with self._lock:
            return self._final_loss[_EVENTS] if self._final_loss else self._read_events_lost()

    def processes_lost(self) -> int:
        """Times that a process could not be described because the ring was full, or whose record
        could not be understood; only grows."""
        with self._lock:
            return self._final_loss[_PROCESSES] if self._final_loss else self._read_processes_lost()

    def _read_events_lost(self) -> int:
        return self._lost.read(_EVENTS) + self._unknown_events

    def _read_processes_lost(self) -> int:
        return self._lost.read(_PROCESSES) + self._unknown_processes

    def close(self) -> None:
        """Detach and give everything back. May be called again."""
        with self._lock:
            if self._final_loss is not None:
                return
            self._final_loss = self._read_events_lost(), self._read_processes_lost()
            self._held.close()
