"""Which connections may have bytes in their send queue whose writer is gone."""

from __future__ import annotations

import struct

import pytest

from procnet.model import TCP, UDP, ProcessId, Socket
from procnet.netlink import attribute
from procnet.sockets.progress import Progress, parse_progress
from procnet.sockets.send_queues import MAX_ASKED, SendQueues
from tests.unit.sockets.netlink import row

ALICE, BOB = ProcessId(1009, 10_000_000), ProcessId(2003, 20_000_000)
HERE, THERE = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))


def connection(
    queue_bytes: int, inode: int = 501, state: str = "established", protocol: int = TCP
) -> Socket:
    return Socket(7, protocol, 4, HERE, 4001, THERE, 443, state, inode, 0, queue_bytes)


class Looks:
    """One after the other. ``progress``: what sock_diag says at the next one."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self.asked = 0
        self.queues = SendQueues(self.ask)

    def ask(self, _: Socket) -> Progress | None:
        self.asked += 1
        return self.progress

    def look(self, *sockets: Socket, holders: set[ProcessId], forked: bool = False) -> set[int]:
        held = {each.inode: frozenset(holders) for each in sockets}
        return set(self.queues.look(sockets, held, frozenset(holders) if forked else frozenset()))


def test_nothing_is_left_behind_as_long_as_nobody_leaves() -> None:
    looks = Looks()
    for holders in ({ALICE}, {ALICE}, {ALICE, BOB}, {ALICE, BOB}):
        assert looks.look(connection(1009), holders=holders) == set()
    assert looks.asked == 0


@pytest.mark.parametrize("way", ["seen before", "seen by nobody"])
def test_who_is_gone_leaves_something_until_the_queue_was_seen_empty(way: str) -> None:
    looks = Looks()
    looks.look(connection(1009), holders={ALICE, BOB} if way == "seen before" else {ALICE})
    forked = way == "seen by nobody"
    assert looks.look(connection(1009), holders={ALICE}, forked=forked) == {501}
    assert looks.look(connection(2003), holders={ALICE}) == {501}
    assert looks.look(connection(0), holders={ALICE}) == set()
    assert looks.look(connection(3001), holders={ALICE}) == set()


def test_the_rows_are_older_than_who_is_missed() -> None:
    # Empty when it was read, and then it wrote, and then it went.
    looks = Looks()
    looks.look(connection(0), holders={ALICE, BOB})
    assert looks.look(connection(0), holders={ALICE}) == {501}
    assert looks.look(connection(1009), holders={ALICE}) == {501}


def test_what_was_written_until_then_has_arrived() -> None:
    looks = Looks()
    looks.look(connection(1009), holders={ALICE, BOB})
    looks.look(connection(1009), holders={ALICE})
    assert looks.asked == 0
    looks.progress = Progress(acked_bytes=101, written_bytes=1110)
    assert looks.look(connection(1009), holders={ALICE}) == {501}
    looks.progress = Progress(acked_bytes=1109, written_bytes=5000)
    assert looks.look(connection(3891), holders={ALICE}) == {501}
    looks.progress = None  # not told this time
    assert looks.look(connection(3891), holders={ALICE}) == {501}
    looks.progress = Progress(acked_bytes=1110, written_bytes=5000)
    assert looks.look(connection(3890), holders={ALICE}) == set()


def test_another_one_who_leaves_begins_it_again() -> None:
    looks = Looks()
    looks.look(connection(1009), holders={ALICE, BOB})
    looks.look(connection(1009), holders={ALICE})
    looks.progress = Progress(acked_bytes=101, written_bytes=1110)
    looks.look(connection(1009), holders={ALICE})
    looks.progress = Progress(acked_bytes=1110, written_bytes=5000)
    assert looks.look(connection(3890), holders={ALICE}, forked=True) == {501}
    assert looks.look(connection(3890), holders={ALICE}) == {501}
    looks.progress = Progress(acked_bytes=5000, written_bytes=5003)
    assert looks.look(connection(3), holders={ALICE}) == set()


def test_only_connections_have_such_a_queue() -> None:
    looks = Looks()
    others = (connection(0, 502, "listen"), connection(0, 503, "unconnected", UDP))
    looks.look(*others, holders={ALICE, BOB})
    assert looks.look(*others, holders={ALICE}, forked=True) == set()


def test_what_is_closed_is_forgotten() -> None:
    looks = Looks()
    looks.look(connection(1009), holders={ALICE, BOB})
    assert looks.look(connection(1009), holders={ALICE}) == {501}
    assert looks.look(holders=set()) == set()
    assert looks.look(connection(1009), holders={ALICE}) == set()


def test_so_many_are_asked_for_at_each_look() -> None:
    looks = Looks()
    many = [connection(1009, inode) for inode in range(501, 501 + MAX_ASKED + 7)]
    looks.look(*many, holders={ALICE, BOB})
    looks.look(*many, holders={ALICE})
    looks.progress = Progress(acked_bytes=1009, written_bytes=1009)
    left = looks.look(*many, holders={ALICE})
    assert (looks.asked, len(left)) == (MAX_ASKED, 7)
    assert looks.look(*many, holders={ALICE}) == set()


# -- what sock_diag answers -------------------------------------------------------------------

INFO = attribute(2, bytes(120) + struct.pack("=Q", 5003) + bytes(100))


def answer(attributes: bytes = INFO, inode: int = 501) -> bytes:
    ends = ("10.0.0.1", 4001), ("10.0.0.2", 443)
    return row(*ends, state=1, inode=inode, send_queue_bytes=1009, attributes=attributes)


def test_an_answer_tells_what_has_arrived_and_what_was_written() -> None:
    assert parse_progress(answer(), 501) == Progress(5003, 6012)
    other = attribute(5, b"\0\0\0\0")
    assert parse_progress(answer(other + INFO), 501) == Progress(5003, 6012)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        answer(inode=502),
        answer(b""),
        answer(attribute(2, bytes(120) + bytes(7))),  # before 4.1
        answer(attribute(1, bytes(128))),
        struct.pack("=I", len(answer())) + b"\x02\0" + answer()[6:],
    ],
    ids=["nothing", "other-socket", "no-info", "short-info", "other-attribute", "an-error"],
)
def test_what_does_not_tell_is_no_answer(damaged: bytes) -> None:
    assert parse_progress(damaged, 501) is None


def test_what_is_cut_short_is_no_answer() -> None:
    whole = answer()
    assert {parse_progress(whole[:size], 501) for size in range(len(whole))} == {None}
