"""Several processes that write to one connection, and what may become of their bytes there."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import random
import socket
import struct
import time
from operator import mul

from tests.workloads.scene import Child, Truth, moved, receive, together, with_repeated
from tests.workloads.sharing import slow_connection, tcp_listener

SO_ATTACH_FILTER, SO_DETACH_FILTER = 26, 27  # include/uapi/asm-generic/socket.h
BPF_RET = 0x06  # include/uapi/linux/bpf_common.h
_MOST_TIMES = 7


def by_turns(*sizes: list[int]) -> Truth:
    """Each writer has its sizes; one after the other they write, far faster than it is read."""
    sock, accepted, here, there = slow_connection()
    turns = [os.pipe() for _ in sizes]

    def write(number: int) -> Truth:
        accepted.close()
        for size in sizes[number]:
            os.read(turns[number][0], 1)
            sock.sendall(bytes(size))
            os.write(turns[(number + 1) % len(turns)][1], b"x")
        return [moved("tcp", here, there, sum(sizes[number]))]

    children = [Child(lambda number=number: write(number)) for number in range(len(sizes))]
    os.write(turns[0][1], b"x")
    truth = together(*children)
    received = receive(accepted, sum(map(sum, sizes)))
    connector = with_repeated(sock, moved("tcp", here, there))
    return [connector, *truth, moved("tcp", there, here, 0, received)]


def sizes_at_random(seed: int, writers: int, turns: int, most: int) -> list[list[int]]:
    at_random = random.Random(seed)
    return [[at_random.randint(1, most) for _ in range(turns)] for _ in range(writers)]


def four_writers() -> Truth:
    """A small piece between two large ones makes a packet of three."""
    return by_turns(*sizes_at_random(20261, 4, 15, 40_009))


def five_writers() -> Truth:
    """One more."""
    return by_turns(*sizes_at_random(20262, 5, 11, 40_009))


def tiny_turns() -> Truth:
    """Behind a full queue two write a few bytes at a time: many turns in one packet."""
    one, two = sizes_at_random(20263, 2, 29, 101)
    return by_turns([200_003, *one], [211, *two])


def wait_until_asleep(pid: int) -> None:
    """In its call, as long as it has nothing else to wait for."""
    polls = 0
    while polls < 3:
        time.sleep(0.01)
        with open(f"/proc/{pid}/stat", "rb") as file:
            asleep = file.read().rpartition(b")")[2].split()[0] == b"S"
        polls = polls + 1 if asleep else 0


def blocked_writers() -> Truth:
    """Three wait in their calls for room in one queue."""
    sock, accepted, here, there = slow_connection()
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)

    def write(size: int, times: int) -> Truth:
        accepted.close()
        for _ in range(times):
            sock.sendall(bytes(size))
        return [moved("tcp", here, there, size * times)]

    children = []
    for size, times in ((1_000_003, 1), (500_009, 2), (20_011, 20)):
        children.append(Child(lambda size=size, times=times: write(size, times)))
        wait_until_asleep(children[-1].pid)
    received = receive(accepted, 1_000_003 + 2 * 500_009 + 20 * 20_011)
    truth = together(*children)
    connector = with_repeated(sock, moved("tcp", here, there))
    return [connector, *truth, moved("tcp", there, here, 0, received)]


def nothing_written() -> Truth:
    """Who tries to write where there is no room, or has nothing to write, has none of the bytes."""
    sock, accepted, here, there = slow_connection()
    sock.setblocking(False)
    libc = ctypes.CDLL(None)

    def write() -> Truth:
        accepted.close()
        size = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                size += sock.send(bytes(10_007))
        return [moved("tcp", here, there, size)]

    def fail() -> Truth:
        accepted.close()
        size = 0
        for _ in range(67):
            with contextlib.suppress(BlockingIOError):
                size += sock.send(bytes(101))
            assert libc.send(sock.fileno(), ctypes.c_void_p(8), 101, 0) == -1  # EFAULT
        return [moved("tcp", here, there, size)]

    truth = Child(write).truth() + Child(fail).truth() + Child(fail).truth()
    left = sum(entry["sent"] for entry in truth) - receive(accepted, 1_000_003)
    truth += Child(write).truth()
    left += truth[-1]["sent"]
    received = 1_000_003 + receive(accepted, left)
    connector = with_repeated(sock, moved("tcp", here, there))
    return [connector, *truth, moved("tcp", there, here, 0, received)]


def deafen(sock: socket.socket) -> None:
    """From now on all that comes in for it is lost."""
    code = ctypes.create_string_buffer(struct.pack("HBBI", BPF_RET, 0, 0, 0))
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def repeated(sock: socket.socket) -> int:
    again = with_repeated(sock, {}).get("again", 0)
    assert isinstance(again, int)
    return again


def sent_times(sizes: list[int], again: int) -> tuple[int, ...]:
    """How often each was sent again, if all of that is so much."""
    (times,) = (
        each
        for each in itertools.product(range(_MOST_TIMES), repeat=len(sizes))
        if sum(map(mul, each, sizes)) == again
    )
    return times


def lost(*writes: tuple[int, int]) -> Truth:
    """(writer, bytes), one after the other; at first they are lost.

    The sizes are such that their sum tells how often each was sent, and that no two of them fit
    into a packet.
    """
    listener = tcp_listener()
    sock = socket.create_connection(listener.getsockname())
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    accepted, _ = listener.accept()
    here, there = sock.getsockname(), accepted.getsockname()
    deafen(accepted)
    turns = {writer: os.pipe() for writer, _ in writes}
    reads_done, writes_done = os.pipe()

    def write(mine: int) -> Truth:
        accepted.close()
        for writer, size in writes:
            if writer == mine:
                os.read(turns[mine][0], 1)
                sock.sendall(bytes(size))
                os.write(writes_done, b"x")
        return [moved("tcp", here, there)]

    children = [Child(lambda writer=writer: write(writer)) for writer in turns]
    for writer, _ in writes:
        os.write(turns[writer][1], b"x")
        os.read(reads_done, 1)
    truth = dict(zip(turns, together(*children), strict=True))
    while not repeated(sock):
        time.sleep(0.01)
    accepted.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
    sizes = [size for _, size in writes]
    received = receive(accepted, sum(sizes))
    again = repeated(sock)
    for (writer, size), times in zip(writes, sent_times(sizes, again), strict=True):
        truth[writer]["sent"] += size * (1 + times)
    end = moved("tcp", there, here, 0, received + again)
    return [moved("tcp", here, there), *truth.values(), end]


def sent_again() -> Truth:
    """What two wrote by turns is sent again, when the other one was the last to write."""
    return lost((1, 853), (2, 947), (1, 1223), (2, 1277))


def sent_again_for_another() -> Truth:
    """The same, and the first one has not written since the other one came."""
    return lost((1, 1009), (2, 1013))


def read_while_waiting() -> Truth:
    """Who wrote takes what comes in, while the bytes of another one wait behind its own."""
    sock, accepted, here, there = slow_connection()

    def write() -> Truth:
        accepted.close()
        sock.sendall(bytes(500_009))
        return [moved("tcp", here, there, 500_009)]

    sock.sendall(bytes(1_000_003))
    truth = Child(write).truth()
    accepted.sendall(bytes(101))
    taken = receive(sock, 101)
    received = receive(accepted, 1_000_003 + 500_009)
    accepted.sendall(bytes(103))
    taken += receive(sock, 103)
    connector = with_repeated(sock, moved("tcp", here, there, 1_000_003, taken))
    return [connector, *truth, moved("tcp", there, here, taken, received)]


def connected_again() -> Truth:
    """A socket's second connection is used as the first one was: a child takes what comes in."""
    sock = socket.socket()
    unspecified = struct.pack("H14x", socket.AF_UNSPEC)
    truth = []
    taken, go_on = os.pipe(), os.pipe()

    def take() -> Truth:
        told = []
        for size in (1009, 2003):
            os.read(go_on[0], 1)
            here, there = sock.getsockname(), sock.getpeername()
            told.append(moved("tcp", here, there, 0, receive(sock, size)))
            os.write(taken[1], b"x")
        return told

    taker = Child(take)
    for size in (1009, 2003):
        listener = tcp_listener()
        sock.connect(listener.getsockname())
        accepted, _ = listener.accept()
        here, there = sock.getsockname(), accepted.getsockname()
        accepted.sendall(bytes(size))
        os.write(go_on[1], b"x")
        os.read(taken[0], 1)
        truth += [moved("tcp", here, there), moved("tcp", there, here, size)]
        assert ctypes.CDLL(None).connect(sock.fileno(), unspecified, 16) == 0
    return truth + taker.truth()


KINDS = (
    four_writers,
    five_writers,
    tiny_turns,
    blocked_writers,
    nothing_written,
    sent_again,
    sent_again_for_another,
    read_while_waiting,
    connected_again,
)
