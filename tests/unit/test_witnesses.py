"""What the kernel tells reaches the ledger, and so does what it could not tell."""

import logging
import os
from types import SimpleNamespace

import pytest

from procnet import ladder
from procnet.bpf.core import CoreOwners
from procnet.bpf.kprobe import KprobeOwners
from procnet.errors import LoadError, ProcnetError
from procnet.features import unknown, yes
from procnet.ledger.ledger import Ledger
from procnet.model import EventKind, Evidence, Features, OwnerEvent, Process, ProcessId, SocketScan
from procnet.sockets.scanner import SocketScanner
from procnet.witnesses import Witnesses, open_hooks
from tests.unit.ledger.world import ALICE, NETNS, T0, flow

OURS = os.stat("/proc/self/ns/net").st_ino
PROMISES = {name: unknown(f"{name} owners", "worth a try") for name in ("core", "kprobe")}


@pytest.fixture(autouse=True)
def no_news_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ProcnetError("not in a unit test")

    monkeypatch.setattr("procnet.translated.Connections", refuse)
    monkeypatch.setattr("procnet.witnesses.ForkEvents", refuse)


class LossyHooks:
    """One event that was read, and one that found the ring full after it."""

    def read(self) -> list[OwnerEvent]:
        return [OwnerEvent(T0, EventKind.SEND, *flow(), 7001, ALICE, "a", 0, 0, False)]

    def read_processes(self) -> list[Process]:
        return [Process(*ALICE, name="a", exe="/usr/bin/a", parent_pid=7, cgroup="/")]

    def events_lost(self) -> int:
        return 1

    def processes_lost(self) -> int:
        return 3


def test_a_rung_that_breaks_when_stepped_on_gives_way_to_the_next(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(*, netns: int) -> None:
        raise LoadError(f"refused in {netns}")

    opened: list[int] = []
    kprobe = KprobeOwners.__new__(KprobeOwners)
    monkeypatch.setattr(CoreOwners, "open", breaks)
    monkeypatch.setattr(KprobeOwners, "open", lambda *, netns: opened.append(netns) or kprobe)
    monkeypatch.setattr(KprobeOwners, "feature", lambda _: yes("kprobe owners", "11 hooks"))
    rungs = [(name, lambda: None, lambda f=f: f) for name, f in PROMISES.items()]
    monkeypatch.setattr(ladder, "_OWNERS", rungs)
    wanted = Features("python", "core", tuple(PROMISES.values()))
    features, events = open_hooks(wanted, kernel="auto", netns=NETNS)
    assert (events, opened, features.owners) == (kprobe, [NETNS], "kprobe")
    assert [rung.reason for rung in features.rungs] == [f"refused in {NETNS}", "11 hooks"]
    assert caplog.messages == [f"no core owners: refused in {NETNS}"]
    with pytest.raises(LoadError, match="refused"):
        open_hooks(wanted, kernel="core", netns=NETNS)


def test_hooks_that_count_beside_a_capture_are_taken_or_it_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int | None, bool]] = []

    def refuses(*, netns: int | None, counting: bool) -> None:
        asked.append((netns, counting))
        raise LoadError("no more memory")

    monkeypatch.setattr(CoreOwners, "open", refuses)
    wanted = Features("kernel", "core", tuple(PROMISES.values()))
    with pytest.raises(LoadError, match="no more memory"):
        open_hooks(wanted, kernel="auto", netns=NETNS, compare_sockets=True)
    assert asked == [(NETNS, True)]


@pytest.mark.parametrize(
    ("netns", "where"), [(None, "every network namespace"), (NETNS, "this network namespace")]
)
def test_it_is_said_where_sockets_are_counted(
    monkeypatch: pytest.MonkeyPatch, netns: int | None, where: str
) -> None:
    asked: list[tuple[int | None, bool]] = []

    def opens(*, netns: int | None, counting: bool) -> Core:
        asked.append((netns, counting))
        return Core()

    monkeypatch.setattr(CoreOwners, "open", opens)
    monkeypatch.setattr(CoreOwners, "feature", lambda _: yes("core owners", "13 hooks"))
    at_sockets = unknown("socket counting", "worth a try")
    wanted = Features("socket", "core", (at_sockets, *PROMISES.values()))
    features, _ = open_hooks(wanted, kernel="auto", netns=netns)
    assert asked == [(netns, True)]
    assert f"every socket of {where}," in features.rungs[0].reason
    assert features.rungs[1].reason == "13 hooks"


def test_where_nothing_tells_there_are_no_hooks() -> None:
    looking = Features("python", "sock_diag", ())
    assert open_hooks(looking, kernel="auto", netns=NETNS) == (looking, None)


def test_an_event_is_not_believed_beyond_a_loss_in_its_own_batch() -> None:
    ledger = Ledger()
    witnesses = Witnesses(LossyHooks(), NETNS, ledger)  # type: ignore[arg-type]
    witnesses._read_ns = T0 - 1
    witnesses.observe()
    (claim,) = ledger.owners.claims(flow())
    assert claim.sure_to_ns == T0
    assert witnesses.events_lost == 1
    assert witnesses.processes_lost == 3


def test_a_process_that_is_gone_has_what_the_kernel_told() -> None:
    witnesses = Witnesses(LossyHooks(), NETNS, Ledger())  # type: ignore[arg-type]
    witnesses.observe()
    process = witnesses.process(ALICE)
    assert (process.name, process.exe, process.parent_pid) == ("a", "/usr/bin/a", 7)


def test_whoever_reads_events_waits_for_no_name_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Hooks(LossyHooks):
        def read_processes(self) -> list[Process]:
            return [Process(*ALICE, name="a", uid=23)]

    monkeypatch.setattr(
        "pwd.getpwuid", lambda uid: asked.append(uid) or SimpleNamespace(pw_name="me")
    )
    witnesses = Witnesses(Hooks(), OURS, Ledger())  # type: ignore[arg-type]
    witnesses.observe()
    witnesses.take(witnesses.scan())
    assert asked == []
    assert (witnesses.process(ALICE).user, asked) == ("me", [23])


@pytest.mark.parametrize("told", [False, True])
def test_who_was_told_of_is_not_doubted_for_what_a_look_may_have_missed(told: bool) -> None:
    looks: list[SocketScan] = []

    class Seen(Ledger):
        def look(self, scan: SocketScan) -> set[ProcessId]:
            looks.append(scan)
            return set()

    some = frozenset({ALICE})
    hooks = LossyHooks() if told else None
    witnesses = Witnesses(hooks, OURS, Seen())  # type: ignore[arg-type]
    witnesses.take(SocketScan(T0, T0, [], {}, 0, 0, forked=some, reached=some))
    (scan,) = looks
    assert (scan.forked, scan.reached) == ((None, frozenset()) if told else (some, some))


@pytest.mark.parametrize("told", [False, True])
def test_forks_are_listened_to_while_nobody_tells_of_each_use(
    monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    class Events:
        listening = 0

        def __init__(self) -> None:
            Events.listening += 1

        def read(self) -> list[object]:
            return []

        def close(self) -> None:
            Events.listening -= 1

    class Hooks(LossyHooks):
        def close(self) -> None: ...

    monkeypatch.setattr("procnet.witnesses.ForkEvents", Events)
    witnesses = Witnesses(Hooks() if told else None, OURS, Ledger())  # type: ignore[arg-type]
    witnesses.scan()
    assert Events.listening == (0 if told else 1)
    witnesses.close()
    assert Events.listening == 0


class Core(CoreOwners):
    """A kernel that takes snapshots, or refuses."""

    refuses = False
    counts = None

    def __init__(self) -> None:
        self.asked = 0

    def snapshot(self) -> SocketScan:
        self.asked += 1
        if self.refuses:
            raise LoadError("no more memory")
        return SocketScan(T0, T0, [], {}, 0, 0, evidence=Evidence.KERNEL_SNAPSHOT)


def test_the_core_rung_looks_by_the_kernels_snapshot_and_by_proc_only_where_that_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[SocketScanner] = []

    class Scanner(SocketScanner):
        def __init__(self, **options: bool) -> None:
            super().__init__(**options)
            made.append(self)

    monkeypatch.setattr("procnet.witnesses.SocketScanner", Scanner)
    core = Core()
    witnesses = Witnesses(core, OURS, Ledger())
    with caplog.at_level(logging.WARNING, "procnet"):
        assert witnesses.scan().evidence is Evidence.KERNEL_SNAPSHOT
        assert (core.asked, made, caplog.messages) == (1, [], [])
        for _ in range(3):
            core.refuses = True
            assert witnesses.scan().evidence is Evidence.SOCKET_SCAN
            assert witnesses.scan().evidence is Evidence.SOCKET_SCAN
            core.refuses = False
            assert witnesses.scan().evidence is Evidence.KERNEL_SNAPSHOT
    assert len(made) == 1
    assert len(caplog.messages) == 3  # once for each time that it began to fail
    assert all("no more memory" in message for message in caplog.messages)


def test_without_core_hooks_looking_is_by_proc() -> None:
    witnesses = Witnesses(LossyHooks(), OURS, Ledger())  # type: ignore[arg-type]
    assert witnesses.scan().evidence is Evidence.SOCKET_SCAN
