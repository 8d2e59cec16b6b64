"""The laboratory proves itself first: its two witnesses agree, and it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.privileged.backlog import BACKLOG, NOTE
from tests.privileged.lab import (
    MTU_BYTES,
    TOP,
    Count,
    Lab,
    LabError,
    Namespace,
    Wire,
    WireFlow,
    wait_until,
)
from tests.privileged.namespace import in_child, remove_stale

IP_HEADER_BYTES = {4: 20, 6: 40}
UDP_HEADER_BYTES = 8
TCP_HEADER_BYTES = 20 + 12  # with the timestamp option
SYN_EXTRA_BYTES = 8  # a SYN's options take 20 bytes


def address(end: Namespace, version: int) -> str:
    return end.ipv4 if version == 4 else end.ipv6


def lab_namespaces() -> set[str]:
    return {path.name for path in Path("/run/netns").glob(f"pn-{os.getpid()}-*")}


@pytest.mark.parametrize("version", [4, 6])
def test_udp_on_the_wire_is_payload_plus_headers(lab: Lab, version: int) -> None:
    sent, received, size = 23 * 101, 7 * 101, 101
    server = lab.peer.traffic(
        "udp-server", family=version, address=address(lab.peer, version),
        expect=sent, bytes=received, message_size=size,
    )  # fmt: skip
    client = lab.host.traffic(
        "udp-client", family=version, address=address(lab.peer, version), port=server.port,
        local_address=address(lab.host, version), bytes=sent, expect=received, message_size=size,
    )  # fmt: skip
    client.finish()
    server.finish()

    headers = IP_HEADER_BYTES[version] + UDP_HEADER_BYTES
    flow = WireFlow(
        "udp", address(lab.host, version), client.port, address(lab.peer, version), server.port
    )
    assert lab.wire_flows() == {
        flow: Wire(Count(23, sent + 23 * headers), Count(7, received + 7 * headers))
    }


@pytest.mark.parametrize("version", [4, 6])
def test_tcp_on_the_wire_is_payload_plus_headers(lab: Lab, version: int) -> None:
    sent, received = 1_000_003, 299_993
    server = lab.peer.traffic(
        "tcp-server", family=version, address=address(lab.peer, version),
        expect=sent, bytes=received,
    )  # fmt: skip
    client = lab.host.traffic(
        "tcp-client", family=version, address=address(lab.peer, version), port=server.port,
        bytes=sent, expect=received, message_size=65521,
    )  # fmt: skip
    told = client.finish()["connections"][0]["tcp"]
    server.finish()
    lab.settle()

    wire = lab.wire("tcp", host_port=client.port, peer_port=server.port, version=version)
    for count, end in ((wire.sent, client), (wire.received, server)):
        headers = count.packets * (IP_HEADER_BYTES[version] + TCP_HEADER_BYTES)
        assert count.wire_bytes == end.tapped_bytes() + headers + SYN_EXTRA_BYTES
    # The client asked for TCP_INFO before its last packets: its FIN, and the ACK of the other one.
    assert told["segments_out"] < wire.sent.packets <= told["segments_out"] + 2
    assert wire == lab.wire(), "something else was on the cable"


def test_no_packet_on_the_wire_is_larger_than_the_mtu(lab: Lab) -> None:
    server = lab.peer.traffic("tcp-server", address=lab.peer.ipv4, expect=1_000_003)
    client = lab.host.traffic(
        "tcp-client", address=lab.peer.ipv4, port=server.port, bytes=1_000_003, message_size=65521
    )
    client.finish()
    server.finish()
    largest_payload = MTU_BYTES - IP_HEADER_BYTES[4] - TCP_HEADER_BYTES
    assert lab.wire("tcp").sent.packets >= 1_000_003 // largest_payload


def test_fragments_and_echoes_are_counted_without_ports(lab: Lab) -> None:
    server = lab.peer.traffic("udp-server", address=lab.peer.ipv4, expect=4001)
    client = lab.host.traffic(
        "udp-client", address=lab.peer.ipv4, port=server.port, bytes=4001, message_size=4001
    )
    client.finish()
    server.finish()
    flows = lab.wire_flows()
    host, peer = lab.host.ipv4, lab.peer.ipv4
    first = flows[WireFlow("udp", host, client.port, peer, server.port)]
    later = flows[WireFlow("udp", host, 0, peer, 0)]
    assert first.sent == Count(1, MTU_BYTES)
    assert later.sent == Count(2, 4001 + UDP_HEADER_BYTES + 3 * 20 - MTU_BYTES)

    echo = f"import socket; s = socket.create_connection(('{host}', 9), 1)"
    with pytest.raises(LabError, match="ConnectionRefusedError"):
        lab.peer.run([sys.executable, "-c", echo])  # a RST with no payload: SYN 60, RST 40
    refused = lab.wire("tcp", host_port=9)
    assert refused == Wire(Count(1, 40), Count(1, 60))


def test_an_idle_cable_is_silent(lab: Lab) -> None:
    assert lab.settle() == Wire(Count(0, 0), Count(0, 0))


def test_a_held_connection_stays_until_told(lab: Lab) -> None:
    server = lab.peer.traffic("tcp-server", address=lab.peer.ipv4, expect=23, hold=True)
    client = lab.host.traffic(
        "tcp-client", address=lab.peer.ipv4, port=server.port, bytes=23, wait=True, hold=True
    )
    lab.settle()
    assert lab.wire("tcp").sent.packets == 2  # SYN, ACK: connected and waiting
    client.go()
    assert client.moved()["ok"] and server.moved()["ok"]
    assert client.process.poll() is None
    assert "ESTAB" in lab.host.run(["ss", "-tn"])
    client.finish()
    server.finish()


def test_a_wrong_count_is_an_error(lab: Lab) -> None:
    server = lab.peer.traffic("tcp-server", address=lab.peer.ipv4, expect=24)
    client = lab.host.traffic("tcp-client", address=lab.peer.ipv4, port=server.port, bytes=23)
    client.finish()
    with pytest.raises(LabError, match="'ok': False"):
        server.finish()


def test_the_generator_tells_its_start_time(loopback: Namespace) -> None:
    server = loopback.traffic("tcp-server", address=loopback.ipv4, hold=True)
    stat = Path("/proc", str(server.pid), "stat").read_text()
    ticks = int(stat.rpartition(")")[2].split()[19])
    assert server.start_time_ns == ticks * 10_000_000
    assert server.pid == server.process.pid


def test_a_function_runs_in_the_namespace(loopback: Namespace) -> None:
    assert loopback.call(os.listdir, "/sys/class/net") == ["lo"]
    with pytest.raises(FileNotFoundError):
        loopback.call(os.listdir, "/nowhere")


def test_loopback_traffic_stays_inside(loopback: Namespace) -> None:
    server = loopback.traffic("udp-server", family=6, address=loopback.ipv6, expect=23)
    client = loopback.traffic(
        "udp-client", family=6, address=loopback.ipv6, port=server.port, bytes=23, connected=True
    )
    assert client.finish()["sent_payload_bytes"] == 23
    assert server.finish()["received_payload_bytes"] == 23


def test_two_laboratories_may_have_the_same_addresses(lab: Lab) -> None:
    with Lab() as other:
        assert other.host.ipv4 == lab.host.ipv4
        assert other.host.inode != lab.host.inode
        server = other.peer.traffic("udp-server", address=other.peer.ipv4, expect=23)
        client = other.host.traffic(
            "udp-client", address=other.peer.ipv4, port=server.port, bytes=23
        )
        client.finish()
        server.finish()
        assert other.wire().sent.packets == 1
    assert lab.settle() == Wire(Count(0, 0), Count(0, 0))


def test_all_is_gone_afterwards_also_when_the_body_raises() -> None:
    is_alone, backlog = not NOTE.exists(), BACKLOG.read_text()
    links = os.listdir("/sys/class/net")
    before = lab_namespaces()
    with pytest.raises(ZeroDivisionError), Lab() as lab:
        assert len(lab_namespaces() - before) == 2
        sleeper = lab.host.popen(["sleep", "1000"])
        orphan = lab.peer.run(["sh", "-c", "sleep 1001 >&- 2>&- & echo $!"]).strip()
        raise ZeroDivisionError
    assert sleeper.returncode == -signal.SIGKILL
    wait_until(lambda: is_dead(orphan), "the end of the orphan")
    assert lab_namespaces() == before
    # Others on this machine may have a laboratory open, or close their last one now.
    users = NOTE.read_text().splitlines()[1:] if NOTE.exists() else []
    assert not [user for user in users if user.split()[0] == str(os.getpid())]
    assert not is_alone or users or BACKLOG.read_text() == backlog
    assert sorted(os.listdir("/sys/class/net")) == sorted(links)


def is_dead(pid: str) -> bool:
    """Gone, or only waiting to be reaped by an init that takes its time."""
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_all_is_gone_after_a_signal(how: signal.Signals) -> None:
    """Ctrl-C cleans up at once; what a kill leaves is removed by the next laboratory."""
    code = (
        "from tests.privileged.lab import Lab\nimport time\n"
        "with Lab() as lab:\n    print(lab.host.name, flush=True)\n    time.sleep(60)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], cwd=TOP, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert other.stdout is not None
    with other:
        name = other.stdout.readline().decode().strip()
        path = Path("/run/netns", name)
        assert path.exists()
        other.send_signal(how)
        other.wait(20)
    remove_stale()
    assert not path.exists()
    assert not Path("/run/netns", name.replace("-host", "-peer")).exists()


def test_what_fails_in_a_child_fails_in_the_test() -> None:
    us = os.getpid()
    assert in_child(os.getppid) == us
    with pytest.raises(AssertionError):
        in_child(os.lstat, "/nowhere")
    assert os.getpid() == us
