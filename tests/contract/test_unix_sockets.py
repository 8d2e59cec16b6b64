"""Into which processes a socket may come over a Unix socket, on this kernel. Needs no root."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procnet.sockets.holders import HolderMap
from procnet.sockets.unix_sockets import UnixSockets, read_shut_sockets, shut_socket
from tests.conftest import require_or_skip

Held = list[socket.socket]


def stream() -> Held:
    return list(socket.socketpair())


def shut(kind: int = socket.SOCK_STREAM) -> Held:
    """What systemd leaves a service as its standard output, for one."""
    near, far = socket.socketpair(socket.AF_UNIX, kind)
    near.shutdown(socket.SHUT_RD)
    return [near, far]


def shut_in_part() -> Held:
    near, far = stream()
    near.shutdown(socket.SHUT_WR)
    return [near, far]


def shut_with_bytes() -> Held:
    near, far = stream()
    far.sendall(b"x")
    near.shutdown(socket.SHUT_RD)
    return [near, far]


def shut_datagrams() -> Held:
    return shut(socket.SOCK_DGRAM)


def listening() -> Held:
    made = socket.socket(socket.AF_UNIX)
    made.bind(b"")  # unix(7), "Autobind feature"
    made.listen()
    return [made]


def of_the_internet() -> Held:
    return [socket.socket(family) for family in (socket.AF_INET, socket.AF_INET6)]


def netlink() -> Held:
    return [socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)]


@contextlib.contextmanager
def holding(held: Held) -> Iterator[tuple[int, int]]:
    """A process that has the first of these and a UDP socket, and no other: its pid, and the inode
    of the UDP socket."""
    with contextlib.ExitStack() as stack:
        for made in held:
            stack.enter_context(made)
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        process = subprocess.Popen(
            ["cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[held[0].fileno(), udp.fileno()],
        )
        with process:
            yield process.pid, os.fstat(udp.fileno()).st_ino


def is_reached(holders: HolderMap, pid: int, inode: int, *, refresh: bool = True) -> bool:
    assert pid in {process.pid for process in holders.of([inode], refresh=refresh)[inode]}
    return pid in {process.pid for process in holders.reached}


OPEN = [stream, shut_in_part, shut_with_bytes, shut_datagrams, listening]


@pytest.mark.parametrize("sockets", OPEN)
def test_by_a_unix_socket_a_process_is_reached(sockets: Callable[[], Held]) -> None:
    with holding(sockets()) as (pid, inode):
        holders = HolderMap()
        assert [is_reached(holders, pid, inode) for _ in range(3)] == [True, True, True]


@pytest.mark.parametrize("sockets", [of_the_internet, netlink])
def test_by_another_socket_it_is_not(sockets: Callable[[], Held]) -> None:
    with holding(sockets()) as (pid, inode):
        assert not is_reached(HolderMap(), pid, inode)


@pytest.mark.parametrize("sockets", [stream, netlink])
def test_a_process_that_is_newer_than_the_walk_is_told_as_well(
    sockets: Callable[[], Held],
) -> None:
    holders = HolderMap(max_age_s=3600)
    holders.of([])
    with holding(sockets()) as told:
        assert is_reached(holders, *told, refresh=False) is (sockets is stream)
        assert holders.walks == 1


def test_by_one_that_was_shut_at_the_look_before_nothing_comes() -> None:
    told = read_shut_sockets()
    require_or_skip(
        "" if told is not None else "sock_diag tells no Unix sockets", "modprobe unix_diag"
    )
    with holding(shut()) as (pid, inode):
        holders = HolderMap()
        # Before the first look it may have been open.
        assert [is_reached(holders, pid, inode) for _ in range(3)] == [True, False, False]


def test_a_kernel_that_does_not_tell_what_is_shut_is_not_asked_again() -> None:
    asked: list[None] = []
    with holding(shut()) as (pid, inode):
        holders = HolderMap(unix_sockets=UnixSockets(read_shut=lambda: asked.append(None)))
        assert [is_reached(holders, pid, inode) for _ in range(3)] == [True, True, True]
    assert len(asked) == 1


def test_where_the_kind_is_not_told_each_may_be_a_unix_socket() -> None:
    def refuse(path: str, name: str) -> bytes:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    with holding(netlink()) as (pid, inode):
        assert is_reached(HolderMap(unix_sockets=UnixSockets(refuse)), pid, inode)


def test_want_of_memory_is_not_taken_for_an_answer() -> None:
    def refuse(path: str, name: str) -> bytes:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with holding(netlink()) as (_, inode), pytest.raises(OSError, match="memory"):
        HolderMap(unix_sockets=UnixSockets(refuse)).of([inode])


def test_a_socket_that_was_closed_since_has_no_kind() -> None:
    def gone(path: str, name: str) -> bytes:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    with holding(stream()) as (pid, inode):
        assert not is_reached(HolderMap(unix_sockets=UnixSockets(gone)), pid, inode)


def test_a_link_that_no_kernel_writes_is_no_unix_socket() -> None:
    asked: list[str] = []
    unix_sockets = UnixSockets(lambda path, name: asked.append(path) or b"UNIX")  # type: ignore[func-returns-value]
    unix_sockets.learn(3, ["5"], ["socket:[007]"], [7], frozenset())
    assert asked == []


@given(st.binary(max_size=80))
def test_no_answer_is_too_strange(answer: bytes) -> None:
    inode = shut_socket(answer)
    assert not inode or struct.pack("=I", inode) == answer[4:8]
