"""Which connection a TCP packet is of, where a five-tuple is used again and again.

A SYN begins a new generation: whoever was seen with the five-tuple only before it does not own
what comes after it, and the other way round.
"""

from __future__ import annotations

from collections import OrderedDict

from procnet.ledger.claims import ALWAYS_NS, FOREVER_NS
from procnet.model import FlowCount, FlowKey

MAX_FLOWS = 65_536
MAX_GENERATIONS = 64


# For each, oldest first: when, whether it was sent, and whether anything but a SYN was seen since
# (until then, another SYN is the same one sent again). One flat tuple of plain values, which the
# collector of garbage passes over.
_Opened = tuple[int, ...]


class Generations:
    """When each TCP flow was opened; bounded, the least recently used flow goes first."""

    def __init__(self, max_flows: int = MAX_FLOWS) -> None:
        self._max_flows = max_flows
        self._opened: OrderedDict[FlowKey, _Opened] = OrderedDict()

    def note(self, count: FlowCount) -> None:
        """Takes every run of a TCP flow, in the order in which they were captured."""
        key = count.key
        assert key is not None
        opened = self._opened.get(key)
        if opened is not None:
            self._opened.move_to_end(key)
        if not count.opens:
            if opened and not opened[-1]:
                self._opened[key] = (*opened[:-1], True)
            return
        if opened is None:
            if len(self._opened) >= self._max_flows:
                self._opened.popitem(last=False)
            opened = ()
        answered = count.packets > 1
        # A SYN of the other side is no repetition, but another connection (or both open at once).
        if not opened or opened[-1] or opened[-2] != count.sent:
            opened = (*opened, count.first_ns, count.sent, answered)
        elif answered:
            opened = (*opened[:-1], True)
        self._opened[key] = opened[-3 * MAX_GENERATIONS :]

    def forget(self, before_ns: int) -> None:
        """Lets go of connections that were followed by another one before that moment."""
        followed = [key for key, opened in self._opened.items() if len(opened) > 3]
        for key in followed:
            opened = self._opened[key]
            while len(opened) > 3 and opened[3] <= before_ns:
                opened = opened[3:]
            self._opened[key] = opened

    def __len__(self) -> int:
        """The connections that it knows of."""
        return sum(map(len, self._opened.values())) // 3

    def interval(self, key: FlowKey, at_ns: int) -> tuple[int, int]:
        """(first, last) moment of the connection that the five-tuple stood for at ``at_ns``."""
        begin_ns, end_ns = ALWAYS_NS, FOREVER_NS
        for opened_ns in self._opened.get(key, ())[::3]:
            if opened_ns > at_ns:
                end_ns = opened_ns
                break
            begin_ns = opened_ns
        return begin_ns, end_ns
