"""Frames from AF_PACKET sockets: who injects them is their sender, whatever is in them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.privileged.lab import Lab, Namespace
from tests.privileged.namespace import TOP
from tests.privileged.reporting import Reporter, flows, owners, payload, process_payload

Truth = list[dict[str, Any]]


def inject(namespace: Namespace, *arguments: str) -> Truth:
    """What a process injected, which is still there."""
    process = namespace.popen(
        [sys.executable, "-S", "-E", "-m", "tests.workloads.inject", *arguments],
        cwd=TOP, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    truth: Truth = json.loads(process.stdout.readline())
    return truth


def assert_injected(report: dict[str, Any], truth: Truth) -> None:
    (process,) = {(entry["pid"], entry["start_time_ticks"] * 10_000_000) for entry in truth}
    for entry in truth:
        (row,) = flows(
            report, protocol=entry["protocol"],
            local_address=entry["local"][0], local_port=entry["local"][1],
            remote_address=entry["remote"][0], remote_port=entry["remote"][1],
        )  # fmt: skip
        assert payload([row]) == (entry["sent"], 0)
        assert row["process"] is not None, row["reason"]
        assert (row["process"]["pid"], row["process"]["start_time_ns"]) == process
        assert row["evidence"] == "KERNEL_EVENT"
    assert process_payload(report, process[0]) == (sum(entry["sent"] for entry in truth), 0)
    assert [row["pid"] for row in report["processes"]] == [process[0]]


def test_frames_on_loopback_are_their_injector_s(loopback: Namespace) -> None:
    reporter = Reporter(loopback, "--interface", "lo", "--kernel", "core")
    truth = inject(loopback, "lo", "00:00:00:00:00:00", "127.0.0.1", "127.0.0.9", "::1", "fd00::9")
    report = reporter.finish()
    assert_injected(report, truth)
    # The other end of each packet: no socket has it, the injector's neither.
    for row in flows(report, local_port=truth[0]["remote"][1]):
        assert row["reason"] == "NO_SOCKET"


def test_frames_on_a_cable_are_their_injector_s(lab: Lab) -> None:
    reporter = Reporter(lab.host, "--interface", lab.device, "--kernel", "core")
    mac = lab.host.run(["cat", f"/sys/class/net/{lab.device}/address"]).strip()
    truth = inject(
        lab.host, lab.device, mac, lab.host.ipv4, lab.peer.ipv4, lab.host.ipv6, lab.peer.ipv6
    )
    lab.settle()
    assert_injected(reporter.finish(), truth)


def test_a_forged_address_is_nobody_else_s(lab: Lab) -> None:
    """Neither end is the host's: it may have forwarded it."""
    reporter = Reporter(lab.host, "--interface", lab.device, "--kernel", "core")
    mac = lab.host.run(["cat", f"/sys/class/net/{lab.device}/address"]).strip()
    truth = inject(
        lab.host, lab.device, mac, "192.0.2.7", lab.peer.ipv4, "2001:db8::7", lab.peer.ipv6
    )
    lab.settle()
    report = reporter.finish()
    assert owners(report["flows"]) <= {"FORWARDED", truth[0]["pid"]}
    assert payload(report["flows"]) == (sum(entry["sent"] for entry in truth), 0)
