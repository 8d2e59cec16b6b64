"""What every socket has moved, from the figures that the owner hooks keep on it.

Three sources (bpf/socket_counts.h): records of the sockets that changed hands or ended, rows of
those that live and have moved something, and a table of the remote ends of sockets that have
several.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from procnet.bpf.events import boot_to_wall_ns
from procnet.bpf.ring import Ring
from procnet.bpf.socket_records import (
    NOTHING,
    RECORD,
    REMOTE_KEY,
    REMOTE_VALUE,
    Clocks,
    Differences,
    Sums,
    decode_record,
    decode_remote,
    decode_rows,
    untold,
)
from procnet.errors import LoadError
from procnet.model import FlowCount

if TYPE_CHECKING:
    from procnet.bpf.libbpf import BpfObject

# libbpf.py and batches.py are imported where they are used: see core.py.

ITERATOR = "on_counters"
TABLES = ("first_remotes", "second_remotes")
MAPS = ("counters", "rests", "counts", *TABLES, "remotes")
"""What is there for those who count, and takes room."""
RECORDS_BYTES = (RECORD.size, REMOTE_KEY.size, REMOTE_VALUE.size)
"""What the object says of them in ``.rodata.counts``, after the layout."""
DRAIN_EVERY_S = 1.0
"""How often, while there is room."""
CROWD_BYTES, CROWD_REMOTES = 2 << 20, 8192
"""There is room for four and for eight times as much."""
_PAUSE_S = 0.05
READ_SHARE = 0.05
"""Reading takes at most this share of the time, however many sockets there are."""

# struct procnet_socket_news: whether sockets have moved something; how many remote ends there are
# of those that have several; packets without one; what was sent and received by sockets of whose
# end nobody could be told. Native alignment, so that struct moves a number in one piece.
_NEWS = struct.Struct("QQQQQQQQQ")
_WORD = struct.Struct("Q")
_HAS_MOVED_AT, _REMOTES_AT = 0, _WORD.size


def _read_clocks() -> Clocks:
    boot_ns = boot_to_wall_ns()
    # How long the host has slept does not change between these two.
    asleep_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.clock_gettime_ns(
        time.CLOCK_MONOTONIC
    )
    return Clocks(boot_ns, boot_ns + asleep_ns)


class SocketCounts:
    """Counts at every socket of every network namespace; drained as a ``Tap`` is.

    One thread at a time waits and drains; any may call ``wake()`` and ``close()``.
    """

    interfaces: tuple[str, ...] = ()
    """None: a socket sees no interface."""
    counts_in_kernel = True
    holds_back = False
    dropped_packets = interruptions = 0
    """No packet waits to be read, and nothing goes away that would have to be opened anew."""

    def __init__(self, bpf: BpfObject, proc_root: Path) -> None:
        """``bpf`` is loaded, and whoever has it closes this first. Raises LoadError."""
        from procnet.bpf.batches import HashMap, TwoTables

        self.unsplit_packets = 0
        """Packets of sockets with too many remote ends at once: theirs is unknown. Only grows."""
        self._bpf = bpf
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._closed = False
        self._left: list[FlowCount] = []
        self._differences = Differences()
        self._untold: Sums = NOTHING
        self._drained_s = self._due_s = 0.0
        self._untold_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        with contextlib.ExitStack() as held:
            try:
                self._ring = Ring(bpf.map_descriptor("counts"), proc_root)
                held.callback(self._ring.close)
                self._news = mmap.mmap(
                    bpf.map_descriptor(".data.news"), mmap.PAGESIZE, mmap.MAP_SHARED
                )
                held.callback(self._news.close)
            except OSError as error:
                raise LoadError(f"what sockets move cannot be mapped: {error}") from error
            first, second = (
                HashMap(bpf.map_descriptor(name), REMOTE_KEY.size, REMOTE_VALUE.size)
                for name in TABLES
            )
            self._remotes = TwoTables(bpf.map_descriptor("remotes"), (first, second))
            self._held = held.pop_all()

    def wait(self, timeout_s: float) -> None:
        """Waits: nothing comes that would have to be read at once."""
        self._woken.wait(timeout_s)
        self._woken.clear()

    def wake(self) -> None:
        """Ends a ``wait()`` in another thread, now or the next one."""
        self._woken.set()

    @property
    def is_due(self) -> bool:
        """Is it time to drain? Seldom, unless there is soon no more room for records."""
        now_s = time.monotonic()
        if now_s >= self._due_s:
            return True
        if now_s - self._drained_s < _PAUSE_S:
            return False
        with self._lock:
            if self._closed:
                return False
            remotes: int = _WORD.unpack_from(self._news, _REMOTES_AT)[0]
            return self._ring.waiting_bytes > CROWD_BYTES or remotes > CROWD_REMOTES

    def drain(self, most: int | None = None, *, surely: bool = False) -> list[FlowCount]:
        """What was counted since the last call; ``surely`` does not believe that there is nothing.

        All of it, whatever is the ``most`` that is asked for. Raises LoadError.
        """
        with self._lock:
            if self._closed:
                left, self._left = self._left, []
                return left
            started_s = time.monotonic()
            counts = list(self._read(surely))
            self._drained_s = time.monotonic()
            pause_s = (self._drained_s - started_s) * (1 / READ_SHARE - 1)
            self._due_s = self._drained_s + max(DRAIN_EVERY_S, pause_s)
            return counts

    def close(self) -> None:
        """Gives everything back; what was counted can still be drained. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                # The iterator may pass over one whose neighbour goes away at that moment, and a
                # record may not be complete yet: once more.
                self._left = [*self._read(surely=True), *self._read(surely=True)]
            finally:
                self._held.close()

    def _read(self, surely: bool) -> Iterator[FlowCount]:
        clocks = _read_clocks()
        _, _, unsplit_packets, *sums = _NEWS.unpack_from(self._news)
        rows = b""
        if self._is_news(_HAS_MOVED_AT) or surely:
            rows = self._read_rows(with_rests=unsplit_packets > 0)
        # After the rows: what has ended meanwhile is in none of them, but has a record.
        records = [*decode_rows(rows), *map(decode_record, self._ring.read())]
        yield from self._differences.take(records, clocks)
        now = cast("Sums", tuple(sums))
        since_ns, self._untold_ns = self._untold_ns, time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        yield from untold(now, self._untold, since_ns, self._untold_ns, clocks)
        self._untold = now
        if self._is_news(_REMOTES_AT) or surely:
            yield from self._of_remotes(clocks)
        self.unsplit_packets = unsplit_packets

    def _read_rows(self, *, with_rests: bool) -> bytes:
        self._differences.begin_rows(time.clock_gettime_ns(time.CLOCK_BOOTTIME))
        rows = self._bpf.run_iterator(ITERATOR, "counters")
        if with_rests:
            rows += self._bpf.run_iterator(ITERATOR, "rests")
        return rows

    def _is_news(self, at: int) -> bool:
        # Cleared before anything is read: what comes in between is told a second time.
        told: int = _WORD.unpack_from(self._news, at)[0]
        if told:
            _WORD.pack_into(self._news, at, 0)
        return bool(told)

    def _of_remotes(self, clocks: Clocks) -> Iterator[FlowCount]:
        for keys, values in self._remotes.take():
            pairs = zip(REMOTE_KEY.iter_unpack(keys), REMOTE_VALUE.iter_unpack(values), strict=True)
            for key, value in pairs:
                yield from decode_remote(key, value, clocks)
