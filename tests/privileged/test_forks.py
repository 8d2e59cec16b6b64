"""The kernel's own word on forks, and what looking makes of it, with processes of our own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from procnet.sockets.fork_events import Fork, ForkEvents
from procnet.sockets.forks import Forks
from procnet.sockets.holders import HolderMap
from tests.privileged.namespace import Namespace

# Holds a UDP socket; says its number and the socket's, and then does what it is told, word by word.
HOLDER = """
import os, socket, sys, time
held = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print(os.getpid(), os.fstat(held.fileno()).st_ino, flush=True)
for word in map(str.strip, sys.stdin):
    if word == "fork":
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
    elif word == "leave":
        if os.fork():
            os._exit(0)
        word = f"{os.getpid()}"
    print(word, flush=True)
"""


class Holder:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", HOLDER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.pid, self.inode = map(int, self._process.stdout.readline().split())
        self._holders = HolderMap()
        self._forks = Forks(ForkEvents())
        self.look()

    def does(self, word: str) -> str:
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return str(self._process.stdout.readline().strip())

    def ends(self) -> None:
        self._process.communicate()

    def look(self) -> set[int]:
        """Of whom, of those who have or had the socket, something is told?"""
        self._forks.begin_look()
        holders = self._holders.of([self.inode])
        return {process.pid for process in self._forks.end_look(holders.values())}

    def close(self) -> None:
        self.ends()
        self._forks.close()


@pytest.fixture
def holder() -> Iterator[Holder]:
    with closing(Holder()) as made:
        yield made


@pytest.mark.parametrize("forks", [False, True])
def test_who_is_gone_is_told_of_if_it_had_a_child(holder: Holder, forks: bool) -> None:
    if forks:
        holder.does("fork")
    holder.ends()
    assert holder.look() == ({holder.pid} if forks else set())
    assert holder.look() == set()


def test_who_has_the_socket_of_a_parent_that_is_gone_is_told_of(holder: Holder) -> None:
    child = int(holder.does("leave"))
    assert holder.look() == {holder.pid, child}
    assert holder.look() == set()
    assert holder.does("nothing") == "nothing"


def forks_of_ours() -> tuple[list[Fork], list[Fork]]:
    """What is told of two processes and a thread, and what was to be told."""
    with closing(ForkEvents()) as events:
        shell = subprocess.Popen(
            ["sh", "-c", "sh -c 'echo $$'; true"], stdout=subprocess.PIPE, text=True
        )
        child = int(shell.communicate()[0])
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()
        told = events.read() or []
    ours = {os.getpid(), shell.pid, child}
    expected = [Fork(os.getpid(), shell.pid), Fork(shell.pid, child)]
    return [each for each in told if each.parent_pid in ours], expected


def test_processes_are_told_and_no_threads() -> None:
    told, expected = forks_of_ours()
    assert told == expected


def test_they_are_told_in_another_network_namespace_too(loopback: Namespace) -> None:
    told, expected = loopback.call(forks_of_ours)
    assert told == expected


def test_what_found_no_room_is_known_to_be_missing() -> None:
    with closing(ForkEvents()) as events:
        events._events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for _ in range(101):
            os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
        assert events.read() is None
        child = os.posix_spawn("/bin/true", ["true"], {})
        os.waitpid(child, 0)
        assert Fork(os.getpid(), child) in (events.read() or [])


def test_the_doctor_says_whether_forks_are_told(loopback: Namespace) -> None:
    doctor = [sys.executable, "-m", "procnet", "doctor"]
    assert "yes     fork events" in loopback.run(doctor)
    refused = loopback.run(["setpriv", "--bounding-set=-sys_admin", *doctor])
    assert "no      fork events" in refused
    assert "CAP_SYS_ADMIN" in refused
