"""Rows of the socket iterator: one socket for each inode, and all its holders."""

from __future__ import annotations

import pytest

from procnet.bpf.snapshot import OPEN_SOCKET, decode_snapshot
from procnet.errors import LayoutError
from procnet.model import CLOCK_TICK_NS, TCP, Evidence, ProcessId

MAPPED = bytes(10) + b"\xff\xff\x7f\0\0\1"
STREAM, RAW = 1, 3
LISTEN = 10


def row(
    pid: int, inode: int, *, port: int = 80, start_ns: int = CLOCK_TICK_NS + 7, kind: int = STREAM,
) -> bytes:  # fmt: skip
    return OPEN_SOCKET.pack(
        MAPPED, bytes(16), port, 0, TCP, inode, start_ns, 0, pid, 1, 1000, 4, LISTEN, kind
    )


def test_a_socket_is_told_once_with_every_holder() -> None:
    rows = row(41, 5) + row(41, 7) + row(42, 5) + row(42, 5)
    scan = decode_snapshot(rows, 3, 4, 0)
    one, other = ProcessId(41, CLOCK_TICK_NS), ProcessId(42, CLOCK_TICK_NS)
    assert scan.holders == {5: {one, other}, 7: {one}}
    assert [(each.inode, each.local_address, each.state) for each in scan.sockets] == [
        (5, b"\x7f\0\0\1", "listen"),
        (7, b"\x7f\0\0\1", "listen"),
    ]
    assert (scan.started_ns, scan.ended_ns, scan.evidence) == (3, 4, Evidence.KERNEL_SNAPSHOT)


def test_a_socket_without_an_address_is_none_unless_it_is_raw() -> None:
    rows = row(41, 5, port=0) + row(41, 7, port=0, kind=RAW)
    assert decode_snapshot(rows, 0, 0, 0).holders.keys() == {7}


def test_a_first_row_of_zeros_has_its_holder() -> None:
    scan = decode_snapshot(row(0, 5, start_ns=0), 0, 0, 0)
    assert scan.holders == {5: {ProcessId(0, 0)}}


def test_rows_of_another_size_are_refused() -> None:
    with pytest.raises(LayoutError, match=r"79 bytes.*reinstall"):
        decode_snapshot(row(41, 5)[:-1], 0, 0, 0)
