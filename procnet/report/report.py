"""The report: rows and totals for the caller, frozen, and adding up to the byte."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from procnet.ledger.flows import BookedFlow, RowKey, Tally
from procnet.ledger.ledger import Account
from procnet.model import (
    Evidence,
    Features,
    FlowKey,
    Loss,
    Process,
    ProcessId,
    Reason,
    Traffic,
)
from procnet.report.protocols import protocol_name


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address as text and a port (ICMP echo: its id; protocols without ports: 0).

    The address is empty for remote ends that are not told apart.
    """

    address: str
    port: int

    @classmethod
    def of(cls, packed: bytes, port: int) -> Endpoint:
        """The same from a packed address."""
        if not packed:
            return cls("", port)
        family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
        return cls(socket.inet_ntop(family, packed), port)

    def __str__(self) -> str:
        if not self.address:
            return "*"
        return (
            f"[{self.address}]:{self.port}"
            if ":" in self.address
            else f"{self.address}:{self.port}"
        )


@dataclass(frozen=True, slots=True)
class SocketEnds:
    """A flow as its socket has it: the inode of the network namespace that it is in, its ends."""

    netns: int
    local: Endpoint
    remote: Endpoint


@dataclass(frozen=True, slots=True)
class Both:
    """What moved in both directions, seen from this host's sockets."""

    sent: Traffic
    received: Traffic

    def __add__(self, other: Both) -> Both:
        return Both(self.sent + other.sent, self.received + other.received)

    @property
    def wire_bytes(self) -> int:
        """Both directions together, for sorting."""
        return self.sent.wire_bytes + self.received.wire_bytes


NOTHING = Both(Traffic(), Traffic())


@dataclass(frozen=True, slots=True)
class OnlyOnWire:
    """What the capture saw and no socket moved, by protocol; empty if there was nothing.

    ``not_compared`` is what one side told and the other had no room, or no way, to tell of.
    """

    by_protocol: Mapping[str, Both]
    not_compared: Both


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """What one process moved, over all its flows."""

    process: Process
    sent: Traffic
    received: Traffic


@dataclass(frozen=True, slots=True)
class FlowRow:
    """What one flow moved for one owner.

    ``process`` and ``evidence`` are None where the owner is unknown; then ``reason`` says why, and
    for ``AMBIGUOUS`` ``candidates`` lists the processes that may have been it. ``netns``, ``local``
    and ``remote`` are where and as it was captured; ``socket`` is what its socket has instead, if
    that is in another namespace or its addresses are translated (NAT), else None. ``first_ns`` and
    ``last_ns`` are the times of the first and the last packet. ``interface`` is empty where it was
    counted at the socket.
    """

    netns: int
    interface: str
    protocol: str
    local: Endpoint
    remote: Endpoint
    process: Process | None
    evidence: Evidence | None
    reason: Reason | None
    candidates: tuple[Process, ...]
    sent: Traffic
    received: Traffic
    first_ns: int
    last_ns: int
    socket: SocketEnds | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What was seen from ``started_ns`` to ``ended_ns``.

    ``totals`` = ``attributed`` + ``unattributed``, and ``unattributed`` is the sum of ``reasons``.
    ``processes`` add up to ``attributed``; ``flows`` may be fewer than the totals where old rows
    were evicted (``loss.evicted_flows``) and for what belongs to no flow (``NOT_IP``).
    ``processes`` and ``flows`` come with the most wire bytes first. ``only_on_wire`` is None where
    sockets are not counted beside the capture; else it is a part of ``totals``, whoever's it is.
    """

    started_ns: int
    ended_ns: int
    processes: tuple[ProcessRow, ...]
    flows: tuple[FlowRow, ...]
    totals: Both
    attributed: Both
    unattributed: Both
    reasons: Mapping[Reason, Both]
    loss: Loss
    features: Features
    only_on_wire: OnlyOnWire | None = None

    @property
    def duration_s(self) -> float:
        """Length of the time that the report is about, in seconds."""
        return (self.ended_ns - self.started_ns) / 1e9


def build_report(
    account: Account,
    *,
    started_ns: int,
    ended_ns: int,
    process_of: Callable[[ProcessId], Process],
    loss: Loss,
    features: Features,
) -> Report:
    """Turns what is booked into rows; ``process_of`` gives each process its name and the rest."""
    processes = [
        ProcessRow(process_of(process), tally.sent, tally.received)
        for process, tally in account.processes
    ]
    processes.sort(key=lambda row: -(row.sent.wire_bytes + row.received.wire_bytes))
    flows = [_flow_row(key, row, process_of) for key, row in account.rows]
    flows.sort(key=lambda row: -(row.sent.wire_bytes + row.received.wire_bytes))
    reasons = {reason: _both(tally) for reason, tally in account.reasons.items()}
    return Report(
        started_ns=started_ns,
        ended_ns=ended_ns,
        processes=tuple(processes),
        flows=tuple(flows),
        totals=_both(account.total),
        attributed=sum((Both(row.sent, row.received) for row in processes), NOTHING),
        unattributed=sum(reasons.values(), NOTHING),
        reasons=reasons,
        loss=loss,
        features=features,
        only_on_wire=_only_on_wire(account),
    )


def _only_on_wire(account: Account) -> OnlyOnWire | None:
    told = account.only_on_wire
    if told is None:
        return None
    rows = {protocol_name(number): Both(*both) for number, both in told.by_protocol.items()}
    return OnlyOnWire(rows, Both(*told.not_compared))


def _both(tally: Tally) -> Both:
    return Both(tally.sent, tally.received)


def _flow_row(key: RowKey, row: BookedFlow, process_of: Callable[[ProcessId], Process]) -> FlowRow:
    flow = key.flow
    return FlowRow(
        netns=flow.netns,
        interface=key.interface,
        protocol=protocol_name(flow.protocol),
        local=Endpoint.of(flow.local_address, flow.local_port),
        remote=Endpoint.of(flow.remote_address, flow.remote_port),
        process=None if key.process is None else process_of(key.process),
        evidence=row.evidence,
        reason=key.reason,
        candidates=tuple(process_of(process) for process in sorted(row.candidates)),
        sent=row.sent,
        received=row.received,
        first_ns=row.first_ns,
        last_ns=row.last_ns,
        socket=None if key.socket is None else _socket_ends(key.socket),
    )


def _socket_ends(flow: FlowKey) -> SocketEnds:
    return SocketEnds(
        flow.netns,
        Endpoint.of(flow.local_address, flow.local_port),
        Endpoint.of(flow.remote_address, flow.remote_port),
    )
