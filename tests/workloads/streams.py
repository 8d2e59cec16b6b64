"""The kinds of traffic on TCP."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import struct
import tempfile
import time

from tests.workloads import scene
from tests.workloads.scene import (
    DISCARD,
    V4,
    V4_OTHER,
    Handler,
    Note,
    connected,
    connection,
    exchange,
    kernels,
    listener,
    moved,
    prepared,
    tcp_moved,
    when_told,
)
from tests.workloads.sharing import Child, Truth, receive

_SEND, _RECV = 26, 27  # IORING_OP_*
_ASYNC = 1 << 4  # IOSQE_ASYNC: a worker thread does it
_SQPOLL = 1 << 1  # IORING_SETUP_SQPOLL: a thread of the kernel's submits it


def tcp_duplex() -> Truth:
    return connection(exchange(50_021, 70_001), exchange(70_001, 50_021))


def tcp_v4_mapped() -> Truth:
    return connection(exchange(1009, 2003), exchange(2003, 1009), "::", "::ffff:127.0.0.1")


def data_before_accept() -> Truth:
    """What lies in a connection that a worker accepts later, from a listener that it inherited."""
    return early_data(0.05)


def data_long_before_accept() -> Truth:
    """The same after so long that the bytes were booked before."""
    return early_data(4.0)


def early_data(wait_s: float) -> Truth:
    where, sent, go = Note(), Note(), Note()

    def client() -> Truth:
        with connected(where.take()) as sock:
            sock.sendall(bytes(1013))
            sent.give()
            received = receive(sock, 503)
            return [tcp_moved(sock, 1013, received)]

    def worker() -> Truth:
        go.take()
        with listening.accept()[0] as sock:
            received = receive(sock, 1013)
            sock.sendall(bytes(503))
            return [tcp_moved(sock, 503, received)]

    clients = Child(client)
    listening = listener()
    workers = Child(worker)
    where.give(listening.getsockname())
    sent.take()
    time.sleep(wait_s)
    go.give()
    return clients.truth() + workers.truth()


def never_accepted() -> Truth:
    """Data for a listener that has not accepted it when the report is made."""
    where, sent, end = Note(), Note(), Note()

    def client() -> Truth:
        with connected(where.take()) as sock:
            sock.sendall(bytes(1019))
            sent.give(sock.getsockname())
            end.take()
            return [tcp_moved(sock, 1019)]

    clients = Child(client)
    with listener() as listening:
        where.give(listening.getsockname())
        peer = sent.take()
        when_told()
        end.give()
        truth = clients.truth()
        return [*truth, moved("tcp", listening.getsockname(), peer, received=1019)]


def sendfile() -> Truth:
    def serve(sock: socket.socket) -> dict[str, object]:
        with tempfile.TemporaryFile() as file:
            file.write(bytes(30_011))
            file.flush()
            return tcp_moved(sock, os.sendfile(sock.fileno(), file.fileno(), 0, 30_011))

    return connection(serve, lambda sock: tcp_moved(sock, received=receive(sock, 30_011)))


def splice() -> Truth:
    """A proxy that never sees the data: socket, pipe, socket."""
    size = 20_011
    source_at, sink_at = Note(), Note()

    def source() -> Truth:
        with connected(source_at.take()) as sock:
            sock.sendall(bytes(size))
            return [tcp_moved(sock, size)]

    def sink() -> Truth:
        with listener() as listening:
            sink_at.give(listening.getsockname())
            with listening.accept()[0] as sock:
                return [tcp_moved(sock, received=receive(sock, size))]

    def proxy() -> Truth:
        reads, writes = os.pipe()
        with listener() as listening:
            source_at.give(listening.getsockname())
            with listening.accept()[0] as one, connected(sink_at.take()) as other:
                left = size
                while left:
                    taken = os.splice(one.fileno(), writes, left)
                    assert taken
                    left -= taken
                    while taken:
                        taken -= os.splice(reads, other.fileno(), taken)
                return [tcp_moved(one, received=size), tcp_moved(other, size)]

    children = [Child(source), Child(sink), Child(proxy)]
    return [entry for child in children for entry in child.truth()]


def ring(request_flags: int, ring_flags: int) -> tuple[Handler, Handler]:
    """(receiver, sender) over io_uring."""

    def call(opcode: int, sock: socket.socket, buffer: object, size: int) -> int:
        result = scene.calls.ring_call(
            opcode, sock.fileno(), buffer, size, request_flags, ring_flags
        )
        if result <= 0:
            raise OSError(-result, f"io_uring: {os.strerror(-result)}")
        return int(result)

    def take(sock: socket.socket) -> dict[str, object]:
        buffer, received = ctypes.create_string_buffer(4096), 0
        while received < 3001:
            received += call(_RECV, sock, buffer, 4096)
        return tcp_moved(sock, received=received)

    def give(sock: socket.socket) -> dict[str, object]:
        return tcp_moved(sock, call(_SEND, sock, bytes(3001), 3001))

    return take, give


def io_uring() -> Truth:
    return connection(*ring(0, 0))


def io_uring_worker_threads() -> Truth:
    return connection(*ring(_ASYNC, 0))


def io_uring_polled() -> Truth:
    return connection(*ring(0, _SQPOLL))


def outlived() -> Truth:
    """A sender that has gone when most of its data is still to be sent."""
    where, gone, size = Note(), Note(), 150_001

    def reader() -> Truth:
        with socket.socket() as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            prepared(listening, V4).listen()
            where.give(listening.getsockname())
            with listening.accept()[0] as sock:
                gone.take()
                return [tcp_moved(sock, received=receive(sock, size))]

    def sender() -> Truth:
        with connected(where.take()) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            sock.sendall(bytes(size))
            return [tcp_moved(sock, size)]

    readers = Child(reader)
    truth = Child(sender).truth()
    gone.give()
    return truth + readers.truth()


def refused() -> Truth:
    """A connection to a port that nobody listens on: the kernel answers."""

    def client() -> Truth:
        sock = prepared(socket.socket(), V4)
        here = sock.getsockname()
        try:
            sock.connect((V4_OTHER, DISCARD))
        except ConnectionRefusedError:
            there = (V4_OTHER, DISCARD)
            return [moved("tcp", here, there), kernels("tcp", there, here)]
        raise AssertionError("somebody listens there")

    return Child(client).truth()


def tuple_reused() -> Truth:
    """One process after the other connects from the same port to the same port."""
    return successive_connections(0.002)


def tuple_reused_at_once() -> Truth:
    """The same, where accept() follows the SYN by less than the clocks may differ."""
    return successive_connections(0.0)


def successive_connections(accepted_after_s: float) -> Truth:
    listening = listener()
    with prepared(socket.socket(), V4) as free:
        port = free.getsockname()[1]

    def server(size: int) -> Truth:
        select.select([listening], [], [])
        time.sleep(accepted_after_s)
        with listening.accept()[0] as sock:
            truth = [tcp_moved(sock, 3, receive(sock, size))]
            sock.sendall(bytes(3))
            with contextlib.suppress(ConnectionResetError):
                sock.recv(1)
            return truth

    def client(size: int) -> Truth:
        with connected(listening.getsockname(), port) as sock:
            sock.sendall(bytes(size))
            truth = [tcp_moved(sock, size, receive(sock, 3))]
            # Its close is an RST: no TIME_WAIT keeps the port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return truth

    truth: Truth = []
    for size in (1021, 1031, 1033):
        servers = Child(lambda size=size: server(size))
        truth += Child(lambda size=size: client(size)).truth()
        truth += servers.truth()
    return truth


def listening_port_reused() -> Truth:
    """Another process listens where one has just ceased to."""
    with listener() as free:
        port = free.getsockname()[1]
    truth: Truth = []
    for size in (1039, 1049):
        ready = Note()

        def server(size: int = size, ready: Note = ready) -> Truth:
            with listener(V4, port) as listening:
                ready.give()
                with listening.accept()[0] as sock:
                    return [tcp_moved(sock, received=receive(sock, size))]

        def client(size: int = size) -> Truth:
            with connected((V4, port)) as sock:
                sock.sendall(bytes(size))
                return [tcp_moved(sock, size)]

        servers = Child(server)
        ready.take()
        truth += Child(client).truth() + servers.truth()
    return truth


KINDS = (
    tcp_duplex,
    tcp_v4_mapped,
    data_before_accept,
    data_long_before_accept,
    sendfile,
    splice,
    io_uring,
    io_uring_worker_threads,
    io_uring_polled,
    outlived,
    refused,
    tuple_reused,
    tuple_reused_at_once,
    listening_port_reused,
)
