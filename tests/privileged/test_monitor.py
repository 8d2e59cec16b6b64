"""The library as a program embeds it: reports that add up, and nothing left behind."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import signal
import socket
import threading
import time
from typing import Any

import pytest

import procnet
from tests.privileged.lab import Namespace
from tests.privileged.namespace import wait_until


def open_descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def send_datagrams(number: int, size: int) -> tuple[int, int, socket.socket, socket.socket]:
    """Datagrams over loopback between two sockets that stay open: their ports, and the sockets."""
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.connect(receiver.getsockname())
    for _ in range(number):
        sender.send(bytes(size))
        receiver.recv(size + 1)
    return sender.getsockname()[1], receiver.getsockname()[1], sender, receiver


def intervals_add_up() -> tuple[Any, Any, int]:
    monitor = procnet.Monitor(["lo"], interval_s=0.1)
    found: list[procnet.Report] = []
    monitor.start()
    reader = threading.Thread(target=lambda: found.extend(monitor))
    reader.start()
    for number in range(7):
        send_datagrams(23, 101)
        wait_until(lambda number=number: len(found) > number, "an interval")  # type: ignore[misc]
    monitor.stop()
    reader.join(20)
    whole = monitor.report()
    sums = sum(
        (report.totals for report in found), procnet.Both(procnet.Traffic(), procnet.Traffic())
    )
    return sums, whole.totals, len(found)


def test_interval_reports_add_up_to_the_whole(loopback: Namespace) -> None:
    sums, whole, number = loopback.call(intervals_add_up)
    assert sums == whole
    assert whole.sent.payload_bytes == whole.received.payload_bytes == 7 * 23 * 101
    assert number > 7


def own_bytes_while_running() -> tuple[int, int, str, int]:
    with procnet.Monitor(["lo"]) as monitor:
        sockets = send_datagrams(1009, 101)

        def named() -> procnet.ProcessRow | None:
            rows = [row for row in monitor.report().processes if row.process.pid == os.getpid()]
            return rows[0] if rows and rows[0].received.payload_bytes == 1009 * 101 else None

        row = wait_until(named, "the report to name this process")
        for held in sockets[2:]:
            held.close()
    return row.sent.payload_bytes, row.received.payload_bytes, row.process.exe, row.process.uid


def test_a_running_monitor_names_what_it_has_seen(loopback: Namespace) -> None:
    sent, received, exe, uid = loopback.call(own_bytes_while_running)
    assert (sent, received) == (1009 * 101, 1009 * 101)
    assert os.path.basename(exe).startswith("python")
    assert uid == 0


def failing_starts() -> tuple[int, int, list[str]]:
    messages = []
    before = open_descriptors()
    for interfaces in (["nosuch0"], ["lo", "nosuch0"], [""]):
        monitor = procnet.Monitor(interfaces)
        try:
            monitor.start()
        except procnet.ProcnetError as error:
            messages.append(str(error))
        monitor.stop()
    return before, open_descriptors(), messages


def test_a_start_that_fails_leaves_nothing(loopback: Namespace) -> None:
    before, after, messages = loopback.call(failing_starts)
    assert before == after
    assert len(messages) == 3
    assert all("\n" not in message for message in messages)


def signal_handlers() -> tuple[bool, bool]:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with procnet.Monitor(["lo"]) as monitor:
        send_datagrams(7, 101)
        for _ in itertools.islice(monitor, 1):
            pass
        during = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        interrupted = False
        try:
            signal.raise_signal(signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            interrupted = True
    return before == during, interrupted


def test_ctrl_c_stays_the_programs(loopback: Namespace) -> None:
    assert loopback.call(signal_handlers) == (True, True)


def failure_in_a_thread() -> tuple[int, int, list[str]]:
    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(f"{record.getMessage()} {record.exc_info and record.exc_info[1]}")

    logging.getLogger("procnet").addHandler(Keep())
    with procnet.Monitor(["lo"]) as monitor:
        witnesses = monitor._witnesses
        assert witnesses is not None
        look = witnesses.scan_if_due

        def broken(**_: object) -> None:
            witnesses.scan_if_due = look  # type: ignore[method-assign]
            raise RuntimeError("broken on purpose")

        witnesses.scan_if_due = broken  # type: ignore[method-assign]
        wait_until(lambda: records, "the failure to be logged")
        send_datagrams(23, 101)
    report = monitor.report()
    return report.loss.failures, report.totals.sent.payload_bytes, records


def test_an_error_in_a_thread_is_counted_logged_and_survived(loopback: Namespace) -> None:
    failures, payload_bytes, records = loopback.call(failure_in_a_thread)
    assert failures == 1
    assert payload_bytes == 2323
    assert len(records) == 1 and "broken on purpose" in records[0]


def test_it_is_started_once_and_only_asked_after_that() -> None:
    monitor = procnet.Monitor(["lo"])
    for question in (monitor.report, lambda: next(iter(monitor))):
        with pytest.raises(procnet.UsageError, match="start the Monitor first"):
            question()
    with monitor, pytest.raises(procnet.UsageError, match="started once"):
        monitor.start()
    assert monitor.report().duration_s > 0


def start_where_kprobes_break(kernel: str) -> tuple[str, list[str], str]:
    from procnet import ladder, witnesses
    from procnet.features import no, yes

    def refuse(*, netns: int) -> None:
        raise procnet.LoadError("the verifier refused it")

    core, kprobes = no("core owners", "no BTF"), yes("kprobe owners", "so the probe says")
    ladder._OWNERS = (
        ("core", lambda: core, lambda: core),
        ("kprobe", lambda: kprobes, lambda: kprobes),
        *ladder._OWNERS[2:],
    )
    witnesses.KprobeOwners.open = refuse  # type: ignore[method-assign,assignment]
    monitor = procnet.Monitor(["lo"], kernel=kernel)
    try:
        with monitor:
            send_datagrams(23, 101)
    except procnet.UnsupportedError as error:
        return "", [], str(error)
    features = monitor.features
    return features.owners, [f"{rung.support.value} {rung.reason}" for rung in features.rungs], ""


def test_a_rung_that_breaks_when_stepped_on_gives_way_to_the_next(loopback: Namespace) -> None:
    owners, rungs, _ = loopback.call(start_where_kprobes_break, "auto")
    assert owners in ("sock_diag", "proc")
    assert "no the verifier refused it" in rungs
    assert "no no BTF" in rungs


def test_a_rung_that_is_forced_and_breaks_is_an_error(loopback: Namespace) -> None:
    assert loopback.call(start_where_kprobes_break, "kprobe")[2] == "the verifier refused it"
