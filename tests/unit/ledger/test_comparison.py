"""What a capture saw, less what sockets moved: whoever tells first, never too much, and bounded."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procnet.ledger.comparison import SLACK_NS, Comparison, OnlyOnWire
from procnet.ledger.verdict import NO_SOCKET, Verdict
from procnet.model import ICMP, SCTP, TCP, UDP, FlowCount, FlowKey, Reason, Traffic
from tests.unit.ledger.world import ALICE, MS, NETNS, T0, World, flow

NOTHING = OnlyOnWire({}, (Traffic(), Traffic()))
FORWARDED = Verdict(None, None, Reason.FORWARDED, frozenset())
S = 1000 * MS


def run(
    key: FlowKey | None,
    payload: int,
    *,
    sent: bool = True,
    number: int = 1,
    headers: int = 28,
    at_s: float = 0,
    interface: str = "eth0",
    opens: bool = False,
    reason: Reason | None = None,
) -> FlowCount:
    at_ns = T0 + int(at_s * S)
    return FlowCount(
        interface, key, sent, number, payload + headers * number, payload, at_ns, at_ns, opens,
        reason,
    )  # fmt: skip


class Both:
    """The two sides of a comparison."""

    def __init__(self, netns: int | None = NETNS, max_flows: int = 1000) -> None:
        self.it = Comparison(netns, max_flows=max_flows)
        self.at_s = 0.0

    def wire(self, count: FlowCount, verdict: Verdict = NO_SOCKET, *, nat: bool = False) -> None:
        self.it.book(count, verdict, is_translated=nat)

    def sockets(self, *counts: FlowCount, at_s: float = 0, shows: int = 4) -> None:
        for _ in self.it.taking(counts, T0 + int(at_s * S), shows_answers={shows}):
            pass

    def end(self) -> OnlyOnWire:
        self.it.finish()
        return self.it.since_start()


def only(protocol: int, sent: Traffic | None = None, received: Traffic | None = None) -> OnlyOnWire:
    return NOTHING._replace(by_protocol={protocol: (sent or Traffic(), received or Traffic())})


def not_compared(sent: Traffic, received: Traffic | None = None) -> OnlyOnWire:
    return NOTHING._replace(not_compared=(sent, received or Traffic()))


# -- any order -----------------------------------------------------------------------------------

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["wire", "wire", "sockets", "sockets", "forget", "interval"]),
        st.integers(0, 5),  # which flow
        st.booleans(),  # sent?
        st.integers(1, 5),  # packets
    ),
    max_size=80,
)


def key_of(which: int) -> FlowKey:
    return flow((UDP, TCP, ICMP)[which % 3], 4001 + which)


def headers_of(which: int) -> int:
    return 40 if which % 3 == 1 else 28


@given(EVENTS, st.integers(1, 7))
@settings(max_examples=300, deadline=None)
def test_in_any_order_it_is_the_capture_less_the_sockets(events: list, max_flows: int) -> None:
    both = Both(max_flows=max_flows)
    wire: dict[tuple[int, bool], int] = {}
    sockets: dict[tuple[int, bool], int] = {}
    told: dict[tuple[int, bool], int] = {}
    for at, (event, which, sent, number) in enumerate(events):
        count = run(
            key_of(which), 101 * number, sent=sent, number=number, headers=headers_of(which),
            at_s=at / 100,
        )  # fmt: skip
        if event == "wire":
            both.wire(count)
            wire[which, sent] = wire.get((which, sent), 0) + number
        elif event == "sockets":
            both.sockets(count, at_s=at / 100)
            sockets[which, sent] = sockets.get((which, sent), 0) + number
        elif event == "forget":
            # Before anything of it: no packet of that time has been counted by either side.
            both.it.booked_until_ns = T0 - 10 * S
        else:
            for protocol, sides in both.it.since_last().by_protocol.items():
                for side, traffic in zip((True, False), sides, strict=True):
                    assert traffic.packets >= 0 and traffic.wire_bytes >= 0
                    told[protocol, side] = told.get((protocol, side), 0) + traffic.packets
        assert len(both.it._flows) <= max_flows
    found = both.end()
    most: dict[tuple[int, bool], int] = {}
    for (which, sent), number in wire.items():
        left = max(0, number - sockets.get((which, sent), 0))
        place = key_of(which).protocol, sent
        most[place] = most.get(place, 0) + left
    packets = {
        (protocol, side): traffic
        for protocol, sides in found.by_protocol.items()
        for side, traffic in zip((True, False), sides, strict=True)
    }
    for place, number in most.items():
        traffic = packets.pop(place, Traffic())
        headers = 40 if place[0] == TCP else 28
        assert traffic == Traffic(traffic.packets, traffic.packets * (101 + headers),
                                  traffic.packets * 101)  # fmt: skip
        assert traffic.packets <= number
        if max_flows >= 6:
            assert traffic.packets == number
    assert not any(traffic.packets for traffic in packets.values())
    if max_flows >= 6:
        assert found.not_compared == (Traffic(), Traffic())


def test_intervals_add_up_to_the_whole() -> None:
    both = Both()
    told = 0
    for second in range(7):
        both.wire(run(key_of(second), 101 * 3, number=3, headers=headers_of(second), at_s=second))
        both.sockets(run(key_of(second), 101, headers=headers_of(second), at_s=second))
        told += packets_of(both.it.since_last())
    both.it.finish()
    told += packets_of(both.it.since_last())
    assert told == packets_of(both.it.since_start()) == 7 * 2


def packets_of(found: OnlyOnWire) -> int:
    return sum(traffic.packets for sides in found.by_protocol.values() for traffic in sides)


def test_what_was_told_too_early_is_made_up_for() -> None:
    """A socket that was passed over twice: the next interval has so much less."""
    both = Both()
    both.wire(run(flow(), 101 * 5, number=5))
    both.sockets()
    both.sockets()
    assert packets_of(both.it.since_last()) == 5
    both.sockets(run(flow(), 101 * 5, number=5))
    assert packets_of(both.it.since_last()) == 0
    both.wire(run(flow(), 101 * 7, number=7))
    assert packets_of(both.end()) == 7
    assert packets_of(both.it.since_last()) == 2


# -- when ----------------------------------------------------------------------------------------


def test_a_capture_waits_for_two_drains_of_the_sockets() -> None:
    both = Both()
    both.wire(run(flow(), 101))
    for expected in (0, 0, 1):
        assert packets_of(both.it.since_start()) == expected
        both.sockets()


def test_a_flow_that_is_over_is_told_and_forgotten() -> None:
    both = Both()
    both.wire(run(flow(), 202, number=2))
    both.sockets(run(flow(), 101), at_s=0.1)
    for at_s in (10, 20, 30):
        both.it.booked_until_ns = T0 + int(at_s * S)
        both.sockets(at_s=at_s)
    assert both.it._flows == {}
    assert both.end() == only(UDP, Traffic(1, 129, 101))


@pytest.mark.parametrize("late", ["capture", "sockets"])
def test_nothing_is_forgotten_of_which_something_may_still_come(late: str) -> None:
    both = Both()
    both.sockets(run(flow(), 101, at_s=7))
    for at_s in (8.0, 30.0, 60.0):
        # Who is late has told all until a moment that is no later than the packet.
        early_s = 7 + (SLACK_NS - 1) / S
        both.it.booked_until_ns = T0 + int((early_s if late == "capture" else at_s) * S)
        both.sockets(at_s=min(at_s, early_s) if late == "sockets" else at_s)
    assert len(both.it._flows) == 1
    both.wire(run(flow(), 101, at_s=7))
    assert both.end() == NOTHING


def test_two_drains_must_have_begun_after_a_flow_s_last_packet() -> None:
    """The first may have passed its socket over."""
    both = Both()
    both.wire(run(flow(), 101, at_s=7))
    both.sockets(at_s=6)
    both.it.booked_until_ns = T0 + 60 * S
    both.sockets(at_s=20)
    assert len(both.it._flows) == 1
    both.sockets(run(flow(), 101, at_s=7), at_s=30)
    assert both.end() == NOTHING


def test_what_is_booked_late_waits_all_the_same() -> None:
    both = Both()
    for at_s in (50, 60):
        both.sockets(at_s=at_s)
    both.it.booked_until_ns = T0 + 60 * S
    both.wire(run(flow(), 101))
    for at_s in (70, 80, 90):
        assert packets_of(both.it.since_start()) == 0 or at_s == 90
        both.sockets(at_s=at_s)
    assert both.end() == only(UDP, Traffic(1, 129, 101))


def test_a_clock_that_is_set_back_keeps_nothing() -> None:
    both = Both()
    both.wire(run(flow(), 101))
    both.it.shift(-3600 * S, T0 - 3600 * S)
    for at_s in (-3590, -3580, -3570):
        both.it.booked_until_ns = T0 + at_s * S
        both.sockets(at_s=at_s)
    assert both.it._flows == {}


def test_a_clock_that_is_set_makes_no_row() -> None:
    both = Both()
    both.sockets(run(flow(), 101))
    both.it.shift(3600 * S, T0 + 3600 * S)
    for at_s in (3610, 3620, 3630):
        both.it.booked_until_ns = T0 + at_s * S
        both.sockets(at_s=at_s)
    both.wire(run(flow(), 101))
    assert both.end() == not_compared(Traffic(1, 129, 101))
    both.wire(run(flow(lport=4003), 103, at_s=3640))
    assert both.end().by_protocol == {UDP: (Traffic(1, 131, 103), Traffic())}


# -- what leaves a doubt -------------------------------------------------------------------------


def test_a_full_table_leaves_flows_out() -> None:
    both = Both(max_flows=2)
    for port in (4001, 4003):
        both.wire(run(flow(lport=port), 101))
    both.wire(run(flow(lport=4007), 211))  # no room
    both.sockets(run(flow(lport=4009), 307, at_s=0.5), at_s=0.5)  # nor for what this may explain
    for at_s in (10, 20, 30):
        both.it.booked_until_ns = T0 + at_s * S
        both.sockets(at_s=at_s)
    both.wire(run(flow(lport=4009), 307, at_s=0.5))
    found = both.end()
    assert found.by_protocol == {UDP: (Traffic(2, 2 * 129, 202), Traffic())}
    assert found.not_compared == (Traffic(2, 239 + 335, 211 + 307), Traffic())
    both.wire(run(flow(lport=4013), 401, at_s=40))
    assert packets_of(both.end()) == 3, "it is over"


@pytest.mark.parametrize(
    "untold", [None, FlowKey(NETNS, UDP, b"\x0a\0\0\1", 4001, b"", 0)], ids=["flow", "remote"]
)
def test_what_sockets_cannot_tell_of_leaves_all_of_its_time_out(untold: FlowKey | None) -> None:
    both = Both()
    both.wire(run(flow(TCP), 101, headers=40))
    both.sockets(run(untold, 103, reason=None if untold else Reason.EVICTED), at_s=1)
    both.wire(run(flow(lport=4003), 211))  # of that time, and told late
    both.wire(run(flow(lport=4007), 307, at_s=3))
    found = both.end()
    assert found.by_protocol == {UDP: (Traffic(1, 335, 307), Traffic())}
    assert found.not_compared == (Traffic(2, 141 + 239, 101 + 211), Traffic())


def test_other_namespaces_are_none_of_it() -> None:
    both = Both()
    both.wire(run(flow(), 101))
    both.sockets(run(flow()._replace(netns=7), 101), run(flow()._replace(netns=7), 101))
    both.sockets(run(FlowKey(7, UDP, b"\x0a\0\0\1", 4001, b"", 0), 101))
    assert both.end() == only(UDP, Traffic(1, 129, 101))
    assert len(both.it._flows) == 1


def test_what_the_socket_has_by_another_tuple_is_compared_there() -> None:
    """A container behind NAT: the capture shows another tuple, on one interface after the other."""
    inner = flow(local="172.17.0.2")._replace(netns=7)
    both = Both(netns=None)
    verdict = Verdict(ALICE, None, None, frozenset(), inner)
    both.wire(run(flow(), 101), verdict, nat=True)
    passed = run(flow(local="172.17.0.2"), 101, sent=False, interface="docker0")
    both.wire(passed, FORWARDED._replace(socket=inner))
    both.sockets(run(inner, 101))
    assert both.end() == NOTHING


def test_what_is_translated_for_somebody_unknown_is_not_compared() -> None:
    both = Both()
    both.wire(run(flow(), 101), FORWARDED, nat=True)
    both.wire(run(flow(lport=4003), 103), FORWARDED)
    found = both.end()
    assert found.not_compared == (Traffic(1, 129, 101), Traffic())
    assert found.by_protocol == {UDP: (Traffic(1, 131, 103), Traffic())}


def test_a_packet_on_two_interfaces_is_compared_on_each() -> None:
    both = Both()
    for interface in ("eth0", "eth0.7"):
        both.wire(run(flow(), 101, interface=interface))
    both.sockets(run(flow(), 101))
    assert both.end() == NOTHING


@pytest.mark.parametrize(
    ("key", "number", "wire", "payload", "is_row"),
    [
        pytest.param(flow(), 2, 2 * 20, 0, False, id="fragments"),
        pytest.param(flow(local="::1", remote="::2"), 2, 2 * 40 + 3 * 8, 0, False, id="of IPv6"),
        pytest.param(flow(), 2, 20 + 129, 101, False, id="a fragment and a datagram"),
        pytest.param(flow(), 2, 2 * 28, 0, True, id="empty datagrams"),
        pytest.param(flow(local="::1", remote="::2"), 2, 2 * 48, 0, True, id="of IPv6, empty"),
        pytest.param(flow(TCP), 1, 52, 0, True, id="an acknowledgement"),
        pytest.param(flow(TCP), 2, 2 * 20, 0, False, id="fragments of a segment"),
        pytest.param(flow(TCP), 0, 40, 0, False, id="no packet"),
        pytest.param(flow(253), 1, 20 + 101, 101, True, id="raw"),
        pytest.param(flow(253), 1, 20, 0, True, id="raw and empty"),
        pytest.param(flow(SCTP), 1, 20 + 101, 101, False, id="not counted at sockets"),
    ],
)
def test_beside_a_socket_only_whole_packets_are_left(
    key: FlowKey, number: int, wire: int, payload: int, is_row: bool
) -> None:
    both = Both()
    moved = run(key, 1009, number=7, headers=60)
    both.wire(moved)
    both.sockets(moved)
    both.wire(moved._replace(packets=number, wire_bytes=wire, payload_bytes=payload))
    left = Traffic(number, wire, payload)
    assert both.end() == (only(key.protocol, left) if is_row else not_compared(left))


def test_where_no_socket_moved_anything_fragments_are_a_row() -> None:
    both = Both()
    both.wire(run(flow(), 1009, number=7, headers=21))
    assert both.end() == only(UDP, Traffic(7, 1009 + 7 * 21, 1009))


@pytest.mark.parametrize("shows", [4, 16])
@pytest.mark.parametrize("has_listener", [True, False])
def test_a_handshake_that_no_hook_is_asked_about(shows: int, has_listener: bool) -> None:
    """IPv6 on 6.1: the SYN+ACK has no socket. A reset of a port that nobody has never has one."""
    both = Both()
    syn = run(flow(TCP), 0, headers=60, sent=False, opens=True)
    both.wire(syn)
    both.wire(run(flow(TCP), 0, headers=60))
    both.sockets(*([syn] if has_listener else []), shows=shows)
    answer = Traffic(1, 60, 0)
    if not has_listener:
        assert both.end() == only(TCP, answer, answer)
    elif shows == 4:
        assert both.end() == only(TCP, answer)
    else:
        assert both.end() == not_compared(answer)


def test_what_has_no_flow_is_not_compared_and_what_is_no_ip_is_no_matter() -> None:
    both = Both()
    both.wire(run(None, 101, reason=Reason.UNDECODABLE))
    both.wire(run(None, 103, sent=False, reason=Reason.EVICTED))
    both.wire(run(None, 107, reason=Reason.NOT_IP))
    assert both.end() == not_compared(Traffic(1, 129, 101), Traffic(1, 131, 103))


# -- in the ledger -------------------------------------------------------------------------------


def settled(world: World, packets: Iterable[FlowKey]) -> OnlyOnWire:
    for key in packets:
        world.packets(0, key)
    world.settle(10_000, final=True)
    comparison = world.ledger.comparison
    assert comparison is not None
    comparison.finish()
    found = world.ledger.account().only_on_wire
    assert found is not None
    return found


def test_the_ledger_hands_over_what_it_books() -> None:
    world = World()
    assert world.ledger.account().only_on_wire is None
    world.ledger.comparison = Comparison(NETNS)
    assert settled(world, [flow(), flow(lport=4003)]) == only(UDP, Traffic(2, 258, 202))
    assert packets_of(world.ledger.take_interval().only_on_wire or NOTHING) == 2
    assert packets_of(world.ledger.take_interval().only_on_wire or NOTHING) == 0


def test_where_translations_cannot_be_told_nothing_is_compared() -> None:
    world = World()
    world.ledger.comparison = Comparison(NETNS)
    world.ledger.elsewhere.is_blind = True
    assert settled(world, [flow()]) == not_compared(Traffic(1, 129, 101))


def test_flows_are_let_go_of_when_their_packets_are_booked() -> None:
    world = World()
    comparison = world.ledger.comparison = Comparison(NETNS)
    world.packets(0)
    world.settle(0)
    for at_s in range(6, 40, 6):
        world.look(at_s * 1000)
        world.settle(at_s * 1000)
        for _ in comparison.taking([], T0 + at_s * S, shows_answers={4}):
            pass
    assert comparison._flows == {}
    assert packets_of(comparison.since_start()) == 1
