"""Who owned which endpoint, from when to when.

Two kinds of witness feed the table: events of the kernel (``observe``), each told at its moment,
and looks at the socket tables (``look``), which say what was so at the time of the look and leave
open what was between two. ``verdict.py`` reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from procnet.ledger.claims import ALWAYS_NS, FOREVER_NS, Claim, grace_ns
from procnet.model import (
    ICMP,
    ICMP6,
    IPV4_WILDCARD,
    IPV6_WILDCARD,
    TCP,
    EventKind,
    Evidence,
    FlowKey,
    OwnerEvent,
    ProcessId,
    Socket,
    SocketScan,
)

MAX_ENDPOINTS = 131_072
CONTESTED_NS = 5_000_000_000
"""How long after two sockets took turns on an endpoint an unseen moment is believed of neither."""

_IGMP = 2
_KERNEL_ANSWERS = frozenset((ICMP, _IGMP, ICMP6))
_WILDCARDS = (IPV4_WILDCARD, IPV6_WILDCARD)


def local_key(key: FlowKey, address: bytes) -> FlowKey:
    """The endpoint of a socket that is not connected: no remote end."""
    return FlowKey(key.netns, key.protocol, address, key.local_port, b"", 0)


class OwnerTable:
    """Claims by endpoint; bounded, the endpoint that was claimed first goes first."""

    def __init__(self, max_endpoints: int = MAX_ENDPOINTS) -> None:
        self.evicted_endpoints = 0
        self.boot_ns = 0
        """The wall-clock time of the boot: turns a process's start into the time of packets."""
        self._max_endpoints = max_endpoints
        self._claims: dict[FlowKey, list[Claim]] = {}
        self._listeners: dict[FlowKey, list[Claim]] = {}
        self._by_inode: dict[int, set[FlowKey]] = {}
        self._sighted: dict[tuple[FlowKey, int], Claim] = {}
        self._contested: dict[FlowKey, int] = {}
        self._holders: dict[int, frozenset[ProcessId]] = {}
        self._previous_look_ns = ALWAYS_NS

    def claims(self, key: FlowKey) -> Iterable[Claim]:
        """All that is known of one endpoint, oldest first."""
        return self._claims.get(key, ())

    def listeners(self, key: FlowKey) -> Iterable[Claim]:
        """Who listens there."""
        return self._listeners.get(key, ())

    def contested(self, key: FlowKey, at_ns: int) -> bool:
        """Did sockets take turns there lately, so that what lies between two looks is unsure?"""
        until_ns = self._contested.get(key)
        return until_ns is not None and at_ns <= until_ns

    # --- events ---

    def observe(self, events: Iterable[OwnerEvent]) -> None:
        """Takes what the kernel told, in any order."""
        for event in sorted(events, key=lambda event: event.time_ns):
            if event.kind is EventKind.CLOSE:
                self._close_socket(event)
                continue
            key = FlowKey(
                event.netns,
                event.protocol,
                event.local_address,
                event.local_port,
                event.remote_address,
                event.remote_port,
            )
            if event.remote_address:
                self._use(key, event)
            if event.local_address in _WILDCARDS or not event.remote_address:
                self._use_endpoint(local_key(key, event.local_address), event)

    def lost(self, since_ns: int) -> None:
        """Events were lost: no claim of an event is sure any more after ``since_ns``."""
        for claims in self._claims.values():
            for claim in claims:
                if claim.is_open and claim.evidence is Evidence.KERNEL_EVENT:
                    claim.sure_to_ns = min(claim.sure_to_ns, max(since_ns, claim.sure_from_ns))

    def _use(self, key: FlowKey, event: OwnerEvent) -> None:
        claims = self._claims.setdefault(key, [])
        begin_ns = (
            ALWAYS_NS if event.kind in (EventKind.ACCEPT, EventKind.RECEIVE) else event.time_ns
        )
        for claim in [claim for claim in claims if claim.is_open]:
            # A child that is not grafted to its socket yet has no inode.
            same_socket = event.inode == claim.inode or not (event.inode and claim.inode)
            if not same_socket:
                if key.protocol == TCP:
                    claim.close(event.time_ns)
                continue
            if claim.evidence is not Evidence.KERNEL_EVENT:
                # Nobody has used the socket since the hooks were in place, or there were a claim
                # of that use: what only lay in the socket is for the one who uses it now.
                begin_ns = min(begin_ns, claim.begin_ns)
                self._drop(key, claim)
            elif claim.presumed or event.process in claim.users:
                claim.users = frozenset((event.process,))
                claim.presumed = claim.presumed and event.kind is EventKind.ACCEPT
                claim.kernel = event.kernel
                claim.inode = claim.inode or event.inode
                self._remember(key, claim)
                return
            else:
                claim.close(event.time_ns)
                begin_ns = event.time_ns
        self._add_event_claim(key, event, begin_ns)

    def _use_endpoint(self, key: FlowKey, event: OwnerEvent) -> None:
        """A socket that is not connected: its user may have used it for other remotes too."""
        for claim in [claim for claim in self.claims(key) if claim.inode == event.inode]:
            if claim.evidence is Evidence.KERNEL_EVENT:
                if claim.is_open:
                    claim.users |= {event.process}
                    return
            else:
                self._drop(key, claim)
        receives = event.kind is EventKind.RECEIVE
        self._add_event_claim(key, event, ALWAYS_NS if receives else event.time_ns)

    def _add_event_claim(self, key: FlowKey, event: OwnerEvent, begin_ns: int) -> None:
        claim = Claim(
            frozenset((event.process,)),
            Evidence.KERNEL_EVENT,
            event.inode,
            begin_ns=begin_ns,
            sure_from_ns=event.time_ns,
            sure_to_ns=FOREVER_NS,
        )
        claim.kernel = event.kernel
        claim.presumed = event.kind is EventKind.ACCEPT
        self._claims.setdefault(key, []).append(claim)
        self._remember(key, claim)

    def _close_socket(self, event: OwnerEvent) -> None:
        for key in self._by_inode.pop(event.inode, ()):
            for claim in (*self.claims(key), *self.listeners(key)):
                if claim.inode == event.inode:
                    claim.close(event.time_ns)

    # --- looks ---

    def look(self, scan: SocketScan) -> set[ProcessId]:
        """Takes a look at the socket tables; returns the processes that it shows first."""
        self._end_of_users_who_let_go(scan)
        sighted: dict[tuple[FlowKey, int], Claim] = {}
        newcomers: set[ProcessId] = set()
        for socket in scan.sockets:
            key = _key_of(socket)
            # A socket in TIME_WAIT has no inode and no process any more.
            if key is None or not socket.inode:
                continue
            holders = scan.holders.get(socket.inode)
            if not holders:
                continue
            identity = (key, socket.inode)
            claim = self._sighted.get(identity)
            if claim is not None and claim.is_open and claim.users == holders:
                claim.sure_to_ns = scan.started_ns
                sighted[identity] = claim
                continue
            table = self._listeners if socket.state == "listen" else self._claims
            claim = self._sight(table, key, socket.inode, holders, scan)
            if claim is not None:
                sighted[identity] = claim
                newcomers |= holders
        for identity, claim in self._sighted.items():
            if sighted.get(identity) is not claim:
                claim.close(scan.ended_ns)
        self._sighted = sighted
        self._previous_look_ns = scan.started_ns
        return newcomers

    def _end_of_users_who_let_go(self, scan: SocketScan) -> None:
        """A process that does not hold the socket any more has used it for the last time."""
        for inode, holders in scan.holders.items():
            if self._holders.get(inode) == holders:
                continue
            for key in self._by_inode.get(inode, ()):
                for claim in self.claims(key):
                    is_event = claim.evidence is Evidence.KERNEL_EVENT
                    if is_event and claim.inode == inode and not claim.users & holders:
                        claim.close(scan.started_ns)
        self._holders = dict(scan.holders)

    def _sight(
        self,
        table: dict[FlowKey, list[Claim]],
        key: FlowKey,
        inode: int,
        holders: frozenset[ProcessId],
        scan: SocketScan,
    ) -> Claim | None:
        claims = table.setdefault(key, [])
        for known in claims:
            if known.evidence is Evidence.KERNEL_EVENT and known.inode == inode and known.is_open:
                # An event beats a look. It shows a socket that is still there, and who else might
                # read from it where its remotes are many.
                if not key.remote_address:
                    known.users |= holders
                known.sure_to_ns = max(known.sure_to_ns, scan.started_ns)
                return None
        begin_ns = self._previous_look_ns
        if len(holders) == 1:
            (holder,) = holders
            begin_ns = max(begin_ns, self.boot_ns + holder.start_time_ns)
        if any(other.inode != inode and other.end_ns > self._previous_look_ns for other in claims):
            self._contested[key] = scan.ended_ns + CONTESTED_NS
        claim = Claim(
            holders,
            Evidence.LISTENER if table is self._listeners else Evidence.SOCKET_SCAN,
            inode,
            begin_ns=begin_ns,
            sure_from_ns=scan.ended_ns,
            sure_to_ns=scan.ended_ns,
        )
        claims.append(claim)
        self._remember(key, claim)
        return claim

    # --- room ---

    def forget(self, now_ns: int) -> None:
        """Lets go of what can answer for no packet any more, and of what is too much."""
        for table in (self._claims, self._listeners):
            for key in list(table):
                grace = 2 * grace_ns(key.protocol)
                kept = [claim for claim in table[key] if claim.end_ns + grace >= now_ns]
                if kept:
                    table[key] = kept
                else:
                    del table[key]
        for key in [key for key, until_ns in self._contested.items() if until_ns < now_ns]:
            del self._contested[key]
        for key in list(self._oldest(len(self._claims) - self._max_endpoints)):
            self.evicted_endpoints += 1
            del self._claims[key]
        if len(self._by_inode) > 2 * self._max_endpoints:
            self._reindex()

    def _oldest(self, number: int) -> Iterator[FlowKey]:
        for _, key in zip(range(number), self._claims, strict=False):
            yield key

    def _reindex(self) -> None:
        self._by_inode = {}
        for table in (self._claims, self._listeners):
            for key, claims in table.items():
                for claim in claims:
                    self._remember(key, claim)

    def _remember(self, key: FlowKey, claim: Claim) -> None:
        if claim.inode:
            self._by_inode.setdefault(claim.inode, set()).add(key)

    def _drop(self, key: FlowKey, claim: Claim) -> None:
        self._claims[key].remove(claim)
        self._sighted.pop((key, claim.inode), None)


def _key_of(socket: Socket) -> FlowKey | None:
    """Where a socket's claim is kept, or None if a look at it can name nobody.

    A raw socket of a protocol that the kernel itself speaks gets copies of what the kernel answers:
    that it is open does not say that its process sent or read anything.
    """
    if socket.family == 0 or (socket.protocol in _KERNEL_ANSWERS and not socket.local_port):
        return None
    if socket.protocol == TCP and socket.state != "listen" and not socket.remote_port:
        return None
    connected = bool(socket.remote_port) or socket.remote_address not in (b"", *_WILDCARDS)
    return FlowKey(
        socket.netns,
        socket.protocol,
        socket.local_address,
        socket.local_port,
        socket.remote_address if connected else b"",
        socket.remote_port if connected else 0,
    )
