"""Frames that no socket of the network stack sends: AF_PACKET, with five-tuples of nobody's.

    python -m tests.workloads.inject DEVICE SOURCE-MAC ADDRESS PEER ADDRESS6 PEER6

At the end a JSON array of what scene.moved() tells, of one process. Its sockets are open until it
ends, and it ends when it reads a line. Standard library only.
"""

from __future__ import annotations

import ipaddress
import json
import socket
import struct
import sys
from collections.abc import Iterator, Sequence

from tests.workloads.scene import Truth, moved

_IPV4, _IPV6 = 0x0800, 0x86DD
Frame = tuple[str, int, int, bytes]
"""Protocol, source and destination port, what comes above the IP header."""


def frames() -> Iterator[Frame]:
    """None of these ports is a socket's. Checksums are not filled in: nobody is to take it."""
    for number, size in enumerate((311, 313, 317)):
        source, target = 20_051 + number, 20_063
        yield "udp", source, target, struct.pack("!HHHH", source, target, 8 + size, 0) + bytes(size)
    source, target, size = 20_071, 20_089, 331
    header = struct.pack("!HHIIBBHHH", source, target, 1, 1, 5 << 4, 0x18, 1024, 0, 0)
    yield "tcp", source, target, header + bytes(size)


def packet(address: str, peer: str, protocol: str, segment: bytes) -> bytes:
    """The IP header in front of it."""
    number = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}[protocol]
    ends = ipaddress.ip_address(address).packed + ipaddress.ip_address(peer).packed
    if ":" in address:
        return struct.pack("!IHBB", 6 << 28, len(segment), number, 64) + ends + segment
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 1, 0, 64, number, 0)
    return head + ends + segment


def inject(device: str, mac: str, ends: Sequence[tuple[str, str]]) -> Truth:
    """Once from each (address, peer)."""
    link = bytes.fromhex(mac.replace(":", ""))
    truth: Truth = []
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    raw.bind((device, 0))
    cooked = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    for source, target in ends:
        kind = _IPV6 if ":" in source else _IPV4
        for number, (protocol, port, peer_port, segment) in enumerate(frames()):
            data = packet(source, target, protocol, segment)
            if number % 2:
                # The kernel writes the link header.
                cooked.sendto(data, (device, kind, 0, 0, bytes(6)))
            else:
                raw.send(bytes(6) + link + struct.pack("!H", kind) + data)
            payload = len(segment) - (20 if protocol == "tcp" else 8)
            truth.append(moved(protocol, (source, port), (target, peer_port), payload))
    return truth


def main() -> None:
    device, mac, *ends = sys.argv[1:]
    print(
        json.dumps(inject(device, mac, list(zip(ends[::2], ends[1::2], strict=True)))), flush=True
    )
    sys.stdin.readline()


if __name__ == "__main__":
    main()
