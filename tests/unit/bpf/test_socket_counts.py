"""Sockets that go on moving packets, and a kernel that refuses anything once: nothing is lost."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from procnet.bpf import batches, layout, socket_counts
from procnet.bpf.socket_counts import SocketCounts
from procnet.bpf.socket_records import RECORD, REMOTE_KEY, REMOTE_VALUE
from procnet.errors import LayoutError, LoadError, ProcnetError
from procnet.model import MAPPED_PREFIX, UDP

SOCKETS, DRAINS, SEEDS = 7, 5, 11
ROWS_IN_A_PIECE, REMOTES_IN_A_BATCH = 2, 3
WIRE_BYTES, PAYLOAD_BYTES = 101, 73
HAS_MOVED_AT, REMOTES_AT, UNSPLIT_AT, UNTOLD_AT = range(4)
REST = 1
HERE, THERE, ANYWHERE = ((MAPPED_PREFIX, bytes([n, 0, 0, n])) for n in (10, 11, 0))


Refuses = Callable[[int], bool]


def never(_: int) -> bool:
    return False


def of(packets: int) -> tuple[int, int, int]:
    return packets, packets * WIRE_BYTES, packets * PAYLOAD_BYTES


class Figures:
    """struct procnet_counters, of packets that are all sent and all alike."""

    def __init__(self, socket: int, flags: int = 0) -> None:
        self.socket, self.flags = socket, flags
        self.moved = self.told = self.read = 0

    def record(self) -> bytes:
        self.told = self.moved
        there, port = (ANYWHERE, 0) if self.flags else (THERE, 53)
        return RECORD.pack(
            layout.LAYOUT, 20, *HERE, *there, self.socket, port, UDP, self.socket, 10,
            *of(self.moved), 15, 0, 0, 0, 0, *of(self.read), 0, 0, 0, 7, self.flags,
        )  # fmt: skip


class Kernel:
    """What bpf/socket_counts.h does. ``refuses`` says of the number of a request if it fails."""

    def __init__(self, seed: int, refuses: Refuses, news: int) -> None:
        self.random = random.Random(seed)
        self.refuses = refuses
        self.requests = 0
        self.quiet = False
        self.numbers = itertools.count(1)
        self.sockets = [Figures(next(self.numbers)) for _ in range(SOCKETS)]
        self.rests: list[Figures] = []
        self.ring: list[bytes] = []
        self.tables: list[dict[int, int]] = [{}, {}]
        self.written = 0
        self.moved: Counter[int] = Counter()
        self.news = news

    def request(self) -> None:
        """Something is asked for; in the meantime packets come."""
        self.go_on(self.random.randrange(7))
        self.requests += 1
        if self.refuses(self.requests - 1):
            raise LoadError("not this time")

    def go_on(self, steps: int) -> None:
        events = (self.move, self.move, self.split, self.reach, self.rest, self.end, self.untold)
        for _ in range(0 if self.quiet else steps):
            self.random.choice(events)()

    def move(self) -> None:
        self.add(self.random.choice(self.sockets))

    def add(self, figures: Figures) -> None:
        packets = self.random.randrange(1, 9)
        figures.moved += packets
        self.moved[figures.socket] += packets
        self.add_to_news(HAS_MOVED_AT, 0, 1)

    def split(self) -> None:
        for figures in self.random.sample(self.sockets + self.rests, 2):
            if figures.moved != figures.told:
                self.ring.append(figures.record())

    def end(self) -> None:
        at = self.random.randrange(len(self.sockets))
        figures, self.sockets[at] = self.sockets[at], Figures(next(self.numbers))
        if figures.moved != figures.told:
            self.ring.append(figures.record())

    def reach(self) -> None:
        socket = self.random.randrange(1001, 1011)
        self.tables[self.written][socket] = self.tables[self.written].get(socket, 0) + 1
        self.moved[socket] += 1
        self.add_to_news(REMOTES_AT, 1, 0)

    def rest(self) -> None:
        figures = self.random.choice(self.sockets)
        found = next((rest for rest in self.rests if rest.socket == figures.socket), None)
        if found is None:
            found = Figures(figures.socket, REST)
            self.rests.append(found)
        self.add(found)
        self.add_to_news(UNSPLIT_AT, 1, 0)

    def untold(self) -> None:
        self.moved[0] += 2
        for at, more in enumerate(of(2)):
            self.add_to_news(UNTOLD_AT + at, more, 0)

    def add_to_news(self, word: int, more: int, least: int) -> None:
        now = int.from_bytes(os.pread(self.news, 8, 8 * word), "little")
        os.pwrite(self.news, max(now + more, least).to_bytes(8, "little"), 8 * word)

    # -- as SocketCounts sees it

    def map_descriptor(self, name: str) -> int:
        return {"first_remotes": 0, "second_remotes": 1, ".data.news": self.news}.get(name, -1)

    def run_iterator(self, program: str, map_name: str) -> Iterator[bytes]:
        assert program == socket_counts.ITERATOR
        self.request()
        found = {"counters": self.sockets, "rests": self.rests}[map_name]
        for at in range(0, len(found), ROWS_IN_A_PIECE):
            rows = b""
            for figures in found[at : at + ROWS_IN_A_PIECE]:
                if figures.moved != figures.read:
                    rows += figures.record()
                    figures.read = figures.moved
            if rows:
                yield rows
            self.request()

    def read_ring(self) -> list[bytes]:
        self.request()
        records, self.ring = self.ring, []
        return records

    def put_map(self, _outer: int, _index: int, inner: int) -> None:
        self.request()
        self.written = inner

    def take(self, table: int) -> Iterator[tuple[memoryview, memoryview]]:
        entries = self.tables[table]
        while entries:
            self.request()
            batch = [entries.popitem() for _ in range(min(len(entries), REMOTES_IN_A_BATCH))]
            keys = (REMOTE_KEY.pack(*HERE, *THERE, n, 1, UDP, n, 0, 7) for n, _ in batch)
            values = (REMOTE_VALUE.pack(1, 0, *of(sent), 9, 0, 0, 0, 0) for _, sent in batch)
            yield memoryview(b"".join(keys)), memoryview(b"".join(values))
        self.request()


class Ring:
    """bpf/ring.py, which has tests of its own."""

    waiting_bytes = 0

    def __init__(self, kernel: Kernel) -> None:
        self.read = kernel.read_ring

    def close(self) -> None:
        pass


class Table:
    def __init__(self, kernel: Kernel, descriptor: int) -> None:
        self.descriptor = descriptor
        self.take: Callable[[], object] = lambda: kernel.take(descriptor)


Opened = Callable[[int, Refuses], tuple[Kernel, SocketCounts]]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    with contextlib.ExitStack() as held:

        def open_counts(seed: int, refuses: Refuses) -> tuple[Kernel, SocketCounts]:
            news = os.memfd_create("news")
            held.callback(os.close, news)
            os.truncate(news, mmap.PAGESIZE)
            kernel = Kernel(seed, refuses, news)
            monkeypatch.setattr(socket_counts, "Ring", lambda *_: Ring(kernel))
            monkeypatch.setattr(batches, "HashMap", lambda which, *_: Table(kernel, which))
            monkeypatch.setattr(batches, "put_map", kernel.put_map)
            return kernel, SocketCounts(kernel, Path("/proc"))  # type: ignore[arg-type]

        yield open_counts


class Told:
    """What drains gave, and how many of them failed."""

    def __init__(self) -> None:
        self.packets: Counter[int] = Counter()
        self.failures = 0

    def drain(self, counts: SocketCounts) -> None:
        try:
            found = counts.drain()
        except ProcnetError:
            self.failures += 1
        else:
            for count in found:
                assert count[3:6] == of(count.packets) > of(0)
                self.packets[count.key.local_port if count.key else 0] += count.packets


@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_fails_once_nothing_is_lost_or_told_twice(opened: Opened, seed: int) -> None:
    for refuses in itertools.count():
        kernel, counts = opened(seed, refuses.__eq__)
        told = Told()
        for _ in range(DRAINS):
            kernel.go_on(11)
            told.drain(counts)
        kernel.quiet = True
        for _ in range(2):
            told.drain(counts)
        assert told.packets == kernel.moved, f"request {refuses} was refused"
        kernel.refuses = never
        counts.close()
        assert counts.drain() == []
        if not told.failures:
            break
        assert told.failures == 1
    assert refuses > 5 * DRAINS  # each has as many stages


def test_whatever_fails_again_and_again_nothing_is_lost_or_told_twice(opened: Opened) -> None:
    failures = 0
    for seed in range(199):
        chance = random.Random(seed)
        kernel, counts = opened(seed, lambda _, chance=chance: chance.random() < 0.2)  # type: ignore
        told = Told()
        for _ in range(2 * DRAINS):
            kernel.go_on(11)
            told.drain(counts)
        kernel.quiet, kernel.refuses = True, never
        told.drain(counts)
        assert told.packets == kernel.moved, f"seed {seed}"
        failures += told.failures
        counts.close()
    assert failures > 199


def test_what_fails_for_ever_keeps_nothing_else_back(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, counts = opened(0, never)

    def refuse(*_: int) -> None:
        raise LoadError("never")

    told, reached = Told(), 0
    with monkeypatch.context() as patch:
        patch.setattr(batches, "put_map", refuse)
        for _ in range(2 * DRAINS):
            kernel.quiet = False
            kernel.go_on(11)
            kernel.quiet = True
            for _ in range(2):
                told.drain(counts)
                assert counts.holds_back
            reached = sum(packets for socket, packets in kernel.moved.items() if socket > 1000)
            assert told.packets.total() == kernel.moved.total() - reached
    assert told.failures >= 2 * DRAINS - 2 and reached > 0
    told.drain(counts)
    assert not counts.holds_back
    assert told.packets == kernel.moved
    counts.close()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_what_fails_once_when_it_is_closed_is_still_read(opened: Opened, seed: int) -> None:
    failed = True
    for refuses in itertools.count():
        kernel, counts = opened(seed, (2).__eq__)  # nor what the first drain has left
        told = Told()
        kernel.go_on(11)
        told.drain(counts)
        kernel.go_on(11)
        kernel.quiet, kernel.refuses = True, (kernel.requests + refuses).__eq__
        try:
            counts.close()
        except LoadError:
            pass
        else:
            failed = False
        told.drain(counts)
        assert told.packets == kernel.moved, f"request {refuses} was refused"
        counts.close()
        if not failed:
            break
    assert refuses > 2 * 5


def test_no_more_is_known_than_of_the_last_two_readings(opened: Opened) -> None:
    kernel, counts = opened(0, never)
    kernel.quiet = True
    for _ in range(DRAINS):
        for at in range(SOCKETS):
            kernel.sockets[at] = Figures(next(kernel.numbers))
            kernel.add(kernel.sockets[at])
        assert len(counts.drain()) == SOCKETS
    known = counts._differences
    assert len(known._known) + len(known._known_before) == 2 * SOCKETS
    counts.close()


def test_records_of_another_layout_cost_no_others(opened: Opened) -> None:
    kernel, counts = opened(0, never)
    kernel.quiet = True
    for figures in kernel.sockets[:3]:
        kernel.add(figures)
        kernel.ring.append(figures.record())
    kernel.ring.insert(1, bytes(RECORD.size))
    with pytest.raises(LayoutError):
        counts.drain()
    told = Told()
    told.drain(counts)
    assert told.packets == kernel.moved
    counts.close()


def test_a_drain_that_fails_is_not_tried_at_once(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_counts, "DRAIN_EVERY_S", 1e6)
    kernel, counts = opened(0, (0).__eq__)
    assert counts.is_due
    kernel.go_on(11)
    with pytest.raises(LoadError):
        counts.drain()
    assert not counts.is_due
    counts.close()
