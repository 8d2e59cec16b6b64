"""Every kind of traffic in one report: the right bytes to the right process, none to another.

What is not here is in test_report.py (TCP and UDP with an answer, over loopback and a cable, both
families), test_sharing.py (prefork, SO_REUSEPORT, forks, passed sockets, ports handed over) and
test_short_lived.py.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from procnet.bpf import libbpf
from tests.privileged.namespace import TOP, WAIT_S, Namespace, run
from tests.privileged.reporting import SIDES, Reporter, flows, payload, wire
from tests.workloads.kinds import HOSTILE_NAME, KINDS

BTF = Path("/sys/kernel/btf/vmlinux")
READY_S = 120.0
"""An emulated machine may be that slow."""

Truth = list[dict[str, Any]]
Flow = tuple[Any, ...]

_TELLS_RAW_RECEIVERS = b"btf_trace_sock_recv_length" in BTF.read_bytes()

ALL_KINDS = (*KINDS, "older_udp", "same_tuple", "never_accepted")
MAY_BE_UNKNOWN = {
    # Kind: the reason that may stand where its truth names a process. Never another name.
    # One packet, one flow, two takers.
    "multicast": "AMBIGUOUS",
    # Booked before anybody accepted, when two processes held the listener.
    "data_long_before_accept": "AMBIGUOUS",
    # Only looks tell of a listener: slow ones (an emulated machine's) may come after 5 s.
    "never_accepted": "NO_SOCKET",
    # The accept, within the slack of the clocks, may be of the connection before.
    "tuple_reused_at_once": "AMBIGUOUS",
    # bpf/README.md, "Known gaps": without fentry, several sockets on one endpoint.
    **({} if libbpf.can_trace_functions() else {"reuseport_blind": "AMBIGUOUS"}),
    # The same: before 6.3, raw sockets that only receive.
    **({} if _TELLS_RAW_RECEIVERS else {"raw_253": "NO_SOCKET"}),
}
COUNTED_ONCE_BYTES = {"multicast": 589}
"""Two processes received it, but it is one packet and one flow."""


class Found(NamedTuple):
    """Payload bytes of the flows that a kind's truth knows: each byte is in exactly one figure."""

    named: int
    wrong: int
    unknown: Counter[str]
    uncounted: int


class Scenes:
    """The generators: started in a namespace, and what they say of themselves."""

    def __init__(self, namespace: Namespace, program: Path, *kinds: str) -> None:
        argv = [sys.executable, "-S", "-E", "-m", "tests.workloads.kinds", str(program), *kinds]
        self._process = namespace.popen(
            argv, cwd=TOP, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def wait_until_ready(self) -> None:
        assert self._process.stdout.readline() == "ready\n"

    def go(self) -> None:
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def truths(self) -> dict[str, Truth | str]:
        """What they say at their end; those that still wait are let go."""
        output, _ = self._process.communicate(timeout=300)
        assert self._process.returncode == 0
        truths: dict[str, Truth | str] = json.loads(output)
        return truths


class Run:
    """One report over everything."""

    def __init__(self, here: Namespace, elsewhere: Namespace, program: Path, kernel: str) -> None:
        for each in (here, elsewhere):
            # Datagrams are fragmented as on a cable; ping sockets are for everybody.
            each.run(["ip", "link", "set", "lo", "mtu", "1500"])
            each.run(["ip", "addr", "add", "fd00:203::7/128", "dev", "lo", "nodad"])
            each.run(["sh", "-c", "echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range"])
        bystander, older = (Scenes(here, program, kind) for kind in ("bystander", "older_udp"))
        for held in (bystander, older):
            held.wait_until_ready()
        reporter = Reporter(here, "--interface", "lo", "--kernel", kernel, ready_s=READY_S)
        twins = [Scenes(each, program, "same_tuple") for each in (here, elsewhere)]
        for twin in twins:
            twin.wait_until_ready()
        for twin in twins:
            twin.go()
        unaccepted = Scenes(here, program, "never_accepted")
        unaccepted.wait_until_ready()
        self.truths = older.truths() | Scenes(here, program, *KINDS).truths() | twins[0].truths()
        self.elsewhere = twins[1].truths()["same_tuple"]
        (self.bystander,) = bystander.truths()["bystander"]
        self.report: dict[str, Any] = reporter.finish()
        self.truths |= unaccepted.truths()

    def truth(self, kind: str) -> Truth:
        truth = self.truths[kind]
        assert isinstance(truth, list), truth
        return truth


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("workloads") / "calls.so"
    source = TOP / "tests" / "workloads" / "calls.c"
    run(["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(made), str(source)])
    return made


@contextlib.contextmanager
def performed(program: Path, kernel: str) -> Iterator[Run]:
    with Namespace("here") as here, Namespace("elsewhere") as elsewhere:
        yield Run(here, elsewhere, program, kernel)


@pytest.fixture(scope="module")
def everything(program: Path) -> Iterator[Run]:
    with performed(program, "core") as made:
        yield made


@pytest.fixture(scope="module")
def looked_at(program: Path) -> Iterator[Run]:
    """The same without the kernel's word."""
    with performed(program, "off") as made:
        yield made


def process_of(entry: dict[str, Any]) -> tuple[int, int] | None:
    if entry["pid"] is None:
        return None
    return entry["pid"], entry["start_time_ticks"] * 10_000_000


def flow_of(entry: dict[str, Any]) -> Flow:
    return (entry["protocol"], *entry["local"], *entry["remote"])


def rows_of(report: dict[str, Any], flow: Flow) -> list[dict[str, Any]]:
    protocol, address, port, remote_address, remote_port = flow
    return flows(
        report, protocol=protocol, local_address=address, local_port=port,
        remote_address=remote_address, remote_port=remote_port,
    )  # fmt: skip


def named(row: dict[str, Any]) -> tuple[int, int] | None:
    return row["process"] and (row["process"]["pid"], row["process"]["start_time_ns"])


def candidates(row: dict[str, Any]) -> set[tuple[int, int]]:
    return {(each["pid"], each["start_time_ns"]) for each in row["candidates"]}


def compare(report: dict[str, Any], truth: Truth) -> Found:
    """How much of what moved is named rightly, wrongly, not at all, and not even counted.

    Of a flow that no process has, the bytes that have no name are named rightly.
    """
    moved: Counter[Flow] = Counter()
    for entry in truth:
        for side in SIDES:
            moved[(*flow_of(entry), side, process_of(entry))] += entry[side]
    right = wrong = 0
    unknown: Counter[str] = Counter()
    for flow in {flow_of(entry) for entry in truth}:
        for row in rows_of(report, flow):
            for side in SIDES:
                bytes_found = row[side]["payload_bytes"]
                is_right = min(bytes_found, moved[(*flow, side, named(row))])
                right += is_right
                if row["process"] is not None:
                    wrong += bytes_found - is_right
                elif bytes_found > is_right:
                    unknown[row["reason"]] += bytes_found - is_right
    missing = moved.total() - right - wrong - unknown.total()
    return Found(right, wrong, unknown, missing)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_kind_is_named_to_the_byte_and_nobody_else_is(everything: Run, kind: str) -> None:
    truth = everything.truth(kind)
    found = compare(everything.report, truth)
    print(kind, found)
    for flow in {flow_of(entry) for entry in truth}:
        users = {process_of(entry) for entry in truth if flow_of(entry) == flow}
        rows = rows_of(everything.report, flow)
        assert rows, "nothing was counted"
        for row in rows:
            print(row)
            assert named(row) in users | {None}
            if row["reason"] == "AMBIGUOUS":
                assert users & candidates(row)
    assert found.wrong == 0
    assert set(found.unknown) <= {MAY_BE_UNKNOWN.get(kind)}
    assert found.uncounted == COUNTED_ONCE_BYTES.get(kind, 0)


def test_nobody_is_named_who_did_not_say_so(everything: Run) -> None:
    kinds = everything.truths
    told = {process_of(entry) for kind in kinds for entry in everything.truth(kind)}
    rows = everything.report["processes"]
    assert {(row["pid"], row["start_time_ns"]) for row in rows} <= told
    assert process_of(everything.bystander) not in told
    assert not {process_of(entry) for entry in everything.elsewhere} & told


def test_nothing_is_lost(everything: Run) -> None:
    loss = everything.report["loss"]
    assert (loss["capture_dropped_packets"], loss["events_lost"], loss["failures"]) == (0, 0, 0)
    assert everything.report["features"]["owners"] == "core"


def test_all_receivers_of_a_group_are_candidates(everything: Run) -> None:
    sender, *receivers = everything.truth("multicast")
    (row,) = rows_of(everything.report, flow_of(receivers[0]))
    assert candidates(row) == {process_of(each) for each in receivers}
    assert payload([row]) == (0, sender["sent"])


def test_what_nobody_accepted_is_the_listener_s(everything: Run) -> None:
    _, server = everything.truth("never_accepted")
    rows = rows_of(everything.report, flow_of(server))
    (row,) = (row for row in rows if row["received"]["payload_bytes"])
    assert (named(row), row["evidence"]) == (process_of(server), "LISTENER")


def test_what_the_kernel_answers_is_nobody_s(everything: Run) -> None:
    client, kernel = everything.truth("refused")
    (row,) = rows_of(everything.report, flow_of(kernel))
    assert (row["reason"], row["sent"]["packets"]) == ("NO_SOCKET", 1)  # the RST
    (row,) = rows_of(everything.report, flow_of(client))
    assert (named(row), row["received"]["packets"]) == (process_of(client), 1)


@pytest.mark.parametrize(("kind", "headers_bytes"), [("fragmented_v4", 20), ("fragmented_v6", 48)])
def test_each_fragment_counts_with_its_headers(
    everything: Run, kind: str, headers_bytes: int
) -> None:
    for entry in everything.truth(kind):
        (row,) = rows_of(everything.report, flow_of(entry))
        size = 8 + entry["sent"] + entry["received"]
        # All but the last one carry a multiple of 8 bytes.
        packets = -(-size // ((1500 - headers_bytes) // 8 * 8))
        assert sum(row[side]["packets"] for side in SIDES) == packets
        assert sum(wire([row])) == size + packets * headers_bytes


def test_a_pid_that_is_used_again_is_two_processes(everything: Run) -> None:
    first, second, _ = everything.truth("pid_reused")
    assert first["pid"] == second["pid"]
    rows = [row for row in everything.report["processes"] if row["pid"] == first["pid"]]
    sent = {row["start_time_ns"]: row["sent"]["payload_bytes"] for row in rows}
    assert sent == {process_of(each)[1]: each["sent"] for each in (first, second)}


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_looking_names_nobody_wrongly(looked_at: Run, kind: str) -> None:
    found = compare(looked_at.report, looked_at.truth(kind))
    print(kind, found)
    assert (found.wrong, found.uncounted) == (0, COUNTED_ONCE_BYTES.get(kind, 0))


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_hostile_name_steers_no_terminal(loopback: Namespace, program: Path, form: str) -> None:
    reporter = loopback.popen(
        [sys.executable, "-m", "procnet", "report", "--interface", "lo", "--format", form],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert reporter.stderr.readline() == b"capturing on lo\n"
    _, sender = Scenes(loopback, program, "renamed").truths()["renamed"]
    reporter.send_signal(signal.SIGINT)
    output, errors = (text.decode() for text in reporter.communicate(timeout=WAIT_S))
    assert all(letter in "\n" or letter.isprintable() for letter in output + errors)
    if form == "text":
        (line,) = (line for line in output.splitlines() if line.split()[:1] == [str(sender["pid"])])
        assert r"\x1b[2J\x0d\x0a\x07\u202ea" in line
    else:
        (row,) = (row for row in json.loads(output)["processes"] if row["pid"] == sender["pid"])
        assert row["name"] == HOSTILE_NAME
