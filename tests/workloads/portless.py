"""The kinds of traffic that have no ports to procnet: ICMP echo, raw sockets, SCTP."""

from __future__ import annotations

import os
import socket
import struct

from tests.workloads import scene
from tests.workloads.scene import (
    V4_OTHER,
    V6,
    V6_OTHER,
    Child,
    Note,
    Truth,
    Way,
    dwelling,
    family_of,
    kernels,
    moved,
    on_wire,
    prepared,
    receive,
    together,
    trying,
    up,
)

OTHER = Way(server_address=V4_OTHER)
OTHER_V6 = Way(server_address=V6_OTHER, client_address=V6)
_ICMP_BYTES = 8


def ping(size: int, kind: int, by: Way) -> Truth:
    """An echo request from the client to the server, where the kernel answers."""
    host, other = by.client_address, by.server_address
    v6 = ":" in host
    protocol, name = (58, "icmp6") if v6 else (1, "icmp")
    asks, answers = (128, 129) if v6 else (8, 0)
    headers_bytes = (40 if v6 else 20) + _ICMP_BYTES

    def call() -> Truth:
        sock = prepared(socket.socket(family_of(host), kind, protocol), host)
        echo_id = sock.getsockname()[1] if kind == socket.SOCK_DGRAM else os.getpid() & 0xFFFF
        request = struct.pack("!BBHHH", asks, 0, 0, echo_id, 1) + bytes(size)
        if not v6:
            request = request[:2] + struct.pack("!H", checksum(request)) + request[4:]
        sock.sendto(request, (other, 0))
        here, there = (host, echo_id), (other, echo_id)
        while True:
            data = sock.recv(65535)
            if kind == socket.SOCK_RAW and not v6:
                data = data[(data[0] & 15) * 4 :]
            if data[0] == answers and data[4:6] == request[4:6]:
                break
        received = len(data) - _ICMP_BYTES
        on_each = headers_bytes + size, headers_bytes + received
        answerer = {**kernels(name, there, here, received, size), "place": by.server}
        asker = moved(name, here, there, size, received)
        return dwelling([on_wire(asker, *on_each), on_wire(answerer, *reversed(on_each))])

    return Child(call, by.client).truth()


def checksum(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def ping_socket_v4() -> Truth:
    return ping(257, socket.SOCK_DGRAM, OTHER)


def ping_socket_v6() -> Truth:
    return ping(263, socket.SOCK_DGRAM, OTHER_V6)


def raw_echo_v4() -> Truth:
    return ping(269, socket.SOCK_RAW, OTHER)


def raw_echo_v6() -> Truth:
    return ping(271, socket.SOCK_RAW, OTHER_V6)


def cable_ping_socket() -> Truth:
    return ping(1013, socket.SOCK_DGRAM, up("cable4"))


def cable_ping_socket_v6() -> Truth:
    return ping(1019, socket.SOCK_DGRAM, up("cable6"))


def cable_raw_echo() -> Truth:
    return ping(1021, socket.SOCK_RAW, up("cable4"))


def cable_raw_echo_v6() -> Truth:
    return ping(1031, socket.SOCK_RAW, up("cable6"))


def pinged() -> Truth:
    """The peer asks, and the kernel answers: no process of the host's does."""
    return ping(1033, socket.SOCK_DGRAM, scene.down("cable4"))


# -- raw sockets ------------------------------------------------------------------------------


def raw_253() -> Truth:
    """A protocol that the kernel does not know (RFC 3692: for experiments)."""
    return raw(277, OTHER)


def cable_raw_253() -> Truth:
    """The same to the peer, and from it."""
    return raw(281, up("cable4")) + raw(283, scene.down("cable4"))


def raw(size: int, by: Way) -> Truth:
    ready = Note()
    here, there = (by.client_address, 0), (by.server_address, 0)

    def take() -> Truth:
        with raw_socket(by.server_address) as sock:
            ready.give()
            received = len(sock.recv(65535)) - 20
            entry = moved("ip-253", there, here, received=received)
            return dwelling([on_wire(entry, 0, 20 + received)])

    def send() -> Truth:
        with raw_socket(by.client_address) as sock:
            ready.take()
            sent = sock.sendto(bytes(size), there)
            return dwelling([on_wire(moved("ip-253", here, there, sent), 20 + sent, 0)])

    return together(Child(take, by.server), Child(send, by.client))


def raw_socket(host: str) -> socket.socket:
    return prepared(socket.socket(socket.AF_INET, socket.SOCK_RAW, 253), host)


# -- SCTP -------------------------------------------------------------------------------------


def sctp() -> Truth:
    """An association over loopback, counted by addresses."""
    return associated(OTHER)


def cable_sctp() -> Truth:
    return associated(up("cable4"))


def associated(by: Way) -> Truth:
    """What a process moved is all of what is above IP: chunks of the kernel's own, too."""
    with trying("socket(AF_INET, SOCK_STREAM, IPPROTO_SCTP)"):
        sctp_socket().close()
    where = Note()

    def server() -> Truth:
        with prepared(sctp_socket(), by.server_address) as listening:
            listening.listen(1)
            where.give(listening.getsockname())
            with listening.accept()[0] as sock:
                assert receive(sock, 10_007) == 10_007
                sock.sendall(bytes(997))
                assert sock.recv(1) == b""
        return [by_witness(by.server_address, by.client_address)]

    def client() -> Truth:
        with prepared(sctp_socket(), by.client_address) as sock:
            sock.connect(where.take())
            sock.sendall(bytes(10_007))
            assert receive(sock, 997) == 997
        return [by_witness(by.client_address, by.server_address)]

    return together(Child(server, by.server), Child(client, by.client))


def by_witness(local: str, remote: str) -> dict[str, object]:
    return {**moved("sctp", (local, 0), (remote, 0)), "by_witness": True}


def sctp_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP)


KINDS = (
    ping_socket_v4,
    ping_socket_v6,
    raw_echo_v4,
    raw_echo_v6,
    cable_ping_socket,
    cable_ping_socket_v6,
    cable_raw_echo,
    cable_raw_echo_v6,
    pinged,
    raw_253,
    cable_raw_253,
    sctp,
    cable_sctp,
)
