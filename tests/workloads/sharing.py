"""Processes that share, pass on and reuse sockets, and say who moved what: the hard cases.

Sizes are primes and differ by actor, so that bytes cannot change places unseen. Who only sends
closes the end that its parent reads, which on a busy machine may be seconds later: for whom it
is what lies so long in a socket that two have, nobody knows.
"""

from __future__ import annotations

import os
import socket
import time

from tests.workloads.scene import (
    TIMEOUT_S,
    V4,
    Child,
    Moved,
    Note,
    Truth,
    moved,
    receive,
    tcp_moved,
    together,
    wait_until_all_has_left,
    with_repeated,
)

SO_SNDBUFFORCE = 32  # include/uapi/asm-generic/socket.h


def tcp_listener() -> socket.socket:
    listening = socket.create_server((V4, 0), backlog=64)
    listening.settimeout(TIMEOUT_S)
    return listening


def udp_socket(port: int = 0, *options: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for option in options:
        made.setsockopt(socket.SOL_SOCKET, option, 1)
    made.bind((V4, port))
    made.settimeout(TIMEOUT_S)
    return made


def client(address: tuple[str, int], sizes: list[int], answer: int) -> Truth:
    truth = []
    for size in sizes:
        with socket.create_connection(address, TIMEOUT_S) as sock:
            sock.sendall(bytes(size))
            received = receive(sock, answer)
            truth.append(tcp_moved(sock, size, received))
    return truth


def serve(sock: socket.socket, address: object, answer: int) -> Moved:
    """Takes a length-less request until the client has sent what its port says it will."""
    sock.settimeout(TIMEOUT_S)
    data = sock.recv(65536)
    sock.sendall(bytes(answer))
    # Until it is acknowledged it may be sent once more.
    wait_until_all_has_left(sock)
    return with_repeated(sock, moved("tcp", sock.getsockname(), address, answer, len(data)))


def prefork() -> Truth:
    """Workers that inherited one listener accept from it in turn."""
    listener = tcp_listener()

    def work() -> Truth:
        truth = []
        while True:
            sock, address = listener.accept()
            with sock:
                if sock.recv(1, socket.MSG_PEEK) == b"":
                    return [*truth, tcp_moved(sock)]
                truth.append(serve(sock, address, 503))

    workers = [Child(work) for _ in range(3)]
    truth = client(listener.getsockname(), [101, 103, 107, 109, 113, 127, 131], 503)
    for _ in workers:
        # A connection without a byte tells a worker to end; it is nobody's payload.
        socket.create_connection(listener.getsockname(), TIMEOUT_S).close()
    for worker in workers:
        truth += worker.truth()
    return truth


def fork_per_connection() -> Truth:
    """One process accepts, a child of it serves; the parent lets go at once."""
    listener = tcp_listener()
    sizes = [211, 223, 227, 229, 233]

    def accept_all() -> Truth:
        truth = []
        for _ in sizes:
            sock, address = listener.accept()
            alone = Note()

            def work(sock=sock, address=address, alone=alone) -> Truth:
                alone.take()
                return [serve(sock, address, 509)]

            child = Child(work)
            # The handshake is its own, if that is all that there was for a while.
            truth.append(moved("tcp", sock.getsockname(), address))
            sock.close()
            alone.give()
            truth += child.truth()
        return truth

    acceptor = Child(accept_all)
    return client(listener.getsockname(), sizes, 509) + acceptor.truth()


def reuseport() -> Truth:
    """Three sockets on one UDP port, each with a process of its own."""
    sockets = [udp_socket(0, socket.SO_REUSEPORT)]
    port = sockets[0].getsockname()[1]
    sockets += [udp_socket(port, socket.SO_REUSEPORT) for _ in range(2)]

    def work(mine: int) -> Truth:
        truth = []
        for index, sock in enumerate(sockets):
            if index != mine:
                sock.close()
        while True:
            data, address = sockets[mine].recvfrom(65536)
            truth.append(moved("udp", (V4, port), address, received=len(data)))
            if len(data) == 1:
                return truth

    workers = [Child(lambda mine=mine: work(mine)) for mine in range(3)]
    for sock in sockets:
        sock.close()
    truth = []
    held = []
    for size in range(1009, 1009 + 23):
        sock = udp_socket()
        held.append(sock)
        sock.sendto(bytes(size), (V4, port))
        truth.append(moved("udp", sock.getsockname(), (V4, port), size))
    ended: set[int] = set()
    while len(ended) < len(workers):
        # Each datagram of one byte ends the worker that the kernel chooses for it.
        sock = udp_socket()
        sock.sendto(b"x", (V4, port))
        time.sleep(0.01)
        for worker in workers:
            if worker.pid not in ended and is_zombie(worker.pid):
                ended.add(worker.pid)
    for worker in workers:
        truth += worker.truth()
    return truth


def is_zombie(pid: int) -> bool:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0] == b"Z"


def forked_udp_sender() -> Truth:
    """A child sends on the socket of its parent, then the parent does."""
    sink = udp_socket()
    sock = udp_socket()
    sock.connect(sink.getsockname())
    here, there = sock.getsockname(), sink.getsockname()

    def send(number: int, size: int) -> Truth:
        for _ in range(number):
            sock.send(bytes(size))
        return [moved("udp", here, there, number * size)]

    def send_first() -> Truth:
        sink.close()
        return send(7, 101)

    child = Child(send_first).truth()
    time.sleep(0.02)
    return child + send(11, 103) + drain(sink, here, 7 + 11)


def drain(sink: socket.socket, sender: object, number: int) -> Truth:
    """What this process takes from its own sink: so many datagrams."""
    received = sum(len(sink.recv(65536)) for _ in range(number))
    return [moved("udp", sink.getsockname(), sender, received=received)]


def forked_tcp_sender() -> Truth:
    """The same on a connection."""
    listener = tcp_listener()
    sock = socket.create_connection(listener.getsockname(), TIMEOUT_S)
    accepted, address = listener.accept()

    def send(size: int) -> Truth:
        sock.sendall(bytes(size))
        return [moved("tcp", sock.getsockname(), listener.getsockname(), size)]

    def send_first() -> Truth:
        accepted.close()
        return send(1009)

    truth = Child(send_first).truth()
    received = receive(accepted, 1009)
    time.sleep(0.02)
    truth += send(503)
    received += receive(accepted, 503)
    truth.append(moved("tcp", accepted.getsockname(), address, received=received))
    return truth


def slow_connection() -> tuple[socket.socket, socket.socket, object, object]:
    """Two ends, of which the first can write far more than the second lets in, and their names."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    listener.bind((V4, 0))
    listener.listen()
    listener.settimeout(TIMEOUT_S)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 4 << 20)
    sock.settimeout(TIMEOUT_S)
    sock.connect(listener.getsockname())
    accepted, _ = listener.accept()
    accepted.settimeout(TIMEOUT_S)
    listener.close()
    return sock, accepted, sock.getsockname(), accepted.getsockname()


def writer_and_reader() -> Truth:
    """Of one connection a child writes much, and its parent takes what comes in meanwhile."""
    sock, accepted, here, there = slow_connection()

    def write() -> Truth:
        accepted.close()
        sock.sendall(bytes(2_000_003))
        return [moved("tcp", here, there, 2_000_003)]

    writer = Child(write)
    received = taken = 0
    for size in (11, 13, 17, 19, 23, 29, 31):
        received += receive(accepted, 65_537)
        accepted.sendall(bytes(size))
        taken += receive(sock, size)
    received += receive(accepted, 2_000_003 - received)
    return [
        *writer.truth(),
        with_repeated(sock, moved("tcp", here, there, 0, taken)),
        with_repeated(accepted, moved("tcp", there, here, taken, received)),
    ]


def writers_in_turn() -> Truth:
    """One writes and ends; what it wrote is mostly still in the queue when the next one writes."""
    sock, accepted, here, there = slow_connection()

    def write(size: int) -> Truth:
        accepted.close()
        sock.sendall(bytes(size))
        return [moved("tcp", here, there, size)]

    truth = Child(lambda: write(1_000_003)).truth()
    truth += Child(lambda: write(700_001)).truth()
    received = receive(accepted, 1_700_004)
    connector = with_repeated(sock, moved("tcp", here, there))
    return [connector, *truth, moved("tcp", there, here, 0, received)]


def writers_by_turns() -> Truth:
    """Two write by turns into one queue, far faster than it is emptied."""
    sock, accepted, here, there = slow_connection()
    turns, size = 31, 20_011
    one_reads, one_writes = os.pipe()
    two_reads, two_writes = os.pipe()

    def write(mine: int, theirs: int) -> Truth:
        accepted.close()
        for _ in range(turns):
            os.read(mine, 1)
            sock.sendall(bytes(size))
            os.write(theirs, b"x")
        return [moved("tcp", here, there, turns * size)]

    children = [
        Child(lambda: write(one_reads, two_writes)),
        Child(lambda: write(two_reads, one_writes)),
    ]
    os.write(one_writes, b"x")
    truth = together(*children)
    received = receive(accepted, 2 * turns * size)
    connector = with_repeated(sock, moved("tcp", here, there))
    return [connector, *truth, moved("tcp", there, here, 0, received)]


def passed_socket() -> Truth:
    """A socket goes to another process over a Unix socket, and only that one uses it then."""
    here, there = socket.socketpair(socket.AF_UNIX)
    sink = udp_socket()
    target = sink.getsockname()

    def take() -> Truth:
        here.close()
        sink.close()
        _, descriptors, _, _ = socket.recv_fds(there, 1, 1)
        with socket.socket(fileno=descriptors[0]) as sock:
            time.sleep(0.02)
            for _ in range(13):
                sock.sendto(bytes(107), target)
            return [moved("udp", sock.getsockname(), target, 13 * 107)]

    taker = Child(take)
    sock = udp_socket()
    own = sock.getsockname()
    for _ in range(5):
        sock.sendto(bytes(109), target)
    truth = [moved("udp", own, target, 5 * 109)]
    socket.send_fds(here, [b"x"], [sock.fileno()])
    sock.close()
    truth += taker.truth()
    return truth + drain(sink, own, 13 + 5)


def port_handover() -> Truth:
    """Two processes use one UDP port in turns of a few milliseconds, with new sockets each time."""
    sink = udp_socket()
    # It is read at the end.
    sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    target = sink.getsockname()
    with udp_socket() as chosen:
        port = chosen.getsockname()[1]
    turns = 101

    def turn(size: int, mine: int, theirs: int) -> Truth:
        sink.close()
        for _ in range(turns):
            os.read(mine, 1)
            sock = udp_socket(port)
            sock.sendto(bytes(size), target)
            sock.close()
            time.sleep(0.002)
            os.write(theirs, b"x")
        return [moved("udp", (V4, port), target, turns * size)]

    one_reads, one_writes = os.pipe()
    two_reads, two_writes = os.pipe()
    children = [
        Child(lambda: turn(211, one_reads, two_writes)),
        Child(lambda: turn(223, two_reads, one_writes)),
    ]
    os.write(one_writes, b"x")
    return together(*children) + drain(sink, (V4, port), 2 * turns)


def short_connections() -> Truth:
    """Processes that connect, send and end."""
    listener = tcp_listener()
    truth = []
    for size in range(307, 307 + 23):
        child = Child(lambda size=size: client(listener.getsockname(), [size], 0))
        sock, address = listener.accept()
        with sock:
            received = receive(sock, size)
            truth.append(moved("tcp", sock.getsockname(), address, received=received))
        truth += child.truth()
    return truth


KINDS = (
    prefork,
    fork_per_connection,
    reuseport,
    forked_udp_sender,
    forked_tcp_sender,
    writer_and_reader,
    writers_in_turn,
    writers_by_turns,
    passed_socket,
    port_handover,
    short_connections,
)
