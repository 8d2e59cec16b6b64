"""What netlink answers. A byte says who asked (sock_diag: and a table); then come datagrams.

- ``DiagTables.read`` raises nothing, ``list_interfaces`` only ``CaptureError``.
- The sockets are those that a plain reading of the messages, one by one, finds.
- Nothing but an answer to our own request is believed, nothing behind an impossible length.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from typing import Any
from unittest import mock

from procnet.capture import interfaces
from procnet.errors import CaptureError
from procnet.model import unmapped
from procnet.sockets import conntrack
from procnet.sockets.diag import DIAG_TABLES, DiagTables, parse_page
from procnet.sockets.fork_events import forks_in
from procnet.sockets.progress import parse_progress
from procnet.sockets.unix_sockets import shut_socket
from tests.fuzz.pieces import join, split
from tests.unit.sockets.netlink import FakeNetlink, done, netlink_message, row
from tests.unit.sockets.test_conntrack import connection
from tests.unit.sockets.test_fork_events import fork

_ROW_BYTES = 72
_FAMILIES = {"4": (socket.AF_INET, 4), "6": (socket.AF_INET6, 16)}
_INODE, _LISTEN = 501, 10


def check(data: bytes) -> None:
    who = data[0] % 3 if data else 0
    if who == 1:
        _check_interfaces(split(data[1:]))
    elif who == 2:
        _check_connections(split(data[1:]))
    elif len(data) > 1:
        _check_diag(DIAG_TABLES[data[1] % len(DIAG_TABLES)], split(data[2:]))


def _check_diag(table: str, datagrams: list[bytes]) -> None:
    for datagram in datagrams:
        page = parse_page(datagram, table, 1, 1)
        plain = _plain_rows(datagram, table)
        told = [
            (s.local_address, s.remote_address, s.send_queue_bytes, s.uid, s.inode)
            for s in page.sockets
        ]
        assert told == plain
        progress = parse_progress(datagram, _INODE)
        if progress is not None:
            assert struct.pack("=I", _INODE) == datagram[84:88]
            assert 0 <= progress.written_bytes - progress.acked_bytes < 1 << 32
        shut = shut_socket(datagram[16:])
        assert not shut or struct.pack("=I", shut) == datagram[20:24]
        assert page.malformed <= len(datagram) // 16 + 1
        _check_forks(datagram)
    answers = [[*datagrams], [*datagrams[1:], done()], [done()]]
    netlink = FakeNetlink(lambda *request: answers[len(netlink.asked) % 3])
    diag = DiagTables(connect=netlink.connect)
    assert diag.read(1).keys() <= set(DIAG_TABLES)
    assert netlink.open == 0


def _check_forks(datagram: bytes) -> None:
    with contextlib.suppress(ValueError):
        for parent, child in forks_in(datagram):
            # Of the child first its first thread, which has the same number.
            assert struct.pack("=II", child, child) in datagram
            assert struct.pack("=I", parent) in datagram


def _plain_rows(datagram: bytes, table: str) -> list[tuple[bytes, bytes, int, int, int]]:
    """include/uapi/linux/inet_diag.h, read byte by byte."""
    family, width = _FAMILIES["6" if table.endswith("6") else "4"]
    rows = []
    while len(datagram) >= 16:
        length, kind, _, sequence, _ = struct.unpack_from("=IHHII", datagram)
        if not 16 <= length <= len(datagram) or (sequence == 1 and kind in (2, 3)):
            break
        if kind == 20 and sequence == 1 and length >= 16 + _ROW_BYTES and datagram[16] == family:
            local, remote = datagram[24 : 24 + width], datagram[40 : 40 + width]
            queue, uid, inode = struct.unpack_from("=III", datagram, 76)
            if not table.startswith("tcp") or datagram[17] == _LISTEN:
                queue = 0
            rows.append((unmapped(local), unmapped(remote), queue, uid, inode))
        datagram = datagram[(length + 3) // 4 * 4 :]
    return rows


class _Rtnetlink:
    """Answers each of the two dumps with the datagrams up to an empty one."""

    def __init__(self, datagrams: list[bytes]) -> None:
        self._datagrams = iter(datagrams)

    def __call__(self, groups: int) -> Any:
        return self

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc_info: object) -> None: ...

    def settimeout(self, seconds: float) -> None: ...

    def send(self, request: bytes) -> None: ...

    def sendto(self, request: bytes, address: tuple[int, int]) -> None: ...

    def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
        datagram = next(self._datagrams, None)
        if datagram is None:
            raise TimeoutError("timed out")
        return datagram or done(), (0, 0)


def _check_interfaces(datagrams: list[bytes]) -> None:
    with mock.patch.object(interfaces, "_open", _Rtnetlink(datagrams)):
        try:
            found = interfaces.list_interfaces()
        except CaptureError:
            return
    said = b"".join(datagrams)
    assert [each.index for each in found] == sorted(each.index for each in found)
    for each in found:
        assert struct.pack("=i", each.index) in said
        assert each.name.encode("utf-8", "surrogateescape") in said
        assert each.mac in said
        assert all(len(address) in (4, 16) and address in said for address in each.addresses)


def _check_connections(datagrams: list[bytes]) -> None:
    connections = object.__new__(conntrack.Connections)
    connections._answers = _Rtnetlink(datagrams)
    connections._sequence = connections.malformed_messages = 0
    said = b"".join(datagrams)
    with contextlib.suppress(OSError):  # what Connections.dump() makes a ProcnetError of
        for found in connections._dump(0):
            for address in (*found.near[1::2], *found.far[1::2]):
                assert len(address) in (4, 16) and address in said
    assert connections.malformed_messages <= len(said) // 16 + len(datagrams)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def seeds() -> Iterator[bytes]:
    six = {"local": ("::1", 80), "remote": ("::ffff:10.0.0.1", 4000)}
    for number, table in enumerate(DIAG_TABLES):
        rows = [row(**six) if table.endswith("6") else row(), row(state=3, inode=0)]
        stranger = row(sequence=2) + netlink_message(9, b"?")
        page = b"".join([*rows, row(attributes=b""), stranger, rows[0]])
        yield bytes([0, number]) + join([page, rows[1] + done()])
    yield b"\0\0" + join([row(flags=0x12), done(2), done(105)])
    info = _attribute(2, bytes(120) + struct.pack("=Q", 1009) + bytes(100))
    yield b"\0\0" + join([row(state=1, send_queue_bytes=101, attributes=info), done()])
    yield b"\0\0" + join([netlink_message(4, b""), row()[:-3]])
    shut = struct.pack("=BBBxI8x", 1, 1, 1, _INODE) + _attribute(4, bytes(8)) + _attribute(6, b"\1")
    yield b"\0\0" + join([netlink_message(20, shut) + done()])
    yield b"\0\0" + join([fork(7, 1009), fork(7, 7, thread=1009), fork(7, 1009)[:-1]])
    flags = 0x1 | 0x8
    link = struct.pack("=BxHiII", 0, 772, 1, flags, 0)
    link += _attribute(1, bytes(6)) + _attribute(3, b"lo\xff\x1b\0")
    address = struct.pack("=BBBBI", 2, 8, 0, 0, 1)
    address += _attribute(1, b"\x7f\0\0\1") + _attribute(2, b"\x0a\0\0\1")
    links, addresses = netlink_message(16, link), netlink_message(20, address)
    yield b"\1" + join([links + links + done(), addresses + done()])
    yield b"\1" + join([links, b"", addresses, b""])
    yield b"\1" + join([links, netlink_message(2, struct.pack("=i", -1))])
    for number in (-(2**31), 2**31 - 1, 0):
        refusal = netlink_message(2, struct.pack("=i", number))
        yield b"\0\0" + join([row(), refusal])
        yield b"\1" + join([links, refusal])
        yield b"\2" + join([refusal])
    yield b"\1" + join([netlink_message(16, link, flags=0x10) + done(), links + done(), done()])
    near = (17, "10.0.0.2", 5000, "192.0.2.9", 53)
    masqueraded = connection(near, (17, "192.0.2.9", 53, "192.0.2.1", 6000))
    yield b"\2" + join([netlink_message(0x100, masqueraded) + done()])
