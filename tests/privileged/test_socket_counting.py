"""Counting at sockets: what a capture would say, in every namespace, and what differs has a cause.

Every kind of traffic, shared and passed sockets among them, is in test_accuracy.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from procnet.bpf.core import CoreOwners
from procnet.bpf.core_hooks import COUNTING
from procnet.model import FlowCount
from tests.privileged.lab import DEVICE, TOP, Lab, Namespace, run
from tests.privileged.reporting import (
    FIGURES,
    SIDES,
    Reporter,
    flows,
    in_namespace,
    owners,
    payload,
)
from tests.privileged.short_lived import SENDERS, Judgement, arguments, build, judge, launch

pytestmark = pytest.mark.privileged

Report = dict[str, Any]
Told = TypeVar("Told")
TRIES = 3
BEFORE_6_12 = tuple(map(int, platform.release().split(".")[:2])) < (6, 12)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("workload"))


@pytest.mark.parametrize("number", [SENDERS, 1009])
@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_every_short_lived_sender_is_named(
    loopback: Namespace, program: Path, protocol: str, number: int
) -> None:
    workload = loopback.argv([str(program), *arguments(protocol, number)])
    report, (port, senders) = undisturbed(loopback, lambda: launch(workload))
    judgement = judge(report, protocol, port, senders, str(program))
    assert judgement == Judgement(number, 0, 0, 0, judgement.again)
    assert judgement.again <= loopback.resent_segments()


def undisturbed(namespace: Namespace, play: Callable[[], Told]) -> tuple[Report, Told]:
    """What was counted in a namespace meanwhile, and what ``play`` told.

    All namespaces are watched: if others on this machine do so much that events are lost, it is
    played again.
    """
    for _ in range(TRIES):
        reporter = Reporter(namespace, "--counting", "socket")
        told = play()
        report = reporter.finish()
        if not report["loss"]["events_lost"]:
            return in_namespace(report, namespace), told
    raise AssertionError(f"events were lost {TRIES} times: {report['loss']}")


def test_the_engines_agree_flow_by_flow(lab: Lab) -> None:
    """One cable, three engines: what differs has a cause, and the cause says by how much."""
    taps = {
        engine: Reporter(lab.host, "--interface", lab.device, "--counting", engine)
        for engine in ("python", "kernel")
    }
    at_sockets = Reporter(lab.host, "--counting", "socket")
    for version, host, peer in (
        (4, lab.host.ipv4, lab.peer.ipv4),
        (6, lab.host.ipv6, lab.peer.ipv6),
    ):
        move(lab.peer, lab.host, "tcp", version, peer, 1_000_003, 65_521)
        move(lab.host, lab.peer, "tcp", version, host, 299_993, 4001)
        move(lab.peer, lab.host, "udp", version, peer, 23 * 101, 101)
        move(lab.host, lab.peer, "udp", version, host, 29 * 211, 211)
        move(lab.peer, lab.host, "udp", version, peer, 4001, 4001)
    lab.settle()
    found = {engine: figures(reporter.finish()) for engine, reporter in taps.items()}
    sockets = figures(in_namespace(at_sockets.finish(), lab.host))
    assert found["python"] == found["kernel"]
    assert sockets.keys() == found["kernel"].keys()
    causes = {flow: cause(flow, found["kernel"][flow], sockets[flow]) for flow in sockets}
    print(causes)
    assert Counter(causes.values())["fragments"] == 2


def move(
    server_end: Namespace, client_end: Namespace, protocol: str, version: int, address: str,
    sent: int, message_size: int,
) -> None:  # fmt: skip
    server = server_end.traffic(
        f"{protocol}-server", family=version, address=address, expect=sent, bytes=307
    )
    client = client_end.traffic(
        f"{protocol}-client", family=version, address=address, port=server.port, bytes=sent,
        expect=307, message_size=message_size,
    )  # fmt: skip
    client.finish()
    server.finish()


Figures = dict[str, dict[str, int]]


def figures(report: Report) -> dict[tuple[Any, ...], Figures]:
    """What moved on each flow, both ways, whoever it was."""
    found: dict[tuple[Any, ...], Figures] = {}
    for row in report["flows"]:
        ends = ((row[end]["address"], row[end]["port"]) for end in ("local", "remote"))
        flow = found.setdefault((row["protocol"], *ends), {side: Counter() for side in SIDES})
        for side in SIDES:
            for figure in FIGURES:
                flow[side][figure] += row[side][figure]
    return found


FRAGMENTS = {4: (2, 2 * 20, 0), 6: (2, 2 * 40 + 3 * 8, 0)}
"""Packets, wire and payload bytes that a socket does not see of a datagram in three pieces."""
LAST_SEGMENT = {4: (1, 20 + 20 + 12, 0), 6: (1, 40 + 20 + 12, 0)}
# With MSS, SACK, time stamps and window scale.
SYN_ACK = {4: (1, 20 + 40, 0), 6: (1, 40 + 40, 0)}
NOTHING = (0, 0, 0)


def cause(flow: tuple[Any, ...], tap: Figures, socket: Figures) -> str:
    """Why the socket has seen less; empty if it has not. Anything else is a failure."""
    protocol, (address, _), _ = flow
    version = 6 if ":" in address else 4
    sent, received = (tuple(tap[side][f] - socket[side][f] for f in FIGURES) for side in SIDES)
    if (sent, received) == (NOTHING, NOTHING):
        return ""
    if protocol == "udp" and (sent, received) == (FRAGMENTS[version], NOTHING):
        return "fragments"
    # The FIN of the other end and its ACK: the socket has gone, and TIME_WAIT is nobody's.
    if protocol == "tcp" and sent == received == LAST_SEGMENT[version]:
        return "TIME_WAIT"
    # The kernel's answer to a SYN has a socket of its own, which 6.1 asks no program about.
    if BEFORE_6_12 and protocol == "tcp" and (sent, received) == (SYN_ACK[version], NOTHING):
        return "SYN and ACK"
    raise AssertionError(f"{flow}: sent {sent} and received {received} less than on the cable")


def test_behind_a_masquerade_the_inner_end_is_counted(lab: Lab) -> None:
    """A namespace whose packets leave with the host's address: its sockets keep their own."""
    with Namespace("inner") as inner:
        lay_inner_cable(lab, inner)
        reporter = Reporter(lab.host, "--counting", "socket")
        server = lab.peer.traffic("tcp-server", address=lab.peer.ipv4, expect=100_003, bytes=307)
        client = inner.traffic(
            "tcp-client", address=lab.peer.ipv4, port=server.port, bytes=100_003, expect=307
        )
        client.finish()
        server.finish()
        report = reporter.finish()
        seen = lab.wire_flows()
        (row,) = flows(in_namespace(report, inner), protocol="tcp", remote_port=server.port)
        assert row["local"]["address"] == "10.204.0.2"
        assert {flow.host_address for flow in seen} == {lab.host.ipv4}
        assert (payload([row]), owners([row])) == ((100_003, 307), {client.pid})
        (row,) = flows(in_namespace(report, lab.peer), protocol="tcp", local_port=server.port)
        assert row["remote"]["address"] == lab.host.ipv4
        assert (payload([row]), owners([row])) == ((307, 100_003), {server.pid})
        # What is passed on has no socket there.
        assert in_namespace(report, lab.host)["flows"] == []


def lay_inner_cable(lab: Lab, inner: Namespace) -> None:
    near, far = f"inner0 netns {lab.host.name}", f"outer0 netns {inner.name}"
    run(f"ip link add {near} type veth peer name {far}".split())
    lab.host.run(["ip", "addr", "add", "10.204.0.1/24", "dev", "inner0"])
    for end, device in ((lab.host, "inner0"), (inner, "outer0")):
        # Or packets overtake each other, and TCP sends some again (see lab.py).
        end.run(["sh", "-c", f"echo 1 > /sys/class/net/{device}/queues/rx-0/rps_cpus"])
    lab.host.run(["ip", "link", "set", "inner0", "up"])
    lab.host.run(["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
    lab.host.run(["nft", "-f", "-"], stdin=MASQUERADE)
    inner.run(["ip", "addr", "add", "10.204.0.2/24", "dev", "outer0"])
    inner.run(["ip", "link", "set", "outer0", "up"])
    inner.run(["ip", "route", "add", "default", "via", "10.204.0.1"])


MASQUERADE = f"""
table ip nat {{
    chain out {{
        type nat hook postrouting priority 100;
        oifname {DEVICE} masquerade
    }}
}}
"""


def test_more_remote_ends_than_there_is_room_for_are_one_row(loopback: Namespace) -> None:
    """The bytes of all are counted; those that had no room are not told apart, which is told."""
    counts, unsplit_packets = loopback.call(talk_to_many, 211)
    sent = [count for count in counts if count.sent]
    apart = [count for count in sent if count.key.remote_address]
    together = [count for count in sent if not count.key.remote_address]
    assert len({count.key for count in apart}) <= 64 + 1
    assert together
    assert sum(count.payload_bytes for count in sent) == sum(range(211))
    assert sum(count.packets for count in together) == unsplit_packets > 0


def talk_to_many(number: int) -> tuple[list[FlowCount], int]:
    # The table is one for all namespaces that are counted.
    netns = os.stat("/proc/self/ns/net").st_ino
    owners = CoreOwners.open(netns=netns, counting=True, remotes=64)
    assert owners.counts is not None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for port in range(number):
            with contextlib.suppress(ConnectionRefusedError):
                sender.sendto(bytes(port), ("127.0.0.1", 20_000 + port))
        counts = owners.counts.drain(surely=True)
        unsplit_packets = owners.counts.unsplit_packets
    owners.close()
    return [count for count in counts if count.key is not None], unsplit_packets


def test_what_leaves_after_its_process_is_its_own(loopback: Namespace) -> None:
    """A process that ends with a full queue: the kernel sends the rest."""
    argv = [sys.executable, "-c", LEAVES_A_QUEUE]
    for _ in range(TRIES):
        before = loopback.resent_segments()
        report, told = undisturbed(loopback, lambda: loopback.run(argv))
        # Nobody holds the socket who could be asked how many bytes were sent twice.
        if loopback.resent_segments() == before:
            break
    else:
        raise AssertionError(f"something was sent again {TRIES} times")
    pid, port, size = map(int, told.split())
    rows = flows(report, protocol="tcp", remote_port=port)
    assert (payload(rows)[0], owners(rows)) == (size, {pid})


LEAVES_A_QUEUE = """
import os, socket, time
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
listener.bind(("127.0.0.1", 0))
listener.listen()
child = os.fork()
if not child:
    sender = socket.socket()
    sender.setsockopt(socket.SOL_SOCKET, 32, 4 << 20)  # SO_SNDBUFFORCE
    sender.connect(listener.getsockname())
    sender.sendall(bytes(1_000_003))
    os._exit(0)
taker, _ = listener.accept()
os.waitpid(child, 0)
size = 0
while data := taker.recv(1 << 16):
    size += len(data)
print(child, listener.getsockname()[1], size)
"""


@pytest.mark.parametrize("number", [0, 1], ids=["sockops", "tracepoint"])
def test_each_hook_alone_tells_of_the_end_of_a_connection(loopback: Namespace, number: int) -> None:
    """Of some connections only one of them is asked, and a kernel may pass over the other."""
    counts = loopback.call(connect_and_close, number, 53)
    size = sum(range(1, 54))
    assert sum(count.payload_bytes for count in counts if count.sent) == size
    assert sum(count.payload_bytes for count in counts if not count.sent) == size


def connect_and_close(number: int, times: int) -> list[FlowCount]:
    question = "end of a connection"
    ((*hooks,),) = COUNTING[question]
    COUNTING[question] = ((hooks[number],),)
    netns = os.stat("/proc/self/ns/net").st_ino
    with (
        contextlib.closing(CoreOwners.open(netns=netns, counting=True)) as owners,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        assert owners.counts is not None
        for size in range(1, times + 1):
            with socket.create_connection(listener.getsockname()) as sock:
                taker, _ = listener.accept()
                sock.sendall(bytes(size))
            with taker:
                while taker.recv(1 << 16):
                    pass
        return owners.counts.drain(surely=True)


def test_a_socket_that_connects_again_is_two_flows(loopback: Namespace) -> None:
    argv = [sys.executable, "-c", CONNECTS_TWICE]
    report, told = undisturbed(loopback, lambda: loopback.run(argv))
    pid, first, second = map(int, told.split())
    for port, size in ((first, 1009), (second, 2003)):
        rows = flows(report, protocol="tcp", remote_port=port)
        assert (payload(rows), owners(rows)) == ((size, 0), {pid})


CONNECTS_TWICE = """
import os, socket, struct
listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
sock = socket.socket()
for listener, size in zip(listeners, (1009, 2003)):
    sock.connect(listener.getsockname())
    sock.sendall(bytes(size))
    taker, _ = listener.accept()
    taker.recv(size, socket.MSG_WAITALL)
    # The same socket, without a peer: connect() with AF_UNSPEC.
    import ctypes
    assert not ctypes.CDLL(None).connect(sock.fileno(), struct.pack("H14x", 0), 16)
print(os.getpid(), *(listener.getsockname()[1] for listener in listeners))
"""


def test_without_the_right_to_capture_sockets_are_counted(loopback: Namespace) -> None:
    command = [sys.executable, "-m", "procnet", "report", "--duration", "0.2", "--format", "json"]
    done = subprocess.run(
        loopback.argv(["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw", *command]),
        cwd=TOP, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    features = json.loads(done.stdout)["features"]
    assert (features["counting"], features["owners"]) == ("socket", "core")
    (capture,) = (rung for rung in features["rungs"] if rung["name"] == "python counting")
    assert (capture["support"], "CAP_NET_RAW" in capture["reason"]) == ("no", True)
