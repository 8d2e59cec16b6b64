"""Runs ``procnet report`` in a namespace and judges what it says."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from tests.privileged.namespace import WAIT_S, Namespace

SIDES = ("sent", "received")
REPORT_S = 100.0
"""A report of a flood is a hundred thousand rows."""
FIGURES = ("packets", "wire_bytes", "payload_bytes")


class Reporter:
    """``procnet report --format json``, from the moment that it captures until ``finish()``.

    ``before``: a command that executes the one that is appended to it. ``warning``: what the line
    says that must come first.
    """

    def __init__(
        self,
        namespace: Namespace,
        *arguments: str,
        before: Sequence[str] = (),
        ready_s: float = WAIT_S,
        warning: str = "",
    ) -> None:
        self._process = namespace.popen(
            [*before, sys.executable, "-m", "procnet", "report", "--format", "json", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        readable, _, _ = select.select([self._process.stderr], [], [], ready_s)
        assert readable, "procnet report did not begin to capture"
        if warning:
            assert warning in (line := self._process.stderr.readline()), line
        self.first_line = self._process.stderr.readline()
        assert self.first_line.startswith("capturing on "), self.first_line
        self.pid = self._process.pid

    def wait_for_a_warning(self) -> None:
        """Until it has said something after its first line."""
        said, _, _ = select.select([self._process.stderr], [], [], WAIT_S)
        assert said, "procnet report did not warn"

    def finish(self, *, warnings: str = "") -> dict[str, Any]:
        """Stops it with SIGINT, as Ctrl-C does, and returns its report."""
        self._process.send_signal(signal.SIGINT)
        return self.wait(warnings=warnings)

    def wait(self, *, warnings: str = "") -> dict[str, Any]:
        """Waits for its end; the report, which must add up. ``warnings``: what each line says."""
        output, errors = self._process.communicate(timeout=REPORT_S)
        assert self._process.returncode == 0, errors
        assert all(warnings and warnings in line for line in errors.splitlines()), errors
        report: dict[str, Any] = json.loads(output)
        assert_conserved(report)
        return report


def assert_conserved(report: dict[str, Any]) -> None:
    """Counted = attributed + unattributed, and each is the sum of its rows."""
    for side in SIDES:
        for figure in FIGURES:
            total = report["totals"][side][figure]
            attributed = report["attributed"][side][figure]
            unattributed = report["unattributed"][side][figure]
            assert total == attributed + unattributed
            assert attributed == sum(row[side][figure] for row in report["processes"])
            reasons = report["unattributed"]["reasons"]
            assert unattributed == sum(both[side][figure] for both in reasons.values())
            without_flow = sum(
                reasons[reason][side][figure]
                for reason in ("NOT_IP", "UNDECODABLE", "EVICTED")
                if reason in reasons
            )
            of_rows = sum(row[side][figure] for row in report["flows"])
            if not report["loss"]["evicted_flows"]:
                assert total == without_flow + of_rows
            assert total >= of_rows
    for flow in report["flows"]:
        assert (flow["process"] is None) == (flow["reason"] is not None)
        assert (flow["process"] is None) == (flow["evidence"] is None)


def flows(report: dict[str, Any], **wanted: object) -> list[dict[str, Any]]:
    """The flow rows with this protocol, local_port, remote_port, pid … ."""

    def facts(flow: dict[str, Any]) -> dict[str, object]:
        return {
            "protocol": flow["protocol"],
            "local_port": flow["local"]["port"],
            "remote_port": flow["remote"]["port"],
            "local_address": flow["local"]["address"],
            "remote_address": flow["remote"]["address"],
            "reason": flow["reason"],
            "pid": flow["process"] and flow["process"]["pid"],
        }

    return [flow for flow in report["flows"] if wanted.items() <= facts(flow).items()]


def in_namespace(report: dict[str, Any], namespace: Namespace) -> dict[str, Any]:
    """With the flows of that namespace alone: at sockets it is counted in all of them."""
    flows = [row for row in report["flows"] if row["netns"] == namespace.inode]
    return {**report, "flows": flows}


def payload(rows: Iterable[dict[str, Any]]) -> tuple[int, int]:
    """(sent, received) payload bytes of rows together."""
    found = list(rows)
    return (
        sum(row["sent"]["payload_bytes"] for row in found),
        sum(row["received"]["payload_bytes"] for row in found),
    )


def wire(rows: Iterable[dict[str, Any]]) -> tuple[int, int]:
    """(sent, received) wire bytes of rows together."""
    found = list(rows)
    return (
        sum(row["sent"]["wire_bytes"] for row in found),
        sum(row["received"]["wire_bytes"] for row in found),
    )


def owners(rows: Iterable[dict[str, Any]]) -> set[object]:
    """The pids of rows; the reason for one without."""
    return {row["process"]["pid"] if row["process"] else row["reason"] for row in rows}


def process_payload(report: dict[str, Any], pid: int) -> tuple[int, int]:
    """(sent, received) payload bytes of one process."""
    return payload(row for row in report["processes"] if row["pid"] == pid)
