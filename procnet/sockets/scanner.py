"""The sockets of network namespaces and who has them open: the one way to look at them.

The tables of our own network namespace come from sock_diag where the kernel has it; what it lacks,
and every other namespace, from /proc/PID/net/*, which shows the namespace of that process, so one
process per namespace is enough. Holders come from the ``socket:[inode]`` links of /proc/PID/fd
(man proc(5)). All are snapshots that the kernel makes page by page: a socket that opens or closes
meanwhile may be missed, or be listed twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from procnet.errors import AccessError, ProcnetError
from procnet.model import Socket, SocketScan
from procnet.sockets.diag import DiagTables
from procnet.sockets.forks import Forks
from procnet.sockets.holders import HolderMap
from procnet.sockets.pids import is_ours, list_pids, process_directory, raise_if_ours
from procnet.sockets.procfs import PRIVILEGES, read_tables
from procnet.sockets.progress import Progress, read_progress
from procnet.sockets.send_queues import SendQueues


class SocketScanner:
    """Looks at the sockets of network namespaces and at who has them open.

    ``root`` is where a proc file system is mounted. ``max_age_s`` (seconds by ``clock``) is how old
    a walk over the descriptors of all processes may become before it is made again; until then it
    is made only for a socket that nobody is known to hold (see ``HolderMap`` for what that can
    overlook). ``wall_clock_ns`` stamps the scans, nanoseconds since 1970. ``use_diag`` false leaves
    sock_diag alone; ``diag`` is asked in place of a new ``DiagTables``. ``forks``, where the kernel
    tells of them, know of more children than /proc does. Not thread-safe.

    Both sources tell the same (tests/contract/test_socket_sources.py).
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = "/proc",
        *,
        max_age_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock_ns: Callable[[], int] = time.time_ns,
        use_diag: bool = True,
        diag: DiagTables | None = None,
        forks: Forks | None = None,
    ) -> None:
        self._root = os.fspath(root)
        self._wall_clock_ns = wall_clock_ns
        self._holders = HolderMap(self._root, max_age_s=max_age_s, clock=clock)
        self._forks = forks
        self._send_queues = SendQueues(self._progress)
        # Namespace -> the process through which it was read last.
        self._seen_by: dict[int, str] = {}
        self._denied: set[str] = set()
        self._diag = (diag or DiagTables()) if use_diag else None
        self._malformed_lines = 0
        # The namespace that it told of at the last scan.
        self._diag_netns = 0
        self.diag_tables: frozenset[str] = frozenset()
        """The tables that sock_diag told at the last scan."""

    @property
    def fd_walks(self) -> int:
        """Walks over /proc/*/fd so far: what makes a scan expensive."""
        return self._holders.walks

    def _malformed(self) -> int:
        messages = 0 if self._diag is None else self._diag.malformed_messages
        return self._malformed_lines + messages

    def scan(self, netns: int | None = None, *, refresh: bool = False) -> SocketScan:
        """The sockets of one network namespace (by inode), or of every one that has a process.

        A namespace without a process (kept by a mount or a descriptor) cannot be read this way: its
        sockets are missing, and it is an error to ask for it. ``refresh`` forces the walk over all
        descriptors. ``vanished_processes`` and ``malformed_rows`` count this scan,
        ``denied_processes`` is as of the last walk.

        Raises AccessError if the tables may not be read and ProcnetError if ``root`` is not a
        readable proc file system, no process shows the namespace that is asked for, or this process
        is short of descriptors or memory.
        """
        started_ns = self._wall_clock_ns()
        vanished_before = self._holders.vanished_processes
        malformed_before = self._malformed()
        self._denied.clear()
        self.diag_tables, self._diag_netns = frozenset(), 0
        try:
            if self._forks is not None:
                self._forks.begin_look()
            sockets = self._every_socket() if netns is None else self._sockets_in(netns)
            holders = self._holders.of((s.inode for s in sockets), refresh=refresh)
            forked = (
                self._holders.forked(holders.values())
                if self._forks is None
                else self._forks.end_look(holders.values())
            )
        except PermissionError as error:
            raise AccessError(
                f"cannot read {self._root}: {error.strerror}; "
                f"run as root or with {PRIVILEGES}, and without hidepid"
            ) from error
        except OSError as error:
            hint = "" if is_ours(error) else "; is a proc file system there?"
            raise ProcnetError(f"cannot read sockets below {self._root}: {error}{hint}") from error
        return SocketScan(
            started_ns=started_ns,
            ended_ns=self._wall_clock_ns(),
            sockets=sockets,
            holders=holders,
            vanished_processes=self._holders.vanished_processes - vanished_before,
            forked=forked,
            left_behind=self._send_queues.look(sockets, holders, forked),
            reached=self._holders.reached,
            denied_processes=len(self._denied | self._holders.denied_pids),
            malformed_rows=self._malformed() - malformed_before,
        )

    def _every_socket(self) -> list[Socket]:
        members: dict[int, list[str]] = {}
        for name in ("self", *list_pids(self._root)):
            netns = self._netns_of(name)
            if netns is not None:
                members.setdefault(netns, []).append(name)
        sockets: list[Socket] = []
        namespaces_read = 0
        for netns, names in members.items():
            found = self._sockets_by(names, netns)
            if found is not None:
                sockets += found
                namespaces_read += 1
        if not namespaces_read:
            if self._denied:
                raise PermissionError(0, "no process shows its network namespace to this user")
            raise FileNotFoundError(
                0, "no process shows a network namespace: is it a proc file system?"
            )
        return sockets

    def _sockets_in(self, netns: int) -> list[Socket]:
        sockets = self._sockets_by(self._candidates(netns), netns)
        if sockets is not None:
            return sockets
        # Nobody who shows it does not mean that it has none.
        if self._denied:
            raise PermissionError(0, f"no process shows network namespace {netns} to this user")
        raise ProcnetError(
            f"cannot read the sockets of network namespace {netns}: no process shows them"
        )

    def _candidates(self, netns: int) -> Iterator[str]:
        """Processes to read a namespace by, the likeliest first; lists /proc only if it must."""
        for name in ("self", self._seen_by.get(netns, "self")):
            if self._netns_of(name) == netns:
                yield name
        for name in list_pids(self._root):
            if self._netns_of(name) == netns:
                yield name

    def _netns_of(self, name: str) -> int | None:
        """The namespace of a process, asked anew each time: that is cheaper than proving that a
        remembered answer is still about the same process, and setns(2) may have changed it."""
        try:
            return _netns_inode(os.readlink(f"{self._root}/{name}/ns/net"))
        except PermissionError:
            self._denied.add(name)
        except OSError as error:
            raise_if_ours(error)
        return None

    def _sockets_by(self, names: Iterator[str] | list[str], netns: int) -> list[Socket] | None:
        """The sockets of a namespace through the first of these processes that can show them."""
        told = self._told_by_diag(netns)
        for name in names:
            try:
                with process_directory(self._root, name) as directory:
                    sockets, malformed = read_tables(directory, netns, told)
                    # It may have ended, or moved to another namespace, while we read.
                    if _netns_inode(os.readlink("ns/net", dir_fd=directory)) != netns:
                        continue
            except PermissionError:
                self._denied.add(name)
                continue
            except OSError as error:
                raise_if_ours(error)
                continue
            self._seen_by[netns] = name
            self._malformed_lines += malformed
            return [s for table in told.values() for s in table] + sockets if told else sockets
        self._seen_by.pop(netns, None)
        return None

    def _told_by_diag(self, netns: int) -> dict[str, list[Socket]]:
        """The tables of this namespace by sock_diag: none if this thread is in another one."""
        if self._diag is None:
            return {}
        try:
            # Of this thread, which a netlink socket takes its namespace from, not of the process.
            ours = _netns_inode(os.readlink(f"{self._root}/thread-self/ns/net"))
        except OSError:
            return {}  # this is not our /proc (before Linux 3.17: no such link)
        told = self._diag.read(netns) if ours == netns else {}
        self._diag_netns = netns if told else self._diag_netns
        self.diag_tables |= told.keys()
        return told

    def _progress(self, connection: Socket) -> Progress | None:
        return read_progress(connection) if connection.netns == self._diag_netns else None


def _netns_inode(link: str) -> int | None:
    """4026531840 for ``net:[4026531840]``, man namespaces(7)."""
    digits = link[5:-1]
    return int(digits) if link.startswith("net:[") and digits.isdecimal() else None
