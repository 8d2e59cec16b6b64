"""Rows of an engine become the counts that Counter would have given."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator

import pytest

from procnet.capture.counter import Counter
from procnet.capture.engine import CROWD_ENTRIES, KernelSide
from procnet.capture.whose import Whose
from procnet.errors import LoadError
from procnet.model import (
    MAPPED_PREFIX,
    TCP,
    UDP,
    Counted,
    CountedEnds,
    CountedSums,
    Ends,
    FlowCount,
    FlowKey,
    Reason,
)
from procnet.testing.frames import packed, udp_frame

LO, ETH = 1, 7
BATCH = 7
OURS, THEIRS, STRANGE = packed("10.0.0.1"), packed("192.0.2.9"), packed("192.0.2.10")
OUT: Ends = (UDP, OURS, 5000, THEIRS, 53)
BACK: Ends = (UDP, THEIRS, 53, OURS, 5000)


Row = tuple[Ends | None, int, bool, int, bool]


class FakeEngine:
    def __init__(self) -> None:
        self.rows: Iterable[Row] = []
        self.attached: list[int] = []
        self.surely: list[bool] = []
        self.closed = False
        self.holds_back = False
        self.waiting = 0

    def attach(self, descriptor: int) -> None:
        self.attached.append(descriptor)

    @property
    def waiting_entries(self) -> int:
        return self.waiting

    def drain(self, *, surely: bool = False) -> Counted:
        self.surely.append(surely)
        rows, self.rows = self.rows, []
        evicted: list[tuple[int, bool, CountedSums]] = []

        def entries() -> Iterator[tuple[CountedEnds, CountedSums]]:
            for ends, index, outgoing, packets, opens in rows:
                sums = (packets, 101, 17, 600, 1_600, opens)
                if ends is None:
                    evicted.append((index, outgoing, sums))
                    continue
                protocol, source, port, destination, other_port = ends
                yield (
                    (*pieces(source), *pieces(destination), port, other_port, protocol, outgoing,
                     index),
                    sums,
                )  # fmt: skip

        found = list(entries())
        batches = [found[at : at + BATCH] for at in range(0, len(found), BATCH)]
        return Counted(400, [(len(batch), batch) for batch in batches], evicted)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def side(engine: FakeEngine) -> KernelSide:
    made = KernelSide(engine, 4026531840)
    made.set_local_addresses(frozenset({OURS}))
    made.attach(30, LO, "lo", loopback=True)
    made.attach(31, ETH, "eth0", loopback=False)
    return made


def pieces(address: bytes) -> tuple[bytes, bytes]:
    whole = address if len(address) == 16 else MAPPED_PREFIX + address
    return whole[:12], whole[12:]


def row(
    ends: Ends | None, *, index: int = ETH, outgoing: bool = False, packets: int = 3,
    opens: bool = False,
) -> Row:  # fmt: skip
    return ends, index, outgoing, packets, opens


def key(ends: Ends) -> FlowKey:
    protocol, source, source_port, destination, destination_port = ends
    return FlowKey(4026531840, protocol, source, source_port, destination, destination_port)


def test_a_row_keeps_its_figures(engine: FakeEngine, side: KernelSide) -> None:
    engine.rows = [row(OUT, outgoing=True, opens=True)]
    assert side.drain() == [FlowCount("eth0", key(OUT), True, 3, 101, 17, 1_000, 2_000, True, None)]
    assert side.drain() == []


def test_what_comes_in_is_the_receiver_s_flow(engine: FakeEngine, side: KernelSide) -> None:
    engine.rows = [row(BACK)]
    (count,) = side.drain()
    assert (count.key, count.sent) == (key(OUT), False)


def test_each_copy_of_a_loopback_packet_is_one_end_s(engine: FakeEngine, side: KernelSide) -> None:
    engine.rows = [row(OUT, index=LO, outgoing=True), row(OUT, index=LO)]
    assert [(count.key, count.sent, count.interface) for count in side.drain()] == [
        (key(OUT), True, "lo"),
        (key(BACK), False, "lo"),
    ]


@pytest.mark.parametrize("outgoing", [True, False])
@pytest.mark.parametrize(
    "ends",
    [
        OUT,
        BACK,
        (UDP, OURS, 1, OURS, 2),
        (TCP, THEIRS, 1, STRANGE, 2),
        (UDP, THEIRS, 1, packed("239.1.1.1"), 2),
        (UDP, THEIRS, 68, packed("255.255.255.255"), 67),
        (UDP, packed("0.0.0.0"), 68, STRANGE, 67),
        (UDP, packed("fe80::1"), 68, packed("ff02::1"), 67),
    ],
)
def test_the_rules_are_those_of_the_counter(
    engine: FakeEngine, side: KernelSide, ends: Ends, outgoing: bool
) -> None:
    mac = b"\x02\0\0\0\0\x01"
    counter = Counter("eth0", 1, 4026531840, {OURS}, own_mac=mac if outgoing else None)
    counter.add(time.time(), udp_frame(*ends[1:]))
    expected = [(count.key, count.sent, count.reason) for count in counter.drain()]

    engine.rows = [row((UDP, *ends[1:]), outgoing=outgoing)]
    assert [(count.key, count.sent, count.reason) for count in side.drain()] == expected


@pytest.mark.parametrize("outgoing", [True, False])
def test_what_found_the_table_full_is_evicted(
    engine: FakeEngine, side: KernelSide, outgoing: bool
) -> None:
    engine.rows = [row(None, outgoing=outgoing)]
    assert side.drain() == [
        FlowCount("eth0", None, outgoing, 3, 101, 17, 1_000, 2_000, False, Reason.EVICTED)
    ]


def test_another_address_is_for_what_comes_then(engine: FakeEngine, side: KernelSide) -> None:
    engine.rows = [row((UDP, STRANGE, 1, OURS, 2))]
    side.set_local_addresses(frozenset({OURS, STRANGE}))
    engine.rows = [row((UDP, STRANGE, 1, OURS, 2))]
    assert [count.sent for count in side.drain()] == [False, True, False]
    side.set_local_addresses(frozenset({OURS, STRANGE}))
    assert engine.surely == [False, False, False]  # the same ones again are no change


def test_an_interface_is_known_until_its_last_rows_are_in(
    engine: FakeEngine, side: KernelSide
) -> None:
    engine.rows = [row(OUT), row(OUT, index=LO)]
    assert [count.interface for count in side.release(ETH)] == ["eth0", "lo"]
    assert engine.surely[-1] is True
    engine.rows = [row(OUT, index=LO)]
    assert [count.interface for count in side.drain()] == ["lo"]


def test_attach_and_close_go_through(engine: FakeEngine, side: KernelSide) -> None:
    assert engine.attached == [30, 31]
    side.close()
    assert engine.closed


def test_a_copy_where_there_is_no_loopback_is_the_packet() -> None:
    whose = Whose(1, {OURS})
    (view,), _ = whose.views(OUT, True)
    assert whose.sides_of_copy(OURS, THEIRS, True) == (view[1:],)


def test_rows_of_an_interface_that_nobody_named_are_not_lost(
    engine: FakeEngine, side: KernelSide
) -> None:
    engine.rows = [row(OUT, index=99), row(None, index=99)]
    assert [(count.interface, count.packets) for count in side.drain()] == [("#99", 3), ("#99", 3)]


@pytest.mark.parametrize("at_work", [True, False])
def test_the_collector_of_garbage_is_left_as_it_was(
    engine: FakeEngine, side: KernelSide, at_work: bool
) -> None:
    was_at_work = gc.isenabled()
    seen = []

    def rows() -> Iterator[Row]:
        seen.append(gc.isenabled())
        raise LoadError("the map cannot be read")
        yield row(OUT)

    engine.rows = rows()
    try:
        if at_work:
            gc.enable()
        else:
            gc.disable()
        with pytest.raises(LoadError):
            side.drain()
        after = gc.isenabled()
    finally:
        if was_at_work:
            gc.enable()
    assert seen == [False]
    assert after is at_work


def test_what_is_too_much_waits_as_small_as_it_was(engine: FakeEngine, side: KernelSide) -> None:
    engine.surely.clear()
    engine.rows = [row(OUT, packets=packets) for packets in range(1, 5 * BATCH)]
    engine.waiting = 17
    first = side.drain(BATCH + 1)
    assert [count.packets for count in first] == list(range(1, 2 * BATCH + 1))
    assert side.waiting_entries == 3 * BATCH - 1 + 17
    assert side.drain(0) == []
    assert engine.surely == [False]
    engine.rows, engine.waiting = [row(None), row(OUT, packets=1009)], CROWD_ENTRIES + 1
    assert [count.packets for count in side.drain(0)] == [3]  # the table was full, it is read
    assert [count.packets for count in side.drain()] == [*range(2 * BATCH + 1, 5 * BATCH), 1009]
    assert engine.surely == [False] * 3
    engine.waiting = 0
    assert side.drain() == []
    assert side.waiting_entries == 0


def test_so_much_waits_and_no_more(
    engine: FakeEngine, side: KernelSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("procnet.capture.engine.MAX_TAKEN", 2 * BATCH)
    engine.surely.clear()
    engine.waiting = CROWD_ENTRIES + 1
    for _ in range(5):
        engine.rows = [row(OUT)] * BATCH
        side.drain(0)
    assert len(engine.surely) == 2
    engine.waiting = 0
    assert len(side.release(ETH)) == 3 * BATCH


def test_what_the_engine_could_not_read_is_held_back(engine: FakeEngine, side: KernelSide) -> None:
    engine.rows, engine.holds_back = [row(OUT)], True
    assert len(side.drain()) == 1
    assert side.holds_back
    engine.holds_back = False
    assert not side.holds_back


def test_ipv6_addresses_are_whole(engine: FakeEngine, side: KernelSide) -> None:
    ours, theirs = packed("fd00::1"), packed("2001:db8::ffff:1")
    side.set_local_addresses(frozenset({ours}))
    ends = (UDP, ours, 5000, theirs, 53)
    engine.rows = [row(ends, outgoing=True), row((UDP, theirs, 53, ours, 5000))]
    assert [(count.key, count.sent) for count in side.drain()] == [
        (key(ends), True),
        (key(ends), False),
    ]
