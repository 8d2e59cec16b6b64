"""What rtnetlink says about the machine that the tests run on, and what hostile answers do."""

from __future__ import annotations

import socket
import struct

import pytest

from procnet.capture import interfaces
from procnet.capture.interfaces import (
    InterfaceWatch,
    default_interfaces,
    list_interfaces,
    local_addresses,
)
from procnet.errors import CaptureError
from tests.unit.sockets.netlink import done, netlink_message


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


class Answering:
    """An rtnetlink that answers each request with the same datagram."""

    def __init__(self, datagram: bytes) -> None:
        self._datagram = datagram

    def __call__(self, groups: int) -> Answering:
        return self

    def __enter__(self) -> Answering:
        return self

    def __exit__(self, *exc_info: object) -> None: ...
    def settimeout(self, seconds: float) -> None: ...
    def sendto(self, request: bytes, address: tuple[int, int]) -> None: ...
    def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
        return self._datagram, (0, 0)


def test_an_error_that_no_kernel_knows_is_a_capture_error(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = struct.pack("=IHHIIi", 20, 2, 0, 1, 0, -(2**31))
    monkeypatch.setattr(interfaces, "_open", Answering(refusal))
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


LO = netlink_message(*link(1, 0x9, (3, b"lo\0")))


def test_what_comes_before_the_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces, "_open", Answering(LO + done()))
    assert [each.name for each in list_interfaces()] == ["lo"]


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (LO + struct.pack("=IHHII", 4000, 16, 0, 1, 0) + done(), "message of an impossible length"),
        (
            LO + netlink_message(16, bytes(16) + b"\xff\0\3\0") + done(),
            "attribute of an impossible",
        ),
        (LO + netlink_message(16, bytes(15)) + done(), "at least 16 bytes"),
        (LO + done(12), "Cannot allocate memory"),
        (LO + netlink_message(2, struct.pack("=i", -16)), "Device or resource busy"),
    ],
    ids=["message", "attribute", "short", "error at the end", "error"],
)
def test_what_is_damaged_or_broken_off_is_no_list(
    datagram: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interfaces, "_open", Answering(datagram))
    with pytest.raises(CaptureError, match=f"list network interfaces.*{reason}"):
        list_interfaces()
