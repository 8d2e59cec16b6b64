"""Whom packets between two ends count for: the one text of these rules, for every engine."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from procnet.model import Ends, FlowKey, Reason

View = tuple[FlowKey | None, bool, Reason | None]
"""Flow, whether it sent, reason."""

_MULTICAST_IPV4 = range(224, 240)  # RFC 5771
_BROADCAST = b"\xff\xff\xff\xff"
_UNSPECIFIED = frozenset({bytes(4), bytes(16)})
# The constructor of a NamedTuple takes three times as long.
_new = tuple.__new__


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
        netns = self._netns
        sender: FlowKey = _new(
            FlowKey, (netns, protocol, source, source_port, destination, destination_port)
        )
        receiver: FlowKey = _new(
            FlowKey, (netns, protocol, destination, destination_port, source, source_port)
        )
        sent: View = (sender, True, None)
        received: View = (receiver, False, None)
        if self._loopback:
            return (sent, received), True
        local = self.local_addresses
        if self._offline and not local:
            return ((sent if self._sent_first(ends) else received),), True
        local_ends = []
        if source in local:
            local_ends.append(sent)
        if destination in local:
            local_ends.append(received)
        if local_ends:
            return tuple(local_ends), True
        if outgoing:
            # Without an address of ours it is either passed on, or we have no address yet (DHCP)
            # or a changed one; only the first goes to another host from another host.
            if _is_group(destination) or source in _UNSPECIFIED:
                return (sent,), False
            return ((sender, True, Reason.FORWARDED),), False
        if _is_group(destination):
            return (received,), False
        return ((receiver, False, Reason.FORWARDED),), False

    def views_of_copy(self, ends: Ends, outgoing: bool) -> tuple[View, ...]:
        """The same where both copies of a loopback packet come: each is of one end."""
        views, _ = self.views(ends, outgoing)
        if self._loopback:
            return views[:1] if outgoing else views[1:]
        return views

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
