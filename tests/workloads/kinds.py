"""One small scene for each kind of traffic, whose processes say themselves what they moved.

    python -m tests.workloads.kinds CALLS.SO KIND…     (in the top directory)

Traffic stays on loopback (addresses of 127.0.0.0/8, ::1 and fd00:203::7, which must be there; its
MTU should be 1500, so that datagrams are fragmented). At the end one JSON object, KIND to an array
of ``{"pid", "start_time_ticks", "protocol", "local", "remote", "sent", "received"}``: payload
bytes of one process on one flow, endpoints as [address, port]. ``pid`` is null where no process
moved them: the kernel did. Sizes are primes and differ by actor. A kind that failed has a string
instead. The kinds of HELD print ``ready``, and go on when they read a line. Standard library only.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable

from tests.workloads import scene, streams
from tests.workloads.scene import (
    DISCARD,
    V4,
    V4_OTHER,
    V6,
    V6_OTHER,
    Note,
    connected,
    datagrams,
    family_of,
    kernels,
    listener,
    moved,
    prepared,
    send_connected,
    send_each,
    take_blindly,
    take_each,
    tcp_moved,
    udp,
    when_told,
)
from tests.workloads.sharing import Child, Truth, receive

GROUP = "239.203.0.1"

# -- UDP --------------------------------------------------------------------------------------


def udp_connected() -> Truth:
    return datagrams(send_connected(101, 103, 107), take_blindly(3), connect=True)


def udp_unconnected_v6() -> Truth:
    return datagrams(send_each(109, 113), take_each(2), V6)


def udp_received_blindly() -> Truth:
    return datagrams(send_each(127, 131, 137), take_blindly(3))


def udp_v4_mapped() -> Truth:
    return datagrams(send_each(139, 149), take_each(2), "::ffff:127.0.0.1", "::")


def many_in_one_call() -> Truth:
    """sendmmsg() and recvmmsg(): 11 datagrams of 307 bytes and more."""
    size = sum(range(307, 307 + 11))

    def send(sock: socket.socket, _: object) -> int:
        assert scene.calls.send_many(sock.fileno(), 11, 307) == 11
        return size

    return datagrams(
        send, lambda sock: int(scene.calls.receive_many(sock.fileno(), 11)), connect=True
    )


def fragmented_v4() -> Truth:
    return datagrams(send_each(60_013), take_each(1))


def fragmented_v6() -> Truth:
    return datagrams(send_each(60_017), take_each(1), V6)


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
    for each in workers:
        truth += each.truth()
    return truth


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
    for each in members:
        truth += each.truth()
    return truth


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
                    kernels("icmp", (V4_OTHER, 0), (V4, 0), sent=answer),
                    kernels("icmp", (V4, 0), (V4_OTHER, 0), received=answer),
                ]
            raise AssertionError("somebody took it")

    return Child(send).truth()


def same_tuple() -> Truth:
    """Fixed ports: in two namespaces at once, these are the same five-tuples."""
    when_told()

    def sink() -> Truth:
        with udp(V4, 20_011) as sock:
            ready.give()
            received = take_each(11)(sock)
            return [moved("udp", sock.getsockname(), (V4, 20_021), received=received)]

    def sender() -> Truth:
        with udp(V4, 20_021) as sock:
            ready.take()
            for _ in range(11):
                sock.sendto(bytes(223), (V4, 20_011))
                time.sleep(0.02)
            return [moved("udp", sock.getsockname(), (V4, 20_011), 11 * 223)]

    def server() -> Truth:
        with listener(V4, 20_023) as listening:
            ready.give()
            with listening.accept()[0] as sock:
                return [tcp_moved(sock, received=receive(sock, 5003))]

    def client() -> Truth:
        ready.take()
        with connected((V4, 20_023), 20_029) as sock:
            for size in (2003, 3000):
                sock.sendall(bytes(size))
                time.sleep(0.02)
            return [tcp_moved(sock, 5003)]

    truth: Truth = []
    for takes, gives in ((sink, sender), (server, client)):
        ready = Note()
        taker = Child(takes)
        truth += Child(gives).truth() + taker.truth()
    return truth


def older_udp() -> Truth:
    """Sockets from before: connected, not connected, and one that only receives."""
    truth: Truth = []
    waiting = []
    there = Note()
    for sizes, connect, take in (
        ((227, 229), True, take_blindly(2)),
        ((233, 239), False, take_each(2)),
        ((241, 251), False, take_blindly(2)),
    ):
        go = Note()

        def send(sock: socket.socket, target: object, go: Note = go, sizes: object = sizes) -> int:
            there.give()
            go.take()
            return send_each(*sizes)(sock, target)

        waiting.append((go, Child(lambda s=send, t=take, c=connect: datagrams(s, t, connect=c))))
    for _ in waiting:
        there.take()
    when_told()
    for go, child in waiting:
        go.give()
        truth += child.truth()
    return truth


# -- what has no ports ------------------------------------------------------------------------


def ping(host: str, other: str, size: int, kind: int) -> Truth:
    """An echo request from ``host`` to ``other``; the kernel answers there."""
    v6 = ":" in host
    protocol, name = (58, "icmp6") if v6 else (1, "icmp")
    asks, answers = (128, 129) if v6 else (8, 0)

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
        received = len(data) - 8
        return [
            moved(name, here, there, size, received),
            kernels(name, there, here, received, size),
        ]

    return Child(call).truth()


def checksum(data: bytes) -> int:
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def ping_socket_v4() -> Truth:
    return ping(V4, V4_OTHER, 257, socket.SOCK_DGRAM)


def ping_socket_v6() -> Truth:
    return ping(V6, V6_OTHER, 263, socket.SOCK_DGRAM)


def raw_echo_v4() -> Truth:
    return ping(V4, V4_OTHER, 269, socket.SOCK_RAW)


def raw_echo_v6() -> Truth:
    return ping(V6, V6_OTHER, 271, socket.SOCK_RAW)


def raw_253() -> Truth:
    """A protocol that the kernel does not know (RFC 3692: for experiments)."""
    ready = Note()

    def take() -> Truth:
        with raw(V4_OTHER) as sock:
            ready.give()
            data = sock.recv(65535)
            return [moved("ip-253", (V4_OTHER, 0), (V4, 0), received=len(data) - 20)]

    def send() -> Truth:
        with raw(V4) as sock:
            ready.take()
            return [moved("ip-253", (V4, 0), (V4_OTHER, 0), sock.sendto(bytes(277), (V4_OTHER, 0)))]

    children = [Child(take), Child(send)]
    return [entry for child in children for entry in child.truth()]


def raw(host: str) -> socket.socket:
    return prepared(socket.socket(socket.AF_INET, socket.SOCK_RAW, 253), host)


# -- processes --------------------------------------------------------------------------------


def pid_reused() -> Truth:
    """A process, and after its end another one with its pid, on the same port."""
    target = udp(V4)
    with udp(V4) as free:
        port = free.getsockname()[1]

    def send(number: int, size: int) -> Truth:
        with udp(V4, port) as sock:
            for _ in range(number):
                sock.sendto(bytes(size), target.getsockname())
            return [moved("udp", sock.getsockname(), target.getsockname(), number * size)]

    first = Child(lambda: send(3, 281))
    truth = first.truth()
    time.sleep(0.03)  # start times are told in ticks of 10 ms
    truth += Child(lambda: send(5, 283), lambda: forked_as(first.pid)).truth()
    received = sum(len(target.recv(65535)) for _ in range(8))
    return [*truth, moved("udp", target.getsockname(), (V4, port), received=received)]


def forked_as(pid: int) -> int:
    made = int(scene.calls.fork_as(pid))
    if made < 0:
        raise OSError(f"pid {pid} cannot be had again")
    return made


def threads_socket() -> Truth:
    """A thread that is not the first one of its process sends."""
    sent = []

    def send(sock: socket.socket, target: object) -> int:
        thread = threading.Thread(target=lambda: sent.append(sock.sendto(bytes(293), target)))
        thread.start()
        thread.join()
        return sent[0]

    return datagrams(send, take_each(1))


HOSTILE_NAME = "\x1b[2J\r\n\x07\u202ea"
"""Clears the screen, begins a line, rings, and turns the direction of what follows."""


def renamed() -> Truth:
    """A process with a name that is meant for the terminal of whoever reads it."""

    def send(sock: socket.socket, target: object) -> int:
        with open("/proc/self/comm", "w", encoding="utf-8") as name:
            name.write(HOSTILE_NAME)
        return sock.sendto(bytes(307), target)

    return datagrams(send, take_each(1))


def bystander() -> Truth:
    """Moves nothing, and has sockets open that get copies of what others do."""
    kinds = [(socket.AF_INET, protocol) for protocol in (1, 2, 6, 17)]
    held = [socket.socket(family, socket.SOCK_RAW, protocol) for family, protocol in kinds]
    held.append(socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58))
    held.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
    when_told()
    return [moved("none", (V4, 0), (V4, 0))]


HELD = {each.__name__: each for each in (bystander, older_udp, same_tuple, streams.never_accepted)}
KINDS = {
    each.__name__: each
    for each in (
        *streams.KINDS,
        udp_connected,
        udp_unconnected_v6,
        udp_received_blindly,
        udp_v4_mapped,
        many_in_one_call,
        fragmented_v4,
        fragmented_v6,
        reuseport_blind,
        multicast,
        unreachable,
        ping_socket_v4,
        ping_socket_v6,
        raw_echo_v4,
        raw_echo_v6,
        raw_253,
        pid_reused,
        threads_socket,
        renamed,
    )
}


def perform(kind: Callable[[], Truth]) -> Truth | str:
    """A kind's truth, or what went wrong."""
    try:
        return kind()
    except Exception:
        return traceback.format_exc()


def main() -> None:
    scene.calls = ctypes.PyDLL(sys.argv[1])
    told = {}
    for name in sys.argv[2:]:
        child = Child(lambda name=name: [perform({**KINDS, **HELD}[name])])
        (told[name],) = child.truth()
    print(json.dumps(told))


if __name__ == "__main__":
    main()
