"""Writes the golden captures of this directory and, beside each, what its frames mean.

    python tests/data/make_captures.py

The expectations are written down here by hand, frame by frame, and were compared with tshark's
reading of the files. ``loopback.pcap`` is not made here: tcpdump captured it in a namespace of its
own (``tcpdump -i lo -s 256``, TCP, UDP and refused UDP over both families, and one datagram through
a socket of the other family), and its expectations are what tshark says (ip.len, tcp.len ...).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from procnet.model import ICMP, ICMP6, SCTP, TCP, UDP, UDPLITE
from procnet.testing import frames as f

HERE = Path(__file__).resolve().parent
A, B = "10.0.0.1", "10.0.0.2"
C, D = "fd00::1", "fd00::2"
Row = tuple[bytes, dict[str, Any]]


def flow(
    protocol: int, source: str, source_port: int, destination: str, destination_port: int,
    wire_bytes: int, payload_bytes: int, opens: bool = False,
) -> dict[str, Any]:  # fmt: skip
    return {
        "protocol": protocol, "source": source, "source_port": source_port,
        "destination": destination, "destination_port": destination_port,
        "wire_bytes": wire_bytes, "payload_bytes": payload_bytes, "opens": opens,
    }  # fmt: skip


def skip(reason: str, wire_bytes: int) -> dict[str, Any]:
    return {"reason": reason, "wire_bytes": wire_bytes}


def ethernet() -> list[Row]:
    options = f.tcp(b"x" * 23, 4001, 443, options=b"\1" * 12)
    short = f.tcp(b"", 4001, 443)
    quoted = f.ipv4(f.udp(b"", 5, 6), B, A, UDP)
    sctp = b"\x12\x34\x00\x50" + bytes(27)
    return [
        (f.tcp_frame(A, 4001, B, 443, flags=f.SYN), flow(TCP, A, 4001, B, 443, 40, 0, True)),
        (f.tcp_frame(B, 443, A, 4001, flags=f.SYN | f.ACK), flow(TCP, B, 443, A, 4001, 40, 0)),
        (f.ethernet(f.ipv4(options, A, B, TCP)), flow(TCP, A, 4001, B, 443, 75, 23)),
        # 6 bytes of padding to the Ethernet minimum are nobody's.
        (f.ethernet(f.ipv4(short, A, B, TCP)) + bytes(6), flow(TCP, A, 4001, B, 443, 40, 0)),
        (f.udp_frame(A, 5353, "224.0.0.251", 5353, b"q" * 31),
         flow(UDP, A, 5353, "224.0.0.251", 5353, 59, 31)),
        (f.udp_frame(A, 5, B, 6), flow(UDP, A, 5, B, 6, 28, 0)),
        (f.ethernet(f.ipv4(f.udp(b"l" * 7, 5, 6), A, B, UDPLITE)),
         flow(UDPLITE, A, 5, B, 6, 35, 7)),
        (f.echo_frame(A, B, 4660, b"p" * 56), flow(ICMP, A, 4660, B, 4660, 84, 56)),
        (f.echo_frame(B, A, 4660, b"p" * 56, reply=True), flow(ICMP, B, 4660, A, 4660, 84, 56)),
        (f.ethernet(f.ipv4(f.icmp_unreachable(quoted), A, B, ICMP)),
         flow(ICMP, A, 0, B, 0, 56, 28)),
        (f.echo_frame(C, D, 4660, b"p" * 56), flow(ICMP6, C, 4660, D, 4660, 104, 56)),
        (f.ethernet(f.ipv6(f.icmp_unreachable(b"q" * 41, version=6), C, D, ICMP6)),
         flow(ICMP6, C, 0, D, 0, 89, 41)),
        (f.ethernet(f.ipv4(sctp, A, B, SCTP)), flow(SCTP, A, 0, B, 0, 51, 31)),
        (f.ethernet(f.ipv4(f.udp(b"o" * 11, 5, 6), A, B, UDP, options=b"\1" * 40)),
         flow(UDP, A, 5, B, 6, 79, 11)),
        # Captured before segmentation offload filled in the length.
        (f.ethernet(f.ipv4(f.tcp(b"g" * 1009, 4001, 443), A, B, TCP, total_length=0)),
         flow(TCP, A, 4001, B, 443, 1049, 1009)),
        (f.ethernet(f.ipv6(f.tcp(b"g" * 1009, 4001, 443), C, D, TCP, payload_length=0)),
         flow(TCP, C, 4001, D, 443, 1069, 1009)),
        (f.udp_frame(f.packed("::ffff:10.0.0.1"), 5, f.packed("::ffff:10.0.0.2"), 6, b"m" * 13),
         flow(UDP, A, 5, B, 6, 61, 13)),
        (f.ethernet(f.ipv6(b"", C, D, 59, payload_length=0)) + bytes(6),
         flow(59, C, 0, D, 0, 40, 0)),
        (f.ethernet(f.arp(A, B), ethertype=0x0806), skip("NOT_IP", 28)),
        (f.ethernet(b"\x42\x42\x03" + bytes(35), ethertype=38), skip("NOT_IP", 38)),
    ]  # fmt: skip


def vlan() -> list[Row]:
    packet = f.ipv4(f.udp(b"v" * 17, 5, 6), A, B, UDP)
    segment = f.ipv6(f.tcp(b"v" * 19, 5, 6, flags=f.SYN), C, D, TCP)
    expected = flow(UDP, A, 5, B, 6, 45, 17)
    inner = f.vlan(packet, 7)
    return [
        (f.ethernet(inner, ethertype=0x8100), expected),
        (f.ethernet(f.vlan(inner, 8, ethertype=0x8100), ethertype=0x88A8), expected),
        (f.ethernet(f.vlan(inner, 8, ethertype=0x8100), ethertype=0x9100), expected),
        (f.ethernet(f.vlan(f.vlan(inner, 8, ethertype=0x8100), 9, ethertype=0x88A8),
                    ethertype=0x8100), expected),
        (f.ethernet(f.vlan(segment, 7), ethertype=0x8100), flow(TCP, C, 5, D, 6, 79, 19, True)),
        (f.ethernet(f.vlan(f.arp(A, B), 7, ethertype=0x0806), ethertype=0x8100),
         skip("NOT_IP", 28)),
    ]  # fmt: skip


def ipv6_extensions() -> list[Row]:
    datagram = f.udp(b"e" * 29, 5, 6)
    jumbo = f.ipv6_extension(f.udp(bytes(65531), 5, 6), UDP, body=b"\xc2\x04\x00\x01\x00\x0b")
    lie = f.ipv6_extension(datagram, UDP, body=b"\xc2\x04\xff\xff\xff\xff")
    rest = f.ipv6_extension(datagram, UDP)
    whole = f.ipv6_fragment(datagram, UDP, offset=0, more_fragments=False, identification=3)
    chain = f.ipv6_extension(f.ipv6_extension(f.ipv6_authentication(datagram, UDP), 51), 43)
    return [
        (f.ethernet(f.ipv6(rest, C, D, 0)), flow(UDP, C, 5, D, 6, 85, 29)),
        (f.ethernet(f.ipv6(rest, C, D, 60)), flow(UDP, C, 5, D, 6, 85, 29)),
        (f.ethernet(f.ipv6(f.ipv6_extension(datagram, UDP, body=bytes(22)), C, D, 43)),
         flow(UDP, C, 5, D, 6, 101, 29)),
        (f.ethernet(f.ipv6(f.ipv6_authentication(datagram, UDP), C, D, 51)),
         flow(UDP, C, 5, D, 6, 101, 29)),
        (f.ethernet(f.ipv6(whole, C, D, 44)), flow(UDP, C, 5, D, 6, 85, 29)),
        (f.ethernet(f.ipv6(chain, C, D, 0)), flow(UDP, C, 5, D, 6, 117, 29)),
        # A jumbogram's length is in its option: 65547 after the header; 256 bytes are kept.
        # One that claims 4 GiB has the length that was captured.
        (f.ethernet(f.ipv6(jumbo, C, D, 0, payload_length=0)), flow(UDP, C, 5, D, 6, 65587, 65531)),
        (f.ethernet(f.ipv6(lie, C, D, 0, payload_length=0)), flow(UDP, C, 5, D, 6, 85, 29)),
        (f.ethernet(f.ipv6(b"s" * 37, C, D, 50)), flow(50, C, 0, D, 0, 77, 37)),
    ]  # fmt: skip


def fragments() -> list[Row]:
    rows: list[Row] = []
    whole = f.udp(bytes(2003), 5, 6)
    first, second, third = (
        f.ethernet(p) for p in f.fragments(whole, A, B, UDP, identification=23, size=800)
    )
    rows += [
        (first, flow(UDP, A, 5, B, 6, 820, 792)),
        (second, flow(UDP, A, 5, B, 6, 820, 800)),
        (third, flow(UDP, A, 5, B, 6, 431, 411)),
        # The datagram ended: the same id is another one, and its first fragment is not there yet.
        (second, flow(UDP, A, 0, B, 0, 820, 800)),
    ]
    # Of IPv6 the first fragment tells the protocol, too: later ones say "destination options".
    options = f.ipv6_extension(whole, UDP)
    first, second, third = (
        f.ethernet(p) for p in f.fragments(options, C, D, 60, identification=29, size=800)
    )
    rows += [
        (first, flow(UDP, C, 5, D, 6, 848, 784)),
        (second, flow(UDP, C, 5, D, 6, 848, 800)),
        (third, flow(UDP, C, 5, D, 6, 467, 419)),
        (third, flow(60, C, 0, D, 0, 467, 419)),
    ]
    echo = f.fragments(f.icmp_echo(bytes(1001), 77), A, B, ICMP, identification=31, size=800)
    rows += [
        (f.ethernet(echo[0]), flow(ICMP, A, 77, B, 77, 820, 792)),
        (f.ethernet(echo[1]), flow(ICMP, A, 77, B, 77, 229, 209)),
    ]
    return rows


def short() -> list[Row]:
    """For a snaplen of 54 bytes: exact while the headers are there."""
    return [
        (f.tcp_frame(A, 5, B, 6, b"t" * 1013), flow(TCP, A, 5, B, 6, 1053, 1013)),
        (f.udp_frame(A, 5, B, 6, b"t" * 1013), flow(UDP, A, 5, B, 6, 1041, 1013)),
        (f.echo_frame(A, B, 7, b"t" * 1013), flow(ICMP, A, 7, B, 7, 1041, 1013)),
        (f.tcp_frame(C, 5, D, 6, b"t" * 1013), skip("UNDECODABLE", 40)),
        (f.ethernet(f.ipv4(f.tcp(b"t" * 101, 5, 6), A, B, TCP, options=b"\1" * 12)),
         skip("UNDECODABLE", 40)),
        (f.ethernet(f.ipv4(b"t" * 1013, A, B, 47)), flow(47, A, 0, B, 0, 1033, 1013)),
    ]  # fmt: skip


def damaged() -> list[Row]:
    bad_offset = bytearray(f.tcp(b"", 5, 6))
    bad_offset[12] = 0x40
    long_offset = bytearray(f.tcp(b"x" * 7, 5, 6))
    long_offset[12] = 0xF0
    udp = f.udp(b"x" * 7, 5, 6)
    version = b"\x65" + f.ipv4(udp, A, B, UDP)[1:]
    header = b"\x44" + f.ipv4(udp, A, B, UDP)[1:]
    tags = b"\0\1\x81\0" * 8 + b"\0\1\x08\0"
    return [
        (b"", skip("UNDECODABLE", 0)),
        (bytes(13), skip("UNDECODABLE", 0)),
        (f.ethernet(b"\x45" + bytes(18)), skip("UNDECODABLE", 19)),
        (f.ethernet(version, ethertype=0x0800), skip("UNDECODABLE", 35)),
        (f.ethernet(header, ethertype=0x0800), skip("UNDECODABLE", 35)),
        (f.ethernet(version, ethertype=0x86DD), skip("UNDECODABLE", 35)),
        (f.ethernet(f.ipv4(udp, A, B, UDP, total_length=19)), skip("UNDECODABLE", 35)),
        (f.ethernet(f.ipv4(udp, A, B, UDP, total_length=27)), skip("UNDECODABLE", 35)),
        (f.ethernet(f.ipv4(bytes(bad_offset), A, B, TCP)), skip("UNDECODABLE", 40)),
        # Options that reach beyond the packet leave no payload, but the ports are there.
        (f.ethernet(f.ipv4(bytes(long_offset), A, B, TCP)), flow(TCP, A, 5, B, 6, 47, 0)),
        (f.ethernet(f.ipv6(b"\x11\xff" + bytes(6), C, D, 60)), skip("UNDECODABLE", 48)),
        (f.ethernet(f.ipv6(b"\x2f\xff" + bytes(6), C, D, 43)), skip("UNDECODABLE", 48)),
        # After eight VLAN tags nobody looks for a packet any more.
        (f.ethernet(tags + f.ipv4(udp, A, B, UDP), ethertype=0x8100), skip("NOT_IP", 39)),
    ]  # fmt: skip


def links() -> dict[str, tuple[int, list[Row]]]:
    packet4 = f.ipv4(f.tcp(b"r" * 41, 5, 6), A, B, TCP)
    packet6 = f.ipv6(f.udp(b"r" * 43, 5, 6), C, D, UDP)
    four, six = flow(TCP, A, 5, B, 6, 81, 41), flow(UDP, C, 5, D, 6, 91, 43)
    arp = f.arp(A, B)
    other = f.null(bytes(11), family=7)
    return {
        "sll": (f.DLT_LINUX_SLL, [
            (f.sll(packet4), four), (f.sll(packet6, outgoing=True), six),
            (f.sll(f.vlan(packet4, 3), ethertype=0x8100), four),
            (f.sll(arp, ethertype=0x0806), skip("NOT_IP", 28)),
        ]),
        "sll2": (f.DLT_LINUX_SLL2, [
            (f.sll2(packet4), four), (f.sll2(packet6, outgoing=True), six),
            (f.sll2(f.vlan(packet4, 3), ethertype=0x8100), four),
            (f.sll2(arp, ethertype=0x0806), skip("NOT_IP", 28)),
        ]),
        "null": (f.DLT_NULL, [
            (f.null(packet4), four), (f.null(packet4, byte_order=">"), four),
            *[(f.null(packet6, family=family), six) for family in (10, 24, 28, 30)],
            (f.null(packet6, byte_order=">"), six), (other, skip("NOT_IP", 11)),
        ]),
        "loop": (f.DLT_LOOP, [
            (f.null(packet4, byte_order=">"), four), (f.null(packet6, byte_order=">"), six),
        ]),
        "raw": (f.DLT_RAW, [
            (packet4, four), (packet6, six), (b"\x25" + packet4[1:], skip("UNDECODABLE", 81)),
        ]),
    }  # fmt: skip


def main() -> None:
    captures: dict[str, tuple[int, int, list[Row]]] = {
        "ethernet": (f.DLT_EN10MB, 65535, ethernet()),
        "vlan": (f.DLT_EN10MB, 256, vlan()),
        "ipv6_extensions": (f.DLT_EN10MB, 256, ipv6_extensions()),
        "fragments": (f.DLT_EN10MB, 256, fragments()),
        "short": (f.DLT_EN10MB, 54, short()),
        "damaged": (f.DLT_EN10MB, 256, damaged()),
    }
    captures |= {name: (kind, 256, rows) for name, (kind, rows) in links().items()}
    for name, (link_type, snaplen, rows) in captures.items():
        f.write_pcap(
            HERE / f"{name}.pcap", [frame for frame, _ in rows], link_type, snaplen=snaplen
        )
        write_expected(name, [expected for _, expected in rows])


def write_expected(name: str, expected: list[dict[str, Any]]) -> None:
    rows = ",\n ".join(json.dumps(row) for row in expected)
    (HERE / f"{name}.json").write_text(f"[{rows}]\n")


if __name__ == "__main__":
    main()
