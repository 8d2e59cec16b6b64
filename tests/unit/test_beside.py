"""What sockets have counted goes to the comparison, and so does that some of it was lost."""

from __future__ import annotations

import pytest

from procnet.beside import Beside
from procnet.errors import LoadError
from procnet.ledger.comparison import Comparison
from procnet.ledger.verdict import NO_SOCKET
from procnet.model import UDP, FlowCount, Traffic
from tests.unit.ledger.world import NETNS, T0, flow


def datagrams(number: int) -> FlowCount:
    return FlowCount("", flow(), True, number, 129 * number, 101 * number, T0, T0, False, None)


class Sockets:
    """What SocketCounts would say."""

    shows_answers = frozenset((4, 16))
    is_due = True
    holds_back = False

    def __init__(self, *drains: list[FlowCount] | None) -> None:
        self._drains = list(drains)
        self.is_closed = False

    def drain(self, *, surely: bool) -> list[FlowCount]:
        assert surely, "what an iterator has passed over is no news"
        counts = self._drains.pop(0)
        if counts is None:
            raise LoadError("no more memory")
        return counts

    def close(self) -> None:
        self.is_closed = True


def beside(sockets: Sockets) -> tuple[Beside, Comparison]:
    comparison = Comparison(NETNS)
    comparison.book(datagrams(7), NO_SOCKET, is_translated=False)
    return Beside(sockets, comparison), comparison  # type: ignore[arg-type]


def left(each: Beside, comparison: Comparison) -> tuple[int, int]:
    """Packets that no socket has, and that were not compared."""
    for _ in each.comparing():
        pass
    each.finish()
    found = comparison.since_start()
    return found.by_protocol.get(UDP, (Traffic(),))[0].packets, found.not_compared[0].packets


def test_all_drains_are_compared_and_the_last_comes_from_closing() -> None:
    sockets = Sockets([datagrams(2)], [datagrams(3)])
    each, comparison = beside(sockets)
    each.drain(now=False, last=False)
    sockets.is_due = False
    each.drain(now=False, last=False)
    assert not sockets.is_closed
    each.drain(now=False, last=True)
    assert sockets.is_closed
    assert left(each, comparison) == (2, 0)


def test_they_are_asked_out_of_turn_for_a_report() -> None:
    sockets = Sockets([datagrams(5)])
    sockets.is_due = False
    each, comparison = beside(sockets)
    each.drain(now=True, last=False)
    assert left(each, comparison) == (2, 0)


def test_after_a_drain_that_failed_nothing_of_before_is_compared() -> None:
    each, comparison = beside(Sockets(None, [datagrams(2)]))
    with pytest.raises(LoadError):
        each.drain(now=False, last=False)
    each.drain(now=False, last=False)
    assert left(each, comparison) == (0, 5)


def test_after_a_drain_that_was_no_whole_one_nothing_of_before_is_compared() -> None:
    sockets = Sockets([datagrams(2)])
    sockets.holds_back = True
    each, comparison = beside(sockets)
    each.drain(now=False, last=False)
    assert left(each, comparison) == (0, 5)
