"""Sockets and their holders from /proc alone: no netlink, no BPF, any kernel, every namespace.

Sockets come from /proc/PID/net/*, which shows the network namespace of that process, so one process
per namespace is enough; holders come from the ``socket:[inode]`` links of /proc/PID/fd
(man proc(5)). Both are snapshots that the kernel makes page by page: a socket that opens or closes
meanwhile may be missed, or be listed twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

from procnet import features
from procnet.errors import AccessError, ProcnetError
from procnet.model import Feature, Socket, SocketScan
from procnet.sockets.holders import HolderMap
from procnet.sockets.pids import list_pids, process_directory, raise_if_ours, read_at
from procnet.sockets.tables import TABLES, parse_table, settled_ping_sockets

_PRIVILEGES = "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"


class ProcfsScanner:
    """Looks at the sockets of network namespaces and at who has them open.

    ``root`` is where a proc file system is mounted. ``max_age_s`` (seconds by ``clock``) is how old
    a walk over the descriptors of all processes may become before it is made again; until then it
    is made only for a socket that nobody is known to hold (see ``HolderMap`` for what that can
    overlook). ``wall_clock_ns`` stamps the scans, nanoseconds since 1970. Not thread-safe.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = "/proc",
        *,
        max_age_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._root = os.fspath(root)
        self._wall_clock_ns = wall_clock_ns
        self._holders = HolderMap(self._root, max_age_s=max_age_s, clock=clock)
        # Namespace -> the process through which it was read last.
        self._seen_by: dict[int, str] = {}
        self._denied: set[str] = set()
        self.malformed_lines = 0
        """Lines of /proc/net that could not be understood, so far."""

    @property
    def fd_walks(self) -> int:
        """Walks over /proc/*/fd so far: what makes a scan expensive."""
        return self._holders.walks

    def scan(self, netns: int | None = None, *, refresh: bool = False) -> SocketScan:
        """The sockets of one network namespace (by inode), or of every one that has a process.

        A namespace without a process (kept by a mount or a descriptor) cannot be read this way: its
        sockets are missing. ``refresh`` forces the walk over all descriptors.
        ``vanished_processes`` counts this scan, ``denied_processes`` is as of the last walk.

        Raises AccessError if the tables may not be read and ProcnetError if ``root`` is not a
        readable proc file system, or this process is short of descriptors or memory.
        """
        started_ns = self._wall_clock_ns()
        vanished_before = self._holders.vanished_processes
        self._denied.clear()
        try:
            sockets = self._every_socket() if netns is None else self._sockets_in(netns)
            holders = self._holders.of((s.inode for s in sockets), refresh=refresh)
        except PermissionError as error:
            raise AccessError(
                f"cannot read {self._root}: {error.strerror}; "
                f"run as root or with {_PRIVILEGES}, and without hidepid"
            ) from error
        except OSError as error:
            raise ProcnetError(
                f"cannot read sockets below {self._root}: {error}; is a proc file system there?"
            ) from error
        return SocketScan(
            started_ns=started_ns,
            ended_ns=self._wall_clock_ns(),
            sockets=sockets,
            holders=holders,
            vanished_processes=self._holders.vanished_processes - vanished_before,
            denied_processes=len(self._denied | self._holders.denied_pids),
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
            raise FileNotFoundError(0, "no process shows a network namespace")
        return sockets

    def _sockets_in(self, netns: int) -> list[Socket]:
        candidates = self._candidates(netns)
        return self._sockets_by(candidates, netns) or []

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
        for name in names:
            try:
                with process_directory(self._root, name) as directory:
                    sockets, malformed = _read_tables(directory, netns)
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
            self.malformed_lines += malformed
            return sockets
        self._seen_by.pop(netns, None)
        return None


def _netns_inode(link: str) -> int | None:
    """4026531840 for ``net:[4026531840]``, man namespaces(7)."""
    digits = link[5:-1]
    return int(digits) if link.startswith("net:[") and digits.isdecimal() else None


def _read_tables(directory: int, netns: int) -> tuple[list[Socket], int]:
    sockets: list[Socket] = []
    ping: dict[str, list[Socket]] = {"icmp": [], "icmp6": []}
    malformed = 0
    for table in TABLES:
        try:
            text = read_at(directory, f"net/{table}")
        except FileNotFoundError:
            continue  # a kernel without IPv6, UDP-Lite or packet sockets has no such table
        found, skipped = parse_table(table, text, netns)
        malformed += skipped
        if table in ping:
            ping[table] = found
        else:
            sockets += found
    return sockets + settled_ping_sockets(ping["icmp"], ping["icmp6"]), malformed


def probe(root: str | os.PathLike[str] = "/proc") -> Feature:
    """Whether the open files of other processes can be read, found out by reading them.

    The answer is no if other users' processes are there and none of them shows its files; the
    reason counts those that do not. Raises nothing: a ``root`` that cannot be listed is unknown.
    """
    name, base = "proc", os.fspath(root)
    remedy = f"run as root (sudo), or give {_PRIVILEGES}"
    try:
        pids = list_pids(base)
    except OSError as error:
        return features.unknown(name, f"cannot list {base}: {error.strerror}", "mount proc there")
    if not pids:
        return features.unknown(name, f"{base} shows no process", "mount proc there")
    if "1" not in pids:
        # Every pid namespace has a process 1 as long as it lives: man pid_namespaces(7).
        return features.no(
            name, f"{base} hides other users' processes (hidepid)", f"{remedy}; or mount with gid="
        )
    answers = {pid: _shows_files(base, pid) for pid in pids}
    denied = [pid for pid, answer in answers.items() if answer is False]
    readable = [pid for pid, answer in answers.items() if answer]
    if not denied:
        return features.yes(name, f"the files of all {len(readable)} processes can be read")
    counts = f"{len(denied)} of {len(answers)} processes do not show their files (pid {denied[0]})"
    others_denied = any(_is_foreign(base, pid) for pid in denied)
    if others_denied and not any(_is_foreign(base, pid) for pid in readable):
        return features.no(name, counts, remedy)
    return features.yes(name, counts)


def _shows_files(root: str, pid: str) -> bool | None:
    """None for a process that ended. Listing may be allowed where reading the links is not."""
    try:
        with process_directory(root, pid) as directory:
            table = os.open("fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
            try:
                for descriptor in os.listdir(table)[:1]:
                    os.readlink(descriptor, dir_fd=table)
            finally:
                os.close(table)
    except PermissionError:
        return False
    except OSError:
        return None
    return True


def _is_foreign(root: str, pid: str) -> bool:
    try:
        return os.stat(f"{root}/{pid}").st_uid != os.geteuid()
    except OSError:
        return False
