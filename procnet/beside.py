"""Sockets that are counted beside a capture: their counts are on their way to the comparison."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from procnet.bpf.socket_counts import SocketCounts
from procnet.ledger.comparison import Comparison
from procnet.ledger.ledger import Ledger
from procnet.model import FlowCount
from procnet.witnesses import Witnesses


class _Drained(NamedTuple):
    began_ns: int
    counts: list[FlowCount] | None
    """None if some were lost on the way."""


class Beside:
    """Drained by the thread that captures, compared by the one that settles."""

    def __init__(self, sockets: SocketCounts, comparison: Comparison) -> None:
        self._sockets = sockets
        self._comparison = comparison
        self._drained: deque[_Drained] = deque()

    @classmethod
    def begin(cls, witnesses: Witnesses, ledger: Ledger) -> Beside:
        """To be called before the capture is opened. Raises LoadError."""
        sockets = witnesses.counts
        assert sockets is not None
        # What no capture has seen. What comes from here on until there is one, is too much on the
        # side of the sockets: so much less may be told.
        sockets.drain(surely=True)
        ledger.comparison = Comparison(witnesses.netns)
        return cls(sockets, ledger.comparison)

    def drain(self, *, now: bool, last: bool) -> None:
        """After a drain of the capture; ``now`` or when it is due. Raises LoadError."""
        if not (last or now or self._sockets.is_due):
            return
        began_ns = time.time_ns()
        counts: list[FlowCount] | None = None
        try:
            if last:
                self._sockets.close()
            counts = self._sockets.drain(surely=True)
        finally:
            if self._sockets.holds_back:
                self._drained.append(_Drained(began_ns, None))
            self._drained.append(_Drained(began_ns, counts))

    def comparing(self) -> Iterator[bool]:
        """Hands over what was drained, in steps; after the capture's counts of the same time."""
        for _ in range(len(self._drained)):
            began_ns, counts = self._drained.popleft()
            if counts is None:
                self._comparison.lose_track(time.time_ns())
                continue
            yield from self._comparison.taking(
                counts, began_ns, shows_answers=self._sockets.shows_answers
            )

    def finish(self) -> None:
        """All of both sides was handed over and settled."""
        self._comparison.finish()
