"""The main job: every byte counted, and credited to the process that moved it, at both ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from tests.privileged.lab import Lab, Namespace, wait_until
from tests.privileged.namespace import Traffic
from tests.privileged.reporting import (
    Reporter,
    assert_conserved,
    flows,
    owners,
    payload,
    process_payload,
    wire,
)

UP_BYTES = 1_000_003
DOWN_BYTES = 99_991
DATAGRAM_BYTES = 23 * 997


def ready_pair(
    server_end: Namespace, client_end: Namespace, protocol: str, family: int = 4, **options: object
) -> tuple[Traffic, Traffic]:
    """A server and a client that are known to the socket tables and move nothing yet."""
    up = UP_BYTES if protocol == "tcp" else DATAGRAM_BYTES
    down = DOWN_BYTES if protocol == "tcp" else 997
    address = server_end.ipv6 if family == 6 else server_end.ipv4
    size = {} if protocol == "tcp" else {"message_size": 997}
    server = server_end.traffic(
        f"{protocol}-server", family=family, address=address, expect=up, bytes=down, hold=True,
        **size,
    )  # fmt: skip
    client = client_end.traffic(
        f"{protocol}-client", family=family, address=address, port=server.port, bytes=up,
        expect=down, hold=True, wait=True, **size, **options,
    )  # fmt: skip
    return server, client


def transfer(*pairs: tuple[Traffic, Traffic]) -> None:
    for server, client in pairs:
        client.go()
        client.moved()
        server.moved()


def on_the_wire(pair: tuple[Traffic, Traffic]) -> tuple[int, int]:
    """(up, down) payload bytes that a tap must have seen."""
    server, client = pair
    return client.tapped_bytes(), server.tapped_bytes()


@pytest.mark.parametrize("family", [4, 6])
def test_loopback_names_both_ends_to_the_byte(loopback: Namespace, family: int) -> None:
    reporter = Reporter(loopback, "--interface", "lo")
    tcp = ready_pair(loopback, loopback, "tcp", family)
    udp = ready_pair(loopback, loopback, "udp", family)
    transfer(tcp, udp)
    report = reporter.finish()

    for pair in (tcp, udp):
        server, client = pair
        up, down = on_the_wire(pair)
        for end, moved in ((client, (up, down)), (server, (down, up))):
            assert process_payload(report, end.pid) == moved
            (row,) = (row for row in report["processes"] if row["pid"] == end.pid)
            assert row["start_time_ns"] == end.start_time_ns
            assert row["exe"].endswith(row["name"]) or row["name"].startswith("python")
        between = flows(report, local_port=client.port, remote_port=server.port)
        assert owners(between) == {client.pid}
        assert payload(between) == (up, down)
        back = flows(report, local_port=server.port, remote_port=client.port)
        assert owners(back) == {server.pid}
        assert payload(back) == (down, up)
    assert report["unattributed"]["reasons"] == {}
    assert report["loss"]["capture_dropped_packets"] == 0


@pytest.mark.parametrize("family", [4, 6])
def test_the_wire_agrees_with_the_second_witness(lab: Lab, family: int) -> None:
    reporter = Reporter(lab.host)
    assert reporter.first_line == "capturing on lab0, lo\n" or "lab0" in reporter.first_line
    out_tcp = ready_pair(lab.peer, lab.host, "tcp", family)
    in_tcp = ready_pair(lab.host, lab.peer, "tcp", family)
    out_udp = ready_pair(lab.peer, lab.host, "udp", family)
    connected_udp = ready_pair(lab.peer, lab.host, "udp", family, connected=True)
    in_udp = ready_pair(lab.host, lab.peer, "udp", family)
    transfer(out_tcp, in_tcp, out_udp, connected_udp, in_udp)
    lab.settle()
    report = reporter.finish()

    for outbound, pairs in (
        (True, (out_tcp, out_udp, connected_udp)),
        (False, (in_tcp, in_udp)),
    ):
        for server, client in pairs:
            ours, theirs = (client, server) if outbound else (server, client)
            protocol = "tcp" if (server, client) in (out_tcp, in_tcp) else "udp"
            up, down = on_the_wire((server, client))
            rows = flows(report, protocol=protocol, local_port=ours.port, remote_port=theirs.port)
            assert owners(rows) == {ours.pid}
            assert payload(rows) == ((up, down) if outbound else (down, up))
            witnessed = lab.wire(protocol, host_port=ours.port, peer_port=theirs.port)
            assert wire(rows) == (witnessed.sent.wire_bytes, witnessed.received.wire_bytes)
    everything = lab.wire()
    assert report["totals"]["sent"]["wire_bytes"] == everything.sent.wire_bytes
    assert report["totals"]["received"]["wire_bytes"] == everything.received.wire_bytes
    assert {row["netns"] for row in report["flows"]} == {lab.host.inode}
    assert {row["interface"] for row in report["flows"]} == {"lab0"}


def test_an_accepted_connection_is_the_acceptors_and_the_client_its_own(lab: Lab) -> None:
    reporter = Reporter(lab.host, "--interface", "lab0")
    servers = [ready_pair(lab.host, lab.peer, "tcp") for _ in range(3)]
    transfer(*servers)
    report = reporter.finish()
    for server, client in servers:
        rows = flows(report, local_port=server.port, remote_port=client.port)
        assert owners(rows) == {server.pid}
        assert payload(rows) == on_the_wire((server, client))[::-1]


def test_sockets_from_before_the_start_are_named(loopback: Namespace) -> None:
    pair = ready_pair(loopback, loopback, "tcp")
    reporter = Reporter(loopback, "--interface", "lo")
    transfer(pair)
    report = reporter.finish()
    server, client = pair
    up, down = on_the_wire(pair)
    assert process_payload(report, client.pid) == (up, down)
    assert process_payload(report, server.pid) == (down, up)


def test_packets_to_a_closed_port_are_nobodys(loopback: Namespace) -> None:
    reporter = Reporter(loopback, "--interface", "lo")
    client = loopback.traffic(
        "udp-client", address="127.0.0.1", port=9, bytes=101, message_size=101, hold=True
    )
    client.moved()
    report = reporter.finish()
    (row,) = flows(report, protocol="udp", local_port=9)
    assert (row["reason"], payload([row])) == ("NO_SOCKET", (0, 101))
    assert process_payload(report, client.pid) == (101, 0)


def test_duration_ends_the_report_and_sigterm_too(loopback: Namespace) -> None:
    assert Reporter(loopback, "--duration", "0.5", "--interface", "lo").wait()["flows"] == []
    reporter = Reporter(loopback, "--interface", "lo")
    reporter._process.send_signal(signal.SIGTERM)
    report = reporter.wait()
    assert report["schema"] == "procnet.report/1"
    assert report["ended_ns"] > report["started_ns"]


def test_an_interface_that_goes_and_comes_back_is_read_again(lab: Lab) -> None:
    reporter = Reporter(lab.host, "--interface", "lo", "--interface", "lab0")
    before = ready_pair(lab.host, lab.host, "udp")
    transfer(before)
    lab.host.run(["ip", "link", "delete", "lab0"])
    lab.host.run(["ip", "link", "add", "lab0", "type", "veth", "peer", "name", "lab1"])
    for device in ("lab0", "lab1"):
        lab.host.run(["ip", "link", "set", device, "up"])
    lab.host.run(["ip", "addr", "add", "10.204.0.1/24", "dev", "lab0"])
    lab.host.run(["ip", "neigh", "add", "10.204.0.2", "lladdr", "02:00:00:00:00:77", "dev", "lab0"])

    wait_until(lambda: reads_two_interfaces(reporter), "the interface to be read again")
    # Between bind() and its ring, libpcap's new socket may lose a packet: the first ones may go.
    lab.host.traffic(
        "udp-client", address="10.204.0.2", port=9, bytes=23 * 101, message_size=101, pace=0.02
    ).finish()
    report = reporter.finish(warnings="cannot read lab0 any more")
    assert report["loss"]["interrupted_captures"] >= 1
    (row,) = flows(report, remote_address="10.204.0.2")
    sent_bytes, _ = payload([row])
    assert 101 <= sent_bytes <= 23 * 101
    assert sent_bytes % 101 == 0


def reads_two_interfaces(reporter: Reporter) -> bool:
    """Its packet sockets in /proc/net/packet are bound to interfaces that exist now."""
    with open(f"/proc/{reporter.pid}/net/packet", encoding="ascii") as table:
        bound = {int(line.split()[4]) for line in table.readlines()[1:]}
    with open(f"/proc/{reporter.pid}/net/dev", encoding="ascii") as table:
        names = [line.split(":")[0].strip() for line in table.readlines()[2:]]
    return len(bound - {0}) == 2 and {"lo", "lab0"} <= set(names) and -1 not in bound


def test_report_of_a_file_counts_what_tcpdump_wrote(loopback: Namespace, tmp_path) -> None:
    path = tmp_path / "lo.pcap"
    dump = loopback.popen(
        ["tcpdump", "-i", "lo", "-U", "-w", str(path), "-Z", "root"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "listening on" in dump.stderr.readline()
    server, client = pair = ready_pair(loopback, loopback, "udp")
    transfer(pair)
    frames = 23 + 2
    wait_until(lambda: path.stat().st_size > frames * 997, "tcpdump to write")
    dump.send_signal(signal.SIGINT)
    dump.wait(20)
    done = subprocess.run(
        [sys.executable, "-m", "procnet", "report", "--read", str(path), "--format", "json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert_conserved(report)
    (row,) = flows(report, protocol="udp", local_port=client.port)
    assert payload([row]) == (DATAGRAM_BYTES, 997)
    assert row["reason"] == "NO_SOCKET"
    assert row["remote"]["port"] == server.port
