"""What the kernel refuses: bpf(2) half-way through or later on, and /proc. It is said, and why."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

import procnet
from tests.privileged.namespace import TOP, Namespace, in_child, run
from tests.privileged.reporting import Reporter, flows, payload, process_payload
from tests.privileged.test_stopping import remains

pytestmark = pytest.mark.privileged

DATAGRAMS, PAYLOAD_BYTES = 23, 101
ROUNDS = 5
FOREVER = 1 << 40
STEP = 7
"""Every seventh call of a start, of which there are 169, is one where the refusals begin."""
LEFT = ("bpf-map", "bpf-prog", "bpf_link", "bpf_iter")

T = TypeVar("T")


@pytest.fixture(scope="module")
def deny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """tests/workloads/deny_bpf.c"""
    library = str(tmp_path_factory.mktemp("deny") / "deny_bpf.so")
    source = str(TOP / "tests" / "workloads" / "deny_bpf.c")
    run(["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source, "-ldl"])
    return library


class Refusals:
    """The library's variables in this process."""

    def __init__(self, library: str) -> None:
        self._library = ctypes.CDLL(library)

    def begin(self, first: int, number: int, error: int) -> None:
        """Refuses so many calls, the first after so many others."""
        values = {"deny_from": first, "deny_number": number, "deny_errno": error, "bpf_calls": 0}
        for name, value in values.items():
            ctypes.c_long.in_dll(self._library, name).value = value

    def end(self) -> int:
        """Refuses nothing more; the calls since begin()."""
        ctypes.c_long.in_dll(self._library, "deny_number").value = 0
        return ctypes.c_long.in_dll(self._library, "bpf_calls").value


def preloaded(namespace: Namespace, library: str, work: Callable[..., T], *args: object) -> T:
    """``namespace.call`` in a process that has the library."""
    os.environ["LD_PRELOAD"] = library
    try:
        return namespace.call(work, Refusals, library, *args)
    finally:
        del os.environ["LD_PRELOAD"]


def bpf_descriptors() -> list[str]:
    """What this process has of the kernel's BPF, by name."""
    links = (os.readlink(f"/proc/self/fd/{name}") for name in remaining())
    mapped = Path("/proc/self/maps").read_text().splitlines()
    return [each for each in (*links, *mapped) if any(kind in each for kind in LEFT)]


def remaining() -> list[str]:
    return [
        name for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")
    ]


def exchange(number: int) -> None:
    """So many datagrams, each from a socket of its own."""
    with socket.socket(type=socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        for _ in range(number):
            with socket.socket(type=socket.SOCK_DGRAM) as sender:
                sender.sendto(bytes(PAYLOAD_BYTES), receiver.getsockname())
            receiver.recv(PAYLOAD_BYTES + 1)


class Outcome(NamedTuple):
    calls: int
    owners: str
    counting: str
    reasons: dict[str, str]
    totals: procnet.Both
    named_bytes: int
    loss: procnet.Loss
    left: list[str]
    before: tuple[int, int]
    after: tuple[int, int]


def outcome(
    monitor: procnet.Monitor, calls: int, before: tuple[int, int], left: list[str]
) -> Outcome:
    report = monitor.report()
    own = [row for row in report.processes if row.process.pid == os.getpid()]
    features = monitor.features
    return Outcome(
        calls,
        features.owners,
        features.counting,
        {rung.name: rung.reason for rung in features.rungs},
        report.totals,
        sum(row.sent.payload_bytes for row in own),
        report.loss,
        left,
        before,
        remains(),
    )


def refused_start(refusals: Refusals, first: int, number: int, error: int) -> Outcome:
    before = remains()
    refusals.begin(first, number, error)
    monitor = procnet.Monitor(["lo"])
    monitor.start()
    calls = refusals.end()
    exchange(DATAGRAMS)
    monitor.stop()
    return outcome(monitor, calls, before, bpf_descriptors())


def refused_starts(make: type[Refusals], library: str, number: int, error: int) -> list[Outcome]:
    refusals = make(library)
    free = in_child(refused_start, refusals, 0, 0, 0)
    # The last one, BPF_PROG_BIND_MAP, only notes that a program and a map belong together.
    firsts = range(0, free.calls - 1, STEP)
    return [free, *(in_child(refused_start, refusals, first, number, error) for first in firsts)]


@pytest.mark.parametrize(
    ("number", "error"), [(FOREVER, errno.EPERM), (1, errno.ENOMEM)], ids=["denied", "once"]
)
def test_a_start_that_is_refused_half_way_is_a_lower_rung(
    loopback: Namespace, deny: str, number: int, error: int
) -> None:
    free, *found = preloaded(loopback, deny, refused_starts, number, error)
    assert (free.owners, free.counting) == ("core", "kernel")
    assert len(found) > 10
    for start in (free, *found):
        for side in (start.totals.sent, start.totals.received):
            assert (side.packets, side.payload_bytes) == (DATAGRAMS, DATAGRAMS * PAYLOAD_BYTES)
        assert (start.before, start.left) == (start.after, []), start
        assert not start.loss.failures
        if start.owners == "core":
            assert start.named_bytes == DATAGRAMS * PAYLOAD_BYTES
        if start.owners != "core":
            assert says_why(start.reasons["core owners"]), start
        elif start.counting != "kernel":
            assert says_why(start.reasons["kernel counting"]), start
    if number == FOREVER:
        rungs = [(start.owners, start.counting) for start in found]
        assert set(rungs) == {("sock_diag", "python"), ("core", "python")}
        assert rungs == sorted(rungs, reverse=True)


def says_why(reason: str) -> bool:
    # After one refusal libbpf may go on without a feature, and fail where it would have helped.
    return any(
        os.strerror(number) in reason for number in (errno.EPERM, errno.ENOMEM, errno.EINVAL)
    )


def refused_run(make: type[Refusals], library: str, first: int, number: int) -> Outcome:
    refusals = make(library)
    before = remains()
    with procnet.Monitor(["lo"]) as monitor:
        refusals.begin(first, number, errno.ENOMEM)
        for _ in range(ROUNDS):
            exchange(DATAGRAMS)
            monitor.report()  # a drain and a look
        calls = refusals.end()
    return outcome(monitor, calls, before, bpf_descriptors())


@pytest.mark.parametrize(("first", "number"), [(0, 0), (0, 1), (2, 1), (5, 1), (3, FOREVER)])
def test_what_could_not_be_read_for_a_while_is_read_later(
    loopback: Namespace, deny: str, first: int, number: int
) -> None:
    ran = preloaded(loopback, deny, refused_run, first, number)
    assert (ran.owners, ran.counting) == ("core", "kernel")
    assert ran.calls > first
    for side in (ran.totals.sent, ran.totals.received):
        assert side.packets == ROUNDS * DATAGRAMS
        assert side.payload_bytes == ROUNDS * DATAGRAMS * PAYLOAD_BYTES
    assert ran.named_bytes == ROUNDS * DATAGRAMS * PAYLOAD_BYTES
    assert (ran.before, ran.left) == (ran.after, [])
    assert bool(ran.loss.failures) <= bool(number)


def refused_end(make: type[Refusals], library: str) -> Outcome:
    refusals = make(library)
    before = remains()
    with procnet.Monitor(["lo"]) as monitor:
        exchange(DATAGRAMS)
        refusals.begin(0, FOREVER, errno.EPERM)
    calls = refusals.end()
    return outcome(monitor, calls, before, bpf_descriptors())


def test_an_end_that_is_refused_its_last_counts_says_so_and_leaves_nothing(
    loopback: Namespace, deny: str
) -> None:
    ended = preloaded(loopback, deny, refused_end)
    assert ended.calls > 0
    assert ended.loss.failures > 0
    assert (ended.before, ended.left) == (ended.after, [])


# -- /proc -------------------------------------------------------------------------------------

CAPABLE = "-all,+net_raw"
NOBODY = [
    "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs",
    f"--inh-caps={CAPABLE}", f"--ambient-caps={CAPABLE}",
]  # fmt: skip
"""A user who may capture and nothing else."""


@pytest.mark.parametrize("hidden", [False, True], ids=["denied", "hidepid"])
def test_whose_files_may_not_be_read_is_not_named_and_counted_all_the_same(
    loopback: Namespace, hidden: bool
) -> None:
    mount = "mount -t proc -o hidepid=invisible proc /proc && " if hidden else ""
    script = f'{mount}exec {" ".join(NOBODY)} "$@"'
    wrapped = ["unshare", "--mount", "sh", "-c", script, "sh"]
    reporter = Reporter(loopback, "--interface", "lo", before=wrapped)
    strangers = loopback.traffic("udp-server", address="127.0.0.1", expect=70_001)
    client = loopback.traffic(
        "udp-client", address="127.0.0.1", port=strangers.port, bytes=70_001, hold=True
    )
    client.moved()
    strangers.finish()
    report = reporter.finish()
    assert report["features"]["owners"] == "sock_diag"
    assert process_payload(report, client.pid) == process_payload(report, strangers.pid) == (0, 0)
    assert payload(flows(report, local_port=client.port)) == (70_001, 0)
    assert payload(flows(report, local_port=strangers.port)) == (0, 70_001)
    assert {flow["reason"] for flow in report["flows"]} <= {"NO_SOCKET", "AMBIGUOUS"}
    reasons = {rung["name"]: rung["reason"] for rung in report["features"]["rungs"]}
    assert "CAP_BPF" in reasons["core owners"]
    if hidden:
        assert "hidepid" in json.dumps(doctor(loopback, wrapped))
    else:
        assert report["loss"]["denied_processes"] > 0
    assert report["loss"]["failures"] == 0


def doctor(namespace: Namespace, wrapped: list[str]) -> object:
    argv = [*wrapped, sys.executable, "-m", "procnet", "doctor", "--format", "json"]
    done = subprocess.run(namespace.argv(argv), capture_output=True, text=True, cwd=TOP, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)
