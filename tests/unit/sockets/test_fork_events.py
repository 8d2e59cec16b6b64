"""What the proc connector says: of processes, of threads, damaged, and refusing."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procnet.errors import AccessError, ProcnetError, UnsupportedError
from procnet.sockets.fork_events import MAX_FORKS, Fork, ForkEvents, forks_in
from tests.unit.sockets.netlink import netlink_message

ANSWER, FORK, EXEC = 0, 1, 2
PORT = 4711
STRANGER = 23


def event(what: int, *fields: int, asked: int = 0) -> bytes:
    """struct cn_msg and struct proc_event, 40 bytes long."""
    said = struct.pack("=IIQ24s", what, 0, 0, struct.pack(f"={len(fields)}I", *fields))
    return netlink_message(3, struct.pack("=IIIIHH", 1, 1, 997, asked, len(said), 0) + said)


def fork(parent: int, child: int, *, thread: int = 0) -> bytes:
    return event(FORK, parent, parent, thread or child, child)


class Connector:
    """A socket that answers with an errno, or not at all, and then tells these datagrams."""

    def __init__(self, answer: int | None = 0, told: Iterable[bytes | OSError] = ()) -> None:
        self._answer = answer
        self._told = iter(told)
        self._waiting: list[tuple[bytes, int]] = []
        self.requests: list[int] = []
        self.closed = False

    def __enter__(self) -> Connector:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def ignored(self, *arguments: object) -> None: ...

    setsockopt = bind = setblocking = ignored

    def getsockname(self) -> tuple[int, int]:
        return PORT, 1

    def send(self, request: bytes) -> None:
        if self.closed:
            raise OSError(errno.EBADF, "closed")
        *_, asked, _, _, operation = struct.unpack_from("=IIIIHHI", request, 16)
        self.requests.append(operation)
        if self._answer == errno.ECONNREFUSED:
            raise OSError(self._answer, os.strerror(self._answer))
        if self._answer is not None:
            # Another's request, our own that a process forged, and our own.
            self._waiting.append((event(ANSWER, errno.EPERM, asked=STRANGER), 0))
            self._waiting.append((event(ANSWER, errno.EPERM, asked=asked + 1), STRANGER))
            self._waiting.append((event(ANSWER, self._answer, asked=asked + 1), 0))

    def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
        if self._waiting:
            data, sender = self._waiting.pop(0)
            return data, (sender, 1)
        told = next(self._told, BlockingIOError())
        if isinstance(told, OSError):
            raise told
        return told, (0, 1)

    def close(self) -> None:
        self.closed = True


def gone() -> Any:
    """A namespace whose process has ended."""
    raise FileNotFoundError(errno.ENOENT, "no such file")


def events_of(*connectors: Connector) -> ForkEvents:
    places: list[Callable[[], Any]] = [lambda made=each: made for each in connectors]
    return ForkEvents(lambda: [gone, *places])


def test_processes_are_told_in_their_order_and_no_threads() -> None:
    told = [fork(7, 1009), fork(7, 7, thread=1010), event(EXEC, 1009, 1009), fork(1009, 1013)]
    events = events_of(Connector(told=told))
    assert events.read() == [Fork(7, 1009), Fork(1009, 1013)]
    assert events.read() == []


@pytest.mark.parametrize(
    "damage", [OSError(errno.ENOBUFS, "full"), fork(7, 11)[:-1], netlink_message(3, bytes(23))]
)
def test_if_not_all_was_told_nothing_is_believed_until_the_next_time(
    damage: bytes | OSError,
) -> None:
    silence = BlockingIOError()
    events = events_of(Connector(told=[fork(7, 1009), damage, silence, fork(7, 1013)]))
    assert events.read() is None
    assert events.read() == [Fork(7, 1013)]


def test_a_flood_has_an_end() -> None:
    flood = (fork(7, child) for child in range(1, 10**9))
    assert events_of(Connector(told=flood)).read() is None
    assert next(flood) == fork(7, MAX_FORKS + 1)


def test_a_socket_that_fails_is_an_error() -> None:
    events = events_of(Connector(told=[OSError(errno.ENOMEM, "no memory")]))
    with pytest.raises(ProcnetError, match=r"read fork events: .Errno 12. no memory"):
        events.read()


def test_the_kernel_is_looked_for_in_every_place_and_told_when_nobody_listens_any_more() -> None:
    first, second, third = Connector(errno.ECONNREFUSED), Connector(), Connector()
    events = events_of(first, second, third)
    assert (first.closed, second.closed, third.requests) == (True, False, [])
    events.close()
    events.close()
    assert (second.closed, second.requests) == (True, [1, 2])


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (errno.EPERM, AccessError, "Operation not permitted; run as root"),
        (errno.ECONNREFUSED, UnsupportedError, "Connection refused; needs CONFIG_PROC_EVENTS"),
        (None, UnsupportedError, "not in this pid or user namespace; needs"),
        (errno.EINVAL, ProcnetError, "Invalid argument"),
    ],
)
def test_a_refusal_says_what_to_do(
    answer: int | None, error: type[ProcnetError], said: str
) -> None:
    connector = Connector(answer)
    with pytest.raises(error, match=said):
        events_of(connector)
    assert connector.closed


@given(st.lists(st.binary(max_size=90) | st.just(fork(7, 11)), max_size=5))
def test_any_datagram_is_forks_or_an_error(datagrams: list[bytes]) -> None:
    try:
        found = forks_in(b"".join(datagrams))
    except ValueError:
        return
    assert all(0 <= pid < 1 << 32 for each in found for pid in each)
