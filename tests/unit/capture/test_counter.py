"""Packets into counts: direction, runs, bounds, and the conservation of every byte."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procnet.capture.counter import RUN_GAP_NS, Counter
from procnet.capture.decode import Decoder
from procnet.errors import CaptureError
from procnet.model import ICMP, TCP, UDP, FlowCount, FlowKey, Reason, Segment
from procnet.testing import frames
from procnet.testing.frames import packed, tcp_frame, udp_frame

NETNS = 4026531840
US, THEM, OTHER = "10.0.0.1", "10.0.0.2", "10.0.0.3"
MAC = b"\x02\0\0\0\0\x01"
START_S = 1_700_000_000.0


def counter(*local: str, **options: object) -> Counter:
    link_type = options.pop("link_type", 1)
    return Counter("eth0", link_type, NETNS, frozenset(map(packed, local or (US,))), **options)


def key(protocol: int, local: str, local_port: int, remote: str, remote_port: int) -> FlowKey:
    return FlowKey(NETNS, protocol, packed(local), local_port, packed(remote), remote_port)


def feed(counting: Counter, *sent: bytes, at_s: float = START_S, step_s: float = 0.00002) -> None:
    for number, frame in enumerate(sent):
        counting.add(at_s + number * step_s, frame)


def brief(counts: Iterable[FlowCount]) -> list[tuple[object, ...]]:
    return [(c.key, c.sent, c.packets, c.wire_bytes, c.payload_bytes, c.reason) for c in counts]


def test_a_flow_is_counted_by_direction_from_its_local_end() -> None:
    counting = counter()
    feed(counting, *[tcp_frame(US, 5, THEM, 443, b"x" * 101)] * 23)
    feed(counting, *[tcp_frame(THEM, 443, US, 5, b"y" * 211)] * 29)
    flow = key(TCP, US, 5, THEM, 443)
    assert brief(counting.drain()) == [
        (flow, True, 23, 23 * 141, 23 * 101, None),
        (flow, False, 29, 29 * 251, 29 * 211, None),
    ]


@pytest.mark.parametrize("build", [tcp_frame, udp_frame])
@pytest.mark.parametrize("ends", [(US, THEM), ("fd00::1", "fd00::2")])
def test_packets_after_the_first_give_the_same_figures(build, ends) -> None:
    """The quick road is taken from the second packet on; it must not count otherwise."""
    frame = build(ends[0], 5, ends[1], 6, b"x" * 101)
    found = Decoder(1).decode(frame)
    assert isinstance(found, Segment)
    counting = counter(ends[0])
    for number in range(1, 24):
        feed(counting, *[frame] * number)
        (count,) = counting.drain()
        assert count.packets == number
        assert count.wire_bytes == number * found.wire_bytes
        assert count.payload_bytes == number * found.payload_bytes


@pytest.mark.parametrize(
    ("link_type", "wrap"),
    [(1, frames.ethernet), (113, frames.sll), (276, frames.sll2), (12, bytes), (0, frames.null)],
)
def test_every_link_type_counts_the_same(link_type, wrap) -> None:
    counting = counter(US, "fd00::1", link_type=link_type)
    four = frames.ipv4(frames.tcp(b"x" * 11, 5, 6), US, THEM, TCP)
    six = frames.ipv6(frames.udp(b"x" * 13, 5, 6), "fd00::1", "fd00::2", UDP)
    feed(counting, *[wrap(four), wrap(six)] * 7)
    assert brief(counting.drain()) == [
        (key(TCP, US, 5, THEM, 6), True, 7, 7 * 51, 7 * 11, None),
        (key(UDP, "fd00::1", 5, "fd00::2", 6), True, 7, 7 * 61, 7 * 13, None),
    ]


def test_a_drain_hands_over_once() -> None:
    counting = counter()
    feed(counting, *[udp_frame(US, 5, THEM, 6)] * 7)
    assert [count.packets for count in counting.drain()] == [7]
    assert counting.drain() == []
    feed(counting, udp_frame(US, 5, THEM, 6), at_s=START_S + 1)
    (count,) = counting.drain()
    assert (count.packets, count.first_ns) == (1, 1_700_000_001 * 10**9)


def test_a_flow_that_begins_is_told_until_the_drain() -> None:
    counting = counter()
    frame, syn = (tcp_frame(US, 5, THEM, 6, flags=f) for f in (frames.ACK, frames.SYN))
    assert not counting.has_new_flows
    for second, (sent, is_new) in enumerate([(frame, True), (frame, False), (syn, True)]):
        feed(counting, sent, sent, at_s=START_S + second)
        assert counting.has_new_flows is is_new
        counting.drain()
        assert not counting.has_new_flows


def test_stamps_become_nanoseconds_to_the_resolution_of_a_double() -> None:
    counting = counter()
    feed(counting, *[udp_frame(US, 5, THEM, 6)] * 3, at_s=START_S + 0.123456, step_s=0.00005)
    (count,) = counting.drain()
    assert abs(count.first_ns - 1_700_000_000_123_456_000) < 240
    assert abs(count.last_ns - 1_700_000_000_123_556_000) < 240


def test_a_pause_ends_a_run() -> None:
    counting = counter()
    frame = udp_frame(US, 5, THEM, 6)
    gap_s = RUN_GAP_NS / 1e9
    feed(counting, *[frame] * 5, step_s=gap_s * 0.9)
    feed(counting, *[frame] * 3, at_s=START_S + gap_s * (4 * 0.9 + 1.1))
    first, second = counting.drain()
    assert (first.packets, second.packets) == (5, 3)
    assert first.last_ns < second.first_ns
    assert second.first_ns - first.last_ns == pytest.approx(RUN_GAP_NS * 1.1, abs=500)


def test_a_clock_that_is_set_back_ends_a_run() -> None:
    counting = counter()
    frame = udp_frame(US, 5, THEM, 6)
    feed(counting, frame)
    feed(counting, frame, at_s=START_S - 3600)
    first, second = counting.drain()
    assert first.first_ns - second.first_ns == 3600 * 10**9
    assert all(count.first_ns <= count.last_ns for count in (first, second))


@pytest.mark.parametrize(("us", "them"), [(US, THEM), ("fd00::1", "fd00::2")])
def test_a_syn_ends_a_run_because_a_new_connection_begins(us: str, them: str) -> None:
    counting = counter(us)
    syn, data = (tcp_frame(us, 5, them, 6, flags=f) for f in (frames.SYN, frames.ACK))
    answer = tcp_frame(them, 6, us, 5, flags=frames.SYN | frames.ACK)
    feed(counting, syn, data, data, syn, data, answer, answer, step_s=0.000_01)
    rows = [(count.sent, count.packets, count.opens) for count in counting.drain()]
    assert rows == [(True, 3, True), (True, 2, True), (False, 2, False)]


@pytest.mark.parametrize(("us", "them"), [(US, THEM), ("fd00::1", "fd00::2")])
def test_a_damaged_packet_does_not_join_the_flow_that_it_resembles(us: str, them: str) -> None:
    counting = counter(us)
    good = tcp_frame(us, 5, them, 6, b"x" * 11)
    at = len(good) - 11 - 20 + 12
    bad = good[:at] + b"\x40" + good[at + 1 :]  # a data offset of 16 bytes
    feed(counting, good, good, bad, good)
    rows = [(count.packets, count.reason) for count in counting.drain()]
    assert rows == [(3, None), (1, Reason.UNDECODABLE)]


def test_packets_that_overtake_each_other_stay_in_one_run() -> None:
    counting = counter()
    frame = udp_frame(US, 5, THEM, 6)
    for offset_s in (0.0, 0.00005, -0.00002):
        counting.add(START_S + offset_s, frame)
    (count,) = counting.drain()
    assert count.packets == 3
    assert count.first_ns < count.last_ns


def test_on_loopback_a_packet_belongs_to_both_ends() -> None:
    counting = counter("127.0.0.1", loopback=True)
    feed(counting, *[tcp_frame("127.0.0.1", 5, "127.0.0.1", 6, b"x" * 11)] * 7)
    feed(counting, frames.ethernet(frames.arp(US, THEM), ethertype=0x0806))
    assert brief(counting.drain()) == [
        (key(TCP, "127.0.0.1", 5, "127.0.0.1", 6), True, 7, 357, 77, None),
        (key(TCP, "127.0.0.1", 6, "127.0.0.1", 5), False, 7, 357, 77, None),
        (None, True, 1, 28, 0, Reason.NOT_IP),
        (None, False, 1, 28, 0, Reason.NOT_IP),
    ]


def test_a_packet_between_two_local_addresses_counts_for_both() -> None:
    counting = counter(US, OTHER)
    feed(counting, udp_frame(US, 5, OTHER, 6))
    assert brief(counting.drain()) == [
        (key(UDP, US, 5, OTHER, 6), True, 1, 28, 0, None),
        (key(UDP, OTHER, 6, US, 5), False, 1, 28, 0, None),
    ]


@pytest.mark.parametrize("group", ["224.0.0.251", "239.255.255.250", "255.255.255.255"])
def test_what_is_sent_to_a_group_is_received(group: str) -> None:
    counting = counter()
    feed(counting, udp_frame(THEM, 5, group, 6))
    assert brief(counting.drain()) == [(key(UDP, group, 6, THEM, 5), False, 1, 28, 0, None)]


def test_what_is_sent_to_an_ipv6_group_is_received() -> None:
    counting = counter("fd00::1")
    feed(counting, udp_frame("fd00::2", 5, "ff02::fb", 6))
    (count,) = counting.drain()
    assert (count.key, count.sent) == (key(UDP, "ff02::fb", 6, "fd00::2", 5), False)


def test_what_we_send_to_a_group_is_sent() -> None:
    counting = counter()
    feed(counting, udp_frame(US, 5, "224.0.0.251", 6))
    (count,) = counting.drain()
    assert (count.key, count.sent) == (key(UDP, US, 5, "224.0.0.251", 6), True)


def test_without_an_address_yet_our_own_mac_tells_what_we_send() -> None:
    counting = counter(own_mac=MAC)
    feed(counting, udp_frame("0.0.0.0", 68, "255.255.255.255", 67, b"x" * 31))
    (count,) = counting.drain()
    assert (count.key, count.sent) == (key(UDP, "0.0.0.0", 68, "255.255.255.255", 67), True)
    assert count.reason is None


def test_what_neither_end_of_is_local_is_forwarded() -> None:
    """Both directions of a forwarded flow have one key, whichever frame it was seen in."""
    counting = counter(own_mac=MAC)
    there = frames.ipv4(frames.udp(b"", 5, 6), OTHER, THEM, UDP)
    back = frames.ipv4(frames.udp(b"", 6, 5), THEM, OTHER, UDP)
    feed(counting, *[frames.ethernet(there, source=b"other.", destination=MAC)] * 3)
    feed(counting, *[frames.ethernet(back, source=MAC)] * 5)
    feed(counting, *[frames.ethernet(there, source=MAC)] * 7)
    flow = key(UDP, THEM, 6, OTHER, 5)
    assert brief(counting.drain()) == [
        (flow, False, 3, 84, 0, Reason.FORWARDED),
        (flow, True, 5, 140, 0, Reason.FORWARDED),
        (key(UDP, OTHER, 5, THEM, 6), True, 7, 196, 0, Reason.FORWARDED),
    ]


@pytest.mark.parametrize(("link_type", "wrap"), [(113, frames.sll), (276, frames.sll2)])
def test_a_cooked_frame_says_itself_who_sent_it(link_type, wrap) -> None:
    counting = counter(link_type=link_type)
    arp = frames.arp(US, THEM)
    feed(counting, wrap(arp, ethertype=0x0806, outgoing=True), wrap(arp, ethertype=0x0806))
    assert [(count.sent, count.packets) for count in counting.drain()] == [(True, 1), (False, 1)]


def test_an_offline_flow_is_seen_from_the_end_that_began() -> None:
    counting = Counter("file", 1, 0, offline=True)
    request, reply = udp_frame(THEM, 5, US, 53), udp_frame(US, 53, THEM, 5, b"x" * 31)
    feed(counting, request, reply)
    flow = FlowKey(0, UDP, packed(THEM), 5, packed(US), 53)
    assert brief(counting.drain()) == [(flow, True, 1, 28, 0, None), (flow, False, 1, 59, 31, None)]
    # Also after a drain, and after one without traffic.
    counting.drain()
    feed(counting, reply, at_s=START_S + 1)
    assert brief(counting.drain()) == [(flow, False, 1, 59, 31, None)]


def test_offline_with_addresses_these_decide() -> None:
    counting = counter(offline=True)
    feed(counting, udp_frame(THEM, 5, US, 53))
    (count,) = counting.drain()
    assert (count.key, count.sent) == (key(UDP, US, 53, THEM, 5), False)


def test_an_offline_flow_to_itself_stays_sent() -> None:
    counting = Counter("file", 1, 0, offline=True)
    for second in range(3):
        feed(counting, udp_frame(US, 5, US, 5), at_s=START_S + second)
        (count,) = counting.drain()
        assert count.sent
        counting.drain()


def test_new_addresses_count_from_then_on() -> None:
    counting = counter()
    frame = udp_frame(OTHER, 5, THEM, 6)
    feed(counting, *[frame] * 3)
    counting.set_local_addresses({packed(US), packed(OTHER)})
    feed(counting, *[frame] * 5)
    assert brief(counting.drain()) == [
        (key(UDP, THEM, 6, OTHER, 5), False, 3, 84, 0, Reason.FORWARDED),
        (key(UDP, OTHER, 5, THEM, 6), True, 5, 140, 0, None),
    ]


def test_an_echo_is_one_flow_by_its_id() -> None:
    counting = counter()
    feed(counting, frames.echo_frame(US, THEM, 77, b"x" * 56))
    feed(counting, frames.echo_frame(THEM, US, 77, b"x" * 56, reply=True))
    flow = key(ICMP, US, 77, THEM, 77)
    assert brief(counting.drain()) == [
        (flow, True, 1, 84, 56, None),
        (flow, False, 1, 84, 56, None),
    ]


def test_later_fragments_belong_to_the_flow_of_the_first() -> None:
    counting = counter()
    pieces = frames.fragments(frames.udp(bytes(2003), 5, 6), US, THEM, UDP, identification=7)
    feed(counting, *map(frames.ethernet, pieces))
    assert brief(counting.drain()) == [(key(UDP, US, 5, THEM, 6), True, 2, 2051, 2003, None)]


def test_what_cannot_be_decoded_is_counted() -> None:
    counting = counter(own_mac=MAC)
    feed(counting, *[frames.ethernet(b"\x45" + bytes(18))] * 7, b"short")
    assert brief(counting.drain()) == [
        (None, True, 7, 133, 0, Reason.UNDECODABLE),
        (None, False, 1, 0, 0, Reason.UNDECODABLE),
    ]


def test_a_full_counter_still_counts_every_byte() -> None:
    counting = counter(max_entries=11)
    feed(counting, *[udp_frame(US, port, THEM, 6, b"x" * 10) for port in range(1, 102)])
    known = udp_frame(US, 1, THEM, 6, b"x" * 10)
    feed(counting, known, at_s=START_S)
    *flows, evicted = brief(counting.drain())
    assert len(flows) == 11
    assert flows[0][2] == 2  # a run that is there already goes on
    assert evicted == (None, True, 90, 90 * 38, 900, Reason.EVICTED)
    feed(counting, *[udp_frame(US, port, THEM, 6) for port in range(201, 212)], at_s=START_S + 1)
    assert [count.reason for count in counting.drain()] == [None] * 11


def test_a_run_without_room_is_evicted_and_not_mixed_with_another() -> None:
    counting = counter(max_entries=2)
    frame = udp_frame(US, 5, THEM, 6)
    feed(counting, *[frame] * 5, step_s=1)
    rows = [(count.packets, count.reason) for count in counting.drain()]
    assert rows == [(1, None), (1, None), (3, Reason.EVICTED)]


def test_memory_stays_bounded_over_many_drains() -> None:
    counting = counter(max_entries=101)
    for second in range(23):
        for port in range(1, 98):
            counting.add(START_S + second, udp_frame(US, 1000 * second + port, THEM, 6))
        counting.drain()
        assert len(counting._runs) <= 2 * 101
        assert len(counting._udp) <= 2 * 101


def test_an_unknown_link_type_is_refused() -> None:
    with pytest.raises(CaptureError, match="127"):
        counter(link_type=127)


ADDRESSES = [US, THEM, OTHER, "224.0.0.1", "255.255.255.255", "fd00::1", "fd00::2", "ff02::1"]
PAIRS = [(a, b) for a in ADDRESSES for b in ADDRESSES if (":" in a) == (":" in b)]


@st.composite
def traffic(draw: st.DrawFn) -> bytes:
    source, destination = draw(st.sampled_from(PAIRS))
    ports = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    payload = bytes(draw(st.sampled_from([0, 1, 23, 101])))
    kind = draw(st.sampled_from(["tcp", "syn", "udp", "echo", "fragments", "arp", "bytes", "cut"]))
    if kind == "arp":
        return frames.ethernet(frames.arp(US, THEM), ethertype=0x0806)
    if kind == "bytes":
        return draw(st.binary(max_size=80))
    if kind == "echo":
        return frames.echo_frame(source, destination, ports[0], payload)
    if kind == "fragments":
        whole = frames.udp(bytes(101), *ports)
        pieces = frames.fragments(whole, source, destination, UDP, identification=5, size=64)
        return frames.ethernet(draw(st.sampled_from(pieces)))
    if kind == "udp":
        return udp_frame(source, ports[0], destination, ports[1], payload)
    flags = frames.SYN if kind == "syn" else frames.ACK
    frame = tcp_frame(source, ports[0], destination, ports[1], payload, flags=flags)
    return frame[: draw(st.integers(0, 60))] if kind == "cut" else frame


@settings(max_examples=400)
@given(
    st.lists(st.tuples(st.sampled_from([0, 0.0001, 0.01, -0.01]), traffic()), max_size=60),
    st.sampled_from([1, 3, 1000]),
    st.booleans(),
    st.sets(st.integers(0, 60), max_size=4),
    st.sampled_from([None, MAC]),
)
def test_nothing_is_lost_and_nothing_is_made_up(steps, max_entries, loopback, drains, mac) -> None:
    local = {packed(US), packed(OTHER), packed("fd00::1")}
    counting = Counter(
        "x", 1, NETNS, local, loopback=loopback, own_mac=mac, max_entries=max_entries
    )
    decoder = Decoder(1)
    now_s, fed, counts = START_S, Tally(), []
    for number, (step_s, frame) in enumerate(steps):
        now_s += step_s
        counting.add(now_s, frame)
        found = decoder.decode(frame)
        both = isinstance(found, Segment) and {found.source, found.destination} <= local
        times = 2 if loopback or both else 1
        fed["packets"] += times
        fed["wire_bytes"] += times * found.wire_bytes
        fed["payload_bytes"] += times * getattr(found, "payload_bytes", 0)
        if number in drains:
            counts += counting.drain()
    counts += counting.drain()
    for figure in ("packets", "wire_bytes", "payload_bytes"):
        assert sum(getattr(count, figure) for count in counts) == fed[figure]
    assert all(count.packets > 0 and count.first_ns <= count.last_ns for count in counts)
    assert all((count.key is None) <= (count.reason is not None) for count in counts)


@settings(max_examples=300)
@given(st.lists(traffic(), min_size=1, max_size=40))
def test_the_quick_road_counts_what_the_decoder_says(sent) -> None:
    """Two counters, one of which never sees a frame twice and so decodes each."""
    local = {packed(US), packed("fd00::1")}
    quick = Counter("x", 1, NETNS, local)
    totals: Tally[tuple[object, ...]] = Tally()
    decoder_state = Counter("x", 1, NETNS, local)
    for frame in sent:
        quick.add(START_S, frame)
        decoder_state._add_decoded(START_S, frame, None, b"")
    for sign, counting in ((1, quick), (-1, decoder_state)):
        for count in counting.drain():
            for figure in ("packets", "wire_bytes", "payload_bytes"):
                name = (figure, count.key, count.sent, count.reason)
                totals[name] += sign * getattr(count, figure)
    assert not any(totals.values())
