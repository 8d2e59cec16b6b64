"""What may be used up: rings, descriptors, memory. It is said, and what can be kept is kept."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import procnet
from procnet.bpf.libbpf import BpfObject
from procnet.testing.frames import udp_frame
from tests.privileged import short_lived
from tests.privileged.namespace import TOP, Namespace, in_child, wait_until
from tests.privileged.test_faults import HERE, THERE, Keep, lay_cable, reading, send
from tests.privileged.test_stopping import remains

pytestmark = pytest.mark.privileged

PAGE = 4096
PEERS = 199
PAYLOAD_BYTES = 101
BEFORE, AFTER = 23, 31
SHORT_BY, SPARE, STEP = 23, 11, 13
"""Each number of descriptors is tried of which so many are lacking, fewer in steps; so many are
taken by a start beyond those that stay open."""


def sink() -> socket.socket:
    receiver = socket.socket(type=socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    receiver.bind(("0.0.0.0", 0))
    return receiver


@contextlib.contextmanager
def blind(monitor: procnet.Monitor) -> Iterator[None]:
    """For a while the monitor does not get to read what the hooks tell."""
    told_by = monitor._witnesses
    assert told_by is not None
    observe = told_by.observe
    told_by.observe = lambda: None  # type: ignore[method-assign]
    yield
    told_by.observe = observe  # type: ignore[method-assign]


def resize(ring: str) -> None:
    """Makes a ring of the hooks as small as it can be, in this process."""
    load = BpfObject.load

    def load_small(self: BpfObject) -> None:
        with contextlib.suppress(procnet.LoadError):  # of the object that has no such ring
            self.resize(ring, PAGE)
        load(self)

    BpfObject.load = load_small  # type: ignore[method-assign]


def spray_into_a_full_ring() -> tuple[procnet.Report, int]:
    resize("events")
    sender = socket.socket(type=socket.SOCK_DGRAM)
    with procnet.Monitor(["lo"]) as monitor, sink() as receiver, blind(monitor), sender:
        for peer in range(PEERS):
            sender.sendto(bytes(PAYLOAD_BYTES), (f"127.1.0.{1 + peer}", receiver.getsockname()[1]))
            receiver.recv(PAYLOAD_BYTES + 1)
    return monitor.report(), os.getpid()


def test_a_full_ring_of_events_costs_names_and_no_bytes(loopback: Namespace) -> None:
    report, pid = loopback.call(spray_into_a_full_ring)
    for side in (report.totals.sent, report.totals.received):
        assert (side.packets, side.payload_bytes) == (PEERS, PEERS * PAYLOAD_BYTES)
    assert report.loss.events_lost > 0
    assert report.loss.failures == 0
    assert {row.process.pid for row in report.processes} <= {pid}
    assert set(report.reasons) <= {procnet.Reason.AMBIGUOUS, procnet.Reason.NO_SOCKET}


def short_lives_into_a_full_ring(program: str) -> tuple[procnet.Report, list[short_lived.Sender]]:
    resize("processes")
    with procnet.Monitor(["lo"]) as monitor, blind(monitor):
        _, senders = short_lived.launch([program, *short_lived.arguments("udp", BEFORE)])
    return monitor.report(), senders


def test_a_full_ring_of_processes_costs_their_programs_and_no_names(
    loopback: Namespace, tmp_path: Path
) -> None:
    program = short_lived.build(tmp_path)
    report, senders = loopback.call(short_lives_into_a_full_ring, str(program))
    rows = {row.process.id: row for row in report.processes}
    unknown = 0
    for sender in senders:
        row = rows[procnet.ProcessId(sender.pid, sender.start_time_ns)]
        assert row.process.name == "short-lived"
        assert row.sent.payload_bytes == sender.payload_bytes
        unknown += not row.process.exe
    assert 0 < unknown <= report.loss.processes_lost
    assert report.loss.events_lost == report.loss.failures == 0


# -- descriptors -------------------------------------------------------------------------------


class Start(NamedTuple):
    allowed: int
    owners: str
    counting: str
    error: str
    sent_packets: int
    before: tuple[int, int]
    after: tuple[int, int]


def start_with(allowed: int, kernel: str) -> Start:
    """In a process of its own: libbpf keeps what it once found out about the kernel."""
    before = remains()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    # The limit is of the number, so there must be no gap below it.
    held = [os.dup(2) for _ in range(highest + 1 - len(os.listdir("/proc/self/fd")))]
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1 + allowed,
                                                limit[1]))  # fmt: skip
    monitor, error = procnet.Monitor(["lo"], kernel=kernel), ""
    try:
        monitor.start()
    except procnet.ProcnetError as refusal:
        error = str(refusal)
    monitor.stop()
    resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    for descriptor in held:
        os.close(descriptor)
    features = monitor.features
    sent_packets = 0 if error else monitor.report().totals.sent.packets
    return Start(
        allowed, features.owners, features.counting, error, sent_packets, before, remains()
    )


def starts_with(kernel: str) -> list[Start]:
    logging.getLogger("procnet").addHandler(logging.NullHandler())
    before, _ = remains()
    with procnet.Monitor(["lo"], kernel=kernel):  # which also imports what is imported late
        enough = remains()[0] - before + SPARE
    each = range(max(0, enough - SPARE - SHORT_BY), enough + 1)
    return [in_child(start_with, n, kernel) for n in (*range(0, each.start, STEP), *each)]


@pytest.mark.parametrize("kernel", ["auto", "off"])
def test_too_few_descriptors_are_an_error_or_a_lower_rung(loopback: Namespace, kernel: str) -> None:
    found = loopback.call(starts_with, kernel)
    for start in found:
        assert start.before == start.after, start
        if start.error:
            assert "Too many open files" in start.error, start
            assert "\n" not in start.error, start
    assert found[0].error
    assert not found[-1].error
    if kernel == "auto":
        rungs = {(start.owners, start.counting) for start in found if not start.error}
        assert {("sock_diag", "python"), ("core", "kernel")} <= rungs


def test_the_command_says_it_in_a_line(loopback: Namespace) -> None:
    command = f"ulimit -n 6; exec {sys.executable} -m procnet report --duration 1 --interface lo"
    done = subprocess.run(
        loopback.argv(["sh", "-c", command]), capture_output=True, text=True, cwd=TOP, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("procnet: ") and "Too many open files" in last
    assert "Traceback" not in done.stderr


def starved(log: Keep, *commands: str) -> None:
    """What happens while this process can open nothing: the commands, one after the other."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    script = "; ".join(("read go", *commands))
    process = subprocess.Popen(["sh", "-ec", script], stdin=subprocess.PIPE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limit[1]))
    process.communicate(b"go\n")
    time.sleep(1.3)  # longer than between two looks, and between two tries to reopen
    wait_until(lambda: any("Too many open files" in line for line in log.lines), "a refusal")
    resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert process.returncode == 0


def starve(
    kernel: str, commands: tuple[str, ...], send_after: Callable[[], None]
) -> tuple[procnet.Report, list[str]]:
    lay_cable()
    log = Keep()
    logging.getLogger("procnet").addHandler(log)
    with procnet.Monitor(["near"], kernel=kernel) as monitor:
        send(BEFORE)
        wait_until(lambda: monitor.report().totals.sent.packets == BEFORE, "what was sent")
        starved(log, *commands)
        tap = monitor._tap
        assert tap is not None
        wait_until(lambda: reading(monitor) and not tap._is_outdated, "the interface")
        send_after()
    return monitor.report(), log.lines


def send_after() -> None:
    send(AFTER)


def send_the_other_way() -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        sender.bind(("near", 0))
        for port in range(AFTER):
            sender.send(udp_frame(THERE, 1000 + port, HERE, 53, bytes(PAYLOAD_BYTES)))


CABLE_AGAIN = (
    "ip link delete near",
    "ip link add near type veth peer name far",
    "ip link set near addrgenmode none",
    "ip link set far addrgenmode none",
    "ip link set near multicast off arp off up",
    "ip link set far multicast off arp off up",
    f"ip address add {HERE}/24 dev near",
)


@pytest.mark.parametrize("kernel", ["auto", "off"])
@pytest.mark.parametrize("commands", [(), CABLE_AGAIN], ids=["look", "reopen"])
def test_what_could_not_be_opened_for_a_while_is_opened_later(
    loopback: Namespace, kernel: str, commands: tuple[str, ...]
) -> None:
    report, log = loopback.call(starve, kernel, commands, send_after)
    assert report.totals.sent.packets == BEFORE + AFTER
    assert report.totals.received.packets == 0
    assert report.loss.failures > 0
    assert report.loss.interrupted_captures == (1 if commands else 0)
    assert any("Too many open files" in line for line in log), log
    assert len(log) <= 7, "the same again is only counted"


@pytest.mark.parametrize("kernel", ["auto", "off"])
def test_a_change_of_addresses_that_was_missed_is_followed_later(
    loopback: Namespace, kernel: str
) -> None:
    commands = ("ip address flush dev near", f"ip address add {THERE}/24 dev near")
    report, _ = loopback.call(starve, kernel, commands, send_the_other_way)
    assert report.totals.sent.packets == BEFORE + AFTER
    assert report.totals.received.packets == 0
    assert report.loss.failures > 0
    assert report.loss.interrupted_captures == 0


# -- memory ------------------------------------------------------------------------------------


def start_in_no_memory() -> tuple[str, tuple[int, int], tuple[int, int]]:
    with procnet.Monitor(["lo"]):
        pass
    before = remains()
    size_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
    resource.setrlimit(resource.RLIMIT_AS, (size_bytes + (2 << 20), resource.RLIM_INFINITY))
    monitor, error = procnet.Monitor(["lo"]), ""
    try:
        monitor.start()
    except procnet.ProcnetError as refusal:
        error = str(refusal)
    monitor.stop()
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return error, before, remains()


def test_too_little_memory_to_start_in_is_an_error(loopback: Namespace) -> None:
    error, before, after = loopback.call(start_in_no_memory)
    assert "Cannot allocate memory" in error
    assert before == after


def go_on_in_no_memory() -> procnet.Report:
    with procnet.Monitor(["lo"]) as monitor, sink() as receiver:
        size_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
        resource.setrlimit(resource.RLIMIT_AS, (size_bytes, resource.RLIM_INFINITY))
        for number in range(BEFORE):
            with socket.socket(type=socket.SOCK_DGRAM) as sender:
                sender.sendto(bytes(PAYLOAD_BYTES), receiver.getsockname())
            receiver.recv(PAYLOAD_BYTES + 1)
            if not number % 7:
                monitor.report()
        time.sleep(1.3)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return monitor.report()


def test_no_more_memory_while_it_runs_loses_nothing(loopback: Namespace) -> None:
    report = loopback.call(go_on_in_no_memory)
    for side in (report.totals.sent, report.totals.received):
        assert (side.packets, side.payload_bytes) == (BEFORE, BEFORE * PAYLOAD_BYTES)
    assert not report.reasons


def start_without_locked_memory() -> tuple[str, int]:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    sender = socket.socket(type=socket.SOCK_DGRAM)
    with procnet.Monitor(["lo"]) as monitor, sink() as receiver, sender:
        for _ in range(BEFORE):
            sender.sendto(bytes(PAYLOAD_BYTES), receiver.getsockname())
    return monitor.features.owners, monitor.report().totals.sent.payload_bytes


def test_maps_are_not_charged_as_locked_memory(loopback: Namespace) -> None:
    # Since 5.11 (3ac1f01b43b6) the memory cgroup is.
    assert loopback.call(start_without_locked_memory) == ("core", BEFORE * PAYLOAD_BYTES)
