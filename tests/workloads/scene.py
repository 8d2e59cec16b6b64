"""What a scene is made of: processes that talk to each other, and say what they moved."""

from __future__ import annotations

import ctypes
import json
import socket
import struct
import sys
import threading
from collections.abc import Callable

from tests.workloads import sharing
from tests.workloads.sharing import TIMEOUT_S, Child, Truth, receive

V4, V4_OTHER, V6, V6_OTHER = "127.0.0.1", "127.0.0.2", "::1", "fd00:203::7"
DISCARD = 9
"""A port that nobody listens on."""

calls: ctypes.PyDLL
"""calls.c, compiled: main() loads it."""


_WORD_BYTES = 1 << 16


class Note:
    """A word from one process to another."""

    def __init__(self) -> None:
        # Not a pipe: of those who wait for a word, each takes a whole one.
        self._reads, self._writes = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def fileno(self) -> int:
        """For select(): there is something to take."""
        return self._reads.fileno()

    def give(self, value: object = None) -> None:
        self._writes.send(json.dumps(value).encode())

    def take(self) -> object:
        value = json.loads(self._reads.recv(_WORD_BYTES))
        return tuple(value) if isinstance(value, list) else value


def endpoint(name: object) -> list[object]:
    """[address, port] as procnet tells it."""
    address, port = name[0], name[1]
    return [address.removeprefix("::ffff:"), port]


def moved(
    protocol: str, local: object, remote: object, sent: int = 0, received: int = 0
) -> dict[str, object]:
    entry = sharing.moved(protocol, local, remote, sent, received)
    del entry["local_port"], entry["remote_port"]
    return {**entry, "local": endpoint(local), "remote": endpoint(remote)}


def kernels(
    protocol: str, local: object, remote: object, sent: int = 0, received: int = 0
) -> dict[str, object]:
    """What no process moved."""
    return {**moved(protocol, local, remote, sent, received), "pid": None, "start_time_ticks": None}


def family_of(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def prepared(sock: socket.socket, host: str, port: int = 0) -> socket.socket:
    """Bound; it blocks, so that it can be handed to plain system calls, but not forever."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("qq", int(TIMEOUT_S), 0))
    if sock.family == socket.AF_INET6 and sock.type != socket.SOCK_RAW:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    if sock.type == socket.SOCK_STREAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    return sock


def udp(host: str, port: int = 0) -> socket.socket:
    return prepared(socket.socket(family_of(host), socket.SOCK_DGRAM), host, port)


def listener(host: str = V4, port: int = 0) -> socket.socket:
    sock = prepared(socket.socket(family_of(host), socket.SOCK_STREAM), host, port)
    sock.listen(64)
    return sock


def connected(address: object, port: int = 0) -> socket.socket:
    """A blocking connection to ``address``, from ``port``."""
    any_host = "::" if ":" in address[0] else "0.0.0.0"
    sock = prepared(socket.socket(family_of(address[0]), socket.SOCK_STREAM), any_host, port)
    sock.connect(address)
    return sock


def when_told() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def tcp_moved(sock: socket.socket, sent: int = 0, received: int = 0) -> dict[str, object]:
    return moved("tcp", sock.getsockname(), sock.getpeername(), sent, received)


Handler = Callable[[socket.socket], "dict[str, object]"]


def connection(serve: Handler, use: Handler, *hosts: str) -> Truth:
    """A process that accepts one connection, and one that connects."""
    bound_host, host = hosts or (V4, V4)
    where = Note()

    def server() -> Truth:
        listening = listener(bound_host)
        where.give([host, listening.getsockname()[1]])
        with listening.accept()[0] as sock:
            return [serve(sock)]

    def client() -> Truth:
        with connected(where.take()) as sock:
            return [use(sock)]

    children = [Child(server), Child(client)]
    return [entry for child in children for entry in child.truth()]


def exchange(mine: int, theirs: int) -> Handler:
    """Sends and receives at the same time."""

    def use(sock: socket.socket) -> dict[str, object]:
        sender = threading.Thread(target=sock.sendall, args=(bytes(mine),))
        sender.start()
        received = receive(sock, theirs)
        sender.join()
        return tcp_moved(sock, mine, received)

    return use


Send = Callable[[socket.socket, object], int]
Take = Callable[[socket.socket], int]


def datagrams(
    send: Send, take: Take, host: str = V4, bound_host: str = "", *, connect: bool = False
) -> Truth:
    """A process that sends, and one that receives and never answers."""
    sink_at, sender_at, ready = Note(), Note(), Note()

    def sink() -> Truth:
        with udp(bound_host or host) as sock:
            port = sock.getsockname()[1]
            sink_at.give([host, port])
            sender = sender_at.take()
            if connect:
                sock.connect(sender)
            ready.give()
            return [moved("udp", (host, port), sender, received=take(sock))]

    def sender() -> Truth:
        with udp(host) as sock:
            sender_at.give(sock.getsockname()[:2])
            target = sink_at.take()
            if connect:
                sock.connect(target)
            ready.take()
            return [moved("udp", sock.getsockname(), target, send(sock, target))]

    children = [Child(sink), Child(sender)]
    return [entry for child in children for entry in child.truth()]


def send_each(*sizes: int) -> Send:
    """Says each time where to."""
    return lambda sock, target: sum(sock.sendto(bytes(size), target) for size in sizes)


def send_connected(*sizes: int) -> Send:
    return lambda sock, _: sum(sock.send(bytes(size)) for size in sizes)


def take_each(number: int) -> Take:
    """Asks for the address each time."""
    return lambda sock: sum(len(sock.recvfrom(65535)[0]) for _ in range(number))


def take_blindly(number: int) -> Take:
    """Never asks for the address."""
    return lambda sock: sum(len(sock.recv(65535)) for _ in range(number))
