"""The kernel's socket tables by sock_diag netlink: the rows of /proc/net, without the text.

A request asks for one table (a protocol and a family) of the network namespace that the netlink
socket was made in; the answer is a train of ``struct inet_diag_msg``. Layouts and names are those
of include/uapi/linux/sock_diag.h and inet_diag.h (unchanged since Linux 3.3); what fills them is
net/ipv4/inet_diag.c. No privilege is needed. Asking may make the kernel load tcp_diag, udp_diag or
raw_diag, as ss(8) does.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import NamedTuple

from procnet import features
from procnet.kernel_text import STATE_NAMES
from procnet.model import (
    IPV4_WILDCARD,
    IPV6_WILDCARD,
    TCP,
    UDP,
    UDPLITE,
    Feature,
    Socket,
    UnmappedAddresses,
)
from procnet.netlink import (
    HEADER_BYTES,
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_OVERRUN,
    Header,
    aligned,
    dump_request,
    error_number,
    header_at,
)
from procnet.sockets.tables import make_socket

_NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20

# raw_diag answers for raw sockets of every protocol (raw_diag_dump, net/ipv4/raw_diag.c, 4.10).
_RAW = socket.IPPROTO_RAW
_TABLES = {
    "tcp": (TCP, 4),
    "tcp6": (TCP, 6),
    "udp": (UDP, 4),
    "udp6": (UDP, 6),
    "udplite": (UDPLITE, 4),
    "udplite6": (UDPLITE, 6),
    "raw": (_RAW, 4),
    "raw6": (_RAW, 6),
}

DIAG_TABLES: tuple[str, ...] = tuple(_TABLES)
"""The tables of /proc/net that sock_diag can stand for. It has no word for ping sockets."""

# Every state that /proc/net shows. Not 13 (TCP_BOUND_INACTIVE): newer kernels take it as a wish for
# sockets that are only bound (inet_diag_dump_icsk), which /proc/net/tcp does not list.
_STATES_SHOWN = sum(1 << number for number in range(1, 13))

_REQUEST = struct.Struct("=BBBxI 48x")  # inet_diag_req_v2
# nlmsghdr: length, type, flags, sequence; inet_diag_msg: family, state, ports and addresses (in
# network order; an IPv4 address is the first word), send queue, uid, inode. The attributes after it
# are unread.
_MESSAGES = {
    4: "=IHHI4x BB2x HH 4s12x 4s12x 4x8x 4x4xIII",
    6: "=IHHI4x BB2x HH 16s 16s 4x8x 4x4xIII",
}
_MESSAGE_BYTES = struct.calcsize(_MESSAGES[4])

# netlink_dump (net/netlink/af_netlink.c) makes its datagrams as large as the reader's buffer, up to
# 32 KiB: with twice that, none is cut short.
_BUFFER_BYTES = 1 << 16
_ATTEMPTS = 4
_SILENCE_S = 60.0
_LISTEN = 10  # TCP_LISTEN, include/net/tcp_states.h
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

# What will be the same tomorrow: the kernel has not got it. It is asked only once, because each
# time it would run modprobe (inet_diag_lock_handler; __sock_create).
ABSENT = frozenset(
    {errno.ENOENT, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL}
)


class Page(NamedTuple):
    """One datagram of an answer. ``error`` is the errno that ended the dump, 0 for none."""

    sockets: list[Socket]
    malformed: int
    done: bool
    interrupted: bool
    error: int


class _Interrupted(Exception):
    """The table changed while it was dumped, or the kernel ran out of room: ask again."""


@functools.lru_cache(64)
def _stride(family: int, length: int) -> struct.Struct:
    """The layout of a message that takes ``length`` bytes with its attributes."""
    return struct.Struct(f"{_MESSAGES[family]}{length - _MESSAGE_BYTES}x")


def parse_page(page: bytes | memoryview, table: str, netns: int, sequence: int) -> Page:
    """The sockets of one datagram, in the order of the kernel.

    What cannot be understood is skipped and counted: a message of another kind, family or request,
    and everything behind a length that is impossible. ``table`` is one of ``DIAG_TABLES``. As in
    /proc/net, a socket that no file stands for (``time_wait``, ``syn_recv``, not yet accepted) has
    inode 0, an IPv6 wildcard stays 16 zero bytes, and a raw socket has its protocol and no ports.
    """
    view = memoryview(page)
    sockets: list[Socket] = []
    malformed, interrupted, offset = 0, False, 0
    while offset < len(view):
        try:
            header = header_at(view, offset)
        except ValueError:
            return Page(sockets, malformed + 1, False, interrupted, 0)
        length, kind, flags, number, _ = header
        interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
        if number == sequence and kind in (NLMSG_DONE, NLMSG_ERROR):
            error = error_number(view[offset + HEADER_BYTES : offset + length])
            return Page(sockets, malformed, True, interrupted, error)
        if kind == SOCK_DIAG_BY_FAMILY and number == sequence and length >= _MESSAGE_BYTES:
            read = _take_run(view[offset:], header, table, netns, sockets)
            if read:
                offset += read
                continue
        interrupted = interrupted or kind == NLMSG_OVERRUN
        malformed += 1
        offset += aligned(length)
    return Page(sockets, malformed, False, interrupted, 0)


def _take_run(
    view: memoryview, first: Header, table: str, netns: int, sockets: list[Socket]
) -> int:
    """Adds the messages at the start of ``view`` that are like the first; the bytes they take.

    The messages of a table have few lengths, which differ by the attributes behind them, and come
    in long runs of one length.
    """
    protocol, family = _TABLES[table]
    raw = protocol == _RAW
    stride = aligned(first.length_bytes)
    count = len(view) // stride
    if not count:  # the last message of a datagram may lack its padding
        view, count = memoryview(bytes(view).ljust(stride, b"\0")), 1
    header, address_family = first[:4], FAMILIES[family]
    addresses, ntohs, add = UnmappedAddresses(), socket.ntohs, sockets.append
    before = len(sockets)
    for row in _stride(family, stride).iter_unpack(view[: count * stride]):
        size, kind, flags, number, af, state, near, far, local, remote, queue, uid, inode = row
        if (size, kind, flags, number) != header or af != address_family:
            break
        near = ntohs(near)
        add(
            make_socket(
                (
                    netns,
                    near if raw else protocol,
                    family,
                    addresses[local],
                    0 if raw else near,
                    addresses[remote],
                    0 if raw else ntohs(far),
                    STATE_NAMES[state],
                    inode,
                    uid,
                    # Of a listener it is how many may wait, of other protocols memory.
                    queue if protocol == TCP and state != _LISTEN else 0,
                )
            )
        )
    return (len(sockets) - before) * stride


class DiagError(Exception):
    """sock_diag did not tell; the table has to be read elsewhere."""


class DiagTables:
    """Asks sock_diag for tables, and remembers which of them this kernel has not got.

    ``timeout_s`` bounds one table. ``connect`` makes the netlink socket. Not thread-safe.
    """

    def __init__(
        self,
        *,
        timeout_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
        connect: Callable[[], socket.socket] | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._clock = clock
        self._connect = connect or open_diag
        self._sequence = 0
        self._silent_until_s = clock()
        self.absent: dict[str, str] = {}
        """Tables that the kernel has no diag module for, with its words."""
        self.malformed_messages = 0
        """Messages that could not be understood, so far."""
        self.failures = 0
        """Dumps that broke off (timeouts, errors, tables that changed all the time), so far."""

    def read(self, netns: int) -> dict[str, list[Socket]]:
        """The tables that could be had of the network namespace that this thread is in.

        ``netns`` is its inode and goes into each socket. A table that is not in the answer has to
        be read from /proc/net. Raises nothing.
        """
        tables: dict[str, list[Socket]] = {}
        for table in DIAG_TABLES:
            if table in self.absent or self._clock() < self._silent_until_s:
                continue
            try:
                tables[table] = self.table(table, netns)
            except DiagError:
                continue
        return tables

    def table(self, table: str, netns: int, states: int = _STATES_SHOWN) -> list[Socket]:
        """One table, of sockets in ``states`` (a bit for each). Raises DiagError."""
        for _ in range(_ATTEMPTS):
            try:
                sockets = self._dump(table, netns, states)
            except _Interrupted:
                continue
            except OSError as error:
                reason = f"sock_diag does not tell {table}: {error.strerror or error}"
                if error.errno in ABSENT:
                    self.absent[table] = reason
                else:
                    self.failures += 1
                if isinstance(error, TimeoutError):
                    self._silent_until_s = self._clock() + _SILENCE_S
                raise DiagError(reason) from error
            return _with_listeners_uid(sockets) if table in ("tcp", "tcp6") else sockets
        self.failures += 1
        raise DiagError(f"sock_diag: {table} changed while it was dumped, {_ATTEMPTS} times")

    def _dump(self, table: str, netns: int, states: int) -> list[Socket]:
        protocol, family = _TABLES[table]
        self._sequence = sequence = (self._sequence + 1) & 0xFFFFFFFF
        deadline_s = self._clock() + self._timeout_s
        sockets: list[Socket] = []
        # A socket for each dump: what an earlier one left unread can never be taken for an answer.
        with self._connect() as netlink:
            netlink.send(
                dump_request(
                    SOCK_DIAG_BY_FAMILY,
                    sequence,
                    _REQUEST.pack(FAMILIES[family], protocol, 0, states),
                )
            )
            buffer = bytearray(_BUFFER_BYTES)
            while True:
                patience_s = deadline_s - self._clock()
                if patience_s <= 0:
                    raise TimeoutError(errno.ETIMEDOUT, f"no end after {self._timeout_s:g} s")
                netlink.settimeout(patience_s)
                page = self._receive(netlink, buffer, table, netns, sequence)
                if page is None:
                    continue
                sockets += page.sockets
                self.malformed_messages += page.malformed
                if page.interrupted or page.error == errno.ENOBUFS:
                    raise _Interrupted
                if page.error:
                    raise OSError(page.error, os.strerror(page.error))
                if page.done:
                    return sockets

    def _receive(
        self, netlink: socket.socket, buffer: bytearray, table: str, netns: int, sequence: int
    ) -> Page | None:
        """The next datagram; None if it does not come from the kernel."""
        try:
            count, _, flags, sender = netlink.recvmsg_into([buffer])
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                raise _Interrupted from error
            raise
        if sender[0] != 0:  # any process with CAP_NET_ADMIN may write to us
            self.malformed_messages += 1
            return None
        if not count:
            raise ConnectionError(errno.ECONNRESET, "the kernel hung up")
        if flags & socket.MSG_TRUNC:
            raise OSError(errno.EMSGSIZE, "a datagram was cut short")
        return parse_page(memoryview(buffer)[:count], table, netns, sequence)


def open_diag() -> socket.socket:
    """A netlink socket to sock_diag, in the network namespace of this thread. Raises OSError."""
    return socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG
    )


def _with_listeners_uid(sockets: list[Socket]) -> list[Socket]:
    """Handshakes with the uid of their listener, as get_openreq4 (net/ipv4/tcp_ipv4.c) shows them;
    inet_req_diag_fill says 0."""
    if not any(s.state == "syn_recv" for s in sockets):
        return sockets
    listeners = {(s.local_address, s.local_port): s.uid for s in sockets if s.state == "listen"}
    wildcards = (IPV4_WILDCARD, IPV6_WILDCARD)

    def settled(s: Socket) -> Socket:
        if s.state != "syn_recv" or s.inode:
            return s
        for address in (s.local_address, *wildcards):
            uid = listeners.get((address, s.local_port))
            if uid is not None:
                return s._replace(uid=uid)
        return s

    return [settled(s) for s in sockets]


def probe_diag() -> Feature:
    """Whether sock_diag tells the tables of TCP and UDP, found out by asking. Raises nothing."""
    name, remedy = "sock_diag owners", "modprobe tcp_diag udp_diag (kernel: CONFIG_INET_DIAG)"
    diag = DiagTables(timeout_s=2.0)
    reasons: dict[str, str] = {}
    for table in DIAG_TABLES:
        try:
            diag.table(table, 0, states=1 << _LISTEN)
        except DiagError as error:
            reasons[table] = str(error)
            if diag.failures:
                return features.unknown(name, str(error), "see whether a sandbox forbids netlink")
    told = [table for table in DIAG_TABLES if table not in reasons]
    lacking = [table for table in ("tcp", "udp") if table in reasons]
    if lacking:
        return features.no(name, reasons[lacking[0]], remedy)
    elsewhere = ", ".join(sorted({*reasons, "icmp", "icmp6", "packet"}))
    return features.yes(name, f"it tells {', '.join(told)}; /proc/net tells {elsewhere}")
