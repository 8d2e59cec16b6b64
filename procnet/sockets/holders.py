"""Which processes have a socket open: the walk over /proc/PID/fd, and what is kept of it.

The walk is the expensive part of looking (one readlink(2) per descriptor of every process), so its
result is kept and the walk is made again only for a socket that nobody is known to hold, or when
the result is old. Processes that began since the walk are read at each look: a fork inherits every
socket and shows no new one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable

from procnet.model import ProcessId
from procnet.sockets.pids import (
    is_alive,
    list_pids,
    process_directory,
    raise_if_ours,
    stat_at,
)

_NOBODY: frozenset[ProcessId] = frozenset()


class HolderMap:
    """Socket inode -> the processes that have it open, from /proc below ``root``.

    Not thread-safe. ``max_age_s`` bounds how long a change is overlooked that shows neither a new
    socket nor a new process: a descriptor passed over a Unix socket, or closed by one of several
    holders. A process that ended is never named, however young the walk.

    Threads that have their own descriptor table (unshare(2) with CLONE_FILES) show it only in
    /proc/PID/task/TID/fd, which is not read: sockets open in such a thread alone have no holder
    here. The exception is a process whose first thread has ended: it is read by another thread.
    """

    def __init__(
        self,
        root: str = "/proc",
        *,
        max_age_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = root
        self._max_age_s = max_age_s
        self._clock = clock
        self._walked_at: float | None = None
        self._walked_pids: frozenset[str] = frozenset()
        self._holders: dict[int, frozenset[ProcessId]] = {}
        # Sockets of the kernel, or on their way between processes: looked for, found nowhere.
        self._ownerless: set[int] = set()
        self._ownerless_since = clock()
        self.walks = 0
        """Walks over /proc/*/fd so far."""
        self.vanished_processes = 0
        """Processes that ended while they were walked, so far."""
        self.denied_pids: frozenset[str] = frozenset()
        """Processes whose descriptors we may not read, at the last walk."""

    def of(
        self, inodes: Iterable[int], *, refresh: bool = False
    ) -> dict[int, frozenset[ProcessId]]:
        """Who holds these sockets; one that is open nowhere is not in the answer.

        ``refresh`` makes the walk in any case. Raises OSError if ``root`` cannot be listed or this
        process is short of descriptors or memory.
        """
        wanted = set(inodes)
        wanted.discard(0)
        if not refresh and not self._is_old():
            known = self._known(wanted)
            if known is not None:
                return known
        self._walk()
        found = {inode: self._holders[inode] for inode in wanted & self._holders.keys()}
        self._ownerless |= wanted - found.keys()
        self._ownerless -= self._holders.keys()
        return found

    def _is_old(self) -> bool:
        return self._walked_at is None or self._clock() - self._walked_at >= self._max_age_s

    def _known(self, wanted: set[int]) -> dict[int, frozenset[ProcessId]] | None:
        """The answer from the last walk, or None where it does not tell."""
        newcomers = self._read(frozenset(list_pids(self._root)) - self._walked_pids)[0]
        found = {
            inode: self._holders.get(inode, _NOBODY) | newcomers.get(inode, _NOBODY)
            for inode in wanted & (self._holders.keys() | newcomers.keys())
        }
        if not wanted - found.keys() <= self._ownerless:
            return None
        distinct = {process for holders in set(found.values()) for process in holders}
        ended = {process for process in distinct if not is_alive(self._root, process)}
        if not ended:
            return found
        living = {inode: holders - ended for inode, holders in found.items()}
        # A socket outlived all its holders: somebody else must have it.
        return living if all(living.values()) else None

    def _walk(self) -> None:
        self.walks += 1
        started = self._clock()
        if started - self._ownerless_since >= self._max_age_s:
            self._ownerless.clear()
            self._ownerless_since = started
        self._walked_pids = frozenset(list_pids(self._root))
        self._holders, self.denied_pids = self._read(self._walked_pids)
        self._walked_at = started

    def _read(self, pids: Iterable[str]) -> tuple[dict[int, frozenset[ProcessId]], frozenset[str]]:
        """Inode -> holders among these processes, and which of them may not be read."""
        found: dict[int, frozenset[ProcessId]] = {}
        # Equal sets are one object, which makes 20 000 of them cheap to keep and to tell apart.
        same: dict[frozenset[ProcessId], frozenset[ProcessId]] = {}
        denied = []
        for pid in pids:
            try:
                process, inodes = _sockets_of(self._root, pid)
            except PermissionError:
                denied.append(pid)
                continue
            except (OSError, ValueError) as error:
                raise_if_ours(error)
                self.vanished_processes += 1
                continue
            alone = frozenset((process,))
            for inode in inodes:
                holders = found.get(inode)
                holders = alone if holders is None else holders | alone
                found[inode] = same.setdefault(holders, holders)
        return found, frozenset(denied)


def _sockets_of(root: str, pid: str) -> tuple[ProcessId, list[int]]:
    """A process and the inodes of its sockets.

    Raises OSError if it ended meanwhile (PermissionError if it may not be read), ValueError if its
    stat file cannot be understood.
    """
    with process_directory(root, pid) as directory:
        inodes = _socket_inodes(directory, "fd")
        stat = stat_at(directory)
        if stat.ended and inodes:
            raise ProcessLookupError(f"process {pid} ended while its files were listed")
        if stat.state == "Z" and not stat.ended:
            inodes = _socket_inodes_of_threads(directory)
    return ProcessId(int(pid), stat.start_time_ns), inodes


def _socket_inodes(directory: int, name: str) -> list[int]:
    inodes = []
    table = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        for descriptor in os.listdir(table):
            try:
                link = os.readlink(descriptor, dir_fd=table)
            except FileNotFoundError:
                continue  # closed since it was listed
            if link.startswith("socket:[") and link[-1] == "]" and link[8:-1].isdecimal():
                inodes.append(int(link[8:-1]))
    finally:
        os.close(table)
    return inodes


def _socket_inodes_of_threads(directory: int) -> list[int]:
    """The sockets of a process whose first thread has ended and shows no descriptors any more."""
    task = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        inodes: set[int] = set()
        for thread in os.listdir(task):
            try:
                inodes.update(_socket_inodes(task, f"{thread}/fd"))
            except (FileNotFoundError, ProcessLookupError):
                continue
    finally:
        os.close(task)
    return sorted(inodes)
