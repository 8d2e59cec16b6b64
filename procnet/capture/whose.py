"""Whom packets between two ends count for: the one text of these rules, for every engine."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from procnet.model import Ends, FlowKey, Reason

View = tuple[FlowKey | None, bool, Reason | None]
"""Flow, whether it sent, reason."""

Side = tuple[bool, Reason | None]
"""Whether it is the sender's, reason."""

_SENT: tuple[Side, ...] = ((True, None),)
_RECEIVED: tuple[Side, ...] = ((False, None),)
_BOTH = _SENT + _RECEIVED
_SENT_ON: tuple[Side, ...] = ((True, Reason.FORWARDED),)
_RECEIVED_FOR_OTHERS: tuple[Side, ...] = ((False, Reason.FORWARDED),)

_MULTICAST_IPV4 = range(224, 240)  # RFC 5771
_BROADCAST = b"\xff\xff\xff\xff"
_UNSPECIFIED = frozenset({bytes(4), bytes(16)})


class Whose:
    """Decides for one interface or file. The arguments are those of ``Counter``."""

    def __init__(
        self,
        netns: int,
        local_addresses: Iterable[bytes] = frozenset(),
        *,
        loopback: bool = False,
        offline: bool = False,
        max_first_senders: int = 262_144,
    ) -> None:
        self.local_addresses = frozenset(local_addresses)
        self._netns = netns
        self._loopback = loopback
        self._offline = offline
        self._max_first_senders = max_first_senders
        self._first_senders: OrderedDict[Ends, None] = OrderedDict()

    def views(self, ends: Ends, outgoing: bool) -> tuple[tuple[View, ...], bool]:
        """Whom they count for, and whether addresses alone decided it.

        ``outgoing``: it is known that this host sent them. On loopback each packet comes once, and
        is both ends'.
        """
        protocol, source, source_port, destination, destination_port = ends
        if self._loopback:
            sides, by_address = _BOTH, True
        elif self._offline and not self.local_addresses:
            sides, by_address = (_SENT if self._sent_first(ends) else _RECEIVED), True
        else:
            sides = self._sides(source, destination, outgoing)
            by_address = source in self.local_addresses or destination in self.local_addresses
        netns = self._netns
        sender = FlowKey(netns, protocol, source, source_port, destination, destination_port)
        receiver = FlowKey(netns, protocol, destination, destination_port, source, source_port)
        views = ((sender if sent else receiver, sent, reason) for sent, reason in sides)
        return tuple(views), by_address

    def sides_of_copy(self, source: bytes, destination: bytes, outgoing: bool) -> tuple[Side, ...]:
        """For which ends they count where both copies of a loopback packet come: each for one."""
        if self._loopback:
            return _SENT if outgoing else _RECEIVED
        return self._sides(source, destination, outgoing)

    def _sides(self, source: bytes, destination: bytes, outgoing: bool) -> tuple[Side, ...]:
        local = self.local_addresses
        if source in local:
            return _BOTH if destination in local else _SENT
        if destination in local:
            return _RECEIVED
        if outgoing:
            # Without an address of ours it is either passed on, or we have no address yet (DHCP)
            # or a changed one; only the first goes to another host from another host.
            own = _is_group(destination) or source in _UNSPECIFIED
            return _SENT if own else _SENT_ON
        return _RECEIVED if _is_group(destination) else _RECEIVED_FOR_OTHERS

    def _sent_first(self, ends: Ends) -> bool:
        protocol, source, source_port, destination, destination_port = ends
        known = self._first_senders
        if ends not in known:
            reverse = (protocol, destination, destination_port, source, source_port)
            if reverse in known:
                known.move_to_end(reverse)
                return False
            known[ends] = None
            if len(known) > self._max_first_senders:
                known.popitem(last=False)
        known.move_to_end(ends)
        return True


def _is_group(address: bytes) -> bool:
    """Multicast, or the limited broadcast; a subnet's own broadcast cannot be told by looking."""
    if len(address) == 4:
        return address[0] in _MULTICAST_IPV4 or address == _BROADCAST
    return address[0] == 0xFF
