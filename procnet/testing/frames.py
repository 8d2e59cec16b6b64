"""Frames from nothing: builders that nest, and a writer of capture files.

Each builder takes what it carries and returns bytes, so a frame reads from the outside in::

    ethernet(ipv4(udp(b"x" * 23, 5353, 53), "10.0.0.2", "10.0.0.1", UDP))

Addresses are text or packed bytes, lengths are computed unless they are given (so that they can be
wrong on purpose), and checksums are left 0: no counter looks at them.
"""

from __future__ import annotations

import ipaddress
import os
import struct
from collections.abc import Iterable

from procnet.model import ICMP, ICMP6, TCP, UDP

DLT_NULL = 0
DLT_EN10MB = 1
DLT_RAW = 12
DLT_LOOP = 108
DLT_LINUX_SLL = 113
DLT_LINUX_SLL2 = 276

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_IPV6 = 0x86DD

SYN, ACK = 0x02, 0x10

# LINKTYPE_RAW: the number that files carry where libpcap says DLT_RAW on Linux.
_FILE_LINK_TYPES = {DLT_RAW: 101}

Address = str | bytes


def packed(address: Address) -> bytes:
    """The address as 4 or 16 bytes; bytes are returned as they are."""
    return address if isinstance(address, bytes) else ipaddress.ip_address(address).packed


def ethernet(
    packet: bytes,
    *,
    source: bytes = b"\x02\0\0\0\0\x01",
    destination: bytes = b"\x02\0\0\0\0\x02",
    ethertype: int | None = None,
) -> bytes:
    """An Ethernet II frame. The ethertype is guessed from the IP version unless it is given."""
    return destination + source + struct.pack(">H", _ethertype(packet, ethertype)) + packet


def vlan(packet: bytes, tag: int, *, ethertype: int | None = None) -> bytes:
    """What follows the ethertype of a tagged frame: give 0x8100 or 0x88A8 to ``ethernet``."""
    return struct.pack(">HH", tag, _ethertype(packet, ethertype)) + packet


def sll(packet: bytes, *, outgoing: bool = False, ethertype: int | None = None) -> bytes:
    """A Linux cooked frame (LINKTYPE_LINUX_SLL), as the ``any`` device gives."""
    kind = _ethertype(packet, ethertype)
    return struct.pack(">HHH8sH", 4 if outgoing else 0, 1, 6, b"\x02\0\0\0\0\x01", kind) + packet


def sll2(
    packet: bytes, *, interface: int = 2, outgoing: bool = False, ethertype: int | None = None
) -> bytes:
    """A Linux cooked frame of version 2 (LINKTYPE_LINUX_SLL2)."""
    kind = _ethertype(packet, ethertype)
    header = (kind, 0, interface, 1, 4 if outgoing else 0, 6, b"\x02\0\0\0\0\x01")
    return struct.pack(">HHIHBB8s", *header) + packet


def null(packet: bytes, *, family: int | None = None, byte_order: str = "<") -> bytes:
    """A BSD loopback frame; ``byte_order`` is the writing host's ("<"), or ">" for DLT_LOOP."""
    if family is None:
        family = 2 if packet[0] >> 4 == 4 else 30
    return struct.pack(byte_order + "I", family) + packet


def arp(sender: Address, target: Address) -> bytes:
    """An ARP request for an Ethernet frame (ethertype 0x0806), 28 bytes."""
    ends = (b"\x02\0\0\0\0\x01", packed(sender), bytes(6), packed(target))
    return struct.pack(">HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, *ends)


def ipv4(
    payload: bytes,
    source: Address,
    destination: Address,
    protocol: int,
    *,
    options: bytes = b"",
    identification: int = 0,
    offset: int = 0,
    more_fragments: bool = False,
    total_length: int | None = None,
) -> bytes:
    """An IPv4 packet (RFC 791). ``offset`` is the fragment's in bytes, a multiple of 8."""
    header_bytes = 20 + len(options)
    if total_length is None:
        total_length = header_bytes + len(payload)
    fragment = offset // 8 | (0x2000 if more_fragments else 0)
    return (
        struct.pack(
            ">BBHHHBBH4s4s", 0x40 | header_bytes // 4, 0, total_length, identification, fragment,
            64, protocol, 0, packed(source), packed(destination),
        )
        + options
        + payload
    )  # fmt: skip


def ipv6(
    payload: bytes,
    source: Address,
    destination: Address,
    next_header: int,
    *,
    payload_length: int | None = None,
) -> bytes:
    """An IPv6 packet (RFC 8200). Extension headers are part of ``payload``."""
    length = len(payload) if payload_length is None else payload_length
    ends = (packed(source), packed(destination))
    return struct.pack(">IHBB16s16s", 6 << 28, length, next_header, 64, *ends) + payload


def ipv6_extension(payload: bytes, next_header: int, *, body: bytes = b"\x01\x04\0\0\0\0") -> bytes:
    """A hop-by-hop, routing or destination options header before ``payload``.

    ``body`` is what follows the two leading bytes, 6 bytes more than a multiple of 8 (padding by
    default). ``next_header`` is the protocol of ``payload``.
    """
    return struct.pack(">BB", next_header, (len(body) - 6) // 8) + body + payload


def ipv6_fragment(
    payload: bytes, next_header: int, *, offset: int, more_fragments: bool, identification: int
) -> bytes:
    """A fragment header (44) before ``payload``; ``offset`` in bytes, a multiple of 8."""
    return struct.pack(">BBHI", next_header, 0, offset | more_fragments, identification) + payload


def ipv6_authentication(payload: bytes, next_header: int) -> bytes:
    """An authentication header (51, RFC 4302) of 24 bytes before ``payload``."""
    return struct.pack(">BBHII12s", next_header, 4, 0, 1, 1, bytes(12)) + payload


def tcp(
    payload: bytes, source_port: int, destination_port: int, *,
    flags: int = ACK, options: bytes = b"",
) -> bytes:  # fmt: skip
    """A TCP segment (RFC 9293); ``options`` a multiple of 4 bytes."""
    offset = (20 + len(options)) // 4 << 4
    ports = (source_port, destination_port)
    return struct.pack(">HHIIBBHHH", *ports, 1, 1, offset, flags, 65535, 0, 0) + options + payload


def udp(payload: bytes, source_port: int, destination_port: int) -> bytes:
    """A UDP datagram (RFC 768); UDP-Lite has the same shape, jumbograms (RFC 2675) length 0."""
    length = 8 + len(payload) if len(payload) < 65528 else 0
    return struct.pack(">HHHH", source_port, destination_port, length, 0) + payload


def icmp_echo(payload: bytes, identifier: int, *, reply: bool = False, version: int = 4) -> bytes:
    """An ICMP (RFC 792) or, for ``version`` 6, ICMPv6 (RFC 4443) echo."""
    kind = (0 if reply else 8) if version == 4 else (129 if reply else 128)
    return struct.pack(">BBHHH", kind, 0, 0, identifier, 1) + payload


def icmp_unreachable(packet: bytes, *, version: int = 4) -> bytes:
    """A port-unreachable error that quotes ``packet``."""
    kind, code = (3, 3) if version == 4 else (1, 4)
    return struct.pack(">BBHI", kind, code, 0, 0) + packet


def fragments(
    payload: bytes, source: Address, destination: Address, protocol: int, *, identification: int,
    size: int = 1480,
) -> list[bytes]:  # fmt: skip
    """An IPv4 or IPv6 datagram cut into packets of ``size`` payload bytes (a multiple of 8)."""
    found = []
    for offset in range(0, len(payload), size):
        piece, more = payload[offset : offset + size], offset + size < len(payload)
        if len(packed(source)) == 4:
            found.append(
                ipv4(
                    piece, source, destination, protocol,
                    identification=identification, offset=offset, more_fragments=more,
                )
            )  # fmt: skip
        else:
            header = ipv6_fragment(
                piece, protocol, offset=offset, more_fragments=more, identification=identification
            )
            found.append(ipv6(header, source, destination, 44))
    return found


def tcp_frame(
    source: Address, source_port: int, destination: Address, destination_port: int,
    payload: bytes = b"", *, flags: int = ACK,
) -> bytes:  # fmt: skip
    """Ethernet, IP and TCP in one call, IPv4 or IPv6 by the addresses."""
    segment = tcp(payload, source_port, destination_port, flags=flags)
    return ethernet(_ip(segment, source, destination, TCP))


def udp_frame(
    source: Address, source_port: int, destination: Address, destination_port: int,
    payload: bytes = b"",
) -> bytes:  # fmt: skip
    """Ethernet, IP and UDP in one call, IPv4 or IPv6 by the addresses."""
    return ethernet(_ip(udp(payload, source_port, destination_port), source, destination, UDP))


def echo_frame(
    source: Address, destination: Address, identifier: int, payload: bytes = b"",
    *, reply: bool = False,
) -> bytes:  # fmt: skip
    """Ethernet, IP and an echo in one call, ICMP or ICMPv6 by the addresses."""
    version = 4 if len(packed(source)) == 4 else 6
    echo = icmp_echo(payload, identifier, reply=reply, version=version)
    return ethernet(_ip(echo, source, destination, ICMP if version == 4 else ICMP6))


def write_pcap(
    path: str | os.PathLike[str],
    frames: Iterable[bytes | tuple[float, bytes]],
    link_type: int = DLT_EN10MB,
    *,
    snaplen: int = 262144,
    first_s: float = 1_700_000_000.0,
    interval_s: float = 0.0001,
) -> int:
    """Write a pcap file with stamps in microseconds and return how many frames it has.

    A frame may come with its own time, in seconds since 1970; others are ``interval_s`` apart,
    starting at ``first_s``. Frames are cut at ``snaplen`` bytes, their wire length is recorded.
    """
    written = 0
    with open(path, "wb") as file:
        kind = _FILE_LINK_TYPES.get(link_type, link_type)
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, snaplen, kind))
        for frame in frames:
            time_s = first_s + written * interval_s
            if isinstance(frame, tuple):
                time_s, frame = frame
            seconds, micros = divmod(round(time_s * 1_000_000), 1_000_000)
            kept = frame[:snaplen]
            file.write(struct.pack("<IIII", seconds, micros, len(kept), len(frame)) + kept)
            written += 1
    return written


def _ip(payload: bytes, source: Address, destination: Address, protocol: int) -> bytes:
    build = ipv4 if len(packed(source)) == 4 else ipv6
    return build(payload, source, destination, protocol)


def _ethertype(packet: bytes, given: int | None) -> int:
    if given is not None:
        return given
    return ETHERTYPE_IPV6 if packet[:1] and packet[0] >> 4 == 6 else ETHERTYPE_IPV4
