"""What a scene is made of: processes that talk to each other, and say what they moved."""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import socket
import struct
import termios
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.workloads.traffic import tcp_info

V4, V4_OTHER, V6, V6_OTHER = "127.0.0.1", "127.0.0.2", "::1", "fd00:203::7"
DISCARD = 9
"""A port that nobody listens on."""
HOST, PEER, INNER = "host", "peer", "inner"
"""The namespaces: the one that is watched, the other end of its cables, one behind the first."""
TIMEOUT_S = 100.0
"""A socket that is older than the monitor waits until all other scenes are played, in an emulated
machine too."""
_WORD_BYTES = 4096
_POLL_S, _PATIENCE_S = 0.005, 20.0
_SO_RCVBUFFORCE = 33
_CLONE_NEWNET = 0x40000000

Truth = list[dict[str, object]]
Moved = dict[str, object]


class World(NamedTuple):
    """Where a scene may play.

    ``namespaces``: name to path. ``addresses``: the way (``cable4``, ``cable6``, ``tag``, ``tun``)
    to the namespaces at its ends, each to its address. ``device`` of the cable, with its MAC.
    """

    namespaces: dict[str, str]
    addresses: dict[str, dict[str, str]]
    device: str
    mac: str
    short_lived: str
    """The program of short_lived.c."""
    missing: dict[str, str]
    """Ways that cannot be had here, and why."""
    dwell_s: float
    """How long who has moved all there was stays, with its sockets open: for those who look."""


calls: ctypes.PyDLL
"""calls.c, compiled; like the world it is set by who plays the scenes."""
world = World({}, {}, "", "", "", {}, 0.0)


class NotHere(Exception):
    """This kernel has not what the scene takes, as trying has shown."""


@contextlib.contextmanager
def trying(what: str) -> Iterator[None]:
    """A kernel that does not know it says so in one of these words; all else is a failure."""
    unknown = (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.ENOSYS, errno.EAFNOSUPPORT)
    try:
        yield
    except OSError as error:
        if error.errno not in unknown:
            raise
        raise NotHere(f"{what}: {error.strerror}") from error


class Note:
    """A word from one process to another."""

    def __init__(self) -> None:
        # Not a Unix socket, by which a process may get the sockets of others. Of those who wait at
        # this kind of pipe, each takes a whole word (pipe(2), O_DIRECT).
        reads, writes = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
        os.set_blocking(reads, False)
        self._reads, self._writes = os.fdopen(reads, "rb", 0), os.fdopen(writes, "wb", 0)

    def fileno(self) -> int:
        """For select(): there is something to take."""
        return self._reads.fileno()

    def give(self, value: object = None) -> None:
        self._writes.write(json.dumps(value).encode())

    def take(self) -> object:
        deadline_s = time.monotonic() + 3 * TIMEOUT_S
        while (word := self._reads.read(_WORD_BYTES)) is None:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"no word in {3 * TIMEOUT_S:g} s")
            select.select([self._reads], [], [], 1.0)
        value = json.loads(word)
        return tuple(value) if isinstance(value, list) else value


class Child:
    """A forked process that does something, in a namespace, and tells what it moved."""

    def __init__(
        self, work: Callable[[], Truth], place: str = HOST, fork: Callable[[], int] = os.fork
    ) -> None:
        self._told, telling = os.pipe()
        self.pid = fork()
        if self.pid == 0:
            status = 1
            try:
                if place != HOST:
                    enter(place)
                with os.fdopen(telling, "w") as pipe:
                    json.dump(work(), pipe)
                status = 0
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                os._exit(status)
        os.close(telling)

    def truth(self) -> Truth:
        with os.fdopen(self._told) as pipe:
            told: Truth = json.load(pipe)
        os.waitpid(self.pid, 0)
        return told


def dwelling(truth: Truth) -> Truth:
    time.sleep(world.dwell_s)
    return truth


def together(*children: Child) -> Truth:
    return [entry for child in children for entry in child.truth()]


here = HOST
"""The namespace that this process is in."""


def enter(place: str) -> None:
    global here
    with open(world.namespaces[place], "rb") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns: {place}")
    here = place


def start_time_ticks(pid: int | str = "self") -> int:
    """Field 22; the name in field 2 may contain blanks and brackets."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])


def endpoint(name: object) -> list[object]:
    """[address, port] as procnet tells it."""
    address, port = name[0], name[1]
    return [address.removeprefix("::ffff:"), port]


def moved(protocol: str, local: object, remote: object, sent: int = 0, received: int = 0) -> Moved:
    """What this process moved on a flow, payload bytes."""
    return {
        "place": here,
        "pid": os.getpid(),
        "start_time_ticks": start_time_ticks(),
        "protocol": protocol,
        "local": endpoint(local),
        "remote": endpoint(remote),
        "sent": sent,
        "received": received,
    }


def kernels(
    protocol: str, local: object, remote: object, sent: int = 0, received: int = 0
) -> Moved:
    """What no process moved."""
    return {**moved(protocol, local, remote, sent, received), "pid": None, "start_time_ticks": None}


def on_wire(entry: Moved, sent_bytes: int, received_bytes: int) -> Moved:
    """With its wire bytes, where a witness that counts by ports cannot tell them."""
    return {**entry, "wire": [sent_bytes, received_bytes]}


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


def udp(host: str = V4, port: int = 0) -> socket.socket:
    """With room for all that comes before anybody reads."""
    sock = socket.socket(family_of(host), socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 8 << 20)
    return prepared(sock, host, port)


def listener(host: str = V4, port: int = 0) -> socket.socket:
    sock = prepared(socket.socket(family_of(host), socket.SOCK_STREAM), host, port)
    sock.listen(128)
    return sock


def connected(address: object, port: int = 0) -> socket.socket:
    """A blocking connection to ``address``, from ``port``."""
    any_host = "::" if ":" in address[0] else "0.0.0.0"
    sock = prepared(socket.socket(family_of(address[0]), socket.SOCK_STREAM), any_host, port)
    sock.connect(address)
    return sock


def receive(sock: socket.socket, size: int) -> int:
    """Exactly ``size`` bytes of a stream, or what comes before its end."""
    left = size
    while left and (data := sock.recv(min(left, 1 << 20))):
        left -= len(data)
    return size - left


def tcp_moved(sock: socket.socket, sent: int = 0, received: int = 0) -> Moved:
    ends = sock.getsockname(), sock.getpeername()
    return with_repeated(sock, moved("tcp", *ends, sent, received))


def waiting_bytes(sock: socket.socket) -> int:
    """What the kernel holds of what was sent by the socket, wherever it is."""
    found = array.array("i", [0])
    fcntl.ioctl(sock, termios.TIOCOUTQ, found)
    return found[0]


def wait_until_all_has_left(sock: socket.socket) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while waiting_bytes(sock):
        assert time.monotonic() < deadline, "something is still in the queue"
        time.sleep(_POLL_S)


def with_repeated(sock: socket.socket, entry: Moved) -> Moved:
    """With what the kernel had to send again: it is on the wire twice."""
    again = tcp_info(sock)["retransmitted_bytes"]
    return {**entry, "again": again} if again else entry


class Way(NamedTuple):
    """Where the two ends of a scene are, and their addresses."""

    server: str = HOST
    client: str = HOST
    server_address: str = V4
    client_address: str = V4
    bound_address: str = ""
    """Of the server, if not the one that the client says."""


LOOPBACK = Way()


def addresses_of(name: str) -> dict[str, str]:
    if name in world.missing:
        raise NotHere(world.missing[name])
    return world.addresses[name]


def way(name: str, server: str, client: str) -> Way:
    """By a cable; ``name`` as in World.addresses."""
    addresses = addresses_of(name)
    return Way(server, client, addresses[server], addresses[client])


def up(name: str) -> Way:
    """The client is the host."""
    return way(name, PEER, HOST)


def down(name: str) -> Way:
    """The host is the server."""
    return way(name, HOST, PEER)


Handler = Callable[[socket.socket], Moved]


def connection(serve: Handler, use: Handler, by: Way = LOOPBACK) -> Truth:
    """A process that accepts one connection, and one that connects."""
    where = Note()

    def server() -> Truth:
        listening = listener(by.bound_address or by.server_address)
        where.give([by.server_address, listening.getsockname()[1]])
        with listening.accept()[0] as sock:
            return dwelling([serve(sock)])

    def client() -> Truth:
        with connected(where.take()) as sock:
            return dwelling([use(sock)])

    return together(Child(server, by.server), Child(client, by.client))


def exchange(mine: int, theirs: int) -> Handler:
    """Sends and receives at the same time."""

    def use(sock: socket.socket) -> Moved:
        sender = threading.Thread(target=sock.sendall, args=(bytes(mine),))
        sender.start()
        received = receive(sock, theirs)
        sender.join()
        return tcp_moved(sock, mine, received)

    return use


def give(size: int) -> Handler:
    """Sends, and waits until the other one has it all."""

    def use(sock: socket.socket) -> Moved:
        entry = tcp_moved(sock, size)
        sock.sendall(bytes(size))
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
        return with_repeated(sock, entry)

    return use


def take(size: int) -> Handler:
    return lambda sock: tcp_moved(sock, received=receive(sock, size))


Send = Callable[[socket.socket, object], int]
Take = Callable[[socket.socket], int]


def datagrams(send: Send, take: Take, by: Way = LOOPBACK, *, connect: bool = False) -> Truth:
    """A process that sends, and one (the server) that receives and never answers."""
    sink_at, sender_at, ready = Note(), Note(), Note()

    def sink() -> Truth:
        with udp(by.bound_address or by.server_address) as sock:
            at = by.server_address, sock.getsockname()[1]
            sink_at.give(at)
            sender = sender_at.take()
            if connect:
                sock.connect(sender)
            ready.give()
            return dwelling([moved("udp", at, sender, received=take(sock))])

    def sender() -> Truth:
        with udp(by.client_address) as sock:
            sender_at.give(sock.getsockname()[:2])
            target = sink_at.take()
            if connect:
                sock.connect(target)
            ready.take()
            return dwelling([moved("udp", sock.getsockname(), target, send(sock, target))])

    return together(Child(sink, by.server), Child(sender, by.client))


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
