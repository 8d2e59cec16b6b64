"""Which network namespaces there are, and which addresses are theirs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from procnet.ledger.claims import shifted
from procnet.ledger.keys import WILDCARDS
from procnet.model import OwnerEvent, SocketScan

_REMEMBER_NS = 300_000_000_000
"""How long one of which nothing is heard any more may still be asked for."""


class Namespaces:
    """Those that events and looks have told of. There may be hundreds, and one has the address."""

    def __init__(self) -> None:
        self._heard_ns: dict[int, int] = {}
        self._addresses: Mapping[int, frozenset[bytes]] = {}
        self._homes: dict[bytes, set[int]] = {}
        # Those that may have more addresses than we know.
        self._unsure: set[int] = set()

    def hear(self, events: Iterable[OwnerEvent]) -> None:
        """Takes what was told of any namespace."""
        for event in events:
            self._heard_ns[event.netns] = event.time_ns
            address = event.local_address
            if address not in self._addresses.get(event.netns, ()) and address not in WILDCARDS:
                self._unsure.add(event.netns)

    def look(self, scan: SocketScan) -> None:
        """Takes a look at the sockets of any namespace."""
        seen = {socket.netns for socket in scan.sockets}
        self._unsure |= seen - self._heard_ns.keys() - self._addresses.keys()
        self._heard_ns.update(dict.fromkeys(seen, scan.started_ns))
        late = [n for n, at in self._heard_ns.items() if at < scan.started_ns - _REMEMBER_NS]
        for netns in late:
            del self._heard_ns[netns]
            self._unsure.discard(netns)

    def know(self, addresses: Mapping[int, frozenset[bytes]]) -> None:
        """Takes the addresses of each, as far as somebody could tell them."""
        self._unsure -= {n for n, own in addresses.items() if own != self._addresses.get(n)}
        # One without a process shows none any more; what its connections end with comes later.
        kept = {n: own for n, own in self._addresses.items() if n in self._heard_ns}
        self._addresses = {**kept, **addresses}
        self._homes = {}
        for netns, own in self._addresses.items():
            for address in own:
                self._homes.setdefault(address, set()).add(netns)

    def homes(self, address: bytes) -> set[int]:
        """Those that are known to have the address."""
        return self._homes.get(address, set())

    def that_may_have(self, address: bytes) -> set[int]:
        """Those, and the others of which not all addresses are known."""
        return self.homes(address) | self._unsure

    def shift(self, step_ns: int) -> None:
        """The wall clock was set by so much."""
        for netns, at_ns in self._heard_ns.items():
            self._heard_ns[netns] = shifted(at_ns, step_ns)
