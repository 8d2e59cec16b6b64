"""What conntrack tells: datagrams of news up to an empty one, then those of two dumps.

- ``read`` raises nothing, ``dump`` only ``ProcnetError``; what is not understood is ``missed``.
- What is translated has two sides that differ, and addresses and protocols that were told.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from unittest import mock

from procnet.errors import ProcnetError
from procnet.model import ICMP, SCTP, TCP, UDP, Translation
from procnet.sockets import conntrack
from tests.fuzz.pieces import join, split
from tests.unit.sockets.netlink import TellingNetlink, done, netlink_message
from tests.unit.sockets.test_conntrack import connection

_NEW, _DELETE = 0x100, 0x102


def check(data: bytes) -> None:
    datagrams = split(data)
    news = TellingNetlink(datagrams, silence=BlockingIOError)
    answers = TellingNetlink(datagrams, silence=TimeoutError)
    with mock.patch.object(conntrack, "_connect", iter((news, answers)).__next__):
        connections = conntrack.Connections()
    told = connections.read()
    assert told.missed == (connections.malformed_messages > 0)
    _check_all(datagrams, *told.begun, *told.ended)
    with contextlib.suppress(ProcnetError):
        _check_all(datagrams, *connections.dump())
    connections.close()


def _check_all(datagrams: list[bytes], *translations: Translation) -> None:
    said = b"".join(datagrams)
    for near, far in ((each.near, each.far) for each in translations):
        assert near != far
        for protocol, source, source_port, destination, destination_port in (near, far):
            assert len(source) in (4, 16) and len(destination) in (4, 16)
            assert source in said and destination in said and bytes([protocol]) in said
            assert 0 <= source_port <= 0xFFFF and 0 <= destination_port <= 0xFFFF


def seeds() -> Iterator[bytes]:
    bodies = [
        connection(
            (UDP, "10.0.0.2", 5000, "192.0.2.9", 53), (UDP, "192.0.2.9", 53, "192.0.2.1", 7)
        ),
        connection((TCP, "fd00::2", 5000, "fd00::9", 80), (TCP, "fd00::9", 80, "fd00::1", 5000)),
        connection((ICMP, "10.0.0.2", 7, "192.0.2.9", 0), (ICMP, "192.0.2.9", 9, "192.0.2.1", 0)),
        connection((SCTP, "10.0.0.2", 7, "192.0.2.9", 9), (SCTP, "192.0.2.9", 9, "192.0.2.1", 7)),
    ]
    new = [netlink_message(_NEW, body) for body in bodies]
    ended = [netlink_message(_DELETE, body) for body in bodies]
    yield join([*new, *ended])
    yield join([b"".join(new) + done(), b"".join(new[:1]) + done(sequence=1)])
    for number in (-1, 2**31 - 1, -(2**31)):
        yield join([new[0], netlink_message(2, struct.pack("=i", number))])
    yield join([new[0][:-5], ended[1][:40]])
