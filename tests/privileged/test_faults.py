"""What a capture stands on goes away: the report says so, and what was counted until then stays."""

from __future__ import annotations

import functools
import logging
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

import procnet
from procnet.testing.frames import udp_frame
from tests.privileged.lab import DEVICE, Lab
from tests.privileged.namespace import Namespace, run, wait_until
from tests.privileged.reporting import Reporter, process_payload

pytestmark = pytest.mark.privileged

HERE, THERE = "10.9.0.1", "10.9.0.2"
BEFORE, AFTER = 23, 31
FLAPS = 17
PAYLOAD_BYTES, HEADERS_BYTES = 101, 28
ENGINES = pytest.mark.parametrize("counting", ["kernel", "python"])


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def lay_cable() -> None:
    ip("link", "add", "near", "type", "veth", "peer", "name", "far")
    for name in ("near", "far"):
        ip("link", "set", name, "addrgenmode", "none")
        ip("link", "set", name, "multicast", "off", "arp", "off", "up")
    ip("address", "add", f"{HERE}/24", "dev", "near")


def send(number: int) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind(("near", 0))
        for port in range(number):
            sender.send(udp_frame(HERE, 1000 + port, THERE, 53, bytes(PAYLOAD_BYTES)))


class Keep(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Outcome(NamedTuple):
    counting: str
    packets: int
    wire_bytes: int
    received_packets: int
    loss: procnet.Loss
    log: list[str]


def remove(monitor: procnet.Monitor) -> None:
    ip("link", "delete", "near")


def reading(monitor: procnet.Monitor) -> list[object]:
    """The captures that are open."""
    assert monitor._tap is not None
    return list(monitor._tap._listening.values())


def hang_up(monitor: procnet.Monitor) -> None:
    """Behind the capture's back its descriptor becomes another: a pipe that nobody writes to."""
    (entry,) = reading(monitor)
    dead, other = os.pipe()
    os.close(other)
    os.dup2(dead, entry.handle.fileno())  # type: ignore[attr-defined]
    os.close(dead)


def survive(
    counting: str, damage: Callable[[procnet.Monitor], None], mend: Callable[[], None] | None
) -> Outcome:
    """Sends before the damage and, if it is mended, after it."""
    lay_cable()
    log = Keep()
    logging.getLogger("procnet").addHandler(log)
    with procnet.Monitor(["near"], counting=counting) as monitor:
        send(BEFORE)
        wait_until(lambda: monitor.report().totals.sent.packets == BEFORE, "what was sent")
        before = reading(monitor)
        damage(monitor)
        wait_until(lambda: monitor.report().loss.interrupted_captures, "the interruption")
        if mend is not None:
            mend()
            wait_until(lambda: reading(monitor) not in ([], before), "the interface's return")
            send(AFTER)
            wait_until(
                lambda: monitor.report().totals.sent.packets == BEFORE + AFTER, "what was sent then"
            )
    report = monitor.report()
    totals = report.totals
    return Outcome(
        monitor.features.counting, totals.sent.packets, totals.sent.wire_bytes,
        totals.received.packets, report.loss, log.lines,
    )  # fmt: skip


def nothing() -> None:
    """It mends itself."""


@ENGINES
@pytest.mark.parametrize(
    ("damage", "mend"), [(remove, None), (remove, lay_cable), (hang_up, nothing)]
)
def test_a_capture_that_ends_is_said_and_made_anew(
    loopback: Namespace,
    counting: str,
    damage: Callable[[procnet.Monitor], None],
    mend: Callable[[], None] | None,
) -> None:
    outcome = loopback.call(survive, counting, damage, mend)
    number = BEFORE if mend is None else BEFORE + AFTER
    assert outcome.counting == counting
    assert outcome.packets == number
    assert outcome.wire_bytes == number * (PAYLOAD_BYTES + HEADERS_BYTES)
    assert outcome.received_packets == 0
    assert outcome.loss.failures == outcome.loss.capture_dropped_packets == 0
    assert outcome.loss.interrupted_captures >= 1
    assert any("cannot read near" in line for line in outcome.log), outcome.log


def count_through_a_pause(counting: str) -> tuple[int, int]:
    lay_cable()
    with procnet.Monitor(["near"], counting=counting) as monitor:
        send(BEFORE)
        wait_until(lambda: monitor.report().totals.sent.packets == BEFORE, "what was sent")
        ip("link", "set", "near", "down")
        time.sleep(0.3)  # for the capture to hear of it
        ip("link", "set", "near", "up")
        send(AFTER)
    report = monitor.report()
    return report.totals.sent.packets, report.loss.failures


@ENGINES
def test_an_interface_that_is_down_for_a_while_is_captured_on(
    loopback: Namespace, counting: str
) -> None:
    assert loopback.call(count_through_a_pause, counting) == (BEFORE + AFTER, 0)


def captures(monitor: procnet.Monitor, index: int) -> bool:
    return [entry.index for entry in reading(monitor)] == [index]  # type: ignore[attr-defined]


def flap(counting: str) -> Outcome:
    """Down and up in a row, a frame each time; then removed and added, some frames each time."""
    lay_cable()
    log = Keep()
    logging.getLogger("procnet").addHandler(log)
    with procnet.Monitor(["near"], counting=counting) as monitor:
        for _ in range(FLAPS):
            ip("link", "set", "near", "down")
            ip("link", "set", "near", "up")
            send(1)
        for times in (1, 1, FLAPS):
            for _ in range(times):
                remove(monitor)
                lay_cable()
            # The last of them, and not one that the capture still has open.
            index = socket.if_nametoindex("near")
            wait_until(functools.partial(captures, monitor, index), "the interface's return")
            send(AFTER)
    report = monitor.report()
    return Outcome(
        monitor.features.counting, report.totals.sent.packets, report.totals.sent.wire_bytes,
        report.totals.received.packets, report.loss, log.lines,
    )  # fmt: skip


@ENGINES
def test_an_interface_that_comes_and_goes_all_the_time(loopback: Namespace, counting: str) -> None:
    outcome = loopback.call(flap, counting)
    packets = FLAPS + 3 * AFTER
    assert outcome.counting == counting
    assert outcome.packets == packets
    assert outcome.wire_bytes == packets * (PAYLOAD_BYTES + HEADERS_BYTES)
    assert outcome.received_packets == 0
    assert 3 <= outcome.loss.interrupted_captures <= FLAPS + 2
    assert outcome.loss.failures == outcome.loss.capture_dropped_packets == 0


@ENGINES
def test_a_namespace_whose_name_is_deleted_is_captured_to_the_end(counting: str) -> None:
    with Namespace("doomed") as namespace:
        reporter = Reporter(namespace, "--counting", counting, "--interface", "lo")
        server = namespace.traffic("udp-server", address="127.0.0.1", expect=70_001)
        client = namespace.traffic(
            "udp-client", address="127.0.0.1", port=server.port, bytes=70_001, hold=True
        )
        client.moved()
        server.moved()
        # Who is in it keeps it; its name is gone and the generators with it.
        run(["ip", "netns", "delete", namespace.name])
        client.process.kill()
        client.process.wait()
        report = reporter.finish()
    assert report["features"]["counting"] == counting
    assert process_payload(report, client.pid) == (70_001, 0)
    assert process_payload(report, server.pid) == (0, 70_001)
    assert report["loss"]["failures"] == 0


@pytest.fixture
def doomed() -> Iterator[Lab]:
    with Lab(subnet=7) as made:
        yield made


@ENGINES
def test_a_cable_whose_other_end_s_namespace_dies(doomed: Lab, counting: str) -> None:
    reporter = Reporter(doomed.host, "--counting", counting, "--interface", DEVICE)
    server = doomed.peer.traffic("udp-server", address=doomed.peer.ipv4, expect=70_001)
    client = doomed.host.traffic(
        "udp-client", address=doomed.peer.ipv4, port=server.port, bytes=70_001, hold=True
    )
    client.moved()
    server.finish()
    doomed.settle()
    wire = doomed.wire("udp")
    # Nobody is in it any more, so the kernel takes it apart, and the cable with it.
    run(["ip", "netns", "delete", doomed.peer.name])
    wait_until(lambda: DEVICE not in doomed.host.run(["ip", "link"]), "the cable's end")
    reporter.wait_for_a_warning()
    report = reporter.finish(warnings="cannot read")
    assert process_payload(report, client.pid) == (70_001, 0)
    (row,) = [flow for flow in report["flows"] if flow["protocol"] == "udp"]
    # The lab's wire is seen by the peer: what it received is what we sent.
    assert row["sent"]["packets"] == wire.sent.packets
    assert report["loss"]["interrupted_captures"] >= 1
    assert report["loss"]["failures"] == 0
