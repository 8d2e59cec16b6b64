"""Sockets that were open before the monitor: the kernel's snapshot says whose they are."""

from __future__ import annotations

import array
import ctypes
import os
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from typing import NamedTuple

import pytest

import procnet
from procnet.bpf.core import CoreOwners
from procnet.ledger.keys import key_of_socket
from procnet.model import Evidence, FlowKey, ProcessId, SocketScan
from procnet.sockets.scanner import SocketScanner
from tests.privileged.namespace import WAIT_S, Namespace, wait_until
from tests.privileged.owners.actors import connection, inode

CLONE_FILES = 0x400
BULK_BYTES = 23 * 997
DATAGRAMS, DATAGRAM_BYTES = 7, 101
FILES = 2_100_001
"""The iterator passes a million in one read (MAX_ITER_OBJECTS), the first of which has rows."""


class Actor:
    """A forked process that has this one socket, and sends what it is told to."""

    def __init__(self, kept: socket.socket, *others: socket.socket) -> None:
        self._told, told = socket.socketpair()
        self.port = kept.getsockname()[1]
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._told.close()
                for other in others:
                    other.close()
                while number := told.recv(16):
                    kept.sendall(bytes(int(number)))
                    told.sendall(b".")
            finally:
                os._exit(0)
        told.close()
        self._told.settimeout(WAIT_S)

    def send(self, number: int) -> None:
        self._told.sendall(str(number).encode())
        assert self._told.recv(1) == b"."

    def end(self) -> None:
        # Later actors have this end of the pair, too: closing it would tell nothing.
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._told.close()


class Row(NamedTuple):
    """Of one flow, for one owner. ``who``: its pid, or those of the candidates."""

    who: frozenset[int]
    evidence: str
    sent: int
    received: int


def rows(report: procnet.Report, local_port: int) -> set[Row]:
    return {
        Row(
            frozenset(each.pid for each in ([flow.process] if flow.process else flow.candidates)),
            (flow.evidence or flow.reason).value,  # type: ignore[union-attr]
            flow.sent.payload_bytes,
            flow.received.payload_bytes,
        )
        for flow in report.flows
        if flow.local.port == local_port
    }


def udp(peer: tuple[str, int] | None = None) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("127.0.0.1", 0))
    if peer is not None:
        made.connect(peer)
    return made


def pair(kind: int) -> tuple[socket.socket, socket.socket]:
    """Two sockets that are connected to each other."""
    if kind == socket.SOCK_STREAM:
        client, accepted, listener = connection()
        listener.close()
        return client, accepted
    one = udp()
    other = udp(one.getsockname())
    one.connect(other.getsockname())
    return one, other


def send_from_older_sockets() -> list[tuple[int, int, set[Row]]]:
    client, server = (Actor(*ends) for ends in both_ways(pair(socket.SOCK_STREAM)))
    quiet_client, busy_server = (Actor(*ends) for ends in both_ways(pair(socket.SOCK_STREAM)))
    bound = udp()
    sender = Actor(udp(bound.getsockname()), bound)
    receiver = Actor(bound)
    bound.close()
    listener = socket.create_server(("127.0.0.1", 0))
    listening = Actor(listener)
    actors = (client, server, quiet_client, busy_server, sender, receiver, listening)
    address = listener.getsockname()
    listener.close()
    try:
        with procnet.Monitor(["lo"], kernel="core") as monitor:
            client.send(BULK_BYTES)
            busy_server.send(BULK_BYTES)
            for _ in range(DATAGRAMS):
                sender.send(DATAGRAM_BYTES)
            with socket.create_connection(address) as newcomer:
                newcomer.sendall(bytes(DATAGRAM_BYTES))
        report = monitor.report()
    finally:
        for actor in actors:
            actor.end()
    return [(actor.pid, actor.port, rows(report, actor.port)) for actor in actors]


def both_ways(
    ends: tuple[socket.socket, socket.socket],
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Each with its other end; closed here when both have been forked off."""
    one, other = ends
    yield one, other
    yield other, one
    one.close()
    other.close()


def test_who_does_nothing_with_an_older_socket_is_named_by_the_snapshot(
    loopback: Namespace,
) -> None:
    found = loopback.call(send_from_older_sockets)
    datagrams = DATAGRAMS * DATAGRAM_BYTES
    expected = [
        ("KERNEL_EVENT", BULK_BYTES, 0),  # it acts
        ("KERNEL_SNAPSHOT", 0, BULK_BYTES),  # it never reads
        ("KERNEL_SNAPSHOT", 0, BULK_BYTES),
        ("KERNEL_EVENT", BULK_BYTES, 0),
        ("KERNEL_EVENT", datagrams, 0),
        ("KERNEL_SNAPSHOT", 0, datagrams),
        ("LISTENER", 0, DATAGRAM_BYTES),  # nobody accepts it
    ]
    for (pid, _, told), row in zip(found, expected, strict=True):
        assert told == {Row(frozenset((pid,)), *row)}


def share_an_older_socket(kind: int) -> tuple[list[int], set[Row], set[Row]]:
    shared, far = pair(kind)
    one, two, peer = Actor(shared, far), Actor(shared, far), Actor(far, shared)
    shared.close()
    far.close()
    try:
        with procnet.Monitor(["lo"], kernel="core") as monitor:
            peer.send(DATAGRAM_BYTES)

            def settled() -> set[Row]:
                told = rows(monitor.report(), one.port)
                return told if told and "PENDING" not in {row.evidence for row in told} else set()

            before = wait_until(settled, "what was received to be settled")
            two.send(BULK_BYTES)
        after = rows(monitor.report(), one.port)
    finally:
        for actor in (one, two, peer):
            actor.end()
    return [one.pid, two.pid], before, after


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_shared_older_socket_is_nobodys_until_one_acts(loopback: Namespace, kind: int) -> None:
    (one, two), before, after = loopback.call(share_an_older_socket, int(kind))
    unsure = Row(frozenset((one, two)), "AMBIGUOUS", 0, DATAGRAM_BYTES)
    assert before == {unsure}
    assert after == {unsure, Row(frozenset((two,)), "KERNEL_EVENT", BULK_BYTES, 0)}


def reuse_the_tuple_of_a_dead_connection() -> tuple[int, int, set[Row]]:
    listener = socket.create_server(("127.0.0.1", 0))
    dead, accepted = socket.create_connection(listener.getsockname()), listener.accept()[0]
    reset(accepted)
    holder = Actor(dead, listener)  # it does not close it
    port = holder.port
    dead.close()
    try:
        with procnet.Monitor(["lo"], kernel="core") as monitor:
            again = socket.create_connection(listener.getsockname(), source_address=("", port))
            accepted = listener.accept()[0]
            for total in (DATAGRAM_BYTES, 2 * DATAGRAM_BYTES, 3 * DATAGRAM_BYTES):
                again.sendall(bytes(DATAGRAM_BYTES))
                assert len(accepted.recv(2 * DATAGRAM_BYTES)) == DATAGRAM_BYTES
                wait_until(
                    lambda total=total: any(  # type: ignore[misc]
                        row.sent == total for row in rows(monitor.report(), port)
                    ),
                    "what was sent to be settled",
                )
                looks = monitor._ledger.owners._previous_look_ns
                wait_until(
                    lambda looks=looks: monitor._ledger.owners._previous_look_ns > looks,  # type: ignore[misc]
                    "another look",
                )
        told = rows(monitor.report(), port)
        for each in (again, accepted, listener):
            each.close()
    finally:
        holder.end()
    return os.getpid(), holder.pid, told


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def test_who_still_holds_a_dead_connection_has_no_part_in_the_next(loopback: Namespace) -> None:
    user, _, told = loopback.call(reuse_the_tuple_of_a_dead_connection)
    assert told == {Row(frozenset((user,)), "KERNEL_EVENT", 3 * DATAGRAM_BYTES, 0)}


# -- the snapshot and the tables --------------------------------------------------------------


Known = dict[int, tuple[FlowKey, frozenset[ProcessId]]]


def known(scan: SocketScan) -> Known:
    """What the ledger makes of a look: a socket is something to it that has an endpoint, an inode
    and a holder."""
    return {
        each.inode: (key, scan.holders[each.inode])
        for each in scan.sockets
        if (key := key_of_socket(each)) is not None and scan.holders.get(each.inode)
    }


def every_kind() -> Iterator[tuple[bool, socket.socket]]:
    """(whether a look shows it, the socket)."""
    group = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    group.bind(("224.0.0.251", 5353))
    group6 = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    group6.bind(("ff05::fb", 5354))
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 253)
    for each in (group, group6, raw, udp(), *pair(socket.SOCK_STREAM), *pair(socket.SOCK_DGRAM)):
        yield True, each
    # In the queue of a listener, in TIME_WAIT, reset by its peer, closed by its peer.
    listener = socket.create_server(("127.0.0.1", 0))
    yield True, listener
    yield True, socket.create_connection(listener.getsockname())
    closed_first, closed_second = pair(socket.SOCK_STREAM)
    closed_first.close()
    closed_second.close()
    dead, resetting = pair(socket.SOCK_STREAM)
    reset(resetting)
    yield False, dead
    waiting, closing = pair(socket.SOCK_STREAM)
    closing.close()
    yield True, waiting
    # Without a peer, without an address, refused.
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    yield False, bound
    yield False, socket.socket()
    yield False, socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    refused = socket.socket()
    assert refused.connect_ex(bound.getsockname()) != 0
    yield False, refused


def look_both_ways() -> tuple[Known, Known, set[int], set[int], int]:
    made = list(every_kind())
    # On its way to another process: open nowhere.
    way_in, way_out = socket.socketpair()
    flying = udp()
    way_in.sendmsg(
        [b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [flying.fileno()]))]
    )
    number = inode(flying)
    flying.close()
    netns = os.stat("/proc/self/ns/net").st_ino
    owners = CoreOwners.open(netns=netns)
    try:
        by_kernel, by_proc = owners.snapshot(), SocketScanner().scan(netns)
    finally:
        owners.close()
    assert by_kernel.evidence is Evidence.KERNEL_SNAPSHOT
    way_out.close()
    return (
        known(by_kernel),
        known(by_proc),
        {inode(each) for shown, each in made if shown},
        {inode(each) for shown, each in made if not shown},
        number,
    )


def test_the_ledger_learns_from_the_snapshot_what_it_learns_from_proc(loopback: Namespace) -> None:
    by_kernel, by_proc, shown, hidden, flying = loopback.call(look_both_ways)
    assert by_kernel == by_proc
    assert shown <= by_kernel.keys()
    assert by_kernel.keys().isdisjoint({*hidden, flying})


def look_at_a_thread_of_its_own() -> tuple[bool, bool]:
    ready, enough = threading.Event(), threading.Event()
    numbers = []

    def keep() -> None:
        assert ctypes.CDLL(None).unshare(CLONE_FILES) == 0
        with udp() as alone:
            # Not inode(): /proc/self/fd is the table of the first thread.
            link = os.readlink(f"/proc/thread-self/fd/{alone.fileno()}")
            numbers.append(int(link[len("socket:[") : -1]))
            ready.set()
            enough.wait(WAIT_S)

    thread = threading.Thread(target=keep)
    netns = os.stat("/proc/self/ns/net").st_ino
    owners = CoreOwners.open(netns=netns)
    thread.start()
    try:
        assert ready.wait(WAIT_S)
        scans = owners.snapshot(), SocketScanner().scan(netns)
    finally:
        enough.set()
        thread.join()
        owners.close()
    by_kernel, by_proc = ({each.pid for each in scan.holders.get(numbers[0], ())} for scan in scans)
    return by_kernel == {os.getpid()}, by_proc == {os.getpid()}


def test_a_thread_with_descriptors_of_its_own_is_seen_by_the_kernel_alone(
    loopback: Namespace,
) -> None:
    assert loopback.call(look_at_a_thread_of_its_own) == (True, False)


def look_past_millions_of_files() -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    each = min(limit, FILES) - 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    nothing = os.open(os.devnull, os.O_RDONLY)
    for _ in range(each):
        os.dup(nothing)
    pids = [pause() for _ in range(FILES // each + 1)]
    try:
        with udp() as last:
            pids.append(pause())
            owners = CoreOwners.open(netns=os.stat("/proc/self/ns/net").st_ino)
            try:
                scan = owners.snapshot()
            finally:
                owners.close()
            return len(scan.holders[inode(last)])
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def pause() -> int:
    """Forks off a process that does nothing, with all that is open here."""
    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    return pid


def test_processes_cannot_hide_a_socket_behind_millions_of_files(loopback: Namespace) -> None:
    # An emulated processor takes minutes.
    assert loopback.call(look_past_millions_of_files, timeout_s=300.0) == 2
