"""Sockets that share an endpoint, and processes that share a socket: nobody is named by guess."""

from procnet.ledger.endpoints import MAX_CLAIMS
from procnet.ledger.owners import OwnerTable
from procnet.model import TCP, UDP, EventKind, OwnerEvent, ProcessId, Reason
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

WILD = flow()._replace(local_address=bytes(4))
SERVER = flow(TCP, 80, 50021)


def test_a_datagram_that_another_reads_later_is_not_the_last_readers() -> None:
    world = World()
    world.event(0, ALICE, EventKind.RECEIVE)
    world.packets(10, sent=False)
    world.settle(11)
    assert world.verdicts() == {Reason.PENDING: (1, 101)}
    world.event(20, BOB, EventKind.RECEIVE)
    world.look(30, (udp_socket(), {ALICE, BOB}))
    world.look(40, (udp_socket(), {ALICE, BOB}))
    world.settle(50)
    assert world.verdicts() == {Reason.PENDING: (1, 101)}  # who takes it may still be told
    world.look(6000, (udp_socket(), {ALICE, BOB}))
    world.settle(6010)
    assert world.verdicts() == {Reason.AMBIGUOUS: (1, 101)}


def test_a_datagram_for_one_socket_is_not_of_another_that_sent_to_the_same_remote() -> None:
    world = World()
    world.event(0, ALICE, key=WILD, inode=7001)
    world.packets(10, sent=False)
    world.settle(11)
    world.event(20, BOB, EventKind.RECEIVE, inode=7003)
    world.settle(21, final=True)
    assert world.verdicts() == {BOB: (1, 101)}


def test_what_two_sockets_sent_with_one_tuple_is_ambiguous() -> None:
    world = World()
    world.event(0, ALICE, inode=7001)
    world.event(1, BOB, key=WILD, inode=7003)
    world.packets(10)
    world.settle(20, final=True)
    assert world.verdicts() == {Reason.AMBIGUOUS: (1, 101)}


def test_a_second_socket_that_came_between_two_looks_may_have_sent_it() -> None:
    world = World()
    world.look(0, (udp_socket(7001), {ALICE}))
    world.packets(50)
    world.look(100, (udp_socket(7001), {ALICE}), (udp_socket(7003), {BOB}))
    world.look(200, (udp_socket(7001), {ALICE}), (udp_socket(7003), {BOB}))
    world.settle(210, final=True)
    assert world.verdicts() == {Reason.AMBIGUOUS: (1, 101)}


def test_a_datagram_to_a_port_that_was_closed_is_nobodys() -> None:
    world = World()
    world.event(0, ALICE)
    world.event(10, ALICE, EventKind.CLOSE, key=flow()._replace(remote_address=b"", remote_port=0))
    world.packets(50, sent=False)
    world.settle(60, final=True)
    assert world.verdicts() == {Reason.NO_SOCKET: (1, 101)}


def test_a_socket_is_not_blamed_for_what_came_before_the_look_that_did_not_show_it() -> None:
    world = World()
    world.packets(0, sent=False)
    world.look(10)
    world.event(20, ALICE, EventKind.RECEIVE)
    world.settle(30, final=True)
    assert world.verdicts() == {Reason.NO_SOCKET: (1, 101)}


def test_a_connection_that_was_accepted_and_never_used_ends_with_its_close() -> None:
    world = World()
    world.event(0, ALICE, EventKind.ACCEPT, SERVER, inode=0)
    world.event(10, ALICE, EventKind.CLOSE, SERVER, inode=9001)
    world.packets(5000, SERVER, sent=False, opens=True, payload=0)
    world.packets(5001, SERVER, sent=False, payload=499)
    world.settle(5002, final=True)
    assert world.verdicts() == {Reason.NO_SOCKET: (2, 499)}


def test_a_syn_of_the_other_side_is_another_connection() -> None:
    world = World()
    world.event(0, ALICE, EventKind.CONNECT, SERVER)
    world.packets(1, SERVER, opens=True, payload=0)
    world.event(10, ALICE, EventKind.CLOSE, SERVER)
    world.packets(50, SERVER, sent=False, opens=True, payload=0)
    world.packets(51, SERVER)
    world.look(52, (listener(80, 7009), {BOB}))
    world.settle(60, final=True)
    assert world.verdicts() == {ALICE: (1, 0), BOB: (2, 101)}


def test_who_had_the_socket_before_its_holder_was_born_is_unknown_and_not_the_one_before() -> None:
    world = World()
    young = ProcessId(4001, 1_000_050 * MS)
    world.look(0, (udp_socket(7001, local="10.0.0.1"), {ALICE}))
    world.packets(10, sent=False)
    world.look(60, (udp_socket(7003), {young}))
    world.look(100, (udp_socket(7003), {young}))
    world.settle(110, final=True)
    assert world.verdicts() == {Reason.AMBIGUOUS: (1, 101)}


def test_a_look_that_began_before_an_event_does_not_contradict_it() -> None:
    world = World()
    world.look(0, (udp_socket(), {ALICE}))
    world.event(50.5, BOB)
    world.look(50, (udp_socket(), {ALICE, ProcessId(3, 0)}))
    world.packets(60)
    world.settle(70, final=True)
    assert world.verdicts() == {BOB: (1, 101)}


def test_when_the_clock_is_set_back_the_sockets_keep_their_owners() -> None:
    world = World()
    world.event(10_000, ALICE, inode=7001)
    world.look(10_001, (udp_socket(7001), {ALICE}), (connected(SERVER, 7005), {BOB}))
    world.settle(10_002)
    world.ledger.set_clock(-9_000 * MS)
    world.packets(1_010, payload=11)
    world.packets(1_011, SERVER, payload=13)
    world.look(1_020, (udp_socket(7001), {ALICE}), (connected(SERVER, 7005), {BOB}))
    world.settle(1_030, final=True)
    assert world.verdicts() == {ALICE: (1, 11), BOB: (1, 13)}


def test_a_full_table_lets_go_of_closed_sockets_first_and_of_all_that_points_to_them() -> None:
    owners = OwnerTable(max_endpoints=10)

    def tell(port: int, kind: EventKind) -> None:
        key = flow(UDP, port)
        owners.observe([OwnerEvent(port, kind, *key, 7000 + port, ALICE, "a", 0, 0, False)])

    for port in range(1, 31):
        tell(port, EventKind.SEND)
        if port > 8:
            tell(port, EventKind.CLOSE)
    assert owners.is_crowded
    owners.forget(100)
    assert not owners.is_crowded
    assert all(list(owners.claims(flow(UDP, port))) for port in range(1, 9)), "open ones stay"
    assert len(owners._by_inode) <= 10 and len(owners.losses) <= 10


def test_closed_sockets_have_half_of_the_table() -> None:
    owners = OwnerTable(max_endpoints=10)
    for port in range(1, 10):
        key = flow(UDP, port)
        for kind in (EventKind.SEND, EventKind.CLOSE)[: 1 + (port > 2)]:
            owners.observe([OwnerEvent(port, kind, *key, 7000 + port, ALICE, "a", 0, 0, False)])
    owners.forget(100)
    left = [port for port in range(1, 10) if list(owners.claims(flow(UDP, port)))]
    assert left == [1, 2, 5, 6, 7, 8, 9]
    assert owners.evicted_endpoints == 2


def test_a_socket_whose_endpoint_was_let_go_is_found_again_by_the_next_look() -> None:
    world = World()
    world.ledger.owners._max_endpoints = 1
    sockets = ((udp_socket(7001), {ALICE}), (udp_socket(7003, port=4002), {BOB}))
    world.look(0, *sockets)
    world.ledger.owners.forget(0)
    world.ledger.owners._max_endpoints = 10
    world.look(10, *sockets)
    world.look(20, *sockets)
    world.packets(30)
    world.look(40, *sockets)
    world.settle(50, final=True)
    assert world.verdicts() == {ALICE: (1, 101)}


def test_what_moved_while_events_were_lost_is_nobodys_for_sure() -> None:
    world = World()
    world.event(0, ALICE)
    told = world.packets(1, payload=11)
    world.packets(5, payload=13)
    world.ledger.owners.losses.add(told.last_ns + 1 * MS, told.last_ns + 9 * MS)
    world.settle(20, final=True)
    assert world.verdicts() == {ALICE: (1, 11), Reason.AMBIGUOUS: (1, 13)}


def test_a_socket_that_another_holds_too_after_a_loss_is_not_its_last_users() -> None:
    world = World()
    world.event(0, ALICE, EventKind.CONNECT, SERVER)
    lost_ns = world.packets(1, SERVER, opens=True).last_ns
    world.ledger.owners.losses.add(lost_ns, lost_ns)
    world.look(50, (connected(SERVER), {ALICE, BOB}))
    world.packets(60, SERVER, payload=13)
    world.look(100, (connected(SERVER), {ALICE, BOB}))
    world.settle(110, final=True)
    assert Reason.AMBIGUOUS in world.verdicts()


def test_who_takes_without_a_word_of_the_peer_takes_it_all_unless_another_is_told() -> None:
    unconnected = flow(remote="", rport=0)
    for takers, expected in (((ALICE,), ALICE), ((ALICE, BOB), Reason.AMBIGUOUS)):
        world = World()
        world.look(0, (udp_socket(local=HERE), {ALICE, BOB}))
        world.packets(5, sent=False, number=7)
        for taker in takers:
            world.event(6, taker, EventKind.RECEIVE, unconnected)
        world.look(10, (udp_socket(local=HERE), {ALICE, BOB}))
        world.look(20, (udp_socket(local=HERE), {ALICE, BOB}))
        world.settle(30, final=True)
        assert world.verdicts() == {expected: (7, 101)}


def test_an_accepted_connection_is_for_one_of_those_who_have_it_until_one_uses_it() -> None:
    accepted = connected(SERVER, 8009)
    for users, expected in (((), BOB), ((BOB,), BOB)):
        world = World()
        world.event(1, ALICE, EventKind.ACCEPT, SERVER, inode=8009)
        world.packets(1.2, SERVER, sent=False, number=7)
        world.look(10, (accepted, {ALICE, BOB}))
        for at_ms in (20, 30, 40):
            world.look(at_ms, (accepted, {BOB}))  # the acceptor has let go of it
        for user in users:
            world.event(50, user, EventKind.RECEIVE, SERVER, inode=8009)
        world.settle(60, final=True)
        assert world.verdicts() == {expected: (7, 101)}


def test_what_lies_in_a_connection_that_two_have_and_none_has_used_is_anybodys() -> None:
    world = World()
    world.event(1, ALICE, EventKind.ACCEPT, SERVER, inode=8009)
    world.packets(1.2, SERVER, sent=False, number=7)
    for at_ms in (10, 20, 30):
        world.look(at_ms, (connected(SERVER, 8009), {ALICE, BOB}))
    world.settle(60, final=True)
    assert world.verdicts() == {Reason.AMBIGUOUS: (7, 101)}


def claims_after_turns(number: int, *, protocol: int = UDP) -> World:
    world = World()
    for turn in range(number):
        kind = EventKind.RECEIVE if protocol == TCP else EventKind.SEND
        world.event(turn, (ALICE, BOB)[turn % 2], kind, flow(protocol))
    return world


def test_two_who_take_turns_for_ever_leave_a_bounded_number_of_claims() -> None:
    for protocol in (UDP, TCP):
        world = claims_after_turns(20_011, protocol=protocol)
        owners = world.ledger.owners
        assert len(list(owners.claims(flow(protocol)))) <= MAX_CLAIMS
        # What is blurred is still the socket's, and goes with it.
        world.event(20_012, ALICE, EventKind.CLOSE, flow(protocol))
        assert not any(claim.is_open for claim in owners.claims(flow(protocol)))
        owners.forget(T0 + 200_000 * MS)
        assert not list(owners.claims(flow(protocol)))


def test_of_many_turns_the_last_ones_are_told_apart_and_the_first_ones_are_nobodys() -> None:
    world = claims_after_turns(1009)
    for turn in (0, 1, 500):
        world.packets(turn + 0.5, payload=3)
    for turn in (1004, 1005, 1008):
        world.packets(turn + 0.5, payload=101)
    world.settle(1010, final=True)
    assert world.verdicts() == {
        ALICE: (2, 202), BOB: (1, 101), Reason.AMBIGUOUS: (3, 9)
    }  # fmt: skip


def test_one_process_s_many_sockets_stay_its_own_but_where_events_were_lost() -> None:
    for lost in (False, True):
        world = World()
        for turn in range(1009):
            if lost and turn == 503:
                world.ledger.owners.losses.add(T0 + 4000 * MS, T0 + 5000 * MS)
            world.event(10 * turn, ALICE, inode=7001 + turn)
            world.event(10 * turn + 2, ALICE, EventKind.CLOSE, inode=7001 + turn)
        assert len(list(world.ledger.owners.claims(flow()))) <= MAX_CLAIMS
        world.packets(4501)
        world.settle(20_000, final=True)
        assert world.verdicts() == {Reason.NO_SOCKET if lost else ALICE: (1, 101)}


def test_injected_frames_do_not_blur_with_the_socket_s() -> None:
    world = World()
    for turn in range(1009):
        world.event(20 * turn, (ALICE, BOB)[turn % 2])
        world.event(20 * turn + 1, CAROL, EventKind.INJECT)
    for claim in world.ledger.owners.claims(flow()):
        assert (CAROL in claim.users) is claim.injects


def test_a_flow_told_of_one_taker_is_not_its_own_if_another_took_from_the_socket_blindly() -> None:
    unconnected = flow(remote="", rport=0)
    for blind, expected in ((ALICE, ALICE), (BOB, Reason.AMBIGUOUS)):
        world = World()
        world.event(0, ALICE, EventKind.RECEIVE)  # one flow waited: it is told of which
        world.event(1, blind, EventKind.RECEIVE, unconnected)  # several did
        world.packets(5, sent=False, number=7)
        world.look(10, (udp_socket(local=HERE), {ALICE, BOB}))
        world.look(20, (udp_socket(local=HERE), {ALICE, BOB}))
        world.settle(30, final=True)
        assert world.verdicts() == {expected: (7, 101)}
