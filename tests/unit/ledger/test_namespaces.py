"""Which namespaces may have an address: those that are known to, and those not known well."""

from __future__ import annotations

from procnet.ledger.namespaces import Namespaces
from procnet.model import UDP, EventKind, FlowKey, OwnerEvent, Socket, SocketScan
from tests.unit.ledger.world import ALICE, MS, T0, packed

ONE, TWO, THREE = 11, 13, 17
HERE, THERE = packed("172.17.0.2"), packed("172.17.0.3")


def event(netns: int, address: bytes, at_ms: int = 0) -> OwnerEvent:
    key = FlowKey(netns, UDP, address, 5000, packed("10.0.0.2"), 53)
    return OwnerEvent(T0 + at_ms * MS, EventKind.SEND, *key, 7, ALICE, "a", 0, 0, False)


def scan(*namespaces: int, at_ms: int = 0) -> SocketScan:
    sockets = [Socket(n, UDP, 4, bytes(4), 1, bytes(4), 0, "unconnected", n, 0) for n in namespaces]
    at_ns = T0 + at_ms * MS
    return SocketScan(at_ns, at_ns, sockets, {}, 0, 0)


def test_one_that_is_known_to_have_it_is_the_only_one() -> None:
    namespaces = Namespaces()
    namespaces.know({ONE: frozenset({HERE}), TWO: frozenset({THERE})})
    namespaces.look(scan(ONE, TWO))
    namespaces.hear([event(ONE, HERE), event(TWO, bytes(4))])
    assert namespaces.homes(HERE) == namespaces.that_may_have(HERE) == {ONE}
    assert namespaces.homes(packed("10.0.0.1")) == set()


def test_one_whose_addresses_are_not_known_may_have_it() -> None:
    namespaces = Namespaces()
    namespaces.know({ONE: frozenset({HERE})})
    namespaces.look(scan(ONE, TWO))
    namespaces.hear([event(THREE, THERE)])
    assert namespaces.homes(HERE) == {ONE}
    assert namespaces.that_may_have(HERE) == {ONE, TWO, THREE}
    namespaces.know({ONE: frozenset({HERE}), TWO: frozenset({THERE}), THREE: frozenset({THERE})})
    assert namespaces.that_may_have(HERE) == {ONE}


def test_an_address_that_is_new_is_asked_for_until_it_is_known() -> None:
    namespaces = Namespaces()
    old = {ONE: frozenset({HERE})}
    namespaces.know(old)
    namespaces.hear([event(ONE, THERE)])
    namespaces.know(old)
    assert namespaces.homes(THERE) == set()
    assert namespaces.that_may_have(THERE) == {ONE}
    namespaces.know({ONE: frozenset({HERE, THERE})})
    assert namespaces.homes(THERE) == namespaces.that_may_have(THERE) == {ONE}


def test_one_of_which_nothing_is_heard_is_forgotten() -> None:
    namespaces = Namespaces()
    namespaces.hear([event(ONE, HERE), event(TWO, HERE)])
    namespaces.look(scan(TWO, at_ms=300_000))
    assert namespaces.that_may_have(HERE) == {ONE, TWO}
    namespaces.look(scan(TWO, at_ms=300_001))
    assert namespaces.that_may_have(HERE) == {TWO}


def test_the_clock_may_be_set() -> None:
    namespaces = Namespaces()
    namespaces.hear([event(ONE, HERE)])
    namespaces.shift(3_600_000 * MS)
    namespaces.look(scan(at_ms=3_600_000))
    assert namespaces.that_may_have(HERE) == {ONE}


def test_one_without_a_process_keeps_its_addresses_as_long_as_it_is_remembered() -> None:
    namespaces = Namespaces()
    namespaces.look(scan(TWO))
    namespaces.know({ONE: frozenset({HERE}), TWO: frozenset({THERE})})
    namespaces.look(scan(at_ms=1))
    namespaces.know({ONE: frozenset({HERE})})
    assert namespaces.homes(THERE) == {TWO}
    namespaces.look(scan(at_ms=300_001))
    namespaces.know({ONE: frozenset({HERE})})
    assert namespaces.homes(THERE) == set()
