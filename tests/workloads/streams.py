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
from tests.workloads.datagrams import MAPPED
from tests.workloads.scene import (
    DISCARD,
    LOOPBACK,
    V4,
    V4_OTHER,
    Child,
    Handler,
    Moved,
    Note,
    Truth,
    Way,
    connected,
    connection,
    dwelling,
    exchange,
    kernels,
    listener,
    moved,
    prepared,
    receive,
    take,
    tcp_moved,
    together,
)

_SEND, _RECV = 26, 27  # IORING_OP_*
_ASYNC = 1 << 4  # IOSQE_ASYNC: a worker thread does it
_SQPOLL = 1 << 1  # IORING_SETUP_SQPOLL: a thread of the kernel's submits it


def tcp_duplex() -> Truth:
    return connection(exchange(50_021, 70_001), exchange(70_001, 50_021))


def tcp_v4_mapped() -> Truth:
    return connection(exchange(1009, 2003), exchange(2003, 1009), MAPPED)


def data_before_accept() -> Truth:
    """What lies in a connection that a worker accepts later, from a listener that it inherited."""
    return early_data(0.05)


def data_long_before_accept() -> Truth:
    """The same after four seconds."""
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
    return together(clients, workers)


def send_file(size: int) -> Handler:
    def use(sock: socket.socket) -> Moved:
        with tempfile.TemporaryFile() as file:
            file.write(bytes(size))
            file.flush()
            sent = 0
            while sent < size:
                sent += os.sendfile(sock.fileno(), file.fileno(), sent, size - sent)
            return tcp_moved(sock, sent)

    return use


def sendfile() -> Truth:
    return connection(send_file(30_011), take(30_011))


def splice() -> Truth:
    """A proxy that never sees the data: socket, pipe, socket."""
    return spliced(20_011, LOOPBACK)


def spliced(size: int, by: Way) -> Truth:
    """``by``: the way from the source, and to the sink, to the proxy, which is the server."""
    source_at, sink_at = Note(), Note()

    def source() -> Truth:
        with connected(source_at.take()) as sock:
            sock.sendall(bytes(size))
            return [tcp_moved(sock, size)]

    def sink() -> Truth:
        with listener(by.client_address) as listening:
            sink_at.give(listening.getsockname())
            with listening.accept()[0] as sock:
                return [tcp_moved(sock, received=receive(sock, size))]

    def proxy() -> Truth:
        reads, writes = os.pipe()
        with listener(by.server_address) as listening:
            source_at.give(listening.getsockname())
            with listening.accept()[0] as one, connected(sink_at.take()) as other:
                left = size
                while left:
                    taken = os.splice(one.fileno(), writes, left)
                    assert taken
                    left -= taken
                    while taken:
                        taken -= os.splice(reads, other.fileno(), taken)
                return dwelling([tcp_moved(one, received=size), tcp_moved(other, size)])

    return together(Child(source, by.client), Child(sink, by.client), Child(proxy, by.server))


def ring(request_flags: int, ring_flags: int) -> tuple[Handler, Handler]:
    """(receiver, sender) over io_uring."""

    def call(opcode: int, sock: socket.socket, buffer: object, size: int) -> int:
        result = scene.calls.ring_call(
            opcode, sock.fileno(), buffer, size, request_flags, ring_flags
        )
        if result <= 0:
            raise OSError(-result, f"io_uring: {os.strerror(-result)}")
        return int(result)

    def receive_all(sock: socket.socket) -> Moved:
        buffer, received = ctypes.create_string_buffer(4096), 0
        while received < 3001:
            received += call(_RECV, sock, buffer, 4096)
        return tcp_moved(sock, received=received)

    def send(sock: socket.socket) -> Moved:
        return tcp_moved(sock, call(_SEND, sock, bytes(3001), 3001))

    return receive_all, send


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
