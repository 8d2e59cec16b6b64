"""Claims by endpoint."""

from __future__ import annotations

from itertools import islice

from procnet.ledger.claims import Claim, grace_ns, somebody
from procnet.ledger.keys import Port
from procnet.model import TCP, UDP, FlowKey

MAX_CLAIMS = 256
"""Claims of one endpoint. Who take turns on a socket make a claim with each turn, and each is kept
as long as late packets may ask for it."""


LAG_NS = 2_000_000_000
"""Counts come up to a second after their packets."""


class Endpoints(dict[FlowKey, list[Claim]]):
    """For each endpoint its claims, oldest first; none is empty. Change it by the methods here."""

    def __init__(self) -> None:
        super().__init__()
        self.ports: dict[Port, int] = {}
        """How many endpoints there are with each port."""

    def at(self, key: FlowKey) -> list[Claim]:
        """The claims there, to add one to."""
        claims = self.get(key)
        if claims is None:
            claims = self[key] = []
            port = _port(key)
            self.ports[port] = self.ports.get(port, 0) + 1
        return claims

    def doubt(self, key: FlowKey, inode: int, begin_ns: int, end_ns: int) -> None:
        """Who used the socket then, nobody saw."""
        self.at(key).append(somebody(key, inode, begin_ns, end_ns))

    def remove(self, key: FlowKey, claims: list[Claim]) -> list[Claim]:
        """Takes some of its claims from an endpoint; those that stay."""
        kept = [claim for claim in self[key] if claim not in claims]
        if kept:
            self[key] = kept
            return kept
        del self[key]
        port = _port(key)
        if self.ports[port] > 1:
            self.ports[port] -= 1
        else:
            del self.ports[port]
        return kept

    def late(self, now_ns: int) -> list[tuple[FlowKey, list[Claim]]]:
        """Claims that ended so long ago that they answer for no packet any more, by endpoint."""
        tcp_ns, other_ns = (now_ns - LAG_NS - grace_ns(protocol) for protocol in (TCP, UDP))
        found = []
        for key, claims in self.items():
            before_ns = tcp_ns if key.protocol == TCP else other_ns
            # Most endpoints have one claim, and there are a hundred thousand.
            if claims[0].end_ns < before_ns or len(claims) > 1:
                old = [claim for claim in claims if claim.end_ns < before_ns]
                if old:
                    found.append((key, old))
        return found

    def surplus(self, key: FlowKey) -> list[Claim]:
        """Closed claims of an endpoint that has too many, oldest first: all but the newest half.

        They are of one kind, and none or at least two.
        """
        claims = self[key]
        if len(claims) <= MAX_CLAIMS:
            return []
        closed = [claim for claim in claims if not claim.is_open]
        injects = closed[0].injects if closed else False
        found = [claim for claim in closed[: -MAX_CLAIMS // 2] if claim.injects is injects]
        return found if len(found) > 1 else []

    def oldest(self, max_endpoints: int, max_closed: int, before_ns: int) -> list[FlowKey]:
        """The endpoints to do without: first those that were closed by ``before_ns``, of which
        nothing is waited for, then those that were claimed first."""
        if len(self) <= min(max_endpoints, max_closed):
            return []
        closed = [
            key
            for key, claims in self.items()
            if claims[-1].end_ns <= before_ns and not any(claim.is_open for claim in claims)
        ]
        first = closed[: max(len(self) - max_endpoints, len(closed) - max_closed, 0)]
        chosen = set(first)
        rest = (key for key in self if key not in chosen)
        return first + list(islice(rest, max(0, len(self) - len(first) - max_endpoints)))


def _port(key: FlowKey) -> Port:
    return key.netns, key.protocol, key.local_port
