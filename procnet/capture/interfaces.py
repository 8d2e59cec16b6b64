"""Which interfaces there are, which addresses are ours, and when that changed.

Asked of the kernel by rtnetlink (rtnetlink(7)), for the network namespace of the calling thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from procnet.errors import CaptureError
from procnet.model import unmapped
from procnet.netlink import (
    NLM_F_DUMP_INTR,
    NLMSG_DONE,
    NLMSG_ERROR,
    attributes,
    dump_request,
    error_number,
    messages,
)

# linux/netlink.h, linux/rtnetlink.h
_NETLINK_ROUTE = 0
_RTM_NEWLINK, _RTM_GETLINK, _RTM_NEWADDR, _RTM_GETADDR = 16, 18, 20, 22
_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100
# linux/if_link.h, linux/if_addr.h, linux/if.h
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_INFO_SLAVE_KIND = 1, 3, 18, 4
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8

# linux/sockios.h, and struct ifreq of linux/if.h. By the socket itself, which takes no descriptor.
_SIOCGIFINDEX = 0x8933
_IFREQ = struct.Struct("=16si20x")

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_EVERY_FAMILY = bytes(4)  # struct rtgenmsg, padded: one byte of family, AF_UNSPEC

# The kernel fills at most 32 KiB of a reader's buffer (netlink_dump(), since Linux 4.4).
_BUFFER_BYTES = 1 << 16
_TIMEOUT_S = 5.0
_DUMP_TRIES = 10


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface. ``mac`` is empty where there is none; ``addresses`` are packed.

    ``is_bridge_port``: a bridge has what it receives, and sends by it.
    """

    index: int
    name: str
    is_up: bool
    is_loopback: bool
    mac: bytes
    addresses: frozenset[bytes]
    is_bridge_port: bool


def list_interfaces() -> list[Interface]:
    """Every interface of this network namespace, by index.

    Raises ``CaptureError`` if the kernel does not answer, or what it says cannot be understood.
    """
    try:
        links, addresses = _dump(_RTM_GETLINK), _dump(_RTM_GETADDR)
        owned = _owned(addresses)
        found = [_interface(body, owned) for kind, body in links if kind == _RTM_NEWLINK]
    except (OSError, ValueError, struct.error) as error:
        raise CaptureError(f"cannot list network interfaces by rtnetlink: {error}") from error
    return sorted(found, key=lambda interface: interface.index)


def default_interfaces() -> list[Interface]:
    """What to capture on when nobody says: up, and with an address of this host, or loopback.

    Ports of a bridge or a bond, and the host's ends of containers, have no address, or only a
    link-local one: their traffic is either not this host's or seen on the interface above. Raises
    ``CaptureError``.
    """
    return [
        interface
        for interface in list_interfaces()
        if interface.is_up
        and not interface.is_bridge_port
        and (interface.addresses or interface.is_loopback)
    ]


def local_addresses() -> frozenset[bytes]:
    """Every address of this network namespace, packed.

    Linux answers on any interface for all of them (weak host model, RFC 1122 section 3.3.4.2), so
    direction is not decided by the addresses of one interface alone. Raises ``CaptureError``.
    """
    return frozenset().union(*(interface.addresses for interface in list_interfaces()))


def captured_interface(descriptor: int) -> int:
    """The index of the interface that a packet socket is bound to, whatever is called so by now.

    Raises ``CaptureError`` if that is gone.
    """
    name = ""
    try:
        with socket.socket(fileno=os.dup(descriptor)) as packets:
            name = packets.getsockname()[0]
            request = fcntl.ioctl(packets, _SIOCGIFINDEX, _IFREQ.pack(os.fsencode(name), 0))
    except OSError as error:
        raise CaptureError(f"cannot capture on {name}: {error.strerror}") from error
    index: int = _IFREQ.unpack(request)[1]
    return index


class InterfaceWatch:
    """Tells when interfaces or addresses change. Raises ``CaptureError`` if it cannot be made."""

    def __init__(self) -> None:
        try:
            self._socket = _open(_RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR)
        except OSError as error:
            raise CaptureError(f"cannot watch network interfaces by rtnetlink: {error}") from error
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """To wait on: readable when something changed. -1 once closed."""
        return self._socket.fileno()

    def changed(self) -> bool:
        """Whether anything changed since the last call. Never blocks; False once closed."""
        changed = False
        while self._socket.fileno() >= 0:
            try:
                self._socket.recv(_BUFFER_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                # The kernel had more to tell than the socket holds: what it was is lost.
                if error.errno != errno.ENOBUFS:
                    raise CaptureError(f"cannot watch network interfaces: {error}") from error
            changed = True
        return changed

    def close(self) -> None:
        """Give the socket back; a second time is harmless."""
        self._socket.close()


def _open(groups: int) -> socket.socket:
    netlink = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_ROUTE
    )
    try:
        netlink.bind((0, groups))
    except OSError:
        netlink.close()
        raise
    return netlink


def _dump(request: int) -> list[tuple[int, bytes]]:
    """(message type, body) of each answer. Raises ``OSError``."""
    for _ in range(_DUMP_TRIES):
        with _open(0) as netlink:
            netlink.settimeout(_TIMEOUT_S)
            netlink.sendto(dump_request(request, 1, _EVERY_FAMILY), (0, 0))
            answers, consistent = _answers(netlink)
        if consistent:
            return answers
    # It changes faster than it can be read; the watch will say so again.
    return answers


def _answers(netlink: socket.socket) -> tuple[list[tuple[int, bytes]], bool]:
    answers: list[tuple[int, bytes]] = []
    consistent = True
    while True:
        data, (sender, _) = netlink.recvfrom(_BUFFER_BYTES)
        if sender != 0:
            # Any process may send to a netlink socket; only the kernel's port is 0 (netlink(7)).
            continue
        for header, body in messages(data):
            consistent = consistent and not header.flags & NLM_F_DUMP_INTR
            if header.kind in (NLMSG_DONE, NLMSG_ERROR):
                number = error_number(body)
                if number:
                    raise OSError(number, os.strerror(number))
                return answers, consistent
            answers.append((header.kind, body))


def _owned(answers: Iterable[tuple[int, bytes]]) -> dict[int, set[bytes]]:
    """The addresses of each interface, by its index."""
    owned: dict[int, set[bytes]] = {}
    for kind, body in answers:
        if kind == _RTM_NEWADDR:
            index = _ADDRESS.unpack_from(body)[4]
            found = dict(attributes(body, _ADDRESS.size))
            # On a point-to-point link IFA_ADDRESS is the other end (linux/if_addr.h).
            address = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS, b"")
            if len(address) in (4, 16):
                owned.setdefault(index, set()).add(unmapped(address))
    return owned


def _interface(body: bytes, owned: Mapping[int, Iterable[bytes]]) -> Interface:
    index, flags = _LINK.unpack_from(body)[2:4]
    found = dict(attributes(body, _LINK.size))
    return Interface(
        index=index,
        name=os.fsdecode(found.get(_IFLA_IFNAME, b"").rstrip(b"\0")),
        is_up=bool(flags & _IFF_UP),
        is_loopback=bool(flags & _IFF_LOOPBACK),
        mac=found.get(_IFLA_ADDRESS, b""),
        addresses=frozenset(owned.get(index, ())),
        is_bridge_port=_slave_kind(found.get(_IFLA_LINKINFO, b"")) == b"bridge",
    )


def _slave_kind(link_info: bytes) -> bytes:
    return dict(attributes(link_info)).get(_IFLA_INFO_SLAVE_KIND, b"").rstrip(b"\0")
