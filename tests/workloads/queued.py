"""What one process has sent still waits in a queueing discipline when the next one sends.

    python -m tests.workloads.queued PEER-NAMESPACE HOST-ADDRESS PEER-ADDRESS

In the top directory, in the host's namespace. The device between the two is slow: what is sent at
once leaves in a second or two. At the end one JSON object, each scene's name to its truth as in
scenarios.py. Sizes are primes and differ by actor.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
from collections.abc import Callable

from tests.workloads import scene
from tests.workloads.scene import (
    HOST,
    PEER,
    Child,
    Note,
    Truth,
    World,
    listener,
    moved,
    udp,
    wait_until_all_has_left,
    waiting_bytes,
)

SIZE, NEXT_SIZE, LAST_SIZE = 1009, 1013, 1019
NUMBER, NEXT_NUMBER, LAST_NUMBER = 20, 7, 3
LONG_NUMBER = 53
"""Takes longer than the time between two looks at the sockets."""


def here_and_there() -> tuple[str, str]:
    return scene.world.addresses["cable4"][HOST], scene.world.addresses["cable4"][PEER]


class Sink:
    """A process at the other end that takes datagrams, and answers each if it is to."""

    def __init__(self, number: int, *, answers: int = 0) -> None:
        where = Note()
        self._child = Child(lambda: self._take(where, number, answers), PEER)
        self.address = where.take()

    @staticmethod
    def _take(where: Note, number: int, answers: int) -> Truth:
        with udp(here_and_there()[1]) as sock:
            where.give(sock.getsockname())
            for count in range(number):
                _, sender = sock.recvfrom(65535)
                if count < answers:
                    sock.sendto(b"x" * 11, sender)
        return []

    def wait(self) -> None:
        self._child.truth()


def from_here(port: int = 0, *, to: object = None) -> socket.socket:
    """A socket of the host's address, connected if it is said where to."""
    sock = udp(here_and_there()[0], port)
    if to is not None:
        sock.connect(to)
    return sock


def send(sock: socket.socket, target: object, number: int, size: int) -> Truth:
    """So many datagrams, by a socket that is connected or not."""
    for _ in range(number):
        sock.sendto(bytes(size), target)
    return [moved("udp", sock.getsockname(), target, number * size)]


def one_socket(*, connect: bool) -> Truth:
    sink = Sink(NUMBER + NEXT_NUMBER + LAST_NUMBER)
    with from_here(to=sink.address if connect else None) as sock:
        truth = Child(lambda: send(sock, sink.address, NUMBER, SIZE)).truth()
        assert waiting_bytes(sock), "the device is not slow"
        truth += send(sock, sink.address, NEXT_NUMBER, NEXT_SIZE)
        wait_until_all_has_left(sock)
        truth += send(sock, sink.address, LAST_NUMBER, LAST_SIZE)
        sink.wait()
    return truth


def shared_connected() -> Truth:
    """A child sends by its parent's socket, then the parent does, and again when all has left."""
    return one_socket(connect=True)


def shared_unconnected() -> Truth:
    """The same by a socket that is not connected."""
    return one_socket(connect=False)


def handed_to_and_fro() -> Truth:
    """Two processes send by turns on one socket."""
    sink = Sink(2 * (NUMBER + NEXT_NUMBER))
    with from_here(to=sink.address) as sock:
        truth = []
        for _ in range(2):
            truth += Child(lambda: send(sock, sink.address, NUMBER, SIZE)).truth()
            truth += send(sock, sink.address, NEXT_NUMBER, NEXT_SIZE)
        sink.wait()
    return truth


def ended() -> Truth:
    """Who sent has ended, and another one has the socket open and never uses it."""
    sink = Sink(LONG_NUMBER)
    with from_here(to=sink.address) as sock:
        truth = Child(lambda: send(sock, sink.address, LONG_NUMBER, SIZE)).truth()
        sink.wait()
    return truth


def received_meanwhile() -> Truth:
    """Who has not sent takes an answer while the rest of the other's still waits."""
    sink = Sink(NUMBER, answers=1)
    with from_here(to=sink.address) as sock:
        truth = Child(lambda: send(sock, sink.address, NUMBER, SIZE)).truth()
        received = len(sock.recv(65535))
        assert waiting_bytes(sock), "the device is not slow"
        truth.append(moved("udp", sock.getsockname(), sink.address, 0, received))
        sink.wait()
    return truth


def port_taken_over(*, connect: bool) -> Truth:
    sink = Sink(NUMBER + NEXT_NUMBER + LAST_NUMBER)
    to = sink.address if connect else None
    port = Note()

    def first() -> Truth:
        with from_here(to=to) as sock:
            truth = send(sock, sink.address, NUMBER, SIZE)
            port.give(sock.getsockname()[1])
        return truth

    def second() -> Truth:
        with from_here(port.take(), to=to) as sock:
            truth = send(sock, sink.address, NEXT_NUMBER, NEXT_SIZE)
            wait_until_all_has_left(sock)
            truth += send(sock, sink.address, LAST_NUMBER, LAST_SIZE)
        return truth

    truth = Child(first).truth() + Child(second).truth()
    sink.wait()
    return truth


def port_taken_over_connected() -> Truth:
    """A socket is closed while its datagrams wait, and another process takes its port."""
    return port_taken_over(connect=True)


def port_taken_over_unconnected() -> Truth:
    """The same by sockets that are not connected."""
    return port_taken_over(connect=False)


def port_held_by_another() -> Truth:
    """A socket is closed while its datagrams wait; who takes its port then sends nothing."""
    sink = Sink(LONG_NUMBER)
    port = Note()

    def first() -> Truth:
        with from_here() as sock:
            truth = send(sock, sink.address, LONG_NUMBER, SIZE)
            port.give(sock.getsockname()[1])
        return truth

    truth = Child(first).truth()
    with from_here(port.take()):
        sink.wait()
    return truth


class StreamSink:
    """A process at the other end that takes connections, and all that comes by them."""

    def __init__(self, connections: int) -> None:
        where = Note()
        self._child = Child(lambda: self._take(where, connections), PEER)
        self.address = where.take()

    @staticmethod
    def _take(where: Note, connections: int) -> Truth:
        listening = listener(here_and_there()[1])
        where.give(listening.getsockname())
        for _ in range(connections):
            with listening.accept()[0] as sock:
                try:
                    while sock.recv(65536):
                        pass
                except ConnectionResetError:
                    pass
        return []

    def wait(self) -> None:
        self._child.truth()


def stream(port: int, to: object) -> socket.socket:
    """Like scene.connected(), from the host's address."""
    sock = scene.prepared(socket.socket(), here_and_there()[0], port)
    sock.connect(to)
    return sock


def write(sock: socket.socket, target: object, size: int) -> Truth:
    entry = moved("tcp", sock.getsockname(), target, size)
    sock.sendall(bytes(size))
    return [entry]


def connection() -> Truth:
    """A child writes to its parent's connection, then the parent does."""
    sink = StreamSink(1)
    with stream(0, sink.address) as sock:
        truth = Child(lambda: write(sock, sink.address, NUMBER * SIZE)).truth()
        truth += write(sock, sink.address, NEXT_NUMBER * NEXT_SIZE)
        wait_until_all_has_left(sock)
        truth += write(sock, sink.address, LAST_NUMBER * LAST_SIZE)
        entry = scene.tcp_moved(sock)
        sock.shutdown(socket.SHUT_WR)
        sink.wait()
        truth.append(scene.with_repeated(sock, entry))
    return truth


def reset_and_connected_again() -> Truth:
    """A connection is reset while its bytes wait; another process makes one of the same tuple."""
    sink = StreamSink(2)
    port = Note()

    def first() -> Truth:
        with stream(0, sink.address) as sock:
            truth = write(sock, sink.address, NEXT_NUMBER * SIZE)
            port.give(sock.getsockname()[1])
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return truth

    def second() -> Truth:
        with stream(port.take(), sink.address) as sock:
            truth = write(sock, sink.address, NEXT_NUMBER * NEXT_SIZE)
            wait_until_all_has_left(sock)
        return truth

    truth = Child(first).truth() + Child(second).truth()
    sink.wait()
    return truth


KINDS: tuple[Callable[[], Truth], ...] = (
    shared_connected,
    shared_unconnected,
    handed_to_and_fro,
    ended,
    received_meanwhile,
    port_taken_over_connected,
    port_taken_over_unconnected,
    port_held_by_another,
    connection,
    reset_and_connected_again,
)


def main() -> None:
    peer, *both = sys.argv[1:]
    scene.world = World(
        {PEER: peer}, {"cable4": dict(zip((HOST, PEER), both, strict=True))}, "", "", "", {}, 0.0
    )
    print(json.dumps({each.__name__: Child(each).truth() for each in KINDS}))


if __name__ == "__main__":
    main()
