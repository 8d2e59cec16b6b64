"""A device that is slower than its senders: who is named for what waits in its queue?

Captures see a packet when the device takes it; the process is known when it sends. Nobody may be
named for what another one has sent before, and where nothing waits all is named as ever.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.privileged.accuracy.judging import (
    LAYERS,
    PAYLOAD,
    WIRE,
    Evidence,
    Truth,
    flow_of,
    judge,
    moved,
    named,
    process_of,
    settled,
)
from tests.privileged.accuracy.setting import Leg
from tests.privileged.lab import DEVICE, Count, Lab
from tests.privileged.namespace import TOP
from tests.privileged.reporting import SIDES, Reporter
from tests.workloads.queued import KINDS, LAST_NUMBER, LAST_SIZE

SCENES = tuple(each.__name__ for each in KINDS)
# 21 ms for each datagram of a scene.
SLOW = "root tbf rate 400kbit burst 1600 latency 20s"
PATIENCE_S = 200.0
TWO_USERS = (
    "shared_connected",
    "shared_unconnected",
    "port_taken_over_connected",
    "port_taken_over_unconnected",
    "connection",
)
"""Of one socket or port; the second one sends again when all has left."""


class Run(NamedTuple):
    """What the processes say, by scene, and what was reported of it."""

    truths: dict[str, Truth]
    evidence: Evidence
    layers: tuple[str, ...]

    def show(self, name: str) -> None:
        """For who has to find out why."""
        for flow in {flow_of(entry) for entry in self.truths[name]}:
            entries = [entry for entry in self.truths[name] if flow_of(entry) == flow]
            print(flow, *(moved(entries, side) for side in SIDES))
            for row in self.evidence.rows(entries[0]):
                print("    ", row["process"] or row["reason"], *(row[side] for side in SIDES))


def play(lab: Lab, counting: str) -> Run:
    lab.host.run(["tc", "qdisc", "add", "dev", DEVICE, *SLOW.split()])
    where = [] if counting == "socket" else ["--interface", DEVICE]
    reporter = Reporter(lab.host, *where, "--kernel", "core", "--counting", counting)
    program = [sys.executable, "-S", "-E", "-m", "tests.workloads.queued"]
    players = lab.host.popen(
        [*program, str(lab.peer.path), lab.host.ipv4, lab.peer.ipv4],
        cwd=TOP, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    said, _ = players.communicate(timeout=PATIENCE_S)
    assert players.returncode == 0, "the players died"
    truths = {name: settled(truth) for name, truth in json.loads(said).items()}
    lab.settle()
    report = reporter.finish()
    loss = report["loss"]
    assert (loss["capture_dropped_packets"], loss["events_lost"]) == (0, 0)
    layers = (PAYLOAD,) if counting == "socket" else LAYERS  # of the wire a socket does not see all
    return Run(truths, Evidence(report, crossed(lab), lab.host.inode, 0), layers)


def crossed(lab: Lab) -> dict[Leg, Count]:
    """What the second witness has seen on the cable."""
    legs = {}
    for flow, wire in lab.wire_flows().items():
        here, there = (flow.host_address, flow.host_port), (flow.peer_address, flow.peer_port)
        legs[Leg(DEVICE, flow.protocol, here, there)] = wire.sent
        legs[Leg(DEVICE, flow.protocol, there, here)] = wire.received
    return legs


@pytest.fixture(scope="module", params=["kernel", "python", "socket"])
def told(request: pytest.FixtureRequest) -> Iterator[Run]:
    with Lab() as lab:
        yield play(lab, request.param)


@pytest.mark.parametrize("name", SCENES)
def test_nobody_is_named_for_what_another_one_has_sent(told: Run, name: str) -> None:
    told.show(name)
    shares = judge(told.truths[name], told.evidence)
    for layer in told.layers:
        share = shares[layer]
        print(layer, share)
        assert (share.error, share.wrong) == (0, 0)
        assert set(share.unnamed) <= {"AMBIGUOUS"}
        assert share.named + share.unnamed.total() == share.truth
        assert share.truth > 0 or layer != WIRE


@pytest.mark.parametrize("name", TWO_USERS)
def test_who_sends_when_all_has_left_is_named(told: Run, name: str) -> None:
    told.show(name)
    last = told.truths[name][-1]
    rows = [row for row in told.evidence.rows(last) if named(row) == process_of(last)]
    assert sum(row["sent"]["payload_bytes"] for row in rows) >= LAST_NUMBER * LAST_SIZE
