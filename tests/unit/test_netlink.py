"""Messages and attributes of netlink: whole ones are told, and damage is never passed over."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procnet.netlink import (
    attribute,
    attributes,
    dump_request,
    error_number,
    header_at,
    messages,
)
from tests.unit.sockets.netlink import netlink_message

GOOD = netlink_message(16, b"body")


@given(st.binary(max_size=97))
def test_any_bytes_are_told_to_their_end_or_to_the_damage(data: bytes) -> None:
    told = 0
    try:
        for header, body in messages(data):
            assert len(body) == header.length_bytes - 16
            told += (header.length_bytes + 3) // 4 * 4
            for _, value in attributes(body):
                assert value in body
    except ValueError:
        return
    assert told >= len(data)


@pytest.mark.parametrize(
    "damage",
    [
        struct.pack("=IHHII", 4000, 16, 0, 1, 0) + b"body",
        struct.pack("=IHHII", 0, 16, 0, 1, 0),
        struct.pack("=IHHII", 15, 16, 0, 1, 0),
        bytes(7),
    ],
)
def test_a_message_that_is_not_whole_is_damage_behind_those_that_are(damage: bytes) -> None:
    walk = messages(GOOD + damage)
    assert next(walk)[1] == b"body"
    with pytest.raises(ValueError, match="message"):
        next(walk)
    with pytest.raises(ValueError, match="message"):
        header_at(damage, 0)


@pytest.mark.parametrize("damage", [b"\x05\0\1\0", b"\x03\0\1\0", bytes(4), b"\x04\0\1"])
def test_an_attribute_that_is_not_whole_is_damage_behind_those_that_are(damage: bytes) -> None:
    walk = attributes(attribute(0x8003, b"lo\0") + damage)
    assert next(walk) == (3, b"lo\0")
    with pytest.raises(ValueError, match="attribute"):
        next(walk)


def test_the_last_of_each_may_lack_its_padding() -> None:
    assert [body for _, body in messages(netlink_message(16, b"b")[:17])] == [b"b"]
    assert list(attributes(attribute(7, b"v")[:5])) == [(7, b"v")]


def test_what_is_asked_is_read_as_it_was_meant() -> None:
    ((header, body),) = messages(dump_request(18, 23, bytes(4)))
    assert (header.kind, header.flags, header.sequence, header.port) == (18, 0x301, 23, 0)
    assert body == bytes(4)
    assert list(attributes(attribute(3, b"odd") + attribute(26, b"even"))) == [
        (3, b"odd"),
        (26, b"even"),
    ]


@pytest.mark.parametrize(
    ("said", "number"),
    [(-1, 1), (0, 0), (1, 0), (-4095, 4095), (-4096, 4095), (-(2**31), 4095), (2**31 - 1, 0)],
)
def test_an_error_is_one_that_the_kernel_has(said: int, number: int) -> None:
    assert error_number(struct.pack("=i", said) + b"what it is about") == number


def test_an_end_without_a_number_is_no_error() -> None:
    assert error_number(b"") == error_number(b"\xff\xff\xff") == 0
