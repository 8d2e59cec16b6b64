"""A program that is stopped, killed, set to another time, or whose answers nobody reads."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import procnet
from procnet.bpf import batches
from procnet.capture.handle import LiveHandle
from procnet.ledger import ledger
from tests.privileged.namespace import TOP, WAIT_S, Namespace, wait_until
from tests.privileged.reporting import Reporter, flows, process_payload
from tests.privileged.test_denied import exchange
from tests.privileged.test_faults import ENGINES

pytestmark = pytest.mark.privileged

MESSAGE_BYTES, HEADERS_BYTES = 64, 28
BEFORE, WHILE, AFTER = 23, 60_013, 31
HOUR_NS = 3_600_000_000_000
SMALL_PIPE_BYTES = 4096
FLOWS, MAX_FLOWS = 1009, 101
LATE_S = 3.0
"""A datagram's sender that has ended answers for its packets for two seconds."""


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# -- stopped for a while -----------------------------------------------------------------------


@ENGINES
def test_what_came_while_it_was_stopped_is_counted_or_said_to_be_lost(
    loopback: Namespace, counting: str
) -> None:
    reporter = Reporter(loopback, "--counting", counting, "--interface", "lo")
    # A server that takes nothing: what does not fit is dropped behind the tap.
    server = loopback.traffic("udp-server", address="127.0.0.1", expect=1, wait=True)
    client = loopback.traffic(
        "udp-client", address="127.0.0.1", port=server.port, bytes=WHILE * MESSAGE_BYTES,
        message_size=MESSAGE_BYTES, wait=True, hold=True,
    )  # fmt: skip
    os.kill(reporter.pid, signal.SIGSTOP)
    wait_until(lambda: state(reporter.pid) == "T", "the program to be stopped")
    client.go()
    client.moved()
    os.kill(reporter.pid, signal.SIGCONT)
    report = reporter.finish()
    loss = report["loss"]
    (sent,) = flows(report, local_port=client.port)
    (received,) = flows(report, local_port=server.port)
    for side, row in (("sent", sent), ("received", received)):
        assert row[side]["packets"] == WHILE - loss["capture_dropped_packets"]
        assert row[side]["payload_bytes"] == row[side]["packets"] * MESSAGE_BYTES
    assert sent["process"]["pid"] == client.pid
    assert received["process"] is None or received["process"]["pid"] == server.pid
    # Two megabytes of headers fit into the ring that a packet is read from, into a table any.
    assert bool(loss["capture_dropped_packets"]) == (counting == "python")
    assert loss["events_lost"] == loss["failures"] == loss["evicted_flows"] == 0


# -- killed ------------------------------------------------------------------------------------


class Objects:
    """BPF links, programs and maps by their numbers: of one process, or of the machine."""

    KINDS = ("link", "prog", "map")

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libbpf.so.1")

    def of(self, pid: int) -> set[tuple[str, int]]:
        found = set()
        for path in Path(f"/proc/{pid}/fdinfo").iterdir():
            with contextlib.suppress(FileNotFoundError):
                text = path.read_text()
                for kind in self.KINDS:
                    found |= {
                        (kind, int(n)) for n in re.findall(rf"^{kind}_id:\s*(\d+)", text, re.M)
                    }
        return found

    def everywhere(self) -> set[tuple[str, int]]:
        found = set()
        for kind in self.KINDS:
            number = ctypes.c_uint32(0)
            following = getattr(self._library, f"bpf_{kind}_get_next_id")
            while following(number, ctypes.byref(number)) == 0:
                found.add((kind, number.value))
        return found


def packet_sockets(namespace: Namespace) -> int:
    return len(namespace.run(["cat", "/proc/net/packet"]).splitlines()) - 1


def test_a_kill_leaves_nothing_and_another_one_works_at_once(loopback: Namespace) -> None:
    killed = Reporter(loopback, "--interface", "lo")
    objects = Objects()
    had = objects.of(killed.pid)
    assert {kind for kind, _ in had} == set(Objects.KINDS)
    assert packet_sockets(loopback) == 1
    os.kill(killed.pid, signal.SIGKILL)
    again = Reporter(loopback, "--interface", "lo")
    server = loopback.traffic("udp-server", address="127.0.0.1", expect=70_001)
    client = loopback.traffic("udp-client", address="127.0.0.1", port=server.port, bytes=70_001)
    client.finish()
    server.finish()
    report = again.finish()
    assert process_payload(report, client.pid) == (70_001, 0)
    assert process_payload(report, server.pid) == (0, 70_001)
    assert not any(report["loss"].values())
    wait_until(lambda: not had & objects.everywhere(), "the kernel to let go of what was killed")
    wait_until(lambda: packet_sockets(loopback) == 0, "the packet sockets to be closed")


# -- not read ----------------------------------------------------------------------------------


# JSON, for it has a row for every flow: the text of forty rows may or may not fit the pipe.
@pytest.mark.parametrize(
    "command", [("report", "--interface", "lo", "--format", "json"), ("watch",)], ids=lambda c: c[0]
)
def test_a_command_that_nobody_reads_ends_at_the_second_signal(
    loopback: Namespace, command: tuple[str, ...]
) -> None:
    process = loopback.popen(
        [sys.executable, "-m", "procnet", *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=TOP,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, SMALL_PIPE_BYTES)
    process.stderr.readline()  # it has begun
    objects = Objects()
    had = objects.of(process.pid)
    loopback.call(exchange, 199)
    if command == ("watch",):
        wait_until(lambda: is_writing(process.pid), "the pipe to be full")
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: is_writing(process.pid), "the pipe to be full")
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(WAIT_S) == -signal.SIGTERM
    assert process.stderr.read() == ""
    assert had
    wait_until(lambda: not had & objects.everywhere(), "the kernel to let go of it")


@pytest.mark.parametrize("command", ["report --duration 0.3", "top --interval 0.1 --frames 2"])
@pytest.mark.parametrize(
    ("output", "status", "said"),
    [("| true", 0, ""), ("> /dev/full", 1, "No space left"), (">&-", 1, "output is closed")],
)
def test_output_that_goes_nowhere_is_a_line_at_the_most(
    loopback: Namespace, command: str, output: str, status: int, said: str
) -> None:
    line = f"set -o pipefail; {sys.executable} -m procnet {command} --interface lo {output}"
    done = subprocess.run(
        loopback.argv(["bash", "-c", line]), capture_output=True, text=True, cwd=TOP, timeout=60
    )
    errors = [each for each in done.stderr.splitlines() if not each.startswith("capturing on ")]
    assert done.returncode == status
    assert len(errors) == status, errors
    assert all(said in each for each in errors)


def is_writing(pid: int) -> bool:
    """Is its main thread in write(1, …)?"""
    words = Path(f"/proc/{pid}/syscall").read_text().split()
    return words[:2] == ["1", "0x1"] and state(pid) == "S"


def never_taking_intervals() -> tuple[procnet.Report, int, int]:
    with procnet.Monitor(["lo"], max_flows=MAX_FLOWS) as monitor:
        exchange(FLOWS)
        settled = lambda: monitor.report().totals.sent.packets == FLOWS  # noqa: E731
        wait_until(settled, "all of it to be counted")
    booked = monitor._ledger._booked
    return monitor.report(), len(booked.rows()), len(booked.interval_rows())


def test_intervals_that_nobody_takes_have_a_bound(loopback: Namespace) -> None:
    report, rows, interval_rows = loopback.call(never_taking_intervals)
    assert rows == interval_rows == MAX_FLOWS
    assert report.totals.sent.packets == report.totals.received.packets == FLOWS
    assert report.attributed == report.totals
    # The kernel may have given some of the ports twice.
    assert FLOWS < report.loss.evicted_flows <= 2 * FLOWS - MAX_FLOWS


# -- another time ------------------------------------------------------------------------------


def set_clock(step_ns: int) -> None:
    """What this process sees of a wall clock that is set, in packets too."""
    wall, read = time.time_ns, LiveHandle.read

    def read_later(
        self: LiveHandle, callback: Callable[[float, bytes], object], *words: int
    ) -> int:
        return read(self, lambda at_s, data: callback(at_s + step_ns / 1e9, data), *words)

    time.time_ns = lambda: wall() + step_ns
    LiveHandle.read = read_later  # type: ignore[method-assign]


def count_across_a_step(counting: str, step_ns: int) -> tuple[procnet.Report, list[int], int]:
    with procnet.Monitor(["lo"], counting=counting, interval_s=0.1) as monitor:
        exchange(BEFORE)
        wait_until(lambda: monitor.report().totals.sent.packets == BEFORE, "what was sent")
        set_clock(step_ns)
        exchange(AFTER)
        both = BEFORE + AFTER
        wait_until(lambda: monitor.report().totals.sent.packets == both, "what was sent then")
        set_clock(-step_ns)
    told = [report.totals.sent.packets for report in monitor]
    return monitor.report(), told, os.getpid()


@ENGINES
@pytest.mark.parametrize("step_ns", [HOUR_NS, -HOUR_NS], ids=["ahead", "back"])
def test_a_clock_that_is_set_to_and_fro_costs_no_byte_and_no_name(
    loopback: Namespace, counting: str, step_ns: int
) -> None:
    report, told, pid = loopback.call(count_across_a_step, counting, step_ns)
    for side in (report.totals.sent, report.totals.received):
        assert side.packets == BEFORE + AFTER
    assert {row.process.pid for row in report.processes} == {pid}
    assert report.attributed == report.totals
    assert sum(told) == BEFORE + AFTER
    assert report.started_ns <= report.ended_ns
    assert all(flow.first_ns <= flow.last_ns for flow in report.flows)
    assert report.loss.failures == report.loss.events_lost == 0


# -- no time -----------------------------------------------------------------------------------


def drain_late() -> tuple[procnet.Report, int]:
    put_map, go_on = batches.put_map, threading.Event()

    def put_late(*words: int) -> None:
        go_on.wait(WAIT_S)
        put_map(*words)

    ledger._FORGET_EVERY_NS = 100_000_000
    batches.put_map = put_late
    with procnet.Monitor(["lo"]) as monitor:
        exchange(BEFORE)
        time.sleep(LATE_S)
        go_on.set()
    return monitor.report(), os.getpid()


def test_who_was_told_of_long_before_its_packets_are_drained_is_named(loopback: Namespace) -> None:
    """A drain waits for the kernel (RCU), which may have no time for seconds."""
    report, pid = loopback.call(drain_late)
    assert report.attributed == report.totals
    assert [(row.process.pid, row.sent.packets) for row in report.processes] == [(pid, BEFORE)]
    assert report.loss == procnet.Loss()
