"""How far one TCP connection has come, by sock_diag: what was written, and what has arrived."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from procnet.model import MAPPED_PREFIX, TCP, Socket
from procnet.netlink import HEADER_BYTES, attributes, header_at, request
from procnet.sockets.diag import FAMILIES, SOCK_DIAG_BY_FAMILY, open_diag

_TIMEOUT_S = 1.0
_BUFFER_BYTES = 4096
_ANY_STATE = (1 << 13) - 1
_INET_DIAG_INFO = 2  # include/uapi/linux/inet_diag.h
_ANY_COOKIE = b"\xff" * 8  # INET_DIAG_NOCOOKIE, twice

# inet_diag_req_v2: family, protocol, what to tell besides, states, ports, addresses, interface.
_REQUEST = struct.Struct("=BBBxI HH16s16s4x8s")
# inet_diag_msg, of which: send queue, inode.
_MESSAGE = struct.Struct("=60xI4xI")
# struct tcp_info (include/uapi/linux/tcp.h), of which: tcpi_bytes_acked, since 4.1.
_INFO = struct.Struct("=120xQ")


class Progress(NamedTuple):
    """Bytes since the connection began: how many the other end has, and how many were written."""

    acked_bytes: int
    written_bytes: int


def read_progress(connection: Socket) -> Progress | None:
    """Of a connection in the network namespace that this thread is in; None if the kernel does not
    tell, or has another socket there by now. Raises nothing."""
    try:
        with open_diag() as netlink:
            netlink.settimeout(_TIMEOUT_S)
            netlink.send(request(SOCK_DIAG_BY_FAMILY, 0, _question(connection)))
            answer, _, _, sender = netlink.recvmsg(_BUFFER_BYTES)
        return parse_progress(answer, connection.inode) if sender[0] == 0 else None
    except OSError:
        return None


def parse_progress(answer: bytes, inode: int) -> Progress | None:
    """What an answer says of the socket with this inode."""
    try:
        header = header_at(answer, 0)
        body = answer[HEADER_BYTES : header.length_bytes]
        waiting_bytes, its_inode = _MESSAGE.unpack_from(body)
        (acked_bytes,) = _INFO.unpack_from(dict(attributes(body, _MESSAGE.size))[_INET_DIAG_INFO])
    except (ValueError, KeyError, struct.error):
        return None
    if header.kind != SOCK_DIAG_BY_FAMILY or its_inode != inode:
        return None
    return Progress(acked_bytes, acked_bytes + waiting_bytes)


def _question(connection: Socket) -> bytes:
    return _REQUEST.pack(
        FAMILIES[connection.family],
        TCP,
        1 << (_INET_DIAG_INFO - 1),
        _ANY_STATE,
        socket.htons(connection.local_port),
        socket.htons(connection.remote_port),
        _address(connection.local_address, connection.family),
        _address(connection.remote_address, connection.family),
        _ANY_COOKIE,
    )


def _address(address: bytes, family: int) -> bytes:
    if len(address) == 4 and family == 6:
        return MAPPED_PREFIX + address
    return address
