"""Which addresses a network namespace has, by the /proc/PID/net of a process that is in it.

IPv4: the host routes of type LOCAL in fib_trie (fib_trie_seq_show, net/ipv4/fib_trie.c); there is
one for each address. IPv6: if_inet6 (if6_seq_show, net/ipv6/addrconf.c).
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from procnet.model import SocketScan

_REFRESH_S = 5.0
_TRIES = 4
_MAX_BYTES = 4 << 20
_OWN_IPV4 = re.compile(rb"\|-- ([0-9.]+)\n\s*/32 host LOCAL")
_IPV6 = re.compile(rb"^([0-9a-f]{32}) ", re.MULTILINE)


class NamespaceAddresses:
    """Reads the addresses of namespaces, each anew every 5 s. Not thread-safe.

    Of one that shows more than 4 MiB, as 40 000 routes do, nothing is told: what stands behind
    them would be taken for nobody's.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = "/proc",
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = Path(root)
        self._clock = clock
        self._read_s: dict[int, float] = {}
        # None: more than can be read.
        self._addresses: dict[int, frozenset[bytes] | None] = {}

    def read(self, scan: SocketScan) -> Mapping[int, frozenset[bytes]]:
        """For each namespace of a look its addresses, packed; not for one that nobody shows."""
        now_s = self._clock()
        seen = {each.netns for each in scan.sockets}
        for netns in self._addresses.keys() - seen:
            del self._addresses[netns], self._read_s[netns]
        due = {n for n in seen if self._read_s.get(n, -_REFRESH_S) + _REFRESH_S <= now_s}
        for netns, pids in self._inhabitants(scan, due).items():
            for pid in pids:
                with contextlib.suppress(OSError):
                    if self._read(pid, netns):
                        self._read_s[netns] = now_s
                        break
        return {netns: own for netns, own in self._addresses.items() if own is not None}

    def _inhabitants(self, scan: SocketScan, due: set[int]) -> dict[int, set[int]]:
        """A few processes that have a socket of the namespace; most are in it."""
        pids: dict[int, set[int]] = {netns: set() for netns in due}
        for each in scan.sockets if due else ():
            found = pids.get(each.netns)
            if found is not None and len(found) < _TRIES:
                found.update(process.pid for process in scan.holders.get(each.inode, ()))
        return pids

    def _read(self, pid: int, netns: int) -> bool:
        """Whether the process is in the namespace; then it has told what there is to know."""
        directory = self._root / str(pid)
        shown = [_contents(directory / "net" / name) for name in ("fib_trie", "if_inet6")]
        # After it: a process that moved to another namespace showed that one's.
        if (directory / "ns" / "net").stat().st_ino != netns:
            return False
        whole = max(map(len, shown)) <= _MAX_BYTES
        self._addresses[netns] = own_addresses(*shown) if whole else None
        return True


def own_addresses(fib_trie: bytes, if_inet6: bytes) -> frozenset[bytes]:
    """The packed addresses that the two files of one namespace show."""
    found = {bytes.fromhex(match.decode()) for match in _IPV6.findall(if_inet6)}
    for match in _OWN_IPV4.findall(fib_trie):
        with contextlib.suppress(OSError):
            found.add(socket.inet_pton(socket.AF_INET, match.decode()))
    return frozenset(found)


def _contents(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return b""  # no IPv6
