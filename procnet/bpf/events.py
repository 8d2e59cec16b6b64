"""Records of the ring become owner events."""

from __future__ import annotations

import sys
from functools import lru_cache

from procnet.bpf import layout
from procnet.bpf.clocks import boot_to_wall_ns
from procnet.bpf.processes import comm_text
from procnet.errors import LayoutError
from procnet.model import (
    CLOCK_TICK_NS,
    IPV4_WILDCARD,
    IPV6_WILDCARD,
    EventKind,
    OwnerEvent,
    ProcessId,
    unmapped,
)

_KINDS = {kind.value: kind for kind in EventKind}
_WILDCARDS = (IPV4_WILDCARD, IPV6_WILDCARD)
_WAYS = layout.FLAG_SENDS | layout.FLAG_RECEIVES
# The constructor of a NamedTuple takes three times as long.
_new = tuple.__new__


@lru_cache(256)
def _local_address(address: bytes) -> bytes:
    """One object for all that is kept of it: a host has few of these."""
    return unmapped(address)


@lru_cache(4096)
def _process(pid: int, start_ns: int) -> ProcessId:
    """The same for all that a process does."""
    return ProcessId(pid, start_ns - start_ns % CLOCK_TICK_NS)


_name = lru_cache(4096)(comm_text)


def decode_event(record: bytes, wall_offset_ns: int) -> OwnerEvent | None:
    """One record, or None if it does not say what happened.

    Raises LayoutError for a record of another size or layout version than ours.
    """
    (
        _, number, flags, netns, time_ns, start_ns, inode, cgroup_id, born_ns, pid, uid, part_bytes,
        packet_bytes, local_address, remote_address, local_port, remote_port, protocol, comm,
    ) = layout.unpack(layout.OWNER_EVENT, record)  # fmt: skip
    kind = _KINDS.get(number)
    if kind is None:
        return None
    remote_address = unmapped(remote_address)
    if remote_address in _WILDCARDS:
        remote_address, remote_port = b"", 0
    ways = flags & _WAYS
    return _new(OwnerEvent, (
        time_ns + wall_offset_ns, kind, netns, protocol, _local_address(local_address), local_port,
        remote_address, remote_port, inode, _process(pid, start_ns), _name(comm), uid, cgroup_id,
        flags & layout.FLAG_KERNEL != 0, ways != layout.FLAG_RECEIVES, ways != layout.FLAG_SENDS,
        flags & layout.FLAG_SHARED != 0, part_bytes, packet_bytes, flags & layout.FLAG_LEFT != 0,
        born_ns and born_ns + wall_offset_ns,
    ))  # fmt: skip


def decode_events(records: list[bytes], netns: int | None = None) -> tuple[list[OwnerEvent], int]:
    """The events of one batch, and how many records said nothing that we know, or were not ours.

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
        try:
            event = decode_event(record, wall_offset_ns)
        except LayoutError:
            event = None
        if event is None:
            unknown += 1
            continue
        events.append(event)
        if record[layout.FLAGS_AT] & layout.FLAG_CLOSES:
            events.append(event._replace(kind=EventKind.CLOSE))
    return events, unknown
