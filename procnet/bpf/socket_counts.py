"""What every socket has moved, from the figures that the owner hooks keep on it.

Three sources (bpf/socket_counts.h): records of the sockets that changed hands or ended, rows of
those that live and have moved something, and a table of the remote ends of sockets that have
several.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

from procnet.bpf.clocks import boot_to_wall_ns
from procnet.bpf.ring import News, Ring
from procnet.bpf.socket_records import (
    NOTHING,
    RECORD,
    REMOTE_KEY,
    REMOTE_VALUE,
    Clocks,
    Differences,
    SocketRecord,
    Sums,
    decode_records,
    decode_remote,
    untold,
)
from procnet.errors import LayoutError, LoadError
from procnet.model import MAPPED_PREFIX, TCP, FlowCount

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
"""Reading takes at most this share of a processor's time, however many sockets there are."""

# struct procnet_socket_news: whether sockets have moved something; how many remote ends there are
# of those that have several; packets without one; what was sent and received by sockets of whose
# end nobody could be told.
_HAS_MOVED, _REMOTES, _UNSPLIT, *_UNTOLD = range(9)
_PROTOCOL, _SENT_PACKETS = 6, 2  # in REMOTE_KEY and in REMOTE_VALUE


def _read_clocks() -> Clocks:
    boot_ns = boot_to_wall_ns()
    # How long the host has slept does not change between these two.
    asleep_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.clock_gettime_ns(
        time.CLOCK_MONOTONIC
    )
    return Clocks(boot_ns, boot_ns + asleep_ns)


class SocketCounts:
    """Counts at every socket that the hooks tell of; drained as a ``Tap`` is.

    One thread at a time waits and drains; any may call ``wake()`` and ``close()``.
    """

    interfaces: tuple[str, ...] = ()
    """None: a socket sees no interface."""
    counts_in_kernel = True
    dropped_packets = interruptions = 0
    """No packet waits to be read, and nothing goes away that would have to be opened anew."""

    def __init__(self, bpf: BpfObject, proc_root: Path) -> None:
        """``bpf`` is loaded, and whoever has it closes this first. Raises LoadError."""
        from procnet.bpf.batches import HashMap, TwoTables

        self.holds_back = False
        """Could the last drain not read all that there was?"""
        self.unsplit_packets = 0
        """Packets of sockets with too many remote ends at once: theirs is unknown. Only grows."""
        self.shows_answers: set[int] = set()
        """Of addresses of so many bytes the hooks are asked about SYN+ACK, as the first has shown.
        Before 6.12 not of IPv6: ip6_xmit() is given the listener, and the packet is another's."""
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
                self._news = News(bpf.map_descriptor(".data.news"))
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
            remotes = self._news.read(_REMOTES)
            return self._ring.waiting_bytes > CROWD_BYTES or remotes > CROWD_REMOTES

    def drain(self, most: int | None = None, *, surely: bool = False) -> list[FlowCount]:
        """What was counted since the last call; ``surely`` does not believe that there is nothing.

        All of it, whatever is the ``most`` that is asked for. Raises LoadError or LayoutError: what
        had been read comes with the next one, and that does not raise, or what fails for ever would
        let the rest pile up here.
        """
        with self._lock:
            if not self._closed:
                # Of the processor: to wait for one on a busy machine costs nothing.
                has_left, started_s = bool(self._left), time.thread_time()
                self.holds_back = True
                try:
                    self._read(surely=surely)
                    self.holds_back = False
                except LoadError:
                    if not has_left:
                        raise
                finally:
                    self._drained_s = time.monotonic()
                    pause_s = (time.thread_time() - started_s) * (1 / READ_SHARE - 1)
                    self._due_s = self._drained_s + max(DRAIN_EVERY_S, pause_s)
            left, self._left = self._left, []
            return left

    def close(self) -> None:
        """Gives everything back; what was counted can still be drained. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            # Twice, whatever becomes of the first time: the iterator may pass over one whose
            # neighbour goes away at that moment, and a record may not be complete yet.
            for _ in range(2):
                self._held.callback(self._read, surely=True)
            self._held.close()

    def _read(self, *, surely: bool) -> None:
        """Adds what is new to what is left to be drained."""
        clocks = _read_clocks()
        try:
            self._read_figures(clocks, surely=surely)
            self._read_untold(clocks)
            if self._news.take(_REMOTES) or surely:
                self._read_remotes(clocks)
        except BaseException:
            # What was read is kept, and what was not is news the next time.
            self._news.put_back(_HAS_MOVED, _REMOTES)
            raise

    def _read_figures(self, clocks: Clocks, *, surely: bool) -> None:
        raw: list[bytes] = []
        began_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        try:
            self.unsplit_packets = self._news.read(_UNSPLIT)
            if is_news := self._news.take(_HAS_MOVED) or surely:
                for name in ("counters", "rests") if self.unsplit_packets else ("counters",):
                    for rows in self._bpf.run_iterator(ITERATOR, name):
                        raw.append(rows)
            # After the rows: what has ended meanwhile is in none of them, but has a record.
            raw += self._ring.read()
            if is_news:
                self._differences.begin_rows(began_ns)
        finally:
            # In any case: the kernel takes what is in a row for told.
            self._take(raw, clocks)

    def _take(self, raw: list[bytes], clocks: Clocks) -> None:
        records: list[SocketRecord] = []
        odd: LayoutError | None = None
        for each in raw:
            try:
                records += decode_records(each)
            except LayoutError as error:
                odd = error
        self._left += self._differences.take(records, clocks)
        if odd is not None:
            raise odd

    def _read_untold(self, clocks: Clocks) -> None:
        sums = cast("Sums", tuple(map(self._news.read, _UNTOLD)))
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._left += untold(sums, self._untold, self._untold_ns, now_ns, clocks)
        self._untold, self._untold_ns = sums, now_ns

    def _read_remotes(self, clocks: Clocks) -> None:
        for keys, values in self._remotes.take():
            pairs = zip(REMOTE_KEY.iter_unpack(keys), REMOTE_VALUE.iter_unpack(values), strict=True)
            for key, value in pairs:
                # Only what listens has remote ends here and sends TCP.
                if key[_PROTOCOL] == TCP and value[_SENT_PACKETS]:
                    self.shows_answers.add(4 if key[0] == MAPPED_PREFIX else 16)
                self._left += decode_remote(key, value, clocks)
