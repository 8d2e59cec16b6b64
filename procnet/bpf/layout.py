"""The mirror of bpf/procnet.h. A test compiles that file and compares the two."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from procnet.errors import LayoutError

LAYOUT = 5
"""PROCNET_LAYOUT."""

FLAG_KERNEL = 1
"""PROCNET_FLAG_KERNEL."""

FLAG_CLOSES = 2
"""PROCNET_FLAG_CLOSES."""

FLAG_SENDS, FLAG_RECEIVES, FLAG_SHARED, FLAG_LEFT = 4, 8, 16, 32
"""PROCNET_FLAG_SENDS and so on."""

FLAGS_AT = 3
"""Where a record has its flags."""

_LAYOUT = struct.Struct("=H")
REMEDY = "reinstall procnet, its C sources and its Python modules are not of one version"
"""Where records are not ours."""

OWNER_EVENT = struct.Struct("=HBBIQQQQQIIII16s16sHHB3x16s")
NETNS_AT = slice(4, 8)
"""Where an event has its namespace."""


def unpack(record: struct.Struct, raw: bytes) -> tuple[Any, ...]:
    """The members of a record, the first of which is its layout.

    Raises LayoutError for a record of another size or layout version than ours.
    """
    if len(raw) == record.size and _LAYOUT.unpack_from(raw)[0] == LAYOUT:
        return record.unpack(raw)
    raise LayoutError(
        f"a record of the BPF program has {len(raw)} bytes, and {raw[:2]!r} for its layout, not"
        f" {record.size} and {LAYOUT}: {REMEDY}"
    )


def check_contract(name: str, contract: bytes, sizes: tuple[int, ...]) -> None:
    """Raises LayoutError unless the records that the object file ``name`` writes are ours.

    ``contract`` is what it says of them: its layout, then the bytes of each, which are ``sizes``.
    """
    expected = struct.pack(f"={1 + len(sizes)}I", LAYOUT, *sizes)
    if contract[: len(expected)] != expected:
        raise LayoutError(
            f"{name} has another layout of records than procnet's Python modules: {REMEDY}"
        )


class RawEvent(NamedTuple):
    """struct procnet_owner_event with its tuple, member by member; the kernel's names."""

    layout: int
    kind: int
    flags: int
    netns: int
    time_ns: int
    start_ns: int
    inode: int
    cgroup_id: int
    born_ns: int
    tgid: int
    uid: int
    part_bytes: int
    packet_bytes: int
    local_address: bytes
    remote_address: bytes
    local_port: int
    remote_port: int
    protocol: int
    comm: bytes


PROCESS = struct.Struct("=HHHHQIII4x16s1024s1024s512s")


class RawProcess(NamedTuple):
    """struct procnet_process, member by member."""

    layout: int
    exe_bytes: int
    args_bytes: int
    cgroup_bytes: int
    start_ns: int
    tgid: int
    parent_tgid: int
    uid: int
    comm: bytes
    exe: bytes
    args: bytes
    cgroup: bytes
