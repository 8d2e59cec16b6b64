"""Processes that each live for a millisecond: who of them is named, and is anybody wrong?"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.privileged.namespace import TOP, run
from tests.privileged.reporting import flows, payload

SENDERS = 200
MESSAGE_BYTES = 101
_TICK_NS = 10_000_000


class Sender(NamedTuple):
    """A child as the launcher told of it."""

    pid: int
    start_time_ns: int
    local_port: int
    payload_bytes: int
    lifetime_us: int


class Judgement(NamedTuple):
    """Senders by what the report says of them: each is in exactly one. ``again``: messages that TCP
    has sent more than once, which a busy machine makes it do."""

    named: int
    wrong: int
    unnamed: int
    uncounted: int
    again: int = 0


def build(directory: Path) -> Path:
    """The workload, compiled statically so that a child is ready at once."""
    program = directory / "short-lived"
    source = TOP / "tests" / "workloads" / "short_lived.c"
    run(["gcc", "-O2", "-Wall", "-Werror", "-static", "-o", str(program), str(source)])
    return program


def arguments(protocol: str, number: int) -> list[str]:
    """Of the workload."""
    return [protocol, str(number), str(MESSAGE_BYTES), "0"]


def launch(argv: Sequence[str]) -> tuple[int, list[Sender]]:
    """Runs the workload to its end: the port that was sent to, and the senders."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=True)
    first, *lines = done.stdout.splitlines()
    senders = []
    for line in lines:
        pid, ticks, port, sent, lifetime_us = map(int, line.split())
        senders.append(Sender(pid, ticks * _TICK_NS, port, sent, lifetime_us))
    return int(first.removeprefix("port ")), senders


def judge(
    report: dict[str, Any], protocol: str, port: int, senders: Sequence[Sender], exe: str = ""
) -> Judgement:
    """Compares the launcher's list with the flows; a name must be a sender's of that very port.

    With ``exe`` it must be the program's, and parent and arguments known: a full row.
    """
    full = {
        (row["pid"], row["start_time_ns"])
        for row in report["processes"]
        if not exe or (row["exe"] == exe and row["cmdline"][:1] == [exe] and row["parent_pid"])
    }
    named = wrong = unnamed = uncounted = again = 0
    by_port: dict[int, list[Sender]] = {}
    for sender in senders:
        by_port.setdefault(sender.local_port, []).append(sender)
    for local_port, users in by_port.items():
        rows = flows(report, protocol=protocol, local_port=local_port, remote_port=port)
        sent, _ = payload(rows)
        missing = sum(user.payload_bytes for user in users) // MESSAGE_BYTES - sent // MESSAGE_BYTES
        assert sent % MESSAGE_BYTES == 0
        uncounted += max(0, missing)
        extra = max(0, -missing)
        again += extra
        for row in rows:
            messages = row["sent"]["payload_bytes"] // MESSAGE_BYTES
            if messages > extra:
                messages, extra = messages - extra, 0
            process = row["process"]
            if process is None:
                unnamed += messages
                print(f"unnamed: {row}")
            elif any(is_row_of(process, user) for user in users) and (
                (process["pid"], process["start_time_ns"]) in full
            ):
                named += messages
            else:
                print(f"wrong: {row}, which was sent by {users}")
                wrong += messages
    return Judgement(named, wrong, unnamed, uncounted, again)


def is_row_of(process: dict[str, Any], sender: Sender) -> bool:
    """The right pid, start time and name."""
    return (process["pid"], process["start_time_ns"], process["name"]) == (
        sender.pid,
        sender.start_time_ns,
        "short-lived",
    )
