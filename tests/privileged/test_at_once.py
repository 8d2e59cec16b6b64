"""Who is named where two processes send on one socket at the same moment?

Captures and sockets count a packet a moment after its sender was told, and meanwhile the other one
may have been. Each packet says by its size whose it is: sums would hide two that changed places.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.privileged.namespace import TOP, Namespace
from tests.privileged.reporting import Reporter
from tests.workloads.at_once import SIZES

NUMBER = 4001
ROUNDS = 5


@pytest.mark.parametrize("counting", ["kernel", "socket", "python"])
def test_nobody_is_named_for_a_packet_of_the_other_one(counting: str) -> None:
    where = ["--containers", "off"] if counting == "socket" else ["--interface", "lo"]
    with Namespace() as namespace:
        reporter = Reporter(namespace, *where, "--kernel", "core", "--counting", counting)
        sizes = dict(pair for _ in range(ROUNDS) for pair in play(namespace))
        report = reporter.finish()
    assert report["loss"]["events_lost"] == 0
    counted = 0
    for row in report["flows"]:
        sent, process = row["sent"], row["process"]
        counted += sent["payload_bytes"]
        # Who holds the sink may be named for what lies in it. At sockets, of a packet that is just
        # being counted the bytes may be in one row and the packet in the next.
        if process and sent["payload_bytes"]:
            assert sent["payload_bytes"] % sizes[process["pid"]] == 0
        elif sent["packets"]:
            assert row["reason"] == "AMBIGUOUS"
    assert counted == ROUNDS * NUMBER * sum(SIZES)


def play(namespace: Namespace) -> list[list[int]]:
    players = namespace.popen(
        [sys.executable, "-m", "tests.workloads.at_once", str(NUMBER)],
        cwd=TOP, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    said, _ = players.communicate(timeout=60)
    assert players.returncode == 0
    pairs: list[list[int]] = json.loads(said)
    return pairs
