"""Packets that leave later than they were sent, while another process has the socket or port."""

from __future__ import annotations

import pytest

from procnet.model import TCP, EventKind, Reason
from tests.unit.ledger.world import ALICE, BOB, CAROL, World, connected, flow, udp_socket

CONNECTION = flow(TCP, 50021, 80)
CONNECT, ACCEPT, SEND, RECEIVE, CLOSE, INJECT = EventKind


def test_what_waits_when_a_socket_has_a_new_user_is_ambiguous_until_nothing_does() -> None:
    world = World()
    world.event(0, ALICE)
    world.packets(1)
    world.event(2, BOB, shared=True)
    world.packets(3)
    world.event(4, CAROL, shared=True)
    world.packets(5)
    world.event(6, BOB)
    world.packets(7)
    world.settle(8, final=True)
    assert world.verdicts() == {ALICE: (1, 101), BOB: (1, 101), Reason.AMBIGUOUS: (2, 202)}


def test_who_shares_with_somebody_unknown_is_not_named() -> None:
    world = World()
    world.event(0, BOB, shared=True)
    world.packets(1)
    world.settle(2, final=True)
    assert world.verdicts() == {Reason.AMBIGUOUS: (1, 101)}


def test_what_a_closed_socket_had_queued_is_its_own_if_nobody_takes_the_port() -> None:
    world = World()
    world.event(0, ALICE)
    world.event(1, ALICE, CLOSE, shared=True)
    world.packets(9000)
    world.settle(9001, final=True)
    assert world.verdicts() == {ALICE: (1, 101)}


@pytest.mark.parametrize("shared", [True, False])
def test_who_takes_the_port_of_a_closed_socket_is_not_named_for_what_it_had_queued(
    shared: bool,
) -> None:
    world = World()
    world.event(0, ALICE)
    world.event(1, ALICE, CLOSE, shared=shared)
    world.event(2, BOB, inode=7002)
    world.packets(3)
    world.packets(4, sent=False)
    world.packets(10_002)
    world.settle(10_003, final=True)
    if shared:
        # What comes in, and what leaves ten seconds later, is not in doubt.
        assert world.verdicts() == {Reason.AMBIGUOUS: (1, 101), BOB: (2, 202)}
    else:
        assert world.verdicts() == {BOB: (3, 303)}


def test_who_takes_the_port_says_when_nothing_of_the_closed_socket_waits_any_more() -> None:
    world = World()
    world.event(0, ALICE)
    world.event(1, ALICE, CLOSE, shared=True)
    world.event(2, BOB, inode=7002)
    world.packets(3)
    world.event(4, BOB, inode=7002, left=True)
    world.packets(5)
    world.settle(6, final=True)
    assert world.verdicts() == {Reason.AMBIGUOUS: (1, 101), BOB: (1, 101)}


def test_who_only_holds_the_port_of_a_closed_socket_is_not_named_either() -> None:
    world = World()
    world.event(0, ALICE)
    world.event(1, ALICE, CLOSE, shared=True)
    holds = udp_socket(7002), {BOB}
    world.look(100, holds)
    world.look(1100, holds)
    world.packets(1500)
    world.look(2100, holds)
    world.look(3100, holds)
    world.settle(3200)
    assert world.verdicts() == {Reason.AMBIGUOUS: (1, 101)}


def test_the_same_process_may_take_its_port_again() -> None:
    world = World()
    world.event(0, ALICE)
    world.event(1, ALICE, CLOSE, shared=True)
    world.event(2, ALICE, inode=7002)
    world.packets(3)
    world.settle(4, final=True)
    assert world.verdicts() == {ALICE: (1, 101)}


def test_what_came_in_before_the_close_is_for_who_had_the_socket() -> None:
    world = World()
    world.event(0, ALICE)
    world.packets(1, sent=False)
    world.event(2, ALICE, CLOSE, shared=True)
    world.packets(3, sent=False)
    world.settle(4, final=True)
    assert world.verdicts() == {ALICE: (1, 101), Reason.NO_SOCKET: (1, 101)}


@pytest.mark.parametrize("shared", [True, False])
def test_the_next_user_of_a_socket_says_whether_the_one_who_let_go_has_left_anything(
    shared: bool,
) -> None:
    world = World()
    world.event(0, ALICE)
    world.look(50, (udp_socket(), {BOB}))
    world.packets(55)
    world.event(60, BOB, shared=shared)
    world.packets(61)
    world.settle(62, final=True)
    ambiguous, named = ((2, 202), {}) if shared else ((1, 101), {BOB: (1, 101)})
    assert world.verdicts() == {Reason.AMBIGUOUS: ambiguous, **named}


def test_the_slack_of_the_clocks_does_not_bring_back_who_has_left_nothing() -> None:
    world = World()
    world.event(0, ALICE)
    world.look(50, (udp_socket(), {BOB}))
    world.event(60, BOB)
    world.packets(60.01)
    world.settle(61)
    assert world.verdicts() == {BOB: (1, 101)}


def connected_again() -> World:
    """A connection has been closed, and the next one has another user."""
    world = World()
    world.event(0, ALICE, CONNECT, CONNECTION)
    world.packets(0.1, CONNECTION, opens=True)
    world.packets(0.2, CONNECTION, sent=False)
    world.event(1, ALICE, CLOSE, CONNECTION)
    world.event(2, BOB, CONNECT, CONNECTION, inode=7002)
    return world


def test_packets_ahead_of_a_syn_are_of_the_connection_before() -> None:
    world = connected_again()
    world.packets(3, CONNECTION)
    world.packets(4, CONNECTION, opens=True)
    world.packets(5, CONNECTION)
    world.settle(6, final=True)
    assert world.verdicts() == {ALICE: (3, 303), BOB: (2, 202)}


def test_until_its_syn_was_seen_nobody_knows_whether_a_packet_is_of_the_next_connection() -> None:
    world = connected_again()
    world.packets(3, CONNECTION)
    world.settle(4)
    assert world.verdicts()[Reason.PENDING] == (2, 202)
    world.settle(5, final=True)
    assert world.verdicts() == {ALICE: (2, 202), Reason.AMBIGUOUS: (1, 101)}


def test_a_syn_that_was_never_answered_opens_nothing_for_the_next_process() -> None:
    world = World()
    world.event(0, ALICE, CONNECT, CONNECTION)
    world.packets(0.1, CONNECTION, opens=True)
    world.event(1, ALICE, CLOSE, CONNECTION)
    world.event(2, BOB, CONNECT, CONNECTION, inode=7002)
    world.packets(2.1, CONNECTION, opens=True)
    world.packets(3, CONNECTION, sent=False)
    world.look(4, (connected(CONNECTION, 7002), {BOB}))
    world.settle(5, final=True)
    assert world.verdicts() == {ALICE: (1, 101), BOB: (2, 202)}
