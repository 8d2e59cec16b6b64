"""Totals per flow, per process and per reason; bounded, and what is evicted hands its bytes on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from procnet.ledger.verdict import NOBODY, Verdict
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
    """One row: a flow on an interface, with its owner or with the reason for having none."""

    interface: str
    flow: FlowKey
    process: ProcessId | None
    reason: Reason | None


class FlowRow:
    """What one flow moved for one owner."""

    __slots__ = ("candidates", "evidence", "first_ns", "last_ns", "tally")

    def __init__(self, first_ns: int) -> None:
        self.tally = Tally()
        self.evidence: Evidence | None = None
        self.candidates = NOBODY
        self.first_ns = first_ns
        self.last_ns = first_ns

    def add(self, count: FlowCount, verdict: Verdict) -> None:
        self.tally.add(count)
        self.first_ns = min(self.first_ns, count.first_ns)
        self.last_ns = max(self.last_ns, count.last_ns)
        self.candidates |= verdict.candidates
        # The best witness that has named this process; it holds for the row's earlier bytes too.
        if verdict.evidence is not None and (
            self.evidence is None or verdict.evidence.rank < self.evidence.rank
        ):
            self.evidence = verdict.evidence


class FlowTable:
    """Every settled byte, three times: by flow row, by owner or reason, and in total."""

    def __init__(self, max_flows: int = MAX_FLOWS, max_processes: int = MAX_PROCESSES) -> None:
        self.evicted_flows = 0
        """How many flow rows a full table let go."""
        self._max_flows = max_flows
        self._max_processes = max_processes
        # Least recently used first. (An LRUCache does the same at five times the cost.)
        self._rows: OrderedDict[RowKey, FlowRow] = OrderedDict()
        self._processes: OrderedDict[ProcessId, Tally] = OrderedDict()
        self._of_evicted_processes = Tally()
        self._reasons: dict[Reason, Tally] = {}
        self.total = Tally()

    def add(self, count: FlowCount, verdict: Verdict) -> None:
        """Books one run of packets under its verdict."""
        self.total.add(count)
        if verdict.process is not None:
            tally = self._tally_of(verdict.process)
        else:
            assert verdict.reason is not None
            tally = self._reasons.setdefault(verdict.reason, Tally())
        tally.add(count)
        if count.key is not None:
            self._add_row(count, count.key, verdict)

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

    def _add_row(self, count: FlowCount, flow: FlowKey, verdict: Verdict) -> None:
        key = RowKey(count.interface, flow, verdict.process, verdict.reason)
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= self._max_flows:
                self._rows.popitem(last=False)
                self.evicted_flows += 1
            row = self._rows[key] = FlowRow(count.first_ns)
        else:
            self._rows.move_to_end(key)
        row.add(count, verdict)

    def rows(self) -> Iterator[tuple[RowKey, FlowRow]]:
        """The flow rows that are still held."""
        yield from self._rows.items()

    def processes(self) -> Iterator[tuple[ProcessId, Tally]]:
        """What each process moved, flows that were evicted included."""
        yield from self._processes.items()

    def reasons(self) -> dict[Reason, Tally]:
        """What moved without an owner; ``EVICTED`` has what evicted processes had."""
        reasons = dict(self._reasons)
        if self._of_evicted_processes != Tally():
            evicted = Tally()
            evicted.add_tally(self._of_evicted_processes)
            if Reason.EVICTED in reasons:
                evicted.add_tally(reasons[Reason.EVICTED])
            reasons[Reason.EVICTED] = evicted
        return reasons
