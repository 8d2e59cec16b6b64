"""From the boot clock, which the programs stamp with, to the wall clock, which packets have."""

from __future__ import annotations

import time
from typing import NamedTuple

_READINGS = 5


class _Offset(NamedTuple):
    """What to add, and by how much it may be wrong at the most."""

    ns: int
    error_ns: int


_known = [_Offset(0, 0)]


def boot_to_wall_ns() -> int:
    """What to add to CLOCK_BOOTTIME to get the wall clock: the same until that is set.

    Both go at the same rate, however that is adjusted, and differ by another figure only after
    clock_settime(2), ADJ_SETOFFSET or a leap second (kernel/time/timekeeping.c). So the best
    reading of many is kept, and events and counts that are read at different times stay in order.
    """
    now = min((_read() for _ in range(_READINGS)), key=lambda offset: offset.error_ns)
    known = _known[0]
    was_set = abs(now.ns - known.ns) > now.error_ns + known.error_ns
    if was_set or now.error_ns < known.error_ns:
        _known[0] = known = now
    return known.ns


def _read() -> _Offset:
    before_ns = time.time_ns()
    boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    after_ns = time.time_ns()
    return _Offset((before_ns + after_ns) // 2 - boot_ns, (after_ns - before_ns + 1) // 2)
