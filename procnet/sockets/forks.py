"""Behind whom somebody may have been whom no look has shown: by the forks between two looks."""

from __future__ import annotations

from collections.abc import Iterable

from procnet.model import ProcessId
from procnet.sockets.fork_events import MAX_FORKS, Fork, ForkEvents
from procnet.sockets.pids import Stat, process_directory, raise_if_ours, stat_at

_INIT = 1
_NOBODY: frozenset[ProcessId] = frozenset()


class Forks:
    """Told of every look at the holders of sockets, when it begins and when it has ended. For one
    thread, as ``events``, which it closes."""

    def __init__(self, events: ForkEvents, root: str = "/proc") -> None:
        self._events = events
        self._root = root
        # Since the look before began; None if not all were told.
        self._forks: list[Fork] | None = []
        self._holders = _NOBODY
        self._parents: dict[ProcessId, int] = {}

    def begin_look(self) -> None:
        """Raises ProcnetError."""
        self._forks = _joined(self._forks, self._events.read())

    def end_look(self, holders: Iterable[frozenset[ProcessId]]) -> frozenset[ProcessId]:
        """Those of the holders that this look has shown, and the one before it, of whom a child has
        begun since: it may have used their sockets, and they may have let go of them. And those
        whose parent has begun another that is gone, or who were begun by one that is.

        All of them if the kernel could not tell of every fork. Raises ProcnetError, and OSError if
        this process is short of descriptors or memory."""
        during = self._events.read()
        forks, self._forks = _joined(self._forks, during), during
        before, self._holders = self._holders, _NOBODY.union(*set(holders))
        known = {process: pid for process, pid in self._parents.items() if process in before}
        self._parents = {
            process: known.get(process) or self._parent_of(process) for process in self._holders
        }
        if forks is None:
            return self._holders | before
        parents = {fork.parent_pid for fork in forks}
        latest = {fork.child_pid: fork for fork in forks}
        running = {pid for pid in parents | latest.keys() if self._runs(pid)}
        bereft = {
            fork.parent_pid
            for fork in forks
            # A number that is in use again was that of another before.
            if fork.child_pid not in running or latest[fork.child_pid] is not fork
        }
        orphans = {pid for pid, fork in latest.items() if fork.parent_pid not in running}
        parent_of = known | self._parents
        # Init takes everybody's orphans: what it begins says nothing of them.
        return frozenset(
            process
            for process in self._holders | before
            if process.pid in parents | orphans or parent_of.get(process, _INIT) in bereft - {_INIT}
        )

    def close(self) -> None:
        """Idempotent."""
        self._events.close()

    def _parent_of(self, process: ProcessId) -> int:
        stat = self._stat(process.pid)
        return stat.parent_pid if stat and stat.start_time_ns == process.start_time_ns else _INIT

    def _runs(self, pid: int) -> bool:
        stat = self._stat(pid)
        return stat is not None and not stat.ended

    def _stat(self, pid: int) -> Stat | None:
        try:
            with process_directory(self._root, pid) as directory:
                return stat_at(directory)
        except (OSError, ValueError) as error:
            raise_if_ours(error)
            return None


def _joined(one: list[Fork] | None, other: list[Fork] | None) -> list[Fork] | None:
    if one is None or other is None or len(one) + len(other) > MAX_FORKS:
        return None
    return one + other
