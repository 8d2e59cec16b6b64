"""What the kprobes tell, on the kernel of the guest. tests/kernels/test_kprobe_vm.py runs this."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from procnet.bpf import kprobe
from procnet.bpf.host import Host
from procnet.bpf.kprobe import KprobeOwners, probe
from procnet.errors import LoadError, UnsupportedError
from procnet.model import (
    CLOCK_TICK_NS,
    ICMP,
    ICMP6,
    IPV4_WILDCARD,
    IPV6_WILDCARD,
    TCP,
    UDP,
    EventKind,
    OwnerEvent,
    Support,
)  # fmt: skip
from tests.kernels.guest.actors import (
    Child,
    Witness,
    connection,
    inode,
    kprobes,
    open_files,
    packed,
    run,
    tuple_of,
    tuple_told,
    who,
    who_told,
)

CONNECT, ACCEPT, SEND, RECEIVE, CLOSE, _ = EventKind
FAMILIES = [
    pytest.param(socket.AF_INET, "127.0.0.1", id="v4"),
    pytest.param(socket.AF_INET6, "::1", id="v6"),
    pytest.param(socket.AF_INET6, "::ffff:127.0.0.1", id="mapped"),
]
CLONE_NEWNET = 0x40000000
SENDS = 23


def kinds(events: list[OwnerEvent]) -> list[EventKind]:
    return [event.kind for event in events]


def udp(family: int = socket.AF_INET, bound: str | None = None) -> socket.socket:
    made = socket.socket(family, socket.SOCK_DGRAM)
    if bound is not None:
        made.bind((bound, 0))
    return made


# -- hooks ------------------------------------------------------------------------------------


def test_every_hook_attaches(owners: KprobeOwners) -> None:
    assert owners.missing_hooks == ()
    assert len(owners.hooks) == 14 == len(kprobes())
    assert {"tcp_connect", "accept", "udp_sendmsg"} <= set(owners.hooks)
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


def test_a_listener_closes(witness: Witness) -> None:
    for family, wildcard in ((socket.AF_INET, IPV4_WILDCARD), (socket.AF_INET6, IPV6_WILDCARD)):
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
    connect, close = witness.of_inode(number)
    assert (connect.kind, close.kind) == (CONNECT, CLOSE)
    assert connect.remote_port == port
    assert connect.local_port == close.local_port != 0
    # The kernel has forgotten the peer by now (tcp_disconnect).
    assert (close.remote_address, close.remote_port) == (b"", 0)


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


def test_whoever_accepts_is_told_even_without_a_byte(witness: Witness) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> int:
        # Without the address: nothing but accept() itself tells.
        descriptor, _ = listener._accept()
        with socket.socket(fileno=descriptor) as accepted:
            return inode(accepted)

    child = Child(accept)
    time.sleep(0.5)  # it waits in accept(), most likely; both orders must do
    client = socket.create_connection(listener.getsockname())
    number, acceptor = child.result()
    accepted = [event for event in witness.of_inode(number) if event.kind is ACCEPT]
    assert [who_told(event) for event in accepted] == [acceptor]
    assert acceptor.process != who().process
    client.close()
    listener.close()


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
    for sock in (client, accepted, listener):
        sock.close()


def test_splice_is_receiving(witness: Witness) -> None:
    client, accepted, listener = connection()
    number = inode(accepted)
    client.sendall(b"x" * 101)

    def splice() -> int:
        _, writing = os.pipe()
        return os.splice(accepted.fileno(), writing, 101)

    moved, splicer = run(splice, b"splicer")
    assert moved == 101
    events = witness.of_inode(number)
    assert kinds(events) == [ACCEPT, RECEIVE]
    assert who_told(events[1]) == splicer
    for sock in (client, accepted, listener):
        sock.close()


def test_a_socket_used_over_and_over_by_one_process_is_told_once(witness: Witness) -> None:
    client, accepted, listener = connection()
    sender = udp()
    receiver = udp(bound="127.0.0.1")
    for _ in range(SENDS):
        client.sendall(b"x")
        accepted.recv(1)
        sender.sendto(b"x", receiver.getsockname())
        receiver.recv(1)
    assert kinds(witness.of_inode(inode(client))) == [CONNECT]
    assert kinds(witness.of_inode(inode(accepted))) == [ACCEPT, RECEIVE]
    assert kinds(witness.of_inode(inode(sender))) == [SEND]
    assert kinds(witness.of_inode(inode(receiver))) == [RECEIVE]
    for sock in (client, accepted, listener, sender, receiver):
        sock.close()


# -- UDP --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "host"), FAMILIES)
def test_datagrams_without_a_connection(witness: Witness, family: int, host: str) -> None:
    receiver = udp(family, "" if host.startswith("::ffff") else host)
    port = receiver.getsockname()[1]
    (number, own_port), sender = run(lambda: send_from_new_socket(family, host, port))
    receiver.recv(10)

    (sent, closed) = witness.of_inode(number)
    address = packed(receiver, host)
    wildcard = bytes(len(address))
    assert who_told(sent) == sender
    assert (sent.kind, sent.protocol) == (SEND, UDP)
    assert tuple_told(sent) == (wildcard, own_port, address, port)
    assert closed.kind is CLOSE
    assert (closed.local_port, closed.remote_address) == (own_port, b"")

    (received,) = witness.of_inode(inode(receiver))
    assert (received.kind, who_told(received)) == (RECEIVE, who())
    # The receiver has the tuple of the packet, wherever it is bound.
    assert tuple_told(received) == (address, port, address, own_port)
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
    receiver.recv(10)
    number, ends = inode(sender), tuple_of(sender)
    sender.close()
    events = witness.of_inode(number)
    assert kinds(events) == [SEND, CLOSE]
    assert [tuple_told(event) for event in events] == [ends, ends]
    receiver.close()


def test_each_peer_is_told(witness: Witness) -> None:
    receivers = [udp(bound="127.0.0.1") for _ in range(SENDS)]
    sender = udp()
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
        for _ in range(SENDS):
            os.read(asking[0], 1)
            sender.send(b"x")
            os.write(answering[1], b".")

    child = Child(send_when_asked)
    for _ in range(SENDS):
        sender.send(b"x")
        os.write(asking[1], b".")
        os.read(answering[0], 1)
    _, other = child.result()
    users = [event.process for event in witness.of_inode(inode(sender)) if event.kind is SEND]
    assert users == [who().process, other.process] * SENDS
    for sock in (sender, receiver):
        sock.close()


# -- ICMP and raw -----------------------------------------------------------------------------

ECHO = {socket.AF_INET: 8, socket.AF_INET6: 128}


@pytest.mark.parametrize(
    ("family", "host", "protocol"),
    [(socket.AF_INET, "127.0.0.1", ICMP), (socket.AF_INET6, "::1", ICMP6)],
    ids=["v4", "v6"],
)
def test_ping_sockets(witness: Witness, family: int, host: str, protocol: int) -> None:
    def ping() -> tuple[int, int]:
        with socket.socket(family, socket.SOCK_DGRAM, protocol) as sock:
            sock.sendto(struct.pack("!BBHHH", ECHO[family], 0, 0, 0, 1), (host, 0))
            sock.recv(100)
            return inode(sock), sock.getsockname()[1]

    (number, icmp_id), pinger = run(ping, b"pinger")
    sent, received, closed = witness.of_inode(number)
    address = socket.inet_pton(family, host)
    assert kinds([sent, received, closed]) == [SEND, RECEIVE, CLOSE]
    assert who_told(sent) == who_told(received) == pinger
    assert sent.protocol == received.protocol == protocol
    assert tuple_told(sent) == (bytes(len(address)), icmp_id, address, icmp_id)
    assert tuple_told(received) == (address, icmp_id, address, icmp_id)


@pytest.mark.parametrize(
    ("family", "host"),
    [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")],
    ids=["v4", "v6"],
)
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
    assert tuple_told(sent) == (bytes(len(address)), 0, address, 0)
    (received,) = witness.of_inode(inode(receiver))
    assert (received.kind, received.protocol) == (RECEIVE, protocol)
    assert who_told(received) == who()
    assert tuple_told(received) == (address, 0, address, 0)
    receiver.close()


# -- who --------------------------------------------------------------------------------------


@pytest.fixture
def sink() -> Iterator[socket.socket]:
    with udp(bound="127.0.0.1") as made:
        yield made


def sent_by(witness: Witness, number: int) -> OwnerEvent:
    (event,) = (event for event in witness.of_inode(number) if event.kind is SEND)
    return event


def test_the_process_is_named_not_its_thread(witness: Witness, sink: socket.socket) -> None:
    def send_from_thread() -> int:
        with udp() as sock:
            thread = threading.Thread(target=named_send, args=(sock, sink.getsockname()))
            thread.start()
            thread.join()
            return inode(sock)

    number, process = run(send_from_thread, b"the-process")
    event = sent_by(witness, number)
    assert who_told(event) == process
    assert event.name == "the-process"


def named_send(sock: socket.socket, to: tuple[str, int]) -> None:
    Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_bytes(b"the-thread")
    sock.sendto(b"x", to)


def test_a_name_may_be_any_bytes(witness: Witness, sink: socket.socket) -> None:
    number, process = run(
        lambda: send_from_new_socket(socket.AF_INET, *sink.getsockname())[0], b"\xff) \x1b[1mR\n0"
    )
    event = sent_by(witness, number)
    assert event.process == process.process
    assert event.name == "\\xff) \x1b[1mR\n0"


def test_another_user(witness: Witness, sink: socket.socket) -> None:
    def send_as_nobody() -> int:
        number = 0
        with udp() as sock:
            number = inode(sock)
            os.setuid(65534)
            sock.sendto(b"x", sink.getsockname())
        return number

    # who() is asked after the change
    number, process = run(send_as_nobody)
    event = sent_by(witness, number)
    assert (event.uid, event.process) == (65534, process.process)


def test_another_network_namespace(witness: Witness) -> None:
    def send_elsewhere() -> int:
        assert ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0
        with udp() as sock:
            sock.bind(("0.0.0.0", 0))
            with contextlib.suppress(OSError):  # lo is down there
                sock.sendto(b"x", ("127.0.0.1", 9))
            return inode(sock)

    number, process = run(send_elsewhere)
    event = sent_by(witness, number)
    assert who_told(event) == process
    assert event.netns == process.netns != who().netns


def test_two_hundred_processes_of_a_millisecond(witness: Witness, short_lived: Path) -> None:
    first, *lines = subprocess.check_output(
        [short_lived, "udp", "200", "101", "0"], text=True
    ).splitlines()
    sink_port = int(first.split()[1])
    # A local port may serve two of them, one after the other.
    truth = [tuple(map(int, line.split()[:3])) for line in lines]
    events = witness.where(
        lambda event: (event.kind, event.protocol, event.remote_port) == (SEND, UDP, sink_port)
    )
    told = [
        (event.process.pid, event.process.start_time_ns // CLOCK_TICK_NS, event.local_port)
        for event in events
    ]
    wrong = set(told) - set(truth)
    lifetimes_us = sorted(int(line.split()[4]) for line in lines)
    print(f"named {len(told)}, wrong {len(wrong)} of 200, median life {lifetimes_us[100]} us")
    assert len(set(truth)) == 200
    assert told == truth
    assert {event.name for event in events} == {"short-lived"}


# -- loss, end and fallback -------------------------------------------------------------------


def test_a_full_ring_is_counted(owners: KprobeOwners) -> None:
    owners.read()
    lost_before = owners.events_lost()
    receiver = udp(bound="0.0.0.0")
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    port = receiver.getsockname()[1]
    sender = udp()
    peers = [f"127.1.{n >> 8}.{n & 255}" for n in range(40_000)]
    for peer in peers:  # each one a new tuple
        sender.sendto(b"x", (peer, port))
    lost = owners.events_lost() - lost_before
    events = [event for event in owners.read() if event.inode == inode(sender)]
    print(f"{len(events)} told, {lost} lost of {len(peers)}")
    assert lost > 0
    assert len(events) + lost >= len(peers) and len(events) < len(peers)
    assert [event.remote_address for event in events] == [
        socket.inet_aton(peer) for peer in peers[: len(events)]
    ]
    # What was lost is told when it happens again, what was told is not.
    for peer in (peers[0], peers[-1]):
        sender.sendto(b"x", (peer, port))
    again = [event for event in owners.read() if event.inode == inode(sender)]
    assert [event.remote_address for event in again] == [socket.inet_aton(peers[-1])]
    sender.close()
    receiver.close()


def test_a_second_one_is_opened_in_a_thread_read_here_and_gone_when_closed(
    witness: Witness, sink: socket.socket
) -> None:
    probes, files, threads = kprobes(), open_files(), threading.active_count()
    opened: list[KprobeOwners] = []
    thread = threading.Thread(target=lambda: opened.append(KprobeOwners.open()))
    thread.start()
    thread.join()
    (second,) = opened
    assert kprobes() == sorted(probes * 2)

    number, sender = run(lambda: send_from_new_socket(socket.AF_INET, *sink.getsockname())[0])
    for source in (second.read(), witness.of_inode(number)):
        (event,) = (e for e in source if e.inode == number and e.kind is SEND)
        assert who_told(event) == sender
    lost = second.events_lost()
    second.close()
    second.close()
    assert (second.read(), second.fileno(), second.events_lost()) == ([], -1, lost)
    assert kprobes() == probes
    assert (open_files(), threading.active_count()) == (files, threads)


# As nobody, with nothing but the two capabilities; with sockets that are older than the hooks.
UNPRIVILEGED = """
import os, socket, time
from procnet.bpf.kprobe import KprobeOwners
from procnet.model import EventKind
from tests.kernels.guest.actors import Child, connection, inode, who, who_told
client, accepted, listener = connection()
def accept():
    with listener.accept()[0] as sock:
        return inode(sock)
child = Child(accept)  # waits there before the hooks are attached
try:
    owners = KprobeOwners.open()
except BaseException:
    os.kill(child.pid, 9)
    raise
assert owners.missing_hooks == (), owners.missing_hooks
client.send(b"x")
later = socket.create_connection(listener.getsockname())
number, acceptor = child.result()
events = owners.read()
(sent,) = (event for event in events if event.inode == inode(client))
assert sent.kind is EventKind.SEND and who_told(sent) == who(), sent
(taken,) = (event for event in events if event.inode == number and event.kind is EventKind.ACCEPT)
assert who_told(taken) == acceptor, taken
print("done", os.getuid(), flush=True)
time.sleep(600)
"""


def as_nobody(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            "setpriv", "--reuid=65534", "--clear-groups", "--inh-caps=-all,+bpf,+perfmon",
            "--ambient-caps=-all,+bpf,+perfmon", sys.executable, "-c", code,
        ],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def paranoid() -> Iterator[Path]:
    path = Path("/proc/sys/kernel/perf_event_paranoid")
    before = path.read_text()
    yield path
    path.write_text(before)


def test_two_capabilities_are_enough_and_a_kill_detaches_everything(
    owners: KprobeOwners, paranoid: Path
) -> None:
    paranoid.write_text("2")
    probes = kprobes()
    process = as_nobody(UNPRIVILEGED)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "done 65534\n"
        assert kprobes() == sorted(probes * 2)
    finally:
        process.kill()
        process.communicate()
    assert kprobes() == probes


def test_debian_s_own_level_of_paranoia_is_named(paranoid: Path) -> None:
    paranoid.write_text("3")
    said, _ = as_nobody("from procnet.bpf.kprobe import probe; print(probe())").communicate()
    assert "Support.NO" in said
    assert "kernel.perf_event_paranoid is 3" in said
    assert "sysctl kernel.perf_event_paranoid=2" in said


def test_what_the_compiler_says_is_in_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kprobes.bcc.c").write_text("int on_tcp_connect(void *ctx) { return nonsense; }")
    monkeypatch.setattr(kprobe, "source_directory", lambda: tmp_path)
    with pytest.raises(LoadError, match="undeclared identifier 'nonsense'"):
        KprobeOwners.open()
    assert capfd.readouterr() == ("", "")


def headers(root: Path, release: str) -> Path:
    generated = root / os.uname().release / "build/include/generated"
    generated.mkdir(parents=True)
    (generated / "utsrelease.h").write_text(f'#define UTS_RELEASE "{release}"\n')
    return root


def test_headers_of_another_release_are_refused(tmp_path: Path) -> None:
    host = Host(modules_root=headers(tmp_path, "6.1.0-1-amd64"))
    feature = probe(host)
    assert feature.support is Support.NO
    assert "6.1.0-1-amd64" in feature.reason and os.uname().release in feature.reason
    with pytest.raises(UnsupportedError, match=r"6\.1\.0-1-amd64"):
        KprobeOwners.open(host)


def test_no_headers_are_refused(tmp_path: Path) -> None:
    feature = probe(Host(modules_root=tmp_path))
    assert feature.support is Support.NO
    assert f"no headers of the running kernel {os.uname().release}" in feature.reason
    assert f"linux-headers-{os.uname().release}" in feature.remedy
