"""Which flow a later fragment belongs to: only the first one carries the ports."""

from __future__ import annotations

from collections import OrderedDict

Datagram = tuple[bytes, bytes, int, int]
"""Source, destination, protocol and id: what the fragments of one datagram share (RFC 791)."""

Upper = tuple[int, int, int]
"""Protocol, source port and destination port of the whole datagram. With IPv6 the protocol may
differ from the fragment header's, which can name an extension header."""


class Fragments:
    """Protocol and ports of datagrams whose first fragment was seen: later ones carry no ports.

    Holds ``limit`` datagrams by (source, destination, protocol, id) and forgets the least recently
    used. A datagram is also forgotten with its last fragment, since ids are used again and bytes
    must not go to the flow that had the id before.
    """

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._datagrams: OrderedDict[Datagram, Upper] = OrderedDict()

    def __len__(self) -> int:
        return len(self._datagrams)

    def remember(self, datagram: Datagram, upper: Upper) -> None:
        """Store (protocol, source port, destination port) of a first fragment."""
        self._datagrams[datagram] = upper
        self._datagrams.move_to_end(datagram)
        if len(self._datagrams) > self._limit:
            self._datagrams.popitem(last=False)

    def recall(self, datagram: Datagram, *, last: bool) -> Upper | None:
        """What the first fragment said, or None if it was not seen; ``last`` ends the datagram."""
        upper = self._datagrams.get(datagram)
        if upper is not None:
            if last:
                del self._datagrams[datagram]
            else:
                self._datagrams.move_to_end(datagram)
        return upper
