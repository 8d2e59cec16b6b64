"""The kinds of traffic on UDP, over loopback: both ends are there to be told."""

from __future__ import annotations

import select
import socket
import struct

from tests.workloads import scene
from tests.workloads.scene import (
    DISCARD,
    V4,
    V4_OTHER,
    V6,
    Child,
    Moved,
    Note,
    Truth,
    Way,
    datagrams,
    kernels,
    moved,
    on_wire,
    prepared,
    send_connected,
    send_each,
    take_blindly,
    take_each,
    together,
    udp,
)

GROUP = "239.203.0.1"
ON_V6 = Way(server_address=V6, client_address=V6)
MAPPED = Way(
    server_address="::ffff:127.0.0.1", client_address="::ffff:127.0.0.1", bound_address="::"
)
FRAGMENT_BYTES = 1500
"""The MTU of every device of the laboratory."""


def udp_connected() -> Truth:
    return datagrams(send_connected(101, 103, 107), take_blindly(3), connect=True)


def udp_unconnected_v6() -> Truth:
    return datagrams(send_each(109, 113), take_each(2), ON_V6)


def udp_received_blindly() -> Truth:
    return datagrams(send_each(127, 131, 137), take_blindly(3))


def udp_v4_mapped() -> Truth:
    return datagrams(send_each(139, 149), take_each(2), MAPPED)


def many_in_one_call() -> Truth:
    """sendmmsg() and recvmmsg(): 11 datagrams of 307 bytes and more."""
    size = sum(range(307, 307 + 11))

    def send(sock: socket.socket, _: object) -> int:
        assert scene.calls.send_many(sock.fileno(), 11, 307) == 11
        return size

    return datagrams(
        send, lambda sock: int(scene.calls.receive_many(sock.fileno(), 11)), connect=True
    )


def fragmented(entry: Moved, headers_bytes: int) -> Moved:
    """Of one datagram: all fragments but the last one carry a multiple of 8 bytes."""
    size = 8 + max(entry["sent"], entry["received"])
    packets = -(-size // ((FRAGMENT_BYTES - headers_bytes) // 8 * 8))
    wire_bytes = size + packets * headers_bytes
    return on_wire(entry, *(wire_bytes if entry[side] else 0 for side in ("sent", "received")))


def fragmented_v4() -> Truth:
    """A datagram of 60 kB, in 41 pieces."""
    return [fragmented(entry, 20) for entry in datagrams(send_each(60_013), take_each(1))]


def fragmented_v6() -> Truth:
    return [fragmented(entry, 48) for entry in datagrams(send_each(60_017), take_each(1), ON_V6)]


def reuseport_blind() -> Truth:
    """Workers with a socket each on one port, who do not ask who sent."""
    number = 3
    ready, port, end = Note(), Note(), Note()

    def worker(first: bool) -> Truth:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        prepared(sock, V4, 0 if first else port.take())
        if first:
            for _ in range(number - 1):
                port.give(sock.getsockname()[1])
        ready.give(sock.getsockname()[1])
        truth: Truth = []
        while sock in select.select([sock, end], [], [])[0]:
            data = sock.recv(65535)
            # The datagram itself says who sent it.
            (sender,) = struct.unpack_from("!H", data)
            truth.append(moved("udp", sock.getsockname(), (V4, sender), received=len(data)))
        end.take()
        return truth

    workers = [Child(lambda first=index == 0: worker(first)) for index in range(number)]
    target = (V4, {ready.take() for _ in range(number)}.pop())

    def send_all() -> Truth:
        truth: Truth = []
        held = []
        for size in (151, 157, 163, 167, 173, 179, 181, 191):
            sock = udp(V4)
            held.append(sock)
            here = sock.getsockname()
            sock.sendto(struct.pack("!H", here[1]) + bytes(size - 2), target)
            truth.append(moved("udp", here, target, size))
        return truth

    truth = Child(send_all).truth()
    for _ in workers:
        end.give()
    return truth + together(*workers)


def multicast() -> Truth:
    """A sender and two receivers of one group: the packet is one, and goes to both."""
    port, ready = Note(), Note()

    def member(first: bool) -> Truth:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        prepared(sock, GROUP, 0 if first else port.take())
        if first:
            port.give(sock.getsockname()[1])
        group = socket.inet_aton(GROUP) + socket.inet_aton(V4)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        ready.give(sock.getsockname()[1])
        received, sender = 0, None
        for _ in range(3):
            data, sender = sock.recvfrom(65535)
            received += len(data)
        return [moved("udp", sock.getsockname(), sender, received=received)]

    members = [Child(lambda first=first: member(first)) for first in (True, False)]
    target = (GROUP, [ready.take(), ready.take()][0])

    def send() -> Truth:
        with udp(V4) as sock:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(V4))
            sent = send_each(193, 197, 199)(sock, target)
            return [moved("udp", sock.getsockname(), target, sent)]

    truth = Child(send).truth()
    # Of both, and once on the wire.
    return truth + [{**entry, "shared": True} for entry in together(*members)]


def group_member() -> Truth:
    """A sender, and one receiver of a group."""
    at = Note()

    def member() -> Truth:
        with prepared(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), GROUP) as sock:
            group = socket.inet_aton(GROUP) + socket.inet_aton(V4)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
            at.give(sock.getsockname())
            data, sender = sock.recvfrom(65535)
            return [moved("udp", sock.getsockname(), sender, received=len(data))]

    def send() -> Truth:
        target = at.take()
        with udp(V4) as sock:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(V4))
            return [moved("udp", sock.getsockname(), target, sock.sendto(bytes(577), target))]

    return together(Child(member), Child(send))


def unreachable() -> Truth:
    """A datagram that nobody takes: the kernel answers with the first of it in ICMP."""

    def send() -> Truth:
        with udp(V4) as sock:
            here, there = sock.getsockname(), (V4_OTHER, DISCARD)
            sock.connect(there)
            sock.send(bytes(211))
            try:
                sock.recv(1)
            except ConnectionRefusedError:
                answer = 20 + 8 + 211
                return [
                    moved("udp", here, there, 211),
                    kernels("udp", there, here, received=211),
                    on_wire(kernels("icmp", (V4_OTHER, 0), (V4, 0), answer), 28 + answer, 0),
                    on_wire(kernels("icmp", (V4, 0), (V4_OTHER, 0), 0, answer), 0, 28 + answer),
                ]
            raise AssertionError("somebody took it")

    return Child(send).truth()


KINDS = (
    udp_connected,
    udp_unconnected_v6,
    udp_received_blindly,
    udp_v4_mapped,
    many_in_one_call,
    fragmented_v4,
    fragmented_v6,
    reuseport_blind,
    group_member,
    multicast,
    unreachable,
)
