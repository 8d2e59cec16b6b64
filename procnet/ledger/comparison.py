"""What a capture saw and no socket moved: of each flow, its packets less those of the sockets.

The two sides tell of a flow in any order and at times of their own. What the capture has waits
until the sockets have been asked twice more, and a flow is done with when nothing of either side
can still be on its way. Whatever leaves a doubt is not compared, and is a figure: what remains may
be less than what went without a socket, and is never what went through one.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

from procnet.ledger.claims import ALWAYS_NS
from procnet.ledger.verdict import Verdict
from procnet.model import ICMP, ICMP6, SCTP, TCP, UDP, UDPLITE, FlowCount, FlowKey, Reason, Traffic

MAX_COMPARED = 65_536
"""Flows of which something may still come, a kilobyte each."""
SLACK_NS = 1_000_000_000
"""More than the clocks of both sides differ, or packets are held back."""
SLICE_COUNTS = 4096

_NOT_AT_SOCKETS = frozenset((33, SCTP))  # DCCP: no hook counts them
_PORTS_BYTES = {UDP: 8, UDPLITE: 8, ICMP: 8, ICMP6: 8}
_LEAST_TCP_BYTES = 20
_SENT, _RECEIVED = 0, 3

Sums = list[int]
"""Packets, wire bytes and payload bytes, sent and received."""
BothWays = tuple[Traffic, Traffic]
"""Sent and received."""


class OnlyOnWire(NamedTuple):
    """What is left, by IP protocol, and what was not compared."""

    by_protocol: dict[int, BothWays]
    not_compared: BothWays


class _Flow:
    __slots__ = ("at_sockets", "drains", "is_doubtful", "last_ns", "on_wire", "was_opened")

    def __init__(self) -> None:
        self.at_sockets = [0] * 6
        # By interface: a packet that crosses two is compared on each.
        self.on_wire: dict[str, Sums] = {}
        self.last_ns = ALWAYS_NS
        self.drains = 0
        self.was_opened = False
        self.is_doubtful = False


class Comparison:
    """Takes what is booked of the capture, and what the sockets count; under the ledger's lock.

    ``netns``: the inode of the only namespace whose sockets can be meant, or None for any.
    """

    def __init__(self, netns: int | None, *, max_flows: int = MAX_COMPARED) -> None:
        self.booked_until_ns = ALWAYS_NS
        """No packet of before that is still to be booked."""
        self._netns = netns
        self._max_flows = max_flows
        self._flows: dict[FlowKey, _Flow] = {}
        # What the capture has, by how often the sockets were asked since: not yet, and once.
        self._fresh: dict[tuple[FlowKey, str], Sums] = {}
        self._older: dict[tuple[FlowKey, str], Sums] = {}
        self._drains = 0
        self._drained_ns = self._drained_before_ns = ALWAYS_NS
        self._retired_ns = ALWAYS_NS
        self._doubt_until_ns = ALWAYS_NS
        self._shows_answers: Container[int] = ()
        # What flows have left that are done with.
        self._left: dict[int, Sums] = {}
        self._not_compared = [0] * 6
        self._told: dict[int, Sums] = {}
        self._told_not_compared = [0] * 6

    def book(self, count: FlowCount, verdict: Verdict, *, is_translated: bool) -> None:
        """What a capture saw, when all is known of it. ``is_translated``: its tuple may be no
        socket's."""
        key = verdict.socket or count.key
        at = _SENT if count.sent else _RECEIVED
        if key is None:
            if count.reason is not Reason.NOT_IP:
                _add(self._not_compared, at, count)
            return
        flow = self._flow_of(key, count)
        if flow is None:
            _add(self._not_compared, at, count)
            return
        if verdict.socket is not None and verdict.reason is Reason.FORWARDED:
            at = _RECEIVED if count.sent else _SENT  # it goes the other way for its socket
        if is_translated or verdict.socket is not None or count.first_ns <= self._doubt_until_ns:
            flow.is_doubtful = True
        flow.was_opened |= count.opens and at == _RECEIVED
        place = (key, count.interface)
        sums = self._fresh.get(place)
        if sums is None:
            sums = self._fresh[place] = [0] * 6
        _add(sums, at, count)

    def taking(
        self, counts: Iterable[FlowCount], drained_ns: int, *, shows_answers: Container[int]
    ) -> Iterator[bool]:
        """What the sockets have counted in one drain, which began at ``drained_ns``; in steps.

        ``shows_answers``: of addresses of so many bytes they count what the kernel answers to a
        SYN.
        """
        self._shows_answers = shows_answers
        lost_ns = ALWAYS_NS
        for number, count in enumerate(counts, 1):
            key = count.key
            if key is None or not key.remote_address:
                # Of whichever flow: none of that time can be compared.
                if key is None or self._netns in (None, key.netns):
                    lost_ns = max(lost_ns, count.last_ns)
            elif self._netns in (None, key.netns):
                flow = self._flow_of(key, count)
                if flow is None:
                    self._doubt_until_ns = max(self._doubt_until_ns, count.last_ns + SLACK_NS)
                else:
                    _add(flow.at_sockets, _SENT if count.sent else _RECEIVED, count)
            if number % SLICE_COUNTS == 0:
                yield True
        if lost_ns != ALWAYS_NS:
            self.lose_track(lost_ns)
        self._grow_older()
        self._drained_before_ns, self._drained_ns = self._drained_ns, drained_ns
        if self.booked_until_ns > self._retired_ns:
            self._retired_ns = self.booked_until_ns
            self._retire()

    def lose_track(self, until_ns: int) -> None:
        """The sockets have moved something until then that they cannot tell of."""
        self._doubt_until_ns = max(self._doubt_until_ns, until_ns + SLACK_NS)
        for flow in self._flows.values():
            flow.is_doubtful = True

    def shift(self, step_ns: int, now_ns: int) -> None:
        """The wall clock was set by so much, to ``now_ns``; what is on its way has older stamps."""
        for flow in self._flows.values():
            flow.last_ns += step_ns
        self._retired_ns = self.booked_until_ns = ALWAYS_NS
        self._drained_ns = self._drained_before_ns = self._doubt_until_ns = ALWAYS_NS
        self.lose_track(now_ns)

    def finish(self) -> None:
        """Both sides have told all: nothing need wait any more."""
        self._grow_older()
        self._grow_older()

    def since_start(self) -> OnlyOnWire:
        """What can be told until now."""
        left, not_compared = self._sums()
        return _told(left, not_compared)

    def since_last(self) -> OnlyOnWire:
        """What has come to it since the last call; what turned out to be less is made up for."""
        left, not_compared = self._sums()
        new: dict[int, Sums] = {}
        for protocol, sums in left.items():
            told = self._told.setdefault(protocol, [0] * 6)
            new[protocol] = _tell(sums, told)
        return _told(new, _tell(not_compared, self._told_not_compared))

    def _flow_of(self, key: FlowKey, count: FlowCount) -> _Flow | None:
        flow = self._flows.get(key)
        if flow is None:
            if len(self._flows) >= self._max_flows:
                return None
            flow = self._flows[key] = _Flow()
        flow.last_ns = max(flow.last_ns, count.last_ns)
        flow.drains = self._drains
        return flow

    def _grow_older(self) -> None:
        self._drains += 1
        for (key, interface), sums in self._older.items():
            flow = self._flows[key]
            known = flow.on_wire.get(interface)
            flow.on_wire[interface] = sums if known is None else _plus(known, sums)
        self._older, self._fresh = self._fresh, {}

    def _retire(self) -> None:
        until_ns = min(self.booked_until_ns, self._drained_before_ns) - SLACK_NS
        over = [
            key
            for key, flow in self._flows.items()
            if flow.last_ns < until_ns and flow.drains + 2 <= self._drains
        ]
        for key in over:
            self._settle(key, self._flows.pop(key), self._left, self._not_compared)

    def _sums(self) -> tuple[dict[int, Sums], Sums]:
        left = {protocol: list(sums) for protocol, sums in self._left.items()}
        not_compared = list(self._not_compared)
        for key, flow in self._flows.items():
            if flow.on_wire:
                self._settle(key, flow, left, not_compared)
        return left, not_compared

    def _settle(self, key: FlowKey, flow: _Flow, left: dict[int, Sums], not_compared: Sums) -> None:
        for sums in flow.on_wire.values():
            for at in (_SENT, _RECEIVED):
                packets, wire_bytes, payload_bytes = (
                    max(0, sums[i] - flow.at_sockets[i]) for i in range(at, at + 3)
                )
                if not (packets or wire_bytes):
                    continue
                to = not_compared
                if self._is_nobodys(key, flow, at, (packets, wire_bytes, payload_bytes)):
                    to = left.setdefault(key.protocol, [0] * 6)
                to[at] += packets
                to[at + 1] += wire_bytes
                to[at + 2] += payload_bytes

    def _is_nobodys(self, key: FlowKey, flow: _Flow, at: int, left: tuple[int, int, int]) -> bool:
        if flow.is_doubtful or key.protocol in _NOT_AT_SOCKETS:
            return False
        was_accepted = flow.was_opened and flow.at_sockets[_RECEIVED] > 0
        if at == _SENT and was_accepted and len(key.local_address) not in self._shows_answers:
            return False  # perhaps a SYN+ACK
        return not flow.at_sockets[at] or _are_whole(key, *left)


def _are_whole(key: FlowKey, packets: int, wire_bytes: int, payload_bytes: int) -> bool:
    """Are these packets of their own, and not the headers of a socket's fragments or segments?"""
    ip_bytes = 20 if len(key.local_address) == 4 else 40
    headers_bytes = wire_bytes - payload_bytes
    if key.protocol == TCP:
        return 0 < packets * (ip_bytes + _LEAST_TCP_BYTES) <= headers_bytes
    return 0 < packets * (ip_bytes + _PORTS_BYTES.get(key.protocol, 0)) == headers_bytes


def _add(sums: Sums, at: int, count: FlowCount) -> None:
    sums[at] += count.packets
    sums[at + 1] += count.wire_bytes
    sums[at + 2] += count.payload_bytes


def _plus(one: Sums, other: Sums) -> Sums:
    return [mine + theirs for mine, theirs in zip(one, other, strict=True)]


def _tell(sums: Sums, told: Sums) -> Sums:
    new = [max(0, now - before) for now, before in zip(sums, told, strict=True)]
    told[:] = _plus(told, new)
    return new


def _told(left: dict[int, Sums], not_compared: Sums) -> OnlyOnWire:
    return OnlyOnWire(
        {protocol: _both(sums) for protocol, sums in sorted(left.items()) if any(sums)},
        _both(not_compared),
    )


def _both(sums: Sums) -> BothWays:
    return Traffic(*sums[:3]), Traffic(*sums[3:])
