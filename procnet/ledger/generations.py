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


class _Opened:
    __slots__ = ("answered", "at_ns", "sent")

    def __init__(self, at_ns: int, sent: bool) -> None:
        self.at_ns = at_ns
        self.sent = sent
        # Until anything but a SYN is seen, another SYN is the same one sent again.
        self.answered = False


class Generations:
    """When each TCP flow was opened; bounded, the least recently used flow goes first."""

    def __init__(self, max_flows: int = MAX_FLOWS) -> None:
        self._max_flows = max_flows
        self._opened: OrderedDict[FlowKey, list[_Opened]] = OrderedDict()

    def note(self, count: FlowCount) -> None:
        """Takes every run of a TCP flow, in the order in which they were captured."""
        key = count.key
        assert key is not None
        opened = self._opened.get(key)
        if opened is not None:
            self._opened.move_to_end(key)
        if not count.opens:
            if opened:
                opened[-1].answered = True
            return
        if opened is None:
            if len(self._opened) >= self._max_flows:
                self._opened.popitem(last=False)
            opened = self._opened[key] = []
        # A SYN of the other side is no repetition, but another connection (or both open at once).
        if not opened or opened[-1].answered or opened[-1].sent != count.sent:
            opened.append(_Opened(count.first_ns, count.sent))
            del opened[:-MAX_GENERATIONS]
        if count.packets > 1:
            opened[-1].answered = True

    def forget(self, before_ns: int) -> None:
        """Lets go of connections that were followed by another one before that moment."""
        for opened in self._opened.values():
            while len(opened) > 1 and opened[1].at_ns <= before_ns:
                del opened[0]

    def __len__(self) -> int:
        """The connections that it knows of."""
        return sum(map(len, self._opened.values()))

    def interval(self, key: FlowKey, at_ns: int) -> tuple[int, int]:
        """(first, last) moment of the connection that the five-tuple stood for at ``at_ns``."""
        begin_ns, end_ns = ALWAYS_NS, FOREVER_NS
        for opened in self._opened.get(key, ()):
            if opened.at_ns > at_ns:
                end_ns = opened.at_ns
                break
            begin_ns = opened.at_ns
        return begin_ns, end_ns
