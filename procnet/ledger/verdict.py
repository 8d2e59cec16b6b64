"""From claims to a verdict on one run of packets: an owner with evidence, or a reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from procnet.ledger.claims import ALWAYS_NS, FOREVER_NS, Claim, grace_ns
from procnet.ledger.owners import OwnerTable, local_key
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
    """``process`` with ``evidence``, or None with ``reason``; ``candidates`` for ``AMBIGUOUS``."""

    process: ProcessId | None
    evidence: Evidence | None
    reason: Reason | None
    candidates: frozenset[ProcessId]


NOBODY: frozenset[ProcessId] = frozenset()
NO_SOCKET = Verdict(None, None, Reason.NO_SOCKET, NOBODY)
SEEN = Verdict(None, None, Reason.PENDING, NOBODY)
"""A witness has said something, but the next look may say more."""
UNSEEN = Verdict(None, None, Reason.PENDING, NOBODY)
"""No witness has said anything yet."""


def ladder(key: FlowKey) -> Iterator[FlowKey]:
    """The endpoints that can answer for a flow, the most exact first.

    Only a socket that is not connected can be meant by less than the five-tuple; TCP has none.
    """
    yield key
    if key.protocol == TCP:
        return
    # A wildcard IPv6 socket takes IPv4 too unless it is IPV6_V6ONLY; the kernel prefers the socket
    # of the packet's own family (compute_score, net/ipv4/udp.c).
    wildcards = (IPV4_WILDCARD, IPV6_WILDCARD) if len(key.local_address) == 4 else (IPV6_WILDCARD,)
    for wildcard in wildcards:
        yield key._replace(local_address=wildcard)
    yield local_key(key, key.local_address)
    for wildcard in wildcards:
        yield local_key(key, wildcard)


def decide(
    owners: OwnerTable, count: FlowCount, generation: tuple[int, int], *, last_word: bool
) -> Verdict:
    """Whose the run is; ``SEEN`` or ``UNSEEN`` to wait, but never if it is the ``last_word``.

    ``generation`` is the time of the TCP connection that the run belongs to.
    """
    key = count.key
    assert key is not None
    grace = grace_ns(key.protocol)
    late: list[Claim] = []
    for rung in ladder(key):
        current = []
        for claim in owners.claims(rung):
            if not claim.may_cover(count, grace) or not claim.touches(*generation):
                continue
            if claim.may_cover(count, 0):
                current.append(claim)
            else:
                late.append(claim)
        sure = [claim for claim in current if claim.surely_covers(count)]
        if sure:
            if any(claim.presumed for claim in sure) and not last_word:
                return SEEN
            # Where one owner follows another, the slack of the clocks must not make two of them.
            return _best([claim for claim in sure if claim.surely_covers(count, 0)] or sure)
        if current:
            if not last_word:
                return SEEN
            if generation == (ALWAYS_NS, FOREVER_NS) and owners.contested(rung, count.last_ns):
                return _ambiguous(owners.claims(rung))
            if any(count.first_ns > claim.sure_to_ns for claim in current):
                current += _of_the_same_sockets(owners, count, current)
            return _best(current)
    if not last_word:
        return UNSEEN
    if late:
        return _best(late)
    return _listener(owners, count) if key.protocol == TCP else NO_SOCKET


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


def _best(claims: Iterable[Claim]) -> Verdict:
    """The one process that the claims agree on."""
    users = NOBODY.union(*(claim.users for claim in claims))
    if not users:
        return NO_SOCKET
    if any(claim.kernel for claim in claims):
        return Verdict(None, None, Reason.KERNEL, NOBODY)
    if len(users) > 1:
        return _ambiguous(claims)
    (process,) = users
    evidence = min((claim.evidence for claim in claims), key=lambda evidence: evidence.rank)
    return Verdict(process, evidence, None, NOBODY)


def _ambiguous(claims: Iterable[Claim]) -> Verdict:
    users = NOBODY.union(*(claim.users for claim in claims))
    return Verdict(None, None, Reason.AMBIGUOUS, users)
