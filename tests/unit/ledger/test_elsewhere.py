"""Runs whose tuple is not their socket's: translated, or only passed on."""

from __future__ import annotations

import pytest

from procnet.ledger.translations import Translations
from procnet.model import (
    TCP,
    UDP,
    Ends,
    FlowCount,
    FlowKey,
    ProcessId,
    Reason,
    Socket,
    SocketScan,
    Translation,
)
from tests.unit.ledger.world import (
    ALICE,
    BOB,
    CAROL,
    MS,
    NETNS,
    T0,
    World,
    flow,
    packed,
    udp_socket,
)

INSIDE, OTHER = 4026532001, 4026532002
HOST, THERE, ONE, TWO = "10.0.0.1", "10.0.0.2", "172.17.0.2", "172.17.0.3"


def ends(source: str, port: int, destination: str, other: int, protocol: int = UDP) -> Ends:
    return protocol, packed(source), port, packed(destination), other


def masqueraded(port: int = 5000, shown: int = 5000, source: str = ONE) -> Translation:
    return Translation(7, ends(source, port, THERE, 53), ends(HOST, shown, THERE, 53))


def inner(netns: int = INSIDE, port: int = 5000, local: str = ONE) -> FlowKey:
    return FlowKey(netns, UDP, packed(local), port, packed(THERE), 53)


def on_wire(port: int = 5000) -> FlowKey:
    return flow(lport=port, local=HOST, remote=THERE)


class House(World):
    """A host with two containers, of which everything is heard."""

    def __init__(self, **limits: int) -> None:
        super().__init__(**limits)
        self.ledger.elsewhere.everywhere = True
        homes = {NETNS: HOST, INSIDE: ONE, OTHER: TWO}
        self.knows({netns: frozenset({packed(address)}) for netns, address in homes.items()})

    def knows(self, addresses: dict[int, frozenset[bytes]]) -> None:
        self.ledger.elsewhere.namespaces.know(addresses)

    def translate(self, *begun: Translation, at_ms: float = 0) -> None:
        at_ns = T0 + int(at_ms * MS)
        self.ledger.elsewhere.translations.hear(begun, (), at_ns - 100 * MS, at_ns)

    def looks(self, *at_ms: float, holders: dict[FlowKey, ProcessId] | None = None) -> None:
        for at in at_ms:
            sockets = [
                Socket(*key[:2], 4, *key[2:], "unconnected", 9000 + n, 0)
                for n, key in enumerate(holders or {})
            ]
            held = {
                9000 + n: frozenset({process}) for n, process in enumerate((holders or {}).values())
            }
            self.ledger.look(
                SocketScan(T0 + int(at * MS), T0 + int(at * MS) + 1, sockets, held, 0, 0)
            )


def wildcard(netns: int, port: int = 5000) -> FlowKey:
    return FlowKey(netns, UDP, bytes(4), port, bytes(4), 0)


def test_a_translated_run_is_of_the_socket_inside() -> None:
    house = House()
    house.event(0, ALICE, key=inner())
    house.event(0, BOB, key=on_wire())  # the host's own socket has the tuple on the wire
    house.translate(masqueraded())
    house.packets(1, on_wire(), payload=101)
    house.settle(2)
    assert house.verdicts() == {ALICE: (1, 101)}
    ((key, _),) = house.ledger.account().rows
    assert key.flow == on_wire()
    assert key.socket == inner()


def test_a_wildcard_socket_of_the_host_gets_nothing_of_it() -> None:
    house = House()
    house.looks(-20, -10, holders={wildcard(NETNS): BOB})
    house.translate(masqueraded())
    house.packets(1, on_wire(), payload=101)
    house.looks(20, 40, holders={wildcard(NETNS): BOB})
    house.settle(50)
    assert house.verdicts() == {Reason.NO_SOCKET: (1, 101)}


def test_a_container_without_that_address_gets_nothing_of_it() -> None:
    house = House()
    holders = {wildcard(OTHER): BOB}
    house.looks(-20, -10, holders=holders)
    house.translate(masqueraded())
    house.packets(1, on_wire(), payload=101)
    house.looks(20, 40, holders=holders)
    house.settle(50)
    assert BOB not in house.verdicts()


def test_a_container_that_is_only_looked_at_is_known_by_its_address() -> None:
    house = House()
    holders = {wildcard(INSIDE): ALICE, wildcard(OTHER): BOB, wildcard(NETNS): CAROL}
    house.looks(-20, -10, holders=holders)
    house.translate(masqueraded())
    house.packets(1, on_wire(), payload=101)
    house.looks(20, 40, holders=holders)
    house.settle(50)
    assert house.verdicts() == {ALICE: (1, 101)}


def test_two_namespaces_with_one_address_are_ambiguous() -> None:
    house = House()
    house.knows({n: frozenset({packed(ONE)}) for n in (INSIDE, OTHER)})
    house.event(0, ALICE, key=inner(INSIDE))
    house.event(0, BOB, key=inner(OTHER), inode=7003)
    house.translate(masqueraded())
    house.packets(1, on_wire(), payload=101)
    house.settle(2)
    house.looks(20, 40)
    house.settle(50, final=True)
    assert house.verdicts() == {Reason.AMBIGUOUS: (1, 101)}
    ((_, row),) = house.ledger.account().rows
    assert row.candidates == {ALICE, BOB}


def test_translations_for_other_hosts_are_passed_on() -> None:
    house = House()
    house.translate(masqueraded(source="172.17.0.99"))
    house.packets(1, on_wire(), payload=101)
    house.looks(20)
    house.settle(50)
    assert house.verdicts() == {Reason.FORWARDED: (1, 101)}


def test_but_not_where_one_of_this_host_may_not_have_been_told_of() -> None:
    house = House()
    house.translate(masqueraded(source="172.17.0.99"))
    house.packets(1, on_wire(), payload=101)
    house.ledger.owners.losses.add(T0, T0 + 2 * MS)
    house.looks(20)
    house.settle(50)
    assert house.verdicts() == {Reason.NO_SOCKET: (1, 101)}


def test_before_and_after_a_translation_the_tuple_is_the_hosts() -> None:
    house = House()
    house.event(-900, BOB, key=on_wire())
    house.event(0, ALICE, key=inner())
    house.packets(-800, on_wire(), payload=11)
    house.translate(masqueraded(), at_ms=0)
    house.packets(1, on_wire(), payload=101)
    house.ledger.elsewhere.translations.hear((), [masqueraded()], T0 + 900 * MS, T0 + 1000 * MS)
    house.packets(1200, on_wire(), payload=1009)
    house.settle(1300)
    assert house.verdicts() == {BOB: (2, 11 + 1009), ALICE: (1, 101)}


def test_what_may_be_of_either_is_nobodys() -> None:
    """The end of a translation is told some time after it."""
    house = House()
    house.event(-900, BOB, key=on_wire())
    house.event(0, ALICE, key=inner())
    house.translate(masqueraded(), at_ms=0)
    house.ledger.elsewhere.translations.hear((), [masqueraded()], T0 + 900 * MS, T0 + 1000 * MS)
    house.packets(950, on_wire(), payload=101)
    house.settle(1300, final=True)
    assert house.verdicts() == {Reason.AMBIGUOUS: (1, 101)}


def test_one_whose_end_nobody_tells_is_believed_as_long_as_it_is_seen() -> None:
    house = House()
    house.event(0, ALICE, key=inner())
    translations = house.ledger.elsewhere.translations
    translations.look([masqueraded()], 0, T0)
    house.packets(100, on_wire(), payload=101)
    house.settle(200)
    assert house.verdicts() == {Reason.PENDING: (1, 101)}
    translations.look([masqueraded()], T0, T0 + 300 * MS)
    house.looks(301)
    house.settle(400)
    assert house.verdicts() == {ALICE: (1, 101)}
    assert translations.is_to_be_confirmed
    translations.look([], T0 + 300 * MS, T0 + 600 * MS)
    assert not translations.is_to_be_confirmed
    house.packets(800, on_wire(), payload=11)
    house.settle(900, final=True)
    assert house.verdicts() == {ALICE: (1, 101), Reason.NO_SOCKET: (1, 11)}


def passed(key: FlowKey, *, sent: bool, at_ms: float = 1, payload: int = 101) -> FlowCount:
    at_ns = T0 + int(at_ms * MS)
    return FlowCount(
        "eth0", key, sent, 1, payload + 28, payload, at_ns, at_ns, False, Reason.FORWARDED
    )


def test_what_leaves_and_what_comes_in_is_named_once() -> None:
    house = House()
    house.event(0, ALICE, key=inner())
    there_and_back = (
        # The same packets on the container's cable: as seen from the other end.
        (flow(lport=53, rport=5000, local=THERE, remote=ONE), False, 101),
        (inner(NETNS), True, 101),
        (inner(NETNS), False, 11),
        (flow(lport=53, rport=5000, local=THERE, remote=ONE), True, 11),
    )
    house.ledger.count([passed(k, sent=s, payload=p) for k, s, p in there_and_back])
    house.settle(2)
    house.looks(20, 40)
    house.settle(50)
    assert house.verdicts() == {ALICE: (2, 112), Reason.FORWARDED: (2, 112)}
    rows = {key: row for key, row in house.ledger.account().rows if key.process is None}
    assert {key.socket for key in rows} == {inner()}
    assert all(row.candidates == {ALICE} for row in rows.values())


def test_the_load_of_a_router_does_not_wait() -> None:
    house = House()
    house.ledger.count([passed(flow(local="192.0.2.7"), sent=True)])
    house.settle(2)
    assert house.verdicts() == {Reason.FORWARDED: (1, 101)}


def test_where_translations_cannot_be_read_a_port_alone_names_nobody() -> None:
    house = World()
    house.ledger.elsewhere.is_blind = True
    holders = {wildcard(NETNS, 4001): ALICE}
    look = House.looks
    look(house, -20, -10, holders=holders)  # type: ignore[arg-type]
    house.packets(1, flow(), payload=101)
    house.event(2, BOB, key=flow(lport=4003))
    house.packets(3, flow(lport=4003), payload=11)
    look(house, 20, 40, holders=holders)  # type: ignore[arg-type]
    house.settle(50)
    assert house.verdicts() == {Reason.AMBIGUOUS: (1, 101), BOB: (1, 11)}


def test_a_port_names_nobody_while_a_translation_may_not_have_been_told_of() -> None:
    """A container's tuple on the wire may be one that a socket of the host seems to have."""
    world = World()
    translations = world.ledger.elsewhere.translations

    def looks(*at_ms: float) -> None:
        for at in at_ms:
            world.look(at, (udp_socket(port=5000), {BOB}))

    looks(-20, -10)
    world.packets(-5, on_wire(), payload=7)
    translations.missed(T0)
    world.packets(1, on_wire(), payload=101)
    world.packets(2, on_wire(6007), payload=29)
    world.event(1, CAROL, key=on_wire(6007), inode=7003)
    assert translations.is_to_be_confirmed
    translations.look([], T0 - 100 * MS, T0 + 5 * MS)
    assert not translations.is_to_be_confirmed
    world.packets(10, on_wire(), payload=11)
    looks(20, 40)
    world.settle(50)
    assert world.verdicts() == {Reason.AMBIGUOUS: (1, 101), BOB: (2, 18), CAROL: (1, 29)}


def test_nor_is_it_where_a_look_at_the_translations_fails() -> None:
    translations = Translations()
    assert not translations.may_lack(run(on_wire(), 1))
    translations.missed(T0 + 10 * MS)
    translations.missed(T0 + 30 * MS)
    lacks = [translations.may_lack(run(on_wire(), at_ms)) for at_ms in (5, 20, 10_000)]
    assert lacks == [False, True, True]
    translations.look([], T0, T0 + 50 * MS)
    lacks = [translations.may_lack(run(on_wire(), at_ms)) for at_ms in (5, 20, 60)]
    assert lacks == [False, True, False]
    translations.shift(3_600_000 * MS)
    assert translations.may_lack(run(on_wire(), 3_600_020))
    translations.forget(T0 + 3_600_100 * MS)
    assert not translations.may_lack(run(on_wire(), 3_600_020))


@pytest.mark.parametrize("ended", [0, 13])
def test_one_that_there_is_no_room_for_may_be_anywhere(ended: int) -> None:
    translations = Translations(max_translations=13)
    many = [masqueraded(port, port) for port in range(1001, 1001 + 13 + 1)]
    translations.hear(many[:13], (), T0, T0)
    translations.hear((), many[:ended], T0 + 10 * MS, T0 + 20 * MS)
    assert not translations.may_lack(run(on_wire(), 15))
    translations.hear(many[13:], (), T0 + 30 * MS, T0 + 40 * MS)
    assert translations.may_lack(run(on_wire(), 15))
    assert translations.may_lack(run(on_wire(), 50)) == (not ended)


# -- what is kept ---------------------------------------------------------------------------------


def run(key: FlowKey, at_ms: float = 1) -> FlowCount:
    at_ns = T0 + int(at_ms * MS)
    return FlowCount("eth0", key, True, 1, 129, 101, at_ns, at_ns, False, None)


def test_both_sides_of_a_published_port() -> None:
    translations = Translations()
    near, far = ends(THERE, 4001, HOST, 8080, TCP), ends(THERE, 4001, ONE, 80, TCP)
    translations.hear([Translation(7, near, far)], (), T0, T0)
    shown = FlowKey(NETNS, TCP, packed(HOST), 8080, packed(THERE), 4001)
    assert translations.find(run(shown)).ends == (ends(ONE, 80, THERE, 4001, TCP),)
    # The client is on the near side, and shows the far ends inside.
    shown = FlowKey(NETNS, TCP, packed(THERE), 4001, packed(ONE), 80)
    assert translations.find(run(shown)).ends == (near,)


@pytest.mark.parametrize("ended", [0, 13])
def test_there_is_room_for_so_many(ended: int) -> None:
    translations = Translations(max_translations=13)
    many = [masqueraded(port, port) for port in range(1001, 1001 + 13 + 5)]
    translations.hear(many[:13], many[:ended], T0, T0)
    translations.hear(many[13:], (), T0, T0)
    known = [each for each in many if translations.find(run(on_wire(each.far[2]), 0)).ends]
    assert len(known) == 13
    assert translations.lost == 5


def test_the_ended_are_forgotten_in_time() -> None:
    translations = Translations()
    translations.hear([masqueraded()], (), T0, T0)
    translations.hear((), [masqueraded()], T0 + MS, T0 + 2 * MS)
    translations.forget(T0 + 2 * MS)
    assert translations
    translations.forget(T0 + 3 * MS)
    assert not translations


def test_a_loss_is_counted_and_believed_again_when_seen() -> None:
    translations = Translations()
    translations.hear([masqueraded()], (), T0, T0)
    translations.missed(T0 + 10 * MS)
    assert translations.lost == 1
    assert not translations.find(run(on_wire(), 20)).sure
    translations.look([masqueraded()], T0, T0 + 30 * MS)
    assert translations.find(run(on_wire(), 20)).sure
    assert translations.find(run(on_wire(), 40)).sure


def test_the_clock_may_be_set() -> None:
    translations = Translations()
    translations.hear([masqueraded()], (), T0, T0)
    translations.shift(3_600_000 * MS)
    assert not translations.find(run(on_wire(), 1)).ends
    assert translations.find(run(on_wire(), 3_600_001)).sure


@pytest.mark.parametrize("everywhere", [False, True])
def test_namespaces_are_only_looked_at_where_anything_may_be_elsewhere(everywhere: bool) -> None:
    world = World()
    world.ledger.elsewhere.everywhere = everywhere
    world.look(0, (udp_socket(), {ALICE}))
    told = {NETNS} if everywhere else set()
    assert world.ledger.elsewhere.namespaces.that_may_have(packed(HOST)) == told
    world.ledger.elsewhere.translations.hear([masqueraded(source=HOST)], (), T0, T0 + MS)
    world.look(1, (udp_socket(), {ALICE}))
    assert world.ledger.elsewhere.namespaces.that_may_have(packed(HOST)) == {NETNS}


def test_a_translation_that_begins_between_two_looks_is_of_the_hosts_own_socket() -> None:
    world = World()
    translation = masqueraded(source=HOST, port=5000, shown=6007)
    for at_ms in (-20, -10):
        world.look(at_ms, (udp_socket(port=5000), {ALICE}))
    world.ledger.elsewhere.translations.hear([translation], (), T0, T0)
    world.packets(1, on_wire(6007), payload=101)
    world.settle(2)
    assert world.verdicts() == {Reason.PENDING: (1, 101)}
    for at_ms in (20, 40):
        world.look(at_ms, (udp_socket(port=5000), {ALICE}))
        world.ledger.elsewhere.namespaces.know({NETNS: frozenset({packed(HOST)})})
    world.settle(50)
    assert world.verdicts() == {ALICE: (1, 101)}
