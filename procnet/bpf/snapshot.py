"""The rows of the socket iterator become a look at the sockets."""

from __future__ import annotations

import struct
import time

from procnet.model import CLOCK_TICK_NS, TCP, ProcessId, Socket, SocketScan, unmapped

OPEN_SOCKET = struct.Struct("=16s16sHHB3xQQIIIBBBx")
"""struct procnet_open_socket in bpf/owners.bpf.c."""

_SOCK_RAW = 3

# include/net/tcp_states.h, under the names of ss(8).
_STATES = {
    1: "established", 2: "syn_sent", 3: "syn_recv", 4: "fin_wait_1", 5: "fin_wait_2",
    6: "time_wait", 7: "unconnected", 8: "close_wait", 9: "last_ack", 10: "listen", 11: "closing",
    12: "syn_recv", 13: "bound_inactive",
}  # fmt: skip


def decode_snapshot(rows: bytes, started_ns: int, netns: int | None) -> SocketScan:
    """One socket for each inode, and who has it open. As in /proc/net, none without an address."""
    sockets: dict[int, Socket] = {}
    holders: dict[int, set[ProcessId]] = {}
    for (
        local, remote, local_port, remote_port, protocol, inode, start_ns, pid, its_netns, uid,
        family, state, kind,
    ) in OPEN_SOCKET.iter_unpack(rows):  # fmt: skip
        if netns not in (None, its_netns) or not (local_port or kind == _SOCK_RAW):
            continue
        process = ProcessId(pid, start_ns - start_ns % CLOCK_TICK_NS)
        known = holders.get(inode)
        if known is not None:
            known.add(process)
            continue
        holders[inode] = {process}
        sockets[inode] = Socket(
            its_netns, protocol, family, unmapped(local), local_port, unmapped(remote), remote_port,
            _state(state, protocol), inode, uid,
        )  # fmt: skip
    return SocketScan(
        started_ns=started_ns,
        ended_ns=time.time_ns(),
        sockets=list(sockets.values()),
        holders={inode: frozenset(processes) for inode, processes in holders.items()},
        vanished_processes=0,
        denied_processes=0,
    )


def _state(number: int, protocol: int) -> str:
    if number == 7 and protocol == TCP:  # bound, and neither listening nor connected
        return "bound_inactive"
    return _STATES.get(number, "unknown")
