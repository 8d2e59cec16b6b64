"""A claim: what one witness says of who owned a socket, and for how long it is believed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from functools import lru_cache

from procnet.model import (
    TCP,
    EventKind,
    Evidence,
    FlowCount,
    FlowKey,
    OwnerEvent,
    ProcessId,
)

ALWAYS_NS = -(1 << 62)
FOREVER_NS = 1 << 62
ANY_TIME = (ALWAYS_NS, FOREVER_NS)

CLOCK_SLACK_NS = 100_000
"""Packets are stamped by the wall clock and events by the boot clock: the difference is known as
well as both can be read at once, and not before the next read after the wall clock was set."""

INJECTION_NS = 10_000_000
"""For so long one event stands for all frames that a process injects (bpf/owners.bpf.c)."""
CONTESTED_NS = 5_000_000_000
"""How long after two sockets took turns on an endpoint an unseen moment is believed of neither."""

TCP_GRACE_NS = 60_000_000_000
"""FIN, RST and TIME_WAIT answers come after the close: TCP_TIMEWAIT_LEN (include/net/tcp.h)."""
OTHER_GRACE_NS = 1_000_000_000
"""Longer than a datagram waits that has left for the device when its socket is closed."""
QUEUED_NS = 10_000_000_000
"""For so long packets may leave that waited below a socket when it was closed, if nothing says
that they have: as much as one may have there (SO_SNDBUF, 212,992 bytes) takes it at 170 kbit/s."""


def grace_ns(protocol: int) -> int:
    """How long a closed socket still answers for packets."""
    return TCP_GRACE_NS if protocol == TCP else OTHER_GRACE_NS


NOBODY: frozenset[ProcessId] = frozenset()
"""One object of it: since Python 3.10 each ``frozenset()`` is another one."""


@lru_cache(4096)
def alone(process: ProcessId) -> frozenset[ProcessId]:
    """Nobody else: one object for the hundred thousand claims that a busy process may have."""
    return frozenset((process,))


def shifted(at_ns: int, step_ns: int) -> int:
    """A moment after the clock was set; always and forever stay what they are."""
    return at_ns if at_ns in (ALWAYS_NS, FOREVER_NS) else at_ns + step_ns


Parts = tuple[tuple[ProcessId, int], ...]
"""Processes with payload bytes."""


class Claim:
    """Processes that had a socket's end, with two intervals.

    Within ``sure_from_ns``..``sure_to_ns`` the witness saw it so: named at once. Within
    ``begin_ns``..``end_ns`` it may have been so: named only if nobody else may, and only after the
    next look. ``users`` has more than one process where the witness cannot say which one acted.
    """

    __slots__ = (
        "begin_ns",
        "blind",
        "born_ns",
        "connects",
        "end_ns",
        "evidence",
        "forgotten",
        "has_remote",
        "injects",
        "inode",
        "kernel",
        "parts",
        "presumed",
        "queued",
        "receives",
        "sends",
        "shared",
        "sure_from_ns",
        "sure_to_ns",
        "takes",
        "untaken",
        "users",
    )

    def __init__(
        self,
        users: frozenset[ProcessId],
        evidence: Evidence,
        inode: int,
        *,
        begin_ns: int,
        sure_from_ns: int,
        sure_to_ns: int,
        has_remote: bool = False,
        sends: bool = True,
        receives: bool = True,
        born_ns: int = ALWAYS_NS,
    ) -> None:
        self.has_remote = has_remote
        # Which packets it is about: of a connection, the two directions may have a user each.
        self.sends = sends
        self.receives = receives
        # What the users have sent leaves mixed.
        self.shared = False
        # Of a single packet that has bytes of two: who wrote how many of its payload, in order.
        self.parts: Parts = ()
        self.forgotten = False
        self.users = users
        self.evidence = evidence
        self.inode = inode
        self.begin_ns = begin_ns
        self.sure_from_ns = sure_from_ns
        self.sure_to_ns = sure_to_ns
        self.end_ns = FOREVER_NS
        # What came in before was not for the socket, if that is known.
        self.born_ns = born_ns
        # A socket of the kernel itself: there is nobody to name.
        self.kernel = False
        # Frames without a socket of that five-tuple: nothing is received by it.
        self.injects = False
        # Of an endpoint: whoever takes what comes in there is told, and is among the users.
        self.takes = False
        # Of an endpoint: those who took something of which no remote end was told. It may have been
        # of any flow of the socket.
        self.blind = NOBODY
        # Of a connection: nobody has taken anything yet; what comes in is for whoever does first.
        self.untaken = False
        # Accepted, but not used yet: whoever uses it first is the owner from the beginning. The
        # kernel tells the acceptor's own first use too.
        self.presumed = False
        # Of a connection: its SYN was still to be sent when it was told.
        self.connects = False
        # Closed, with packets that may still have to leave: in a queueing discipline, or before it.
        self.queued = False

    @property
    def is_open(self) -> bool:
        return self.end_ns == FOREVER_NS

    @property
    def closed_ns(self) -> int:
        """What comes in later is not the owner's; what leaves may be."""
        return self.sure_to_ns if self.queued else self.end_ns

    def split(self, sends: bool, receives: bool) -> Claim | None:
        """What it says of these directions, as a claim of its own, and no longer says itself.

        None if it says nothing else: then it need not be split.
        """
        if self.sends <= sends and self.receives <= receives:
            return None
        part = copy(self)
        part.sends, part.receives = self.sends and sends, self.receives and receives
        self.sends, self.receives = self.sends and not sends, self.receives and not receives
        return part

    def says(self, event: OwnerEvent) -> bool:
        """Is it of an event that said the same?"""
        if self.evidence is not Evidence.KERNEL_EVENT or self.shared is not event.shared:
            return False
        if self.parts or event.packet_bytes:
            return False  # of one packet
        return event.process in self.users if event.shared else self.users == {event.process}

    def sharers(self, event: OwnerEvent, claims: Sequence[Claim]) -> frozenset[ProcessId]:
        """Whose bytes may leave among those of the event's process: the users' until now. Is that
        itself, something is sent again, of anybody who sent by one of the claims before."""
        if self.users != {event.process}:
            return self.users
        return NOBODY.union(*(claim.users for claim in claims if claim.sends and not claim.injects))

    def parts_with(self, event: OwnerEvent) -> Parts:
        """Of the packet that an event is about, if the rest of it is of the one user until now, or
        another's part of that rest is known."""
        told = self.evidence is Evidence.KERNEL_EVENT and not self.kernel and not event.kernel
        if not event.packet_bytes or not told:
            return ()
        known = self.parts
        if len(self.users) == 1:
            (first,) = self.users
            known = ((first, event.packet_bytes),)
        if sum(part_bytes for _, part_bytes in known) != event.packet_bytes:
            return ()
        (first, rest_bytes), *others = known
        if rest_bytes <= event.part_bytes:
            return ()
        return (first, rest_bytes - event.part_bytes), *others, (event.process, event.part_bytes)

    def narrows(self, event: OwnerEvent) -> bool:
        """Does the event say which of those it is that may have it?"""
        if self.shared or event.shared:
            return False
        return self.presumed or event.process in self.users

    def confirm(self, event: OwnerEvent) -> None:
        """It is about whom the event is about."""
        if not event.shared:
            self.users = alone(event.process)
        self.shared = event.shared
        self.presumed = self.presumed and event.kind is EventKind.ACCEPT
        self.untaken = self.untaken and event.kind is not EventKind.RECEIVE
        self.kernel = event.kernel
        self.inode = self.inode or event.inode

    def close(self, at_ns: int, *, queued: bool = False) -> None:
        """Nothing after ``at_ns`` is the owner's, but what a closed socket still answers for.

        ``queued``: and packets that still have to leave, or may have to.
        """
        end_ns = at_ns
        if queued and self.has_remote and (self.is_open or self.queued):
            self.queued = True
            end_ns = at_ns + QUEUED_NS
        if self.end_ns > end_ns:
            self.end_ns = end_ns
        if self.sure_to_ns > at_ns:
            self.sure_to_ns = at_ns

    def shift(self, step_ns: int) -> None:
        """The wall clock was set by so much."""
        self.begin_ns = shifted(self.begin_ns, step_ns)
        self.born_ns = shifted(self.born_ns, step_ns)
        self.end_ns = shifted(self.end_ns, step_ns)
        self.sure_from_ns = shifted(self.sure_from_ns, step_ns)
        self.sure_to_ns = shifted(self.sure_to_ns, step_ns)

    def may_cover(self, count: FlowCount, grace: int) -> bool:
        """Could the run have been moved while this claim held?"""
        return (
            self.begin_ns <= count.last_ns + CLOCK_SLACK_NS
            and self.end_ns + grace >= count.first_ns - CLOCK_SLACK_NS
        )

    def is_younger(self, count: FlowCount) -> bool:
        """Was the socket not there yet when the run that came in began?"""
        return not count.sent and self.born_ns > count.first_ns + CLOCK_SLACK_NS

    def may_take(self, count: FlowCount) -> bool:
        """The same of a run that came in."""
        return self.may_cover(count, 0) and self.closed_ns >= count.first_ns - CLOCK_SLACK_NS

    def surely_covers(self, count: FlowCount, slack_ns: int = CLOCK_SLACK_NS) -> bool:
        """Was the whole run moved while the witness saw this owner?"""
        return (
            self.sure_from_ns - slack_ns <= count.first_ns
            and count.last_ns <= self.sure_to_ns + slack_ns
        )

    def touches(self, begin_ns: int, end_ns: int, slack_ns: int = CLOCK_SLACK_NS) -> bool:
        """Does the sure interval share a moment with the given one?"""
        return self.sure_from_ns - slack_ns <= end_ns and begin_ns <= self.sure_to_ns + slack_ns


def end_queued(claims: Iterable[Claim], event: OwnerEvent) -> None:
    """Unless the event says otherwise, what others had sent by its socket has left by then; if it
    says so, also what was sent by the sockets that had its port before."""
    for claim in claims:
        of_socket = claim.inode == event.inode
        if claim.queued and (not event.shared if of_socket else event.left):
            claim.close(event.time_ns)


def told(event: OwnerEvent, begin_ns: int, *, has_remote: bool) -> Claim:
    """What an event says, from its time on."""
    claim = Claim(
        alone(event.process),
        Evidence.KERNEL_EVENT,
        event.inode,
        begin_ns=begin_ns,
        sure_from_ns=event.time_ns,
        sure_to_ns=FOREVER_NS,
        has_remote=has_remote,
        born_ns=event.born_ns or ALWAYS_NS,
    )
    claim.kernel = event.kernel
    claim.presumed = event.kind is EventKind.ACCEPT
    claim.connects = event.kind is EventKind.CONNECT
    claim.untaken = event.protocol == TCP and event.kind is not EventKind.RECEIVE
    return claim


def somebody(key: FlowKey, inode: int, begin_ns: int, end_ns: int) -> Claim:
    """Who it was then, nobody saw."""
    claim = Claim(
        NOBODY, Evidence.SOCKET_SCAN, inode,
        begin_ns=begin_ns, sure_from_ns=end_ns, sure_to_ns=end_ns,
        has_remote=bool(key.remote_address),
    )  # fmt: skip
    claim.end_ns = end_ns
    return claim


def blurred(claims: Sequence[Claim], lost_ns: int) -> Claim:
    """One closed claim in the place of several, oldest first: any of their users, at any time.

    Who else had a turn before ``lost_ns``, when events were lost last, nobody knows.
    """
    last = claims[-1]
    claim = Claim(
        NOBODY.union(*(claim.users for claim in claims)),
        max((claim.evidence for claim in claims), key=lambda evidence: evidence.rank),
        last.inode,
        begin_ns=min(claim.begin_ns for claim in claims),
        sure_from_ns=max(
            min(claim.sure_from_ns for claim in claims), min(lost_ns, last.sure_from_ns)
        ),
        sure_to_ns=max(claim.sure_to_ns for claim in claims),
        has_remote=last.has_remote,
    )
    claim.end_ns = max(claim.end_ns for claim in claims)
    claim.kernel = all(claim.kernel for claim in claims)
    # A time of somebody whom nobody saw makes all of it unsure.
    claim.shared = any(claim.shared or not claim.users for claim in claims)
    claim.injects = last.injects
    claim.sends = any(claim.sends for claim in claims)
    claim.receives = any(claim.receives for claim in claims)
    claim.queued = any(claim.queued for claim in claims)
    claim.takes = all(claim.takes for claim in claims)
    claim.blind = NOBODY.union(*(claim.blind for claim in claims))
    return claim
