"""Totals per flow, per process and per reason; bounded, and what is evicted hands its bytes on.

A flood is flows by the hundred thousand of which each is booked once: a run costs few objects here
and is booked for the whole time and for the interval in one go.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from procnet.ledger.verdict import Verdict
from procnet.model import Evidence, FlowCount, FlowKey, ProcessId, Reason, Traffic

MAX_FLOWS = 65_536
MAX_PROCESSES = 65_536


class Tally:
    """What moved, both ways."""

    __slots__ = ("_received", "_sent")

    def __init__(self) -> None:
        self._sent = [0, 0, 0]
        self._received = [0, 0, 0]

    def add(self, count: FlowCount) -> None:
        side = self._sent if count.sent else self._received
        side[0] += count.packets
        side[1] += count.wire_bytes
        side[2] += count.payload_bytes

    def add_tally(self, other: Tally) -> None:
        for mine, theirs in ((self._sent, other._sent), (self._received, other._received)):
            for index, amount in enumerate(theirs):
                mine[index] += amount

    @property
    def sent(self) -> Traffic:
        return Traffic(*self._sent)

    @property
    def received(self) -> Traffic:
        return Traffic(*self._received)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tally):
            return NotImplemented
        return self._sent == other._sent and self._received == other._received

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"Tally(sent={self._sent}, received={self._received})"


class RowKey(NamedTuple):
    """One row: a flow on an interface, with its owner or with the reason for having none.

    ``socket`` is the flow as its socket has it, where that is not the one on the interface.
    """

    interface: str
    flow: FlowKey
    process: ProcessId | None
    reason: Reason | None
    socket: FlowKey | None = None


class BookedFlow(NamedTuple):
    """What one flow moved for one owner. More bytes make another row: an account stays."""

    sent_packets: int
    sent_wire_bytes: int
    sent_payload_bytes: int
    received_packets: int
    received_wire_bytes: int
    received_payload_bytes: int
    first_ns: int
    last_ns: int
    evidence: Evidence | None
    candidates: frozenset[ProcessId]

    @property
    def sent(self) -> Traffic:
        return Traffic(*self[:3])

    @property
    def received(self) -> Traffic:
        return Traffic(*self[3:6])

    def plus(self, other: BookedFlow) -> BookedFlow:
        """Both together."""
        evidence = self.evidence
        # The best witness that has named this process; it holds for the row's earlier bytes too.
        if (
            evidence is not other.evidence
            and other.evidence is not None
            and (evidence is None or other.evidence.rank < evidence.rank)
        ):
            evidence = other.evidence
        return _new(
            BookedFlow,
            (
                self[0] + other[0],
                self[1] + other[1],
                self[2] + other[2],
                self[3] + other[3],
                self[4] + other[4],
                self[5] + other[5],
                min(self[6], other[6]),
                max(self[7], other[7]),
                evidence,
                self[9] | other[9] if other[9] else self[9],
            ),
        )


# The constructor of a NamedTuple takes three times as long.
_new = tuple.__new__


def _row(count: FlowCount, verdict: Verdict) -> BookedFlow:
    _, _, sent, packets, wire_bytes, payload_bytes, first_ns, last_ns, _, _ = count
    _, evidence, _, candidates, _, _ = verdict
    if sent:
        return _new(
            BookedFlow,
            (packets, wire_bytes, payload_bytes, 0, 0, 0, first_ns, last_ns, evidence, candidates),
        )
    return _new(
        BookedFlow,
        (0, 0, 0, packets, wire_bytes, payload_bytes, first_ns, last_ns, evidence, candidates),
    )


class Shares:
    """Who moved how much, and how much is whose for want of an owner."""

    def __init__(self, max_processes: int = MAX_PROCESSES) -> None:
        self._max_processes = max_processes
        # Least recently used first. (An LRUCache does the same at five times the cost.)
        self._processes: OrderedDict[ProcessId, Tally] = OrderedDict()
        self._of_evicted_processes = Tally()
        self._reasons: dict[Reason, Tally] = {}

    def add(self, count: FlowCount, verdict: Verdict) -> None:
        """Books one run of packets under its verdict."""
        process, _, reason, _, _, _ = verdict
        if process is not None:
            self._tally_of(process).add(count)
            return
        assert reason is not None
        tally = self._reasons.get(reason)
        if tally is None:
            tally = self._reasons[reason] = Tally()
        tally.add(count)

    def _tally_of(self, process: ProcessId) -> Tally:
        tally = self._processes.get(process)
        if tally is not None:
            self._processes.move_to_end(process)
            return tally
        if len(self._processes) >= self._max_processes:
            # Its bytes lose their name, not their place.
            self._of_evicted_processes.add_tally(self._processes.popitem(last=False)[1])
        tally = self._processes[process] = Tally()
        return tally

    def processes(self) -> list[tuple[ProcessId, Tally]]:
        """What each process moved, flows that were evicted included."""
        return [(process, _copied(tally)) for process, tally in self._processes.items()]

    def reasons(self) -> dict[Reason, Tally]:
        """What moved without an owner; ``EVICTED`` has what evicted processes had."""
        reasons = {reason: _copied(tally) for reason, tally in self._reasons.items()}
        if self._of_evicted_processes != Tally():
            reasons.setdefault(Reason.EVICTED, Tally()).add_tally(self._of_evicted_processes)
        return reasons


class FlowTable:
    """Every settled byte by flow row, and by owner or reason: since the start, and of late.

    The first interval is everything until its end: who never ends one pays for one account alone.
    """

    def __init__(self, max_flows: int = MAX_FLOWS) -> None:
        self.evicted_flows = 0
        """How many flow rows a full table let go."""
        self.total = Tally()
        """Every byte that was booked."""
        self.shares = self.interval_shares = Shares()
        self._max_flows = max_flows
        # Least recently used first.
        self._rows: OrderedDict[RowKey, BookedFlow] = OrderedDict()
        # Rows of the same keys: whatever was booked of late is what is evicted last.
        self._interval_rows: dict[RowKey, BookedFlow] = self._rows

    def add(self, count: FlowCount, verdict: Verdict) -> None:
        """Books one run of packets under its verdict."""
        apart = self._interval_rows is not self._rows
        self.total.add(count)
        self.shares.add(count, verdict)
        if apart:
            self.interval_shares.add(count, verdict)
        flow = count.key
        if flow is None:
            return
        rows = self._rows
        process, _, reason, _, socket, _ = verdict
        key: RowKey = _new(RowKey, (count.interface, flow, process, reason, socket))
        new = _row(count, verdict)
        row = rows.get(key)
        if row is None:
            if len(rows) >= self._max_flows:
                self._interval_rows.pop(rows.popitem(last=False)[0], None)
                self.evicted_flows += 1
            rows[key] = self._interval_rows[key] = new
            return
        rows.move_to_end(key)
        rows[key] = row.plus(new)
        if apart:
            row = self._interval_rows.get(key)
            self._interval_rows[key] = new if row is None else row.plus(new)

    def rows(self) -> list[tuple[RowKey, BookedFlow]]:
        """The flow rows that are still held."""
        return list(self._rows.items())

    def interval_rows(self) -> list[tuple[RowKey, BookedFlow]]:
        """Those of the interval."""
        return list(self._interval_rows.items())

    def end_interval(self) -> None:
        """What is booked from now on is of another interval."""
        self.interval_shares = Shares()
        self._interval_rows = {}


def _copied(tally: Tally) -> Tally:
    copy = Tally()
    copy.add_tally(tally)
    return copy
