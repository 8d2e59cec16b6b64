"""Holds a report against what the processes of tests/workloads/sharing.py say of themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any, NamedTuple

from tests.privileged.namespace import TOP, Namespace

SHARING = TOP / "tests" / "workloads" / "sharing.py"
SCENARIOS = (
    "prefork",
    "fork_per_connection",
    "reuseport",
    "forked_udp_sender",
    "forked_tcp_sender",
    "writer_and_reader",
    "passed_socket",
    "port_handover",
    "short_connections",
)
# Of bytes that wait in one queue with another process's, so many may be told of neither: a packet
# that has bytes of both, at both ends, or all that is sent until the queue is empty.
QUEUED = {"writers_in_turn": 2 * 65_536, "writers_by_turns": 4 * 31 * 20_011}

Truth = list[dict[str, Any]]


class Share(NamedTuple):
    """Payload bytes of the flows that the truth knows: each byte is in exactly one figure."""

    named: int
    wrong: int
    unnamed: int
    uncounted: int


def perform(namespace: Namespace, scenario: str) -> Truth:
    """Runs a scenario to its end."""
    done = subprocess.run(
        namespace.argv([sys.executable, "-S", "-E", str(SHARING), scenario]),
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    truth: Truth = json.loads(done.stdout)
    assert truth
    return truth


def share(report: dict[str, Any], truth: Truth) -> Share:
    """How much of what moved is named rightly, wrongly, not at all, and not even counted."""
    moved: Counter[tuple[object, ...]] = Counter()
    for entry in truth:
        for direction in ("sent", "received"):
            flow = (entry["protocol"], entry["local_port"], entry["remote_port"], direction)
            who = (entry["pid"], entry["start_time_ticks"] * 10_000_000)
            moved[(*flow, who)] += entry[direction]
    known = {key[:4] for key in moved}
    named = wrong = unnamed = 0
    for row in report["flows"]:
        for direction in ("sent", "received"):
            flow = (row["protocol"], row["local"]["port"], row["remote"]["port"], direction)
            if flow not in known:
                continue
            found = row[direction]["payload_bytes"]
            if row["process"] is None:
                unnamed += found
                continue
            who = (row["process"]["pid"], row["process"]["start_time_ns"])
            right = min(found, moved[(*flow, who)])
            named += right
            wrong += found - right
    return Share(named, wrong, unnamed, moved.total() - named - wrong - unnamed)
