from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procnet.model import ProcessId
from procnet.sockets.pids import parse_stat, process_directory, stat_at, stat_of
from procnet.testing.proc_tree import ProcTree

# From Linux 6.18: a process whose first thread has ended while another one lives.
ZOMBIE_LEADER = (
    b"32469 (z) Z 32462 32459 30247 0 -1 4227340 168 0 3 0 0 0 0 0 20 0 2 0 125148 0 0"
    b" 18446744073709551615 0 0 0 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
)


def test_a_captured_stat_is_understood() -> None:
    assert parse_stat(ZOMBIE_LEADER) == (b"z", "Z", 32462, 0, 2, 1_251_480_000_000)


def test_a_process_lives_as_long_as_any_of_its_threads() -> None:
    assert not parse_stat(ZOMBIE_LEADER).ended
    assert parse_stat(ZOMBIE_LEADER.replace(b" 20 0 2 ", b" 20 0 1 ")).ended


@pytest.mark.parametrize(
    "name",
    [b"a) S 1 2 3", b"(sd-pam)", b") R 1 (", b"a\nb", b"\xff\xfe", b"", b" ", b"kworker/0:1"],
)
def test_a_name_cannot_shift_the_fields(name: bytes) -> None:
    stat = parse_stat(ZOMBIE_LEADER.replace(b"(z)", b"(" + name + b")"))
    assert (stat.name, stat.state, stat.start_time_ns) == (name, "Z", 1_251_480_000_000)


@given(st.binary())
def test_random_bytes_are_a_stat_or_a_value_error(text: bytes) -> None:
    try:
        parse_stat(text)
    except ValueError:
        return
    assert b"(" in text and b")" in text


def test_a_directory_never_becomes_the_next_process_of_that_number(tmp_path: Path) -> None:
    tree = ProcTree(tmp_path)
    tree.add_process(23, start_ticks=100)
    with process_directory(str(tree.root), 23) as directory:
        tree.remove_process(23)
        tree.add_process(23, start_ticks=200)
        with pytest.raises(FileNotFoundError):
            stat_at(directory)


def test_a_process_is_alive_under_its_own_start_time_only(tmp_path: Path) -> None:
    tree = ProcTree(tmp_path)
    tree.add_process(23, start_ticks=100)
    assert stat_of(str(tree.root), ProcessId(23, 1_000_000_000))
    assert not stat_of(str(tree.root), ProcessId(23, 1_010_000_000))
    assert not stat_of(str(tree.root), ProcessId(24, 1_000_000_000))


def test_this_very_process_stat_of() -> None:
    with process_directory("/proc", os.getpid()) as directory:
        start_time_ns = stat_at(directory).start_time_ns
    assert stat_of("/proc", ProcessId(os.getpid(), start_time_ns))
