"""Processes that do one thing with a socket and say who they are: the truth to compare with. And
the witness that is compared."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from procnet.model import CLOCK_TICK_NS, EventKind, OwnerEvent, Process, ProcessId, unmapped
from tests.privileged.owners.gaps import Instead, Owners, gap

INET, INET6 = socket.AF_INET, socket.AF_INET6
FAMILIES = [
    pytest.param(INET, "127.0.0.1", id="v4"),
    pytest.param(INET6, "::1", id="v6"),
    pytest.param(INET6, "::ffff:127.0.0.1", id="mapped"),
]
LO = socket.inet_aton("127.0.0.1")
CLONE_NEWNET = 0x40000000
CONNECT, ACCEPT, SEND, RECEIVE, CLOSE, INJECT = EventKind

Tuple = tuple[bytes, int, bytes, int]


class Who(NamedTuple):
    """A process, as /proc tells."""

    process: ProcessId
    name: str
    uid: int
    netns: int


def who(pid: int | str = "self") -> Who:
    root = Path("/proc") / str(pid)
    head, _, tail = (root / "stat").read_bytes().rpartition(b")")
    number, _, comm = head.partition(b" (")
    return Who(
        ProcessId(int(number), int(tail.split()[19]) * CLOCK_TICK_NS),
        comm.decode(errors="backslashreplace"),
        os.stat(root).st_uid,
        os.stat(root / "ns/net").st_ino,
    )


def who_told(event: OwnerEvent) -> Who:
    """The same, as an event tells."""
    return Who(event.process, event.name, event.uid, event.netns)


def rename(name: bytes) -> None:
    Path("/proc/self/comm").write_bytes(name)


class Child:
    """A forked process. ``act`` runs in it at once; what it returns (JSON) is the result."""

    def __init__(self, act: Callable[[], Any], name: bytes = b"the-child") -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                rename(name)
                result = act()
                os.write(writing, json.dumps([result, who()]).encode())
                status = 0
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(status)
        os.close(writing)
        self._reading = reading

    def result(self) -> tuple[Any, Who]:
        """What ``act`` returned, and who it was; the process is gone."""
        with os.fdopen(self._reading, "rb") as pipe:
            text = pipe.read()
        assert os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]) == 0
        result, (process, *rest) = json.loads(text)
        return result, Who(ProcessId(*process), *rest)


def run(act: Callable[[], Any], name: bytes = b"the-child") -> tuple[Any, Who]:
    return Child(act, name).result()


@contextlib.contextmanager
def entered(namespace: Path) -> Iterator[None]:
    """This process is in the network namespace as long as the ``with``."""
    enter = ctypes.CDLL(None, use_errno=True).setns
    with open("/proc/self/ns/net", "rb") as outside, namespace.open("rb") as within:
        assert enter(within.fileno(), CLONE_NEWNET) == 0
        try:
            yield
        finally:
            assert enter(outside.fileno(), CLONE_NEWNET) == 0


def udp(family: int = INET, bound: str | None = None) -> socket.socket:
    made = socket.socket(family, socket.SOCK_DGRAM)
    if bound is not None:
        made.bind((bound, 0))
    return made


def close(*sockets: socket.socket) -> None:
    for sock in sockets:
        sock.close()


def inode(sock: socket.socket) -> int:
    """The number in socket:[...] of /proc/PID/fd."""
    return int(os.readlink(f"/proc/self/fd/{sock.fileno()}")[len("socket:[") : -1])


def packed(sock: socket.socket, address: str) -> bytes:
    """As events have it."""
    return unmapped(socket.inet_pton(sock.family, address))


def tuple_of(sock: socket.socket) -> Tuple:
    """Local and remote end of a connected socket, as getsockname() and getpeername() have it."""
    local, remote = sock.getsockname(), sock.getpeername()
    return packed(sock, local[0]), local[1], packed(sock, remote[0]), remote[1]


def tuple_told(event: OwnerEvent) -> Tuple:
    return event.local_address, event.local_port, event.remote_address, event.remote_port


def connection(family: int = socket.AF_INET, host: str = "127.0.0.1") -> tuple[socket.socket, ...]:
    """Client, accepted, listener."""
    listener = socket.socket(family)
    listener.bind(("" if host.startswith("::ffff:") else host, 0))
    listener.listen()
    client = socket.socket(family)
    client.connect((host, listener.getsockname()[1]))
    accepted, _ = listener.accept()
    return client, accepted, listener


def kinds(events: list[OwnerEvent]) -> list[EventKind]:
    return [event.kind for event in events]


class Witness:
    """Everything that the kernel told since the test began."""

    def __init__(self, owners: Owners) -> None:
        self.owners = owners
        self._netns = who().netns
        self._events: list[OwnerEvent] = []

    def _all(self) -> list[OwnerEvent]:
        self._events += self.owners.read()
        return self._events

    def where(self, wanted: Callable[[OwnerEvent], bool]) -> list[OwnerEvent]:
        """Of this network namespace, in order. A hook tells before its system call returns."""
        return [event for event in self._all() if event.netns == self._netns and wanted(event)]

    def of_inode(self, inode: int) -> list[OwnerEvent]:
        """Of a socket in any namespace."""
        return [event for event in self._all() if event.inode == inode]

    def of(self, sock: socket.socket) -> list[OwnerEvent]:
        return self.of_inode(inode(sock))

    def sends(self, number: int) -> list[OwnerEvent]:
        return [event for event in self.of_inode(number) if event.kind is SEND]

    def processes(self) -> list[Process]:
        """Those that told who they are since the test began."""
        self._all()
        return self.owners.read_processes()

    def gap(self, case: str) -> Instead | None:
        return gap(self.owners, case)

    def own_address(self, address: bytes) -> bytes:
        """What an unconnected sender on ``address`` is told to have."""
        if self.gap("local address of an unconnected sender"):
            return bytes(len(address))
        return address


def kprobes() -> list[str]:
    """The functions that the kernel has probes in, once for each probe."""
    lines = Path("/sys/kernel/debug/kprobes/list").read_text().splitlines()
    return sorted(line.split()[2].split("+")[0] for line in lines)


def open_files() -> set[str]:
    return set(os.listdir("/proc/self/fd"))
