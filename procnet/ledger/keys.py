"""Which endpoint an event or a socket stands for."""

from __future__ import annotations

from procnet.model import (
    ICMP,
    ICMP6,
    IPV4_WILDCARD,
    IPV6_WILDCARD,
    TCP,
    FlowKey,
    OwnerEvent,
    Socket,
)

Port = tuple[int, int, int]
"""(netns, protocol, local port): what all endpoints that can answer for a flow have in common."""

WILDCARDS = (IPV4_WILDCARD, IPV6_WILDCARD)

# The constructor of a NamedTuple takes three times as long.
_new = tuple.__new__

_IGMP = 2
_KERNEL_ANSWERS = frozenset((ICMP, _IGMP, ICMP6))


def local_key(key: FlowKey, address: bytes) -> FlowKey:
    """The endpoint of a socket that is not connected: no remote end."""
    netns, protocol, _, port, _, _ = key
    return _new(FlowKey, (netns, protocol, address, port, b"", 0))


def key_of_event(event: OwnerEvent) -> FlowKey:
    """The tuple that an event tells of."""
    return _new(FlowKey, event[2:8])


def key_of_socket(socket: Socket) -> FlowKey | None:
    """Where a socket's claim is kept, or None if a look at it can name nobody.

    A raw socket of a protocol that the kernel itself speaks gets copies of what the kernel answers:
    that it is open does not say that its process sent or read anything.
    """
    if socket.family == 0 or (socket.protocol in _KERNEL_ANSWERS and not socket.local_port):
        return None
    if socket.protocol == TCP and socket.state != "listen" and not socket.remote_port:
        return None
    connected = bool(socket.remote_port) or socket.remote_address not in (b"", *WILDCARDS)
    return FlowKey(
        socket.netns,
        socket.protocol,
        socket.local_address,
        socket.local_port,
        socket.remote_address if connected else b"",
        socket.remote_port if connected else 0,
    )
