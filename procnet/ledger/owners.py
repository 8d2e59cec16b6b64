"""Who owned which endpoint, from when to when.

Two kinds of witness feed the table: events of the kernel (``observe``), each told at its moment,
and looks at the socket tables (``look``), which say what was so at the time of the look and leave
open what was between two. ``verdict.py`` reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter

from procnet.ledger.births import Births
from procnet.ledger.claims import (
    ALWAYS_NS,
    CLOCK_SLACK_NS,
    CONTESTED_NS,
    FOREVER_NS,
    INJECTION_NS,
    NOBODY,
    Claim,
    Parts,
    alone,
    blurred,
    end_queued,
    shifted,
    told,
)
from procnet.ledger.endpoints import Endpoints
from procnet.ledger.keys import WILDCARDS, Port, key_of_event, key_of_socket, local_key
from procnet.ledger.leftovers import Leftovers
from procnet.ledger.losses import Losses
from procnet.ledger.unseen import has_forked, may_be_passed, may_be_shared
from procnet.model import TCP, EventKind, Evidence, FlowKey, OwnerEvent, ProcessId, SocketScan

MAX_ENDPOINTS = 131_072


class OwnerTable:
    """Claims by endpoint; bounded, closed ones at half of it: who was claimed first goes first."""

    def __init__(self, max_endpoints: int = MAX_ENDPOINTS) -> None:
        self.evicted_endpoints = 0
        self.boot_ns = 0
        """The wall-clock time of the boot: turns a process's start into the time of packets."""
        self._max_endpoints = max_endpoints
        self._claims = Endpoints()
        self._listeners = Endpoints()
        self._by_inode: dict[int, set[FlowKey]] = {}
        self._sighted: dict[tuple[FlowKey, int], Claim] = {}
        self._contested: dict[FlowKey, int] = {}
        self._holders: dict[int, frozenset[ProcessId]] = {}
        self.losses = Losses()  # of events
        self.leftovers = Leftovers()
        self._births = Births(2 * max_endpoints)
        self._previous_look_ns = ALWAYS_NS

    def claims(self, key: FlowKey) -> Sequence[Claim]:
        """All that is known of one endpoint, oldest first."""
        return self._claims.get(key, ())

    def listeners(self, key: FlowKey) -> Iterable[Claim]:
        """Who listens there."""
        return self._listeners.get(key, ())

    def knows(self, port: Port) -> bool:
        """Is anything known of any endpoint there?"""
        return port in self._claims.ports or port in self._listeners.ports

    @property
    def is_crowded(self) -> bool:
        """Is there so much that ``forget`` must not wait for its time?"""
        most = self._max_endpoints + self._max_endpoints // 4
        return len(self._claims) > most or len(self.losses) > 2 * most

    def contested(self, key: FlowKey, at_ns: int) -> bool:
        """Did sockets take turns there lately, so that what lies between two looks is unsure?"""
        until_ns = self._contested.get(key)
        return until_ns is not None and at_ns <= until_ns

    # --- events ---

    def observe(self, events: Iterable[OwnerEvent]) -> None:
        """Takes what the kernel told, in any order."""
        for event in sorted(events, key=attrgetter("time_ns")):
            if event.kind is EventKind.CLOSE:
                self._close_socket(event)
                continue
            key = key_of_event(event)
            if event.kind is EventKind.INJECT:
                self._inject(key, event)
                continue
            if event.remote_address:
                self._use(key, event)
            if event.local_address in WILDCARDS or not event.remote_address:
                self._use_endpoint(local_key(key, event.local_address), event)

    def _use(self, key: FlowKey, event: OwnerEvent) -> None:
        claims = self._claims.at(key)
        sends, receives, users = event.sends, event.receives, alone(event.process)
        # A process that has sent by this tuple is not told of again when it receives by it: what
        # lay in the socket before may be its own. (What it sent begins with sure_from_ns.)
        takes = key.protocol != TCP or event.kind in (EventKind.ACCEPT, EventKind.RECEIVE)
        begin_ns = ALWAYS_NS if takes else event.time_ns
        floor_ns = self._floor_ns(key, event)
        parts: Parts = ()
        end_queued(claims, event)
        if event.kind is EventKind.RECEIVE:
            self._take_first(key, event)
        for known in [claim for claim in claims if claim.is_open]:
            # A child that is not grafted to its socket yet has no inode.
            same_socket = event.inode == known.inode or not (event.inode and known.inode)
            if not same_socket:
                if key.protocol == TCP:
                    known.close(event.time_ns)
                continue
            if not (known.sends and event.sends) and not (known.receives and event.receives):
                continue
            claim = known
            if not known.says(event):
                claim = self._part(key, known, event.sends, event.receives)
            if event.shared:
                users |= claim.sharers(event, claims)
                parts = claim.parts_with(event)
            if claim.evidence is not Evidence.KERNEL_EVENT:
                # Nobody has used the socket since the hooks were in place, or there were a
                # claim of that use: what only lay in it is for the one who uses it now.
                begin_ns = min(begin_ns, claim.begin_ns)
                self._drop(key, claim)
            elif claim.says(event) or claim.narrows(event):
                claim.confirm(event)
                self._remember(key, claim)
                sends, receives = sends and not claim.sends, receives and not claim.receives
            else:
                claim.close(event.time_ns)
                # What the last user left in the socket is for this one.
                begin_ns = min(begin_ns, claim.begin_ns)
        if sends or receives:
            claim = self._add_event_claim(key, event, max(begin_ns, floor_ns))
            claim.users = users
            claim.sends, claim.receives, claim.shared = sends, receives, event.shared
            claim.parts = parts if len(users) == len(parts) else ()

    def _take_first(self, key: FlowKey, event: OwnerEvent) -> None:
        """Nobody took anything before: what came in until now is for this process."""
        for claim in list(self.claims(key)):
            if claim.untaken and not claim.presumed and event.inode == claim.inode:
                if claim.users != {event.process}:
                    claim = self._part(key, claim, False, event.receives)
                claim.confirm(event)

    def _part(self, key: FlowKey, claim: Claim, sends: bool, receives: bool) -> Claim:
        """What the claim says of these directions; the rest of it stays."""
        part = claim.split(sends, receives)
        if part is None:
            return claim
        self._claims.at(key).append(part)
        if part.evidence is Evidence.KERNEL_EVENT:
            self.losses.believe(part)
        return part

    def _inject(self, key: FlowKey, event: OwnerEvent) -> None:
        """A frame of the process's own making: says nothing of sockets, and only of a moment."""
        until_ns = event.time_ns + INJECTION_NS
        for claim in self.claims(key):
            continues = claim.injects and event.time_ns <= claim.end_ns + CLOCK_SLACK_NS
            if continues and claim.users == {event.process}:
                claim.sure_to_ns = claim.end_ns = until_ns
                return
        claim = self._add_event_claim(key, event, event.time_ns)
        claim.injects = True
        claim.sure_to_ns = claim.end_ns = until_ns

    def _use_endpoint(self, key: FlowKey, event: OwnerEvent) -> None:
        """A socket that is not connected: its user may have used it for other remotes too."""
        takes = event.kind is EventKind.RECEIVE
        blind = alone(event.process) if takes and not event.remote_address else NOBODY
        begin_ns = ALWAYS_NS if takes else event.time_ns
        holders = NOBODY
        for claim in [claim for claim in self.claims(key) if claim.inode == event.inode]:
            if claim.evidence is Evidence.KERNEL_EVENT:
                if claim.is_open:
                    claim.users |= {event.process}
                    claim.takes = claim.takes or takes
                    claim.blind |= blind
                    return
            elif claim.is_open:
                # Others who hold it may still read what is for other remotes; but where it is told
                # who takes without a word of the remote end, they would be told as well.
                begin_ns = min(begin_ns, claim.begin_ns)
                holders |= NOBODY if takes else claim.users
                self._drop(key, claim)
        claim = self._add_event_claim(key, event, max(begin_ns, self._floor_ns(key, event)))
        claim.users |= holders
        claim.takes, claim.blind = takes, blind

    def _floor_ns(self, key: FlowKey, event: OwnerEvent) -> int:
        """Before it, the socket was not there: the look before it was first heard of."""
        if key.protocol == TCP:
            return ALWAYS_NS
        unseen_ns = event.born_ns or min(event.time_ns, self._previous_look_ns)
        return max(event.born_ns, self._births.of(event.inode, unseen_ns))

    def _add_event_claim(self, key: FlowKey, event: OwnerEvent, begin_ns: int) -> Claim:
        claim = told(event, begin_ns, has_remote=bool(key.remote_address))
        self._claims.at(key).append(claim)
        self.losses.believe(claim)
        self._remember(key, claim)
        self._blur(self._claims, key)
        return claim

    def _close_socket(self, event: OwnerEvent) -> None:
        # What was accepted and never used is only known by its tuple.
        for claim in self.claims(key_of_event(event)):
            if not claim.inode:
                claim.close(event.time_ns)
        self._births.end(event.inode)
        for key in self._by_inode.pop(event.inode, ()):
            for claim in (*self.claims(key), *self.listeners(key)):
                if claim.inode == event.inode:
                    claim.close(event.time_ns, queued=event.shared)

    # --- looks ---

    def look(self, scan: SocketScan) -> set[ProcessId]:
        """Takes a look at the socket tables; returns the processes that it shows first."""
        self._end_of_users_who_let_go(scan)
        sighted: dict[tuple[FlowKey, int], Claim] = {}
        newcomers: set[ProcessId] = set()
        since_ns = self._previous_look_ns
        for socket in scan.sockets:
            key = key_of_socket(socket)
            holders = scan.holders.get(socket.inode)
            # A socket in TIME_WAIT has no process any more.
            if key is None or not holders:
                continue
            claim = self._sighted.get(identity := (key, socket.inode))
            forked = has_forked(holders, scan)
            if (
                claim is not None
                and claim.is_open
                and claim.users == holders
                and claim.evidence in (scan.evidence, Evidence.LISTENER)
                and not forked
            ):
                claim.sure_to_ns = scan.started_ns
                sighted[identity] = claim
                continue
            table = self._listeners if socket.state == "listen" else self._claims
            claim = self._sight(table, key, socket.inode, holders, scan)
            if claim is not None:
                is_new = self._births.of(socket.inode, since_ns) >= since_ns
                if forked or (is_new and may_be_passed(self._listeners, key, socket.inode, scan)):
                    # A child, or one who passed it on, may have used it, and no look has shown it.
                    table.doubt(key, socket.inode, since_ns, scan.ended_ns)
                sighted[identity] = claim
                newcomers |= holders
        for (key, inode), claim in self._sighted.items():
            if sighted.get((key, inode)) is not claim:
                claim.close(scan.ended_ns)
                if (key, inode) not in sighted and may_be_shared(claim, scan):
                    table = self._listeners if claim.evidence is Evidence.LISTENER else self._claims
                    table.doubt(key, inode, since_ns, scan.ended_ns)
        self._sighted = sighted
        self.leftovers.look(scan, since_ns)
        self._previous_look_ns = scan.started_ns
        return newcomers

    def _end_of_users_who_let_go(self, scan: SocketScan) -> None:
        """A process that does not hold the socket any more has used it for the last time."""
        for inode, holders in scan.holders.items():
            if self._holders.get(inode) == holders:
                continue
            for key in self._by_inode.get(inode, ()):
                for claim in list(self.claims(key)):
                    # Told since the look began: the look does not know it yet.
                    known = claim.inode == inode and claim.sure_from_ns <= scan.started_ns
                    told = claim.evidence is Evidence.KERNEL_EVENT and not claim.presumed
                    if not known or not told or claim.users & holders:
                        continue
                    if key.protocol == TCP and claim.sends:
                        # What it left in the queue still leaves; who sends after it is told.
                        if not claim.receives:
                            continue
                        claim = self._part(key, claim, False, True)
                    claim.close(scan.started_ns, queued=key.protocol != TCP)
        self._holders = dict(scan.holders)
        self._births.look(scan.holders, self._previous_look_ns)

    def _sight(
        self,
        table: Endpoints,
        key: FlowKey,
        inode: int,
        holders: frozenset[ProcessId],
        scan: SocketScan,
    ) -> Claim | None:
        claims = table.at(key)
        sends = receives = True
        for known in claims:
            if known.evidence is not Evidence.KERNEL_EVENT or known.inode != inode:
                continue
            if scan.started_ns <= known.closed_ns < FOREVER_NS:
                return None  # closed since the look began
            if known.is_open:
                # An event beats a look. It shows a socket that is still there, and who else might
                # read from it where its remotes are many or events were lost.
                if known.presumed:
                    # Accepted and not used yet: it is for one of those who have it now.
                    known.users = holders
                if (not key.remote_address and not known.takes) or known.sure_to_ns < FOREVER_NS:
                    known.users |= holders
                known.sure_to_ns = max(known.sure_to_ns, scan.started_ns)
                sends, receives = sends and not known.sends, receives and not known.receives
        if not sends and not receives:
            return None
        born_ns = scan.births.get(inode, ALWAYS_NS)
        begin_ns = max(self._previous_look_ns, self._births.of(inode, born_ns), born_ns)
        if len(holders) == 1:
            (holder,) = holders
            began_ns = self.boot_ns + holder.start_time_ns
            if began_ns > begin_ns:
                # Somebody who is gone may have had the socket before its holder was born.
                table.doubt(key, inode, begin_ns, began_ns)
                begin_ns = began_ns
        if any(
            other.inode != inode and other.users and other.end_ns > self._previous_look_ns
            for other in claims
        ):
            self._contested[key] = scan.ended_ns + CONTESTED_NS
        evidence = Evidence.LISTENER if table is self._listeners else scan.evidence
        claim = Claim(
            holders, evidence, inode,
            begin_ns=begin_ns, sure_from_ns=scan.ended_ns, sure_to_ns=scan.ended_ns,
            has_remote=bool(key.remote_address), sends=sends, receives=receives, born_ns=born_ns,
        )  # fmt: skip
        claims.append(claim)
        self._remember(key, claim)
        self._blur(table, key)
        return claim

    # --- the clock, and room ---

    def shift(self, step_ns: int) -> None:
        """The wall clock was set: the same moments have other names."""
        self._previous_look_ns = shifted(self._previous_look_ns, step_ns)
        self.losses.shift(step_ns)
        self.leftovers.shift(step_ns)
        self._births.shift(step_ns)
        self._contested = {key: shifted(at_ns, step_ns) for key, at_ns in self._contested.items()}
        for table in (self._claims, self._listeners):
            for claims in table.values():
                for claim in claims:
                    claim.shift(step_ns)

    def forget(self, now_ns: int) -> None:
        """Lets go of what can answer for no packet any more, and of what is too much."""
        for table in (self._claims, self._listeners):
            for key, old in table.late(now_ns):
                self._let_go(table, key, old)
        for key in [key for key, until_ns in self._contested.items() if until_ns < now_ns]:
            del self._contested[key]
        for key in self._claims.oldest(self._max_endpoints, self._max_endpoints // 2, now_ns):
            self.evicted_endpoints += 1
            self._let_go(self._claims, key, self._claims[key])
        self.losses.forget()
        self.leftovers.forget(now_ns)
        self._births.forget()

    def _blur(self, table: Endpoints, key: FlowKey) -> None:
        """What many turns left on one endpoint becomes one claim, of whoever had a turn."""
        surplus = table.surplus(key)
        if surplus:
            claim = blurred(surplus, self.losses.until_ns)
            self._let_go(table, key, surplus)
            table.at(key).insert(0, claim)
            self._remember(key, claim)

    def _let_go(self, table: Endpoints, key: FlowKey, claims: list[Claim]) -> None:
        kept = table.remove(key, claims)
        inodes = {claim.inode for claim in kept}
        for claim in claims:
            claim.forgotten = True
            # If the socket is still there, the next look shows it as a new one.
            if self._sighted.get((key, claim.inode)) is claim:
                del self._sighted[key, claim.inode]
            keys = self._by_inode.get(claim.inode)
            if keys is not None and claim.inode not in inodes:
                keys.discard(key)
                if not keys:
                    del self._by_inode[claim.inode]

    def _remember(self, key: FlowKey, claim: Claim) -> None:
        if claim.inode:
            self._by_inode.setdefault(claim.inode, set()).add(key)

    def _drop(self, key: FlowKey, claim: Claim) -> None:
        self._claims[key].remove(claim)
        if self._sighted.get((key, claim.inode)) is claim:
            del self._sighted[key, claim.inode]
