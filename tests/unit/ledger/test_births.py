"""What came in before a socket was there was refused, or another one's: it is not for its user."""

from __future__ import annotations

import pytest

from procnet.model import TCP, EventKind, FlowKey, Reason
from tests.unit.ledger.world import ALICE, MS, World, flow, listener, udp_socket

PORTLESS = flow(253, 0, 0)


@pytest.mark.parametrize("remote", ["10.0.0.2", ""], ids=["told", "blind"])
def test_what_came_before_the_socket_is_not_for_who_receives_by_it(remote: str) -> None:
    world = World()
    world.look(0)
    world.packets(10, sent=False, payload=11)
    world.packets(20, sent=False, payload=13)
    world.event(
        21, ALICE, EventKind.RECEIVE, flow(rport=53 if remote else 0, remote=remote), born_ms=15
    )
    world.look(100, (udp_socket(), {ALICE}))
    world.look(200, (udp_socket(), {ALICE}))
    world.settle(210, final=True)
    assert world.verdicts() == {Reason.NO_SOCKET: (1, 11), ALICE: (1, 13)}


def test_nor_is_it_for_who_only_sends_by_it() -> None:
    world = World()
    world.look(0)
    world.packets(10, sent=False, payload=11)
    world.event(20, ALICE, born_ms=15)
    world.packets(21, payload=13)
    world.look(100, (udp_socket(), {ALICE}))
    world.settle(210, final=True)
    assert world.verdicts() == {Reason.NO_SOCKET: (1, 11), ALICE: (1, 13)}


def test_nor_if_somebody_has_looked_before_it_is_used() -> None:
    world = World()
    world.look(0)
    world.packets(10, sent=False, payload=11)
    world.look(20, (udp_socket(), {ALICE}), births_ms={7001: 15})
    world.packets(21, sent=False, payload=13)
    world.event(22, ALICE, EventKind.RECEIVE, born_ms=15)
    world.look(200, (udp_socket(), {ALICE}), births_ms={7001: 15})
    world.settle(210, final=True)
    assert world.verdicts() == {Reason.NO_SOCKET: (1, 11), ALICE: (1, 13)}


def test_a_run_that_began_before_the_socket_is_nobodys_for_sure() -> None:
    world = World()
    world.look(0)
    world.packets(10, sent=False, number=3, payload=33, until_ms=20)
    world.event(21, ALICE, EventKind.RECEIVE, born_ms=15)
    world.settle(210, final=True)
    assert world.verdicts() == {Reason.AMBIGUOUS: (3, 33)}
    ((_, row),) = world.ledger.account().rows
    assert row.candidates == {ALICE}


def test_a_run_that_began_with_a_socket_of_the_same_process_is_its_own() -> None:
    world = World()
    world.look(0)
    world.event(5, ALICE, EventKind.RECEIVE, inode=7003, born_ms=1)
    world.event(14, ALICE, EventKind.CLOSE, inode=7003)
    world.packets(10, sent=False, number=3, payload=33, until_ms=20)
    world.event(21, ALICE, EventKind.RECEIVE, born_ms=15)
    world.settle(210, final=True)
    assert world.verdicts() == {ALICE: (3, 33)}


def test_a_run_within_the_slack_of_the_clocks_is_its_users() -> None:
    world = World()
    world.look(0)
    world.packets(14.95, sent=False, payload=11)
    world.event(21, ALICE, EventKind.RECEIVE, born_ms=15)
    world.settle(210, final=True)
    assert world.verdicts() == {ALICE: (1, 11)}


@pytest.mark.parametrize("key", [flow(), PORTLESS], ids=["udp", "raw"])
def test_of_a_socket_that_was_only_looked_at_it_is_the_same(key: FlowKey) -> None:
    held = udp_socket(port=key.local_port)._replace(protocol=key.protocol), {ALICE}
    world = World()
    world.look(0)
    world.packets(10, key, sent=False, payload=11)
    world.look(100, held, births_ms={7001: 15})
    world.packets(120, key, sent=False, payload=13)
    world.look(200, held, births_ms={7001: 15})
    world.settle(210, final=True)
    assert world.verdicts() == {Reason.NO_SOCKET: (1, 11), ALICE: (1, 13)}


def test_a_connection_that_was_refused_is_not_for_who_listens_later() -> None:
    world = World()
    world.look(0)
    for at_ms in (10, 20):
        key = flow(TCP, 80, 50_000 + at_ms)
        world.packets(at_ms, key, sent=False, opens=True, payload=0)
        world.packets(at_ms + 1, key, payload=0)
    world.look(100, (listener(80), {ALICE}), births_ms={7001: 15})
    world.look(200, (listener(80), {ALICE}), births_ms={7001: 15})
    world.settle(210, final=True)
    assert world.verdicts() == {Reason.NO_SOCKET: (2, 0), ALICE: (2, 0)}


def test_when_the_clock_is_set_a_socket_is_as_old_as_before() -> None:
    world = World()
    world.look(0)
    world.event(21, ALICE, EventKind.RECEIVE, born_ms=15)
    world.ledger.set_clock(1000 * MS)
    world.packets(1010, sent=False, number=3, payload=33, until_ms=1030)
    world.packets(1040, sent=False, payload=13)
    world.settle(1310, final=True)
    assert world.verdicts() == {Reason.AMBIGUOUS: (3, 33), ALICE: (1, 13)}
