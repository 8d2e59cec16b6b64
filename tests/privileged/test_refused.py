"""What came in before a socket was there is not for whoever opens it a moment later."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.privileged.namespace import TOP, Namespace
from tests.privileged.reporting import Reporter, flows, payload
from tests.workloads import refused


@pytest.mark.parametrize("counting", ["kernel", "python"])
def test_what_a_port_refused_is_not_for_who_takes_the_port(
    loopback: Namespace, counting: str
) -> None:
    reporter = Reporter(
        loopback, "--interface", "lo", "--kernel", "core", "--counting", counting
    )  # fmt: skip
    players = loopback.popen(
        [sys.executable, "-m", "tests.workloads.refused"],
        cwd=TOP, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    who = json.loads(players.stdout.readline())
    report = reporter.finish()
    players.communicate("", timeout=60)
    assert players.returncode == 0

    first, *rest = refused.TAKEN_SIZES
    at_port = flows(report, protocol="udp", local_port=refused.UDP_PORT)
    _, named_bytes = payload(row for row in at_port if row["process"])
    assert {row["process"]["pid"] for row in at_port if row["process"]} == {who["server"]}
    # One run may have what was refused and what came first after it: that is nobody's for sure.
    assert named_bytes in (sum(rest), first + sum(rest))
    assert payload(at_port) == (0, sum(refused.REFUSED_SIZES + refused.TAKEN_SIZES))

    for number in range(len(refused.REFUSED_SIZES)):
        caller = refused.FIRST_CALLER_PORT + number
        (row,) = flows(report, protocol="tcp", local_port=refused.TCP_PORT, remote_port=caller)
        assert (row["reason"], row["received"]["packets"]) == ("NO_SOCKET", 1)
        (row,) = flows(report, protocol="tcp", local_port=caller)
        assert (row["process"]["pid"], row["sent"]["packets"]) == (who["asker"], 1)
    caller = refused.FIRST_CALLER_PORT + len(refused.REFUSED_SIZES)
    taken = flows(report, protocol="tcp", local_port=refused.TCP_PORT, remote_port=caller)
    assert {row["process"]["pid"] for row in taken} == {who["server"]}
    assert payload(taken) == (0, refused.TAKEN_BY_TCP_BYTES)
