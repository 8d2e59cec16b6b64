"""Segments → per-flow counts: the portable engine.

``Counter.add`` runs once per packet, so it does as little as it can: one ``unpack`` of a frame that
is plain IP with TCP or UDP, one dictionary look-up by the bytes that name the flow in one direction
(addresses and ports as they stand in the frame), four additions. Every other frame, and the first
one of each flow, takes the road through ``Decoder``.

A run is what came of one flow in one direction without a pause; it becomes a ``FlowCount`` for each
flow that the packets belong to (on loopback: two, one per end).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct, error
from typing import Any

from procnet.capture.decode import ETHERNET, SLL, SLL2, Decoder
from procnet.capture.whose import Whose
from procnet.model import TCP, UDP, Ends, FlowCount, Reason, Segment

RUN_GAP_NS = 100_000
"""A longer pause ends a run, so that bytes can be told apart when a port changes hands."""

_RUN_GAP_S = RUN_GAP_NS / 1e9

# What is read of a frame whose link header has one length: ethertype, version and header length,
# total length, fragment, protocol, then addresses and ports as one key. UDP's last 4 bytes are only
# asked to be there.
_PLAIN_IPV4 = {
    ETHERNET: Struct(">12xHBxH2xHxB2x12s4x"),
    SLL: Struct(">14xHBxH2xHxB2x12s4x"),
    SLL2: Struct(">H18xBxH2xHxB2x12s4x"),
}
_PLAIN_IPV6 = {
    ETHERNET: Struct(">12xHBxxxHBx36s4x"),
    SLL: Struct(">14xHBxxxHBx36s4x"),
    SLL2: Struct(">H18xBxxxHBx36s4x"),
}
# For other links: reads nothing, and what it gives equals no ethertype.
_NOTHING_IPV4 = Struct("0s0s0s0s0s0s")
_NOTHING_IPV6 = Struct("0s0s0s0s0s")
_IP_AT = {ETHERNET: 14, SLL: 16, SLL2: 20}

# Bytes of the IP and TCP headers, by the TCP byte that holds the data offset. One that TCP does not
# allow makes the payload negative, which the quick path leaves to the other.
_IPV4_TCP_BYTES = tuple(20 + (byte >> 4) * 4 if byte >= 0x50 else 1 << 20 for byte in range(256))
_TCP_BYTES = tuple(headers - 20 for headers in _IPV4_TCP_BYTES)

# A run is a list because that is the cheapest thing to change in place.
_PACKETS, _WIRE, _PAYLOAD, _LAST, _FIRST, _OPENS, _VIEWS, _BY_ADDRESS = range(8)
_Run = list[Any]

_NEVER_S = float("-inf")


class Counter:
    """Counts the packets of one interface or file, which must come through one thread.

    ``local_addresses`` (packed, 4 or 16 bytes) decide direction. ``loopback``: every packet counts
    twice, as sent by its source's flow and as received by its destination's. ``own_mac`` tells what
    this host sends where no address does. ``offline`` without addresses: a flow is seen from the
    end that sent its first packet. ``netns`` goes into every key.

    At most ``max_entries`` runs are held between two drains; what comes above that is counted as
    ``EVICTED``. Conservation: all drains together hold the packets and wire bytes that were fed in,
    those between two local addresses (on loopback: all) twice, once for each end.

    Raises ``CaptureError`` for a link type that cannot be decoded.
    """

    def __init__(
        self,
        interface: str,
        link_type: int,
        netns: int,
        local_addresses: Iterable[bytes] = frozenset(),
        *,
        loopback: bool = False,
        own_mac: bytes | None = None,
        offline: bool = False,
        max_entries: int = 262_144,
    ) -> None:
        self.own_mac = own_mac
        """What the frames of this host come from, from now on; it may change while it is read."""
        self.has_new_flows = False
        """Whether a flow or a connection has begun since the last drain, as far as is remembered: a
        flow that paused over several drains is taken for new."""
        self._interface = interface
        self._link_type = link_type
        self._loopback = loopback
        self._whose = Whose(
            netns,
            local_addresses,
            loopback=loopback,
            offline=offline,
            max_first_senders=max_entries,
        )
        self._max_entries = max_entries
        self._entries = 0
        self._decoder = Decoder(link_type)
        self._runs: dict[tuple[Ends, bool], _Run] = {}
        self._finished: list[_Run] = []
        # What belongs to no flow, by reason and by the directions that it counts for.
        self._aside: dict[tuple[Reason, tuple[bool, ...]], _Run] = {}
        # The runs again, by addresses and ports as they stand in the frame.
        self._tcp: dict[bytes, _Run] = {}
        self._udp: dict[bytes, _Run] = {}
        self._unpack_ipv4 = _PLAIN_IPV4.get(link_type, _NOTHING_IPV4).unpack_from
        self._unpack_ipv6 = _PLAIN_IPV6.get(link_type, _NOTHING_IPV6).unpack_from
        at = _IP_AT.get(link_type, 0)
        self._ipv4_offset_at, self._ipv4_flags_at = at + 32, at + 33
        self._ipv6_offset_at, self._ipv6_flags_at = at + 52, at + 53

    def add(self, timestamp: float, frame: bytes) -> None:
        """Count a frame that was captured at ``timestamp``, in seconds since 1970. Never raises."""
        # Measured, not guessed: see benchmarks/file_throughput.py before changing a line.
        plain: dict[bytes, _Run] | None = None
        ends = b""
        try:
            kind, version, total, fragment, protocol, ends = self._unpack_ipv4(frame)
            # 0x3FFF: more fragments, or an offset.
            if kind == 0x0800 and version == 0x45 and not fragment & 0x3FFF:
                if protocol == TCP:
                    plain = self._tcp
                    payload = total - _IPV4_TCP_BYTES[frame[self._ipv4_offset_at]]
                    if frame[self._ipv4_flags_at] & 0x12 == 0x02:
                        payload = -1
                elif protocol == UDP:
                    plain = self._udp
                    payload = total - 28
            elif kind == 0x86DD:
                _, version, total, protocol, ends = self._unpack_ipv6(frame)
                if version >> 4 == 6:
                    if protocol == TCP:
                        plain = self._tcp
                        payload = total - _TCP_BYTES[frame[self._ipv6_offset_at]]
                        if frame[self._ipv6_flags_at] & 0x12 == 0x02:
                            payload = -1
                    elif protocol == UDP:
                        plain = self._udp
                        payload = total - 8
                    total += 40
            if plain is not None:
                run = plain.get(ends)
                # Negative: damage, offload (length 0) or a SYN; all for the other road.
                if (
                    run is not None
                    and payload >= 0
                    and (
                        -_RUN_GAP_S <= timestamp - run[_LAST] <= _RUN_GAP_S
                        or self._begin(run, timestamp, False)
                    )
                ):
                    run[_PACKETS] += 1
                    run[_WIRE] += total
                    run[_PAYLOAD] += payload
                    run[_LAST] = timestamp
                    return
        except (error, IndexError):
            # Shorter than what was looked for, which is for the decoder to judge.
            pass
        self._add_decoded(timestamp, frame, plain, ends)

    def drain(self) -> list[FlowCount]:
        """Hand over everything that was counted since the last drain, and begin anew."""
        finished, self._finished = self._finished, []
        aside, self._aside = self._aside, {}
        counts: list[FlowCount] = []
        for run in finished:
            counts.extend(self._counts(run))
        idle = 0
        for run in self._runs.values():
            if run[_PACKETS]:
                counts.extend(self._counts(run))
                run[_PACKETS] = 0
                run[_LAST] = _NEVER_S
            else:
                idle += 1
        for run in aside.values():
            counts.extend(self._counts(run))
        self._entries = 0
        self.has_new_flows = False
        # Flows that may be over are kept only while most are not: looking up a flow anew is cheap.
        if idle * 2 > len(self._runs):
            self._forget()
        return counts

    def set_local_addresses(self, addresses: Iterable[bytes]) -> None:
        """Decide direction by these addresses from now on; what was counted stays as it is."""
        local = frozenset(addresses)
        if local == self._whose.local_addresses:
            return
        self._finished.extend(run for run in self._runs.values() if run[_PACKETS])
        self._forget()
        self._whose.local_addresses = local

    def _forget(self) -> None:
        self._runs.clear()
        self._tcp.clear()
        self._udp.clear()

    def _add_decoded(
        self, timestamp: float, frame: bytes, plain: dict[bytes, _Run] | None, plain_ends: bytes
    ) -> None:
        found = self._decoder.decode(frame)
        outgoing = self._is_outgoing(frame)
        if not isinstance(found, Segment):
            directions = (True, False) if self._loopback else (outgoing,)
            self._add_aside(found.reason, directions, timestamp, found.wire_bytes, 0)
            return
        ends = found[:5]
        run = self._runs.get((ends, outgoing))
        if run is None:
            views, by_address = self._whose.views(ends, outgoing)
            run = [0, 0, 0, _NEVER_S, 0.0, False, views, by_address]
            self.has_new_flows = True
        if found.opens or not -_RUN_GAP_S <= timestamp - run[_LAST] <= _RUN_GAP_S:
            if not self._begin(run, timestamp, found.opens):
                directions = tuple(sent for _, sent, _ in run[_VIEWS])
                self._add_aside(
                    Reason.EVICTED, directions, timestamp, found.wire_bytes, found.payload_bytes
                )
                return
            self._runs[ends, outgoing] = run
            self.has_new_flows = self.has_new_flows or found.opens
            # Where the frame's sender decides, addresses and ports alone do not name the run.
            if plain is not None and run[_BY_ADDRESS]:
                plain[plain_ends] = run
        run[_PACKETS] += 1
        run[_WIRE] += found.wire_bytes
        run[_PAYLOAD] += found.payload_bytes
        run[_LAST] = timestamp

    def _begin(self, run: _Run, timestamp: float, opens: bool) -> bool:
        """Put away what the run holds and make it a new one; False if there is no room."""
        if self._entries >= self._max_entries:
            return False
        self._entries += 1
        if run[_PACKETS]:
            self._finished.append(run.copy())
        run[:_VIEWS] = [0, 0, 0, timestamp, timestamp, opens]
        return True

    def _add_aside(
        self,
        reason: Reason,
        directions: tuple[bool, ...],
        timestamp: float,
        wire_bytes: int,
        payload_bytes: int,
    ) -> None:
        run = self._aside.get((reason, directions))
        if run is None:
            views = tuple((None, sent, reason) for sent in directions)
            run = [0, 0, 0, timestamp, timestamp, False, views, False]
            self._aside[reason, directions] = run
        run[_PACKETS] += 1
        run[_WIRE] += wire_bytes
        run[_PAYLOAD] += payload_bytes
        run[_LAST] = timestamp

    def _is_outgoing(self, frame: bytes) -> bool:
        """Whether the link header says that this host sent the frame."""
        if self._link_type == ETHERNET:
            return self.own_mac is not None and frame[6:12] == self.own_mac
        # Packet type 4 is PACKET_OUTGOING (packet(7)).
        if self._link_type == SLL:
            return frame[:2] == b"\0\x04"
        return self._link_type == SLL2 and frame[10:11] == b"\x04"

    def _counts(self, run: _Run) -> Iterator[FlowCount]:
        packets, wire_bytes, payload_bytes, last, first, opens, views, _ = run
        # The clock may be set back by less than a run's gap.
        first_ns, last_ns = _nanoseconds(min(first, last)), _nanoseconds(max(first, last))
        for key, sent, reason in views:
            yield FlowCount(
                self._interface, key, sent, packets, wire_bytes, payload_bytes,
                first_ns, last_ns, opens, reason,
            )  # fmt: skip


def _nanoseconds(seconds: float) -> int:
    # A double of today's date resolves 238 ns: rounding is all that can be saved.
    return round(seconds * 1e9)
