"""Five-tuples that are used again and again: what is kept is what can still be asked for."""

from __future__ import annotations

from procnet.ledger.claims import ALWAYS_NS, FOREVER_NS
from procnet.ledger.generations import Generations
from procnet.model import TCP, FlowCount
from tests.unit.ledger.world import MS, T0, World, flow

KEY = flow(TCP)
CONNECTIONS = 61
"""Fewer than are kept of one five-tuple in any case."""
APART_MS = 7000


def opened(at_ns: int) -> FlowCount:
    return FlowCount("lo", KEY, True, 3, 120, 0, at_ns, at_ns, True, None)


def test_connections_that_nobody_asks_for_any_more_are_forgotten() -> None:
    world = World()
    for number in range(CONNECTIONS):
        at_ms = number * APART_MS
        world.packets(at_ms, KEY, number=3, opens=True)
        world.settle(at_ms + 6000)
    assert len(world.ledger._generations) <= 3


def test_the_connection_of_a_moment_is_the_same_after_older_ones_are_forgotten() -> None:
    generations = Generations()
    for number in range(5):
        generations.note(opened(T0 + number * MS))
    generations.forget(T0 + 2 * MS)
    assert len(generations) == 3
    assert generations.interval(KEY, T0 + 2 * MS)[:2] == (T0 + 2 * MS, T0 + 3 * MS)
    assert generations.interval(KEY, T0 + 9 * MS)[:2] == (T0 + 4 * MS, FOREVER_NS)
    generations.forget(FOREVER_NS)
    assert len(generations) == 1
    assert generations.interval(KEY, T0 + 9 * MS)[:2] == (T0 + 4 * MS, FOREVER_NS)
    assert generations.interval(KEY, T0)[:2] == (ALWAYS_NS, T0 + 4 * MS)
