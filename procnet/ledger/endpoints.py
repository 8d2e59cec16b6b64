"""Claims by endpoint."""

from __future__ import annotations

from itertools import islice

from procnet.ledger.claims import FOREVER_NS, Claim
from procnet.ledger.keys import Port
from procnet.model import FlowKey


class Endpoints(dict[FlowKey, list[Claim]]):
    """For each endpoint its claims, oldest first; none is empty. Change it by the methods here."""

    def __init__(self) -> None:
        super().__init__()
        self._ports: dict[Port, int] = {}

    def knows(self, port: Port) -> bool:
        """Is there an endpoint with that port?"""
        return port in self._ports

    def at(self, key: FlowKey) -> list[Claim]:
        """The claims there, to add one to."""
        claims = self.get(key)
        if claims is None:
            claims = self[key] = []
            port = _port(key)
            self._ports[port] = self._ports.get(port, 0) + 1
        return claims

    def remove(self, key: FlowKey, claims: list[Claim]) -> list[Claim]:
        """Takes some of its claims from an endpoint; those that stay."""
        kept = [claim for claim in self[key] if claim not in claims]
        if kept:
            self[key] = kept
            return kept
        del self[key]
        port = _port(key)
        if self._ports[port] > 1:
            self._ports[port] -= 1
        else:
            del self._ports[port]
        return kept

    def oldest(self, number: int) -> list[FlowKey]:
        """The endpoints to do without: closed ones first, then those that were claimed first."""
        if number <= 0:
            return []
        closed = (
            key
            for key, claims in self.items()
            if claims[-1].end_ns != FOREVER_NS and not any(claim.is_open for claim in claims)
        )
        first = list(islice(closed, number))
        chosen = set(first)
        rest = (key for key in self if key not in chosen)
        return first + list(islice(rest, number - len(first)))


def _port(key: FlowKey) -> Port:
    return key.netns, key.protocol, key.local_port
