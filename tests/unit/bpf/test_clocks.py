from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from procnet.bpf import clocks

SECOND_NS = 1_000_000_000


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "_known", [clocks._Offset(0, 0)])


def readings(monkeypatch: pytest.MonkeyPatch, *offsets: tuple[int, int]) -> None:
    """Each is read so often that it is the best of its time."""
    each = [clocks._Offset(*offset) for offset in offsets for _ in range(clocks._READINGS)]
    following: Iterator[clocks._Offset] = iter(each)
    monkeypatch.setattr(clocks, "_read", lambda: next(following))


def test_boot_time_becomes_the_wall_clock() -> None:
    before_ns = time.time_ns()
    converted_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + clocks.boot_to_wall_ns()
    after_ns = time.time_ns()
    assert before_ns - 1_000_000 <= converted_ns <= after_ns + 1_000_000


def test_it_is_the_same_however_badly_it_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    readings(monkeypatch, (SECOND_NS, 50), (SECOND_NS + 900, 1000), (SECOND_NS - 41, 50))
    assert [clocks.boot_to_wall_ns() for _ in range(3)] == [SECOND_NS] * 3


def test_a_better_reading_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    readings(monkeypatch, (SECOND_NS + 900, 1000), (SECOND_NS, 50))
    assert [clocks.boot_to_wall_ns() for _ in range(2)] == [SECOND_NS + 900, SECOND_NS]


@pytest.mark.parametrize("step_ns", [SECOND_NS, -SECOND_NS, 1051])
def test_a_clock_that_was_set_is_another(monkeypatch: pytest.MonkeyPatch, step_ns: int) -> None:
    readings(monkeypatch, (SECOND_NS, 50), (SECOND_NS + step_ns, 1000))
    assert [clocks.boot_to_wall_ns() for _ in range(2)] == [SECOND_NS, SECOND_NS + step_ns]
