"""Frames of one capture, one after the other: a byte for the link type, then the frames.

- Both paths of the decoder give the same answer.
- Addresses and ports are bytes of the frame (of a later fragment: of an earlier frame).
- Payload fits into the wire bytes, and those into what an IP header can say.
- A frame that was cut short tells the same flow or nothing.
- The counter holds every packet and every byte once.
"""

from __future__ import annotations

import struct
from collections import Counter as Tally
from collections.abc import Iterator
from pathlib import Path

from procnet.capture.counter import Counter
from procnet.capture.decode import ETHERNET, LINK_TYPES, Decoder
from procnet.model import ICMP, ICMP6, FlowCount, Segment, Skip
from procnet.testing import frames
from tests.fuzz.pieces import join, split

_LINKS = sorted(LINK_TYPES)
_DATA = Path(__file__).resolve().parents[1] / "data"
_MAX_IPV6_BYTES = 40 + 65535
_MAX_JUMBO_BYTES = 40 + (1 << 20)
_JUMBO = b"\xc2\x04"
_PACKET_S = 0.00001


def check(data: bytes) -> None:
    link_type = _LINKS[data[0] % len(_LINKS)] if data else ETHERNET
    captured = split(data[1:])
    first, second = Decoder(link_type), Decoder(link_type)
    counting = Counter("file", link_type, 0, offline=True)
    told: Tally[object] = Tally()
    before = b""
    for number, frame in enumerate(captured):
        found = first.decode(frame)
        assert found == second.decode_completely(frame)
        if isinstance(found, Segment):
            _check_segment(found, frame, before + frame)
        else:
            assert 0 <= found.wire_bytes <= len(frame)
        _check_cuts(link_type, frame)
        counting.add(number * _PACKET_S, frame)
        whose = found[:5] if isinstance(found, Segment) else found.reason
        told[whose, "packets"] += 1
        told[whose, "wire_bytes"] += found.wire_bytes
        told[whose, "payload_bytes"] += getattr(found, "payload_bytes", 0)
        before += frame
    for count in counting.drain():
        for figure in ("packets", "wire_bytes", "payload_bytes"):
            told[_whose(count), figure] -= getattr(count, figure)
    assert not any(told.values())


def _whose(count: FlowCount) -> object:
    """Protocol and ends as the packets have them, or why they are nobody's."""
    if count.key is None or count.reason is not None:
        return count.reason
    _, protocol, *ends = count.key
    return (protocol, *ends) if count.sent else (protocol, *ends[2:], *ends[:2])


def _check_segment(segment: Segment, frame: bytes, until_now: bytes) -> None:
    assert 0 <= segment.payload_bytes < segment.wire_bytes
    assert segment.wire_bytes >= 20
    limit = _MAX_JUMBO_BYTES if _JUMBO in frame else _MAX_IPV6_BYTES
    assert segment.wire_bytes <= max(limit, len(frame))
    for address in (segment.source, segment.destination):
        assert len(address) in (4, 16) and address in frame
    ports = struct.pack(">HH", segment.source_port, segment.destination_port)
    if segment.protocol in (ICMP, ICMP6):
        assert ports[:2] == ports[2:]
        ports = ports[2:]
    assert not any(ports) or ports in until_now


def _check_cuts(link_type: int, frame: bytes) -> None:
    whole = Decoder(link_type).decode(frame)
    for kept in {len(frame) // 2, len(frame) - 1, 54, 34} - {-1}:
        if kept < len(frame):
            cut = Decoder(link_type).decode(frame[:kept])
            assert isinstance(cut, Skip) or _flow(cut) == _flow(whole)


def _flow(found: Segment | Skip) -> tuple[object, ...] | None:
    return (*found[:5], found.opens) if isinstance(found, Segment) else None


def seeds() -> Iterator[bytes]:
    for path in sorted(_DATA.glob("*.pcap")):
        whole = path.read_bytes()
        link_type = int.from_bytes(whole[20:24], "little")
        captured, at = [], 24
        while at < len(whole):
            length = int.from_bytes(whole[at + 8 : at + 12], "little")
            captured.append(whole[at + 16 : at + 16 + length])
            at += 16 + length
        for number in range(0, len(captured), 5):
            yield bytes([_LINKS.index(link_type)]) + join(captured[number : number + 5])
    jumbo = frames.ipv6_extension(
        frames.udp(b"x" * 30, 5, 6), 17, body=_JUMBO + (70000).to_bytes(4, "big")
    )
    yield bytes([_LINKS.index(ETHERNET)]) + join(
        [frames.ethernet(frames.ipv6(jumbo, "fd00::1", "fd00::2", 0, payload_length=0))]
    )
