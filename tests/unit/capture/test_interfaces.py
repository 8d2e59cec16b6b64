"""What rtnetlink says about the machine that the tests run on, and what hostile answers do."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procnet.capture import interfaces
from procnet.capture.interfaces import (
    InterfaceWatch,
    default_interfaces,
    list_interfaces,
    local_addresses,
    parse_messages,
)
from procnet.errors import CaptureError


def test_every_interface_of_this_namespace_is_listed_once() -> None:
    found = [(interface.index, interface.name) for interface in list_interfaces()]
    assert found == sorted(socket.if_nameindex())


def test_loopback_is_known_as_such() -> None:
    (loopback,) = [interface for interface in list_interfaces() if interface.name == "lo"]
    assert loopback.is_loopback
    assert loopback.mac == bytes(6)


def test_what_is_captured_by_default_is_up_and_ours() -> None:
    for interface in default_interfaces():
        assert interface.is_up
        assert interface.addresses or interface.is_loopback


def test_local_addresses_are_those_of_all_interfaces() -> None:
    every = {address for interface in list_interfaces() for address in interface.addresses}
    assert local_addresses() == every
    assert {len(address) for address in every} <= {4, 16}


def test_nothing_changes_unless_something_does() -> None:
    watch = InterfaceWatch()
    assert watch.fileno() >= 0
    watch.changed()
    assert not watch.changed()
    watch.close()
    watch.close()
    assert watch.fileno() == -1
    assert not watch.changed()


def test_a_kernel_that_refuses_is_a_capture_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(groups: int) -> socket.socket:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(interfaces, "_open", refuse)
    with pytest.raises(CaptureError, match=r"list network interfaces.*Permission denied"):
        list_interfaces()
    with pytest.raises(CaptureError, match=r"watch network interfaces.*Permission denied"):
        InterfaceWatch()


def test_an_error_that_no_kernel_knows_is_a_capture_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Netlink:
        def __init__(self, groups: int) -> None: ...
        def __enter__(self) -> Netlink:
            return self

        def __exit__(self, *exc_info: object) -> None: ...
        def settimeout(self, seconds: float) -> None: ...
        def sendto(self, request: bytes, address: tuple[int, int]) -> None: ...
        def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
            return struct.pack("=IHHIIi", 20, 2, 0, 1, 0, -(2**31)), (0, 0)

    monkeypatch.setattr(interfaces, "_open", Netlink)
    with pytest.raises(CaptureError, match="list network interfaces"):
        list_interfaces()


def link(index: int, flags: int, *attributes: tuple[int, bytes]) -> tuple[int, bytes]:
    body = struct.pack("=BxHiII", 0, 1, index, flags, 0)
    for kind, value in attributes:
        padded = value + bytes(-len(value) % 4)
        body += struct.pack("=HH", 4 + len(value), kind) + padded
    return 16, body


def address(index: int, *attributes: tuple[int, bytes]) -> tuple[int, bytes]:
    body = struct.pack("=BBBBI", 2, 24, 0, 0, index)
    for kind, value in attributes:
        body += struct.pack("=HH", 4 + len(value), kind) + value
    return 20, body


def test_the_far_end_of_a_tunnel_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs, mapped = b"\x0a\0\0\1", b"\x0a\0\0\2", bytes(10) + b"\xff\xff\x0a\0\0\3"
    answers = {
        18: [link(7, 0x1, (3, b"tun0\0")), link(3, 0x9, (3, b"lo\0"), (1, bytes(6)))],
        22: [address(7, (1, theirs), (2, ours)), address(7, (1, mapped)), address(7, (1, b"xyz"))],
    }
    monkeypatch.setattr(interfaces, "_dump", answers.__getitem__)
    loopback, tunnel = list_interfaces()
    assert (loopback.index, loopback.is_loopback, loopback.is_up) == (3, True, True)
    assert (tunnel.name, tunnel.mac) == ("tun0", b"")
    assert tunnel.addresses == {ours, b"\x0a\0\0\3"}


@given(st.binary(max_size=97))
def test_any_bytes_from_netlink_are_read_to_an_end(data: bytes) -> None:
    for _, _, body in parse_messages(data):
        list(interfaces._attributes(body, 4))


def test_a_message_that_claims_too_much_is_not_read() -> None:
    good = struct.pack("=IHHII", 20, 16, 0, 1, 0) + b"body"
    bad = struct.pack("=IHHII", 4000, 16, 0, 1, 0) + b"body"
    assert [body for _, _, body in parse_messages(good + bad)] == [b"body"]
    assert list(parse_messages(struct.pack("=IHHII", 0, 16, 0, 1, 0))) == []
