"""Owners that the kernel told of, at their moment."""

import pytest

from procnet.ledger.claims import FOREVER_NS
from procnet.model import ICMP, TCP, UDP, EventKind, Evidence, ProcessId, Reason
from tests.unit.ledger.world import ALICE, BOB, CAROL, T0, World, connected, flow, udp_socket

TCP_FLOW = flow(TCP, 40009, 443)
SERVER = flow(TCP, 80, 50021)


def evidence_of(world: World) -> set[Evidence | None]:
    return {row.evidence for _, row in world.ledger.account().rows}


def test_a_send_event_names_the_packets_that_follow_it_at_once() -> None:
    world = World()
    world.event(0, ALICE)
    world.packets(0.05, number=23)
    world.settle(1)
    assert world.verdicts() == {ALICE: (23, 101)}
    assert evidence_of(world) == {Evidence.KERNEL_EVENT}


def test_an_event_that_is_read_after_its_packet_still_names_it() -> None:
    world = World()
    world.packets(0.05)
    world.settle(1)
    assert world.verdicts() == {Reason.PENDING: (1, 101)}
    world.event(0, ALICE)
    world.settle(2)
    assert world.verdicts() == {ALICE: (1, 101)}


def test_a_send_event_names_nothing_that_was_sent_long_before_it() -> None:
    world = World()
    world.packets(0)
    world.event(50, ALICE)
    world.settle(60, final=True)
    assert world.verdicts() == {Reason.NO_SOCKET: (1, 101)}


def test_a_receive_event_reaches_back_to_what_lay_in_the_socket() -> None:
    world = World()
    world.packets(0, sent=False, number=7)
    world.event(50, ALICE, EventKind.RECEIVE)
    world.look(60)
    world.look(70)
    world.settle(80)
    assert world.verdicts() == {ALICE: (7, 101)}


def test_an_owner_is_not_forgotten_while_a_run_waits_for_a_slow_look() -> None:
    world = World()
    world.settle(0)
    world.packets(1000, sent=False, number=7)
    world.event(1010, ALICE, EventKind.RECEIVE)
    world.event(1020, ALICE, EventKind.CLOSE)
    for at_ms in (1030, 5010, 5020, 10_030, 10_040):
        world.settle(at_ms)
    assert world.verdicts() == {ALICE: (7, 101)}


def test_an_owner_is_not_forgotten_before_counts_that_come_late() -> None:
    world = World()
    world.settle(0)
    world.event(100, ALICE)
    world.event(110, ALICE, EventKind.CLOSE)
    world.settle(6000)  # as after a SIGSTOP: the events are read first
    world.packets(100.05)
    world.settle(6010)
    assert world.verdicts() == {ALICE: (1, 101)}


def test_a_port_that_changes_hands_is_split_at_the_events() -> None:
    world = World()
    for turn in range(200):
        owner, inode = (ALICE, 7001) if turn % 2 else (BOB, 8009)
        at_ms = turn * 5
        world.event(at_ms, owner, inode=inode + turn)
        world.packets(at_ms + 0.2, payload=11 if turn % 2 else 13)
        world.event(at_ms + 1, owner, EventKind.CLOSE, inode=inode + turn)
    world.settle(1001)
    assert world.verdicts() == {ALICE: (100, 1100), BOB: (100, 1300)}


def test_a_run_across_a_change_of_hands_is_ambiguous_and_says_between_whom() -> None:
    world = World()
    world.event(0, ALICE)
    world.event(10, BOB)
    world.packets(5, until_ms=15, number=3)
    world.settle(20, final=True)
    assert world.verdicts() == {Reason.AMBIGUOUS: (3, 101)}
    ((_, row),) = world.ledger.account().rows
    assert row.candidates == {ALICE, BOB}


def test_the_first_user_of_an_accepted_connection_owns_it_from_the_handshake_on() -> None:
    world = World()
    world.packets(0, SERVER, sent=False, opens=True, payload=0)
    world.event(0.2, ALICE, EventKind.ACCEPT, SERVER, inode=0)
    world.packets(0.3, SERVER, sent=False, payload=499)
    world.event(0.5, BOB, EventKind.RECEIVE, SERVER, inode=9001)
    world.look(10)
    world.look(20)
    world.settle(30)
    assert world.verdicts() == {BOB: (2, 499)}


def test_an_accepted_connection_that_its_acceptor_used_is_split_when_another_uses_it() -> None:
    world = World()
    world.event(0, ALICE, EventKind.ACCEPT, SERVER, inode=0)
    world.event(1, ALICE, EventKind.SEND, SERVER, inode=9001)
    world.packets(1.1, SERVER, payload=17)
    world.event(10, BOB, EventKind.SEND, SERVER, inode=9001)
    world.packets(10.1, SERVER, payload=19)
    world.settle(20)
    assert world.verdicts() == {ALICE: (1, 17), BOB: (1, 19)}


def test_late_packets_of_a_closed_connection_stay_with_it() -> None:
    world = World()
    world.event(0, ALICE, EventKind.CONNECT, TCP_FLOW)
    world.packets(0.1, TCP_FLOW, opens=True)
    world.event(5, ALICE, EventKind.CLOSE, TCP_FLOW)
    world.packets(900, TCP_FLOW, sent=False, payload=0)
    world.settle(1000, final=True)
    assert world.verdicts() == {ALICE: (2, 101)}


def test_packets_of_a_new_connection_are_never_those_of_the_closed_one() -> None:
    world = World()
    world.event(0, ALICE, EventKind.CONNECT, TCP_FLOW)
    world.packets(0.1, TCP_FLOW, opens=True)
    world.packets(0.2, TCP_FLOW, sent=False)
    world.event(5, ALICE, EventKind.CLOSE, TCP_FLOW)
    world.packets(50, TCP_FLOW, opens=True, payload=0)
    world.packets(50.3, TCP_FLOW, payload=499)
    world.settle(100, final=True)
    assert world.verdicts() == {ALICE: (2, 202), Reason.NO_SOCKET: (2, 499)}


def test_a_syn_that_is_sent_again_is_the_same_connection() -> None:
    world = World()
    world.look(2000, (connected(TCP_FLOW), {ALICE}))
    world.packets(2100, TCP_FLOW, opens=True, payload=0)
    world.packets(3100, TCP_FLOW, opens=True, payload=0)
    world.look(3200, (connected(TCP_FLOW, 7002), {BOB}))
    world.look(3300, (connected(TCP_FLOW, 7002), {BOB}))
    world.settle(3400, final=True)
    assert world.verdicts() == {BOB: (2, 0)}


def test_an_unconnected_socket_with_two_users_is_split_by_remote() -> None:
    world = World()
    one, two, three = (flow(UDP, 4001, port) for port in (53, 59, 61))
    world.event(0, ALICE, key=one._replace(local_address=bytes(4)))
    world.event(1, BOB, key=two._replace(local_address=bytes(4)))
    world.packets(10, one, payload=11)
    world.packets(11, two, payload=13)
    world.packets(12, three, payload=17, sent=False)
    world.settle(13, final=True)
    assert world.verdicts() == {ALICE: (1, 11), BOB: (1, 13), Reason.AMBIGUOUS: (1, 17)}


def test_a_wildcard_ipv6_socket_answers_for_ipv4() -> None:
    world = World()
    world.event(0, ALICE, key=flow()._replace(local_address=bytes(16), remote_address=b""))
    world.packets(1)
    world.settle(2, final=True)
    assert world.verdicts() == {ALICE: (1, 101)}


def test_a_socket_of_the_kernel_has_no_process() -> None:
    world = World()
    world.event(0, ProcessId(2, 0), kernel=True)
    world.packets(1)
    world.settle(2)
    assert world.verdicts() == {Reason.KERNEL: (1, 101)}


def test_an_event_beats_a_look_that_shows_several_holders() -> None:
    world = World()
    socket = (udp_socket(), {ALICE, BOB})
    world.look(0, socket)
    world.event(5, BOB, key=flow())
    world.packets(6)
    world.look(10, socket)
    world.settle(11)
    assert world.verdicts() == {BOB: (1, 101)}


def test_when_events_were_lost_none_of_them_is_sure_any_more() -> None:
    world = World()
    world.event(0, ALICE, inode=7001)
    lost_ns = world.packets(1).first_ns
    world.ledger.owners.losses.add(lost_ns, lost_ns)
    world.packets(50)
    world.look(60, (udp_socket(7001), {CAROL}))
    world.look(70, (udp_socket(7001), {CAROL}))
    world.settle(80)
    verdicts = world.verdicts()
    assert verdicts[ALICE] == (1, 101), "what was told before the loss stands"
    assert verdicts.keys() == {ALICE, Reason.AMBIGUOUS}


def test_a_process_that_let_go_of_its_socket_is_not_its_user_any_more() -> None:
    world = World()
    world.event(0, ALICE)
    world.look(50, (udp_socket(), {BOB}))
    world.packets(60)
    world.look(100, (udp_socket(), {BOB}))
    world.settle(110, final=True)
    # What she has sent may have waited in a queue.
    assert world.verdicts() == {Reason.AMBIGUOUS: (1, 101)}
    world.packets(10_060)
    world.look(10_100, (udp_socket(), {BOB}))
    world.settle(10_110)
    assert world.verdicts() == {Reason.AMBIGUOUS: (1, 101), BOB: (1, 101)}


def test_an_icmp_echo_is_found_by_its_id() -> None:
    world = World()
    echo = flow(ICMP, 4099, 4099)
    world.event(0, ALICE, key=echo._replace(local_address=bytes(4)))
    world.packets(1, echo)
    world.packets(2, flow(ICMP, 4100, 4100))
    world.settle(3, final=True)
    assert world.verdicts() == {ALICE: (1, 101), Reason.NO_SOCKET: (1, 101)}


def test_what_came_after_accept_waits_for_the_first_user() -> None:
    world = World()
    world.event(0, ALICE, EventKind.ACCEPT, SERVER, inode=9001)
    world.packets(0.3, SERVER, sent=False, payload=499)
    world.settle(1)
    assert world.verdicts() == {Reason.PENDING: (1, 499)}
    world.event(5, BOB, EventKind.RECEIVE, SERVER, inode=9001)
    world.settle(6, final=True)
    assert world.verdicts() == {BOB: (1, 499)}


def test_so_does_a_run_that_began_before_the_accept() -> None:
    world = World()
    world.packets(0, SERVER, sent=False, number=3, payload=499, until_ms=10, opens=True)
    world.event(20, ALICE, EventKind.ACCEPT, SERVER, inode=9001)
    for at_ms in (100, 200, 300):
        world.look(at_ms, (connected(SERVER, 9001), {ALICE}))
        world.settle(at_ms + 10)
    assert world.verdicts() == {Reason.PENDING: (3, 499)}
    world.event(320, BOB, EventKind.RECEIVE, SERVER, inode=9001)
    world.settle(330, final=True)
    assert world.verdicts() == {BOB: (3, 499)}


def test_so_does_what_was_sent_before_while_two_have_it() -> None:
    world = World()
    held = connected(SERVER, 9001), {ALICE, BOB}
    world.event(0, ALICE, EventKind.ACCEPT, SERVER, inode=9001)
    world.packets(0.3, SERVER, payload=0)
    for at_ms in (100, 200, 300):
        world.look(at_ms, held)
        world.settle(at_ms + 10)
    assert world.verdicts() == {Reason.PENDING: (1, 0)}
    world.event(320, BOB, EventKind.RECEIVE, SERVER, inode=9001)
    world.settle(330)
    assert world.verdicts() == {BOB: (1, 0)}
    world.packets(340, SERVER, payload=7)
    world.settle(350)
    assert world.verdicts() == {BOB: (2, 7)}


def test_an_accepted_connection_that_nobody_used_is_its_acceptors() -> None:
    world = World()
    world.event(0, ALICE, EventKind.ACCEPT, SERVER, inode=9001)
    world.packets(0.3, SERVER, sent=False, payload=499)
    world.settle(1, final=True)
    assert world.verdicts() == {ALICE: (1, 499)}


def test_a_run_that_reaches_a_little_into_the_next_owners_time_is_ambiguous() -> None:
    world = World()
    world.event(0, ALICE, EventKind.CONNECT, TCP_FLOW)
    world.event(1, BOB, EventKind.SEND, TCP_FLOW)
    world.packets(0.05, TCP_FLOW, until_ms=1.01, number=3, opens=True)
    world.settle(20, final=True)
    assert world.verdicts() == {Reason.AMBIGUOUS: (3, 101)}


def test_injected_frames_are_of_who_sends_them_and_nothing_is_received_by_them() -> None:
    world = World()
    for at_ms in (0, 10, 20):
        world.event(at_ms, ALICE, EventKind.INJECT)
    world.packets(0.05, number=23, until_ms=29)
    world.packets(1, sent=False, number=7)
    world.settle(2000, final=True)
    assert world.verdicts() == {ALICE: (23, 101), Reason.NO_SOCKET: (7, 101)}


def test_an_injection_says_nothing_of_what_is_sent_later() -> None:
    for key in (TCP_FLOW, flow()):
        world = World()
        world.event(0, ALICE, EventKind.INJECT, key=key)
        world.packets(20, key)
        world.settle(2000, final=True)
        assert world.verdicts() == {Reason.NO_SOCKET: (1, 101)}


def test_frames_in_the_name_of_a_socket_are_anybodys() -> None:
    for key in (TCP_FLOW, flow()):
        world = World()
        world.event(0, ALICE, key=key)
        world.packets(1, key, number=3)
        world.event(5, BOB, EventKind.INJECT, key=key, inode=8009)
        world.packets(5.05, key, number=5)
        world.packets(40, key, number=7)
        world.settle(60, final=True)
        assert world.verdicts() == {ALICE: (10, 202), Reason.AMBIGUOUS: (5, 101)}


@pytest.mark.parametrize("told", [True, False], ids=["told how far", "not told"])
def test_who_owned_what_is_not_yet_counted_is_not_forgotten(told: bool) -> None:
    """The events of a datagram and of its sender's end come long before the packet is counted."""
    world = World()
    world.event(0, ALICE)
    world.event(1, ALICE, EventKind.CLOSE)
    for at_ms in (7_000, 14_000, 21_000):
        for _ in world.ledger.counting([], T0 - 1 if told else FOREVER_NS):
            pass
        world.settle(at_ms)
    world.packets(0.5)
    world.settle(22_000, final=True)
    assert world.verdicts() == {ALICE if told else Reason.NO_SOCKET: (1, 101)}
