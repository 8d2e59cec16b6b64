"""What the CO-RE programs tell, on the kernel that runs; also run inside virtual machines."""

from __future__ import annotations

import array
import ctypes
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from procnet.bpf import libbpf
from procnet.bpf.core import CoreOwners, probe
from procnet.model import (
    CLOCK_TICK_NS,
    ICMP,
    ICMP6,
    TCP,
    UDP,
    EventKind,
    OwnerEvent,
    Socket,
    Support,
)
from procnet.sockets.scanner import SocketScanner
from tests.kernels.guest.actors import (
    Child,
    Witness,
    connection,
    inode,
    open_files,
    packed,
    run,
    tuple_of,
    tuple_told,
    who,
    who_told,
)
from tests.privileged.lab import TOP, Namespace
from tests.privileged.short_lived import SENDERS, arguments, build, launch

CONNECT, ACCEPT, SEND, RECEIVE, CLOSE, _ = EventKind
INET, INET6 = socket.AF_INET, socket.AF_INET6
FAMILIES = [
    pytest.param(INET, "127.0.0.1", id="v4"),
    pytest.param(INET6, "::1", id="v6"),
    pytest.param(INET6, "::ffff:127.0.0.1", id="mapped"),
]
LO = socket.inet_aton("127.0.0.1")
CLONE_NEWNET = 0x40000000
SENDS = 1009
WORKERS = 5


@pytest.fixture(scope="module", autouse=True)
def without_functions() -> Iterator[None]:
    """PROCNET_CORE_FENTRY=0: as if the kernel loaded no fentry programs."""
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get("PROCNET_CORE_FENTRY") == "0":
            patch.setattr(libbpf, "can_trace_functions", lambda: False)
        yield


@pytest.fixture(scope="module")
def owners() -> Iterator[CoreOwners]:
    opened = CoreOwners.open()
    yield opened
    opened.close()


@pytest.fixture
def inside(loopback: Namespace) -> Iterator[Namespace]:
    """This very process is in the namespace: what it forks, too."""
    enter = ctypes.CDLL(None, use_errno=True).setns
    outside = os.open("/proc/self/ns/net", os.O_RDONLY)
    with loopback.path.open("rb") as within:
        assert enter(within.fileno(), CLONE_NEWNET) == 0
    Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647")
    yield loopback
    assert enter(outside, CLONE_NEWNET) == 0
    os.close(outside)


@pytest.fixture
def witness(owners: CoreOwners, inside: Namespace) -> Iterator[Witness]:
    lost = owners.events_lost()
    owners.read()
    yield Witness(owners)
    owners.read()
    assert owners.events_lost() == lost, "events were lost during the test"


def kinds(events: list[OwnerEvent]) -> list[EventKind]:
    return [event.kind for event in events]


def udp(family: int = INET, bound: str | None = None) -> socket.socket:
    made = socket.socket(family, socket.SOCK_DGRAM)
    if bound is not None:
        made.bind((bound, 0))
    return made


def has(owners: Any, *hooks: str) -> bool:
    return any(hook in owners.hooks for hook in hooks)


# -- hooks ------------------------------------------------------------------------------------


def test_every_question_has_its_hook(owners: CoreOwners) -> None:
    print(owners.hooks, owners.feature())
    assert set(owners.missing_hooks) <= {"receive"}  # 6.1 has no tracepoint for it
    assert owners.feature().support is Support.YES
    assert probe().support is Support.YES


# -- TCP --------------------------------------------------------------------------------------


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
    for sock in (client, accepted, listener):
        sock.close()
    ended_ns = time.time_ns()
    for number, ends, told in expected.values():
        events = witness.of_inode(number)
        assert kinds(events) == told
        for event in events:
            assert who_told(event) == who()
            assert tuple_told(event) == ends
            assert event.protocol == TCP and not event.kernel
            assert begun_ns <= event.time_ns <= ended_ns


def test_a_refused_connection_still_says_which_port_it_had(witness: Witness) -> None:
    with udp(bound="127.0.0.1") as other:
        port = other.getsockname()[1]  # nobody listens there
        client = socket.socket()
        number = inode(client)
        with pytest.raises(ConnectionRefusedError):
            client.connect(("127.0.0.1", port))
        client.close()
    connect, close = witness.of_inode(number)
    assert (connect.kind, close.kind) == (CONNECT, CLOSE)
    assert connect.remote_port == port
    assert connect.local_port == close.local_port != 0
    assert connect.local_address == LO
    assert who_told(connect) == who()


def test_a_forked_child_that_uses_the_socket_of_its_parent(witness: Witness) -> None:
    client, accepted, listener = connection()
    number = inode(client)
    _, sender = run(lambda: client.send(b"from the child"))
    accepted.sendall(b"to the child")
    _, receiver = run(lambda: len(client.recv(100)), b"receiver")
    assert client.send(b"from the parent") == 15
    events = witness.of_inode(number)
    assert kinds(events) == [CONNECT, SEND, RECEIVE, SEND]
    assert [who_told(event) for event in events] == [who(), sender, receiver, who()]
    assert len({event.process for event in events}) == 3
    assert {tuple_told(event) for event in events} == {tuple_of(client)}
    for sock in (client, accepted, listener):
        sock.close()


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
    # Without the address and without the function's own hook only a use tells, or the end.
    tells = address or not use or has(witness.owners, "security_sock_graft")
    for number, worker in truth:
        events = witness.of_inode(number)
        assert {who_told(event) for event in events} == {worker}
        assert kinds(events) == [ACCEPT] * tells + [RECEIVE] * use + [CLOSE]
        (ends,) = {tuple_told(event) for event in events}
        assert ends[:3] == (LO, listener.getsockname()[1], LO)
        remotes.add(ends[3])
    assert remotes == {client.getsockname()[1] for client in clients}
    assert len({worker.process for _, worker in truth}) == WORKERS
    # Nothing on these connections is the parent's, which only listens.
    assert not [
        event
        for event in witness.events
        if event.process == who().process and event.local_port == listener.getsockname()[1]
    ]
    for sock in (*clients, listener):
        sock.close()


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
    events = [event for event in witness.of_inode(number) if event.kind is not ACCEPT]
    assert kinds(events) == [SEND, CLOSE]
    assert {who_told(event) for event in events} == {expected}
    listener.close()


def test_a_connection_that_is_handed_to_a_child_is_the_child_s(witness: Witness) -> None:
    client, accepted, listener = connection()
    client.sendall(b"x")
    (_, user) = run(lambda: len(accepted.recv(1)), b"inetd")
    events = witness.of_inode(inode(accepted))
    assert kinds(events) == [ACCEPT, RECEIVE]  # the acceptor was only presumed to use it
    assert [who_told(event) for event in events] == [who(), user]
    for sock in (client, accepted, listener):
        sock.close()


def test_splice_is_receiving_and_sendfile_is_sending(witness: Witness, tmp_path: Path) -> None:
    client, accepted, listener = connection()
    (tmp_path / "file").write_bytes(b"y" * 101)
    client.sendall(b"x" * 101)

    def splice() -> int:
        _, writing = os.pipe()
        return os.splice(accepted.fileno(), writing, 101)

    def sendfile() -> int:
        with (tmp_path / "file").open("rb") as file:
            return os.sendfile(client.fileno(), file.fileno(), 0, 101)

    moved, splicer = run(splice, b"splicer")
    assert moved == 101
    events = witness.of_inode(inode(accepted))
    assert kinds(events) == [ACCEPT, RECEIVE]
    assert who_told(events[1]) == splicer
    moved, filer = run(sendfile, b"filer")
    assert moved == 101
    events = witness.of_inode(inode(client))
    if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 5):
        assert kinds(events) == [CONNECT]  # it goes by tcp_sendpage there: a gap
    else:
        assert kinds(events) == [CONNECT, SEND]
        assert who_told(events[1]) == filer
    for sock in (client, accepted, listener):
        sock.close()


def test_a_socket_used_over_and_over_by_one_process_is_told_once(witness: Witness) -> None:
    client, accepted, listener = connection()
    sender, connected = udp(), udp()
    receiver = udp(bound="127.0.0.1")
    connected.connect(receiver.getsockname())
    for _ in range(SENDS):
        client.sendall(b"x")
        accepted.recv(1)
        sender.sendto(b"x", receiver.getsockname())
        connected.send(b"x")
        receiver.recv(1)
        receiver.recv(1)
    assert kinds(witness.of_inode(inode(client))) == [CONNECT]
    assert kinds(witness.of_inode(inode(accepted))) == [ACCEPT, RECEIVE]
    assert kinds(witness.of_inode(inode(sender))) == [SEND]
    assert kinds(witness.of_inode(inode(connected))) == [SEND]
    assert kinds(witness.of_inode(inode(receiver)))[:1] == [RECEIVE]
    assert len(witness.of_inode(inode(receiver))) <= 2
    for sock in (client, accepted, listener, sender, receiver, connected):
        sock.close()


# -- UDP --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "host"), FAMILIES)
def test_datagrams_without_a_connection(witness: Witness, family: int, host: str) -> None:
    receiver = udp(family, "" if host.startswith("::ffff") else host)
    port = receiver.getsockname()[1]
    (number, own_port), sender = run(lambda: send_from_new_socket(family, host, port))
    receiver.recvfrom(10)
    address = packed(receiver, host)
    sent, closed = witness.of_inode(number)
    assert who_told(sent) == sender
    assert (sent.kind, sent.protocol) == (SEND, UDP)
    assert tuple_told(sent) == (address, own_port, address, port)  # as on the wire
    assert closed.kind is CLOSE
    assert (closed.local_port, closed.remote_address) == (own_port, b"")
    (received,) = witness.of_inode(inode(receiver))
    assert (received.kind, who_told(received)) == (RECEIVE, who())
    assert received.local_address in (address, bytes(len(address)))
    assert tuple_told(received)[1:] == (port, address, own_port)
    receiver.close()


def send_from_new_socket(family: int, host: str, port: int) -> tuple[int, int]:
    with udp(family) as sock:
        sock.sendto(b"x", (host, port))
        return inode(sock), sock.getsockname()[1]


@pytest.mark.parametrize(("family", "host"), FAMILIES)
def test_datagrams_of_a_connected_socket(witness: Witness, family: int, host: str) -> None:
    receiver = udp(family, "" if host.startswith("::ffff") else host)
    sender = udp(family)
    sender.connect((host, receiver.getsockname()[1]))
    sender.send(b"x")
    _, back = receiver.recvfrom(10)
    receiver.sendto(b"y", back)
    sender.recv(10)
    number, ends = inode(sender), tuple_of(sender)
    sender.close()
    events = witness.of_inode(number)
    assert kinds(events) == [SEND, CLOSE]
    assert [tuple_told(event) for event in events] == [ends, ends]
    answered = [event for event in witness.of_inode(inode(receiver)) if event.kind is SEND]
    for event in answered:
        assert tuple_told(event) == (*ends[2:], *ends[:2])
    receiver.close()


def test_who_receives_without_asking_for_the_address(witness: Witness) -> None:
    receiver, sender = udp(bound="127.0.0.1"), udp()
    sender.sendto(b"x", receiver.getsockname())
    _, taker = run(lambda: len(receiver.recv(10)), b"taker")
    (received,) = witness.of_inode(inode(receiver))
    assert (received.kind, who_told(received)) == (RECEIVE, taker)
    ends = (LO, receiver.getsockname()[1], LO, sender.getsockname()[1])
    assert tuple_told(received) == ends
    # Of several that wait, nobody knows which one was taken; when all are gone, it is clear again.
    other = udp(bound="127.0.0.1")
    for each in (sender, other):
        each.sendto(b"x", receiver.getsockname())
    _, second = run(lambda: [len(receiver.recv(10)) for _ in range(2)], b"second")
    other.sendto(b"x", receiver.getsockname())
    _, third = run(lambda: len(receiver.recv(10)), b"third")
    told = [(who_told(event), event.remote_port) for event in witness.of_inode(inode(receiver))]
    if has(witness.owners, "skb_consume_udp"):
        ports = [sender.getsockname()[1], other.getsockname()[1]]
        assert told == [(taker, ports[0]), *((second, port) for port in ports), (third, ports[1])]
    else:
        assert told[1:] == [(second, 0), (third, other.getsockname()[1])]
    for sock in (receiver, sender, other):
        sock.close()


def test_a_connected_socket_that_only_receives(witness: Witness) -> None:
    one, other = udp(bound="127.0.0.1"), udp(bound="127.0.0.1")
    one.connect(other.getsockname())
    other.sendto(b"x", one.getsockname())
    _, taker = run(lambda: len(one.recv(10)), b"taker")
    (received,) = witness.of_inode(inode(one))
    assert (received.kind, who_told(received)) == (RECEIVE, taker)
    assert tuple_told(received) == tuple_of(one)
    for sock in (one, other):
        sock.close()


def test_a_peek_takes_nothing(witness: Witness) -> None:
    receiver, sender = udp(bound="127.0.0.1"), udp()
    sender.sendto(b"x", receiver.getsockname())
    run(lambda: len(receiver.recv(10, socket.MSG_PEEK)), b"peeker")
    assert witness.of_inode(inode(receiver)) == []
    for sock in (receiver, sender):
        sock.close()


def test_reuseport_workers(witness: Witness) -> None:
    first = udp()
    first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    first.bind(("127.0.0.1", 0))
    port = first.getsockname()[1]
    first.close()
    going, gone = os.pipe()

    def work() -> list[int]:
        with udp() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(("127.0.0.1", port))
            sock.settimeout(1.0)
            os.write(gone, b".")
            taken = []
            try:
                while True:
                    taken.append(sock.recvfrom(10)[1][1])
            except TimeoutError:
                return taken

    workers = [Child(work, b"worker-%d" % i) for i in range(WORKERS)]
    for _ in workers:
        os.read(going, 1)
    senders = [udp(bound="127.0.0.1") for _ in range(8 * WORKERS)]
    for sender in senders:
        sender.sendto(b"x", ("127.0.0.1", port))
    truth = {
        (remote, worker)
        for taken, worker in (each.result() for each in workers)
        for remote in taken
    }
    assert len(truth) == len(senders)
    events = witness.where(lambda event: event.local_port == port and event.kind is RECEIVE)
    assert {(event.remote_port, who_told(event)) for event in events} == truth
    assert {event.remote_address for event in events} == {LO}
    for sock in senders:
        sock.close()


def test_each_peer_is_told(witness: Witness) -> None:
    receivers = [udp(bound="127.0.0.1") for _ in range(23)]
    sender = udp()
    for _ in range(2):
        for receiver in receivers:
            sender.sendto(b"x", receiver.getsockname())
    events = witness.of_inode(inode(sender))
    assert [event.remote_port for event in events] == [r.getsockname()[1] for r in receivers]
    for sock in (sender, *receivers):
        sock.close()


def test_alternate_users_are_told_at_each_change(witness: Witness) -> None:
    receiver, sender = udp(bound="127.0.0.1"), udp()
    sender.connect(receiver.getsockname())
    asking, answering = os.pipe(), os.pipe()

    def send_when_asked() -> None:
        for _ in range(23):
            os.read(asking[0], 1)
            sender.send(b"x")
            os.write(answering[1], b".")

    child = Child(send_when_asked)
    for _ in range(23):
        sender.send(b"x")
        os.write(asking[1], b".")
        os.read(answering[0], 1)
    _, other = child.result()
    users = [event.process for event in witness.of_inode(inode(sender)) if event.kind is SEND]
    assert users == [who().process, other.process] * 23
    for sock in (sender, receiver):
        sock.close()


class IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))


class MMsgHdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p), ("name_length", ctypes.c_uint), ("iov", ctypes.c_void_p),
        ("iov_length", ctypes.c_size_t), ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t), ("flags", ctypes.c_int), ("pad", ctypes.c_int),
        ("length", ctypes.c_uint),
    )  # fmt: skip


def test_sendmmsg_to_many(witness: Witness) -> None:
    receivers = [udp(bound="127.0.0.1") for _ in range(7)]
    ports = [receiver.getsockname()[1] for receiver in receivers]

    def send_all() -> int:
        with udp() as sock:
            names = [
                ctypes.create_string_buffer(
                    struct.pack("=HH4s8x", INET, socket.htons(port), LO), 16
                )
                for port in ports
            ]
            vector = IoVec(b"x", 1)
            messages = (MMsgHdr * len(ports))(
                *(MMsgHdr(ctypes.addressof(n), 16, ctypes.addressof(vector), 1) for n in names)
            )
            sent = ctypes.CDLL(None).sendmmsg(sock.fileno(), messages, len(ports), 0)
            assert sent == len(ports)
            return inode(sock)

    number, sender = run(send_all, b"mmsg")
    events = [event for event in witness.of_inode(number) if event.kind is SEND]
    assert [event.remote_port for event in events] == ports
    assert {who_told(event) for event in events} == {sender}
    for sock in receivers:
        sock.close()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_a_socket_passed_to_a_stranger(witness: Witness, kind: int) -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def wait_and_send() -> int:
        _, rights, _, _ = there.recvmsg(1, socket.CMSG_SPACE(4))
        descriptor = array.array("i", rights[0][2][:4])[0]
        with socket.socket(fileno=descriptor) as sock:
            return sock.send(b"x")

    stranger = Child(wait_and_send, b"stranger")  # forked before the socket is there
    receiver = socket.create_server(("127.0.0.1", 0)) if kind == socket.SOCK_STREAM else udp(
        bound="127.0.0.1"
    )  # fmt: skip
    sock = socket.socket(INET, kind)
    sock.connect(receiver.getsockname())
    number, ends = inode(sock), tuple_of(sock)
    fds = array.array("i", [sock.fileno()])
    here.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    sent, expected = stranger.result()
    assert sent == 1
    (event,) = (event for event in witness.of_inode(number) if event.kind is SEND)
    assert who_told(event) == expected != who()
    assert tuple_told(event) == ends
    for each in (here, there, receiver, sock):
        each.close()


# -- ICMP and raw -----------------------------------------------------------------------------

ECHO = {INET: 8, INET6: 128}
PINGS = [
    pytest.param(INET, "127.0.0.1", ICMP, id="v4"),
    pytest.param(INET6, "::1", ICMP6, id="v6"),
]


@pytest.mark.parametrize(("family", "host", "protocol"), PINGS)
def test_ping_sockets(witness: Witness, family: int, host: str, protocol: int) -> None:
    def ping() -> tuple[int, int]:
        with socket.socket(family, socket.SOCK_DGRAM, protocol) as sock:
            sock.sendto(struct.pack("!BBHHH", ECHO[family], 0, 0, 0, 1), (host, 0))
            sock.recv(100)
            return inode(sock), sock.getsockname()[1]

    (number, icmp_id), pinger = run(ping, b"pinger")
    sent, *others, closed = witness.of_inode(number)
    address = socket.inet_pton(family, host)
    assert (sent.kind, closed.kind, sent.protocol) == (SEND, CLOSE, protocol)
    assert tuple_told(sent) == (address, icmp_id, address, icmp_id)
    for event in (sent, *others):
        assert who_told(event) == pinger
        assert event.local_port == icmp_id


@pytest.mark.parametrize(("family", "host", "protocol"), PINGS)
def test_pings_of_a_raw_socket(witness: Witness, family: int, host: str, protocol: int) -> None:
    def ping() -> int:
        with socket.socket(family, socket.SOCK_RAW, protocol) as sock:
            packet = struct.pack("!BBHHH", ECHO[family], 0, 0, 4711, 1)
            if family == INET:
                packet = struct.pack("!BBHHH", 8, 0, 0xFFFF - 0x0800 - 4711 - 1, 4711, 1)
            sock.sendto(packet, (host, 0))
            sock.recv(100)
            return inode(sock)

    number, pinger = run(ping, b"pinger")
    sent, closed = witness.of_inode(number)
    address = socket.inet_pton(family, host)
    assert (sent.kind, closed.kind, sent.protocol) == (SEND, CLOSE, protocol)
    assert who_told(sent) == pinger
    assert tuple_told(sent) == (address, 4711, address, 4711)


@pytest.mark.parametrize(("family", "host"), FAMILIES[:2])
def test_raw_sockets(witness: Witness, family: int, host: str) -> None:
    protocol = 253  # for experiments (RFC 3692)
    receiver = socket.socket(family, socket.SOCK_RAW, protocol)

    def shoot() -> int:
        with socket.socket(family, socket.SOCK_RAW, protocol) as sock:
            sock.sendto(b"x" * 101, (host, 0))
            return inode(sock)

    number, shooter = run(shoot, b"shooter")
    receiver.recv(1000)
    sent, closed = witness.of_inode(number)
    address = socket.inet_pton(family, host)
    assert kinds([sent, closed]) == [SEND, CLOSE]
    assert who_told(sent) == shooter
    assert sent.protocol == protocol
    assert tuple_told(sent) == (address, 0, address, 0)
    received = witness.of_inode(inode(receiver))
    if has(witness.owners, "sock_recv_length"):
        assert kinds(received) == [RECEIVE]
    assert all((who_told(each), each.protocol) == (who(), protocol) for each in received)
    receiver.close()


def test_a_header_of_one_s_own(witness: Witness) -> None:
    sink = udp(bound="127.0.0.1")
    port = sink.getsockname()[1]

    def forge() -> int:
        with socket.socket(INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
            # With an option (two no-operations and an end), so that the ports are not at 20.
            header = struct.pack(
                "!BBHHHBBH4s4s4s", 0x46, 0, 33, 7, 0, 64, UDP, 0, LO, LO, b"\1\1\0"
            )
            sock.sendto(header + struct.pack("!HHHH", 4712, port, 9, 0) + b"x", ("127.0.0.1", 0))
            return inode(sock)

    number, forger = run(forge, b"forger")
    sent = witness.of_inode(number)[0]
    assert (sent.kind, sent.protocol, who_told(sent)) == (SEND, UDP, forger)
    assert tuple_told(sent) == (LO, 4712, LO, port)
    sink.close()


# -- who --------------------------------------------------------------------------------------


def test_the_process_is_named_not_its_thread(witness: Witness) -> None:
    sink = udp(bound="127.0.0.1")

    def send_from_thread() -> int:
        with udp() as sock:
            thread = threading.Thread(target=named_send, args=(sock, sink.getsockname()))
            thread.start()
            thread.join()
            return inode(sock)

    number, process = run(send_from_thread, b"the-process")
    (event,) = (event for event in witness.of_inode(number) if event.kind is SEND)
    assert who_told(event) == process
    assert event.name == "the-process"
    sink.close()


def named_send(sock: socket.socket, to: tuple[str, int]) -> None:
    Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_bytes(b"the-thread")
    sock.sendto(b"x", to)


def test_two_hundred_processes_of_a_millisecond(
    witness: Witness, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    port, senders = launch([str(build(tmp_path)), *arguments("udp", SENDERS)])
    events = witness.where(
        lambda event: (event.kind, event.protocol, event.remote_port) == (SEND, UDP, port)
    )
    told = [(event.process, event.local_port) for event in events]
    truth = [((sender.pid, sender.start_time_ns), sender.local_port) for sender in senders]
    wrong = set(told) - set(truth)
    record_property("named", len(told))
    print(f"named {len(told)}, wrong {len(wrong)} of {SENDERS}")
    assert len(set(truth)) == SENDERS
    assert told == truth
    assert {event.name for event in events} == {"short-lived"}


# -- before, loss and end ---------------------------------------------------------------------


def test_sockets_that_are_older_than_the_hooks(inside: Namespace) -> None:
    client, accepted, listener = connection()
    sender, sink, quiet = udp(), udp(bound="127.0.0.1"), udp(bound="127.0.0.1")
    owners = CoreOwners.open()
    try:
        witness = Witness(owners)
        run(lambda: len(accepted.getpeername()), b"asker")
        client.send(b"x")
        accepted.recv(1)
        sender.sendto(b"x", sink.getsockname())
        sink.recvfrom(1)
        assert kinds(witness.of_inode(inode(client))) == [SEND]
        assert kinds(witness.of_inode(inode(accepted))) == [RECEIVE]  # not ACCEPT, by whoever asks
        (sent,) = witness.of_inode(inode(sender))
        assert tuple_told(sent)[1:] == (sender.getsockname()[1], LO, sink.getsockname()[1])
        assert kinds(witness.of_inode(inode(sink))) == [RECEIVE]
        for event in (*witness.of_inode(inode(client)), sent):
            assert who_told(event) == who()
        assert witness.of_inode(inode(quiet)) == []
    finally:
        owners.close()
        for sock in (client, accepted, listener, sender, sink, quiet):
            sock.close()


def test_a_snapshot_is_what_proc_shows(owners: CoreOwners, inside: Namespace) -> None:
    client, accepted, listener = connection(INET6, "::ffff:127.0.0.1")
    bound, unbound = udp(bound="127.0.0.1"), udp()
    connected = udp(INET6)
    connected.connect(("::1", 9))
    raw = socket.socket(INET, socket.SOCK_RAW, 253)
    child = Child(lambda: time.sleep(1.0))
    try:
        expected = SocketScanner().scan(inside.inode)
        scan = owners.snapshot(inside.inode)
        wildcard = {bytes(4): b"", bytes(16): b""}

        def comparable(sockets: list[Socket]) -> set[Socket]:
            return {s._replace(remote_address=wildcard.get(s[5], s[5])) for s in sockets}

        assert comparable(scan.sockets) == comparable(expected.sockets)
        assert len(scan.sockets) == 6
        assert scan.holders == expected.holders
        assert {len(holders) for holders in scan.holders.values()} == {2}
        assert inode(unbound) not in scan.holders
        assert len(owners.snapshot().sockets) >= 6
    finally:
        child.result()
        for sock in (client, accepted, listener, bound, unbound, connected, raw):
            sock.close()


def test_a_full_ring_is_counted(inside: Namespace) -> None:
    owners = CoreOwners.open(ring_bytes=4096)
    sender, sink = udp(), udp(bound="0.0.0.0")
    try:
        port = sink.getsockname()[1]
        peers = [f"127.1.0.{n}" for n in range(1, 200)]
        for peer in peers:
            sender.sendto(b"x", (peer, port))
        lost = owners.events_lost()
        events = [event for event in owners.read() if event.inode == inode(sender)]
        assert lost > 0
        assert len(events) < len(peers) <= len(events) + lost
        # What was lost is told when it happens again, what was told is not.
        for peer in (peers[0], peers[-1]):
            sender.sendto(b"x", (peer, port))
        again = [event for event in owners.read() if event.inode == inode(sender)]
        assert [event.remote_address for event in again] == [socket.inet_aton(peers[-1])]
    finally:
        owners.close()
        sender.close()
        sink.close()


def attached() -> int:
    """BPF links of the whole machine."""
    library = ctypes.CDLL("libbpf.so.1")
    number, link = 0, ctypes.c_uint32(0)
    while library.bpf_link_get_next_id(link, ctypes.byref(link)) == 0:
        number += 1
    return number


def test_close_gives_everything_back(owners: CoreOwners) -> None:
    files, threads, links = open_files(), threading.active_count(), attached()
    second = CoreOwners.open()
    assert attached() == links + len(second.hooks)
    lost = second.events_lost()
    second.close()
    second.close()
    assert (second.read(), second.fileno(), second.events_lost()) == ([], -1, lost)
    assert (open_files(), threading.active_count()) == (files, threads)
    assert attached() == links


HOLD = """
from procnet.bpf.core import CoreOwners
import sys, time
owners = CoreOwners.open()
print(len(owners.hooks), flush=True)
time.sleep(600)
"""


def hold(*prefix: str) -> subprocess.Popen[str]:
    command = [*prefix, sys.executable, "-c", HOLD]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=TOP)


def test_cgroup_v2_need_not_be_mounted_where_we_are(loopback: Namespace) -> None:
    # `ip netns exec` puts the namespace's own /sys above what was mounted below the other.
    code = (
        "from procnet.bpf.core import CoreOwners\n"
        "assert 'cgroup2' not in open('/proc/self/mountinfo').read()\n"
        "owners = CoreOwners.open(); print(len(owners.hooks)); owners.close()\n"
        "assert 'cgroup2' not in open('/proc/self/mountinfo').read()\n"
    )
    said = subprocess.check_output(loopback.argv([sys.executable, "-c", code]), cwd=TOP, text=True)
    assert int(said) >= 8


def test_a_kill_detaches_everything_and_three_capabilities_are_enough() -> None:
    links = attached()
    capabilities = "-all,+bpf,+perfmon,+net_admin"
    process = hold(
        "setpriv", "--reuid=65534", "--clear-groups", f"--inh-caps={capabilities}",
        f"--ambient-caps={capabilities}",
    )  # fmt: skip
    assert process.stdout is not None
    try:
        number = int(process.stdout.readline())
        assert attached() == links + number
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    deadline = time.monotonic() + 5
    while attached() != links and time.monotonic() < deadline:
        time.sleep(0.01)
    assert attached() == links


def test_ready_in_time_and_small() -> None:
    code = (
        "import time; begun = time.monotonic()\n"
        "from procnet.bpf.core import CoreOwners\n"
        "opened = time.monotonic(); owners = CoreOwners.open()\n"
        "ready = time.monotonic()\n"
        "status = open('/proc/self/status').read()\n"
        "print(ready - opened, ready - begun, status.split('VmHWM:')[1].split()[0])\n"
    )
    said = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=TOP)
    open_s, all_s, peak_kb = map(float, said.split())
    print(f"open {open_s * 1e3:.0f} ms, with imports {all_s * 1e3:.0f} ms, peak {peak_kb:.0f} kB")
    assert peak_kb < 40_000
    assert open_s < 2.0  # the target is 0.15; a machine may be busy, or emulated


def test_the_clock_tick_of_a_start_time(witness: Witness) -> None:
    client, accepted, listener = connection()
    (event,) = witness.of_inode(inode(client))
    assert event.process.start_time_ns % CLOCK_TICK_NS == 0
    for sock in (client, accepted, listener):
        sock.close()
