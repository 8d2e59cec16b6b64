"""The counting program: attached to capture handles, and what it has counted.

There are two tables. The program writes to one; a drain puts the other, empty one into its place,
waits until no program is in the first any more, and empties that.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from procnet import features
from procnet.bpf import layout
from procnet.bpf.clocks import boot_to_wall_ns
from procnet.bpf.core_host import demanded, find_obstacle
from procnet.bpf.host import Host, promised
from procnet.bpf.ring import News
from procnet.errors import AccessError, LoadError, UnsupportedError
from procnet.model import Counted, CountedEnds, CountedSums, Feature

if TYPE_CHECKING:
    from procnet.bpf.batches import HashMap, TwoTables
    from procnet.bpf.libbpf import BpfObject

# libbpf.py and batches.py are imported where they are used: see core.py.

OBJECT = Path(__file__).with_name("count.bpf.o")
"""What setup.py compiles from bpf/count.bpf.c."""

_NAME = "kernel counting"
_PROGRAM = "on_packet"
_TABLES = ("first_table", "second_table")
# struct procnet_count_key, as CountedEnds. Its CPU and its turn only tell entries apart: who is in
# two of them has two runs.
_KEY = struct.Struct("12s4s12s4sHHB?6xI")
# struct procnet_count, as CountedSums. Both aligned: struct moves a number in one piece.
_COUNT = struct.Struct("5Q?7x")
_OVERFLOW_KEY = struct.Struct("II")
_ENTRIES, _OVERFLOW = 0, 1  # what there may be news of
_SO_ATTACH_BPF = 50  # include/uapi/asm-generic/socket.h
_FEATURE = features.yes(_NAME, "the program could be attached to a packet socket")


class _Loaded(NamedTuple):
    bpf: BpfObject
    program: int
    tables: TwoTables
    overflow: HashMap
    news: News


class KernelCounts:
    """Counts in the kernel what the handles that it is attached to would be given.

    A handle still gets what the program cannot read (damage, fragments, what is no IP): its reader
    counts that. One thread at a time drains it; any may close it.
    """

    def __init__(self, loaded: _Loaded, held: contextlib.ExitStack) -> None:
        """Use open()."""
        self.holds_back = False
        """Could the last drain not read all that there was?"""
        self._program = loaded.program
        self._tables = loaded.tables
        self._overflow = loaded.overflow
        self._news = loaded.news
        self._held = held
        self._lock = threading.Lock()
        self._closed = False
        # What was read and not handed over, where a drain was broken off.
        self._entries: list[tuple[bytes, bytes]] = []
        self._evicted: list[tuple[int, bool, CountedSums]] = []
        self._overflowed: dict[tuple[int, int], tuple[int, ...]] = {}
        self._overflow_read_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    @classmethod
    def open(
        cls,
        turns_descriptor: int | None = None,
        *,
        entries: int | None = None,
        host: Host | None = None,
        image: Path = OBJECT,
    ) -> KernelCounts:
        """Load it; it counts nothing yet.

        ``turns_descriptor``: the map that tells when an owner may have changed (bpf/turns.h), or
        None for one of its own, in which nobody does. ``entries``: another size of the table that
        is filled between two drains than 65,536. Raises UnsupportedError, AccessError or LoadError:
        what is missing and what to do.
        """
        host = host or Host()
        with contextlib.ExitStack() as held, demanded(_NAME, host, image):
            loaded = _load(image.read_bytes(), turns_descriptor, entries, held)
            return cls(loaded, held.pop_all())

    def attach(self, descriptor: int) -> None:
        """Counts the packets of a packet socket from now on. Until that is closed, also without us.

        What had come before is still there to be read. Raises LoadError.
        """
        with socket.socket(fileno=os.dup(descriptor)) as packets:
            try:
                packets.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_BPF, self._program)
            except OSError as error:
                raise LoadError(f"{_NAME}: cannot be attached: {error.strerror}") from error

    def drain(self, *, surely: bool = False) -> Counted:
        """What was counted since the last call: an entry for each flow, direction, turn and CPU.

        Costs nothing where nothing was. ``surely`` does not believe in that: for the last drain of
        a socket. Otherwise a count may, rarely, come with the next one that something else causes.

        Raises LoadError: what had been read comes with the next one, and that does not raise, but
        if it is a sure one, or what fails for ever would let the rest pile up here.
        """
        with self._lock:
            if not self._closed:
                has_left = bool(self._entries or self._evicted)
                self.holds_back = True
                try:
                    self._read(surely=surely)
                    self.holds_back = False
                except LoadError:
                    if surely or not has_left:
                        raise
            entries, self._entries = self._entries, []
            evicted, self._evicted = self._evicted, []
        boot_ns = boot_to_wall_ns() if entries or evicted else 0
        return Counted(boot_ns, [_unpack(*batch) for batch in entries], evicted)

    @property
    def waiting_entries(self) -> int:
        """How many there are to drain, about. Asking costs next to nothing."""
        with self._lock:
            return 0 if self._closed else self._news.read(_ENTRIES)

    def feature(self) -> Feature:
        """That it works, and how we know."""
        return _FEATURE

    def close(self) -> None:
        """Gives everything back; what was not drained is lost. Idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._held.close()

    def _read(self, *, surely: bool) -> None:
        try:
            if self._news.take(_ENTRIES) or surely:
                self._take()
            if self._news.take(_OVERFLOW) or surely:
                self._take_overflow()
        except BaseException:
            # What was read is kept, and what was not is news the next time.
            self._news.put_back(_ENTRIES, _OVERFLOW)
            raise

    def _take(self) -> None:
        for keys, values in self._tables.take():
            self._entries.append((bytes(keys), bytes(values)))

    def _take_overflow(self) -> None:
        # Written while it is read, so it only grows: the difference is what is new.
        since_ns, began_ns = self._overflow_read_ns, time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for keys, values in self._overflow.read():
            counts = list(_COUNT.iter_unpack(values))
            cpus = len(counts) // (len(keys) // _OVERFLOW_KEY.size)
            for number, key in enumerate(_OVERFLOW_KEY.iter_unpack(keys)):
                of_cpus = cast("list[CountedSums]", counts[number * cpus : (number + 1) * cpus])
                now = tuple(sum(sums[i] for sums in of_cpus) for i in range(3))
                before = self._overflowed.get(key, (0, 0, 0))
                self._overflowed[key] = now
                packets, wire, payload = (now[i] - before[i] for i in range(3))
                if packets or wire or payload:
                    index, outgoing = key
                    last_ns = max(since_ns, *(sums[4] for sums in of_cpus))
                    sums = (packets, wire, payload, since_ns, last_ns, False)
                    self._evicted.append((index, outgoing != 0, sums))
        self._overflow_read_ns = began_ns


def _unpack(keys: bytes, values: bytes) -> tuple[int, Iterable[tuple[CountedEnds, CountedSums]]]:
    pairs = zip(_KEY.iter_unpack(keys), _COUNT.iter_unpack(values), strict=True)
    return len(keys) // _KEY.size, cast("Iterable[tuple[CountedEnds, CountedSums]]", pairs)


def _load(
    image: bytes, turns_descriptor: int | None, entries: int | None, held: contextlib.ExitStack
) -> _Loaded:
    from procnet.bpf.batches import HashMap, TwoTables
    from procnet.bpf.libbpf import BpfObject

    bpf = BpfObject(image)
    held.callback(bpf.close)
    contract = bpf.initial_value(".rodata.contract")
    layout.check_contract(OBJECT.name, contract, (_KEY.size, _COUNT.size))
    if turns_descriptor is not None:
        bpf.reuse_map("turns", turns_descriptor)
    if entries is not None:
        for name in _TABLES:
            bpf.resize(name, entries)
    bpf.load()
    first, second = (HashMap(bpf.map_descriptor(name), _KEY.size, _COUNT.size) for name in _TABLES)
    overflow = HashMap(
        bpf.map_descriptor("overflow"), _OVERFLOW_KEY.size, _COUNT.size, per_cpu=True
    )
    try:
        news = News(bpf.map_descriptor("news"))
    except OSError as error:
        raise LoadError(f"a map of the BPF program cannot be mapped: {error}") from error
    held.callback(news.close)
    tables = TwoTables(bpf.map_descriptor("counting"), (first, second))
    return _Loaded(bpf, bpf.program_descriptor(_PROGRAM), tables, overflow, news)


def probe(host: Host | None = None, image: Path = OBJECT) -> Feature:
    """Whether this host can count in the kernel: by loading it and attaching it to a socket."""
    host = host or Host()
    obstacle = find_obstacle(host, image)
    if obstacle is not None:
        return obstacle.as_feature(_NAME)
    try:
        # Protocol 0: it receives nothing.
        packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    except OSError as error:
        return features.no(_NAME, f"a packet socket cannot be opened: {error.strerror}")
    with packets:
        try:
            counts = KernelCounts.open(host=host, image=image)
        except (UnsupportedError, AccessError) as error:
            return features.no(_NAME, str(error))
        try:
            counts.attach(packets.fileno())
        except LoadError as error:
            return features.no(_NAME, str(error))
        finally:
            counts.close()
    return _FEATURE


def promise(host: Host | None = None, image: Path = OBJECT) -> Feature:
    """The same by looking alone: no, or worth a try."""
    return promised(_NAME, find_obstacle(host or Host(), image))
