"""A sock_diag of your own making: replies built from include/uapi/linux/inet_diag.h, and a socket
that answers with them."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Answer = Sequence["bytes | OSError"]
TCP_LISTEN, TCP_ESTABLISHED, TCP_SYN_RECV, TCP_TIME_WAIT = 10, 1, 3, 6


def netlink_message(kind: int, payload: bytes, *, sequence: int = 1, flags: int = 2) -> bytes:
    """A struct nlmsghdr and what follows it, padded."""
    length = 16 + len(payload)
    header = struct.pack("=IHHII", length, kind, flags, sequence, 4242)
    return header + payload + bytes(-length % 4)


def row(
    local: tuple[str, int] = ("127.0.0.1", 80),
    remote: tuple[str, int] = ("0.0.0.0", 0),
    *,
    state: int = TCP_LISTEN,
    inode: int = 501,
    uid: int = 0,
    send_queue_bytes: int = 0,
    attributes: bytes = b"\x05\0\x08\0\0\0\0\0",
    family: int = 0,
    sequence: int = 1,
    flags: int = 2,
) -> bytes:
    """One socket, with the attribute INET_DIAG_SHUTDOWN after it if nothing else is asked for."""
    packed = [ipaddress.ip_address(end[0]).packed for end in (local, remote)]
    its_family = family or (socket.AF_INET if len(packed[0]) == 4 else socket.AF_INET6)
    message = struct.pack("=BBBB", its_family, state, 0, 0)
    message += struct.pack(">HH", local[1], remote[1])
    message += packed[0].ljust(16, b"\0") + packed[1].ljust(16, b"\0")
    message += struct.pack("=I8sIIIII", 0, bytes(8), 0, 0, send_queue_bytes, uid, inode)
    return netlink_message(20, message + attributes, sequence=sequence, flags=flags)


def done(errno_: int = 0, *, sequence: int = 1, flags: int = 2) -> bytes:
    """The end of a dump."""
    return netlink_message(3, struct.pack("=i", -errno_), sequence=sequence, flags=flags)


class FakeNetlink:
    """Answers each request with what ``answer(protocol, family, sequence)`` returns: datagrams, or
    errors to raise. Silence after the last one is a timeout."""

    def __init__(self, answer: Callable[[int, int, int], Answer]) -> None:
        self._answer = answer
        self._queue: list[bytes | OSError] = []
        self.asked: list[tuple[int, int]] = []
        self.open = 0
        self.sender = 0

    def connect(self) -> Any:
        """For ``DiagTables(connect=…)``."""
        self.open += 1
        self._queue = []
        return self

    def __enter__(self) -> FakeNetlink:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.open -= 1

    def settimeout(self, seconds: float) -> None:
        assert seconds > 0

    def send(self, request: bytes) -> int:
        length, kind, flags, sequence, _, family, protocol = struct.unpack_from("=IHHIIBB", request)
        assert (length, kind, flags) == (len(request), 20, 0x301) == (72, 20, 0x301)
        self.asked.append((protocol, family))
        self._queue = list(self._answer(protocol, family, sequence))
        return len(request)

    def recvmsg_into(self, buffers: list[bytearray]) -> tuple[int, list[Any], int, tuple[int, int]]:
        if not self._queue:
            raise TimeoutError("timed out")
        datagram = self._queue.pop(0)
        if isinstance(datagram, OSError):
            raise datagram
        cut = datagram[: len(buffers[0])]
        buffers[0][: len(cut)] = cut
        flags = socket.MSG_TRUNC if len(cut) < len(datagram) else 0
        return len(cut), [], flags, (self.sender, 0)


class TellingNetlink:
    """Tells datagrams up to an empty one, and after a silence those up to the next."""

    def __init__(self, datagrams: Iterable[bytes], *, silence: type[OSError]) -> None:
        self._datagrams = iter(datagrams)
        self._silence = silence

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc_info: object) -> None: ...

    def ignored(self, *arguments: object) -> None: ...

    setsockopt = bind = setblocking = settimeout = send = ignored

    def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
        datagram = next(self._datagrams, b"")
        if not datagram:
            raise self._silence("nothing more")
        return datagram, (0, 0)
