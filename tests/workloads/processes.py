"""Processes that are hard to name: gone at once, with another's pid, with a name that bites."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
import time

from tests.workloads import scene
from tests.workloads.scene import (
    HOST,
    PEER,
    V4,
    Child,
    Note,
    Truth,
    datagrams,
    listener,
    moved,
    take_each,
    udp,
)


def pid_reused() -> Truth:
    """A process, and after its end another one with its pid, on the same port."""
    target = udp(V4)
    there = target.getsockname()
    with udp(V4) as free:
        port = free.getsockname()[1]

    def send(number: int, size: int) -> Truth:
        target.close()  # sharing.py says why
        with udp(V4, port) as sock:
            for _ in range(number):
                sock.sendto(bytes(size), there)
            return [moved("udp", sock.getsockname(), there, number * size)]

    first = Child(lambda: send(3, 281))
    truth = first.truth()
    time.sleep(0.03)  # start times are told in ticks of 10 ms
    truth += Child(lambda: send(5, 283), fork=lambda: forked_as(first.pid)).truth()
    received = sum(len(target.recv(65535)) for _ in range(8))
    return [*truth, moved("udp", there, (V4, port), received=received)]


def forked_as(pid: int) -> int:
    made = int(scene.calls.fork_as(pid))
    if made < 0:
        raise OSError(f"pid {pid} cannot be had again")
    return made


def threads_socket() -> Truth:
    """A thread that is not the first one of its process sends."""
    sent = []

    def send(sock: socket.socket, target: object) -> int:
        thread = threading.Thread(target=lambda: sent.append(sock.sendto(bytes(293), target)))
        thread.start()
        thread.join()
        return sent[0]

    return datagrams(send, take_each(1))


HOSTILE_NAME = "\x1b[2J\r\n\x07\u202ea"
"""Clears the screen, begins a line, rings, and turns the direction of what follows."""


def renamed() -> Truth:
    """A process with a name that is meant for the terminal of whoever reads it."""

    def send(sock: socket.socket, target: object) -> int:
        with open("/proc/self/comm", "w", encoding="utf-8") as name:
            name.write(HOSTILE_NAME)
        return sock.sendto(bytes(307), target)

    return datagrams(send, take_each(1))


def short_lived_udp() -> Truth:
    """101 processes, each of which sends a datagram and is gone after a fraction of a ms."""
    return short_lived("udp", 103)


def short_lived_tcp() -> Truth:
    """The same, each by a connection."""
    return short_lived("tcp", 107)


def short_lived(protocol: str, size: int) -> Truth:
    number = 101
    at, end = Note(), Note()
    address = scene.world.addresses["cable4"]

    def sink() -> Truth:
        with contextlib.ExitStack() as stack:
            if protocol == "udp":
                at.give(stack.enter_context(udp(address[PEER])).getsockname())
                end.take()
                return []
            listening = stack.enter_context(listener(address[PEER]))
            at.give(listening.getsockname())
            for _ in range(number):
                with listening.accept()[0] as sock:
                    while sock.recv(65536):
                        pass
            return []

    sinks = Child(sink, PEER)
    _, port = to = at.take()
    argv = [scene.world.short_lived, protocol, str(number), str(size), str(port), address[PEER]]
    told = subprocess.run(argv, stdout=subprocess.PIPE, check=True, text=True, timeout=60)
    end.give()
    sinks.truth()
    truth = []
    for line in told.stdout.splitlines()[1:]:
        pid, ticks, local_port, sent, _ = map(int, line.split())
        entry = moved(protocol, (address[HOST], local_port), to, sent)
        truth.append({**entry, "pid": pid, "start_time_ticks": ticks})
    return truth


KINDS = (pid_reused, threads_socket, renamed, short_lived_udp, short_lived_tcp)
