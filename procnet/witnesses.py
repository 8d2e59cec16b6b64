"""Who, from every source that is open: events as they come, looks at the sockets when due."""

from __future__ import annotations

import time
from collections.abc import Iterable

from procnet.bpf.kprobe import KprobeOwners
from procnet.ledger.ledger import Ledger
from procnet.model import Feature, OwnerEvent, Process, ProcessId
from procnet.sockets.process import ProcessTable
from procnet.sockets.procfs import ProcfsScanner

LOOK_EVERY_S = 1.0
SOON_S = 0.1
LOOK_SHARE = 0.1
"""Looks at the sockets take at most this share of the time, however many sockets there are."""


class Witnesses:
    """Feeds a ledger with what is known of owners. Used by one thread at a time.

    ``owners`` is the rung: ``kprobe``, ``proc``, or empty for none. Raises ``UnsupportedError``,
    ``LoadError`` or ``AccessError`` if it cannot be had.
    """

    def __init__(self, owners: str, netns: int, ledger: Ledger) -> None:
        self.vanished_processes = 0
        self.denied_processes = 0
        self.events_lost = 0
        self._netns = netns
        self._ledger = ledger
        self._scanner = ProcfsScanner() if owners else None
        self._processes = ProcessTable()
        self._kprobes = KprobeOwners.open() if owners == "kprobe" else None
        self._read_ns = time.time_ns()
        self._soon_s = self._regular_s = 0.0

    @property
    def feature(self) -> Feature | None:
        """The rung as it turned out, with the hooks that did not attach; None for looking."""
        return None if self._kprobes is None else self._kprobes.feature()

    def read_events(self) -> list[OwnerEvent]:
        """What the kernel told since the last call; its processes are looked up at once."""
        if self._kprobes is None:
            return []
        read_ns, events = time.time_ns(), self._kprobes.read()
        for event in events:
            if not event.kernel and self._processes.get(event.process) is None:
                pid, start_time_ns = event.process
                self._processes.remember(Process(pid, start_time_ns, event.name, uid=event.uid))
        lost = self._kprobes.events_lost()
        if lost != self.events_lost:
            self.events_lost = lost
            self._ledger.owners.lost(self._read_ns)
        self._read_ns = read_ns
        return events

    def look_if_due(self) -> None:
        """Looks at the sockets: regularly, and soon if bytes wait that no witness knows."""
        now_s = time.monotonic()
        due_s = self._soon_s if self._ledger.has_unknown else self._regular_s
        if now_s >= due_s:
            self.look()

    def look(self) -> None:
        """Looks at the sockets now, and at the processes that hold them for the first time."""
        if self._scanner is None:
            return
        started_s = time.monotonic()
        scan = self._scanner.scan(self._netns)
        self._ledger.owners.boot_ns = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._remember_all(self._ledger.look(scan))
        self.vanished_processes += scan.vanished_processes
        self.denied_processes = scan.denied_processes
        ended_s = time.monotonic()
        pause_s = (ended_s - started_s) * (1 / LOOK_SHARE - 1)
        self._soon_s = ended_s + max(SOON_S, pause_s)
        self._regular_s = ended_s + max(LOOK_EVERY_S, pause_s)

    def process(self, process: ProcessId) -> Process:
        """What is known of a process, at least its id."""
        return self._processes.get(process) or Process(*process, name="")

    def close(self) -> None:
        """Detaches the hooks; what is known of processes stays."""
        if self._kprobes is not None:
            self._kprobes.close()

    def _remember_all(self, processes: Iterable[ProcessId]) -> None:
        # Now, while they live: when they are reported they may be gone.
        for process in processes:
            self._processes.get(process)
