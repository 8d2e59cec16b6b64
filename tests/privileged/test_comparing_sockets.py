"""What only the capture saw: frames that no socket sent, and what the kernel says by itself."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

import procnet
from tests.privileged.lab import DEVICE, TOP, Lab, Namespace, wait_until
from tests.privileged.reporting import FIGURES, SIDES, Reporter, process_payload
from tests.privileged.test_denied import exchange
from tests.privileged.test_faults import ENGINES
from tests.privileged.test_interrupted import Objects
from tests.privileged.test_report import ready_pair, transfer
from tests.privileged.test_socket_counting import (
    BEFORE_6_12,
    LAST_SEGMENT,
    SYN_ACK,
    TRIES,
    lay_inner_cable,
    move,
)
from tests.privileged.test_stopping import remains
from tests.workloads.inject import packet

pytestmark = pytest.mark.privileged

Figures = tuple[int, int, int]
Ways = dict[str, Figures]

CLOSED = 9
IP_UDP_BYTES, IP_ICMP_BYTES = 28, 28
OF_NOBODY = (20_051, 23, 307)
"""A port that no socket has; so many frames of so many bytes of payload."""
FRAMES, SIZE = 29, 311
ASKED, REFUSED = 101, 103
SYN, RESET = (1, 60, 0), (1, 40, 0)
FIN_WAIT2 = 5  # include/net/tcp_states.h


def told(report: dict[str, Any]) -> tuple[dict[str, Ways], Ways]:
    """By protocol, and what was not compared; what is nothing is left out."""
    only = report["only_on_wire"]
    found = {protocol: ways(both) for protocol, both in only["by_protocol"].items()}
    assert all(found.values()), "a row of nothing"
    return found, ways(only["not_compared"])


def ways(both: dict[str, dict[str, int]]) -> Ways:
    sides = {side: tuple(both[side][figure] for figure in FIGURES) for side in SIDES}
    return {side: figures for side, figures in sides.items() if any(figures)}


def comparing(namespace: Namespace, *arguments: str) -> Reporter:
    return Reporter(namespace, "--compare-sockets", *arguments)


def inject(
    device: str, ends: tuple[str, str], ports: tuple[int, int], number: int, size: int
) -> None:
    """UDP to a MAC address of nobody's, so that nobody answers."""
    source, target = ports
    segment = struct.pack("!HHHH", source, target, 8 + size, 0) + bytes(size)
    frame = bytes(12) + struct.pack("!H", 0x0800) + packet(*ends, "udp", segment)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((device, 0))
        for _ in range(number):
            raw.send(frame)


def knock(address: str, asked: int) -> None:
    """At ports that nobody listens on; waits for the answers."""
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        sender.connect((address, CLOSED))
        sender.settimeout(20)
        sender.send(bytes(asked))
        with pytest.raises(ConnectionRefusedError):
            sender.recv(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address, CLOSED))


@ENGINES
def test_what_no_socket_moved_is_told_to_the_byte(lab: Lab, counting: str) -> None:
    """Beside processes that send and receive by the same protocols, one by the same ports."""
    reporter = comparing(lab.host, "--interface", lab.device, "--counting", counting)
    out_tcp = ready_pair(lab.peer, lab.host, "tcp")
    out_udp = ready_pair(lab.peer, lab.host, "udp")
    in_udp = ready_pair(lab.host, lab.peer, "udp", 6)
    transfer(out_tcp, out_udp, in_udp)
    ends = (lab.host.ipv4, lab.peer.ipv4)
    port, number, size = OF_NOBODY
    lab.host.call(inject, DEVICE, ends, (port, CLOSED), number, size)
    server, client = out_udp
    lab.host.call(inject, DEVICE, ends, (client.port, server.port), FRAMES, SIZE)
    lab.peer.call(knock, lab.host.ipv4, ASKED)
    lab.host.call(knock, lab.peer.ipv4, REFUSED)
    lab.settle()
    report = reporter.finish()
    assert told(report) == (
        {
            "udp": {
                "sent": (
                    number + FRAMES,
                    number * (IP_UDP_BYTES + size) + FRAMES * (IP_UDP_BYTES + SIZE),
                    number * size + FRAMES * SIZE,
                ),
                "received": (1, IP_UDP_BYTES + ASKED, ASKED),
            },
            # An error has the datagram's headers and, of so few, all of its bytes.
            "icmp": {
                "sent": icmp(IP_UDP_BYTES + ASKED),
                "received": icmp(IP_UDP_BYTES + REFUSED),
            },
            "tcp": {"sent": RESET, "received": SYN},
        },
        {},
    )
    assert process_payload(report, in_udp[0].pid) == (997, 23 * 997)
    assert report["loss"]["capture_dropped_packets"] == 0


def icmp(size: int) -> Figures:
    return 1, IP_ICMP_BYTES + size, size


@ENGINES
def test_of_processes_alone_nothing_is_left(loopback: Namespace, counting: str) -> None:
    reporter = comparing(loopback, "--interface", "lo", "--counting", counting)
    pairs = [
        ready_pair(loopback, loopback, protocol, family)
        for protocol in ("tcp", "udp")
        for family in (4, 6)
    ]
    transfer(*pairs)
    loopback.call(exchange, 101)
    report = reporter.finish()
    # No hook is asked about it.
    assert told(report) == ({}, {"sent": SYN_ACK[6]} if BEFORE_6_12 else {})
    assert report["totals"]["sent"]["packets"] > 2 * (101 + 23)


def close_after_shutdown() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        first = socket.create_connection(server.getsockname())
        second, _ = server.accept()
    first.shutdown(socket.SHUT_WR)
    assert second.recv(1) == b""
    # Its end is acknowledged, the other one's is not there yet: from here on it is TIME_WAIT's.
    wait_until(lambda: tcp_state(first) == FIN_WAIT2, "the acknowledgement")
    first.close()
    second.close()


def tcp_state(connection: socket.socket) -> int:
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def test_the_end_of_a_connection_is_the_kernel_s(loopback: Namespace) -> None:
    reporter = comparing(loopback, "--interface", "lo")
    loopback.call(close_after_shutdown)
    by_protocol, _ = told(reporter.finish())
    assert by_protocol == {"tcp": {side: LAST_SEGMENT[4] for side in SIDES}}


def test_the_headers_of_fragments_are_no_packets_of_nobody_s(lab: Lab) -> None:
    reporter = comparing(lab.host, "--interface", lab.device)
    move(lab.peer, lab.host, "udp", 4, lab.peer.ipv4, 4001, 4001)
    move(lab.peer, lab.host, "udp", 6, lab.peer.ipv6, 4001, 4001)
    lab.settle()
    fragments = (2 + 2, 2 * 20 + 2 * 40 + 3 * 8, 0)
    assert told(reporter.finish()) == ({}, {"sent": fragments})


def test_a_container_s_socket_is_a_socket(lab: Lab) -> None:
    """Masqueraded, and captured on both sides of the host: by the tuple that the socket has.

    All namespaces are listened to: if others on this machine do what sockets cannot tell of, it is
    played again.
    """
    with Namespace("inner") as inner:
        lay_inner_cable(lab, inner)
        for _ in range(TRIES):
            reporter = comparing(lab.host, "--interface", DEVICE, "--interface", "inner0")
            pair = ready_pair(lab.peer, inner, "udp")
            transfer(pair)
            lab.settle()
            report = reporter.finish()
            by_protocol, not_compared = told(report)
            # The kernel speaks IPv6 on a new cable.
            assert by_protocol.keys() <= {"icmp6"}
            assert process_payload(report, pair[1].pid) == (23 * 997, 997)
            if not not_compared:
                break
        assert not_compared == {}


# -- in a program --------------------------------------------------------------------------------


def take_intervals() -> tuple[list[procnet.OnlyOnWire], procnet.Report]:
    taken = []
    ends, (port, number, size) = ("127.0.0.1", "127.0.0.9"), OF_NOBODY
    with procnet.Monitor(["lo"], compare_sockets=True, interval_s=0.1) as monitor:
        reports = iter(monitor)

        def is_told() -> bool:
            only = next(reports).only_on_wire
            assert only is not None
            taken.append(only)
            return "udp" in only.by_protocol

        for _ in range(2):
            inject("lo", ends, (port, CLOSED), number, size)
            exchange(number)
            wait_until(is_told, "an interval that has them")
        inject("lo", ends, (port, CLOSED), number, size)
    taken += [report.only_on_wire for report in reports if report.only_on_wire is not None]
    return taken, monitor.report()


def test_intervals_add_up_while_it_runs_and_in_the_end(loopback: Namespace) -> None:
    taken, report = loopback.call(take_intervals)
    assert report.only_on_wire is not None
    summed: Counter[tuple[str, str]] = Counter()
    for only in taken:
        for protocol, both in only.by_protocol.items():
            summed[protocol, "sent"] += both.sent.packets
            summed[protocol, "received"] += both.received.packets
    whole = {
        (protocol, side): getattr(both, side).packets
        for protocol, both in report.only_on_wire.by_protocol.items()
        for side in SIDES
    }
    assert summed == Counter(whole)
    _, number, _ = OF_NOBODY
    assert summed["udp", "sent"] == 3 * number
    assert report.attributed + report.unattributed == report.totals


def start_and_stop(times: int) -> tuple[object, object, bool]:
    def once() -> None:
        with procnet.Monitor(["lo"], compare_sockets=True):
            had.update(objects.of(os.getpid()))
            exchange(7)

    objects, had = Objects(), set[tuple[str, int]]()
    once()
    before = remains()
    for _ in range(times):
        once()
    wait_until(lambda: not had & objects.everywhere(), "the kernel to let go of it")
    return before, remains(), bool(had)


def test_a_stop_leaves_nothing(loopback: Namespace) -> None:
    before, after, had_objects = loopback.call(start_and_stop, 7)
    assert (before, had_objects) == (after, True)


# -- where it cannot be had ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "arguments", "status", "said"),
    [
        pytest.param(
            (), ("--kernel", "off"), 1, "socket counting: needs core owners", id="no hooks"
        ),
        pytest.param((), ("--counting", "socket"), 2, "must not be socket", id="no capture"),
        pytest.param(
            ("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw"), (), 1,
            "python counting: a packet socket needs CAP_NET_RAW", id="no right to capture",
        ),
        pytest.param(
            ("setpriv", "--bounding-set=-bpf,-sys_admin", "--inh-caps=-bpf,-sys_admin"), (), 1,
            "socket counting: needs core owners", id="no right to hook",
        ),
    ],
)  # fmt: skip
def test_where_it_cannot_be_had_it_says_why(
    loopback: Namespace, before: tuple[str, ...], arguments: tuple[str, ...], status: int, said: str
) -> None:
    command = [sys.executable, "-m", "procnet", "report", "--duration", "1", "--compare-sockets"]
    done = subprocess.run(
        loopback.argv([*before, *command, *arguments]),
        cwd=TOP, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_doctor_says_whether_it_can_be_had(loopback: Namespace) -> None:
    doctor = [sys.executable, "-m", "procnet", "doctor"]
    assert "\nyes     comparing sockets: " in loopback.run(doctor)
    refused = loopback.run(["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw", *doctor])
    assert "\nno      comparing sockets: python counting: a packet socket needs" in refused
