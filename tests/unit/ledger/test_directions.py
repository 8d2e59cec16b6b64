"""A connection whose directions have different users."""

from __future__ import annotations

import pytest

from procnet.model import TCP, EventKind, Evidence, ProcessId, Reason, Traffic
from tests.unit.ledger.world import ALICE, BOB, CAROL, MS, T0, World, connected, flow

CLIENT = flow(TCP, 50021, 80)
CONNECT, ACCEPT, SEND, RECEIVE, CLOSE, INJECT = EventKind


def test_who_receives_does_not_take_over_what_is_sent() -> None:
    world = World()
    world.event(0, ALICE, CONNECT, CLIENT)
    world.event(1, ALICE, RECEIVE, CLIENT, ways="receives")
    world.event(2, BOB, SEND, CLIENT, ways="sends")
    world.packets(5, CLIENT)
    world.event(6, ALICE, RECEIVE, CLIENT, ways="receives")
    world.packets(7, CLIENT)
    world.packets(8, CLIENT, sent=False)
    world.settle(9, final=True)
    assert world.verdicts() == {BOB: (2, 202), ALICE: (1, 101)}


def test_what_came_before_anybody_took_anything_is_for_the_first_who_does() -> None:
    world = World()
    world.event(0, ALICE, CONNECT, CLIENT)
    world.event(1, ALICE, SEND, CLIENT)
    world.packets(2, CLIENT, sent=False)
    world.look(1000, (connected(CLIENT), {ALICE, BOB}))
    world.look(2000, (connected(CLIENT), {ALICE, BOB}))
    world.settle(2001)
    assert world.verdicts() == {Reason.PENDING: (1, 101)}
    world.event(2002, BOB, RECEIVE, CLIENT, ways="receives")
    world.look(3000, (connected(CLIENT), {ALICE, BOB}))
    world.settle(3001)
    world.packets(3002, CLIENT)
    world.settle(3003)
    assert world.verdicts() == {BOB: (1, 101), ALICE: (1, 101)}


def test_what_the_first_taker_sends_not_stays_with_the_sender() -> None:
    world = World()
    world.event(0, ALICE, CONNECT, CLIENT)
    world.packets(1, CLIENT)
    world.event(2, BOB, RECEIVE, CLIENT)  # nobody has sent: it has both
    world.packets(3, CLIENT)
    world.settle(4, final=True)
    assert world.verdicts() == {ALICE: (1, 101), BOB: (1, 101)}


def test_an_acknowledgement_belongs_to_what_is_acknowledged() -> None:
    world = World()
    world.event(0, ALICE, CONNECT, CLIENT)
    world.event(1, ALICE, SEND, CLIENT)
    world.event(2, BOB, RECEIVE, CLIENT, ways="receives")
    world.packets(3, CLIENT, payload=0)
    world.packets(4, CLIENT, payload=0, sent=False, number=3)
    world.settle(5, final=True)
    assert world.verdicts() == {BOB: (1, 0), ALICE: (3, 0)}


def test_what_two_have_in_one_queue_is_ambiguous_until_it_is_empty() -> None:
    world = World()
    world.event(0, ALICE, CONNECT, CLIENT)
    world.packets(1, CLIENT)
    world.event(2, BOB, SEND, CLIENT, ways="sends", shared=True)
    world.packets(3, CLIENT)
    world.event(4, CAROL, SEND, CLIENT, ways="sends", shared=True)
    world.packets(5, CLIENT)
    world.event(6, ALICE, SEND, CLIENT, ways="sends")
    world.packets(7, CLIENT)
    world.settle(8, final=True)
    assert world.verdicts() == {ALICE: (2, 202), Reason.AMBIGUOUS: (2, 202)}


@pytest.mark.parametrize("closes_ms", [3, 4])
def test_a_sender_whose_bytes_leave_after_the_close_is_the_last_one(closes_ms: float) -> None:
    world = World()
    world.event(0, ALICE, CONNECT, CLIENT)
    world.packets(1, CLIENT)
    world.event(closes_ms, BOB, CLOSE, CLIENT)
    # Told when the first byte left, with a close of its own.
    world.event(10, BOB, SEND, CLIENT)
    world.event(10, BOB, CLOSE, CLIENT)
    world.packets(11, CLIENT)
    world.settle(12, final=True)
    assert world.verdicts() == {ALICE: (1, 101), BOB: (1, 101)}


@pytest.mark.parametrize("holders", [{BOB}, {ALICE, BOB}])
def test_a_direction_that_its_user_let_go_of_is_for_who_has_the_socket(
    holders: set[ProcessId],
) -> None:
    world = World()
    world.look(-9, (connected(CLIENT), {ALICE}))
    world.event(0, ALICE, CONNECT, CLIENT)
    world.event(1, ALICE, SEND, CLIENT)
    world.event(2, ALICE, RECEIVE, CLIENT, ways="receives")
    world.event(3, BOB, SEND, CLIENT, ways="sends")
    world.look(1000, (connected(CLIENT), holders))
    world.look(2000, (connected(CLIENT), holders))
    world.packets(2500, CLIENT, sent=False)
    world.look(3000, (connected(CLIENT), holders))
    world.look(4000, (connected(CLIENT), holders))
    world.settle(4001)
    world.settle(9999, final=True)
    assert world.verdicts() == {(ALICE if ALICE in holders else BOB): (1, 101)}


@pytest.mark.parametrize("is_told_of_others", [True, False])
def test_what_a_process_left_in_the_queue_is_its_own_after_it_has_ended(
    is_told_of_others: bool,
) -> None:
    world = World()
    world.event(0, ALICE, CONNECT, CLIENT)
    world.look(10, (connected(CLIENT), {ALICE, BOB, CAROL}))
    world.event(20, ALICE, SEND, CLIENT)
    # It has ended; what it wrote is still in the queue, and the next one writes behind it.
    world.look(30, (connected(CLIENT), {BOB, CAROL}))
    world.look(40, (connected(CLIENT), {BOB}))
    world.packets(50, CLIENT, number=7)
    if is_told_of_others:
        world.event(60, BOB, SEND, CLIENT, shared=True)
        world.packets(61, CLIENT)
        world.event(70, BOB, SEND, CLIENT)
        world.packets(71, CLIENT, number=3)
    # Nobody is told to have taken this.
    world.packets(80, CLIENT, sent=False)
    world.look(90, (connected(CLIENT), {BOB}))
    world.settle(91, final=True)
    of_bob = {BOB: (4, 202), Reason.AMBIGUOUS: (1, 101)} if is_told_of_others else {BOB: (1, 101)}
    assert world.verdicts() == {ALICE: (7, 101), **of_bob}


def by_turns(*parts: tuple[int, int], until_ms: float = 60) -> World:
    """Of a connection: a packet of one process, some that it shares with another, one of that."""
    world = World()
    world.event(0, ALICE, CONNECT, CLIENT)
    world.event(10, ALICE, SEND, CLIENT)
    world.packets(11, CLIENT)
    for number, part in enumerate(parts):
        if number:
            world.event(19.75 + number, ALICE, SEND, CLIENT, ways="sends")
        world.event(20 + number, BOB, SEND, CLIENT, ways="sends", shared=True, part=part)
        world.packets(20.5 + number, CLIENT)
    world.event(until_ms, BOB, SEND, CLIENT, ways="sends")
    world.packets(until_ms + 1, CLIENT)
    return world


def test_a_packet_with_bytes_of_two_is_divided() -> None:
    world = by_turns((43, 101))
    world.settle(99, final=True)
    # It counts, with its headers, for who wrote the first byte.
    assert world.verdicts() == {ALICE: (2, 101 + 58), BOB: (1, 43 + 101)}
    rows = {key.process: row for key, row in world.ledger.account().rows}
    assert rows[ALICE].sent == Traffic(2, 101 + 58 + 2 * 28, 101 + 58)
    assert rows[BOB].sent == Traffic(1, 43 + 101 + 28, 43 + 101)
    assert {row.evidence for row in rows.values()} == {Evidence.KERNEL_EVENT}


def test_what_has_no_bytes_is_of_who_wrote_the_first_one() -> None:
    world = by_turns((43, 101))
    world.packets(20.75, CLIENT, payload=0, sent=False)
    world.settle(99, final=True)
    assert world.verdicts() == {ALICE: (3, 101 + 58), BOB: (1, 43 + 101)}


def test_each_packet_with_bytes_of_two_is_divided_for_itself() -> None:
    world = by_turns((43, 101), (47, 101), (100, 101))
    world.settle(99, final=True)
    of_bob = 43 + 47 + 100
    assert world.verdicts() == {ALICE: (4, 101 + 303 - of_bob), BOB: (1, of_bob + 101)}


@pytest.mark.parametrize("part", [(43, 103), (43, 97), (0, 0)])
def test_of_a_run_that_is_not_that_packet_nobody_knows_whose_it_is(part: tuple[int, int]) -> None:
    world = by_turns(part)
    world.settle(99, final=True)
    assert world.verdicts() == {ALICE: (1, 101), BOB: (1, 101), Reason.AMBIGUOUS: (1, 101)}
    (row,) = (row for key, row in world.ledger.account().rows if key.reason)
    assert row.candidates == {ALICE, BOB}


def test_a_packet_is_not_divided_where_events_were_lost() -> None:
    world = by_turns((43, 101))
    world.ledger.owners.losses.add(T0, T0 + 99 * MS)
    world.settle(99, final=True)
    assert world.verdicts()[Reason.AMBIGUOUS][0] >= 1
    assert sum(size for _, size in world.verdicts().values()) == 303


def test_a_packet_with_bytes_of_three_is_divided() -> None:
    world = World()
    world.event(0, ALICE, CONNECT, CLIENT)
    world.event(1, ALICE, SEND, CLIENT, ways="sends")
    world.event(2, CAROL, SEND, CLIENT, ways="sends", shared=True, part=(43, 101))
    world.event(3, BOB, SEND, CLIENT, ways="sends", shared=True, part=(47, 101))
    world.packets(4, CLIENT)
    world.event(5, BOB, SEND, CLIENT, ways="sends")
    world.packets(6, CLIENT)
    world.settle(9, final=True)
    assert world.verdicts() == {ALICE: (1, 11), CAROL: (0, 43), BOB: (1, 47 + 101)}


@pytest.mark.parametrize(
    "parts",
    [
        ((43, 101), (47, 97)),  # of two packets
        ((43, 101), (0, 0)),
        ((43, 101), (58, 101)),  # nothing is left for the first one
        ((101, 101), (1, 101)),
    ],
)
def test_parts_that_do_not_make_a_packet_are_nobody_s(
    parts: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    world = World()
    world.event(0, ALICE, CONNECT, CLIENT)
    world.event(1, ALICE, SEND, CLIENT, ways="sends")
    for at_ms, process, part in zip((2, 3), (CAROL, BOB), parts, strict=True):
        world.event(at_ms, process, SEND, CLIENT, ways="sends", shared=True, part=part)
    world.packets(4, CLIENT)
    world.settle(9, final=True)
    assert world.verdicts() == {Reason.AMBIGUOUS: (1, 101)}


def test_a_packet_is_not_divided_among_those_whose_parts_nobody_knows() -> None:
    world = World()
    world.event(0, ALICE, CONNECT, CLIENT)
    world.event(1, ALICE, SEND, CLIENT)
    for process in (BOB, CAROL):
        world.event(2, process, SEND, CLIENT, ways="sends", shared=True)
    world.packets(3, CLIENT)
    world.event(4, CAROL, SEND, CLIENT, ways="sends", shared=True, part=(43, 101))
    world.packets(5, CLIENT)
    world.settle(9, final=True)
    assert world.verdicts() == {Reason.AMBIGUOUS: (2, 202)}


def test_a_packet_is_not_divided_behind_bytes_of_which_nobody_knows_whose_they_are() -> None:
    world = World()
    world.event(0, ALICE, CONNECT, CLIENT)
    world.event(1, ALICE, SEND, CLIENT)
    world.event(2, BOB, SEND, CLIENT, ways="sends", shared=True)
    world.packets(3, CLIENT)
    world.event(4, ALICE, SEND, CLIENT, ways="sends", shared=True, part=(43, 101))
    world.packets(5, CLIENT)
    world.settle(9, final=True)
    assert world.verdicts() == {Reason.AMBIGUOUS: (2, 202)}


def test_what_comes_in_is_not_divided() -> None:
    world = World()
    world.event(0, ALICE, CONNECT, CLIENT)
    world.event(1, ALICE, SEND, CLIENT)
    world.event(2, BOB, SEND, CLIENT, shared=True, part=(43, 101))
    world.packets(3, CLIENT, sent=False)
    world.settle(9, final=True)
    assert world.verdicts() == {Reason.AMBIGUOUS: (1, 101)}


def test_what_is_sent_again_may_be_of_anybody_who_sent_before() -> None:
    world = World()
    world.event(0, ALICE, CONNECT, CLIENT)
    for at_ms, process in ((1, ALICE), (10, CAROL), (20, BOB)):
        world.event(at_ms, process, SEND, CLIENT, ways="sends")
        world.packets(at_ms + 1, CLIENT)
    world.event(30, BOB, SEND, CLIENT, ways="sends", shared=True)
    world.packets(31, CLIENT)
    world.event(40, BOB, SEND, CLIENT, ways="sends")
    world.packets(41, CLIENT)
    world.settle(99, final=True)
    assert world.verdicts() == {
        ALICE: (1, 101), CAROL: (1, 101), BOB: (2, 202), Reason.AMBIGUOUS: (1, 101),
    }  # fmt: skip
    (row,) = (row for key, row in world.ledger.account().rows if key.reason)
    assert row.candidates == {ALICE, BOB, CAROL}


def test_what_is_sent_again_is_not_of_the_one_who_is_still_remembered() -> None:
    world = World()
    world.event(0, BOB, CONNECT, CLIENT)
    world.event(30, BOB, SEND, CLIENT, ways="sends", shared=True)
    world.packets(31, CLIENT)
    world.settle(99, final=True)
    assert world.verdicts() == {Reason.AMBIGUOUS: (1, 101)}


def test_whom_only_a_look_showed_is_not_known_to_have_written_the_rest() -> None:
    world = World()
    world.look(0, (connected(CLIENT), {ALICE, BOB}))
    world.look(10, (connected(CLIENT), {ALICE}))
    world.event(20, BOB, SEND, CLIENT, ways="sends", shared=True, part=(43, 101))
    world.packets(21, CLIENT)
    world.settle(29, final=True)
    assert world.verdicts() == {Reason.AMBIGUOUS: (1, 101)}
