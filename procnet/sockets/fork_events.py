"""Who begins whom, as the kernel tells it when it happens: the proc connector.

Layouts: include/uapi/linux/connector.h, cn_proc.h. The kernel's end is in the first network
namespace alone (cn_init, drivers/connector/connector.c), and nobody is told who is not in the first
user and pid namespaces (cn_proc_mcast_ctl, drivers/connector/cn_proc.c). CAP_NET_ADMIN is needed,
from another network namespace CAP_SYS_ADMIN too. Before Linux 6.6 the kernel goes on when who
listened is killed: a message is made at each fork, and dropped.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from procnet import features
from procnet.errors import AccessError, ProcnetError, UnsupportedError
from procnet.model import Feature
from procnet.netlink import HEADER_BYTES, Instruction, attach_filter, messages, request
from procnet.sockets.namespace import in_namespace
from procnet.sockets.pids import list_pids, raise_if_ours

NAME = "fork events"
_NETLINK_CONNECTOR = 11
_INDEX = _GROUP = 1  # CN_IDX_PROC; CN_VAL_PROC is the same
_LISTEN, _IGNORE = 1, 2
_NONE, _FORK = 0, 1  # PROC_EVENT_NONE is the answer to a request
_NLMSG_DONE = 3  # the type of all that a connector says
_MESSAGE = struct.Struct("=IIIIHH")  # struct cn_msg
_EVENT = struct.Struct("=I12xI")  # what, and of an answer the errno
_PROCESSES = struct.Struct("=16xIIII")  # threads and processes: parent, child
_WORD = struct.Struct("=I")
_EVENT_AT = HEADER_BYTES + _MESSAGE.size
_BUFFER_BYTES = 4096
_QUEUE_BYTES = 4 << 20
MAX_FORKS = 16384
"""More than the queue holds, at 768 bytes each."""
_SO_RCVBUFFORCE = 33
_MAX_NAMESPACES = 64


def _in_network_order(value: int) -> int:
    """As a filter loads a word of our own order."""
    return int.from_bytes(_WORD.pack(value), "big")


# Answers, and forks, but for those that begin a thread.
_PROCESSES_ALONE: tuple[Instruction, ...] = (
    (0x20, 0, 0, _EVENT_AT),
    (0x15, 5, 0, _in_network_order(_NONE)),
    (0x15, 0, 5, _in_network_order(_FORK)),
    (0x20, 0, 0, _EVENT_AT + 24),
    (0x07, 0, 0, 0),
    (0x20, 0, 0, _EVENT_AT + 28),
    (0x1D, 0, 1, 0),
    (0x06, 0, 0, 0xFFFFFFFF),
    (0x06, 0, 0, 0),
)


Place = Callable[[], socket.socket]
"""Makes a socket of one network namespace. Raises OSError."""


class Fork(NamedTuple):
    """Who has begun whom: numbers in the first pid namespace, which is ours."""

    parent_pid: int
    child_pid: int


class ForkEvents:
    """The processes that begin from now on. Raises AccessError without the privileges,
    UnsupportedError where the kernel does not tell, ProcnetError if this process is short of
    descriptors or threads. For one thread."""

    def __init__(self, places: Callable[[], Iterable[Place]] | None = None) -> None:
        try:
            self._events = _heard_in((places or _places)())
        except OSError as error:
            raise _refusal(error) from error

    def close(self) -> None:
        """Gives the socket back. Idempotent."""
        with contextlib.suppress(OSError):
            _ask(self._events, _IGNORE)
        self._events.close()

    def read(self) -> list[Fork] | None:
        """Those since the last call, in their order; None if the kernel did not tell of all. Never
        waits. Raises ProcnetError."""
        found: list[Fork] = []
        whole = True
        for _ in range(MAX_FORKS):
            try:
                data, (sender, _) = self._events.recvfrom(_BUFFER_BYTES)
            except BlockingIOError:
                return found if whole else None
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise ProcnetError(f"cannot read {NAME}: {error}") from error
                whole = False
                continue
            try:
                found += forks_in(data) if sender == 0 else ()  # only the kernel's port is 0
            except ValueError:
                whole = False
        return None


def forks_in(data: bytes) -> list[Fork]:
    """The processes that one datagram tells to have begun. Raises ValueError for a damaged one."""
    found = []
    for _, body in messages(data):
        try:
            what, _ = _EVENT.unpack_from(body, _MESSAGE.size)
            if what == _FORK:
                _, parent, thread, child = _PROCESSES.unpack_from(body, _MESSAGE.size)
                if thread == child:
                    found.append(Fork(parent, child))
        except struct.error as error:
            raise ValueError(f"a process event of {len(body)} bytes") from error
    return found


def probe() -> Feature:
    """Whether the kernel tells who forks, found out by asking. Raises nothing."""
    try:
        ForkEvents().close()
    except (AccessError, UnsupportedError) as error:
        reason, _, remedy = str(error).partition("; ")
        return features.no(NAME, reason, remedy)
    except ProcnetError as error:
        return features.unknown(NAME, str(error))
    return features.yes(NAME, "looking knows of children that no look has shown")


def _heard_in(places: Iterable[Place]) -> socket.socket:
    """Listens in the first of these places where the kernel does. Raises OSError."""
    for place in places:
        with contextlib.ExitStack() as held:
            try:
                events = held.enter_context(place())
                _listen(events)
            except (ConnectionRefusedError, FileNotFoundError):
                continue  # not there, or its process is gone
            held.pop_all()
            return events
    raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


def _places() -> Iterator[Place]:
    """Our own network namespace, then those of the others: no file says which is the first."""
    tried: set[int] = set()
    for name in ("thread-self", *sorted(list_pids("/proc"), key=int)):
        path = f"/proc/{name}/ns/net"
        try:
            namespace = os.stat(path).st_ino
        except OSError as error:
            raise_if_ours(error)
            continue
        if namespace not in tried and len(tried) < _MAX_NAMESPACES:
            yield functools.partial(in_namespace, path, _socket) if tried else _socket
            tried.add(namespace)


def _socket() -> socket.socket:
    return socket.socket(
        socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_CONNECTOR
    )


def _listen(events: socket.socket) -> None:
    """Raises OSError."""
    attach_filter(events, _PROCESSES_ALONE)
    with contextlib.suppress(OSError):  # without: an overflow comes sooner
        events.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _QUEUE_BYTES)
    events.bind((0, _GROUP))
    events.setblocking(False)
    _ask(events, _LISTEN)
    # It has been answered when send(2) returns (cn_rx_skb calls cn_proc_mcast_ctl), but not to who
    # is in another pid namespace.
    while True:
        try:
            data, (sender, _) = events.recvfrom(_BUFFER_BYTES)
        except BlockingIOError:
            raise OSError(errno.EOPNOTSUPP, "not in this pid or user namespace") from None
        number = _answer(data, events.getsockname()[0]) if sender == 0 else None
        if number == 0:
            return
        if number is not None:
            raise OSError(number, os.strerror(number))


def _ask(events: socket.socket, operation: int) -> None:
    # Whose the answer is, which goes to all who listen, tells the number of the port: cn_proc_ack
    # adds one to it.
    port = events.getsockname()[0]
    body = _MESSAGE.pack(_INDEX, _INDEX, 0, port - 1, _WORD.size, 0) + _WORD.pack(operation)
    events.send(request(_NLMSG_DONE, 0, body))


def _answer(data: bytes, port: int) -> int | None:
    """The errno, 0 for none, of the answer to what was asked from there; None for anything else."""
    with contextlib.suppress(ValueError, struct.error):
        for _, body in messages(data):
            what, number = _EVENT.unpack_from(body, _MESSAGE.size)
            if what == _NONE and _MESSAGE.unpack_from(body)[3] == port:
                return int(number)
    return None


def _refusal(error: OSError) -> ProcnetError:
    said = error.strerror or str(error)
    if isinstance(error, PermissionError):
        return AccessError(
            f"{NAME} cannot be read: {said}; run as root or with CAP_NET_ADMIN, in a network"
            " namespace of your own with CAP_SYS_ADMIN too"
        )
    if error.errno in (errno.EPROTONOSUPPORT, errno.ECONNREFUSED, errno.EOPNOTSUPP):
        return UnsupportedError(
            f"{NAME} cannot be read: {said}; needs CONFIG_PROC_EVENTS, and not to be in a container"
        )
    return ProcnetError(f"{NAME} cannot be read: {said}")
