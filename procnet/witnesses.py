"""Who, from every source that is open: events as they come, looks at the sockets when due."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from procnet import ladder
from procnet.bpf.clocks import boot_to_wall_ns
from procnet.bpf.core import COUNTING_AT_SOCKETS, COUNTING_AT_SOCKETS_HERE, CoreOwners
from procnet.bpf.kprobe import KprobeOwners
from procnet.bpf.socket_counts import SocketCounts
from procnet.errors import AccessError, LoadError, ProcnetError, UnsupportedError
from procnet.ledger.ledger import Ledger
from procnet.model import Features, Process, ProcessId, SocketScan
from procnet.sockets.fork_events import ForkEvents
from procnet.sockets.forks import Forks
from procnet.sockets.process import ProcessTable
from procnet.sockets.scanner import SocketScanner
from procnet.translated import Translated

HOOKS: dict[str, type[CoreOwners] | type[KprobeOwners]] = {
    "core": CoreOwners,
    "kprobe": KprobeOwners,
}
"""The rungs that tell owners as it happens."""
LOOK_EVERY_S = 1.0
SOON_S = 0.1
CLOCK_STEP_NS = 100_000_000
"""More than a slewed clock moves between two ticks, or we wait between reading two clocks."""
LOOK_SHARE = 0.1
"""Looks at the sockets take at most this share of the time, however many sockets there are."""

_log = logging.getLogger("procnet")


Hooks = CoreOwners | KprobeOwners


def open_hooks(
    features: Features, *, kernel: str, netns: int | None, compare_sockets: bool = False
) -> tuple[Features, Hooks | None]:
    """Attaches what ``features`` has in use, or the next best if that cannot be had after all.

    The ladder as it turned out, and the hooks: None where only looking remains. ``netns``: the
    inode of the only network namespace to tell of, and to count in. ``compare_sockets``: hooks
    count beside a capture. Raises ``UnsupportedError``, ``LoadError`` or ``AccessError`` if
    what they shall count cannot be counted otherwise, or ``kernel`` is not ``auto`` and the rung
    that it forces cannot be had.
    """
    if compare_sockets or features.counting == "socket":
        owners = CoreOwners.open(netns=netns, counting=True)
        at_sockets = COUNTING_AT_SOCKETS if netns is None else COUNTING_AT_SOCKETS_HERE
        comparing = (ladder.COMPARING,) if compare_sockets else ()
        for rung in (at_sockets, *comparing, owners.feature()):
            features = ladder.replaced(features, rung)
        return features, owners
    while features.owners in HOOKS:
        try:
            events = HOOKS[features.owners].open(netns=netns)
        except (UnsupportedError, AccessError) as error:
            if kernel != "auto":
                raise
            # The probe said yes, and then it could not be done.
            _log.warning("no %s owners: %s", features.owners, error)
            features = ladder.step_down(features, str(error))
        else:
            return ladder.replaced(features, events.feature()), events
    return features, None


class Witnesses:
    """Feeds a ledger with what is known of owners. Used by one thread, but ``process`` by any.

    ``events`` tell owners as it happens, and are closed with this; None where they are only looked
    at, by sock_diag or, without ``use_diag``, by /proc alone. ``netns``: where it is
    counted, or None if owners in any namespace may be meant. ``on_wire``: is it packets that are
    counted?
    """

    def __init__(
        self,
        events: Hooks | None,
        netns: int | None,
        ledger: Ledger,
        *,
        use_diag: bool = True,
        on_wire: bool = True,
    ) -> None:
        self.events = events
        self.vanished_processes = 0
        self.malformed_rows = 0
        self.denied_processes = 0
        self.events_lost = self.processes_lost = 0
        self.netns = netns
        self._ledger = ledger
        self._use_diag = use_diag
        self._scanner: SocketScanner | None = None
        self._snapshot_fails = False
        self._processes = ProcessTable()
        self._read_ns = time.time_ns()
        ledger.owners.boot_ns = boot_to_wall_ns()
        # Nothing lies between a socket and its own tuple.
        self.translated: Translated | None = None
        if on_wire:
            self.translated = Translated(ledger.elsewhere, everywhere=netns is None)
        self._soon_s = self._regular_s = 0.0
        # Whoever uses a socket is told of by hooks, however it came by it.
        self._forks = _open_forks() if events is None else None

    @property
    def turns_descriptor(self) -> int | None:
        """The map by which a counting program knows that an owner may have changed, if any."""
        return self.events.turns_descriptor if isinstance(self.events, CoreOwners) else None

    @property
    def counts(self) -> SocketCounts | None:
        """What sockets move, if the hooks count it."""
        return self.events.counts if isinstance(self.events, CoreOwners) else None

    def observe(self) -> None:
        """Tells the ledger what the kernel told since the last call, and whether it told all."""
        if self.translated is not None:
            self.translated.observe()
        if self.events is None:
            return
        read_ns = time.time_ns()
        events = self.events.read()
        for process in self.events.read_processes():
            self._processes.remember(process)
        for event in events:
            known = event.kernel or event.process in self._processes
            # Asked now, while it lives, if the kernel had no room to tell of it.
            if not known and not self._processes.learn(event.process):
                pid, start_time_ns = event.process
                self._processes.remember(Process(pid, start_time_ns, event.name, uid=event.uid))
        self._ledger.observe(events)
        # After the events: those of the same batch are no surer than those before it.
        self.processes_lost = self.events.processes_lost()
        lost = self.events.events_lost()
        if lost != self.events_lost:
            self.events_lost = lost
            self._ledger.owners.losses.add(self._read_ns, time.time_ns())
        self._read_ns = read_ns

    def follow_clock(self) -> None:
        """Tells the ledger if the wall clock was set: packets and events are stamped by it."""
        boot_ns = boot_to_wall_ns()
        step_ns = boot_ns - self._ledger.owners.boot_ns
        if abs(step_ns) > CLOCK_STEP_NS:
            self._ledger.set_clock(step_ns)
            if self.translated is not None:
                self.translated.shift(step_ns)
            self._read_ns += step_ns
        self._ledger.owners.boot_ns = boot_ns

    def scan_if_due(self, *, asked: bool = False) -> SocketScan | None:
        """Looks at the sockets: regularly, and soon if asked or if bytes wait that nobody knows."""
        soon = asked or self._ledger.has_unknown
        due_s = self._soon_s if soon else self._regular_s
        return self.scan() if time.monotonic() >= due_s else None

    def scan(self) -> SocketScan:
        """Looks at the sockets now; touches no ledger, and may take long."""
        started_s = time.monotonic()
        try:
            return self._snapshot() or self._scan()
        finally:
            # A look that failed is not made again at once either.
            self._pause(started_s)

    def _snapshot(self) -> SocketScan | None:
        """A look by the kernel itself, where the rung has one."""
        if not isinstance(self.events, CoreOwners):
            return None
        try:
            scan = self.events.snapshot()
        except LoadError as error:
            if not self._snapshot_fails:
                _log.warning("looking at /proc: the kernel's snapshot of the sockets: %s", error)
            self._snapshot_fails = True
            return None
        self._snapshot_fails = False
        return scan

    def _scan(self) -> SocketScan:
        if self._scanner is None:
            self._scanner = SocketScanner(use_diag=self._use_diag, forks=self._forks)
        return self._scanner.scan(self.netns)

    def take(self, scan: SocketScan) -> None:
        """Tells the ledger of a look; reads the processes that it shows for the first time."""
        if self.events is not None:
            # Whoever used a socket was told of, however short it lived.
            scan = scan._replace(forked=None, reached=frozenset())
        self._remember_all(self._ledger.look(scan))
        if self.translated is not None:
            self.translated.look(scan)
        self.vanished_processes += scan.vanished_processes
        self.malformed_rows += scan.malformed_rows
        self.denied_processes = scan.denied_processes

    def _pause(self, started_s: float) -> None:
        ended_s = time.monotonic()
        pause_s = (ended_s - started_s) * (1 / LOOK_SHARE - 1)
        self._soon_s = ended_s + max(SOON_S, pause_s)
        self._regular_s = ended_s + max(LOOK_EVERY_S, pause_s)

    def process(self, process: ProcessId) -> Process:
        """What is known of a process, at least its id; may wait for the name of its user."""
        return self._processes.get(process) or Process(*process, name="")

    def close(self) -> None:
        """Detaches the hooks; what is known of processes stays."""
        if self.translated is not None:
            self.translated.close()
        if self._forks is not None:
            self._forks.close()
        if self.events is not None:
            self.events.close()

    def _remember_all(self, processes: Iterable[ProcessId]) -> None:
        # Now, while they live: when they are reported they may be gone.
        for process in processes:
            self._processes.learn(process)


def _open_forks() -> Forks | None:
    try:
        return Forks(ForkEvents())
    except ProcnetError as error:
        _log.info("looking will not know of every child: %s", error)
        return None
