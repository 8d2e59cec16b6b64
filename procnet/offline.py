"""A capture file instead of interfaces: how many, without who."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from procnet.capture.counter import Counter
from procnet.capture.handle import FileHandle
from procnet.errors import CaptureError, UsageError
from procnet.features import yes
from procnet.kernel_text import decode_text
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
    # Begin and end, once there is a packet. Any time may stand in a file, also 0 and those before.
    span_ns: tuple[int, ...] = ()
    try:
        name = decode_text(os.fsencode(path))
        counter = Counter(name, handle.link_type, 0, local, offline=True)
        more = True
        while more:
            try:
                more = handle.read(counter.add, _DRAIN_EVERY_PACKETS) > 0
            except CaptureError as error:
                problem, more = str(error), False
            counts = counter.drain()
            for count in counts:
                span_ns = min((count.first_ns, *span_ns)), max((count.last_ns, *span_ns))
            ledger.count(counts)
            ledger.settle(max(span_ns, default=0), final=True)
    finally:
        handle.close()
    report = build_report(
        ledger.account(),
        started_ns=min(span_ns, default=0),
        ended_ns=max(span_ns, default=0),
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
