"""The join: runs of packets on one side, witnesses on the other, and the conservation law.

    counted = attributed + unattributed, to the byte, at every account.

A run waits while a better witness may still come: for the events of its own time, then for two
looks at the sockets: the first may name it, the second tells whether the endpoint has changed
hands meanwhile. Then it is booked, once, and never again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from procnet.errors import ConservationError
from procnet.ledger.claims import ALWAYS_NS, FOREVER_NS
from procnet.ledger.flows import MAX_FLOWS, FlowRow, FlowTable, RowKey, Tally
from procnet.ledger.generations import Generations
from procnet.ledger.owners import OwnerTable
from procnet.ledger.verdict import NOBODY, SEEN, UNSEEN, Verdict, decide
from procnet.model import TCP, FlowCount, OwnerEvent, ProcessId, Reason, SocketScan

MAX_WAITING = 262_144
PATIENCE_NS = 5_000_000_000
"""A run waits about this long at the most if nobody looks at the sockets."""
_FORGET_EVERY_NS = 5_000_000_000


class Account(NamedTuple):
    """What is booked: a consistent copy for a report."""

    total: Tally
    rows: list[tuple[RowKey, FlowRow]]
    processes: list[tuple[ProcessId, Tally]]
    reasons: dict[Reason, Tally]


class Ledger:
    """Takes counts, events and looks; gives accounts. Not thread-safe: the monitor holds a lock."""

    def __init__(self, *, max_flows: int = MAX_FLOWS, max_waiting: int = MAX_WAITING) -> None:
        self.owners = OwnerTable()
        self._generations = Generations()
        self._max_flows = max_flows
        self._max_waiting = max_waiting
        self.undecodable_packets = 0
        """Packets that were counted as ``UNDECODABLE``, loopback packets twice, as everything."""
        self._fresh: list[FlowCount] = []
        # What waits, by whether a witness has said anything of it.
        self._seen: list[FlowCount] = []
        self._unseen: list[FlowCount] = []
        # What there is to say since the last settling: by ports, or by a look of everything.
        self._told: set[tuple[int, int, int]] = set()
        self._looked = False
        self._looks_ns = (ALWAYS_NS, ALWAYS_NS)
        self._now_ns = self._forgot_ns = ALWAYS_NS
        self._counted = Tally()
        self._all = FlowTable(max_flows)
        self._interval = FlowTable(max_flows)

    @property
    def evicted_flows(self) -> int:
        """Flow rows that were let go for want of room since the start."""
        return self._all.evicted_flows

    @property
    def has_unknown(self) -> bool:
        """Do runs wait of which no witness has said anything yet? Then a look is worth its cost."""
        return bool(self._unseen)

    def count(self, counts: Iterable[FlowCount]) -> None:
        """Takes what the counters hand over."""
        for count in sorted(counts, key=lambda count: count.first_ns):
            self._counted.add(count)
            if count.key is None or count.reason is not None:
                reason = count.reason or Reason.UNDECODABLE
                if reason is Reason.UNDECODABLE:
                    self.undecodable_packets += count.packets
                self._book(count, Verdict(None, None, reason, NOBODY))
                continue
            if count.key.protocol == TCP:
                self._generations.note(count)
            self._fresh.append(count)

    def observe(self, events: Iterable[OwnerEvent]) -> None:
        """Takes all events that were told before the counts of the same tick were drained."""
        events = list(events)
        self._told.update((e.netns, e.protocol, e.local_port) for e in events)
        self.owners.observe(events)

    def look(self, scan: SocketScan) -> set[ProcessId]:
        """Takes a look at the sockets; returns the processes that were seen for the first time."""
        self._looked = True
        self._looks_ns = (self._looks_ns[1], scan.started_ns)
        return self.owners.look(scan)

    def set_clock(self, step_ns: int) -> None:
        """The wall clock was set by so much: what was stamped before it stands as it can be told
        now, and what is known of owners goes on in the new time."""
        self.settle(self._now_ns, final=True)
        self._looks_ns = (ALWAYS_NS, ALWAYS_NS)
        self._forgot_ns = ALWAYS_NS
        self._generations = Generations()
        self.owners.shift(step_ns)

    def settle(self, now_ns: int, *, final: bool = False) -> None:
        """Books every run that need not wait any longer; all of them if ``final``."""
        self._now_ns = now_ns
        undecided = self._due(now_ns, final)
        crowd = len(undecided) + len(self._seen) + len(self._unseen) - self._max_waiting
        for index, count in enumerate(undecided):
            last_word = (
                final
                or index < crowd
                or count.last_ns < self._looks_ns[0]
                or count.last_ns < now_ns - PATIENCE_NS
            )
            verdict = self._decide(count, last_word)
            if verdict.reason is Reason.PENDING:
                (self._unseen if verdict is UNSEEN else self._seen).append(count)
            else:
                self._book(count, verdict)
        if now_ns - self._forgot_ns > _FORGET_EVERY_NS:
            self._forgot_ns = now_ns
            self.owners.forget(now_ns)
            self._looked = True
        elif self.owners.is_crowded:
            self.owners.forget(now_ns)

    def _due(self, now_ns: int, final: bool) -> list[FlowCount]:
        """What is new, and of what waits that of which there is something new to say."""
        fresh, self._fresh = self._fresh, []
        told, self._told = self._told, set()
        seen, unseen = self._seen, self._unseen
        if final or self._looked or len(seen) + len(unseen) + len(fresh) > self._max_waiting:
            self._looked = False
            self._seen, self._unseen = [], []
            return seen + unseen + fresh
        if not told:
            return fresh
        due: list[FlowCount] = []
        self._seen = _keep(seen, told, due)
        self._unseen = _keep(unseen, told, due)
        return due + fresh

    def _decide(self, count: FlowCount, last_word: bool) -> Verdict:
        key = count.key
        assert key is not None
        generation = (ALWAYS_NS, FOREVER_NS)
        if key.protocol == TCP:
            generation = self._generations.interval(key, count.first_ns)
        looked = count.last_ns < self._looks_ns[1]
        return decide(self.owners, count, generation, looked=looked, last_word=last_word)

    def _book(self, count: FlowCount, verdict: Verdict) -> None:
        self._all.add(count, verdict)
        self._interval.add(count, verdict)

    def account(self) -> Account:
        """Everything since the start; what still waits is ``PENDING``."""
        account = _copy(self._all)
        waiting = self._seen + self._unseen + self._fresh
        pending = FlowTable(max(1, len(waiting)))
        for count in waiting:
            pending.add(count, SEEN)
        account.total.add_tally(pending.total)
        account.rows.extend(pending.rows())
        account.reasons.update(pending.reasons())
        _check(account, self._counted)
        return account

    def take_interval(self) -> Account:
        """What was booked since the last call. What waits is in a later interval: never twice."""
        account = _copy(self._interval)
        _check(account, self._interval.total)
        self._interval = FlowTable(self._max_flows)
        return account


def _keep(
    waiting: list[FlowCount], told: set[tuple[int, int, int]], due: list[FlowCount]
) -> list[FlowCount]:
    """Moves what there is news of from ``waiting`` to ``due``; returns the rest."""
    kept: list[FlowCount] = []
    for count in waiting:
        key = count.key
        assert key is not None
        (due if (key.netns, key.protocol, key.local_port) in told else kept).append(count)
    return kept


def _copy(table: FlowTable) -> Account:
    total = Tally()
    total.add_tally(table.total)
    return Account(total, list(table.rows()), list(table.processes()), table.reasons())


def _check(account: Account, counted: Tally) -> None:
    booked = Tally()
    for tally in _owned_and_not(account):
        booked.add_tally(tally)
    if not booked == counted == account.total:
        raise ConservationError(
            f"counted {counted!r}, but attributed and unattributed are {booked!r}"
            f" and the total says {account.total!r}: please report this as a defect of procnet"
        )


def _owned_and_not(account: Account) -> Iterator[Tally]:
    for _, tally in account.processes:
        yield tally
    yield from account.reasons.values()
