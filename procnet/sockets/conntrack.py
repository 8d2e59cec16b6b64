"""Which connections this host translates (NAT), by ctnetlink: a dump, and news as they happen.

Layouts and names are those of include/uapi/linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h and
nf_conntrack_common.h; what fills them is net/netfilter/nf_conntrack_netlink.c. CAP_NET_ADMIN is
needed for all of it. Only translated connections are asked for: the kernel leaves the others out of
a dump (from where it knows CTA_STATUS_MASK on), a filter on the socket leaves them out of the news.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import socket
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

from procnet import features
from procnet.errors import AccessError, ProcnetError, UnsupportedError
from procnet.model import ICMP, ICMP6, SCTP, Ends, Feature, Translation, unmapped
from procnet.netlink import (
    ATTRIBUTE_BYTES,
    HEADER_BYTES,
    Header,
    attach_filter,
    attribute,
    attributes,
    dump,
    messages,
)

NAME = "connection tracking"
_NETLINK_NETFILTER = 12
_CT_GET, _CT_DELETE = 0x101, 0x102  # NFNL_SUBSYS_CTNETLINK is 1
_GROUP_NEW, _GROUP_DESTROY = 1, 3
_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _ID, _STATUS_MASK = 1, 2, 3, 12, 26
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_SOURCES, _DESTINATIONS = (1, 3), (2, 4)  # CTA_IP_V4_SRC, CTA_IP_V6_SRC, …
_PROTO_NUM, _PROTO_SOURCE_PORT, _PROTO_DESTINATION_PORT, _PROTO_ICMP_ID, _PROTO_ICMP6_ID = (
    1,
    2,
    3,
    4,
    7,
)
_SRC_NAT, _DST_NAT = 0x10, 0x20

_WORD = struct.Struct(">I")
_FAMILY_BYTES = 4  # struct nfgenmsg, before the attributes
_BUFFER_BYTES = 1 << 16
_QUEUE_BYTES = 4 << 20
_MAX_NEWS = 16384
"""More than the queue holds, twice its bytes at 700 or more each. In a flood there is no end."""
_TIMEOUT_S = 5.0
_SO_RCVBUFFORCE = 33
_NESTED_ATTRIBUTE = 0xFFFFF000 + 12  # SKF_AD_OFF + SKF_AD_NLATTR, include/uapi/linux/filter.h
# To where the attribute with the status is, if there is one; then whether its NAT bits are set.
_TRANSLATED_ALONE = (
    (0x00, 0, 0, HEADER_BYTES + _FAMILY_BYTES),
    (0x01, 0, 0, _STATUS),
    (0x20, 0, 0, _NESTED_ATTRIBUTE),
    (0x15, 3, 0, 0),
    (0x07, 0, 0, 0),
    (0x40, 0, 0, ATTRIBUTE_BYTES),
    (0x45, 0, 1, _SRC_NAT | _DST_NAT),
    (0x06, 0, 0, 0xFFFFFFFF),
    (0x06, 0, 0, 0),
)  # fmt: skip


class News(NamedTuple):
    """What became of translated connections from ``since_ns`` to ``until_ns``.

    In a flood the next ones begin before these end.
    ``missed``: there was more to tell than the kernel keeps, or than could be understood.
    """

    begun: list[Translation]
    ended: list[Translation]
    since_ns: int
    until_ns: int
    missed: bool


class Connections:
    """The translated connections of the network namespace that the calling thread is in.

    Raises AccessError without CAP_NET_ADMIN, UnsupportedError where the kernel does not tell. Once
    it is made, nothing that begins is missed. For one thread.
    """

    def __init__(self) -> None:
        self.malformed_messages = 0
        """Messages, and ends of datagrams, that could not be understood, so far."""
        self._sequence = 0
        self._held = contextlib.ExitStack()
        try:
            self._news = self._held.enter_context(_connect())
            _leave_out_the_untranslated(self._news)
            with contextlib.suppress(OSError):  # without: an overflow comes sooner
                self._news.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _QUEUE_BYTES)
            self._news.bind((0, 1 << (_GROUP_NEW - 1) | 1 << (_GROUP_DESTROY - 1)))
            self._news.setblocking(False)
            self._read_ns = time.time_ns()
            self._answers = self._held.enter_context(_connect())
            self._answers.bind((0, 0))
        except OSError as error:
            self._held.close()
            raise _refusal(error) from error
        except BaseException:
            self._held.close()
            raise

    def read(self) -> News:
        """What has begun and ended since the last call, up to a limit; never waits."""
        since_ns, started_ns, missed = self._read_ns, time.time_ns(), False
        malformed_before = self.malformed_messages
        begun: list[Translation] = []
        ended: list[Translation] = []
        drained = False
        for _ in range(_MAX_NEWS):
            try:
                data, (sender, _) = self._news.recvfrom(_BUFFER_BYTES)
            except BlockingIOError:
                drained = True
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise ProcnetError(f"cannot read what conntrack tells: {error}") from error
                missed = True
                continue
            if sender != 0:  # only the kernel's port is 0 (netlink(7))
                continue
            for header, body in self._messages(data):
                found = self._translation(body)
                if found is not None:
                    (ended if header.kind == _CT_DELETE else begun).append(found)
        until_ns = time.time_ns()
        # What was waiting is read in any case, if not all that came meanwhile.
        self._read_ns = until_ns if drained else started_ns
        missed = missed or self.malformed_messages > malformed_before
        return News(begun, ended, since_ns, until_ns, missed)

    def dump(self) -> list[Translation]:
        """All that there are now, but for those that cannot be understood, which are counted.

        Raises ProcnetError if the kernel does not answer in 5 s.
        """
        found: dict[Translation, None] = {}
        try:
            for status in (_SRC_NAT, _DST_NAT):
                found.update(dict.fromkeys(self._dump(status)))
        except OSError as error:
            raise _refusal(error) from error
        return list(found)

    def shift(self, step_ns: int) -> None:
        """The wall clock was set by so much."""
        self._read_ns += step_ns

    def close(self) -> None:
        """Gives the sockets back. Idempotent."""
        self._held.close()

    def _dump(self, status: int) -> Iterator[Translation]:
        self._sequence += 1
        word = _WORD.pack(status)
        asked = bytes(_FAMILY_BYTES)  # of every family
        asked += attribute(_STATUS, word) + attribute(_STATUS_MASK, word)
        for body in dump(self._answers, _CT_GET, self._sequence, asked, timeout_s=_TIMEOUT_S):
            if body is None:
                self.malformed_messages += 1
                continue
            found = self._translation(body)
            if found is not None:
                yield found

    def _messages(self, data: bytes) -> Iterator[tuple[Header, bytes]]:
        try:
            yield from messages(data)
        except ValueError:
            self.malformed_messages += 1

    def _translation(self, body: bytes) -> Translation | None:
        try:
            return parse_connection(body)
        except (ValueError, struct.error):
            self.malformed_messages += 1
            return None


def parse_connection(body: bytes) -> Translation | None:
    """A connection from struct nfgenmsg on; None for one that is not translated.

    Raises ValueError or struct.error for what is none.
    """
    near = reply = None
    number = 0
    for kind, value in attributes(body, _FAMILY_BYTES):
        if kind == _TUPLE_ORIG:
            near = _ends(value)
        elif kind == _TUPLE_REPLY:
            reply = _ends(value)
        elif kind == _ID:
            (number,) = _WORD.unpack(value)
    if near is None or reply is None:
        raise ValueError("a connection without ends")
    protocol, source, source_port, destination, destination_port = reply
    far = (protocol, destination, destination_port, source, source_port)
    return None if far == near else Translation(number, near, far)


@functools.lru_cache(1 << 15)
def _ends(value: bytes) -> Ends:
    """A tuple. The same ones come again: at the end of a connection, and in each dump."""
    addresses: dict[int, bytes] = {}
    protocol = dict[int, bytes]()
    for kind, inner in attributes(value):
        if kind == _TUPLE_IP:
            addresses.update(attributes(inner))
        elif kind == _TUPLE_PROTO:
            protocol.update(attributes(inner))
    source, destination = (
        next((addresses[kind] for kind in kinds if kind in addresses), b"")
        for kinds in (_SOURCES, _DESTINATIONS)
    )
    number = protocol.get(_PROTO_NUM, b"")
    if len(number) != 1 or len(source) not in (4, 16) or len(source) != len(destination):
        raise ValueError("a tuple without addresses or protocol")
    ports = _ports(number[0], protocol)
    return number[0], unmapped(source), ports[0], unmapped(destination), ports[1]


def _ports(protocol: int, found: dict[int, bytes]) -> tuple[int, int]:
    """As in ``Segment``: an echo's id is both, and SCTP is counted without."""
    if protocol == SCTP:
        return 0, 0
    kinds = (_PROTO_SOURCE_PORT, _PROTO_DESTINATION_PORT)
    if protocol in (ICMP, ICMP6):
        kinds = (_PROTO_ICMP_ID,) * 2 if protocol == ICMP else (_PROTO_ICMP6_ID,) * 2
    values = [found.get(kind, bytes(2)) for kind in kinds]
    if any(len(value) != 2 for value in values):
        raise ValueError("a port or an id that is none")
    source, destination = (int.from_bytes(value, "big") for value in values)
    return source, destination


def _connect() -> socket.socket:
    return socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
    )


def _leave_out_the_untranslated(news: socket.socket) -> None:
    attach_filter(news, _TRANSLATED_ALONE)


def _refusal(error: OSError) -> ProcnetError:
    said = error.strerror or str(error)
    if isinstance(error, PermissionError):
        return AccessError(f"{NAME} cannot be read: {said}; run as root or with CAP_NET_ADMIN")
    if error.errno in (errno.EPROTONOSUPPORT, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT):
        return UnsupportedError(f"{NAME} cannot be read: {said}; needs CONFIG_NF_CT_NETLINK")
    return ProcnetError(f"{NAME} cannot be read: {said}")


def probe() -> Feature:
    """Whether translated connections can be told, found out by asking. Raises nothing."""
    try:
        connections = Connections()
    except (AccessError, UnsupportedError) as error:
        reason, _, remedy = str(error).partition("; ")
        return features.no(NAME, reason, remedy)
    except ProcnetError as error:
        return features.unknown(NAME, str(error))
    try:
        number = len(connections.dump())
    except ProcnetError as error:
        return features.unknown(NAME, str(error))
    finally:
        connections.close()
    return features.yes(NAME, f"it tells of {number} connections that this host translates now")
