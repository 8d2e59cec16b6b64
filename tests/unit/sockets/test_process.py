from __future__ import annotations

import os
import sys
import tempfile
import threading
import tracemalloc
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procnet.model import Process, ProcessId
from procnet.sockets.process import ProcessTable
from procnet.testing.proc_tree import ProcTree
from tests.unit.sockets.clock import Clock

ID = "0123456789abcdef" * 4
WAIT_S = 20.0
SHELL = ProcessId(23, 1_000_000_000)


@pytest.fixture
def table(tree: ProcTree, clock: Clock) -> ProcessTable:
    return ProcessTable(tree.root, timer=clock, user_name={33: "www-data"}.get)


def test_a_process_is_told_in_full(tree: ProcTree, table: ProcessTable) -> None:
    tree.add_process(
        23, "nginx", exe="/usr/sbin/nginx", cmdline=["nginx", "-g", "daemon off;"], uid=33,
        parent_pid=7, cgroup=f"0::/system.slice/docker-{ID}.scope\n",
    )  # fmt: skip
    assert table.get(SHELL) == Process(
        23, 1_000_000_000, "nginx", "/usr/sbin/nginx", ("nginx", "-g", "daemon off;"), 33,
        "www-data", 7, f"/system.slice/docker-{ID}.scope", ID,
    )  # fmt: skip


def test_this_very_process_is_told() -> None:
    table = ProcessTable()
    identity = table.current(os.getpid())
    assert identity is not None
    row = table.get(identity)
    assert row is not None
    assert row.exe == os.path.realpath(sys.executable)
    assert (row.uid, row.parent_pid) == (os.getuid(), os.getppid())
    assert row.cmdline


def test_another_process_of_that_number_is_never_told(tree: ProcTree, table: ProcessTable) -> None:
    tree.add_process(23, "other", start_ticks=200)
    assert table.get(SHELL) is None


def test_a_number_given_away_while_it_is_read_mixes_no_two_processes(
    tree: ProcTree, table: ProcessTable
) -> None:
    cmdline = tree.add_process(23, "first", exe="/bin/first", uid=33) / "cmdline"
    cmdline.unlink()
    os.mkfifo(cmdline)

    def replace_process() -> None:
        writer = os.open(cmdline, os.O_WRONLY)  # returns when the table opens it
        tree.remove_process(23)
        tree.add_process(23, "second", start_ticks=200, exe="/bin/second", uid=44)
        os.close(writer)

    replacing = threading.Thread(target=replace_process)
    replacing.start()
    row = table.get(SHELL)
    replacing.join()
    assert row == Process(23, 1_000_000_000, "first", "/bin/first", parent_pid=1)


def test_a_process_that_does_not_exist_is_not_told(table: ProcessTable) -> None:
    assert table.get(SHELL) is None
    assert table.current(23) is None


def test_a_process_that_ended_keeps_its_last_row(
    tree: ProcTree, table: ProcessTable, clock: Clock
) -> None:
    tree.add_process(23, "worker")
    row = table.get(SHELL)
    tree.remove_process(23)
    clock.now_s += 60
    assert table.get(SHELL) == row
    tree.add_process(23, "other", start_ticks=200)
    clock.now_s += 60
    assert table.get(SHELL) == row


def test_a_row_is_read_again_when_it_is_old(
    tree: ProcTree, table: ProcessTable, clock: Clock
) -> None:
    tree.add_process(23, "sh", exe="/bin/sh")
    table.get(SHELL)
    tree.remove_process(23)
    tree.add_process(23, "curl", exe="/usr/bin/curl")
    clock.now_s += 1
    assert table.get(SHELL).name == "sh"  # type: ignore[union-attr]
    clock.now_s += 1
    row = table.get(SHELL)
    assert row is not None
    assert (row.name, row.exe) == ("curl", "/usr/bin/curl")


def test_a_process_that_is_ending_keeps_its_fuller_row(
    tree: ProcTree, table: ProcessTable, clock: Clock
) -> None:
    tree.add_process(23, "worker", cmdline=["worker", "-v"])
    row = table.get(SHELL)
    tree.remove_process(23)
    tree.add_process(23, "worker", exe="", cmdline=[], state="Z")
    clock.now_s += 5
    assert table.get(SHELL) == row


def test_a_kernel_thread_has_a_name_and_no_program(tree: ProcTree, table: ProcessTable) -> None:
    tree.add_process(23, "kworker/0:1-events", exe="", cmdline=[])
    row = table.get(SHELL)
    assert row is not None
    assert (row.name, row.exe, row.cmdline) == ("kworker/0:1-events", "", ())


def test_a_program_that_was_deleted_has_its_path(tree: ProcTree, table: ProcessTable) -> None:
    tree.add_process(23, exe="/opt/app/run (deleted)")
    assert table.get(SHELL).exe == "/opt/app/run"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"a) S 1 (b", "a) S 1 (b"),
        (b"two words", "two words"),
        (b"a\nUid:\t0\t0\t0\t0\n", "a\nUid:\t0\t0\t0\t0\n"),
        (b"\x1b[2J", "\x1b[2J"),
        (b"caf\xc3\xa9", "café"),
        (b"\xff\xfe", "\\xff\\xfe"),
        (b"", ""),
    ],
)
def test_a_name_may_be_anything(
    tree: ProcTree, table: ProcessTable, raw: bytes, shown: str
) -> None:
    tree.add_process(23, raw, uid=33)
    row = table.get(SHELL)
    assert row is not None
    assert (row.name, row.uid) == (shown, 33)


def test_arguments_may_be_anything_and_are_bounded(tree: ProcTree, table: ProcessTable) -> None:
    tree.add_process(23, cmdline=["a", "", b"\xff", "b" * 200_000])
    row = table.get(SHELL)
    assert row is not None
    assert row.cmdline[:3] == ("a", "", "\\xff")
    assert sum(map(len, row.cmdline)) < 4096 + 10


def test_a_row_is_small_whatever_its_arguments(tree: ProcTree, table: ProcessTable) -> None:
    tree.add_process(23, cmdline=["ab"] * 20_000)
    row = table.get(SHELL)
    assert row is not None
    assert sum(map(sys.getsizeof, (*row.cmdline, row.cmdline))) < 100_000


@pytest.mark.parametrize("told", [False, True])
def test_what_is_kept_is_no_larger_than_what_was_read(
    tree: ProcTree, table: ProcessTable, told: bool
) -> None:
    arguments = tuple(f"{number:02}" for number in range(100)) * 13
    rows = 101
    for pid in range(1000, 1000 + rows):
        if not told:
            tree.add_process(pid, "many", cmdline=arguments)
    tracemalloc.start()
    try:
        for pid in range(1000, 1000 + rows):
            if told:
                # As from a ring: each string is a new one.
                cmdline = tuple("".join(each) for each in arguments)
                table.remember(Process(pid, 1_000_000_000, "many", cmdline=cmdline))
            else:
                assert table.get(ProcessId(pid, 1_000_000_000)) is not None
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes / rows < 2 * 3 * len(arguments)
    row = table.get(ProcessId(1000, 1_000_000_000))
    assert row is not None
    assert row.cmdline == arguments


def test_a_program_that_overwrote_its_arguments_has_one(
    tree: ProcTree, table: ProcessTable
) -> None:
    (tree.add_process(23) / "cmdline").write_bytes(b"sshd: root [priv]")
    assert table.get(SHELL).cmdline == ("sshd: root [priv]",)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("0::/user.slice\n", "/user.slice"),
        ("9:name=systemd:/a\n4:memory:/b\n1:cpu:/c\n0::/\n", "/a"),
        ("9:name=systemd:/\n4:memory:/b\n0::/\n", "/b"),
        ("12:cpu,cpuacct:/x\n3:name=systemd:/system.slice\n", "/system.slice"),
        ("0::/a:b:c\n", "/a:b:c"),
        ("0::/gone (deleted)\n", "/gone"),
        ("0::/\n", "/"),
        ("nonsense\n::\n0:\n", ""),
        ("", ""),
    ],
)  # fmt: skip
def test_the_most_telling_cgroup_is_shown(
    tree: ProcTree, table: ProcessTable, text: str, path: str
) -> None:
    tree.add_process(23, cgroup=text)
    assert table.get(SHELL).cgroup == path  # type: ignore[union-attr]


def test_what_an_event_told_is_kept_where_proc_is_silent(table: ProcessTable) -> None:
    table.remember(Process(23, 1_000_000_000, "sh", uid=33))
    table.remember(Process(23, 1_000_000_000, "curl"))
    row = table.get(SHELL)
    assert row is not None
    assert (row.name, row.uid, row.user) == ("curl", 33, "www-data")
    table.remember(Process(23, 1_000_000_000, "wget"))
    assert table.get(SHELL).name == "wget"  # type: ignore[union-attr]


def test_what_proc_told_is_not_replaced_by_an_event(tree: ProcTree, table: ProcessTable) -> None:
    tree.add_process(23, "sh", uid=33)
    row = table.get(SHELL)
    table.remember(Process(23, 1_000_000_000, "x", uid=0))
    assert table.get(SHELL) == row


def test_an_event_row_becomes_full_when_proc_shows_the_process(
    tree: ProcTree, table: ProcessTable
) -> None:
    table.remember(Process(23, 1_000_000_000, "sh", uid=33))
    tree.add_process(23, "sh", exe="/bin/sh", uid=33)
    assert table.get(SHELL).exe == "/bin/sh"  # type: ignore[union-attr]


def test_the_table_is_bounded_and_forgets_what_was_not_asked_for(tree: ProcTree) -> None:
    table = ProcessTable(tree.root, 3)
    for pid in (23, 29, 31, 37):
        table.remember(Process(pid, 0, "x"))
        table.get(ProcessId(23, 0))
    assert table.get(ProcessId(23, 0)) is not None
    assert table.get(ProcessId(29, 0)) is None


def test_a_user_is_asked_for_once(tree: ProcTree) -> None:
    asked = []
    table = ProcessTable(tree.root, user_name=lambda uid: asked.append(uid) or "me")  # type: ignore[func-returns-value]
    for pid in (23, 29):
        tree.add_process(pid, uid=1000)
        table.get(ProcessId(pid, 1_000_000_000))
    assert asked == [1000]


def test_a_name_service_that_takes_its_time_holds_up_nobody_else(tree: ProcTree) -> None:
    is_asked, may_answer = threading.Event(), threading.Event()

    def slowly(uid: int) -> str:
        is_asked.set()
        assert may_answer.wait(WAIT_S)
        return f"user{uid}"

    table = ProcessTable(tree.root, user_name=slowly)
    tree.add_process(23, uid=33)
    found: list[Process | None] = []
    asking = threading.Thread(target=lambda: found.append(table.get(SHELL)))
    asking.start()
    assert is_asked.wait(WAIT_S)
    tree.add_process(29, uid=44)
    table.remember(Process(31, 0, "told", uid=55))
    assert table.learn(ProcessId(29, 1_000_000_000)) and ProcessId(31, 0) in table
    assert not table.learn(ProcessId(37, 0))
    tree.remove_process(29)
    may_answer.set()
    asking.join()
    assert [row and row.user for row in found] == ["user33"]
    assert table.get(ProcessId(29, 1_000_000_000)).user == "user44"  # type: ignore[union-attr]


def test_a_user_may_be_called_any_bytes(tree: ProcTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pwd.getpwuid", lambda uid: SimpleNamespace(pw_name="caf\udcff"))
    tree.add_process(23, uid=1000)
    row = ProcessTable(tree.root).get(SHELL)
    assert row is not None and row.user == r"caf\xff"


@given(
    st.dictionaries(
        st.sampled_from(["stat", "status", "cmdline", "cgroup"]), st.binary(), min_size=1
    )
)
def test_any_bytes_give_a_row_or_none(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        tree = ProcTree(directory)
        home = tree.add_process(23)
        for name, content in files.items():
            (home / name).write_bytes(content)
        row = ProcessTable(tree.root).get(SHELL)
        assert row is None or row.id == SHELL
