"""Which processes have a socket open: the walk over /proc/PID/fd, and what is kept of it.

The walk is the expensive part of looking (one readlink(2) per descriptor of every process), so its
result is kept and the walk is made again only for a socket that nobody is known to hold, or when
the result is old. Processes that began since the walk are read at each look: a fork inherits every
socket and shows no new one.
"""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Callable, Iterable, Set

from procnet.model import ProcessId
from procnet.sockets.pids import (
    Stat,
    list_processes,
    process_directory,
    raise_if_ours,
    stat_at,
    stat_of,
)
from procnet.sockets.unix_sockets import UnixSockets

# sockfs_dname, net/socket.c; bounded digits, because int() of a very long number raises ValueError.
_SOCKET_LINK = re.compile(r"\0socket:\[([0-9]{1,20})\](?=\0)")
_INIT = 1
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
        unix_sockets: UnixSockets | None = None,
    ) -> None:
        self._root = root
        self._unix_sockets = unix_sockets or UnixSockets()
        self._max_age_s = max_age_s
        self._clock = clock
        self._walked_at: float | None = None
        # With their inodes: a number may be another process's since.
        self._walked: frozenset[tuple[str, int]] = frozenset()
        self._holders: dict[int, frozenset[ProcessId]] = {}
        # Sockets of the kernel, or on their way between processes: looked for, found nowhere.
        self._ownerless: set[int] = set()
        self._ownerless_since = clock()
        self.walks = 0
        """Walks over /proc/*/fd so far."""
        self.vanished_processes = 0
        """Processes that ended while they were walked, so far."""
        # Page faults of the children that were waited for, and parents of those that were not yet.
        self._children_faults: dict[ProcessId, int] = {}
        self._zombies: dict[ProcessId, int] = {}
        self._parents: dict[ProcessId, int] = {}
        self._forked_pids: set[int] = set()
        self._parents_of_new: set[int] = set()
        self._told = _NOBODY
        self._reached = _NOBODY
        self._newly_reached = _NOBODY
        self.denied_pids: frozenset[str] = frozenset()
        """Processes whose descriptors we may not read, at the last walk."""

    def of(
        self, inodes: Iterable[int], *, refresh: bool = False
    ) -> dict[int, frozenset[ProcessId]]:
        """Who holds these sockets; one that is open nowhere is not in the answer.

        ``refresh`` makes the walk in any case. Raises OSError if ``root`` cannot be listed or this
        process is short of descriptors or memory.
        """
        self._forked_pids, self._parents_of_new = set(), set()
        wanted = set(inodes)
        wanted.discard(0)
        if not refresh and not self._is_old():
            known = self._known(wanted)
            if known is not None:
                return known
        self._walk(wanted)
        found = {inode: self._holders[inode] for inode in wanted & self._holders.keys()}
        self._ownerless |= wanted - found.keys()
        self._ownerless -= self._holders.keys()
        return found

    def forked(self, holders: Iterable[frozenset[ProcessId]]) -> frozenset[ProcessId]:
        """Those of the holders of the last answer, and of the one before it, of whom a child, or
        another child of their parent, has ended since: it may have used their sockets, or one on
        the same port, and nobody has seen it do so. And those of whom a child has begun, which may
        have let go of their sockets. Who has ended himself is not told."""
        before = self._told
        self._told = frozenset[ProcessId]().union(*set(holders))
        living = {process for process in before - self._told if self._is_alive(process)}
        return frozenset(
            process
            for process in self._told | living
            if process.pid in self._forked_pids | self._parents_of_new
            or self._parents.get(process) in self._forked_pids
        )

    @property
    def reached(self) -> frozenset[ProcessId]:
        """Processes into which a descriptor may have come from another, over a Unix socket, as of
        the last answer."""
        return self._reached | self._newly_reached

    def _is_alive(self, process: ProcessId) -> bool:
        stat = stat_of(self._root, process)
        if stat is not None:
            self._note_children(process, stat)
        return stat is not None

    def _note_children(self, process: ProcessId, stat: Stat) -> None:
        # Init takes everybody's orphans: whose child has ended there says nothing.
        if stat.parent_pid != _INIT:
            if process not in self._parents and self._walked_at is not None:
                self._parents_of_new.add(stat.parent_pid)
            self._parents[process] = stat.parent_pid
        if self._children_faults.get(process, 0) != stat.children_faults:
            self._forked_pids.add(process.pid)
            self._children_faults[process] = stat.children_faults
        if stat.ended and process not in self._zombies:
            self._zombies[process] = stat.parent_pid
            self._forked_pids.add(stat.parent_pid)

    def _is_old(self) -> bool:
        return self._walked_at is None or self._clock() - self._walked_at >= self._max_age_s

    def _known(self, wanted: set[int]) -> dict[int, frozenset[ProcessId]] | None:
        """The answer from the last walk, or None where it does not tell."""
        listed = list_processes(self._root)
        new = {pid for pid, _ in listed - self._walked}
        newcomers = self._read(new, wanted)[0]
        self._newly_reached = self._unix_sockets.reached(newcomers)
        found = {inode: self._holders[inode] for inode in wanted & self._holders.keys()}
        fresh = wanted & newcomers.keys() - found.keys()
        elders: set[str] = set()
        if fresh:
            elders = self._elders(_NOBODY.union(*(newcomers[inode] for inode in fresh)), new)
            if not elders <= {pid for pid, _ in listed}:
                return None
        older = self._read(elders, wanted)[0]
        for inode in wanted & newcomers.keys():
            found[inode] = found.get(inode, _NOBODY) | newcomers[inode]
            if inode in fresh:
                found[inode] |= older.get(inode, _NOBODY)
        if not wanted - found.keys() <= self._ownerless:
            return None
        # By id: one of the few sets that 20 000 sockets share is looked at once.
        same = {id(holders): holders for holders in found.values()}
        distinct = {process for holders in same.values() for process in holders}
        ended = {process for process in distinct if not self._is_alive(process)}
        if not ended:
            return found
        living = {inode: holders - ended for inode, holders in found.items()}
        # A socket outlived all its holders: somebody else must have it.
        return living if all(living.values()) else None

    def _elders(self, holders: Iterable[ProcessId], new: Set[str]) -> set[str]:
        """The nearest ancestor of each that was there at the walk: a socket that is as new as they
        are may be older than their forks. An empty pid for one that nobody knows."""
        parents = {str(process.pid): str(pid) for process, pid in self._parents.items()}
        elders: set[str] = set()
        for process in holders:
            pid = str(process.pid)
            passed: set[str] = set()
            while pid in new and pid not in passed:  # what is read at different times may circle
                passed.add(pid)
                pid = parents.get(pid, "")
            elders.add("" if pid in new else pid)
        return elders

    def _walk(self, wanted: set[int]) -> None:
        self.walks += 1
        started = self._clock()
        if started - self._ownerless_since >= self._max_age_s:
            self._ownerless.clear()
            self._ownerless_since = started
        self._walked = list_processes(self._root)
        pids = {pid for pid, _ in self._walked}
        for known in (self._children_faults, self._zombies, self._parents):
            for process in [each for each in known if str(each.pid) not in pids]:
                del known[process]
        self._holders, self.denied_pids = self._read(pids, wanted)
        self._unix_sockets.look(self._holders)
        self._reached, self._newly_reached = self._unix_sockets.reached(self._holders), _NOBODY
        self._walked_at = started

    def _read(
        self, pids: Iterable[str], known: Set[int]
    ) -> tuple[dict[int, frozenset[ProcessId]], frozenset[str]]:
        """Inode -> holders among these processes, and which of them may not be read.

        Sockets that are ``known`` are no Unix sockets.
        """
        found: dict[int, frozenset[ProcessId]] = {}
        # Equal sets are one object, which makes 20 000 of them cheap to keep and to tell apart.
        same: dict[frozenset[ProcessId], frozenset[ProcessId]] = {}
        denied = []
        for pid in pids:
            try:
                stat, inodes = self._sockets_of(pid, known)
            except PermissionError:
                denied.append(pid)
                continue
            except (OSError, ValueError) as error:
                raise_if_ours(error)
                self.vanished_processes += 1
                continue
            process = ProcessId(int(pid), stat.start_time_ns)
            self._note_children(process, stat)
            alone = frozenset((process,))
            shared = {inode: found[inode] | alone for inode in found.keys() & inodes}
            found.update(dict.fromkeys(inodes, alone))
            for inode, holders in shared.items():
                found[inode] = same.setdefault(holders, holders)
        return found, frozenset(denied)

    def _sockets_of(self, pid: str, known: Set[int]) -> tuple[Stat, list[int]]:
        """What is said of a process, and the inodes of its sockets.

        Raises OSError if it ended meanwhile (PermissionError if it may not be read), ValueError if
        its stat file cannot be understood.
        """
        with process_directory(self._root, pid) as directory:
            inodes = self._socket_inodes(directory, "fd", known)
            stat = stat_at(directory)
            if stat.ended and inodes:
                raise ProcessLookupError(f"process {pid} ended while its files were listed")
            if stat.state == "Z" and not stat.ended:
                inodes = self._socket_inodes_of_threads(directory, known)
        return stat, inodes

    def _socket_inodes(self, directory: int, name: str, known: Set[int]) -> list[int]:
        table = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        try:
            names = os.listdir(table)
            links = _links(table, names)
            # A link may hold anything but NUL; that of a socket is nothing else between two NULs.
            found = list(map(int, _SOCKET_LINK.findall("\0".join(("", *links, "")))))
            self._unix_sockets.learn(table, names, links, found, known)
        finally:
            os.close(table)
        return found

    def _socket_inodes_of_threads(self, directory: int, known: Set[int]) -> list[int]:
        """The sockets of a process whose first thread has ended and shows no descriptors any
        more."""
        task = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        try:
            inodes: set[int] = set()
            for thread in os.listdir(task):
                try:
                    inodes.update(self._socket_inodes(task, f"{thread}/fd", known))
                except (FileNotFoundError, ProcessLookupError):
                    continue
        finally:
            os.close(task)
        return sorted(inodes)


def _links(table: int, names: Iterable[str]) -> list[str]:
    """Where these descriptors lead to; nowhere, if closed since they were listed."""
    # One readlink(2) per descriptor is nearly all that a walk costs: no Python between them.
    link_of = functools.partial(os.readlink, dir_fd=table)
    left = iter(names)
    links: list[str] = []
    while True:
        try:
            links.extend(map(link_of, left))
        except FileNotFoundError:
            links.append("")
        else:
            return links
