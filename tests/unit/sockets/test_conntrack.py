"""Connections as ctnetlink tells them: whole, damaged, and of every kind."""

from __future__ import annotations

import ipaddress
import itertools
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procnet.model import ICMP, ICMP6, SCTP, TCP, UDP, Ends, Translation
from procnet.sockets import conntrack
from procnet.sockets.conntrack import Connections, parse_connection
from tests.unit.sockets.netlink import TellingNetlink, netlink_message

NESTED = 0x8000
ID = 3576862217

Tuple = tuple[int, str, int, str, int]


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def tuple_of(kind: int, ends: Tuple) -> bytes:
    protocol, source, source_port, destination, destination_port = ends
    addresses = [ipaddress.ip_address(each).packed for each in (source, destination)]
    first = 1 if len(addresses[0]) == 4 else 3
    inner = b"".join(attribute(first + n, each) for n, each in enumerate(addresses))
    numbers = attribute(1, bytes([protocol]))
    if protocol in (ICMP, ICMP6):
        base = 4 if protocol == ICMP else 7
        numbers += attribute(base, struct.pack("!H", source_port))
        numbers += attribute(base + 1, b"\x08") + attribute(base + 2, b"\0")
    elif protocol in (TCP, UDP, SCTP):
        numbers += attribute(2, struct.pack("!H", source_port))
        numbers += attribute(3, struct.pack("!H", destination_port))
    return attribute(kind | NESTED, attribute(1 | NESTED, inner) + attribute(2 | NESTED, numbers))


def connection(near: Tuple, reply: Tuple, *others: bytes) -> bytes:
    """struct nfgenmsg, the two tuples, and what the kernel puts behind them."""
    known = attribute(12, struct.pack("!I", ID)) + attribute(3, struct.pack("!I", 0x198))
    return bytes(4) + tuple_of(1, near) + tuple_of(2, reply) + known + b"".join(others)


def ends(protocol: int, source: str, port: int, destination: str, other: int) -> Ends:
    pack = [ipaddress.ip_address(each).packed for each in (source, destination)]
    return protocol, pack[0], port, pack[1], other


def test_a_masqueraded_datagram() -> None:
    body = connection(
        (UDP, "10.0.0.2", 5000, "192.0.2.9", 53), (UDP, "192.0.2.9", 53, "192.0.2.1", 8395)
    )
    assert parse_connection(body) == Translation(
        ID,
        near=ends(UDP, "10.0.0.2", 5000, "192.0.2.9", 53),
        far=ends(UDP, "192.0.2.1", 8395, "192.0.2.9", 53),
    )


def test_a_published_port() -> None:
    body = connection(
        (TCP, "192.0.2.9", 4001, "192.0.2.1", 8080), (TCP, "10.0.0.2", 80, "192.0.2.9", 4001)
    )
    found = parse_connection(body)
    assert found is not None
    assert found.near == ends(TCP, "192.0.2.9", 4001, "192.0.2.1", 8080)
    assert found.far == ends(TCP, "192.0.2.9", 4001, "10.0.0.2", 80)


@pytest.mark.parametrize(
    ("protocol", "inside", "outside", "there"),
    [
        (ICMP, "10.0.0.2", "192.0.2.1", "192.0.2.9"),
        (ICMP6, "fd00::2", "2001:db8::1", "2001:db8::9"),
    ],
)
def test_the_id_of_an_echo_is_both_ports(
    protocol: int, inside: str, outside: str, there: str
) -> None:
    body = connection((protocol, inside, 7, there, 0), (protocol, there, 9, outside, 0))
    found = parse_connection(body)
    assert found is not None
    assert found.near == ends(protocol, inside, 7, there, 7)
    assert found.far == ends(protocol, outside, 9, there, 9)


@pytest.mark.parametrize("protocol", [SCTP, 47, 253])
def test_what_is_counted_without_ports_has_none(protocol: int) -> None:
    body = connection((protocol, "10.0.0.2", 7, "192.0.2.9", 9), (
        protocol, "192.0.2.9", 9, "192.0.2.1", 8))  # fmt: skip
    found = parse_connection(body)
    assert found is not None
    assert found.near == ends(protocol, "10.0.0.2", 0, "192.0.2.9", 0)


def test_a_connection_that_is_not_translated_is_none() -> None:
    near = (TCP, "192.0.2.1", 4001, "192.0.2.9", 80)
    assert parse_connection(connection(near, (TCP, "192.0.2.9", 80, "192.0.2.1", 4001))) is None


def test_what_lies_behind_is_passed_over() -> None:
    more = attribute(21, struct.pack("!Q", 1)), attribute(0x3FF0, bytes(7))
    near = (TCP, "10.0.0.2", 4001, "192.0.2.9", 80)
    reply = (TCP, "192.0.2.9", 80, "192.0.2.1", 4001)
    assert parse_connection(connection(near, reply, *more)) is not None


WHOLE = connection(
    (UDP, "10.0.0.2", 5000, "192.0.2.9", 53), (UDP, "192.0.2.9", 53, "192.0.2.1", 8395)
)


@pytest.mark.parametrize("length", range(4, 4 + 2 * 52))
def test_one_that_is_cut_short_is_said_to_be(length: int) -> None:
    with pytest.raises((ValueError, struct.error)):
        parse_connection(WHOLE[:length])


@given(st.binary(max_size=200), st.integers(0, len(WHOLE)))
def test_damage_raises_nothing_else(damage: bytes, at: int) -> None:
    body = WHOLE[:at] + damage + WHOLE[at + len(damage) :]
    try:
        found = parse_connection(body)
    except (ValueError, struct.error):
        return
    assert found is None or found.near != found.far


def test_a_flood_of_news_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    told = iter(range(10**9))
    flood = (netlink_message(0x100, WHOLE) for _ in told)
    sockets = iter(TellingNetlink(each, silence=BlockingIOError) for each in (flood, ()))
    monkeypatch.setattr(conntrack, "_connect", lambda: next(sockets))
    # A clock that goes on by one whenever it is asked.
    monkeypatch.setattr(time, "time_ns", itertools.count(1).__next__)
    connections = Connections()
    first, second = connections.read(), connections.read()
    assert len(first.begun) == len(second.begun) == 16384
    assert next(told) == 2 * 16384
    # What is left when it stops may have begun as soon as it had started to read.
    assert (first.since_ns, first.until_ns) == (1, 3)
    assert (second.since_ns, second.until_ns) == (2, 5)


def test_news_end_where_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    sockets = iter(
        TellingNetlink(each, silence=BlockingIOError)
        for each in ([netlink_message(0x100, WHOLE)] * 23, ())
    )
    monkeypatch.setattr(conntrack, "_connect", lambda: next(sockets))
    monkeypatch.setattr(time, "time_ns", itertools.count(1).__next__)
    connections = Connections()
    first, second = connections.read(), connections.read()
    assert (len(first.begun), len(second.begun)) == (23, 0)
    assert (first.since_ns, first.until_ns) == (1, 3)
    assert (second.since_ns, second.until_ns) == (3, 5)
