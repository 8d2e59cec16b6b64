"""Capture files through libpcap: a byte for what the harness writes before the rest of the input.

Nothing for the first; else the header of a pcap or pcapng file, for libpcap takes 30 ms to refuse a
damaged one, and there is more behind it.

- Only ``CaptureError`` leaves; what could be read of a damaged file is in the report.
- Every packet that libpcap gives out is in the report, and the report adds up.
- No row is outside the time of the report.
"""

from __future__ import annotations

import functools
import itertools
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from procnet.capture.handle import FileHandle
from procnet.errors import CaptureError
from procnet.offline import IncompleteCaptureError, read_capture
from procnet.report.report import NOTHING, Both, Report

_DATA = Path(__file__).resolve().parents[1] / "data"
_FILE = os.memfd_create("capture")
_PATH = f"/proc/self/fd/{_FILE}"
_REFUSED = "its header is damaged"


def check(data: bytes) -> None:
    headers = _headers()
    os.ftruncate(_FILE, 0)
    os.pwrite(_FILE, headers[data[0] % len(headers)] + data[1:] if data else b"", 0)
    packets, problem = _packets()
    if _REFUSED in problem:
        return
    try:
        report = read_capture(_PATH)
    except IncompleteCaptureError as error:
        report = error.report
        assert str(error) == problem
    except CaptureError as error:
        assert str(error) == problem
        return
    else:
        assert not problem
    totals = report.totals
    assert totals.sent.packets + totals.received.packets == packets
    _check_sums(report)
    for flow in report.flows:
        assert report.started_ns <= flow.first_ns <= flow.last_ns <= report.ended_ns


def _packets() -> tuple[int, str]:
    """How many there are, counted without procnet's counter, and what is wrong with the file."""
    count = itertools.count()
    try:
        with FileHandle(_PATH) as handle:
            while handle.read(lambda timestamp, frame: next(count)):
                pass
    except CaptureError as error:
        return next(count), str(error)
    return next(count), ""


def _check_sums(report: Report) -> None:
    assert report.attributed == NOTHING
    assert report.totals == report.unattributed == sum(report.reasons.values(), NOTHING)
    flows = sum((Both(flow.sent, flow.received) for flow in report.flows), NOTHING)
    assert flows.wire_bytes <= report.totals.wire_bytes


@functools.cache
def _headers() -> list[bytes]:
    """Links: Ethernet, raw IP, BSD loopback (of the writer's byte order), Linux cooked."""
    numbers = (0xA1B2C3D4, 0xA1B23C4D, 0xA1B2CD34)
    files = [_pcap(order, number, 1) for order in "<>" for number in numbers]
    files += [_pcap("<", numbers[0], link) for link in (101, 0, 113, 276)]
    return [b"", *files, *(_pcapng(order) for order in "<>")]


def _pcap(order: str, number: int, link_type: int) -> bytes:
    return struct.pack(order + "IHHiIII", number, 2, 4, 0, 0, 262144, link_type)


def _pcapng(order: str) -> bytes:
    """Two interfaces, of which the second counts in nanoseconds."""
    interface = struct.pack(order + "HHI", 1, 0, 262144)
    resolution = struct.pack(order + "HHB3xHH", 9, 1, 9, 0, 0)
    return (
        _block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))
        + _block(order, 1, interface)
        + _block(order, 1, interface + resolution)
    )


def _block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    length = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + length + body + length


def seeds() -> Iterator[bytes]:
    for path in sorted(_DATA.glob("*.pcap")):
        yield b"\0" + path.read_bytes()[:1000]
    frame = (_DATA / "ethernet.pcap").read_bytes()[40:100]
    length = len(frame)
    for number, header in enumerate(_headers()[1:], 1):
        order = "<" if header[0] in (0xD4, 0x4D, 0x34, 0x0A) else ">"
        if header[:4] == b"\x0a\x0d\x0d\x0a":
            order = "<" if header[8] == 0x4D else ">"
            packets = [
                _block(order, 6, struct.pack(order + "5I", one, 391_000, 5, length, length) + frame)
                for one in (0, 1)
            ]
            simple = _block(order, 3, struct.pack(order + "I", length) + frame)
            yield bytes([number]) + b"".join([*packets, simple])
        else:
            more = bytes(8) if b"\xcd\x34" in header or b"\x34\xcd" in header else b""
            record = struct.pack(order + "4I", 1_700_000_000, 999_999, length, 1500) + more + frame
            yield bytes([number]) + 2 * record
