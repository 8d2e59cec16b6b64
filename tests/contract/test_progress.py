"""What sock_diag says of one connection, and what the connection itself says. Needs no root."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import termios
import time
from collections.abc import Iterator

import pytest

from procnet.model import Support
from procnet.sockets.diag import probe_diag
from procnet.sockets.progress import Progress, read_progress
from tests.conftest import require_or_skip
from tests.contract.every_socket import WAIT_S, EverySocket, by_diag, settled_rows

NAMES = ("four", "six", "both6", "both4", "mapped")


@pytest.fixture(autouse=True)
def _sock_diag() -> None:
    feature = probe_diag()
    require_or_skip("" if feature.support is Support.YES else feature.reason, feature.remedy)


@pytest.fixture
def every() -> Iterator[EverySocket]:
    with EverySocket() as every:
        yield every


@pytest.mark.parametrize("name", NAMES)
def test_what_waits_for_the_other_end_has_been_written_and_has_not_arrived(
    every: EverySocket, name: str
) -> None:
    settled_rows(by_diag(), every)
    progress = read_progress(every.expected[f"{name} unacknowledged"])
    assert progress is not None
    assert progress.written_bytes - progress.acked_bytes == 101
    # The other end has got nothing but, in the kernel's count, the SYN.
    assert progress.acked_bytes <= 1


def test_what_has_arrived_is_told(every: EverySocket) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as near,
        listener.accept()[0] as far,
    ):
        rows = by_diag().scan(every.netns).sockets
        (connection,) = (s for s in rows if s.inode == os.fstat(near.fileno()).st_ino)
        before = read_progress(connection)
        assert before is not None
        near.sendall(bytes(1009))
        assert len(far.recv(1009, socket.MSG_WAITALL)) == 1009
        deadline_s = time.monotonic() + WAIT_S
        while struct.unpack("i", fcntl.ioctl(near, termios.TIOCOUTQ, bytes(4))) != (0,):
            assert time.monotonic() < deadline_s
        here = before.acked_bytes + 1009
        assert read_progress(connection) == Progress(here, here)


def test_of_another_socket_there_and_of_none_nothing_is_told(every: EverySocket) -> None:
    connection = every.expected["four connected"]
    assert read_progress(connection) is not None
    assert read_progress(connection._replace(inode=connection.inode + 1)) is None
    assert read_progress(connection._replace(remote_port=connection.local_port)) is None
