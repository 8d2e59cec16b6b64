"""Sockets that are counted in one network namespace alone: those of the others take no room."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from procnet.bpf import libbpf
from procnet.bpf.core import CoreOwners
from tests.privileged import flooding
from tests.privileged.flooding import Flood
from tests.privileged.lab import Namespace
from tests.privileged.namespace import Traffic
from tests.privileged.reporting import Reporter, flows, in_namespace, payload, process_payload, wire
from tests.privileged.test_report import on_the_wire, ready_pair, transfer
from tests.privileged.test_socket_counting import TRIES

pytestmark = pytest.mark.privileged

FLOOD = 70_001
"""More tuples than any table has room for."""
REMOTES, ENDS, TARGET = 64, 61, "127.0.0.9"
STORAGES = ("sockets", "connections", "counters", "rests")
DATAGRAMS, DATAGRAM_BYTES, HEADER_BYTES = 23, 997, 28
CLONE_NEWNET = 0x40000000


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flooding.build(tmp_path_factory.mktemp("flood"))


class Kept(NamedTuple):
    here: int
    own: list[set[str]]
    """In which storages each socket is, and so on for those of another namespace."""
    others: list[set[str]]
    namespaces: set[int]
    """Of what was counted, told and looked at."""
    ends: tuple[int, int]
    """What one socket of ours has sent to: ports, and payload bytes for all of them."""
    lost: tuple[int, int]
    """Events, and packets of which the remote end is not known."""


def busy_sockets() -> list[socket.socket]:
    """Datagram, raw, listener and both ends of a connection; a byte went through all but one."""
    datagrams = socket.socket(type=socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 0))
    datagrams.sendto(b"a", datagrams.getsockname())
    assert datagrams.recv(2) == b"a"
    raw = socket.socket(type=socket.SOCK_RAW, proto=socket.IPPROTO_ICMP)
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    taker, _ = listener.accept()
    client.sendall(b"b")
    assert taker.recv(2) == b"b"
    return [datagrams, raw, listener, client, taker]


def storages_of(owners: CoreOwners, sock: socket.socket) -> set[str]:
    library, room = libbpf.load_library(), ctypes.create_string_buffer(4096)
    key = ctypes.c_int(sock.fileno())
    return {
        name
        for name in STORAGES
        if not library.bpf_map_lookup_elem(
            owners._bpf.map_descriptor(name), ctypes.byref(key), room
        )
    }


def what_is_kept(program: Path) -> Kept:
    """A process that listens to its namespace goes to another one, which is flooded."""
    here = os.stat("/proc/self/ns/net").st_ino
    with contextlib.closing(CoreOwners.open(netns=here, counting=True, remotes=REMOTES)) as owners:
        assert owners.counts is not None
        own = busy_sockets()
        assert not ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        others = busy_sockets()
        argv = [str(program), "udp", str(FLOOD)]
        said = subprocess.run(argv, input="go\n", capture_output=True, text=True, timeout=60)
        assert int(said.stdout.split()[1]) == FLOOD
        for number in range(ENDS):
            own[0].sendto(bytes(number), (TARGET, 20_000 + number))
        counts = [count for count in owners.counts.drain(surely=True) if count.key is not None]
        events, scan = owners.read(), owners.snapshot()
        keys = [count.key for count in counts]
        target = socket.inet_aton(TARGET)
        sent = [count for count in counts if count.key.remote_address == target and count.sent]
        return Kept(
            here,
            [storages_of(owners, each) for each in own],
            [storages_of(owners, each) for each in others],
            {row.netns for row in (*keys, *events, *scan.sockets)},
            (len({count.key.remote_port for count in sent}), sum(c.payload_bytes for c in sent)),
            (owners.events_lost(), owners.counts.unsplit_packets),
        )


def test_sockets_of_other_namespaces_take_no_room(loopback: Namespace, program: Path) -> None:
    """Or a flood there would leave none for what is told of ours."""
    kept = loopback.call(what_is_kept, program)
    datagram = {"sockets", "counters"}
    assert kept.own == [datagram, {"sockets"}, {"counters"}, {"counters"}, {"counters"}]
    assert kept.others == [set()] * 5
    assert kept.namespaces == {kept.here}
    assert kept.ends == (ENDS, sum(range(ENDS)))
    assert kept.lost == (0, 0)


def assert_moved(report: dict[str, object], pair: tuple[Traffic, Traffic]) -> int:
    """A pair's processes have in the report what they moved; payload bytes, each way."""
    server, client = pair
    up, down = on_the_wire(pair)
    assert process_payload(report, client.pid) == (up, down)
    assert process_payload(report, server.pid) == (down, up)
    return up + down


def test_without_containers_its_own_namespace_alone_is_counted(
    loopback: Namespace, program: Path
) -> None:
    with (
        Namespace("theirs") as theirs,
        Flood(theirs, program, "udp", str(FLOOD)) as flood,
    ):
        older = ready_pair(theirs, theirs, "tcp")
        reporter = Reporter(loopback, "--counting", "socket", "--containers", "off")
        assert reporter.first_line == "capturing on every socket of this network namespace\n"
        younger = ready_pair(theirs, theirs, "udp")
        tcp, udp = (ready_pair(loopback, loopback, protocol) for protocol in ("tcp", "udp"))
        flood.round()
        transfer(older, tcp, younger, udp)
        report = reporter.finish()
    moved = sum(assert_moved(report, pair) for pair in (tcp, udp))
    assert payload([report["totals"]]) == (moved, moved)
    rows = flows(report, protocol="udp")
    size = (DATAGRAMS + 1) * (HEADER_BYTES + DATAGRAM_BYTES)
    assert wire(rows) == (size, size)
    assert {row["netns"] for row in report["flows"]} == {loopback.inode}
    assert {row["pid"] for row in report["processes"]} == {end.pid for end in (*tcp, *udp)}
    assert report["unattributed"]["reasons"] == {}
    assert not any(report["loss"].values()), report["loss"]
    (rung,) = (each for each in report["features"]["rungs"] if each["name"] == "socket counting")
    assert "every socket of this network namespace" in rung["reason"]


@pytest.mark.parametrize("containers", ["auto", "on"])
def test_else_all_namespaces_are_counted(loopback: Namespace, containers: str) -> None:
    with Namespace("theirs") as theirs:
        for _ in range(TRIES):
            reporter = Reporter(loopback, "--counting", "socket", "--containers", containers)
            assert reporter.first_line == "capturing on every socket of every network namespace\n"
            pairs = {each: ready_pair(each, each, "udp") for each in (loopback, theirs)}
            transfer(*pairs.values())
            report = reporter.finish()
            # Others on this machine may do much.
            if not report["loss"]["events_lost"]:
                break
        for namespace, pair in pairs.items():
            moved = assert_moved(report, pair)
            assert payload(flows(in_namespace(report, namespace))) == (moved, moved)
