"""Who uses a connection: what every family tells."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import time
from pathlib import Path

import pytest

from procnet.model import IPV4_WILDCARD, IPV6_WILDCARD, TCP, OwnerEvent
from tests.privileged.owners.actors import (
    ACCEPT,
    CLOSE,
    CONNECT,
    FAMILIES,
    INET,
    INET6,
    LO,
    RECEIVE,
    SEND,
    Child,
    Witness,
    close,
    connection,
    inode,
    kinds,
    run,
    tuple_of,
    tuple_told,
    udp,
    who,
    who_told,
)
from tests.privileged.owners.gaps import Instead
from tests.privileged.owners.syscalls import disconnect

WORKERS = 5
SO_SNDBUFFORCE = 32  # include/uapi/asm-generic/socket.h


@pytest.mark.parametrize(("family", "host"), FAMILIES)
def test_connect_accept_and_close(witness: Witness, family: int, host: str) -> None:
    begun_ns = time.time_ns()
    client, accepted, listener = connection(family, host)
    expected = {
        sock: (inode(sock), tuple_of(sock), told)
        for sock, told in ((client, [CONNECT, CLOSE]), (accepted, [ACCEPT, RECEIVE, CLOSE]))
    }
    client.sendall(b"x")
    assert accepted.recv(1) == b"x"
    close(client, accepted, listener)
    ended_ns = time.time_ns()
    for number, ends, told in expected.values():
        events = witness.of_inode(number)
        assert kinds(events) == told
        for event in events:
            assert who_told(event) == who()
            assert tuple_told(event) == ends
            assert event.protocol == TCP and not event.kernel
            assert begun_ns <= event.time_ns <= ended_ns


@pytest.mark.parametrize(("family", "wildcard"), [(INET, IPV4_WILDCARD), (INET6, IPV6_WILDCARD)])
def test_a_listener_closes(witness: Witness, family: int, wildcard: bytes) -> None:
    listener = socket.socket(family)
    listener.bind(("", 0))
    listener.listen()
    number, port = inode(listener), listener.getsockname()[1]
    listener.close()
    (event,) = witness.of_inode(number)
    assert event.kind is CLOSE
    assert tuple_told(event) == (wildcard, port, b"", 0)


def test_a_refused_connection_still_says_which_port_it_had(witness: Witness) -> None:
    with udp(bound="127.0.0.1") as other:
        port = other.getsockname()[1]  # nobody listens there
        client = socket.socket()
        number = inode(client)
        with pytest.raises(ConnectionRefusedError):
            client.connect(("127.0.0.1", port))
        client.close()
    connect, closed = witness.of_inode(number)
    assert (connect.kind, closed.kind) == (CONNECT, CLOSE)
    assert connect.local_port == closed.local_port != 0
    assert (connect.local_address, connect.remote_port) == (LO, port)
    # The kernel has forgotten the peer by now (tcp_disconnect).
    assert (closed.remote_address, closed.remote_port) == (b"", 0)
    assert who_told(connect) == who_told(closed) == who()


def test_a_reset_connection_still_says_which_it_was(witness: Witness) -> None:
    client, accepted, listener = connection()
    number, ends = inode(client), tuple_of(client)
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    accepted.close()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    client.close()
    events = witness.of_inode(number)
    assert kinds(events) == [CONNECT, CLOSE]
    assert [tuple_told(event) for event in events] == [ends, ends]
    listener.close()


def test_a_forked_child_that_uses_the_socket_of_its_parent(witness: Witness) -> None:
    client, accepted, listener = connection()
    _, sender = run(lambda: client.send(b"from the child"))
    accepted.sendall(b"to the child")
    _, receiver = run(lambda: len(client.recv(100)), b"receiver")
    assert client.send(b"from the parent") == 15
    events = witness.of(client)
    assert kinds(events) == [CONNECT, SEND, RECEIVE, SEND]
    assert [who_told(event) for event in events] == [who(), sender, receiver, who()]
    assert len({event.process for event in events}) == 3
    assert {tuple_told(event) for event in events} == {tuple_of(client)}
    close(client, accepted, listener)


def accept(listener: socket.socket, *, address: bool = False) -> socket.socket:
    """Python's own always asks for the address."""
    if address:
        return listener.accept()[0]
    descriptor = ctypes.CDLL(None).accept(listener.fileno(), None, None)
    assert descriptor >= 0
    return socket.socket(fileno=descriptor)


def accept_one(listener: socket.socket, *, address: bool, use: bool) -> int:
    with accept(listener, address=address) as accepted:
        if use:
            accepted.sendall(accepted.recv(100))
        return inode(accepted)


@pytest.mark.parametrize("address", [True, False], ids=["address", "no-address"])
@pytest.mark.parametrize("use", [True, False], ids=["used", "unused"])
def test_prefork_workers_that_share_a_listener(witness: Witness, address: bool, use: bool) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    workers = [
        Child(lambda: accept_one(listener, address=address, use=use), b"worker-%d" % i)
        for i in range(WORKERS)
    ]
    clients = [socket.create_connection(listener.getsockname()) for _ in workers]
    for client in clients:
        client.sendall(b"x")
    truth = [worker.result() for worker in workers]
    remotes = set()
    late = not address and witness.gap("accept without address") is Instead.LATE
    for number, worker in truth:
        events = witness.of_inode(number)
        assert {who_told(event) for event in events} == {worker}
        assert kinds(events) == [ACCEPT] * (not late or not use) + [RECEIVE] * use + [CLOSE]
        (ends,) = {tuple_told(event) for event in events}
        assert ends[:3] == (LO, listener.getsockname()[1], LO)
        remotes.add(ends[3])
    assert remotes == {client.getsockname()[1] for client in clients}
    assert len({worker.process for _, worker in truth}) == WORKERS
    # Nothing on these connections is the parent's, which only listens.
    assert users_of(witness, listener) == {worker.process for _, worker in truth}
    close(*clients, listener)


def users_of(witness: Witness, listener: socket.socket) -> set[tuple[int, int]]:
    """Whoever was told to have a connection of the listener's."""
    port = listener.getsockname()[1]
    return {event.process for event in witness.where(lambda event: event.local_port == port)}


def test_what_comes_in_before_accept_is_nobody_s_but_the_acceptor_s(witness: Witness) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    client.sendall(b"x" * 101)
    assert users_of(witness, listener) == set()
    number, acceptor = run(lambda: accept_one(listener, address=True, use=True), b"acceptor")
    assert kinds(witness.of_inode(number)) == [ACCEPT, RECEIVE, CLOSE]
    assert users_of(witness, listener) == {acceptor.process}
    close(client, listener)


def test_an_acceptor_that_only_sends(witness: Witness) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def greet() -> int:
        with accept(listener) as accepted:
            accepted.sendall(b"220 ready")
            return inode(accepted)

    greeter = Child(greet, b"greeter")
    with socket.create_connection(listener.getsockname()) as client:
        assert client.recv(100) == b"220 ready"
        number, expected = greeter.result()
    told = [] if witness.gap("accept without address") else [ACCEPT]
    events = witness.of_inode(number)
    assert kinds(events) == [*told, SEND, CLOSE]
    assert {who_told(event) for event in events} == {expected}
    listener.close()


def test_a_connection_that_is_handed_to_a_child_is_the_child_s(witness: Witness) -> None:
    client, accepted, listener = connection()
    client.sendall(b"x")
    _, user = run(lambda: len(accepted.recv(1)), b"inetd")
    events = witness.of(accepted)
    assert kinds(events) == [ACCEPT, RECEIVE]  # the acceptor was only presumed to use it
    assert [who_told(event) for event in events] == [who(), user]
    close(client, accepted, listener)


def test_splice_from_a_socket_is_receiving(witness: Witness) -> None:
    client, accepted, listener = connection()
    client.sendall(b"x" * 101)

    def splice() -> int:
        _, writing = os.pipe()
        return os.splice(accepted.fileno(), writing, 101)

    moved, splicer = run(splice, b"splicer")
    assert moved == 101
    events = witness.of(accepted)
    assert kinds(events) == [ACCEPT, RECEIVE]
    assert [who_told(event) for event in events] == [who(), splicer]
    close(client, accepted, listener)


@pytest.mark.parametrize("call", ["sendfile", "splice to"])
def test_without_a_copy_it_is_sending_too(witness: Witness, tmp_path: Path, call: str) -> None:
    client, accepted, listener = connection()
    (tmp_path / "file").write_bytes(b"y" * 101)

    def send() -> int:
        with (tmp_path / "file").open("rb") as file:
            if call == "sendfile":
                return os.sendfile(client.fileno(), file.fileno(), 0, 101)
            reading, writing = os.pipe()
            os.splice(file.fileno(), writing, 101)
            return os.splice(reading, client.fileno(), 101)

    moved, sender = run(send, b"sender")
    assert moved == 101
    events = witness.of(client)
    assert kinds(events) == [CONNECT, SEND]
    assert [who_told(event) for event in events] == [who(), sender]
    close(client, accepted, listener)


def ways(event: OwnerEvent) -> tuple[bool, bool, bool]:
    return event.sends, event.receives, event.shared


def test_who_takes_does_not_send(witness: Witness) -> None:
    client, accepted, listener = connection()
    _, sender = run(lambda: client.send(b"from the child"))
    accepted.sendall(b"to the parent")
    assert len(client.recv(100)) == 13
    _, again = run(lambda: client.send(b"from another child"))
    accepted.sendall(b"to the parent")
    assert len(client.recv(100)) == 13
    connect, first, taken, second = witness.of(client)
    assert [who_told(event) for event in (connect, first, taken, second)] == [
        who(), sender, who(), again,
    ]  # fmt: skip
    # As long as nobody has taken anything, the sender is all that there is.
    assert [ways(event) for event in (connect, first)] == [(True, True, False)] * 2
    assert ways(taken) == (False, True, False)
    assert ways(second) == (True, False, False)
    close(client, accepted, listener)


def test_who_takes_first_from_a_connection_that_nobody_sent_by_has_it_all(
    witness: Witness,
) -> None:
    client, accepted, listener = connection()
    accepted.sendall(b"x")
    _, taker = run(lambda: len(client.recv(1)))
    connect, taken = witness.of(client)
    assert [who_told(event) for event in (connect, taken)] == [who(), taker]
    assert ways(taken) == (True, True, False)
    close(client, accepted, listener)


def full_connection() -> tuple[socket.socket, socket.socket, int]:
    """Both ends of a connection whose queue is full, and how many bytes were written."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    client = socket.create_connection(listener.getsockname())
    accepted, _ = listener.accept()
    listener.close()
    client.setblocking(False)
    written = 0
    with pytest.raises(BlockingIOError):
        while True:
            written += client.send(bytes(1009))
    # Room for what follows, none of which can leave: the other end lets nothing in.
    client.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 4 * written)
    client.settimeout(10)
    accepted.settimeout(10)
    return client, accepted, written


def take(sock: socket.socket, size: int) -> None:
    while size:
        size -= len(sock.recv(size))


def test_a_sender_is_told_when_its_first_byte_leaves(witness: Witness) -> None:
    client, accepted, written = full_connection()
    _, sender = run(lambda: client.sendall(bytes(300_007)))
    early = witness.of(client)
    take(accepted, written + 300_007)
    events = witness.of(client)
    if witness.gap("queue of two senders") is Instead.SHARED:
        assert kinds(early) == [CONNECT, SEND]
        assert ways(early[1]) == (True, True, True)
        assert events == early
    else:
        assert kinds(early) == [CONNECT]
        # One packet may have had bytes of both.
        assert kinds(events) in ([CONNECT, SEND], [CONNECT, SEND, SEND])
        assert ways(events[-1]) == (True, True, False)
        assert all(event.shared for event in events[1:-1])
    assert {who_told(event) for event in events[1:]} == {sender}
    # The next one finds the queue empty.
    _, last = run(lambda: client.send(b"x"))
    take(accepted, 1)
    (event,) = witness.of(client)[len(events) :]
    assert (who_told(event), ways(event)) == (last, (True, True, False))
    close(client, accepted)


def test_a_connection_has_nobody_of_the_queue_of_the_last_one_by_its_socket(
    witness: Witness,
) -> None:
    client, accepted, _ = full_connection()
    _, sender = run(lambda: client.send(bytes(101)))
    disconnect(client)
    before = witness.of(client)
    assert {who_told(event) for event in before} <= {who(), sender}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client.connect(listener.getsockname())
        other, _ = listener.accept()
    client.sendall(bytes(103))
    take(other, 103)
    (event,) = witness.of(client)[len(before) :]
    assert (event.kind, who_told(event)) == (CONNECT, who())
    assert tuple_told(event) == tuple_of(client)
    close(client, accepted, other)


def test_three_senders_in_one_queue_share_it(witness: Witness) -> None:
    client, accepted, written = full_connection()
    senders = [run(lambda: client.send(bytes(101)))[1] for _ in range(2)]
    take(accepted, written + 202)
    events = witness.of(client)
    assert kinds(events) == [CONNECT, SEND, SEND]
    assert [who_told(event) for event in events[1:]] == senders
    assert all(event.shared for event in events[1:])
    assert client.send(b"x") == 1
    take(accepted, 1)
    (event,) = witness.of(client)[3:]
    assert (who_told(event), event.shared) == (who(), False)
    close(client, accepted)


def test_of_more_senders_in_one_queue_than_are_told_apart_nobody_is_told_a_part(
    witness: Witness,
) -> None:
    client, accepted, written = full_connection()
    senders = [run(lambda: client.send(bytes(101)))[1] for _ in range(11)]
    take(accepted, written + 11 * 101)
    events = witness.of(client)[1:]
    assert {who_told(event) for event in events} == set(senders)
    assert all(event.shared for event in events[-11:])
    assert all(event.packet_bytes == 0 for event in events)
    told = len(events)
    assert client.send(b"x") == 1
    take(accepted, 1)
    (event,) = witness.of(client)[1 + told :]
    assert (who_told(event), event.shared) == (who(), False)
    close(client, accepted)
