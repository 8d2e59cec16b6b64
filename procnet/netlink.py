"""Netlink as bytes: the messages of a datagram, the attributes of one, the errno of an answer.

Layouts and names are those of include/uapi/linux/netlink.h, see netlink(7). Damage is never passed
over: what stands before it is told, then ValueError is raised, for what stands behind it is lost.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

NLMSG_ERROR, NLMSG_DONE, NLMSG_OVERRUN = 2, 3, 4
NLM_F_DUMP_INTR = 0x10
HEADER_BYTES, ATTRIBUTE_BYTES = 16, 4

_NLM_F_REQUEST, _NLM_F_REQUEST_DUMP = 0x001, 0x301
_MAX_ERRNO = 4095  # include/linux/err.h; strerror() takes no number that is not an int of C
_ERRNO_BYTES = 4
_BUFFER_BYTES = 1 << 16  # what netlink_dump (net/netlink/af_netlink.c) fills is at most half of it
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_TYPE = 0x3FFF  # NLA_TYPE_MASK: the two upper bits are flags
_SO_ATTACH_FILTER = 26
_INSTRUCTION = struct.Struct("HBBI")
_PROGRAM = struct.Struct("HP")

Instruction = tuple[int, int, int, int]
"""struct sock_filter, include/uapi/linux/filter.h: code, jt, jf, k."""


class Header(NamedTuple):
    """struct nlmsghdr. ``length_bytes``: of the message, with this header, without its padding."""

    length_bytes: int
    kind: int
    flags: int
    sequence: int
    port: int


def header_at(data: bytes | memoryview, at: int) -> Header:
    """The header of the message that begins there. Raises ValueError if that is not whole."""
    left_bytes = len(data) - at
    if left_bytes >= HEADER_BYTES:
        header = Header._make(_HEADER.unpack_from(data, at))
        if HEADER_BYTES <= header.length_bytes <= left_bytes:
            return header
    raise ValueError("a netlink message of an impossible length")


def messages(data: bytes) -> Iterator[tuple[Header, bytes]]:
    """The header and the body of each message of a datagram.

    Raises ValueError at the first that is not whole.
    """
    at = 0
    while at < len(data):
        header = header_at(data, at)
        yield header, data[at + HEADER_BYTES : at + header.length_bytes]
        at += aligned(header.length_bytes)


def attributes(body: bytes, at: int = 0) -> Iterator[tuple[int, bytes]]:
    """The type, without its flags, and the value of each attribute from ``at`` on.

    Raises ValueError at the first that is not whole.
    """
    while at < len(body):
        left_bytes = len(body) - at
        length_bytes, kind = 0, 0
        if left_bytes >= ATTRIBUTE_BYTES:
            length_bytes, kind = _ATTRIBUTE.unpack_from(body, at)
        if not ATTRIBUTE_BYTES <= length_bytes <= left_bytes:
            raise ValueError("a netlink attribute of an impossible length")
        yield kind & _TYPE, body[at + ATTRIBUTE_BYTES : at + length_bytes]
        at += aligned(length_bytes)


def error_number(body: bytes | memoryview) -> int:
    """The errno in an NLMSG_ERROR or NLMSG_DONE, 0 for none. A positive one is not the kernel's."""
    if len(body) < _ERRNO_BYTES:
        return 0
    number = int.from_bytes(body[:_ERRNO_BYTES], sys.byteorder, signed=True)
    return min(max(0, -number), _MAX_ERRNO)


def request(kind: int, sequence: int, body: bytes) -> bytes:
    """Asks for one thing."""
    return _HEADER.pack(HEADER_BYTES + len(body), kind, _NLM_F_REQUEST, sequence, 0) + body


def dump_request(kind: int, sequence: int, body: bytes) -> bytes:
    """Asks for everything of a kind."""
    return _HEADER.pack(HEADER_BYTES + len(body), kind, _NLM_F_REQUEST_DUMP, sequence, 0) + body


def dump(
    netlink: socket.socket, kind: int, sequence: int, body: bytes, *, timeout_s: float
) -> Iterator[bytes | None]:
    """Asks for everything of a kind: the body of each answer; None for what is not whole.

    What answers another ``sequence`` is passed over. Raises OSError, TimeoutError if there is no
    end after ``timeout_s``.
    """
    deadline_s = time.monotonic() + timeout_s
    netlink.settimeout(timeout_s)
    netlink.send(dump_request(kind, sequence, body))
    while True:
        data, (sender, _) = netlink.recvfrom(_BUFFER_BYTES)
        try:
            for header, answer in messages(data) if sender == 0 else ():
                if header.sequence != sequence:
                    continue
                if header.kind in (NLMSG_DONE, NLMSG_ERROR):
                    number = error_number(answer)
                    if number:
                        raise OSError(number, os.strerror(number))
                    return
                yield answer
        except ValueError:
            yield None
        if time.monotonic() > deadline_s:
            raise TimeoutError(errno.ETIMEDOUT, f"no end after {timeout_s:g} s")


def attach_filter(netlink: socket.socket, program: Sequence[Instruction]) -> None:
    """From now on the kernel queues only messages that ``program`` lets through. Raises OSError."""
    code = array.array("B", b"".join(_INSTRUCTION.pack(*each) for each in program))
    address, _ = code.buffer_info()
    netlink.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _PROGRAM.pack(len(program), address))


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    length_bytes = ATTRIBUTE_BYTES + len(value)
    return _ATTRIBUTE.pack(length_bytes, kind) + value + bytes(aligned(length_bytes) - length_bytes)


def aligned(length_bytes: int) -> int:
    """With the padding: NLMSG_ALIGN and NLA_ALIGN."""
    return (length_bytes + 3) & ~3
