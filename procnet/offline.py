"""A capture file instead of interfaces: how many, without who."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from procnet.capture.counter import Counter
from procnet.capture.handle import FileHandle
from procnet.errors import CaptureError, UsageError
from procnet.features import yes
from procnet.ledger.flows import MAX_FLOWS
from procnet.ledger.ledger import Ledger
from procnet.model import Features, Loss, Process, unmapped
from procnet.report.report import Report, build_report

_DRAIN_EVERY_PACKETS = 100_000


class IncompleteCaptureError(CaptureError):
    """A capture file ends too early or is damaged; ``report`` has what could be read."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


def read_capture(
    path: str | os.PathLike[str],
    *,
    local_addresses: Sequence[str] = (),
    max_flows: int = MAX_FLOWS,
) -> Report:
    """What a capture file (pcap or pcapng) moved, by flow; nobody can say any more by whom.

    ``local_addresses`` says which ends are this host's; without it, the sender of a flow's first
    packet is taken for the local end. Raises ``CaptureError`` for what is no capture or has a link
    type that is not understood, ``IncompleteCaptureError`` for one that is cut short, and
    ``UsageError`` for an address that is none.
    """
    local = frozenset(_packed(address) for address in local_addresses)
    handle = FileHandle(os.fspath(path))
    problem = ""
    ledger = Ledger(max_flows=max_flows)
    first_ns = last_ns = 0
    try:
        counter = Counter(os.fspath(path), handle.link_type, 0, local, offline=True)
        more = True
        while more:
            try:
                more = handle.read(counter.add, _DRAIN_EVERY_PACKETS) > 0
            except CaptureError as error:
                problem, more = str(error), False
            counts = counter.drain()
            for count in counts:
                first_ns = min(first_ns or count.first_ns, count.first_ns)
                last_ns = max(last_ns, count.last_ns)
            ledger.count(counts)
            ledger.settle(last_ns, final=True)
    finally:
        handle.close()
    report = build_report(
        ledger.account(),
        started_ns=first_ns,
        ended_ns=last_ns,
        process_of=lambda process: Process(*process, name=""),
        loss=Loss(
            undecodable_packets=ledger.undecodable_packets, evicted_flows=ledger.evicted_flows
        ),
        features=Features("python", "", (yes("python counting", "reads a capture file"),)),
    )
    if problem:
        raise IncompleteCaptureError(problem, report)
    return report


def _packed(address: str) -> bytes:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return unmapped(socket.inet_pton(family, address))
        except OSError:
            continue
    raise UsageError(f"{address!r} is not an IPv4 or IPv6 address")
