"""Floods of flows that are all new: every packet is in the totals, and memory stays bounded."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.privileged import flooding
from tests.privileged.flooding import DATAGRAM_BYTES, SYN_BYTES, Flood
from tests.privileged.namespace import Namespace, wait_until
from tests.privileged.reporting import Reporter, process_payload

pytestmark = pytest.mark.privileged

FLOOD = int(os.environ.get("PROCNET_FLOOD", "199999"))
"""How many tuples, of which the tables hold only a part. A million takes a minute."""
ROUND = 50_021
"""A counting table has room for these."""
FILLED_AFTER, ROUNDS = 5, 10
"""Rounds after which every table that is bounded is full."""
CHURN_S = 8
MAC, TARGET = "02:00:00:00:00:01", "10.9.0.1"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flooding.build(tmp_path_factory.mktemp("flood"))


@pytest.fixture
def silent() -> Iterator[Namespace]:
    """A namespace in which nobody answers, with a cable, near, to the one outside."""
    with Namespace("flood") as made:
        made.run(["nft", "-f", "-"], stdin=flooding.SILENCE)
        yield made


@pytest.fixture
def outside(silent: Namespace) -> Iterator[Namespace]:
    """The cable's other end, far."""
    with Namespace("outside") as made:
        far = ["peer", "name", "far", "netns", made.name]
        silent.run(["ip", "link", "add", "near", "address", MAC, "type", "veth", *far])
        for end, device in ((silent, "near"), (made, "far")):
            end.run(["ip", "link", "set", device, "addrgenmode", "none"])
            end.run(["ip", "link", "set", device, "multicast", "off", "arp", "off", "up"])
        silent.run(["ip", "address", "add", f"{TARGET}/24", "dev", "near"])
        yield made


def packets(report: dict[str, Any], reason: str, side: str) -> int:
    both = report["unattributed"]["reasons"].get(reason)
    return both[side]["packets"] if both else 0


def assert_says_what_it_let_go(report: dict[str, Any], side: str, sent: int) -> None:
    """Each flow is one packet, so rows, evicted rows and evicted packets are all that was sent."""
    loss = report["loss"]
    rows = sum(row[side]["packets"] for row in report["flows"])
    assert loss["capture_dropped_packets"] == loss["failures"] == 0
    assert loss["evicted_flows"] > 0
    without_row = sent - rows
    assert packets(report, "EVICTED", side) - loss["evicted_runs"] <= without_row
    assert without_row <= packets(report, "EVICTED", side) + loss["evicted_flows"]


def test_a_scan_from_outside_is_counted_to_the_packet(
    silent: Namespace, outside: Namespace, program: Path
) -> None:
    reporter = Reporter(silent, "--counting", "kernel", "--interface", "near")
    with Flood(outside, program, "syn", "far", MAC, TARGET, str(FLOOD)) as flood:
        sent, wire_bytes = flood.round()
    report = reporter.finish()
    assert (sent, wire_bytes) == (FLOOD, FLOOD * SYN_BYTES)
    assert report["totals"]["received"] == {
        "packets": sent, "wire_bytes": wire_bytes, "payload_bytes": 0
    }  # fmt: skip
    assert report["totals"]["sent"]["packets"] == 0
    assert report["processes"] == []
    assert_says_what_it_let_go(report, "received", sent)


def test_a_spray_over_loopback_is_counted_at_both_ends(silent: Namespace, program: Path) -> None:
    reporter = Reporter(silent, "--counting", "kernel", "--interface", "lo")
    with Flood(silent, program, "udp", str(FLOOD)) as flood:
        sent, wire_bytes = flood.round()
    report = reporter.finish()
    assert (sent, wire_bytes) == (FLOOD, FLOOD * DATAGRAM_BYTES)
    for side in ("sent", "received"):
        assert report["totals"][side] == {
            "packets": sent, "wire_bytes": wire_bytes, "payload_bytes": wire_bytes - 28 * sent
        }  # fmt: skip
        assert_says_what_it_let_go(report, side, sent)
    # Events were lost by the ten thousand, and yet nobody is named who did not send.
    assert {row["pid"] for row in report["processes"]} <= {flood.pid}


def test_memory_stays_where_it_is_when_the_tables_are_full(
    silent: Namespace, outside: Namespace, program: Path
) -> None:
    reporter = Reporter(silent, "--counting", "kernel", "--interface", "near")
    rss_bytes = []
    with Flood(outside, program, "syn", "far", MAC, TARGET, str(ROUND)) as flood:
        for _ in range(ROUNDS):
            sent, _ = flood.round()
            wait_until_it_rests(reporter.pid)
            rss_bytes.append(flooding.rss_bytes(reporter.pid))
    report = reporter.finish()
    assert report["totals"]["received"]["packets"] == sent == ROUNDS * ROUND
    # Of the last three the least: what is on its way from one thread to the other comes and goes.
    assert min(rss_bytes[-3:]) <= 1.1 * rss_bytes[FILLED_AFTER - 1], rss_bytes


def wait_until_it_rests(pid: int) -> None:
    """Until a process has had nothing to do for a while, and that not for want of a processor."""
    before_s = [(-1.0, -1.0)]

    def rests() -> bool:
        now_s = flooding.cpu_s(pid), flooding.waited_s(pid)
        spent_s, waited_s = (now - before for now, before in zip(now_s, before_s[0], strict=True))
        resting = spent_s < 0.05 and waited_s < 0.5
        before_s[0] = now_s
        if not resting:
            time.sleep(1.3)  # longer than the second between two drains
        return resting

    wait_until(rests, "the end of a round's work", 100.0)


@pytest.mark.parametrize("rate", [200, 1700])
def test_every_byte_of_flows_that_come_and_go(rate: int, program: Path) -> None:
    with Namespace("churn") as namespace:
        namespace.run(["nft", "-f", "-"], stdin=flooding.DEAF_TO_DATAGRAMS)
        reporter = Reporter(namespace, "--counting", "kernel", "--interface", "lo")
        with Flood(namespace, program, "churn", str(CHURN_S), str(rate)) as flood:
            flows, datagrams, wire_bytes, tcp_bytes, received, server = flood.round()
        report = reporter.finish()
    assert flows == rate * CHURN_S
    assert received == tcp_bytes
    assert process_payload(report, flood.pid) == (tcp_bytes + wire_bytes - 28 * datagrams, 0)
    assert process_payload(report, server) == (0, received)
    # Nobody took the datagrams.
    assert set(report["unattributed"]["reasons"]) == {"NO_SOCKET"}
    assert packets(report, "NO_SOCKET", "received") == datagrams
    assert packets(report, "NO_SOCKET", "sent") == 0
    assert not any(report["loss"].values()), report["loss"]
