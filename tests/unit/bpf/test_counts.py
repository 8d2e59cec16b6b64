"""What the kernel has counted and the kernel does not let us read, this once."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator

import pytest

from procnet.bpf import batches
from procnet.bpf.counts import _COUNT, _KEY, _OVERFLOW_KEY, KernelCounts, _Loaded
from procnet.errors import LoadError
from procnet.model import CountedEnds
from tests.unit.bpf.fakes import fake_news

FLOWS, BATCH = 23, 13


class Table:
    """Its entries in batches; ``refuses`` says how many of them come before an error."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.entries: list[tuple[bytes, bytes]] = []
        self.refuses: int | None = None

    def count(self, flows: range) -> None:
        for number in flows:
            source = number.to_bytes(12, "little")
            key = _KEY.pack(source, bytes(4), bytes(12), bytes(4), 1, 2, 17, False, 1)
            self.entries.append((key, _COUNT.pack(1, 129, 101, 5, 5, False)))

    def take(self) -> Iterator[tuple[memoryview, memoryview]]:
        while True:
            if self.refuses is not None:
                self.refuses -= 1
                if self.refuses < 0:
                    self.refuses = None
                    raise LoadError(os.strerror(errno.ENOMEM))
            if not self.entries:
                return
            batch, self.entries = self.entries[:BATCH], self.entries[BATCH:]
            keys, values = (memoryview(b"".join(part)) for part in zip(*batch, strict=True))
            yield keys, values

    read = take


def open_counts(monkeypatch: pytest.MonkeyPatch) -> tuple[KernelCounts, Table, Table, Table]:
    """With its tables: the first, the second, and that of what found them full."""
    monkeypatch.setattr(batches, "put_map", lambda *_: None)
    first, second, overflow = (Table(number) for number in range(3))
    tables = batches.TwoTables(0, (first, second))  # type: ignore[arg-type]
    loaded = _Loaded(None, 0, tables, overflow, fake_news())  # type: ignore[arg-type]
    return KernelCounts(loaded, contextlib.ExitStack()), first, second, overflow


@pytest.mark.parametrize("batches_before", [0, 1])
def test_a_drain_that_fails_half_way_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, batches_before: int
) -> None:
    counts, first, second, overflow = open_counts(monkeypatch)
    first.count(range(FLOWS))
    first.refuses = batches_before
    with pytest.raises(LoadError):
        counts.drain(surely=True)
    # The program has counted on in the other one.
    second.count(range(FLOWS, 2 * FLOWS))
    overflow.refuses = 0
    with pytest.raises(LoadError):
        counts.drain(surely=True)
    drained = counts.drain().batches
    found = [ends for _, batch in drained for ends, _ in batch]
    assert len(set(found)) == len(found) == sum(number for number, _ in drained) == 2 * FLOWS
    assert counts.drain(surely=True).batches == []


def test_what_fails_for_ever_keeps_nothing_else_back(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, first, second, overflow = open_counts(monkeypatch)
    tables = itertools.cycle((first, second))
    found: set[CountedEnds] = set()
    for drain in range(0, 2 * FLOWS, 2):
        for number in (drain, drain + 1):
            next(tables).count(range(number * FLOWS, (number + 1) * FLOWS))
            overflow.refuses = 0
            if number == drain:
                with pytest.raises(LoadError):
                    counts.drain(surely=True)
        handed_over = counts.drain()
        assert counts.holds_back
        found.update(ends for _, batch in handed_over.batches for ends, _ in batch)
        assert len(found) == (drain + 2) * FLOWS
    with pytest.raises(LoadError):
        overflow.refuses = 0
        counts.drain(surely=True)
    assert counts.drain().batches == []
    assert not counts.holds_back


def test_a_sure_drain_that_fails_says_so_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, first, _, overflow = open_counts(monkeypatch)
    first.count(range(FLOWS))
    for _ in range(3):
        overflow.refuses = 0
        with pytest.raises(LoadError):
            counts.drain(surely=True)
    counts.close()
    ((number, _), *_), boot_ns = (drained := counts.drain()).batches, drained.boot_ns
    assert number == BATCH and boot_ns > 0


def test_what_found_the_table_full_is_not_younger_than_the_last_reading_to_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts, _, _, overflow = open_counts(monkeypatch)
    opened_ns = counts._overflow_read_ns
    overflow.refuses = 0
    with pytest.raises(LoadError):
        counts.drain(surely=True)
    overflow.entries = [(_OVERFLOW_KEY.pack(3, 1), _COUNT.pack(2, 202, 101, 5, 5, False))]
    ((index, outgoing, (packets, *_, first_ns, _, _)),) = counts.drain().evicted
    assert (index, outgoing, packets, first_ns) == (3, True, 2, opened_ns)
