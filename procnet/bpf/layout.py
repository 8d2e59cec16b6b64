"""The mirror of bpf/procnet.h. A test compiles that file and compares the two."""

from __future__ import annotations

import struct
from typing import NamedTuple

LAYOUT = 1
"""PROCNET_LAYOUT."""

FLAG_KERNEL = 1
"""PROCNET_FLAG_KERNEL."""

OWNER_EVENT = struct.Struct("=HBBIQQQQIIII16s16sHHB3x16s")


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
    tgid: int
    tid: int
    uid: int
    pad: int
    local_address: bytes
    remote_address: bytes
    local_port: int
    remote_port: int
    protocol: int
    comm: bytes
