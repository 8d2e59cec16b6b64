"""The rows of the socket iterator become a look at the sockets."""

from __future__ import annotations

import struct

from procnet.errors import LayoutError
from procnet.kernel_text import STATE_NAMES
from procnet.model import (
    CLOCK_TICK_NS,
    TCP,
    Evidence,
    ProcessId,
    Socket,
    SocketScan,
    UnmappedAddresses,
)

OPEN_SOCKET = struct.Struct("=16s16sHHB3xQQQIIIBBBx")
"""struct procnet_open_socket in bpf/owners.bpf.c."""

_SOCK_RAW = 3

# Of TCP, a socket that neither listens nor is connected.
_TCP_STATE_NAMES = (*STATE_NAMES[:7], "bound_inactive", *STATE_NAMES[8:])


def decode_snapshot(rows: bytes, started_ns: int, ended_ns: int, boot_ns: int) -> SocketScan:
    """One socket for each inode, and who has it open. As in /proc/net, none without an address.

    ``boot_ns``: the wall-clock time of the boot.

    Raises LayoutError for rows of another size than ours.
    """
    if len(rows) % OPEN_SOCKET.size:
        raise LayoutError(
            f"the socket iterator gave {len(rows)} bytes, not rows of {OPEN_SOCKET.size}: reinstall"
            " procnet, its BPF object and its Python modules are not of one version"
        )
    addresses = UnmappedAddresses()
    sockets: list[Socket] = []
    holders: dict[int, frozenset[ProcessId]] = {}
    shared: dict[int, set[ProcessId]] = {}
    births: dict[int, int] = {}
    # The rows come process by process: one set for all the sockets of each.
    last_pid = last_start_ns = -1
    alone = frozenset[ProcessId]()
    for (
        local, remote, local_port, remote_port, protocol, inode, start_ns, born_ns, pid, netns,
        uid, family, state, kind,
    ) in OPEN_SOCKET.iter_unpack(rows):  # fmt: skip
        if not local_port and kind != _SOCK_RAW:
            continue
        if pid != last_pid or start_ns != last_start_ns:
            last_pid, last_start_ns = pid, start_ns
            alone = frozenset((ProcessId(pid, start_ns - start_ns % CLOCK_TICK_NS),))
        first = holders.get(inode)
        if first is None:
            holders[inode] = alone
            if born_ns:
                births[inode] = boot_ns + born_ns
            names = _TCP_STATE_NAMES if protocol == TCP else STATE_NAMES
            sockets.append(
                Socket(
                    netns, protocol, family, addresses[local], local_port, addresses[remote],
                    remote_port, names[state], inode, uid,
                )
            )  # fmt: skip
        elif first is not alone:
            shared.setdefault(inode, set(first)).update(alone)
    holders.update((inode, frozenset(processes)) for inode, processes in shared.items())
    return SocketScan(
        started_ns=started_ns,
        ended_ns=ended_ns,
        sockets=sockets,
        holders=holders,
        vanished_processes=0,
        denied_processes=0,
        evidence=Evidence.KERNEL_SNAPSHOT,
        births=births,
    )
