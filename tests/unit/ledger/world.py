"""A small world for ledger tests: packets, events, looks at given milliseconds, then verdicts."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from types import MappingProxyType

from procnet.ledger.ledger import Ledger
from procnet.model import (
    TCP,
    UDP,
    EventKind,
    Evidence,
    FlowCount,
    FlowKey,
    OwnerEvent,
    ProcessId,
    Socket,
    SocketScan,
)

MS = 1_000_000
NETNS = 4026531840
HERE = "10.0.0.1"
THERE = "10.0.0.2"
T0 = 1_800_000_000_000_000_000

ALICE = ProcessId(1009, 10_000_000)
BOB = ProcessId(2003, 20_000_000)
CAROL = ProcessId(3001, 30_000_000)


def packed(address: str) -> bytes:
    if not address:
        return b""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def flow(
    protocol: int = UDP, lport: int = 4001, rport: int = 53, local: str = HERE, remote: str = THERE
) -> FlowKey:
    return FlowKey(NETNS, protocol, packed(local), lport, packed(remote), rport)


class World:
    def __init__(self, **limits: int) -> None:
        self.ledger = Ledger(**limits)
        self.ledger.owners.boot_ns = T0 - 1_000_000 * MS

    def packets(
        self,
        at_ms: float,
        key: FlowKey | None = None,
        *,
        sent: bool = True,
        number: int = 1,
        payload: int = 101,
        until_ms: float | None = None,
        opens: bool = False,
    ) -> FlowCount:
        count = FlowCount(
            "eth0",
            flow() if key is None else key,
            sent,
            number,
            payload + 28 * number,
            payload,
            T0 + int(at_ms * MS),
            T0 + int((at_ms if until_ms is None else until_ms) * MS),
            opens,
            None,
        )
        self.ledger.count([count])
        return count

    def event(
        self,
        at_ms: float,
        process: ProcessId,
        kind: EventKind = EventKind.SEND,
        key: FlowKey | None = None,
        *,
        inode: int = 7001,
        kernel: bool = False,
        ways: str = "both",
        shared: bool = False,
        part: tuple[int, int] = (0, 0),
        left: bool = False,
        born_ms: float | None = None,
    ) -> None:
        key = flow() if key is None else key
        self.ledger.observe(
            [
                OwnerEvent(
                    T0 + int(at_ms * MS),
                    kind,
                    key.netns,
                    key.protocol,
                    key.local_address,
                    key.local_port,
                    key.remote_address,
                    key.remote_port,
                    inode,
                    process,
                    "name",
                    0,
                    0,
                    kernel,
                    sends=ways != "receives",
                    receives=ways != "sends",
                    shared=shared,
                    part_bytes=part[0],
                    packet_bytes=part[1],
                    left=left,
                    born_ns=0 if born_ms is None else T0 + int(born_ms * MS),
                )
            ]
        )

    def look(
        self,
        at_ms: float,
        *sockets: tuple[Socket, set[ProcessId]],
        forked: frozenset[ProcessId] | None = frozenset(),
        left_behind: frozenset[int] = frozenset(),
        reached: frozenset[ProcessId] = frozenset(),
        evidence: Evidence = Evidence.SOCKET_SCAN,
        births_ms: Mapping[int, float] = MappingProxyType({}),
    ) -> set[ProcessId]:
        scan = SocketScan(
            T0 + int(at_ms * MS),
            T0 + int((at_ms + 1) * MS),
            [entry for entry, _ in sockets],
            {entry.inode: frozenset(holders) for entry, holders in sockets if holders},
            0,
            0,
            forked,
            left_behind,
            reached,
            evidence,
            {inode: T0 + int(at_ms * MS) for inode, at_ms in births_ms.items()},
        )
        return self.ledger.look(scan)

    def settle(self, at_ms: float, *, final: bool = False) -> None:
        self.ledger.settle(T0 + int(at_ms * MS), final=final)

    def verdicts(self) -> dict[object, tuple[int, int]]:
        """(packets, payload bytes) by owner or reason, both directions; checks conservation."""
        account = self.ledger.account()
        found: dict[object, tuple[int, int]] = {}
        for owner, tally in (*account.processes, *account.reasons.items()):
            found[owner] = (
                tally.sent.packets + tally.received.packets,
                tally.sent.payload_bytes + tally.received.payload_bytes,
            )
        return found


def udp_socket(inode: int = 7001, port: int = 4001, local: str = "0.0.0.0") -> Socket:
    address = packed(local)
    return Socket(
        NETNS, UDP, 6 if len(address) == 16 else 4, address, port, bytes(len(address)), 0,
        "unconnected", inode, 0,
    )  # fmt: skip


def connected(key: FlowKey, inode: int = 7001) -> Socket:
    return Socket(*key[:2], 4, *key[2:], "established", inode, 0)


def listener(port: int, inode: int = 7001, local: str = "0.0.0.0") -> Socket:
    address = packed(local)
    return Socket(NETNS, TCP, 4, address, port, bytes(len(address)), 0, "listen", inode, 0)
