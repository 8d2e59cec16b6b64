"""From claims to a verdict on one run of packets: an owner with evidence, or a reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from procnet.ledger.claims import (
    ANY_TIME,
    CLOCK_SLACK_NS,
    FOREVER_NS,
    NOBODY,
    Claim,
    Parts,
    grace_ns,
)
from procnet.ledger.keys import local_key
from procnet.ledger.owners import OwnerTable
from procnet.model import (
    IPV4_WILDCARD,
    IPV6_WILDCARD,
    TCP,
    Evidence,
    FlowCount,
    FlowKey,
    ProcessId,
    Reason,
)


class Verdict(NamedTuple):
    """``process`` with ``evidence``, or None with ``reason``; ``candidates`` for ``AMBIGUOUS``.

    ``socket`` is the flow as the owner's socket has it, where that is not the run's own. ``parts``:
    who of the candidates wrote how much of the payload, in order, where that is known.
    """

    process: ProcessId | None
    evidence: Evidence | None
    reason: Reason | None
    candidates: frozenset[ProcessId]
    socket: FlowKey | None = None
    parts: Parts = ()


class When(NamedTuple):
    """What of the time of a run is known when it is decided.

    ``generation`` is the time of the TCP connection that it belongs to. ``looked``: the sockets
    were looked at since, so whoever shares the socket has had time to be heard of. ``last_word``:
    nothing better will be told. ``late``: whoever takes what has come in has had time to be told.
    ``asked_ns``: when the connection was asked for last, by a SYN.
    """

    generation: tuple[int, int]
    looked: bool
    last_word: bool
    late: bool
    asked_ns: int


NO_SOCKET = Verdict(None, None, Reason.NO_SOCKET, NOBODY)
EVICTED = Verdict(None, None, Reason.EVICTED, NOBODY)
SEEN = Verdict(None, None, Reason.PENDING, NOBODY)
"""A witness has said something, but the next look may say more."""
UNSEEN = Verdict(None, None, Reason.PENDING, NOBODY)
"""No witness has said anything yet."""


# The constructor of a NamedTuple takes twice as long, and a flood climbs many rungs.
_new = tuple.__new__


def ladder(key: FlowKey) -> tuple[FlowKey, ...]:
    """The endpoints that can answer for a flow, the most exact first.

    Only a socket that is not connected can be meant by less than the five-tuple; TCP has none.
    """
    netns, protocol, address, port, remote, remote_port = key
    if protocol == TCP:
        return (key,)
    if len(address) != 4:
        return (
            key,
            _new(FlowKey, (netns, protocol, IPV6_WILDCARD, port, remote, remote_port)),
            _new(FlowKey, (netns, protocol, address, port, b"", 0)),
            _new(FlowKey, (netns, protocol, IPV6_WILDCARD, port, b"", 0)),
        )
    # A wildcard IPv6 socket takes IPv4 too unless it is IPV6_V6ONLY; the kernel prefers the socket
    # of the packet's own family (compute_score, net/ipv4/udp.c).
    return (
        key,
        _new(FlowKey, (netns, protocol, IPV4_WILDCARD, port, remote, remote_port)),
        _new(FlowKey, (netns, protocol, IPV6_WILDCARD, port, remote, remote_port)),
        _new(FlowKey, (netns, protocol, address, port, b"", 0)),
        _new(FlowKey, (netns, protocol, IPV4_WILDCARD, port, b"", 0)),
        _new(FlowKey, (netns, protocol, IPV6_WILDCARD, port, b"", 0)),
    )


def decide(owners: OwnerTable, count: FlowCount, when: When) -> Verdict:
    """Whose the run is; ``SEEN`` or ``UNSEEN`` to wait, but never if it is the ``last_word``."""
    verdict = _decide(owners, count, when)
    looked_at = verdict.evidence is not None and verdict.evidence is not Evidence.KERNEL_EVENT
    if looked_at and owners.leftovers.hit(count):
        assert verdict.process is not None
        return Verdict(None, None, Reason.AMBIGUOUS, frozenset((verdict.process,)))
    if (verdict.process is None and not verdict.parts) or not owners.losses.hit(count):
        return verdict
    if verdict.process is None:
        return verdict._replace(parts=())
    assert count.key is not None
    told = (claim for rung in ladder(count.key) for claim in owners.claims(rung))
    if any(claim.users == {verdict.process} and claim.surely_covers(count, 0) for claim in told):
        return verdict
    return Verdict(None, None, Reason.AMBIGUOUS, frozenset((verdict.process,)))


def shares(count: FlowCount, verdict: Verdict) -> Iterator[tuple[FlowCount, Verdict]]:
    """A packet by who wrote its bytes; it is counted, headers included, with the first of them."""
    packets, header_bytes = count.packets, count.wire_bytes - count.payload_bytes
    for process, payload_bytes in verdict.parts:
        yield (
            count._replace(
                packets=packets,
                wire_bytes=header_bytes + payload_bytes,
                payload_bytes=payload_bytes,
            ),
            Verdict(process, Evidence.KERNEL_EVENT, None, NOBODY, verdict.socket),
        )
        packets = header_bytes = 0


def _decide(owners: OwnerTable, count: FlowCount, when: When) -> Verdict:
    key = count.key
    assert key is not None
    if key.protocol == TCP:
        return _of_connection(owners, count, when)
    _, looked, last_word, _, _ = when
    claims = _claims_of_sender(owners, count) if count.sent else _claims_of_taker(owners, count)
    if not claims:
        if not last_word:
            return UNSEEN
        return _late(owners, count, ladder(key)) if count.sent else NO_SOCKET
    told = [claim for claim in claims if claim.evidence is Evidence.KERNEL_EVENT]
    sure = all(claim.surely_covers(count) for claim in claims)
    # Who sends is told before the packet; who takes it is told after it, if it is another one.
    if sure and (not told or looked or (count.sent and _names(told))):
        return _best(claims)
    if not last_word:
        return SEEN
    # That one may have been there does not say who took it.
    if _is_copied(count) and not told and not sure:
        return _ambiguous(claims)
    rungs = ladder(key)
    if any(claim.takes for claim in claims) and _is_copied(count):
        rungs = tuple(rung for rung in rungs if any(c in claims for c in owners.claims(rung)))
    if not _names(told) and any(owners.contested(rung, count.last_ns) for rung in rungs):
        return _ambiguous([claim for rung in rungs for claim in owners.claims(rung)])
    if any(count.first_ns > claim.sure_to_ns for claim in claims):
        claims += _of_the_same_sockets(owners, count, claims)
    if all(claim.is_younger(count) for claim in claims):
        return _ambiguous(claims)
    return _best(claims)


def _names(told: list[Claim]) -> bool:
    """Is one of the events about this very remote end?"""
    return any(claim.has_remote for claim in told)


def _is_copied(count: FlowCount) -> bool:
    """Each raw socket of a protocol gets what comes in (raw_v4_input, net/ipv4/raw.c)."""
    key = count.key
    assert key is not None
    return not (count.sent or key.local_port or key.remote_port)


def _claims_of_sender(owners: OwnerTable, count: FlowCount) -> list[Claim]:
    """Every socket that may have sent it: a wildcard one sends what an exact one sends."""
    assert count.key is not None
    claims: list[Claim] = []
    for rung in ladder(count.key):
        for claim in owners.claims(rung):
            # The event of a sender comes first: it says nothing of what was sent before it.
            told = claim.evidence is Evidence.KERNEL_EVENT
            begun = not told or claim.sure_from_ns - CLOCK_SLACK_NS <= count.last_ns
            if begun and claim.may_cover(count, 0):
                claims.append(claim)
    exact = [claim for claim in claims if claim.has_remote]
    sure = [
        claim
        for claim in exact
        if claim.evidence is Evidence.KERNEL_EVENT and claim.surely_covers(count)
    ]
    found = _surest(sure, exact, count) or claims
    late = [claim for claim in claims if claim.queued and claim.end_ns > count.first_ns]
    return found + [claim for claim in late if claim not in found]


def _claims_of_taker(owners: OwnerTable, count: FlowCount) -> list[Claim]:
    """Every socket that the kernel may have given it to: the most exact one that was surely there,
    and those that come before it if they were there."""
    assert count.key is not None
    claims: list[Claim] = []
    for rung in ladder(count.key):
        known = owners.claims(rung)
        if not known:
            continue
        found = [claim for claim in known if claim.may_take(count) and not claim.injects]
        claims += found
        told = any(claim.evidence is Evidence.KERNEL_EVENT for claim in found)
        if told and rung == count.key:
            exact = [claim for claim in found if claim.evidence is Evidence.KERNEL_EVENT]
            return exact + _blind_takers(owners, count, exact)
        if not told and any(claim.surely_covers(count) for claim in found):
            break
    # Who takes a copy is told: whoever was only seen there has left his where it was.
    takers = [claim for claim in claims if claim.takes] if _is_copied(count) else []
    return takers or claims


def _blind_takers(owners: OwnerTable, count: FlowCount, exact: list[Claim]) -> list[Claim]:
    """Where others took from the same socket and the kernel could not tell of which flow."""
    assert count.key is not None
    inodes = {claim.inode for claim in exact}
    users = NOBODY.union(*(claim.users for claim in exact))
    return [
        claim
        for rung in ladder(count.key)[1:]
        for claim in owners.claims(rung)
        if claim.blind - users and claim.inode in inodes and claim.may_cover(count, 0)
    ]


def _of_connection(owners: OwnerTable, count: FlowCount, when: When) -> Verdict:
    assert count.key is not None
    generation, looked, last_word, late, asked_ns = when
    claims = [
        claim
        for claim in owners.claims(count.key)
        if claim.touches(*generation) and _is_about(claim, count)
    ]
    # Who connects is told before the SYN leaves, which may wait behind what another connection has
    # sent: until it has left, nobody knows whose that is.
    early = [claim for claim in claims if claim.connects and claim.sure_from_ns > asked_ns]
    if early and generation != ANY_TIME:
        if generation[1] == FOREVER_NS and any(claim.may_cover(count, 0) for claim in early):
            return _ambiguous(claims) if last_word else SEEN
        claims = [claim for claim in claims if claim not in early]
    if len(claims) > 1:
        # The next connection's owner is within the slack of the clocks, if it accepts at once.
        claims = [claim for claim in claims if claim.touches(*generation, slack_ns=0)] or claims
    current = [claim for claim in claims if claim.may_cover(count, 0)]
    sure = [claim for claim in current if claim.surely_covers(count)]
    taken = not count.sent and count.payload_bytes > 0
    # What lies in the socket is for whoever uses it next, and that is told later.
    if taken and not late and any(claim.untaken for claim in current):
        return SEEN
    if sure:
        if not last_word and any(claim.presumed for claim in sure):
            return SEEN
        if taken and any(claim.evidence is Evidence.KERNEL_EVENT for claim in current):
            return _best(current) if looked or last_word else SEEN
        surest = current if len(current) == 1 else _surest(sure, current, count)
        verdict, parts = _best(surest), _parts(surest, count)
        return verdict._replace(parts=parts) if parts else verdict
    if not last_word:
        return SEEN if current else UNSEEN
    if current:
        if generation == ANY_TIME and owners.contested(count.key, count.last_ns):
            return _ambiguous(owners.claims(count.key))
        return _best(current)
    if any(claim.may_cover(count, grace_ns(TCP)) and not claim.injects for claim in claims):
        return _late(owners, count, (count.key,), generation)
    return _listener(owners, count)


def _parts(claims: list[Claim], count: FlowCount) -> Parts:
    """If the run is the one packet that a claim knows the parts of, or an acknowledgement."""
    known = claims[0].parts if len(claims) == 1 else ()
    if known and not count.payload_bytes:
        return ((known[0][0], 0),)
    whole = count.sent and sum(part for _, part in known) == count.payload_bytes
    return known if whole else ()


def _is_about(claim: Claim, count: FlowCount) -> bool:
    """Of a connection: an acknowledgement belongs to what is acknowledged."""
    if claim.injects:
        return count.sent
    return claim.sends if count.sent is (count.payload_bytes > 0) else claim.receives


def _surest(sure: list[Claim], current: list[Claim], count: FlowCount) -> list[Claim]:
    """Where one owner follows another, the slack of the clocks must neither make two of them nor
    hide that the run reaches from the one to the other."""
    exact = [claim for claim in sure if claim.surely_covers(count, 0)]
    if exact or not sure:
        return exact
    return sure + [claim for claim in current if claim.touches(count.first_ns, count.last_ns, 0)]


def _late(
    owners: OwnerTable,
    count: FlowCount,
    rungs: Iterable[FlowKey],
    generation: tuple[int, int] = ANY_TIME,
) -> Verdict:
    """Packets that follow a close are of who closed last."""
    assert count.key is not None
    grace = grace_ns(count.key.protocol)
    late = [
        claim
        for rung in rungs
        for claim in owners.claims(rung)
        if claim.may_cover(count, grace)
        and not claim.injects
        and (count.key.protocol != TCP or _is_about(claim, count))
        and claim.end_ns <= count.first_ns + CLOCK_SLACK_NS
        and claim.touches(*generation)
    ]
    last_ns = max((claim.end_ns for claim in late), default=0)
    return _best([claim for claim in late if claim.end_ns == last_ns])


def _of_the_same_sockets(
    owners: OwnerTable, count: FlowCount, claims: list[Claim]
) -> Iterator[Claim]:
    """What is known of a socket whose user was last seen before the run: by its other endpoints."""
    assert count.key is not None
    inodes = {claim.inode for claim in claims}
    for rung in ladder(count.key):
        for claim in owners.claims(rung):
            if claim.inode in inodes and claim.may_cover(count, 0):
                yield claim


def _listener(owners: OwnerTable, count: FlowCount) -> Verdict:
    assert count.key is not None
    for address in (count.key.local_address, IPV4_WILDCARD, IPV6_WILDCARD):
        claims = [
            claim
            for claim in owners.listeners(local_key(count.key, address))
            if claim.may_cover(count, 0)
        ]
        if claims:
            return _best(claims)
    return NO_SOCKET


def _best(claims: list[Claim]) -> Verdict:
    """The one process that the claims agree on."""
    first = claims[0] if len(claims) == 1 else None
    if first and len(first.users) == 1 and not first.kernel and not first.shared:
        # What most runs come to.
        (process,) = first.users
        return Verdict(process, first.evidence, None, NOBODY)
    users = NOBODY.union(*(claim.users for claim in claims))
    if not users:
        return NO_SOCKET
    if any(claim.kernel for claim in claims):
        return Verdict(None, None, Reason.KERNEL, NOBODY)
    # Of those who share, some may be forgotten.
    if len(users) > 1 or not all(claim.users and not claim.shared for claim in claims):
        return _ambiguous(claims)
    (process,) = users
    evidence = min((claim.evidence for claim in claims), key=lambda evidence: evidence.rank)
    return Verdict(process, evidence, None, NOBODY)


def _ambiguous(claims: Iterable[Claim]) -> Verdict:
    users = NOBODY.union(*(claim.users for claim in claims))
    return Verdict(None, None, Reason.AMBIGUOUS, users)
