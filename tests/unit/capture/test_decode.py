"""What frames tell: golden captures, equality of the two paths, and hostile input."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from procnet.capture.decode import LINK_TYPES, Decoder, decode
from procnet.capture.handle import FileHandle
from procnet.errors import CaptureError
from procnet.model import TCP, UDP, Reason, Segment, Skip
from procnet.testing import frames

DATA = Path(__file__).resolve().parents[2] / "data"
GOLDEN = sorted(path.stem for path in DATA.glob("*.pcap"))


def as_expected(found: Segment | Skip) -> dict[str, object]:
    if isinstance(found, Skip):
        return {"reason": found.reason.name, "wire_bytes": found.wire_bytes}
    row = found._asdict()
    for end in ("source", "destination"):
        row[end] = str(ipaddress.ip_address(row[end]))
    return row


def read_golden(name: str) -> tuple[int, list[bytes], list[dict[str, object]]]:
    captured: list[bytes] = []
    with FileHandle(DATA / f"{name}.pcap") as handle:
        while handle.read(lambda timestamp, frame: captured.append(frame)):
            pass
        link_type = handle.link_type
    return link_type, captured, json.loads((DATA / f"{name}.json").read_text())


def test_every_kind_of_golden_capture_is_there() -> None:
    assert set(GOLDEN) == {
        "damaged", "ethernet", "fragments", "ipv6_extensions", "loop", "loopback", "null", "raw",
        "short", "sll", "sll2", "vlan",
    }  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_capture_is_decoded_exactly(name: str) -> None:
    link_type, captured, expected = read_golden(name)
    decoder = Decoder(link_type)
    assert [as_expected(decoder.decode(frame)) for frame in captured] == expected


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_capture_is_decoded_exactly_by_dpkt_alone(name: str) -> None:
    link_type, captured, expected = read_golden(name)
    decoder = Decoder(link_type)
    assert [as_expected(decoder.decode_completely(frame)) for frame in captured] == expected


def test_common_frames_never_reach_dpkt(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: Decoder, frame: bytes) -> Segment:
        raise AssertionError(f"the complete path was taken for {frame.hex()}")

    monkeypatch.setattr(Decoder, "decode_completely", forbidden)
    segment = frames.ipv4(frames.tcp(b"", 5, 6), "10.0.0.1", "10.0.0.2", TCP)
    common = [
        (1, frames.ethernet(segment)),
        (1, frames.udp_frame("10.0.0.1", 5, "10.0.0.2", 6)),
        (1, frames.udp_frame("fd00::1", 5, "fd00::2", 6)),
        (1, frames.echo_frame("fd00::1", "fd00::2", 7)),
        (1, frames.ethernet(frames.vlan(segment, 5), ethertype=0x8100)),
        (1, frames.ethernet(frames.ipv4(bytes(7), "10.0.0.1", "10.0.0.2", 50))),
        (113, frames.sll(segment)),
        (276, frames.sll2(segment)),
        (12, segment),
    ]
    for link_type, frame in common:
        assert isinstance(decode(frame, link_type), Segment)


@pytest.mark.parametrize("link_type", [2, 105, 127, -1, 65535])
def test_an_unknown_link_type_is_refused_by_its_number(link_type: int) -> None:
    with pytest.raises(CaptureError, match=f"link type {link_type} "):
        decode(b"", link_type)


@pytest.mark.parametrize("link_type", [14, 101, 228, 229])
def test_every_number_for_raw_ip_means_raw_ip(link_type: int) -> None:
    packet = frames.ipv6(frames.udp(b"x" * 23, 5, 6), "fd00::1", "fd00::2", UDP)
    found = decode(packet, link_type)
    assert isinstance(found, Segment)
    assert (found.wire_bytes, found.payload_bytes) == (71, 23)


def test_a_fragment_alone_has_no_ports() -> None:
    first, second = frames.fragments(
        frames.udp(bytes(1499), 5, 6), "10.0.0.1", "10.0.0.2", UDP, identification=7
    )
    assert decode(frames.ethernet(first), 1)[2:5:2] == (5, 6)
    assert decode(frames.ethernet(second), 1)[2:5:2] == (0, 0)


def test_fragments_of_other_datagrams_are_not_confused() -> None:
    decoder = Decoder(1)
    pieces = [
        frames.fragments(
            frames.udp(bytes(1499), port, 53), "10.0.0.1", "10.0.0.2", UDP, identification=port
        )
        for port in range(1000, 1023)
    ]
    for first, _ in pieces:
        decoder.decode(frames.ethernet(first))
    ports = [decoder.decode(frames.ethernet(second))[2] for _, second in reversed(pieces)]
    assert ports == list(range(1022, 999, -1))
    assert len(decoder.fragments) == 0


def test_the_fragment_table_forgets_the_oldest() -> None:
    decoder = Decoder(1, max_fragments=2)
    pieces = [
        frames.fragments(
            frames.udp(bytes(1499), port, 53), "10.0.0.1", "10.0.0.2", UDP, identification=port
        )
        for port in (11, 13, 17)
    ]
    for first, _ in pieces:
        decoder.decode(frames.ethernet(first))
    assert len(decoder.fragments) == 2
    ports = [decoder.decode(frames.ethernet(second))[2] for _, second in pieces]
    assert ports == [0, 13, 17]


def test_a_long_chain_of_extension_headers_is_given_up() -> None:
    payload, following = frames.udp(b"", 5, 6), UDP
    for _ in range(17):
        payload, following = frames.ipv6_extension(payload, following), 60
    found = decode(frames.ethernet(frames.ipv6(payload, "fd00::1", "fd00::2", 60)), 1)
    assert isinstance(found, Skip)
    assert found.reason is Reason.UNDECODABLE
    assert found.why == "more than 16 extension headers"


@pytest.mark.parametrize("name", GOLDEN)
def test_a_frame_cut_anywhere_is_still_answered_alike(name: str) -> None:
    link_type, captured, _ = read_golden(name)
    for frame in captured:
        for kept in range(min(len(frame), 130)):
            cut = frame[:kept]
            assert decode(cut, link_type) == Decoder(link_type).decode_completely(cut)


packed4 = st.binary(min_size=4, max_size=4)
packed6 = st.binary(min_size=16, max_size=16) | packed4.map(lambda a: bytes(10) + b"\xff\xff" + a)
ports = st.integers(0, 65535)
payloads = st.binary(max_size=41)


@st.composite
def transports(draw: st.DrawFn) -> tuple[int, bytes]:
    payload, source, destination = draw(payloads), draw(ports), draw(ports)
    kind = draw(st.sampled_from(["tcp", "udp", "udplite", "echo4", "echo6", "icmp4", "icmp6", "x"]))
    if kind == "tcp":
        options = b"\1" * (4 * draw(st.integers(0, 10)))
        flags = draw(st.integers(0, 255))
        return TCP, frames.tcp(payload, source, destination, flags=flags, options=options)
    if kind in ("udp", "udplite"):
        return (UDP if kind == "udp" else 136), frames.udp(payload, source, destination)
    if kind.startswith("echo"):
        version = int(kind[4])
        echo = frames.icmp_echo(payload, source, reply=draw(st.booleans()), version=version)
        return (1 if version == 4 else 58), echo
    if kind.startswith("icmp"):
        version = int(kind[4])
        return (1 if version == 4 else 58), frames.icmp_unreachable(payload, version=version)
    return draw(st.integers(0, 255)), payload


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    protocol, inner = draw(transports())
    if draw(st.booleans()):
        options = b"\1" * (4 * draw(st.sampled_from([0, 0, 0, 1, 10])))
        offset, more = 8 * draw(st.sampled_from([0, 0, 0, 1, 8191])), draw(st.booleans())
        return frames.ipv4(
            inner, draw(packed4), draw(packed4), protocol,
            options=options, offset=offset, more_fragments=more,
            total_length=draw(st.none() | st.integers(0, 120)),
        )  # fmt: skip
    length = draw(st.none() | st.integers(0, 100))
    for _ in range(draw(st.integers(0, 2))):
        kind = draw(st.sampled_from([0, 43, 44, 51, 60]))
        if kind == 44:
            inner = frames.ipv6_fragment(
                inner, protocol, offset=8 * draw(st.integers(0, 2)),
                more_fragments=draw(st.booleans()), identification=5,
            )  # fmt: skip
        elif kind == 51:
            inner = frames.ipv6_authentication(inner, protocol)
        else:
            inner = frames.ipv6_extension(inner, protocol)
        protocol = kind
    return frames.ipv6(inner, draw(packed6), draw(packed6), protocol, payload_length=length)


@st.composite
def captured(draw: st.DrawFn) -> tuple[int, bytes]:
    packet = draw(packets())
    link = draw(st.sampled_from(["ethernet", "vlan", "sll", "sll2", "raw", "null"]))
    build = {
        "ethernet": (1, frames.ethernet),
        "vlan": (1, lambda p: frames.ethernet(frames.vlan(p, 5), ethertype=0x8100)),
        "sll": (113, frames.sll),
        "sll2": (276, frames.sll2),
        "raw": (12, bytes),
        "null": (0, frames.null),
    }
    link_type, wrap = build[link]
    frame = wrap(packet) + bytes(draw(st.sampled_from([0, 0, 6])))
    cut = draw(st.none() | st.integers(0, len(frame)))
    if draw(st.integers(0, 3)) == 0 and frame:
        at = draw(st.integers(0, len(frame) - 1))
        frame = frame[:at] + bytes([draw(st.integers(0, 255))]) + frame[at + 1 :]
    return link_type, frame[:cut]


@settings(max_examples=1500)
@given(captured())
def test_the_quick_path_agrees_with_dpkt(frame: tuple[int, bytes]) -> None:
    link_type, data = frame
    quick = Decoder(link_type)._decode_quickly(data)
    if quick is not None:
        assert quick == Decoder(link_type).decode_completely(data)


@settings(max_examples=1000)
@given(st.sampled_from(sorted(LINK_TYPES)), st.binary(max_size=301))
def test_random_bytes_never_crash(link_type: int, data: bytes) -> None:
    found = decode(data, link_type)
    if isinstance(found, Segment):
        assert found.wire_bytes >= 20
        assert 0 <= found.payload_bytes < found.wire_bytes
        assert len(found.source) in (4, 16)
    else:
        assert 0 <= found.wire_bytes <= len(data)


@settings(max_examples=1000)
@given(captured())
def test_damaged_packets_never_crash(frame: tuple[int, bytes]) -> None:
    link_type, data = frame
    found = decode(data, link_type)
    if isinstance(found, Segment):
        assert 0 <= found.payload_bytes < found.wire_bytes
