"""Records of the ring become owner events."""

from __future__ import annotations

import sys
import time
from functools import lru_cache

from procnet.bpf import layout
from procnet.bpf.processes import comm_text
from procnet.model import (
    CLOCK_TICK_NS,
    IPV4_WILDCARD,
    IPV6_WILDCARD,
    EventKind,
    OwnerEvent,
    ProcessId,
    unmapped,
)

_CLOCK_PAIRS = 5
_KINDS = {kind.value: kind for kind in EventKind}
_WILDCARDS = (IPV4_WILDCARD, IPV6_WILDCARD)


def boot_to_wall_ns() -> int:
    """What to add to CLOCK_BOOTTIME, which events are stamped with, to get the wall clock."""
    # The second clock is read late by however long we were away: the smallest difference is the
    # nearest to the truth.
    return min(
        -time.clock_gettime_ns(time.CLOCK_BOOTTIME) + time.time_ns() for _ in range(_CLOCK_PAIRS)
    )


@lru_cache(256)
def _local_address(address: bytes) -> bytes:
    """One object for all that is kept of it: a host has few of these."""
    return unmapped(address)


def decode_event(record: bytes, wall_offset_ns: int) -> OwnerEvent | None:
    """One record, or None if it does not say what happened.

    Raises LayoutError for a record of another size or layout version than ours.
    """
    raw = layout.RawEvent._make(layout.unpack(layout.OWNER_EVENT, record))
    kind = _KINDS.get(raw.kind)
    if kind is None:
        return None
    remote_address, remote_port = unmapped(raw.remote_address), raw.remote_port
    if remote_address in _WILDCARDS:
        remote_address, remote_port = b"", 0
    ways = raw.flags & (layout.FLAG_SENDS | layout.FLAG_RECEIVES)
    return OwnerEvent(
        time_ns=raw.time_ns + wall_offset_ns,
        kind=kind,
        netns=raw.netns,
        protocol=raw.protocol,
        local_address=_local_address(raw.local_address),
        local_port=raw.local_port,
        remote_address=remote_address,
        remote_port=remote_port,
        inode=raw.inode,
        process=ProcessId(raw.tgid, raw.start_ns - raw.start_ns % CLOCK_TICK_NS),
        name=comm_text(raw.comm),
        uid=raw.uid,
        cgroup_id=raw.cgroup_id,
        kernel=bool(raw.flags & layout.FLAG_KERNEL),
        sends=ways != layout.FLAG_RECEIVES,
        receives=ways != layout.FLAG_SENDS,
        shared=bool(raw.flags & layout.FLAG_SHARED),
    )


def decode_events(records: list[bytes], netns: int | None = None) -> tuple[list[OwnerEvent], int]:
    """The events of one batch, and how many records said nothing that we know.

    ``netns``: of that namespace alone. The hooks see all of them, and what the others do should
    cost next to nothing: their records are not decoded.
    """
    if netns is not None:
        at, wanted = layout.NETNS_AT, netns.to_bytes(4, sys.byteorder)
        records = [record for record in records if record[at] == wanted]
    if not records:
        return [], 0
    wall_offset_ns = boot_to_wall_ns()
    events: list[OwnerEvent] = []
    unknown = 0
    for record in records:
        event = decode_event(record, wall_offset_ns)
        if event is None:
            unknown += 1
            continue
        events.append(event)
        if record[layout.FLAGS_AT] & layout.FLAG_CLOSES:
            events.append(event._replace(kind=EventKind.CLOSE))
    return events, unknown
