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


# For each, oldest first: when, whether it was sent, whether anything but a SYN was seen since
# (until then, another SYN is the same one sent again), and when the last one was. One flat tuple of
# plain values, which the collector of garbage passes over.
_Opened = tuple[int, ...]
_SENT, _ANSWERED, _LAST, _SIZE = range(1, 5)


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
            if opened and not opened[_ANSWERED - _SIZE]:
                self._opened[key] = (*opened[: _ANSWERED - _SIZE], True, opened[-1])
            return
        if opened is None:
            if len(self._opened) >= self._max_flows:
                self._opened.popitem(last=False)
            opened = ()
        answered = count.packets > 1
        # A SYN of the other side is no repetition, but another connection (or both open at once).
        if not opened or opened[_ANSWERED - _SIZE] or opened[_SENT - _SIZE] != count.sent:
            opened = (*opened, count.first_ns, count.sent, answered, count.first_ns)
        else:
            opened = (*opened[: _ANSWERED - _SIZE], answered, count.first_ns)
        self._opened[key] = opened[-_SIZE * MAX_GENERATIONS :]

    def forget(self, before_ns: int) -> None:
        """Lets go of connections that were followed by another one before that moment."""
        followed = [key for key, opened in self._opened.items() if len(opened) > _SIZE]
        for key in followed:
            opened = self._opened[key]
            while len(opened) > _SIZE and opened[_SIZE] <= before_ns:
                opened = opened[_SIZE:]
            self._opened[key] = opened

    def __len__(self) -> int:
        """The connections that it knows of."""
        return sum(map(len, self._opened.values())) // _SIZE

    def interval(self, key: FlowKey, at_ns: int) -> tuple[int, int, int]:
        """(first, last) moment of the connection that the five-tuple stood for at ``at_ns``, and
        when it was asked for last; the first of these is always if nobody saw it, and so is that.
        """
        begin_ns, end_ns, asked_ns = ALWAYS_NS, FOREVER_NS, ALWAYS_NS
        opened = self._opened.get(key, ())
        for at in range(0, len(opened), _SIZE):
            if opened[at] > at_ns:
                end_ns = opened[at]
                break
            begin_ns, asked_ns = opened[at], opened[at + _LAST]
        return begin_ns, end_ns, asked_ns
