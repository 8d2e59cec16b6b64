"""Totals per flow, per process and per reason; bounded, and what is evicted hands its bytes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from cachetools import LRUCache

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


class _Rows(LRUCache[RowKey, FlowRow]):
    """The least recently used row goes when there are too many; the totals have its bytes."""

    def __init__(self, maxsize: int) -> None:
        super().__init__(maxsize)
        self.evicted = 0

    def popitem(self) -> tuple[RowKey, FlowRow]:
        self.evicted += 1
        return super().popitem()


class _Processes(LRUCache[ProcessId, Tally]):
    """The least recently used process goes; its bytes lose their name, not their place."""

    def __init__(self, maxsize: int) -> None:
        super().__init__(maxsize)
        self.evicted = Tally()

    def popitem(self) -> tuple[ProcessId, Tally]:
        process, tally = super().popitem()
        self.evicted.add_tally(tally)
        return process, tally


class FlowTable:
    """Every settled byte, three times: by flow row, by owner or reason, and in total."""

    def __init__(self, max_flows: int = MAX_FLOWS, max_processes: int = MAX_PROCESSES) -> None:
        self._rows = _Rows(max_flows)
        self._processes = _Processes(max_processes)
        self._reasons: dict[Reason, Tally] = {}
        self.total = Tally()

    @property
    def evicted_flows(self) -> int:
        """How many flow rows a full table let go."""
        return self._rows.evicted

    def add(self, count: FlowCount, verdict: Verdict) -> None:
        """Books one run of packets under its verdict."""
        self.total.add(count)
        if verdict.process is not None:
            tally = self._processes.get(verdict.process)
            if tally is None:
                tally = self._processes[verdict.process] = Tally()
        else:
            assert verdict.reason is not None
            tally = self._reasons.setdefault(verdict.reason, Tally())
        tally.add(count)
        if count.key is not None:
            self._add_row(count, count.key, verdict)

    def _add_row(self, count: FlowCount, flow: FlowKey, verdict: Verdict) -> None:
        key = RowKey(count.interface, flow, verdict.process, verdict.reason)
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = FlowRow(count.first_ns)
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
        if self._processes.evicted != Tally():
            evicted = Tally()
            evicted.add_tally(self._processes.evicted)
            if Reason.EVICTED in reasons:
                evicted.add_tally(reasons[Reason.EVICTED])
            reasons[Reason.EVICTED] = evicted
        return reasons
