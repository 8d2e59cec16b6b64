"""The whole list of scenes under one report: every byte counted once, and with its process.

PROCNET_OWNERS
    core (when unset) or kprobe: who is asked.
PROCNET_SCENARIOS
    names, if not all of them are to be played: for an emulated machine.
PROCNET_SLOWLY
    any number, another one for other pauses: the actors pause, as they do on a busy machine (not in
    CI: it takes four minutes for each run).

What procnet does by each rung and engine, and what others do, is told by ``make accuracy``.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from procnet.bpf import libbpf
from tests.privileged.accuracy.judging import (
    PAYLOAD,
    WIRE,
    Evidence,
    Process,
    at_sockets,
    candidates,
    flow_of,
    judge,
    named,
    process_of,
)
from tests.privileged.accuracy.playing import ALL, Performance, Scene, perform
from tests.privileged.accuracy.setting import LOOPBACK, Programs, Setting, compiled
from tests.privileged.namespace import WAIT_S
from tests.privileged.reporting import SIDES, Reporter
from tests.workloads import writers
from tests.workloads.processes import HOSTILE_NAME

FAMILY = os.environ.get("PROCNET_OWNERS", "core")
NAMES = os.environ.get("PROCNET_SCENARIOS", "").split() or list(ALL)
TRIES = 3
READY_S = 400.0
"""BCC compiles for minutes in an emulated machine."""
IP_UDP_HEADER_BYTES = 28
BTF = Path("/sys/kernel/btf/vmlinux")

LARGEST_SEGMENT_BYTES = 65_536
"""GSO_LEGACY_MAX_SIZE: what TCP hands down in one piece where nobody has asked for BIG TCP."""

EVERYTHING = sys.maxsize


class Unknown(NamedTuple):
    """The reasons that may stand where the truth names a process, and at most for how much."""

    reasons: str
    most_payload_bytes: int


def has_tracepoint(name: str) -> bool:
    return BTF.exists() and f"btf_trace_{name}".encode() in BTF.read_bytes()


MAY_BE_UNKNOWN = {
    # All that the listener got. Only looks tell of it: slow ones (an emulated machine's) may come
    # after 5 s.
    "never_accepted": Unknown("NO_SOCKET", 1019),
    # The accept, within the slack of the clocks, may be of the connection before: all that the
    # servers moved, but nothing at the end of those who connected.
    "tuple_reused_at_once": Unknown("AMBIGUOUS", 1021 + 1031 + 1033 + 3 * 3),
    # No hook tells of it (bpf/README.md); how much it is, is the kernel's.
    "sctp": Unknown("NO_SOCKET", EVERYTHING),
    "cable_sctp": Unknown("NO_SOCKET", EVERYTHING),
}
# Where it is not told under the socket's lock who writes (before 6.16, 8127837aae8f).
WITHOUT_TCP_SENDMSG_LOCKED = {
    # One packet has bytes of both, at the end that sends, and may be sent twice; once, in an
    # emulated machine that others slowed down, all behind it was the same. Kprobes see no packet:
    # all that is sent.
    "writers_in_turn": Unknown(
        "AMBIGUOUS", 700_001 + LARGEST_SEGMENT_BYTES if FAMILY == "core" else 1_700_004
    ),
    # All that is sent from the third turn until the queue of both is empty, which may be the end;
    # who receives it is known.
    "writers_by_turns": Unknown("AMBIGUOUS", 2 * 31 * 20_011),
    **{each.__name__: Unknown("AMBIGUOUS", EVERYTHING) for each in writers.KINDS},
}
WITHOUT_FENTRY = {
    # bpf/README.md, "Known gaps": several sockets on one endpoint. All that is received; who sends
    # it is known.
    "reuseport_blind": Unknown("AMBIGUOUS", sum((151, 157, 163, 167, 173, 179, 181, 191))),
}
WITHOUT_SOCK_RECV_LENGTH = {
    # The same: before 6.3, or without BTF, raw sockets that only receive. What is sent is known.
    "raw_253": Unknown("NO_SOCKET AMBIGUOUS", 277),
    "cable_raw_253": Unknown("NO_SOCKET AMBIGUOUS", 283),
}


@functools.cache
def may_be_unknown() -> dict[str, Unknown]:
    """By scene, on this kernel; which is not asked before a test runs."""
    unknown = dict(MAY_BE_UNKNOWN)
    if FAMILY != "core" or not has_tracepoint("tcp_sendmsg_locked"):
        unknown |= WITHOUT_TCP_SENDMSG_LOCKED
    if not libbpf.can_trace_functions():
        unknown |= WITHOUT_FENTRY
    if not has_tracepoint("sock_recv_length"):
        unknown |= WITHOUT_SOCK_RECV_LENGTH
    return unknown


ON_WIRE_MAY_BE_AMBIGUOUS = {
    # What the kernel says for a listener until it is told of the accept, on a busy machine.
    "tuple_reused",
    # An acknowledgement that comes in, by another processor, while a writer is being told.
    "writers_by_turns",
    "writers_in_turn",
    *(each.__name__ for each in writers.KINDS),
}


class Run:
    """One report over everything."""

    def __init__(self, setting: Setting, *rungs: str, devices: list[str]) -> None:
        interfaces = [word for each in devices for word in ("--interface", each)]
        self.performance: Performance
        self.report: dict[str, Any]
        self.performance, self.report = perform(
            setting,
            lambda: Reporter(setting.host, *interfaces, *rungs, ready_s=READY_S),
            Reporter.finish,
            NAMES,
        )
        self.inode = setting.host.inode
        self.evidence = Evidence(
            self.report, self.performance.legs, self.inode, setting.inner.inode
        )

    def scene(self, name: str) -> Scene:
        scene = self.performance.scenes[name]
        assert not scene.failed, scene.failed
        return scene

    def told(self) -> set[Process | None]:
        """All who say that they moved something."""
        scenes = self.performance.scenes.values()
        return {process_of(entry) for scene in scenes for entry in scene.truth}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return compiled(tmp_path_factory.mktemp("workloads"))


@pytest.fixture(scope="module")
def setting(programs: Programs) -> Iterator[Setting]:
    with Setting(programs) as made:
        yield made


@pytest.fixture(scope="module")
def told(setting: Setting) -> Run:
    return Run(setting, "--kernel", FAMILY, devices=setting.devices)


@pytest.fixture(scope="module")
def looked_at(setting: Setting) -> Run:
    """The same without the kernel's word."""
    return Run(setting, "--kernel", "off", devices=setting.devices)


@pytest.fixture(scope="module")
def of_sockets(setting: Setting) -> Run:
    """The same, counted at the sockets of every namespace, without what others there do to it."""
    for _ in range(TRIES):
        run = Run(setting, "--kernel", FAMILY, "--counting", "socket", devices=[])
        if not run.report["loss"]["events_lost"]:
            return run
    raise AssertionError(f"events were lost {TRIES} times: {run.report['loss']}")


@pytest.mark.parametrize("name", NAMES)
def test_every_byte_is_counted_and_has_its_process(told: Run, name: str) -> None:
    scene = told.scene(name)
    if scene.not_applicable:
        print(scene.not_applicable)
        assert not scene.truth
        return
    show(told, scene)
    for layer, share in judge(scene.truth, told.evidence).items():
        print(layer, share)
        assert share.error == 0
        assert share.wrong == 0
        unknown = may_be_unknown().get(name, Unknown("", 0))
        allowed = set(unknown.reasons.split())
        if layer == WIRE and name in ON_WIRE_MAY_BE_AMBIGUOUS:
            allowed = {"AMBIGUOUS"}
        assert set(share.unnamed) <= allowed
        assert layer == WIRE or share.unnamed.total() <= unknown.most_payload_bytes
        assert share.named + share.unnamed.total() == share.truth
        assert share.truth > 0 or layer != WIRE, "nothing was to be counted"


@pytest.mark.parametrize("name", NAMES)
def test_looking_names_nobody_wrongly(looked_at: Run, name: str) -> None:
    scene = looked_at.scene(name)
    show(looked_at, scene)
    for layer, share in judge(scene.truth, looked_at.evidence).items():
        print(layer, share)
        assert share.error == 0
        assert share.wrong == 0


@pytest.mark.parametrize("name", NAMES)
def test_what_processes_move_is_counted_at_their_sockets(of_sockets: Run, name: str) -> None:
    """Payload: of the wire a socket does not see all, and nothing of SCTP or an injected frame."""
    scene = of_sockets.scene(name)
    show(of_sockets, scene)
    share = judge(at_sockets(scene.truth), of_sockets.evidence)[PAYLOAD]
    print(share)
    if name in ("cable_injected", "sctp", "cable_sctp"):
        assert share.error == share.truth
        return
    assert share.error == 0
    assert share.wrong == 0
    unknown = may_be_unknown().get(name, Unknown("", 0))
    assert set(share.unnamed) <= set(unknown.reasons.split())
    assert share.unnamed.total() <= unknown.most_payload_bytes
    assert share.named + share.unnamed.total() == share.truth


def show(run: Run, scene: Scene) -> None:
    """For who has to find out why."""
    for flow in {flow_of(entry) for entry in scene.truth}:
        print(flow, "wire:", run.evidence.wire(flow))
        entries = [entry for entry in scene.truth if flow_of(entry) == flow]
        for entry in entries:
            print("    moved", process_of(entry), entry["sent"], entry["received"])
        for row in run.evidence.rows(entries[0]):
            figures = [tuple(row[side].values()) for side in SIDES]
            print("    told", named(row) or row["reason"], row["evidence"], *figures)


def test_nobody_is_named_who_did_not_say_so(told: Run) -> None:
    rows = told.report["flows"]
    movers = told.told()
    assert [row for row in rows if row["process"] and named(row) not in movers] == []
    pids = {row["pid"] for row in told.report["processes"]}
    assert told.performance.bystander_pid not in pids
    assert {row["netns"] for row in rows} == {told.inode}


@pytest.mark.parametrize("run", ["told", "looked_at"])
def test_of_every_device_each_byte_is_counted(run: str, request: pytest.FixtureRequest) -> None:
    made: Run = request.getfixturevalue(run)
    counted: dict[str, int] = {}
    for row in made.report["flows"]:
        if row["protocol"] != "igmp":  # the kernel sends it when it likes, after the end as well
            wire_bytes = sum(row[side][WIRE] for side in SIDES)
            counted[row["interface"]] = counted.get(row["interface"], 0) + wire_bytes
    seen: dict[str, int] = {}
    for leg, count in made.performance.legs.items():
        if leg.protocol != "igmp" and count.packets:
            ends = 2 if leg.device == LOOPBACK else 1
            seen[leg.device] = seen.get(leg.device, 0) + ends * count.wire_bytes
    assert counted == seen


@pytest.mark.parametrize("name", ["cable_udp_up", "cable_udp_down", "udp_connected"])
def test_the_two_witnesses_agree(told: Run, name: str) -> None:
    """The control: what processes say that they moved is what nftables saw, without the headers."""
    for entry in told.scene(name).truth:
        flow = flow_of(entry)
        packets = sum(row[side]["packets"] for row in told.evidence.rows(entry) for side in SIDES)
        moved = entry["sent"] + entry["received"]
        assert sum(told.evidence.wire(flow)) == moved + packets * IP_UDP_HEADER_BYTES


def test_nothing_is_lost(told: Run) -> None:
    loss = told.report["loss"]
    assert (loss["capture_dropped_packets"], loss["events_lost"], loss["failures"]) == (0, 0, 0)
    assert told.report["features"]["owners"] == FAMILY


def test_all_receivers_of_a_group_are_candidates(told: Run) -> None:
    members = [entry for entry in told.scene("multicast").truth if entry.get("shared")]
    (row,) = told.evidence.rows(members[0])
    assert candidates(row) == {process_of(each) for each in members}
    assert row["received"]["payload_bytes"] == members[0]["received"]


def test_what_nobody_accepted_is_the_listener_s(told: Run) -> None:
    _, server = told.scene("never_accepted").truth
    rows = told.evidence.rows(server)
    (row,) = (row for row in rows if row["received"]["payload_bytes"])
    assert (named(row), row["evidence"]) == (process_of(server), "LISTENER")


def test_what_the_kernel_answers_is_nobody_s(told: Run) -> None:
    client, kernel = told.scene("refused").truth
    (row,) = told.evidence.rows(kernel)
    assert (row["reason"], row["sent"]["packets"]) == ("NO_SOCKET", 1)  # the RST
    (row,) = told.evidence.rows(client)
    assert (named(row), row["received"]["packets"]) == (process_of(client), 1)


def test_of_what_is_masqueraded_both_ends_are_told(told: Run) -> None:
    """The one that the cable has, and the one that the process inside has."""
    for entry in told.scene("cable_masqueraded").truth:
        for row in told.evidence.rows(entry):
            inside = row["socket"]
            assert inside["netns"] == told.performance.inner != row["netns"]
            assert [inside["local"]["address"], inside["local"]["port"]] == entry["inside"]


def test_a_pid_that_is_used_again_is_two_processes(told: Run) -> None:
    first, second, _ = told.scene("pid_reused").truth
    assert first["pid"] == second["pid"]
    rows = [row for row in told.report["processes"] if row["pid"] == first["pid"]]
    sent = {row["start_time_ns"]: row["sent"]["payload_bytes"] for row in rows}
    assert sent == {process_of(each)[1]: each["sent"] for each in (first, second)}


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_hostile_name_steers_no_terminal(setting: Setting, form: str) -> None:
    def watch() -> subprocess.Popen[bytes]:
        reporter = setting.host.popen(
            [sys.executable, "-m", "procnet", "report", "--interface", "lo", "--format", form],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert reporter.stderr.readline() == b"capturing on lo\n"
        return reporter

    def stop(reporter: subprocess.Popen[bytes]) -> list[str]:
        reporter.send_signal(signal.SIGINT)
        return [text.decode() for text in reporter.communicate(timeout=WAIT_S)]

    performance, (output, errors) = perform(setting, watch, stop, ["renamed"])
    pid = performance.scenes["renamed"].truth[1]["pid"]
    assert all(letter in "\n" or letter.isprintable() for letter in output + errors)
    if form == "text":
        (line,) = (line for line in output.splitlines() if line.split()[:1] == [str(pid)])
        assert r"\x1b[2J\x0d\x0a\x07\u202ea" in line
    else:
        (row,) = (row for row in json.loads(output)["processes"] if row["pid"] == pid)
        assert row["name"] == HOSTILE_NAME
