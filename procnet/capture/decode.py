"""Frame → Segment | Skip: the ``struct`` module for what is common, dpkt for the rest.

The quick path reads Ethernet (with one tag at most), cooked and raw frames that carry IPv4 without
options or IPv6 without extension headers. Whatever it does not know (stacked tags, options,
extension headers, fragments, damage) goes to the complete path, which can decode everything, the
common included: both give the same answer, and the tests hold them to it.

Lengths come from the IP header, since the wire length of a packet is not to be had and a capture
may keep only the first bytes of it. Frames are hostile: nothing here trusts a length.
"""

from __future__ import annotations

import functools
from struct import Struct
from typing import Any, NamedTuple

from procnet.capture.fragments import Datagram, Fragments
from procnet.errors import CaptureError
from procnet.model import ICMP, ICMP6, TCP, UDP, UDPLITE, Reason, Segment, Skip, unmapped

# The numbers are DLT_* as libpcap gives them on Linux; 101, 228 and 229 are the LINKTYPE_* of files
# (https://www.tcpdump.org/linktypes.html).
NULL = 0
ETHERNET = 1
RAW_TYPES = frozenset({12, 14, 101, 228, 229})
LOOP = 108
SLL = 113
SLL2 = 276
LINK_TYPES = frozenset({NULL, ETHERNET, LOOP, SLL, SLL2}) | RAW_TYPES
"""Link types that can be decoded."""

_ETHERTYPE_IPV4 = 0x0800
_ETHERTYPE_IPV6 = 0x86DD
# IEEE 802.1Q, 802.1ad, and the number that was used for stacked tags before it.
_ETHERTYPES_VLAN = frozenset({0x8100, 0x88A8, 0x9100})
# AF_INET6 of Linux, NetBSD, FreeBSD and Darwin: a DLT_NULL frame carries its writer's number.
_FAMILIES_IPV6 = frozenset({10, 24, 28, 30})

# A frame of 64 KiB could nest thousands; no stack in use goes near these.
_MAX_TAGS = 8
_MAX_EXTENSIONS = 16

_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AH, _DESTINATION, _NO_NEXT = 0, 43, 44, 51, 60, 59
_EXTENSIONS = frozenset({_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AH, _DESTINATION})
_JUMBO_OPTION = 0xC2  # RFC 2675, section 2: more than 65535 bytes
# Linux makes packets of 8 * 65535 bytes at most (GSO_MAX_SIZE, since 5.19). A stranger may write
# 4 GiB into 60 bytes.
_MAX_JUMBO_BYTES = 1 << 20

_IPV4_HEADER = 20
_IPV6_HEADER = 40
_TCP_HEADER = 20
_UDP_HEADER = 8
_ICMP_HEADER = 8
# How much of each header a capture must have kept: up to the last field that is read.
_TCP_READ = 14
_UDP_READ = 4
_ICMP_READ = 6
_ECHO_TYPES = {ICMP: (0, 8), ICMP6: (128, 129)}  # RFC 792, RFC 4443

_IPV4 = Struct(">BxH2xHxB2x4s4s").unpack_from
_IPV6 = Struct(">B3xHBx16s16s").unpack_from
_PORTS = Struct(">HH").unpack_from

# Where the ethertype and the IP header stand in links whose header has one length.
_FIXED_LINKS: dict[int, tuple[int | None, int]] = {
    ETHERNET: (12, 14), SLL: (14, 16), SLL2: (0, 20), **{raw: (None, 0) for raw in RAW_TYPES},
}  # fmt: skip


class _MalformedError(Exception):
    """Why a packet that says it is IP cannot be one."""


class _Fragment(NamedTuple):
    datagram: Datagram
    first: bool
    last: bool


class Decoder:
    """Decodes the frames of one capture, whose link type it knows; remembers its fragments.

    Raises ``CaptureError`` for a link type that is not in ``LINK_TYPES``.
    """

    def __init__(self, link_type: int, *, max_fragments: int = 4096) -> None:
        if link_type not in LINK_TYPES:
            raise CaptureError(
                f"link type {link_type} is not one that can be decoded; "
                f"known are {', '.join(map(str, sorted(LINK_TYPES)))}"
            )
        self.link_type = link_type
        self.fragments = Fragments(max_fragments)
        self._fixed = _FIXED_LINKS.get(link_type)

    def decode(self, frame: bytes) -> Segment | Skip:
        """What the frame tells. Never raises, whatever the frame holds."""
        return self._decode_quickly(frame) or self.decode_completely(frame)

    def decode_completely(self, frame: bytes) -> Segment | Skip:
        """The same answer, by dpkt alone."""
        headers = _headers()
        packet = b""
        try:
            kind, packet = self._strip_link(frame, headers)
            if kind == _ETHERTYPE_IPV4:
                return self._ipv4(packet, headers)
            if kind == _ETHERTYPE_IPV6:
                return self._ipv6(packet, headers)
        except _MalformedError as error:
            return Skip(Reason.UNDECODABLE, len(packet), str(error))
        except headers.error as error:
            return Skip(Reason.UNDECODABLE, len(packet), f"dpkt: {error}")
        return Skip(Reason.NOT_IP, len(packet), f"ethertype 0x{kind:04x}")

    def _decode_quickly(self, frame: bytes) -> Segment | None:
        if self._fixed is None:
            return None
        kind_at, at = self._fixed
        if len(frame) < at + _IPV4_HEADER + 4:
            return None
        kind = None if kind_at is None else (frame[kind_at] << 8) | frame[kind_at + 1]
        if kind == 0x8100:
            kind = (frame[at + 2] << 8) | frame[at + 3]
            at += 4
        first = frame[at]
        if first == 0x45 and (kind is None or kind == _ETHERTYPE_IPV4):
            _, wire_bytes, fragment, protocol, source, destination = _IPV4(frame, at)
            # 0x3FFF: more fragments, or an offset.
            if fragment & 0x3FFF:
                return None
            header_bytes = _IPV4_HEADER
        elif first >> 4 == 6 and (kind is None or kind == _ETHERTYPE_IPV6):
            if len(frame) < at + _IPV6_HEADER:
                return None
            _, length, protocol, source, destination = _IPV6(frame, at)
            if not length or protocol in _EXTENSIONS:
                return None
            source, destination = unmapped(source), unmapped(destination)
            header_bytes = _IPV6_HEADER
            wire_bytes = length + header_bytes
        else:
            return None
        upper = _transport_quickly(protocol, frame, at + header_bytes, wire_bytes - header_bytes)
        if upper is None:
            return None
        (source_port, destination_port), payload_bytes, opens = upper
        return Segment(
            protocol, source, source_port, destination, destination_port,
            wire_bytes, payload_bytes, opens,
        )  # fmt: skip

    def _strip_link(self, frame: bytes, headers: _Headers) -> tuple[int, bytes]:
        """The ethertype of what the frame carries, and its bytes."""
        if self.link_type in RAW_TYPES:
            version = frame[0] >> 4 if frame else 0
            return (_ETHERTYPE_IPV6 if version == 6 else _ETHERTYPE_IPV4), frame
        if self.link_type in (NULL, LOOP):
            if len(frame) < 4:
                raise _MalformedError(f"cut short: {len(frame)} bytes of a loopback header")
            # The writer's byte order is not recorded; families are small numbers in either.
            family = min(int.from_bytes(frame[:4], "little"), int.from_bytes(frame[:4], "big"))
            if family == 2:
                return _ETHERTYPE_IPV4, frame[4:]
            return (_ETHERTYPE_IPV6 if family in _FAMILIES_IPV6 else family), frame[4:]
        if self.link_type == SLL:
            cooked = headers.sll(frame)
            kind, packet = cooked.ethtype, cooked.data
        elif self.link_type == SLL2:
            cooked = headers.sll2(frame)
            kind, packet = cooked.ethtype, cooked.data
        else:
            ethernet = headers.ethernet(frame)
            kind, packet = ethernet.type, ethernet.data
        for _ in range(_MAX_TAGS):
            if kind not in _ETHERTYPES_VLAN:
                break
            tag = headers.vlan(packet)
            kind, packet = tag.type, tag.data
        return kind, packet

    def _ipv4(self, packet: bytes, headers: _Headers) -> Segment:
        ip = headers.ipv4(packet)
        if ip.v != 4:
            raise _MalformedError(f"IP version {ip.v} in an IPv4 packet")
        header_bytes = ip.hl * 4
        # 0 in a packet that was captured before segmentation offload cut it to size.
        wire_bytes = ip.len or len(packet)
        if wire_bytes < header_bytes or len(packet) < header_bytes:
            raise _MalformedError(f"{wire_bytes} bytes cannot hold a header of {header_bytes}")
        fragment = None
        if ip._flags_offset & 0x3FFF:
            fragment = _Fragment(
                (ip.src, ip.dst, ip.p, ip.id),
                first=not ip._flags_offset & 0x1FFF,
                last=not ip._flags_offset & 0x2000,
            )
        inner, inner_bytes = packet[header_bytes:], wire_bytes - header_bytes
        return self._segment(
            (ip.p, ip.src, ip.dst), inner, wire_bytes, inner_bytes, fragment, headers
        )

    def _ipv6(self, packet: bytes, headers: _Headers) -> Segment:
        ip = headers.ipv6(packet)
        if ip.v != 6:
            raise _MalformedError(f"IP version {ip.v} in an IPv6 packet")
        # Length 0: a jumbogram, offload, or (with nothing following) truly nothing.
        inner_bytes = ip.plen if ip.plen or ip.nxt == _NO_NEXT else len(packet) - _IPV6_HEADER
        inner, protocol, fragment = packet[_IPV6_HEADER:][:inner_bytes], ip.nxt, None
        wire_bytes = inner_bytes + _IPV6_HEADER
        source, destination = unmapped(ip.src), unmapped(ip.dst)
        extensions = 0
        while protocol in _EXTENSIONS:
            extension = headers.extensions[protocol](inner)
            extensions += 1
            if extensions > _MAX_EXTENSIONS:
                raise _MalformedError(f"more than {_MAX_EXTENSIONS} extension headers")
            if protocol == _HOP_BY_HOP and not ip.plen:
                jumbo = _jumbo_bytes(extension)
                if jumbo:
                    inner_bytes += jumbo + _IPV6_HEADER - wire_bytes
                    wire_bytes = jumbo + _IPV6_HEADER
            if extension.length > inner_bytes:
                raise _MalformedError(f"an extension header of {extension.length} bytes overruns")
            inner, inner_bytes = inner[extension.length :], inner_bytes - extension.length
            if protocol == _FRAGMENT and (extension.frag_off or extension.m_flag):
                protocol = extension.nxt
                fragment = _Fragment(
                    (source, destination, protocol, extension.id),
                    first=not extension.frag_off,
                    last=not extension.m_flag,
                )
                if not fragment.first:
                    break
            else:
                protocol = extension.nxt
        return self._segment(
            (protocol, source, destination), inner, wire_bytes, inner_bytes, fragment, headers
        )

    def _segment(
        self,
        addresses: tuple[int, bytes, bytes],
        inner: bytes,
        wire_bytes: int,
        inner_bytes: int,
        fragment: _Fragment | None,
        headers: _Headers,
    ) -> Segment:
        protocol, source, destination = addresses
        if fragment and not fragment.first:
            upper = self.fragments.recall(fragment.datagram, last=fragment.last)
            protocol, *ports = upper or (protocol, 0, 0)
            return Segment(
                protocol, source, ports[0], destination, ports[1], wire_bytes, inner_bytes, False
            )
        (source_port, destination_port), header_bytes, opens = _transport(
            protocol, inner, inner_bytes, headers
        )
        if fragment:
            self.fragments.remember(fragment.datagram, (protocol, source_port, destination_port))
        payload_bytes = max(0, inner_bytes - header_bytes)
        return Segment(
            protocol, source, source_port, destination, destination_port,
            wire_bytes, payload_bytes, opens,
        )  # fmt: skip


def decode(frame: bytes, link_type: int) -> Segment | Skip:
    """What one frame tells, on its own: a later fragment has ports 0.

    Raises ``CaptureError`` for a link type that is not in ``LINK_TYPES``.
    """
    return Decoder(link_type).decode(frame)


def _jumbo_bytes(extension: Any) -> int:
    for option in extension.options:
        if option["type"] == _JUMBO_OPTION and len(option["data"]) == 4:
            length = int.from_bytes(option["data"], "big")
            return length if 0xFFFF < length <= _MAX_JUMBO_BYTES else 0
    return 0


def _transport_quickly(
    protocol: int, frame: bytes, at: int, inner_bytes: int
) -> tuple[tuple[int, int], int, bool] | None:
    """Ports, payload bytes and whether a connection opens; None where something is wrong."""
    captured = len(frame) - at
    if protocol == TCP:
        if inner_bytes < _TCP_HEADER or captured < _TCP_READ:
            return None
        header_bytes = (frame[at + 12] >> 4) * 4
        if header_bytes < _TCP_HEADER:
            return None
        return _PORTS(frame, at), max(0, inner_bytes - header_bytes), frame[at + 13] & 0x12 == 0x02
    if protocol in (UDP, UDPLITE):
        if inner_bytes < _UDP_HEADER or captured < _UDP_READ:
            return None
        return _PORTS(frame, at), inner_bytes - _UDP_HEADER, False
    if protocol in (ICMP, ICMP6):
        if inner_bytes < _ICMP_HEADER or captured < _ICMP_READ:
            return None
        echo = 0
        if frame[at] in _ECHO_TYPES[protocol]:
            echo = (frame[at + 4] << 8) | frame[at + 5]
        return (echo, echo), inner_bytes - _ICMP_HEADER, False
    # Negative: damage, or the length 0 of segmentation offload.
    return None if inner_bytes < 0 else ((0, 0), inner_bytes, False)


def _transport(
    protocol: int, inner: bytes, inner_bytes: int, headers: _Headers
) -> tuple[tuple[int, int], int, bool]:
    """Ports, bytes of the transport header, and whether a connection opens."""
    if protocol == TCP:
        _require(inner, _TCP_READ, inner_bytes, _TCP_HEADER)
        tcp = headers.tcp(inner.ljust(_TCP_HEADER, b"\0"))
        return (tcp.sport, tcp.dport), tcp.off * 4, tcp.flags & 0x12 == 0x02
    if protocol in (UDP, UDPLITE):
        _require(inner, _UDP_READ, inner_bytes, _UDP_HEADER)
        udp = headers.udp(inner.ljust(_UDP_HEADER, b"\0"))
        return (udp.sport, udp.dport), _UDP_HEADER, False
    if protocol in (ICMP, ICMP6):
        _require(inner, _ICMP_READ, inner_bytes, _ICMP_HEADER)
        icmp = headers.icmp(inner)
        echo = int.from_bytes(icmp.data[:2], "big") if icmp.type in _ECHO_TYPES[protocol] else 0
        return (echo, echo), _ICMP_HEADER, False
    return (0, 0), 0, False


def _require(inner: bytes, captured: int, inner_bytes: int, header: int) -> None:
    if inner_bytes < header:
        raise _MalformedError(f"{inner_bytes} bytes cannot hold a transport header of {header}")
    if len(inner) < captured:
        raise _MalformedError(f"cut short: {len(inner)} bytes of the transport header were kept")


class _Headers(NamedTuple):
    ethernet: Any
    vlan: Any
    sll: Any
    sll2: Any
    ipv4: Any
    ipv6: Any
    extensions: Any
    tcp: Any
    udp: Any
    icmp: Any
    error: type[Exception]


@functools.cache
def _headers() -> _Headers:
    """dpkt's classes, each kept from looking inside: nesting is what hostile packets are made of,
    and we have no use for what lies above the transport header.

    Imported here since it takes about 100 ms, and most captures need it late or never.
    """
    import dpkt

    def alone(header: Any) -> Any:
        return type(header.__name__, (header,), {"unpack": dpkt.Packet.unpack})

    return _Headers(
        # These two parse on from their constructor, or know where the options end: they keep
        # their own unpack() and find no inner protocol to call.
        ethernet=type("Ethernet", (dpkt.ethernet.Ethernet,), {
            "unpack": dpkt.Packet.unpack, "_typesw": {}
        }),
        ipv4=type("IP", (dpkt.ip.IP,), {"_protosw": {}}),
        vlan=alone(dpkt.ethernet.VLANtag8021Q),
        sll=alone(dpkt.sll.SLL),
        sll2=alone(dpkt.sll2.SLL2),
        ipv6=alone(dpkt.ip6.IP6),
        extensions=dpkt.ip6.EXT_HDRS_CLS,
        tcp=dpkt.tcp.TCP,
        udp=dpkt.udp.UDP,
        icmp=alone(dpkt.icmp.ICMP),
        error=dpkt.UnpackError,
    )  # fmt: skip
