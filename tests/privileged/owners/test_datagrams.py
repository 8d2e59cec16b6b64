"""Who sends and who receives a datagram: what every family tells."""

from __future__ import annotations

import os
import socket

import pytest

from procnet.model import UDP
from tests.privileged.owners import syscalls
from tests.privileged.owners.actors import (
    ACCEPT,
    CLOSE,
    CONNECT,
    FAMILIES,
    LO,
    RECEIVE,
    SEND,
    Child,
    Witness,
    close,
    connection,
    inode,
    kinds,
    packed,
    run,
    tuple_of,
    tuple_told,
    udp,
    who,
    who_told,
)
from tests.privileged.owners.gaps import Instead

SENDS = 1009
CHANGES = 23
WORKERS = 5
PEERS = 7
GROUP = "239.255.42.99"


def port_of(sock: socket.socket) -> int:
    return int(sock.getsockname()[1])


@pytest.mark.parametrize(("family", "host"), FAMILIES)
def test_datagrams_without_a_connection(witness: Witness, family: int, host: str) -> None:
    receiver = udp(family, "" if host.startswith("::ffff") else host)
    port = port_of(receiver)

    def send() -> tuple[int, int]:
        with udp(family) as sock:
            sock.sendto(b"x", (host, port))
            return inode(sock), port_of(sock)

    (number, own_port), sender = run(send)
    receiver.recvfrom(10)
    address = packed(receiver, host)
    sent, closed = witness.of_inode(number)
    assert who_told(sent) == sender
    assert (sent.kind, sent.protocol) == (SEND, UDP)
    assert tuple_told(sent) == (witness.own_address(address), own_port, address, port)
    assert closed.kind is CLOSE
    assert (closed.local_port, closed.remote_address) == (own_port, b"")
    (received,) = witness.of(receiver)
    assert (received.kind, who_told(received)) == (RECEIVE, who())
    bound = packed(receiver, receiver.getsockname()[0])
    if witness.gap("local address of a receiver on the wildcard") is Instead.WILDCARD:
        local = address if any(bound) else bytes(len(address))
    else:
        local = address
    assert tuple_told(received) == (local, port, address, own_port)
    receiver.close()


@pytest.mark.parametrize(("family", "host"), FAMILIES)
def test_datagrams_of_a_connected_socket(witness: Witness, family: int, host: str) -> None:
    receiver = udp(family, "" if host.startswith("::ffff") else host)
    sender = udp(family)
    sender.connect((host, port_of(receiver)))
    sender.send(b"x")
    _, back = receiver.recvfrom(10)
    receiver.sendto(b"y", back)
    sender.recv(10)
    number, ends = inode(sender), tuple_of(sender)
    sender.close()
    events = witness.of_inode(number)
    assert kinds(events) == [SEND, CLOSE]
    assert [tuple_told(event) for event in events] == [ends, ends]
    answers = witness.of(receiver)
    assert kinds(answers)[:1] == [RECEIVE]
    assert {who_told(event) for event in answers} == {who()}
    assert {tuple_told(event)[1:] for event in answers} == {(ends[3], *ends[:2])}
    receiver.close()


@pytest.mark.parametrize("connect", [True, False], ids=["connected", "unconnected"])
def test_a_forked_child_that_sends_on_the_socket_of_its_parent(
    witness: Witness, connect: bool
) -> None:
    sender, sink = udp(bound="127.0.0.1"), udp(bound="127.0.0.1")
    if connect:
        sender.connect(sink.getsockname())
    to = [] if connect else [sink.getsockname()]
    send = sender.send if connect else sender.sendto
    _, child = run(lambda: send(b"x", *to))
    (sent,) = witness.of(sender)
    assert (sent.kind, who_told(sent)) == (SEND, child)
    assert tuple_told(sent) == (LO, port_of(sender), LO, port_of(sink))
    assert witness.where(lambda event: port_of(sink) in tuple_told(event)) == [sent]
    close(sender, sink)


def test_who_receives_without_asking_for_the_address(witness: Witness) -> None:
    receiver, sender = udp(bound="127.0.0.1"), udp()
    sender.sendto(b"x", receiver.getsockname())
    _, taker = run(lambda: len(receiver.recv(10)), b"taker")
    (received,) = witness.of(receiver)
    assert (received.kind, who_told(received)) == (RECEIVE, taker)
    assert tuple_told(received) == (LO, port_of(receiver), LO, port_of(sender))
    # Of several that wait, nobody may know which one was taken; all gone, it is clear again.
    other = udp(bound="127.0.0.1")
    for each in (sender, other):
        each.sendto(b"x", receiver.getsockname())
    _, second = run(lambda: [len(receiver.recv(10)) for _ in range(2)], b"second")
    other.sendto(b"x", receiver.getsockname())
    _, third = run(lambda: len(receiver.recv(10)), b"third")
    told = [(who_told(event), event.remote_port) for event in witness.of(receiver)]
    if witness.gap("several flows wait") is Instead.NO_PEER:
        of_second = [(second, 0)]
    else:
        of_second = [(second, port_of(sender)), (second, port_of(other))]
    assert told == [(taker, port_of(sender)), *of_second, (third, port_of(other))]
    close(receiver, sender, other)


def test_a_connected_socket_that_only_receives(witness: Witness) -> None:
    one, other = udp(bound="127.0.0.1"), udp(bound="127.0.0.1")
    one.connect(other.getsockname())
    other.sendto(b"x", one.getsockname())
    _, taker = run(lambda: len(one.recv(10)), b"taker")
    (received,) = witness.of(one)
    assert (received.kind, who_told(received)) == (RECEIVE, taker)
    assert tuple_told(received) == tuple_of(one)
    close(one, other)


@pytest.mark.parametrize("data", [b"x", b""], ids=["a byte", "empty"])
@pytest.mark.parametrize("address", [False, True], ids=["no address", "address"])
def test_a_peek_takes_nothing(witness: Witness, address: bool, data: bytes) -> None:
    receiver, sender = udp(bound="127.0.0.1"), udp()
    sender.sendto(data, receiver.getsockname())
    peek = receiver.recvfrom if address else receiver.recv
    run(lambda: len(peek(10, socket.MSG_PEEK)), b"peeker")
    _, taker = run(lambda: len(receiver.recvfrom(10)[0]), b"taker")
    (event,) = witness.of(receiver)
    assert (event.kind, who_told(event)) == (RECEIVE, taker)
    close(receiver, sender)


def test_reuseport_workers(witness: Witness) -> None:
    first = udp()
    first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    first.bind(("127.0.0.1", 0))
    port = port_of(first)
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
    close(*senders)


def test_a_multicast_sender_and_two_receivers(witness: Witness) -> None:
    membership = socket.inet_aton(GROUP) + LO
    receivers = []
    for _ in range(2):
        sock = udp()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", port_of(receivers[0]) if receivers else 0))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        receivers.append(sock)
    port = port_of(receivers[0])

    def send() -> tuple[int, int]:
        with udp() as sock:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, LO)
            sock.sendto(b"x", (GROUP, port))
            return inode(sock), port_of(sock)

    (number, own_port), sender = run(send, b"sender")
    takers = [run(lambda sock=sock: len(sock.recvfrom(10)[0]), b"taker")[1] for sock in receivers]
    (event,) = witness.sends(number)
    assert who_told(event) == sender
    group = socket.inet_aton(GROUP)
    assert tuple_told(event) == (witness.own_address(LO), own_port, group, port)
    gap = witness.gap("local address of a receiver on the wildcard")
    local = bytes(4) if gap is Instead.WILDCARD else group
    for sock, taker in zip(receivers, takers, strict=True):
        (received,) = witness.of(sock)
        assert (received.kind, who_told(received)) == (RECEIVE, taker)
        assert tuple_told(received) == (local, port, LO, own_port)
    close(*receivers)


def test_each_peer_is_told(witness: Witness) -> None:
    receivers = [udp(bound="127.0.0.1") for _ in range(CHANGES)]
    sender = udp()
    for _ in range(2):
        for receiver in receivers:
            sender.sendto(b"x", receiver.getsockname())
    events = witness.of(sender)
    assert [event.remote_port for event in events] == [port_of(each) for each in receivers]
    close(sender, *receivers)


def test_sendmmsg_to_many(witness: Witness) -> None:
    receivers = [udp(bound="127.0.0.1") for _ in range(PEERS)]
    ports = [port_of(receiver) for receiver in receivers]

    def send_all() -> int:
        with udp() as sock:
            assert syscalls.sendmmsg(sock, ports) == PEERS
            return inode(sock)

    number, sender = run(send_all, b"mmsg")
    events = witness.sends(number)
    assert [event.remote_port for event in events] == ports
    assert {who_told(event) for event in events} == {sender}
    close(*receivers)


@pytest.mark.parametrize("address", [True, False], ids=["address", "no-address"])
def test_recvmmsg_from_many(witness: Witness, address: bool) -> None:
    receiver = udp(bound="127.0.0.1")
    senders = [udp(bound="127.0.0.1") for _ in range(PEERS)]
    for sender in senders:
        sender.sendto(b"x", receiver.getsockname())
    taken, taker = run(lambda: syscalls.recvmmsg(receiver, PEERS, address=address), b"mmsg")
    assert taken == PEERS
    events = witness.of(receiver)
    assert kinds(events) == [RECEIVE] * PEERS
    assert [event.remote_port for event in events] == [port_of(sender) for sender in senders]
    assert {who_told(event) for event in events} == {taker}
    close(receiver, *senders)


def test_alternate_users_are_told_at_each_change(witness: Witness) -> None:
    receiver, sender = udp(bound="127.0.0.1"), udp()
    sender.connect(receiver.getsockname())
    asking, answering = os.pipe(), os.pipe()

    def send_when_asked() -> None:
        for _ in range(CHANGES):
            os.read(asking[0], 1)
            sender.send(b"x")
            os.write(answering[1], b".")

    child = Child(send_when_asked)
    for _ in range(CHANGES):
        sender.send(b"x")
        os.write(asking[1], b".")
        os.read(answering[0], 1)
    _, other = child.result()
    users = [event.process for event in witness.sends(inode(sender))]
    assert users == [who().process, other.process] * CHANGES
    close(sender, receiver)


def test_a_socket_used_over_and_over_by_one_process_is_told_once(witness: Witness) -> None:
    client, accepted, listener = connection()
    sender, connected = udp(), udp()
    receiver = udp(bound="127.0.0.1")
    connected.connect(receiver.getsockname())
    for _ in range(SENDS):
        client.sendall(b"x")
        accepted.recv(1)
        sender.sendto(b"x", receiver.getsockname())
        receiver.recv(1)
        connected.send(b"x")
        receiver.recv(1)
    assert kinds(witness.of(client)) == [CONNECT]
    assert kinds(witness.of(accepted)) == [ACCEPT, RECEIVE]
    assert kinds(witness.of(sender)) == kinds(witness.of(connected)) == [SEND]
    assert [event.remote_port for event in witness.of(receiver)] == [
        port_of(sender),
        port_of(connected),
    ]
    close(client, accepted, listener, sender, receiver, connected)
