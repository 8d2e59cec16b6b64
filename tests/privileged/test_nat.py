"""Containers behind a host that masquerades: their bytes are theirs, with both tuples told."""

from __future__ import annotations

import ipaddress
import socket
import subprocess
import sys
from typing import Any

import pytest

from procnet.sockets.conntrack import Connections, News
from tests.privileged.containers import Containers
from tests.privileged.lab import Lab, Namespace, wait_until
from tests.privileged.namespace import Traffic
from tests.privileged.reporting import Reporter, flows, owners, payload, process_payload, wire

UP_BYTES = {"tcp": 100_003, "udp": 23 * 997}
DOWN_BYTES = 997
PORT = 5003
PUBLISHED = 8081
ENGINES = [("--counting", "kernel"), ("--counting", "python")]
LOOKING = ("--kernel", "off")


def moves(
    server_end: Namespace,
    client_end: Namespace,
    protocol: str,
    family: int = 4,
    to: tuple[str, int] | None = None,
    server_port: int = 0,
    **options: object,
) -> tuple[Traffic, Traffic]:
    """A server and a client between which everything has moved, both still there.

    ``to``: where the client believes the server to be.
    """
    address = server_end.ipv6 if family == 6 else server_end.ipv4
    common: dict[str, Any] = {"family": family, "hold": True, "message_size": 997}
    server = server_end.traffic(
        f"{protocol}-server", address=address, port=server_port, expect=UP_BYTES[protocol],
        bytes=DOWN_BYTES, **common,
    )  # fmt: skip
    host, port = to or (address, server.port)
    client = client_end.traffic(
        f"{protocol}-client", address=host, port=port, bytes=UP_BYTES[protocol],
        expect=DOWN_BYTES, **common, **options,
    )  # fmt: skip
    client.moved()
    server.moved()
    return server, client


def of_socket(report: dict[str, Any], inside: Namespace, **wanted: object) -> list[dict[str, Any]]:
    """The rows with that flow on the wire whose socket is in a namespace."""
    found = [row for row in flows(report, **wanted) if row["socket"] is not None]
    return [row for row in found if row["socket"]["netns"] == inside.inode]


def end(address: str, port: int) -> dict[str, object]:
    return {"address": address, "port": port}


def on_the_wire(lab: Lab, **wanted: Any) -> tuple[int, int]:
    told = lab.wire(**wanted)
    return told.sent.wire_bytes, told.received.wire_bytes


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", [4, 6])
def test_who_is_masqueraded_has_its_bytes(lab: Lab, family: int, engine: tuple[str, ...]) -> None:
    with Containers(lab) as containers:
        one, two = containers.add(), containers.add()
        reporter = Reporter(lab.host, *engine)
        pairs = [
            (inside, protocol, *moves(lab.peer, inside, protocol, family))
            for inside in (one, two)
            for protocol in ("tcp", "udp")
        ]
        lab.settle()
        report = reporter.finish()

        for inside, protocol, server, client in pairs:
            (row,) = of_socket(
                report, inside, protocol=protocol, remote_port=server.port, pid=client.pid
            )
            moved = client.tapped_bytes(), server.tapped_bytes()
            assert payload([row]) == process_payload(report, client.pid) == moved
            peer_port = server.port
            assert wire([row]) == on_the_wire(lab, protocol=protocol, peer_port=peer_port)
            assert row["interface"] == lab.device
            assert row["netns"] == lab.host.inode
            address = lab.host.ipv6 if family == 6 else lab.host.ipv4
            assert row["local"]["address"] == address
            source = inside.ipv6 if family == 6 else inside.ipv4
            assert row["socket"]["local"] == end(source, client.port)
            assert row["socket"]["remote"] == row["remote"]
            assert row["evidence"] == "KERNEL_EVENT"
        assert report["loss"]["translations_lost"] == report["loss"]["failures"] == 0


@pytest.mark.parametrize("rung", [*ENGINES, LOOKING])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_port_that_two_containers_have_is_each_ones(
    lab: Lab, protocol: str, rung: tuple[str, ...]
) -> None:
    """One of them is translated to another port, since host and remote end are the same."""
    with Containers(lab) as containers:
        both = [containers.add() for _ in range(2)]
        # A TCP server expects as much of each connection, a UDP server of all together.
        expect = UP_BYTES[protocol] * (2 if protocol == "udp" else 1)
        server = lab.peer.traffic(
            f"{protocol}-server", address=lab.peer.ipv4, port=PORT, expect=expect,
            connections=2, hold=True,
        )  # fmt: skip
        reporter = Reporter(lab.host, *rung)
        clients = [
            inside.traffic(
                f"{protocol}-client", address=lab.peer.ipv4, port=PORT, local_port=4001,
                bytes=UP_BYTES[protocol], message_size=997, hold=True,
            )
            for inside in both
        ]  # fmt: skip
        for traffic in (*clients, server):
            traffic.moved()
        lab.settle()
        report = reporter.finish()

        shown = set()
        for inside, client in zip(both, clients, strict=True):
            rows = of_socket(report, inside, protocol=protocol, remote_port=PORT)
            assert owners(rows) <= {client.pid, "AMBIGUOUS", "NO_SOCKET"}
            assert payload(rows)[0] == client.tapped_bytes() or rung is LOOKING
            if rung is not LOOKING:
                assert owners(rows) == {client.pid}
                assert process_payload(report, client.pid) == payload(rows)
            shown |= {row["local"]["port"] for row in rows}
        assert len(shown) == 2 or rung is LOOKING


@pytest.mark.parametrize("rung", [*ENGINES, LOOKING, ("--kernel", "off", "--containers", "off")])
def test_a_socket_of_the_host_with_that_port_gets_nothing_of_a_container(
    lab: Lab, rung: tuple[str, ...]
) -> None:
    with Containers(lab) as containers:
        inside = containers.add()
        common: dict[str, Any] = {
            "address": lab.peer.ipv4, "local_port": 4001, "message_size": 997, "hold": True,
        }  # fmt: skip
        # To another remote end, so that nothing keeps the container from its own port.
        server = lab.peer.traffic("udp-server", address=lab.peer.ipv4, expect=13 * 997, hold=True)
        own = lab.host.traffic("udp-client", port=server.port, bytes=13 * 997, wait=True, **common)
        reporter = Reporter(lab.host, *rung)
        theirs = lab.peer.traffic(
            "udp-server", address=lab.peer.ipv4, expect=23 * 997, bytes=DOWN_BYTES, hold=True
        )
        client = inside.traffic(
            "udp-client", port=theirs.port, bytes=23 * 997, expect=DOWN_BYTES, **common
        )
        own.go()
        for traffic in (client, theirs, own, server):
            traffic.moved()
        lab.settle()
        report = reporter.finish()

        rows = flows(report, protocol="udp", local_port=4001, remote_port=theirs.port)
        assert payload(row for row in rows if row["interface"] == lab.device) == (
            23 * 997,
            DOWN_BYTES,
        )
        assert own.pid not in owners(rows)
        if "off" not in rung:
            assert owners(rows) == {client.pid}
            assert process_payload(report, own.pid) == (13 * 997, 0)
        its = flows(report, protocol="udp", local_port=4001, remote_port=server.port)
        assert payload(its) == (13 * 997, 0)
        # Looking may have seen it after its first packets, or not at all.
        named = [row for row in its if row["process"]]
        assert owners(named) <= {own.pid}
        assert process_payload(report, own.pid) == payload(named)


@pytest.mark.parametrize("rung", ENGINES)
def test_when_the_container_has_the_hosts_tuple_the_host_is_translated(
    lab: Lab, rung: tuple[str, ...]
) -> None:
    """Both send from the same port to the same remote end: the later one gets another port."""
    with Containers(lab) as containers:
        inside = containers.add()
        server = lab.peer.traffic(
            "udp-server", address=lab.peer.ipv4, expect=(23 + 13) * 997, hold=True
        )
        common: dict[str, Any] = {
            "address": lab.peer.ipv4, "local_port": 4001, "message_size": 997, "hold": True,
            "port": server.port, "connected": True, "wait": True,
        }  # fmt: skip
        own = lab.host.traffic("udp-client", bytes=13 * 997, **common)
        client = inside.traffic("udp-client", bytes=23 * 997, **common)
        reporter = Reporter(lab.host, *rung)
        client.go()
        client.moved()
        own.go()
        own.moved()
        server.moved()
        lab.settle()
        report = reporter.finish()

        assert process_payload(report, client.pid) == (23 * 997, 0)
        assert process_payload(report, own.pid) == (13 * 997, 0)
        (row,) = of_socket(report, inside, remote_port=server.port)
        assert row["local"] == end(lab.host.ipv4, 4001)
        (row,) = of_socket(report, lab.host, remote_port=server.port)
        assert row["local"]["port"] != 4001
        assert row["socket"]["local"] == end(lab.host.ipv4, 4001)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", [4, 6])
def test_a_published_port_is_the_containers(lab: Lab, family: int, engine: tuple[str, ...]) -> None:
    with Containers(lab) as containers:
        inside, other = containers.add(), containers.add()
        host = lab.host.ipv6 if family == 6 else lab.host.ipv4
        address = inside.ipv6 if family == 6 else inside.ipv4
        # A stranger with the same port, on every address.
        other.traffic("udp-server", family=family, address="::" if family == 6 else "0.0.0.0",
                      port=PORT, expect=1, hold=True)  # fmt: skip
        reporter = Reporter(lab.host, *engine)
        pairs = []
        for protocol in ("tcp", "udp"):
            containers.publish(protocol, PUBLISHED, inside, PORT)
            to = (host, PUBLISHED)
            pairs.append(
                (protocol, *moves(inside, lab.peer, protocol, family, to, server_port=PORT))
            )
        lab.settle()
        report = reporter.finish()

        for protocol, server, client in pairs:
            (row,) = of_socket(report, inside, protocol=protocol, local_port=PUBLISHED)
            assert owners([row]) == {server.pid}
            moved = server.tapped_bytes(), client.tapped_bytes()
            assert payload([row]) == process_payload(report, server.pid) == moved
            assert wire([row]) == on_the_wire(lab, protocol=protocol, host_port=PUBLISHED)
            assert row["local"] == end(host, PUBLISHED)
            assert row["socket"]["local"] == end(address, PORT)
            assert row["socket"]["remote"] == row["remote"]
            assert row["remote"]["port"] == client.port


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_only_passed_on_is_named_once(lab: Lab, engine: tuple[str, ...]) -> None:
    """Without NAT: the same packets, with the same tuple, on the container's cable and on ours."""
    with Containers(lab, masquerade=False) as containers:
        inside = containers.add()
        route = f"route add {inside.ipv4}/32 via {lab.host.ipv4}"
        lab.peer.run(["ip", *route.split()])
        reporter = Reporter(lab.host, *engine)
        pairs = [(p, *moves(lab.peer, inside, p)) for p in ("tcp", "udp")]
        lab.settle()
        report = reporter.finish()

        for protocol, server, client in pairs:
            (row,) = of_socket(report, inside, protocol=protocol, remote_port=server.port)
            assert owners([row]) == {client.pid}
            moved = client.tapped_bytes(), server.tapped_bytes()
            assert payload([row]) == process_payload(report, client.pid) == moved
            assert row["interface"] == lab.device
            assert row["local"] == row["socket"]["local"] == end(inside.ipv4, client.port)


@pytest.mark.parametrize("rung", [*ENGINES, LOOKING])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_redirected_port_is_the_one_that_listens(
    lab: Lab, protocol: str, rung: tuple[str, ...]
) -> None:
    rules = f"""
table ip bend {{
    chain in {{
        type nat hook prerouting priority dstnat
        {protocol} dport {PUBLISHED} redirect to :{PORT}
    }}
}}
"""
    lab.host.run(["nft", "-f", "-"], stdin=rules)
    reporter = Reporter(lab.host, *rung)
    to = (lab.host.ipv4, PUBLISHED)
    server, client = moves(lab.host, lab.peer, protocol, 4, to, server_port=PORT)
    lab.settle()
    report = reporter.finish()
    rows = of_socket(report, lab.host, local_port=PUBLISHED)
    assert payload(rows) == (server.tapped_bytes(), client.tapped_bytes())
    assert all(row["socket"]["local"] == end(lab.host.ipv4, PORT) for row in rows)
    if rung is LOOKING:
        assert owners(rows) <= {server.pid, "AMBIGUOUS"}
    else:
        assert owners(rows) == {server.pid}


def test_connections_that_were_there_before_are_known(lab: Lab) -> None:
    with Containers(lab) as containers:
        inside = containers.add()
        server = lab.peer.traffic(
            "tcp-server", address=lab.peer.ipv4, expect=UP_BYTES["tcp"], hold=True
        )
        client = inside.traffic(
            "tcp-client", address=lab.peer.ipv4, port=server.port, bytes=UP_BYTES["tcp"],
            wait=True, hold=True,
        )  # fmt: skip
        reporter = Reporter(lab.host)
        client.go()
        client.moved()
        server.moved()
        lab.settle()
        report = reporter.finish()
        (row,) = of_socket(report, inside, remote_port=server.port)
        assert owners([row]) == {client.pid}
        assert payload([row]) == process_payload(report, client.pid) == (client.tapped_bytes(), 0)


SENDERS = 101
SEND_AND_END = """
import os, socket, sys
for number in range(int(sys.argv[3])):
    pid = os.fork()
    if not pid:
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.bind(("", 20011 + number % int(sys.argv[4])))
        sender.sendto(bytes(1 + number), (sys.argv[1], int(sys.argv[2])))
        os._exit(0)
    os.waitpid(pid, 0)
    print(pid)
"""


def send_and_end(lab: Lab, inside: Namespace, senders: int, ports: int) -> list[int]:
    """The pids of processes that have sent a datagram each, of 1, 2, 3 … bytes, and are gone."""
    arguments = (PORT, senders, ports)
    argv = ["python3", "-c", SEND_AND_END, lab.peer.ipv4, *map(str, arguments)]
    pids = [int(line) for line in inside.run(argv).split()]
    assert len(pids) == senders
    wait_until(lambda: lab.wire("udp", peer_port=PORT).sent.packets == senders, "all datagrams")
    lab.settle()
    return pids


@pytest.mark.parametrize("engine", ENGINES)
def test_senders_that_end_at_once_are_named(lab: Lab, engine: tuple[str, ...]) -> None:
    with Containers(lab) as containers:
        inside = containers.add()
        reporter = Reporter(lab.host, *engine)
        pids = send_and_end(lab, inside, SENDERS, ports=SENDERS)
        report = reporter.finish()
        told = {pid: process_payload(report, pid)[0] for pid in pids}
        assert told == {pid: 1 + number for number, pid in enumerate(pids)}
        rows = of_socket(report, inside, remote_port=PORT)
        assert wire(rows)[0] == lab.wire("udp", peer_port=PORT).sent.wire_bytes


@pytest.mark.parametrize("engine", ENGINES)
def test_a_port_that_changes_hands_inside_is_nobodys_else(
    lab: Lab, engine: tuple[str, ...]
) -> None:
    """The kernel counts by the tuple on the wire, and is not told who has the one inside."""
    with Containers(lab) as containers:
        inside = containers.add()
        reporter = Reporter(lab.host, *engine)
        pids = send_and_end(lab, inside, 13, ports=1)
        report = reporter.finish()
        rows = flows(report, protocol="udp", local_address=lab.host.ipv4, remote_port=PORT)
        assert payload(rows) == (sum(range(1, 14)), 0)
        for number, pid in enumerate(pids):
            assert process_payload(report, pid)[0] in (0, 1 + number)
        if "python" in engine:
            assert owners(rows) == set(pids)
        else:
            assert owners(rows) <= {"AMBIGUOUS", *pids}


def test_on_the_containers_own_cable_it_is_a_candidate(lab: Lab) -> None:
    """There its packets are passed on, and named: they count where they leave the host."""
    stranger = str(ipaddress.ip_address(lab.peer.ipv4) + 71)
    nobody = f"neigh add {stranger} lladdr 02:00:00:00:00:77 dev {lab.device}"
    lab.host.run(["ip", *nobody.split()])
    with Containers(lab) as containers:
        inside = containers.add()
        reporter = Reporter(lab.host)
        client = inside.traffic(
            "udp-client", address=stranger, port=PORT, bytes=13 * 997, message_size=997, hold=True
        )
        client.moved()
        wait_until(lambda: lab.wire("udp", peer_port=PORT).sent.packets == 13, "all datagrams")
        report = reporter.finish()

        (leaving,) = flows(report, remote_address=stranger)
        assert owners([leaving]) == {client.pid}
        assert process_payload(report, client.pid) == payload([leaving]) == (13 * 997, 0)
        passed = flows(report, local_address=stranger)
        assert {row["interface"] for row in passed} == {"c1"}
        assert owners(passed) == {"FORWARDED"}
        assert payload(passed) == (0, 13 * 997)
        for row in passed:
            assert [each["pid"] for each in row["candidates"]] == [client.pid]
            assert row["socket"]["netns"] == inside.inode
            assert row["socket"]["local"] == end(inside.ipv4, client.port)


PING = """
import socket, struct, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
sender.settimeout(20)
sender.bind(("0.0.0.0", 4001))
print("ready", flush=True)
sys.stdin.readline()
sender.sendto(struct.pack("!BBHHH", 8, 0, 0, 0, 1) + bytes(int(sys.argv[2])), (sys.argv[1], 0))
assert len(sender.recv(65536)) == 8 + int(sys.argv[2])
print("done", flush=True)
sys.stdin.readline()
"""


def test_echoes_of_two_containers_with_one_id_are_each_ones(lab: Lab) -> None:
    with Containers(lab) as containers:
        both = [containers.add() for _ in range(2)]
        pings = []
        for inside, payload_bytes in zip(both, (101, 211), strict=True):
            inside.run(["sysctl", "-qw", "net.ipv4.ping_group_range=0 0"])
            argv = ["python3", "-c", PING, lab.peer.ipv4, str(payload_bytes)]
            pings.append(
                inside.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
        reporter = Reporter(lab.host)
        for ping in pings:
            assert ping.stdout.readline() == "ready\n"
            ping.stdin.write("go\n")
            ping.stdin.flush()
            assert ping.stdout.readline() == "done\n"
        lab.settle()
        report = reporter.finish()

        ids = set()
        for inside, ping, payload_bytes in zip(both, pings, (101, 211), strict=True):
            (row,) = of_socket(report, inside, protocol="icmp", remote_address=lab.peer.ipv4)
            assert owners([row]) == {ping.pid}
            assert payload([row]) == (payload_bytes, payload_bytes)
            assert row["socket"]["local"] == end(inside.ipv4, 4001)
            ids.add(row["local"]["port"])
        assert len(ids) == 2


WITHOUT_NET_ADMIN = ("setpriv", "--bounding-set=-net_admin")


def test_where_translations_cannot_be_read_no_socket_of_the_host_is_named(lab: Lab) -> None:
    with Containers(lab) as containers:
        inside = containers.add()
        own = lab.host.traffic(
            "udp-client", address=lab.peer.ipv4, port=PORT, local_port=4001, wait=True, hold=True
        )
        common: dict[str, Any] = {"expect": 23 * 997, "bytes": DOWN_BYTES, "hold": True}
        server = lab.peer.traffic("udp-server", address=lab.peer.ipv4, **common)
        warning = "no bytes of translated connections can be named"
        reporter = Reporter(lab.host, *LOOKING, before=WITHOUT_NET_ADMIN, warning=warning)
        client = inside.traffic(
            "udp-client", address=lab.peer.ipv4, port=server.port, local_port=4001,
            bytes=23 * 997, expect=DOWN_BYTES, message_size=997, hold=True,
        )  # fmt: skip
        client.moved()
        server.moved()
        lab.settle()
        report = reporter.finish()
        rows = flows(report, protocol="udp", local_port=4001, local_address=lab.host.ipv4)
        assert payload(rows) == (23 * 997, DOWN_BYTES)
        assert owners(rows) <= {"AMBIGUOUS", "NO_SOCKET"}
        assert process_payload(report, own.pid) == (0, 0)


def test_the_doctor_says_whether_translations_can_be_read(lab: Lab) -> None:
    argv = [sys.executable, "-m", "procnet", "doctor"]
    assert "yes     connection tracking" in lab.host.run(argv)
    refused = lab.host.run([*WITHOUT_NET_ADMIN, *argv])
    assert "no      connection tracking" in refused
    assert "CAP_NET_ADMIN" in refused


def test_behind_a_bridge_each_packet_is_counted_once(lab: Lab) -> None:
    """Its ports have link-local addresses of the host's, and show what the bridge shows."""
    with Namespace("bridged") as inside:
        host = lab.host
        ends = f"link add port type veth peer name eth0 netns {inside.name}"
        for command in (
            "link add br0 type bridge", "addr add 10.205.0.1/24 dev br0", "link set br0 up", ends,
            "link set port master br0 up",
        ):  # fmt: skip
            host.run(["ip", *command.split()])
        inside.ipv4 = "10.205.0.2"
        for command in (f"addr add {inside.ipv4}/24 dev eth0", "link set eth0 up"):
            inside.run(["ip", *command.split()])
        wait_until(lambda: "fe80" in host.run(["ip", "addr", "show", "port"]), "an address")
        inside.run(["ip", "route", "add", "default", "via", "10.205.0.1"])
        with Containers(lab):
            reporter = Reporter(host)
            assert "port" not in reporter.first_line
            out = moves(lab.peer, inside, "udp")
            own = moves(inside, host, "udp")
            report = reporter.finish()
        assert process_payload(report, out[1].pid) == (out[1].tapped_bytes(), out[0].tapped_bytes())
        assert process_payload(report, own[1].pid) == (own[1].tapped_bytes(), own[0].tapped_bytes())


MANY = 1009


def spray_with_a_short_queue() -> tuple[int, bool, int]:
    """Connections whose beginning was told, whether more were missed, and how many there are."""
    connections = Connections()
    connections._news.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for port in range(MANY):
            sender.sendto(b"1", ("127.0.0.1", 20_011 + port))
    news = connections.read()
    told = len(news.begun), news.missed, len(connections.dump())
    assert connections.read() == News([], [], news.until_ns, connections._read_ns, False)
    connections.close()
    return told


def test_what_could_not_be_told_is_said_and_can_be_looked_up(loopback: Namespace) -> None:
    rules = """
table ip bend {
    chain out {
        type nat hook output priority -100
        udp dport 20000-30000 dnat to 127.0.0.1:9
    }
}
"""
    loopback.run(["nft", "-f", "-"], stdin=rules)
    begun, missed, known = loopback.call(spray_with_a_short_queue)
    assert 0 < begun < MANY
    assert missed
    assert known == MANY
