"""Owners that were only looked at: what lies between two looks is believed with care."""

import pytest

from procnet.ledger.endpoints import MAX_CLAIMS
from procnet.ledger.ledger import MAX_UNACCEPTED
from procnet.model import TCP, UDP, EventKind, Evidence, ProcessId, Reason, Socket
from tests.unit.ledger.world import (
    ALICE,
    BOB,
    CAROL,
    HERE,
    MS,
    T0,
    World,
    connected,
    flow,
    listener,
    udp_socket,
)

TCP_FLOW = flow(TCP, 40009, 443)
SERVER = flow(TCP, 80, 50021)


def test_packets_between_two_looks_at_the_same_socket_are_its_holders() -> None:
    world = World()
    world.look(0, (udp_socket(), {ALICE}))
    world.packets(50, number=1009)
    world.settle(60)
    assert world.verdicts() == {Reason.PENDING: (1009, 101)}
    world.look(100, (udp_socket(), {ALICE}))
    world.settle(110)
    assert world.verdicts() == {ALICE: (1009, 101)}


def test_a_new_flow_is_its_first_holders_after_a_second_look() -> None:
    world = World()
    world.look(0)
    world.packets(10)
    world.settle(20)
    assert world.ledger.has_unknown
    world.look(30, (udp_socket(), {ALICE}))
    world.settle(40)
    assert world.verdicts() == {Reason.PENDING: (1, 101)}
    assert not world.ledger.has_unknown
    world.look(1000, (udp_socket(), {ALICE}))
    world.settle(1010)
    assert world.verdicts() == {ALICE: (1, 101)}


def test_a_socket_that_is_gone_at_the_second_look_keeps_its_bytes_if_nobody_took_it() -> None:
    world = World()
    world.look(0)
    world.packets(10)
    world.look(30, (udp_socket(), {ALICE}))
    world.look(1000)
    world.settle(1010)
    assert world.verdicts() == {ALICE: (1, 101)}


def test_a_port_that_changes_hands_between_looks_names_nobody() -> None:
    world = World()
    world.look(0)
    for turn in range(20):
        world.packets(5 * turn + 1)
    world.look(100, (udp_socket(7001), {ALICE}))
    for turn in range(20):
        world.packets(5 * turn + 103)
    world.look(200, (udp_socket(7003), {BOB}))
    world.look(300, (udp_socket(7003), {BOB}))
    world.settle(310)
    assert world.verdicts() == {Reason.AMBIGUOUS: (40, 4040)}


def test_a_process_is_never_named_for_packets_older_than_itself() -> None:
    world = World()
    young = ProcessId(4001, 1_000_050 * MS)
    world.look(0)
    world.packets(10)
    world.look(60, (udp_socket(), {young}))
    world.look(100, (udp_socket(), {young}))
    world.settle(110)
    assert world.verdicts() == {Reason.NO_SOCKET: (1, 101)}


def test_a_shared_socket_is_ambiguous_and_lists_its_holders() -> None:
    world = World()
    world.look(0, (udp_socket(), {ALICE, BOB}))
    world.packets(10)
    world.look(100, (udp_socket(), {ALICE, BOB}))
    world.settle(110)
    assert world.verdicts() == {Reason.AMBIGUOUS: (1, 101)}
    ((_, row),) = world.ledger.account().rows
    assert row.candidates == {ALICE, BOB}


def test_a_socket_that_becomes_shared_is_ambiguous_from_the_look_before() -> None:
    world = World()
    world.look(0, (udp_socket(), {ALICE}))
    world.packets(10, payload=11)
    world.look(100, (udp_socket(), {ALICE}))
    world.packets(150, payload=13)
    world.look(200, (udp_socket(), {ALICE, BOB}))
    world.packets(250, payload=17)
    world.look(300, (udp_socket(), {ALICE, BOB}))
    world.settle(310)
    assert world.verdicts() == {ALICE: (1, 11), Reason.AMBIGUOUS: (2, 30)}


def test_two_sockets_on_one_port_are_ambiguous() -> None:
    world = World()
    sockets = ((udp_socket(7001), {ALICE}), (udp_socket(7003), {BOB}))
    world.look(0, *sockets)
    world.packets(10)
    world.look(100, *sockets)
    world.settle(110)
    assert world.verdicts() == {Reason.AMBIGUOUS: (1, 101)}


def test_a_connected_socket_beats_a_wildcard_one_on_the_same_port() -> None:
    world = World()
    sockets = ((udp_socket(7001), {ALICE}), (connected(flow(), 7003), {BOB}))
    world.look(0, *sockets)
    world.packets(10, payload=11, sent=False)
    world.packets(20, flow(UDP, 4001, 59), payload=13, sent=False)
    world.packets(30, payload=17)
    world.look(100, *sockets)
    world.settle(110)
    assert world.verdicts() == {BOB: (1, 11), ALICE: (1, 13), Reason.AMBIGUOUS: (1, 17)}


def test_a_socket_of_the_packets_family_beats_a_dual_stack_one() -> None:
    world = World()
    sockets = ((udp_socket(7001, local="::"), {ALICE}), (udp_socket(7003), {BOB}))
    world.look(0, *sockets)
    world.packets(10, payload=11, sent=False)
    world.look(100, *sockets)
    world.settle(110)
    assert world.verdicts() == {BOB: (1, 11)}


def test_packets_before_accept_are_the_listeners() -> None:
    world = World()
    world.look(0, (listener(80), {ALICE}))
    world.packets(10, SERVER, sent=False, opens=True, payload=0)
    world.settle(20)
    world.look(100, (listener(80), {ALICE}))
    world.look(200, (listener(80), {ALICE}))
    world.settle(210)
    assert world.verdicts() == {ALICE: (1, 0)}
    ((_, row),) = world.ledger.account().rows
    assert row.evidence is Evidence.LISTENER


def test_what_a_listener_of_two_answers_waits_for_who_accepts() -> None:
    world = World()
    shared = (listener(80), {ALICE, BOB})
    world.look(0, shared)
    world.packets(10, SERVER, sent=False, opens=True, payload=0)
    world.packets(10.5, SERVER, number=2, payload=0)
    for at_ms in (100, 200, 3000):
        world.look(at_ms, shared)
        world.settle(at_ms + 10)
        assert world.verdicts() == {Reason.PENDING: (3, 0)}
    world.event(4000, BOB, EventKind.ACCEPT, SERVER, inode=7003)
    world.look(4100, shared, (connected(SERVER, 7003), {BOB}))
    world.settle(4110)
    assert world.verdicts() == {BOB: (3, 0)}


def test_if_nobody_accepts_it_is_one_of_those_who_listen() -> None:
    world = World()
    shared = (listener(80), {ALICE, BOB})
    world.look(0, shared)
    world.packets(10, SERVER, payload=0)
    world.look(100, shared)
    world.look(200, shared)
    world.settle(5010)
    assert world.verdicts() == {Reason.PENDING: (1, 0)}
    world.settle(5011)
    assert world.verdicts() == {Reason.AMBIGUOUS: (1, 0)}


def test_what_a_flood_of_syns_is_answered_does_not_pile_up() -> None:
    world = World()
    shared = (listener(80), {ALICE, BOB})
    world.look(0, shared)
    for port in range(MAX_UNACCEPTED + 1009):
        world.packets(10, flow(TCP, 80, port), payload=0)
    world.look(100, shared)
    world.look(200, shared)
    world.settle(210)
    assert world.verdicts() == {
        Reason.PENDING: (MAX_UNACCEPTED, 0),
        Reason.AMBIGUOUS: (1009, 0),
    }


def test_a_listener_says_nothing_of_udp_or_of_other_ports() -> None:
    world = World()
    world.look(0, (listener(80), {ALICE}))
    world.packets(10, flow(UDP, 80, 50021))
    world.packets(10, flow(TCP, 81, 50021))
    world.settle(20, final=True)
    assert world.verdicts() == {Reason.NO_SOCKET: (2, 202)}


def test_a_connection_that_was_seen_once_owns_all_since_its_syn() -> None:
    world = World()
    world.look(0)
    world.packets(10, TCP_FLOW, opens=True)
    world.packets(20, TCP_FLOW, payload=499)
    world.look(30, (connected(TCP_FLOW), {ALICE}))
    world.packets(40, TCP_FLOW, payload=503)
    world.look(1000)
    world.packets(1001, TCP_FLOW, sent=False, payload=0)
    world.look(2000)
    world.settle(2010, final=True)
    assert world.verdicts() == {ALICE: (4, 1103)}


def test_a_later_connection_with_the_same_five_tuple_is_not_the_earlier_ones() -> None:
    world = World()
    world.look(0)
    world.packets(10, TCP_FLOW, opens=True)
    world.packets(11, TCP_FLOW, sent=False)
    world.look(30, (connected(TCP_FLOW), {ALICE}))
    world.packets(40, TCP_FLOW, opens=True, payload=0)
    world.packets(41, TCP_FLOW, payload=499)
    world.look(100)
    world.look(200)
    world.settle(210)
    assert world.verdicts() == {ALICE: (2, 202), Reason.NO_SOCKET: (2, 499)}


def test_a_raw_icmp_socket_is_not_blamed_for_what_the_kernel_answers() -> None:
    world = World()
    raw = udp_socket()._replace(protocol=1, local_port=0)
    world.look(0, (raw, {ALICE}))
    world.packets(10, flow(1, 0, 0))
    world.look(100, (raw, {ALICE}))
    world.settle(110, final=True)
    assert world.verdicts() == {Reason.NO_SOCKET: (1, 101)}


def test_a_raw_socket_of_a_protocol_that_the_kernel_does_not_speak_owns_it() -> None:
    world = World()
    raw = udp_socket()._replace(protocol=253, local_port=0)
    world.look(0, (raw, {ALICE}))
    world.packets(10, flow(253, 0, 0))
    world.look(100, (raw, {ALICE}))
    world.settle(110)
    assert world.verdicts() == {ALICE: (1, 101)}


def test_without_any_socket_there_is_no_owner() -> None:
    world = World()
    world.packets(10)
    world.look(20)
    world.look(30)
    world.settle(40)
    assert world.verdicts() == {Reason.NO_SOCKET: (1, 101)}


def test_a_child_that_came_and_went_between_two_looks_may_have_been_it() -> None:
    world = World()
    world.look(0, (udp_socket(), {ALICE}))
    world.packets(50, payload=11)
    world.look(100, (udp_socket(), {ALICE}))
    world.packets(150, payload=13)
    world.look(200, (udp_socket(), {ALICE}), forked=frozenset((ALICE,)))
    world.packets(250, payload=17)
    world.look(300, (udp_socket(), {ALICE}))
    world.look(400, (udp_socket(), {ALICE}))
    world.settle(410)
    assert world.verdicts() == {ALICE: (2, 28), Reason.AMBIGUOUS: (1, 13)}


def test_of_many_such_looks_none_is_believed() -> None:
    world = World()
    world.look(0, (udp_socket(), {ALICE}))
    world.packets(50, payload=11)
    for number in range(1, 2 * MAX_CLAIMS):
        world.look(100 * number, (udp_socket(), {ALICE}), forked=frozenset((ALICE,)))
    world.look(200 * MAX_CLAIMS, (udp_socket(), {ALICE}))
    world.settle(200 * MAX_CLAIMS + 10, final=True)
    assert world.verdicts() == {Reason.AMBIGUOUS: (1, 11)}


LEFT_BEHIND = frozenset((7001,))


def test_what_somebody_left_in_the_queue_is_nobody_s_until_it_has_left() -> None:
    world = World()
    both = (connected(TCP_FLOW), {ALICE, BOB})
    alone = (connected(TCP_FLOW), {ALICE})
    world.look(0, alone)
    world.look(100, both)
    world.packets(150, TCP_FLOW, payload=5)
    world.look(200, alone, left_behind=LEFT_BEHIND)
    for at_ms in (250, 350):
        world.packets(at_ms, TCP_FLOW, payload=11)
        # What is acknowledged goes with it, and what comes in does not.
        world.packets(at_ms + 1, TCP_FLOW, sent=False, payload=0)
        world.packets(at_ms + 2, TCP_FLOW, sent=False, payload=1009)
        world.packets(at_ms + 3, TCP_FLOW, payload=0)
        world.look(at_ms + 50, alone, left_behind=LEFT_BEHIND)
    world.look(500, alone)
    world.packets(550, TCP_FLOW, payload=17)
    world.look(600, alone)
    world.settle(610, final=True)
    assert world.verdicts() == {
        ALICE: (4 + 1, 2 * 1009 + 17),
        Reason.AMBIGUOUS: (1 + 4, 5 + 2 * 11),
    }


def test_of_a_closed_socket_what_was_left_in_the_queue_still_leaves() -> None:
    world = World()
    alone = (connected(TCP_FLOW), {ALICE})
    world.look(0, alone)
    world.look(100, alone, left_behind=LEFT_BEHIND)
    world.look(200)
    world.packets(250, TCP_FLOW, payload=11)
    world.packets(251, TCP_FLOW, sent=False, payload=13)
    world.look(300)
    world.settle(310, final=True)
    assert world.verdicts() == {ALICE: (1, 13), Reason.AMBIGUOUS: (1, 11)}


def test_what_was_left_in_the_queue_is_another_flow_s_own_matter() -> None:
    world = World()
    other = flow(TCP, 40013, 443)
    for at_ms in (0, 200):
        world.look(
            at_ms, (connected(TCP_FLOW), {ALICE}), (connected(other, 7002), {ALICE}),
            left_behind=LEFT_BEHIND,
        )  # fmt: skip
        world.packets(at_ms + 50, other, payload=11)
    world.look(300, (connected(TCP_FLOW), {ALICE}), (connected(other, 7002), {ALICE}))
    world.settle(310)
    assert world.verdicts() == {ALICE: (2, 22)}


def test_an_event_says_who_wrote_whatever_was_left_in_the_queue() -> None:
    world = World()
    alone = (connected(TCP_FLOW), {ALICE})
    world.look(0, alone, left_behind=LEFT_BEHIND)
    world.event(50, ALICE, EventKind.SEND, TCP_FLOW)
    world.packets(60, TCP_FLOW, payload=11)
    world.look(100, alone, left_behind=LEFT_BEHIND)
    world.settle(110)
    assert world.verdicts() == {ALICE: (1, 11)}


def test_times_of_queues_move_with_the_clock_and_are_forgotten() -> None:
    world = World()
    alone = (connected(TCP_FLOW), {ALICE})
    world.look(0, alone)
    world.look(100, alone, left_behind=LEFT_BEHIND)
    leftovers = world.ledger.owners.leftovers
    count = world.packets(150, TCP_FLOW, payload=11)
    assert leftovers.hit(count)
    world.ledger.set_clock(3_600_000 * MS)
    assert not leftovers.hit(count)
    moved = count._replace(
        first_ns=count.first_ns + 3_600_000 * MS, last_ns=count.last_ns + 3_600_000 * MS
    )
    assert leftovers.hit(moved)
    world.look(3_600_200, alone)
    assert leftovers.hit(moved)
    leftovers.forget(moved.last_ns + 70_000 * MS)
    assert not leftovers.hit(moved)


def evidence_of(world: World) -> set[Evidence | None]:
    return {row.evidence for key, row in world.ledger.account().rows}


def test_what_a_look_founds_has_the_evidence_of_that_look() -> None:
    for evidence in (Evidence.KERNEL_SNAPSHOT, Evidence.SOCKET_SCAN):
        world = World()
        world.look(0, (udp_socket(), {ALICE}), evidence=evidence)
        world.packets(50)
        world.look(100, (udp_socket(), {ALICE}), evidence=evidence)
        world.settle(110)
        assert world.verdicts() == {ALICE: (1, 101)}
        assert evidence_of(world) == {evidence}


def test_who_listens_is_the_listener_by_any_look() -> None:
    world = World()
    for at_ms, evidence in ((0, Evidence.KERNEL_SNAPSHOT), (100, Evidence.SOCKET_SCAN)):
        world.look(at_ms, (listener(80), {ALICE}), evidence=evidence)
        world.packets(at_ms + 50, SERVER, sent=False)
    world.look(200, (listener(80), {ALICE}))
    world.settle(210, final=True)
    assert world.verdicts() == {ALICE: (2, 202)}
    assert evidence_of(world) == {Evidence.LISTENER}


def test_a_weaker_look_does_not_confirm_a_better_one() -> None:
    world = World()
    world.look(0, (udp_socket(), {ALICE}), evidence=Evidence.KERNEL_SNAPSHOT)
    for at_ms in (100, 200):
        world.look(at_ms, (udp_socket(), {ALICE}), evidence=Evidence.SOCKET_SCAN)
    world.packets(250)
    world.look(300, (udp_socket(), {ALICE}), evidence=Evidence.SOCKET_SCAN)
    world.settle(310)
    assert world.verdicts() == {ALICE: (1, 101)}
    assert evidence_of(world) == {Evidence.SOCKET_SCAN}


REACHED = frozenset((ALICE,))


def looks_at_a_new_socket(world: World, *before: tuple[Socket, set[ProcessId]]) -> None:
    """Packets before and after the look that shows it first; its holder has a Unix socket."""
    key = connected(SERVER)
    world.look(0, *before, reached=REACHED)
    world.packets(50, SERVER, payload=11)
    world.look(100, *before, (key, {ALICE}), reached=REACHED)
    world.packets(150, SERVER, payload=13)
    world.look(200, *before, (key, {ALICE}), reached=REACHED)
    world.settle(210)


def test_a_new_socket_may_have_been_another_s_who_passed_it_on() -> None:
    world = World()
    looks_at_a_new_socket(world)
    assert world.verdicts() == {ALICE: (1, 13), Reason.AMBIGUOUS: (1, 11)}


def test_a_connection_has_been_accepted_by_who_alone_listens_there() -> None:
    world = World()
    looks_at_a_new_socket(world, (listener(80, 7003), {ALICE}))
    assert world.verdicts() == {ALICE: (2, 24)}


@pytest.mark.parametrize("listening", [{BOB}, {ALICE, BOB}])
def test_whoever_else_listens_there_may_have_accepted_it(listening: set[ProcessId]) -> None:
    world = World()
    looks_at_a_new_socket(world, (listener(80, 7003), listening))
    assert world.verdicts() == {ALICE: (1, 13), Reason.AMBIGUOUS: (1, 11)}
    world = World()
    both = (listener(80, 7003), {ALICE}), (listener(80, 7009, HERE), listening)
    looks_at_a_new_socket(world, *both)
    assert world.verdicts() == {ALICE: (1, 13), Reason.AMBIGUOUS: (1, 11)}


def test_who_listened_there_until_now_may_have_accepted_it() -> None:
    world = World()
    listens = listener(80, 7003)
    world.look(0, (listens, {BOB}), reached=REACHED)
    world.packets(50, SERVER, payload=11)
    world.look(100, (listens, {ALICE}), (connected(SERVER, 7009), {ALICE}), reached=REACHED)
    world.look(200, (listens, {ALICE}), (connected(SERVER, 7009), {ALICE}), reached=REACHED)
    world.settle(210)
    assert world.verdicts() == {Reason.AMBIGUOUS: (1, 11)}


def test_a_listener_that_is_new_itself_may_have_been_passed_too() -> None:
    world = World()
    both = (connected(SERVER, 7009), {ALICE}), (listener(80, 7003), {ALICE})
    world.look(0, reached=REACHED)
    world.packets(50, SERVER, payload=11)
    for at_ms in (100, 200):
        world.look(at_ms, *both, reached=REACHED)
    world.settle(210)
    assert world.verdicts() == {Reason.AMBIGUOUS: (1, 11)}


def test_a_socket_that_the_look_before_has_shown_was_passed_by_nobody() -> None:
    world = World()
    world.look(0, (udp_socket(), {ALICE}), reached=REACHED)
    world.packets(50, payload=11)
    # It is connected now, and has a tuple of its own.
    for at_ms in (100, 200):
        world.look(at_ms, (connected(flow()), {ALICE}), reached=REACHED)
    world.settle(210)
    assert world.verdicts() == {ALICE: (1, 11)}


def test_into_a_process_that_is_not_reached_nothing_was_passed() -> None:
    world = World()
    world.look(0, reached=REACHED)
    world.packets(50, payload=11)
    for at_ms in (100, 200):
        world.look(at_ms, (udp_socket(), {BOB}), reached=REACHED)
    world.settle(210)
    assert world.verdicts() == {BOB: (1, 11)}


def test_who_accepted_last_where_nobody_listens_any_more_nobody_saw() -> None:
    world = World()
    world.look(0, (listener(80), {ALICE}))
    world.packets(50, SERVER, sent=False, payload=11)
    world.look(100, (listener(80), {ALICE}))
    world.packets(150, SERVER, sent=False, payload=13)
    world.look(200)
    world.settle(210, final=True)
    assert world.verdicts() == {ALICE: (1, 11), Reason.AMBIGUOUS: (1, 13)}


@pytest.mark.parametrize(
    ("forked", "whose"), [(frozenset(), ALICE), (REACHED, Reason.AMBIGUOUS), (None, ALICE)]
)
def test_a_child_may_have_used_a_socket_that_is_closed_since(
    forked: frozenset[ProcessId] | None, whose: object
) -> None:
    world = World()
    world.look(0, (udp_socket(), {ALICE}))
    world.packets(50, payload=11)
    world.look(100, forked=forked)
    world.settle(110, final=True)
    assert world.verdicts() == {whose: (1, 11)}


def test_where_every_accept_is_told_the_rest_is_the_listeners() -> None:
    world = World()
    world.look(0, (listener(80), {ALICE}), forked=None)
    world.packets(50, SERVER, sent=False, payload=11)
    world.look(100, forked=None)
    world.settle(110, final=True)
    assert world.verdicts() == {ALICE: (1, 11)}


def test_a_raw_socket_that_may_have_been_there_does_not_say_who_took_the_packet() -> None:
    key = flow(253, 0, 0)
    raw = udp_socket(port=0)._replace(protocol=253)
    world = World()
    world.look(0)
    world.packets(50, key, sent=False, payload=11)
    world.look(100, (raw, {ALICE}))
    world.packets(150, key, sent=False, payload=13)
    world.look(200, (raw, {ALICE}))
    world.settle(210, final=True)
    assert world.verdicts() == {ALICE: (1, 13), Reason.AMBIGUOUS: (1, 11)}


def test_of_raw_sockets_those_that_took_a_copy_have_it() -> None:
    """Whoever is between socket() and bind() when somebody looks is at every address."""
    key = flow(253, 0, 0)
    unbound = udp_socket(7003, port=0)._replace(protocol=253)
    other = unbound._replace(inode=7007)
    world = World()
    world.look(0, (unbound, {BOB}))
    world.look(100, (unbound, {BOB}), (other, {CAROL}))  # and so that address is contested
    world.packets(150, key, sent=False, payload=11)
    world.event(151, ALICE, EventKind.RECEIVE, flow(253, 0, 0, remote=""))
    world.look(200, (unbound, {BOB}))
    world.look(300, (unbound, {BOB}))
    world.settle(310, final=True)
    assert world.verdicts() == {ALICE: (1, 11)}


def test_of_raw_sockets_that_took_a_copy_nobody_knows_who_is_meant() -> None:
    key, here = flow(253, 0, 0), flow(253, 0, 0, remote="")
    world = World()
    world.look(0)
    world.packets(50, key, sent=False, payload=11)
    world.event(51, ALICE, EventKind.RECEIVE, here)
    world.event(52, BOB, EventKind.RECEIVE, here._replace(local_address=bytes(4)), inode=7003)
    world.settle(310, final=True)
    assert world.verdicts() == {Reason.AMBIGUOUS: (1, 11)}


def test_of_raw_sockets_that_took_turns_the_one_before_may_have_had_it() -> None:
    key = flow(253, 0, 0)
    here = udp_socket(7003, port=0, local="10.0.0.1")._replace(protocol=253)
    world = World()
    world.look(0)
    world.look(100, (here, {BOB}))
    world.packets(150, key, sent=False, payload=11)
    world.event(160, ALICE, EventKind.RECEIVE, flow(253, 0, 0, remote=""))
    world.look(200, (here._replace(inode=7007), {CAROL}))
    world.settle(310, final=True)
    assert world.verdicts() == {Reason.AMBIGUOUS: (1, 11)}


def test_where_a_raw_socket_s_taker_may_not_have_been_told_nobody_is_named() -> None:
    key = flow(253, 0, 0)
    unbound = udp_socket(7003, port=0)._replace(protocol=253)
    world = World()
    world.look(0, (unbound, {BOB}))
    world.packets(50, key, sent=False, payload=11)
    world.event(51, ALICE, EventKind.RECEIVE, flow(253, 0, 0, remote=""))
    world.ledger.owners.losses.add(T0 + 40 * MS, T0 + 60 * MS)
    world.look(100, (unbound, {BOB}))
    world.settle(310, final=True)
    assert world.verdicts() == {Reason.AMBIGUOUS: (1, 11)}
