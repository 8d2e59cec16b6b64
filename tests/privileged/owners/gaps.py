"""What a set of hooks cannot tell, and what it tells instead. Never another process.

The facts in this directory are the same for every family; where one has a gap, the test asks for it
here and holds the family to what stands here, so that a gap that was closed fails too.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from procnet.bpf.core import CoreOwners
from procnet.bpf.kprobe import KprobeOwners

Owners = CoreOwners | KprobeOwners


class Instead(Enum):
    """What is told instead."""

    NOTHING = "nobody"
    LATE = "the right process, not before it uses the socket or closes it"
    NO_PEER = "the right process, without the other end"
    WILDCARD = "the right process, with a wildcard for its own address"
    NO_PORTS = "the right process, without the id or the ports that are in the data"
    SHARED = "both processes, as ones of which nobody can tell whose a byte is"


class Gap(NamedTuple):
    """``readme``: the words of bpf/README.md (tests/unit/bpf/test_gaps.py finds them there)."""

    instead: Instead
    readme: str


_ROUTE = Gap(Instead.WILDCARD, "The local address of an unconnected sender is a wildcard")

GAPS: dict[str, dict[str, Gap]] = {
    "kprobe": {
        "local address of an unconnected sender": _ROUTE,
        "ICMP id of a raw socket": Gap(Instead.NO_PORTS, "A raw socket has no ports"),
        "injected frame": Gap(Instead.NOTHING, "SCTP, AF_PACKET, AF_XDP: no hook"),
        "header of one's own": Gap(Instead.NO_PORTS, "the protocol is in the data"),
        "queue of two senders": Gap(Instead.SHARED, "until the queue was found empty"),
    },
    "CO-RE without security_sock_graft": {
        "accept without address": Gap(Instead.LATE, "told when the connection closes"),
    },
    "CO-RE without skb_consume_udp": {
        "several flows wait": Gap(Instead.NO_PEER, "tells no peer while datagrams of several"),
        "local address of a receiver on the wildcard": Gap(
            Instead.WILDCARD, "the socket's own local address, which may be a wildcard"
        ),
    },
    "CO-RE without sock_recv_length": {
        "raw socket that receives": Gap(Instead.NOTHING, "sockets that only receive: by /proc"),
        "ping socket that receives": Gap(Instead.NOTHING, "sockets that only receive: by /proc"),
    },
}


def hook_sets(owners: Owners) -> list[str]:
    """The rows of the table that are about these hooks, on this kernel."""
    sets = []
    if isinstance(owners, KprobeOwners):
        sets.append("kprobe")
    else:
        hooks = ("security_sock_graft", "skb_consume_udp", "sock_recv_length")
        sets += [f"CO-RE without {hook}" for hook in hooks if hook not in owners.hooks]
    return sets


def gap(owners: Owners, case: str) -> Instead | None:
    """What these hooks tell instead, None if they tell all; KeyError if it is no one's gap."""
    if not any(case in gaps for gaps in GAPS.values()):
        raise KeyError(case)
    found = [GAPS[name][case].instead for name in hook_sets(owners) if case in GAPS[name]]
    return found[0] if found else None
