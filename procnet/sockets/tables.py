"""The kernel's socket tables: the text of /proc/net/tcp and its kin, turned into sockets.

The formats are those of ``get_tcp4_sock`` (net/ipv4/tcp_ipv4.c), ``get_tcp6_sock``
(net/ipv6/tcp_ipv6.c), ``udp4_format_sock`` (net/ipv4/udp.c), ``raw_sock_seq_show``
(net/ipv4/raw.c), ``ping_v4_format_sock`` (net/ipv4/ping.c), ``__ip6_dgram_sock_seq_show``
(net/ipv6/datagram.c) and ``packet_seq_show`` (net/packet/af_packet.c); see also man proc(5).
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Callable
from typing import Any, cast

from procnet.kernel_text import STATE_NAMES
from procnet.model import ICMP, ICMP6, TCP, UDP, UDPLITE, Socket, unmapped

_RAW = -1
_PACKET = -2

# Table -> (protocol, family). The two negative ones do not have one protocol per table.
_TABLES = {
    "tcp": (TCP, 4),
    "tcp6": (TCP, 6),
    "udp": (UDP, 4),
    "udp6": (UDP, 6),
    "udplite": (UDPLITE, 4),
    "udplite6": (UDPLITE, 6),
    "raw": (_RAW, 4),
    "raw6": (_RAW, 6),
    "icmp": (ICMP, 4),
    "icmp6": (ICMP6, 6),
    "packet": (_PACKET, 0),
}

TABLES: tuple[str, ...] = tuple(_TABLES)
"""The tables of one network namespace, as files of /proc/PID/net. A kernel may lack some."""

_LISTEN = "0A"
_STATES = {f"{number:02X}": name for number, name in enumerate(STATE_NAMES)}

# Literal spaces only: a pattern that could cross a newline would glue two broken lines into a
# socket that never was, and the space after the inode proves that it is not cut short. Bounded
# digits: int() of a very long number raises ValueError.
_TAIL = (
    r"([0-9A-F]{2}) ([0-9A-F]{8}):[0-9A-F]{8} [0-9A-F:]+ [0-9A-F]+ +([0-9]{1,10}) +-?[0-9]+"
    r" ([0-9]{1,20}) "
)
_INET4 = re.compile(
    r"^ *[0-9]+: ([0-9A-F]{8}):([0-9A-F]{4}) ([0-9A-F]{8}):([0-9A-F]{4}) " + _TAIL, re.MULTILINE
)
_INET6 = re.compile(
    r"^ *[0-9]+: ([0-9A-F]{32}):([0-9A-F]{4}) ([0-9A-F]{32}):([0-9A-F]{4}) " + _TAIL, re.MULTILINE
)
# sk RefCnt Type Proto Iface R Rmem User Inode; the pointer is not always hexadecimal (%pK).
_PACKET_LINE = re.compile(
    r"^\S+ +[0-9]+ +[0-9]+ +[0-9a-f]{4} +-?[0-9]+ +[0-9] +[0-9]+ +([0-9]{1,10}) +([0-9]{1,20}) *$",
    re.MULTILINE,
)

# PING_HTABLE_SIZE (include/net/ping.h); the bucket is the id plus a constant of the namespace.
_PING_BUCKETS = 64

# The fields in order, by one call of C instead of Socket's Python constructor: tables are long.
make_socket = cast("Callable[[tuple[Any, ...]], Socket]", functools.partial(tuple.__new__, Socket))

_WORDS_AS_PRINTED = {4: struct.Struct(">I"), 16: struct.Struct(">4I")}
_WORDS_IN_MEMORY = {4: struct.Struct("=I"), 16: struct.Struct("=4I")}


def decode_address(text: str) -> bytes:
    """The packed address of a hexadecimal column, v4-mapped ones as IPv4.

    The kernel prints the address as 32-bit words in host order (``%08X`` of a ``__be32`` in
    ``get_tcp4_sock``): on a little-endian machine ``0100007F`` is 127.0.0.1.

    Raises ValueError if it is not 8 or 32 hexadecimal digits.
    """
    printed = bytes.fromhex(text)
    if len(printed) not in _WORDS_AS_PRINTED:
        raise ValueError(f"not an address of /proc/net: {text[:40]!r}")
    words = _WORDS_AS_PRINTED[len(printed)].unpack(printed)
    return unmapped(_WORDS_IN_MEMORY[len(printed)].pack(*words))


def parse_table(table: str, text: bytes, netns: int) -> tuple[list[Socket], int]:
    """The sockets of one table, and how many of its lines could not be understood.

    ``table`` is one of ``TABLES``; ``text`` the whole file; ``netns`` goes into each socket. What
    the columns mean differs by table:

    - raw: the local port column is the protocol number, so both ports are 0;
    - icmp, icmp6 (ping sockets): the local port column is the echo id. A connected one carries it
      as remote port too, as a flow does; the kernel's column repeats what connect(2) was given;
    - packet: no addresses, protocol 0, state ``packet``.

    An IPv6 wildcard stays 16 zero bytes, so a socket bound to a v4-mapped address and not connected
    has a local address of 4 bytes and a remote one of 16. A state that this module does not know is
    ``unknown``. Raises KeyError for another table.
    """
    protocol, family = _TABLES[table]
    decoded = text.decode("latin-1")
    if protocol == _PACKET:
        sockets = [
            Socket(netns, 0, 0, b"", 0, b"", 0, "packet", int(inode), int(uid))
            for uid, inode in _PACKET_LINE.findall(decoded)
        ]
    else:
        sockets = _inet_sockets(decoded, netns, protocol, family)
    if protocol == _RAW:
        sockets = [s._replace(protocol=s.local_port, local_port=0, remote_port=0) for s in sockets]
    elif protocol in (ICMP, ICMP6):
        sockets = [
            s._replace(remote_port=s.local_port if any(s.remote_address) else 0) for s in sockets
        ]
    return sockets, max(0, _data_lines(decoded) - len(sockets))


def settled_ping_sockets(four: list[Socket], six: list[Socket]) -> list[Socket]:
    """The sockets of /proc/net/icmp and icmp6, each only under its own family.

    The kernel looks at the family of a hash bucket's first socket only and then lists the rest of
    the bucket (``ping_get_first`` and ``ping_get_next``, net/ipv4/ping.c), so that a socket of one
    family may be in both tables. The first of a bucket is therefore in the right table, and so is
    one with an address: an IPv4 socket has none in icmp6. What is left, unbound sockets of both
    families under ids that differ by a multiple of 64, stays in both.
    """
    both = {s.inode for s in four} & {s.inode for s in six}
    if not both:
        return four + six
    certainly_six = _first_or_bound(six)
    # In this order: a connected IPv6 socket shows in icmp as 127.0.0.6 (LOOPBACK4_IPV6).
    certainly_four = _first_or_bound(four) - certainly_six
    return [s for s in four if s.inode not in both & certainly_six] + [
        s for s in six if s.inode not in both & certainly_four
    ]


def _first_or_bound(sockets: list[Socket]) -> set[int]:
    first: dict[int, int] = {}
    for socket in sockets:
        first.setdefault(socket.local_port % _PING_BUCKETS, socket.inode)
    return {*first.values(), *(s.inode for s in sockets if any(s.local_address))}


def _inet_sockets(text: str, netns: int, protocol: int, family: int) -> list[Socket]:
    addresses = _Addresses()
    pattern = _INET4 if family == 4 else _INET6
    return [
        make_socket(
            (
                netns,
                protocol,
                family,
                addresses[local],
                int(local_port, 16),
                addresses[remote],
                int(remote_port, 16),
                _STATES[state],
                int(inode),
                int(uid),
                # Of other protocols it is memory, sk_wmem_alloc, and no bytes.
                int(queue, 16) if protocol == TCP and state != _LISTEN else 0,
            )
        )
        for local, local_port, remote, remote_port, state, queue, uid, inode in pattern.findall(
            text
        )
    ]


class _Addresses(dict[str, bytes]):
    """Column -> address. A busy table repeats few addresses, and a hit costs no Python call."""

    def __missing__(self, text: str) -> bytes:
        address = self[text] = decode_address(text)
        return address


def _data_lines(text: str) -> int:
    lines = text.count("\n") + (not text.endswith("\n"))
    return lines - 1  # every table starts with one line of headings
