"""The join: runs of packets on one side, witnesses on the other, and the conservation law.

    counted = attributed + unattributed, to the byte, at every account.

A run waits while a better witness may still come: for the events of its own time, then for two
looks at the sockets: the first may name it, the second tells whether the endpoint has changed
hands meanwhile. Then it is booked, once, and never again.

In a flood, runs come by the hundred thousand. Most are of ports that no witness ever named, so that
is asked first; what waits is bounded; and settling stops now and then for whoever wants an account.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import NamedTuple

from procnet.errors import ConservationError
from procnet.ledger.claims import ALWAYS_NS, ANY_TIME, CLOCK_SLACK_NS, FOREVER_NS, NOBODY
from procnet.ledger.comparison import Comparison, OnlyOnWire
from procnet.ledger.elsewhere import FORWARDED, Elsewhere
from procnet.ledger.flows import MAX_FLOWS, BookedFlow, FlowTable, RowKey, Shares, Tally
from procnet.ledger.generations import Generations
from procnet.ledger.owners import OwnerTable
from procnet.ledger.verdict import (
    EVICTED,
    NO_SOCKET,
    SEEN,
    UNSEEN,
    Verdict,
    When,
    decide,
    shares,
)
from procnet.ledger.waiting import Waiting
from procnet.model import TCP, FlowCount, OwnerEvent, ProcessId, Reason, SocketScan

MAX_WAITING = 131_072
"""A drain of a full counting table has room."""
MAX_UNACCEPTED = 4096
"""Where so many wait, what is sent before an accept does not: each look decides all of them."""
PATIENCE_NS = 5_000_000_000
"""A run waits about this long at the most if nobody looks at the sockets."""
SLICE_RUNS = 4096
"""How many runs are counted or settled in one step: up to 30 ms."""
_FORGET_EVERY_NS = 5_000_000_000

# The constructor of a NamedTuple takes three times as long.
_new = tuple.__new__


class Account(NamedTuple):
    """What is booked: a consistent copy for a report. Nothing in it changes any more."""

    total: Tally
    rows: list[tuple[RowKey, BookedFlow]]
    processes: list[tuple[ProcessId, Tally]]
    reasons: dict[Reason, Tally]
    only_on_wire: OnlyOnWire | None = None
    """What no socket moved, if sockets are counted beside the capture."""


class Ledger:
    """Takes counts, events and looks; gives accounts.

    Not thread-safe: the monitor holds a lock while it counts, makes one step of settling, or takes
    an account. ``owners``, events and looks are the business of the one thread that settles.
    """

    def __init__(self, *, max_flows: int = MAX_FLOWS, max_waiting: int = MAX_WAITING) -> None:
        self.owners = OwnerTable()
        self.elsewhere = Elsewhere(self.owners)
        self.comparison: Comparison | None = None
        """Where sockets are counted too, and what is counted here is held against it."""
        self._generations = Generations()
        self._max_waiting = max_waiting
        self.undecodable_packets = 0
        """Packets that were counted as ``UNDECODABLE``, loopback packets twice, as everything."""
        self.evicted_runs = 0
        """Runs that could not wait for want of room; they are booked as ``EVICTED``."""
        # What is to be decided, in the order in which it was captured: the end of the list first.
        self._due: list[FlowCount] = []
        self._fresh: list[FlowCount] = []
        # What waits, by whether a witness has said anything of it.
        self._seen = Waiting()
        self._unseen = Waiting()
        # What there is to say since the last settling: by ports, or by a look of everything.
        self._told: set[tuple[int, int, int]] = set()
        self._looked = False
        self._looks_ns = (ALWAYS_NS, ALWAYS_NS)
        self._now_ns = self._forgot_ns = ALWAYS_NS
        self._counted_until_ns = FOREVER_NS
        self._counted = Tally()
        # What was told in intervals that are over.
        self._taken = Tally()
        self._booked = FlowTable(max_flows)

    @property
    def evicted_flows(self) -> int:
        """Flow rows that were let go for want of room since the start."""
        return self._booked.evicted_flows

    @property
    def has_unknown(self) -> bool:
        """Do runs wait of which no witness has said anything yet? Then a look is worth its cost."""
        return bool(self._unseen)

    def count(self, counts: Iterable[FlowCount]) -> None:
        """Takes what the counters hand over."""
        for _ in self.counting(counts):
            pass

    def counting(self, counts: Iterable[FlowCount], until_ns: int = FOREVER_NS) -> Iterator[bool]:
        """The same in steps, True after each, between which accounts may be taken.

        ``until_ns``: packets until that moment are among those that were handed over by now; who
        owned what then is not forgotten before.
        """
        self._counted_until_ns = until_ns
        for number, count in enumerate(sorted(counts, key=attrgetter("first_ns")), 1):
            self._count_one(count)
            if number % SLICE_RUNS == 0:
                yield True

    def _count_one(self, count: FlowCount) -> None:
        self._counted.add(count)
        key = count.key
        forwarded = count.reason is not None and not self.elsewhere.in_use
        if key is None or forwarded:
            reason = count.reason or Reason.UNDECODABLE
            if reason is Reason.UNDECODABLE:
                self.undecodable_packets += count.packets
            self._book(count, Verdict(None, None, reason, NOBODY))
            return
        if key.protocol == TCP:
            self._generations.note(count)
        self._fresh.append(count)

    def observe(self, events: Iterable[OwnerEvent]) -> None:
        """Takes all events that were told before the counts of the same tick were drained."""
        events = list(events)
        self._told.update((e.netns, e.protocol, e.local_port) for e in events)
        self.owners.observe(events)
        if self.elsewhere.everywhere:
            self.elsewhere.namespaces.hear(events)

    def look(self, scan: SocketScan) -> set[ProcessId]:
        """Takes a look at the sockets; returns the processes that were seen for the first time."""
        self._looked = True
        self._looks_ns = (self._looks_ns[1], scan.started_ns)
        if self.elsewhere.in_use:
            self.elsewhere.namespaces.look(scan)
        return self.owners.look(scan)

    def set_clock(self, step_ns: int) -> None:
        """The wall clock was set by so much: what was stamped before it stands as it can be told
        now, and what is known of owners goes on in the new time."""
        self.settle(self._now_ns, final=True)
        self._looks_ns = (ALWAYS_NS, ALWAYS_NS)
        self._forgot_ns = self._counted_until_ns = ALWAYS_NS
        self._generations = Generations()
        self.owners.shift(step_ns)
        self.elsewhere.translations.shift(step_ns)
        self.elsewhere.namespaces.shift(step_ns)
        if self.comparison is not None:
            self.comparison.shift(step_ns, self._now_ns + step_ns)

    def settle(self, now_ns: int, *, final: bool = False) -> None:
        """Books every run that need not wait any longer; all of them if ``final``."""
        for _ in self.settling(now_ns, final=final):
            pass
        self.forget(now_ns)

    def settling(self, now_ns: int, *, final: bool = False) -> Iterator[bool]:
        """The same in steps, as ``counting``.

        Other calls have to wait until it is through or given up; then comes ``forget``.
        """
        self._now_ns = now_ns
        self._make_due(final)
        elsewhere = self.elsewhere if self.elsewhere.in_use else None
        while self._due:
            for _ in range(min(SLICE_RUNS, len(self._due))):
                self._settle_one(self._due.pop(), now_ns, final, elsewhere)
            yield True
        while self._make_room():
            yield True

    def forget(self, now_ns: int) -> None:
        """Lets go of owners that can answer for nothing any more, if it is time."""
        if now_ns - self._forgot_ns > _FORGET_EVERY_NS:
            self._forget()
            self._forgot_ns = now_ns
            self._looked = True
        elif self.owners.is_crowded:
            self._forget()

    def _forget(self) -> None:
        """Lets go of owners that nothing which waits, or is on its way to us, can ask for."""
        # What we were told of since the last time may have counts that lag behind it: both wait
        # where we were stopped, or had no time.
        waiting_ns = (count.first_ns for count in (*self._seen, *self._unseen))
        before_ns = min((self._forgot_ns, self._counted_until_ns, *waiting_ns))
        self.owners.forget(before_ns)
        self._generations.forget(before_ns)
        self.elsewhere.translations.forget(before_ns)
        if self.comparison is not None:
            self.comparison.booked_until_ns = before_ns

    def _make_due(self, final: bool) -> None:
        """What is new, and of what waits that of which there is something new to say."""
        fresh, self._fresh = self._fresh, []
        told, self._told = self._told, set()
        if final or self._looked:
            self._looked = False
            told_runs = self._seen.take_all() + self._unseen.take_all()
        else:
            told_runs = self._seen.take(told) + self._unseen.take(told)
        # What a settling that was broken off has left is the oldest.
        fresh.reverse()
        told_runs.reverse()
        self._due = fresh + told_runs + self._due

    def _settle_one(
        self, count: FlowCount, now_ns: int, final: bool, elsewhere: Elsewhere | None
    ) -> None:
        key = count.key
        assert key is not None
        last_ns = count.last_ns
        late = final or last_ns < now_ns - PATIENCE_NS
        last_word = late or last_ns < self._looks_ns[0]
        port = (key.netns, key.protocol, key.local_port)
        found = elsewhere.find(count) if elsewhere is not None else None
        if found is None and not self.owners.knows(port):
            verdict = NO_SOCKET if last_word else UNSEEN
        else:
            generation, asked_ns = ANY_TIME, ALWAYS_NS
            if key.protocol == TCP:
                begin_ns, end_ns, asked_ns = self._generations.interval(key, count.first_ns)
                generation = begin_ns, end_ns
                asked_ns += CLOCK_SLACK_NS
            when = _new(When, (generation, last_ns < self._looks_ns[1], last_word, late, asked_ns))
            if found is None:
                verdict = decide(self.owners, count, when)
                if self.elsewhere.is_blind or self.elsewhere.translations.lost:
                    verdict = self.elsewhere.doubt(count, verdict)
            else:
                verdict = self.elsewhere.decide(count, found, when)
            if verdict.reason is Reason.AMBIGUOUS and not late and self._may_be_told(count):
                verdict = SEEN
        if verdict is UNSEEN:
            self._unseen.add(port, count)
        elif verdict is SEEN:
            self._seen.add(port, count)
        else:
            self._book(count, verdict)

    def _may_be_told(self, count: FlowCount) -> bool:
        """May whoever takes it, or accepts its connection, still be told?"""
        key = count.key
        assert key is not None
        if not count.sent:
            return True
        # What a flood of SYNs is answered need not wait: nobody accepts that.
        used = key.protocol != TCP or not all(c.presumed for c in self.owners.claims(key))
        return not used and len(self._seen) < MAX_UNACCEPTED

    def _make_room(self) -> bool:
        """Books what is too much as ``EVICTED``: to guess before two looks may name a stranger.

        Those of which nobody has said anything go first, and of them the oldest.
        """
        crowd = len(self._seen) + len(self._unseen) - self._max_waiting
        if crowd <= 0:
            return False
        number = min(crowd, SLICE_RUNS)
        evicted = self._unseen.take_oldest(number)
        evicted += self._seen.take_oldest(number - len(evicted))
        self.evicted_runs += len(evicted)
        for count in evicted:
            self._book(count, EVICTED if count.reason is None else FORWARDED)
        return True

    def _book(self, count: FlowCount, verdict: Verdict) -> None:
        if verdict.parts:
            for part, named in shares(count, verdict):
                self._booked.add(part, named)
        else:
            self._booked.add(count, verdict)
        if self.comparison is not None:
            translated = count.key is not None and self.elsewhere.may_translate(count)
            self.comparison.book(count, verdict, is_translated=translated)

    def account(self) -> Account:
        """Everything since the start; what still waits is ``PENDING``."""
        waiting = [*self._seen, *self._unseen, *self._fresh, *self._due]
        pending = FlowTable(max(1, len(waiting)))
        for count in waiting:
            pending.add(count, SEEN)
        account = _account(self._booked.shares, self._booked.rows() + pending.rows())
        if self.comparison is not None:
            account = account._replace(only_on_wire=self.comparison.since_start())
        account.reasons.update(pending.shares.reasons())
        account.total.add_tally(_sum(pending.shares))
        _check(account.total, self._counted)
        return account

    def take_interval(self) -> Account:
        """What was booked since the last call. What waits is in a later interval: never twice."""
        account = _account(self._booked.interval_shares, self._booked.interval_rows())
        if self.comparison is not None:
            account = account._replace(only_on_wire=self.comparison.since_last())
        self._taken.add_tally(account.total)
        _check(self._taken, self._booked.total)
        self._booked.end_interval()
        return account


def _account(shares: Shares, rows: list[tuple[RowKey, BookedFlow]]) -> Account:
    return Account(_sum(shares), rows, shares.processes(), shares.reasons())


def _sum(shares: Shares) -> Tally:
    total = Tally()
    for _, tally in shares.processes():
        total.add_tally(tally)
    for tally in shares.reasons().values():
        total.add_tally(tally)
    return total


def _check(booked: Tally, counted: Tally) -> None:
    if booked != counted:
        raise ConservationError(
            f"counted {counted!r}, but attributed and unattributed are {booked!r}:"
            " please report this as a defect of procnet"
        )
