"""Who may have used a socket between two looks, where nobody tells of each use."""

from __future__ import annotations

from procnet.ledger.claims import Claim
from procnet.ledger.endpoints import Endpoints
from procnet.ledger.keys import WILDCARDS, local_key
from procnet.model import Evidence, FlowKey, ProcessId, SocketScan


def has_forked(processes: frozenset[ProcessId], scan: SocketScan) -> bool:
    """Has one of them had a child that no look has shown?"""
    return scan.forked is not None and not scan.forked.isdisjoint(processes)


def may_be_shared(claim: Claim, scan: SocketScan) -> bool:
    """May others than those who were last seen with a socket have used it until it was closed?

    Of a connection that nobody was seen with, nothing says who has accepted it.
    """
    listened = claim.evidence is Evidence.LISTENER and scan.forked is not None
    return listened or has_forked(claim.users, scan)


def may_be_passed(listeners: Endpoints, key: FlowKey, inode: int, scan: SocketScan) -> bool:
    """May a socket that is new have come into its holders over a Unix socket?

    Not if it is a connection to where nobody but they listens, as the look before has shown: nobody
    else can have accepted it.
    """
    holders = scan.holders[inode]
    if scan.reached.isdisjoint(holders):
        return False
    listening = [
        claim
        for address in (key.local_address, *WILDCARDS)
        for claim in listeners.get(local_key(key, address), ())
        if claim.end_ns > scan.started_ns
    ]
    return not listening or any(
        claim.sure_from_ns > scan.started_ns
        or claim.users != holders
        or scan.holders.get(claim.inode) != holders
        for claim in listening
    )
