"""Whose child has begun or ended between two looks, with processes of our own. Needs no root."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from procnet.sockets.holders import HolderMap

# Opens a socket, and forks; the last child says the inode and its pid.
OPENER = """
import os, socket, sys, time
depth = int(sys.stdin.readline())
held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(depth):
    if os.fork():
        break
else:
    print(os.fstat(held.fileno()).st_ino, os.getpid(), flush=True)
time.sleep(60)
"""

# Holds a UDP socket; says its inode, and then does what it is told, word by word.
HOLDER = """
import os, signal, socket, sys, time
kept = []
held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print(os.fstat(held.fileno()).st_ino, flush=True)
for word in map(str.strip, sys.stdin):
    if word == "close":
        held.close()
    elif word == "keep":
        kept.append(os.fork())
        if not kept[-1]:
            held.close()
            time.sleep(60)
            os._exit(0)
    elif word != "nothing":
        child = os.fork()
        if not child:
            os._exit(0)
        left = os.WNOWAIT if word == "leave" else 0
        os.waitid(os.P_PID, child, os.WEXITED | left)
    print(word, flush=True)
for child in kept:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


class Holder:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", HOLDER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.pid = self._process.pid
        self.inode = int(self._process.stdout.readline())
        self.inodes = [self.inode]
        self._looks = HolderMap()
        self.look()

    def does(self, word: str) -> None:
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == f"{word}\n"

    def look(self, *, refresh: bool = False) -> bool:
        """Is it told that a child of it has begun or ended since the last time?"""
        found = self._looks.of(self.inodes, refresh=refresh)
        return self.pid in {process.pid for process in self._looks.forked(found.values())}

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture
def holder() -> Iterator[Holder]:
    made = Holder()
    yield made
    made.close()


@pytest.mark.parametrize("refresh", [False, True])
@pytest.mark.parametrize("word", ["nothing", "reap", "leave", "keep"])
def test_a_child_is_told_once(holder: Holder, word: str, refresh: bool) -> None:
    assert not holder.look(refresh=refresh)
    holder.does(word)
    assert holder.look(refresh=refresh) is (word != "nothing")
    assert not holder.look(refresh=refresh)


@pytest.mark.parametrize("word", ["nothing", "reap", "leave", "keep"])
def test_it_is_told_of_who_has_closed_the_socket_since(holder: Holder, word: str) -> None:
    holder.does(word)
    holder.does("close")
    holder.inodes = []
    assert holder.look() is (word != "nothing")
    holder.does("reap")
    assert not holder.look()


def test_a_child_that_has_begun_says_nothing_of_the_others(holder: Holder) -> None:
    with contextlib.closing(Holder()) as sibling:
        assert not holder.look()
        assert not sibling.look()


def test_of_who_has_ended_nothing_is_told(holder: Holder) -> None:
    holder.does("reap")
    holder.close()
    holder.inodes = []
    assert not holder.look()


@pytest.mark.parametrize("depth", [1, 2])
def test_a_new_socket_of_a_new_process_may_be_its_parents_too(depth: int) -> None:
    looks = HolderMap(max_age_s=3600)
    with subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", OPENER],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    ) as opener:  # fmt: skip
        try:
            looks.of([])
            opener.stdin.write(f"{depth}\n")
            opener.stdin.flush()
            inode, child_pid = map(int, opener.stdout.readline().split())
            (holders,) = looks.of([inode]).values()
            assert {opener.pid, child_pid} <= {process.pid for process in holders}
            assert len(holders) == 1 + depth
            assert looks.walks == 1
        finally:
            os.killpg(opener.pid, signal.SIGKILL)
