"""When events were lost, and which claims are not sure any more because of that."""

from __future__ import annotations

from procnet.ledger.claims import ALWAYS_NS, CLOCK_SLACK_NS, FOREVER_NS, Claim, shifted
from procnet.model import FlowCount

GOING_ON_NS = 5_000_000_000
"""Losses with less than that between them are one."""


class Losses:
    """Claims of events are believed until the close, or until events are lost."""

    def __init__(self) -> None:
        self._since_ns = self.until_ns = ALWAYS_NS
        self._believed: list[Claim] = []

    def __len__(self) -> int:
        return len(self._believed)

    def believe(self, claim: Claim) -> None:
        """An event said so, and none was lost since."""
        self._believed.append(claim)

    def add(self, since_ns: int, until_ns: int) -> None:
        """Events were lost between the two: no claim of an event is sure any more after it."""
        if self.until_ns + GOING_ON_NS < since_ns:
            self._since_ns = since_ns
        self.until_ns = max(since_ns, until_ns)
        for claim in self._believed:
            claim.sure_to_ns = min(claim.sure_to_ns, max(since_ns, claim.sure_from_ns))
        self._believed = []

    def hit(self, count: FlowCount) -> bool:
        """Were events lost at the time of the run, so that a user of the socket may be missing?"""
        slack_ns = CLOCK_SLACK_NS
        began = self._since_ns - slack_ns <= count.last_ns
        return began and count.first_ns <= self.until_ns + slack_ns

    def shift(self, step_ns: int) -> None:
        """The wall clock was set by so much."""
        self._since_ns = shifted(self._since_ns, step_ns)
        self.until_ns = shifted(self.until_ns, step_ns)

    def forget(self) -> None:
        """Lets go of claims that are over."""
        self._believed = [
            claim for claim in self._believed if claim.end_ns == FOREVER_NS and not claim.forgotten
        ]
