"""Behind whom somebody may have been whom no look has shown: by what was told of forks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from procnet.model import CLOCK_TICK_NS, ProcessId
from procnet.sockets.fork_events import MAX_FORKS, Fork
from procnet.sockets.forks import Forks
from procnet.testing.proc_tree import ProcTree

PARENT, HOLDER, SIBLING, CHILD = 101, 211, 223, 307


class Looks:
    """A parent, a holder and its sibling; ``told`` between two looks, or ``during`` one."""

    def __init__(self, directory: Path) -> None:
        self.tree = ProcTree(directory)
        self.tree.add_process(PARENT)
        self.tree.add_process(HOLDER, parent_pid=PARENT)
        self.tree.add_process(SIBLING, parent_pid=PARENT)
        self.told: list[Fork] | None = []
        self.during: list[Fork] | None = []
        self.closed = 0
        events: Any = self
        self.forks = Forks(events, str(self.tree.root))
        self.look()

    def read(self) -> list[Fork] | None:
        told, self.told, self.during = self.told, self.during, []
        return told

    def close(self) -> None:
        self.closed += 1

    def look(self, *pids: int) -> set[int]:
        """Of whom it is told, if these have sockets: the holder and its sibling, if none are."""
        started_ns = 100 * CLOCK_TICK_NS
        holders = [frozenset((ProcessId(pid, started_ns),)) for pid in (pids or (HOLDER, SIBLING))]
        self.forks.begin_look()
        return {process.pid for process in self.forks.end_look(holders)}


@pytest.fixture
def looks(tmp_path: Path) -> Looks:
    return Looks(tmp_path)


def test_without_a_fork_nobody_is_told_of(looks: Looks) -> None:
    assert looks.look() == set()
    looks.tree.remove_process(HOLDER)
    assert looks.look(SIBLING) == set()


@pytest.mark.parametrize("ended", [False, True])
def test_who_has_forked_is_told_of_once_also_if_it_has_ended(looks: Looks, ended: bool) -> None:
    looks.told = [Fork(HOLDER, CHILD)]
    if ended:
        looks.tree.remove_process(HOLDER)
    assert looks.look(SIBLING) == {HOLDER}
    assert looks.look(SIBLING) == set()


def test_a_fork_during_a_look_is_told_by_the_next_one_too(looks: Looks) -> None:
    looks.during = [Fork(HOLDER, CHILD)]
    assert [looks.look() for _ in range(3)] == [{HOLDER}, {HOLDER}, set()]


@pytest.mark.parametrize(
    ("state", "whose"), [("S", set()), ("Z", {HOLDER, SIBLING}), ("", {HOLDER, SIBLING})]
)
def test_a_sibling_that_is_gone_may_have_had_what_the_others_have(
    looks: Looks, state: str, whose: set[int]
) -> None:
    if state:
        looks.tree.add_process(CHILD, parent_pid=PARENT, state=state)
    looks.told = [Fork(PARENT, CHILD)]
    assert looks.look() == whose


def test_a_sibling_whose_number_is_in_use_again_is_gone(looks: Looks) -> None:
    looks.tree.add_process(CHILD, parent_pid=1)
    looks.told = [Fork(PARENT, CHILD), Fork(1, CHILD)]
    assert looks.look() == {HOLDER, SIBLING}


@pytest.mark.parametrize("gone", [False, True])
def test_who_was_begun_by_one_that_is_gone_may_have_its_sockets(looks: Looks, gone: bool) -> None:
    looks.tree.add_process(CHILD, parent_pid=1 if gone else PARENT)
    looks.told = [Fork(PARENT, CHILD)]
    if gone:
        looks.tree.remove_process(PARENT)
    assert looks.look(CHILD) == ({CHILD} if gone else set())


def test_what_init_begins_says_nothing_of_orphans(looks: Looks) -> None:
    looks.tree.add_process(1, parent_pid=0)
    looks.tree.add_process(CHILD, parent_pid=1)
    looks.told = [Fork(1, 1009)]
    assert looks.look(CHILD) == set()


def test_a_parent_is_remembered_when_its_child_is_gone(looks: Looks) -> None:
    """It may have gone first."""
    looks.tree.remove_process(HOLDER)
    looks.told = [Fork(PARENT, CHILD)]
    assert looks.look(SIBLING) == {HOLDER, SIBLING}


def test_if_not_all_was_told_it_may_be_anybody(looks: Looks) -> None:
    looks.told = None
    assert looks.look(SIBLING) == {HOLDER, SIBLING}
    assert looks.look(SIBLING) == set()


def test_a_look_that_failed_loses_nothing(looks: Looks) -> None:
    looks.told = [Fork(HOLDER, CHILD)]
    looks.forks.begin_look()
    assert looks.look() == {HOLDER}


def test_looks_that_fail_fill_no_memory(looks: Looks) -> None:
    for _ in range(3):
        looks.told = [Fork(HOLDER, CHILD)] * (MAX_FORKS // 2)
        looks.forks.begin_look()
    assert looks.look(SIBLING) == {HOLDER, SIBLING}


def test_the_events_are_closed_with_it(looks: Looks) -> None:
    looks.forks.close()
    assert looks.closed == 1
