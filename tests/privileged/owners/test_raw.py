"""Who sends and receives ICMP and raw packets: what every family tells."""

from __future__ import annotations

import socket
import struct

import pytest

from procnet.model import ICMP, ICMP6, UDP
from procnet.testing import frames
from tests.privileged.owners.actors import (
    CLOSE,
    FAMILIES,
    INET,
    INET6,
    INJECT,
    LO,
    RECEIVE,
    SEND,
    Witness,
    inode,
    kinds,
    run,
    tuple_told,
    udp,
    who,
    who_told,
)
from tests.privileged.owners.gaps import Instead

ICMP_ID = 4711
EXPERIMENTAL = 253  # RFC 3692
ECHO = {INET: 8, INET6: 128}
PINGS = [
    pytest.param(INET, "127.0.0.1", ICMP, id="v4"),
    pytest.param(INET6, "::1", ICMP6, id="v6"),
]


@pytest.mark.parametrize(("family", "host", "protocol"), PINGS)
def test_ping_sockets(witness: Witness, family: int, host: str, protocol: int) -> None:
    def ping() -> tuple[int, int]:
        with socket.socket(family, socket.SOCK_DGRAM, protocol) as sock:
            sock.sendto(struct.pack("!BBHHH", ECHO[family], 0, 0, 0, 1), (host, 0))
            sock.recv(100)
            return inode(sock), sock.getsockname()[1]

    (number, icmp_id), pinger = run(ping, b"pinger")
    events = witness.of_inode(number)
    address = socket.inet_pton(family, host)
    received = [] if witness.gap("ping socket that receives") is Instead.NOTHING else [RECEIVE]
    assert kinds(events) == [SEND, *received, CLOSE]
    assert tuple_told(events[0]) == (witness.own_address(address), icmp_id, address, icmp_id)
    for event in events:
        assert who_told(event) == pinger
        assert (event.local_port, event.protocol) == (icmp_id, protocol)


@pytest.mark.parametrize(("family", "host", "protocol"), PINGS)
def test_pings_of_a_raw_socket(witness: Witness, family: int, host: str, protocol: int) -> None:
    def ping() -> int:
        with socket.socket(family, socket.SOCK_RAW, protocol) as sock:
            check = 0xFFFF - 0x0800 - ICMP_ID - 1 if family == INET else 0  # the kernel's for IPv6
            sock.sendto(struct.pack("!BBHHH", ECHO[family], 0, check, ICMP_ID, 1), (host, 0))
            sock.recv(100)
            return inode(sock)

    number, pinger = run(ping, b"pinger")
    events = witness.of_inode(number)
    (sent,) = witness.sends(number)
    address = socket.inet_pton(family, host)
    icmp_id = 0 if witness.gap("ICMP id of a raw socket") is Instead.NO_PORTS else ICMP_ID
    assert tuple_told(sent) == (witness.own_address(address), icmp_id, address, icmp_id)
    assert events[-1].kind is CLOSE
    # It gets copies of what others asked for, so that to receive claims no id.
    assert {event.local_port for event in events if event.kind is RECEIVE} <= {0}
    assert {(who_told(event), event.protocol) for event in events} == {(pinger, protocol)}


@pytest.mark.parametrize(("family", "host"), FAMILIES[:2])
def test_raw_sockets(witness: Witness, family: int, host: str) -> None:
    receiver = socket.socket(family, socket.SOCK_RAW, EXPERIMENTAL)

    def shoot() -> int:
        with socket.socket(family, socket.SOCK_RAW, EXPERIMENTAL) as sock:
            sock.sendto(b"x" * 101, (host, 0))
            return inode(sock)

    number, shooter = run(shoot, b"shooter")
    receiver.recv(1000)
    sent, closed = witness.of_inode(number)
    address = socket.inet_pton(family, host)
    assert kinds([sent, closed]) == [SEND, CLOSE]
    assert who_told(sent) == shooter
    assert sent.protocol == EXPERIMENTAL
    assert tuple_told(sent) == (witness.own_address(address), 0, address, 0)
    nothing = witness.gap("raw socket that receives") is Instead.NOTHING
    received = witness.of(receiver)
    assert kinds(received) == [] if nothing else [RECEIVE]
    for event in received:
        assert (who_told(event), event.protocol) == (who(), EXPERIMENTAL)
    receiver.close()


def test_a_header_of_one_s_own(witness: Witness) -> None:
    sink = udp(bound="127.0.0.1")
    port = sink.getsockname()[1]

    def forge() -> int:
        with socket.socket(INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
            # With an option (two no-operations and an end), so that the ports are not at 20.
            header = struct.pack(
                "!BBHHHBBH4s4s4s", 0x46, 0, 33, 7, 0, 64, UDP, 0, LO, LO, b"\1\1\0"
            )
            sock.sendto(header + struct.pack("!HHHH", 4712, port, 9, 0) + b"x", ("127.0.0.1", 0))
            return inode(sock)

    number, forger = run(forge, b"forger")
    (sent,) = witness.sends(number)
    assert who_told(sent) == forger
    if witness.gap("header of one's own") is Instead.NO_PORTS:
        assert sent.protocol == socket.IPPROTO_RAW
        assert tuple_told(sent) == (witness.own_address(LO), 0, LO, 0)
    else:
        assert sent.protocol == UDP
        assert tuple_told(sent) == (LO, 4712, LO, port)
    sink.close()


@pytest.mark.parametrize("vlan_tags", [0, 2])
def test_a_frame_of_ones_own_making(witness: Witness, vlan_tags: int) -> None:
    """No socket has its five-tuple; AF_PACKET sends whatever it is given."""
    packet = frames.ipv4(frames.udp(b"x" * 101, 4001, 4003), "10.9.8.7", "10.9.8.6", UDP)
    for _ in range(vlan_tags):
        packet = frames.vlan(packet, 7, ethertype=0x8100 if packet[0] == 0 else None)
    frame = frames.ethernet(packet, ethertype=0x8100 if vlan_tags else None)

    def inject() -> int:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind(("lo", 0))
            for _ in range(23):
                sock.send(frame)
            return inode(sock)

    number, injector = run(inject, b"injector")
    events = witness.of_inode(number)
    if witness.gap("injected frame") is Instead.NOTHING:
        assert events == []
        return
    # Once in 10 ms.
    assert 1 <= len(events) <= 23
    for event in events:
        assert (event.kind, event.protocol) == (INJECT, UDP)
        assert who_told(event) == injector
        assert tuple_told(event) == (
            socket.inet_aton("10.9.8.7"), 4001, socket.inet_aton("10.9.8.6"), 4003,
        )  # fmt: skip
