"""The counting program: attached to capture handles, and what it has counted.

There are two tables. The program writes to one; a drain puts the other, empty one into its place,
waits until no program is in the first any more, and empties that. So nothing is read while it is
written, and nothing is counted twice or not at all.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import mmap
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from procnet import features
from procnet.bpf import layout
from procnet.bpf.core_host import demanded, find_obstacle
from procnet.bpf.events import boot_to_wall_ns
from procnet.bpf.host import Host, promised
from procnet.errors import AccessError, LoadError, UnsupportedError
from procnet.model import Counted, Ends, Feature, unmapped

if TYPE_CHECKING:
    from procnet.bpf.batches import HashMap
    from procnet.bpf.libbpf import BpfObject

# libbpf.py and batches.py are imported where they are used: see core.py.

OBJECT = Path(__file__).with_name("count.bpf.o")
"""What setup.py compiles from bpf/count.bpf.c."""

_NAME = "kernel counting"
_PROGRAM = "on_packet"
_TABLES = ("first_table", "second_table")
# struct procnet_count_key: addresses, ports, protocol and whether it is outgoing in one piece, the
# CPU, of which there is no need, turn, interface. And its first piece.
_KEY = struct.Struct("=38s2xII")
_ENDS = struct.Struct("=16s16sHHB?")
# struct procnet_count: packets, wire bytes, payload bytes, first and last time, opens.
_COUNT = struct.Struct("=QQQQQQ")
_OVERFLOW_KEY = struct.Struct("=II")
# Native alignment, so that struct moves a number in one piece.
_FLAG = struct.Struct("Q")
_COUNTED_AT, _OVERFLOW_AT = 0, _FLAG.size
_SO_ATTACH_BPF = 50  # include/uapi/asm-generic/socket.h
_KNOWN_ENDS = 1 << 17
_FEATURE = features.yes(_NAME, "the program could be attached to a packet socket")
_NOTHING = (0, 0, 0, 0, 0, 0)
# The constructor of a NamedTuple takes three times as long.
_new = tuple.__new__

# Key and sums of an entry, as they come out of the two structures.
_Key = tuple[bytes, int, int]
_Sums = tuple[int, int, int, int, int, int]


class _Loaded(NamedTuple):
    bpf: BpfObject
    program: int
    counting: int
    tables: tuple[HashMap, HashMap]
    overflow: HashMap
    news: mmap.mmap


class KernelCounts:
    """Counts in the kernel what the handles that it is attached to would be given.

    A handle still gets what the program cannot read (damage, fragments, what is no IP): its reader
    counts that. One thread at a time drains it; any may close it.
    """

    def __init__(self, loaded: _Loaded, held: contextlib.ExitStack) -> None:
        """Use open()."""
        self._program = loaded.program
        self._counting = loaded.counting
        self._written, self._empty = loaded.tables
        self._overflow = loaded.overflow
        self._news = loaded.news
        self._held = held
        self._lock = threading.Lock()
        self._closed = False
        self._overflowed: dict[tuple[int, int], _Sums] = {}
        self._overflow_read_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._ends: dict[bytes, tuple[Ends, bool]] = {}

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

    def drain(self, *, surely: bool = False) -> Iterator[Counted]:
        """What was counted since the last call, one row for each flow, direction and turn.

        Costs nothing where nothing was. ``surely`` does not believe in that: for the last drain of
        a socket. Otherwise a count may, rarely, come with the next one that something else causes.
        """
        rows: list[Iterator[Counted]] = []
        with self._lock:
            if self._closed:
                return iter(())
            if self._is_news(_COUNTED_AT) or surely:
                rows.append(self._rows(self._take(), boot_to_wall_ns()))
            if self._is_news(_OVERFLOW_AT) or surely:
                rows.append(iter(self._overflow_rows(boot_to_wall_ns())))
        return itertools.chain(*rows)

    def feature(self) -> Feature:
        """That it works, and how we know."""
        return _FEATURE

    def close(self) -> None:
        """Gives everything back; what was not drained is lost. Idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._held.close()

    def _is_news(self, at: int) -> bool:
        # Cleared before the tables change places: what comes in between is told a second time.
        told: int = _FLAG.unpack_from(self._news, at)[0]
        if told:
            _FLAG.pack_into(self._news, at, 0)
        return bool(told)

    def _take(self) -> dict[_Key, _Sums]:
        """The table's entries, the CPUs added up; the table is empty then."""
        from procnet.bpf.batches import put_map

        put_map(self._counting, 0, self._empty.descriptor)
        self._written, self._empty = self._empty, self._written
        entries: dict[_Key, _Sums] = {}
        for keys, values in self._empty.take():
            pairs = zip(_KEY.iter_unpack(keys), _COUNT.iter_unpack(values), strict=True)
            for key, sums in cast("Iterator[tuple[_Key, _Sums]]", pairs):
                other = entries.get(key)
                entries[key] = sums if other is None else _sum(sums, other)
        return entries

    def _rows(self, entries: dict[_Key, _Sums], wall_ns: int) -> Iterator[Counted]:
        known = self._ends
        # One by one and not a list: what has been read is let go of at once.
        while entries:
            (key, _, index), sums = entries.popitem()
            packets, wire_bytes, payload_bytes, first_ns, last_ns, opens = sums
            found = known.get(key)
            if found is None:
                if len(known) >= _KNOWN_ENDS:
                    known.clear()
                found = known[key] = _read_ends(key)
            ends, outgoing = found
            yield _new(Counted, (
                index, outgoing, ends, packets, wire_bytes, payload_bytes,
                first_ns + wall_ns, last_ns + wall_ns, opens != 0,
            ))  # fmt: skip

    def _overflow_rows(self, wall_ns: int) -> list[Counted]:
        # Written while it is read, so it only grows: the difference is what is new.
        rows = []
        since_ns = self._overflow_read_ns
        self._overflow_read_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for keys, values in self._overflow.read():
            counts = list(_COUNT.iter_unpack(values))
            cpus = len(counts) // (len(keys) // _OVERFLOW_KEY.size)
            for number, key in enumerate(_OVERFLOW_KEY.iter_unpack(keys)):
                of_cpus = cast("list[_Sums]", counts[number * cpus : (number + 1) * cpus])
                now = functools.reduce(_sum, of_cpus)
                before = self._overflowed.get(key, _NOTHING)
                self._overflowed[key] = now
                packets, wire, payload = (now[i] - before[i] for i in range(3))
                if packets or wire or payload:
                    index, outgoing = key
                    rows.append(
                        Counted(
                            index, outgoing != 0, None, packets, wire, payload,
                            since_ns + wall_ns, max(since_ns, now[4]) + wall_ns, False,
                        )
                    )  # fmt: skip
        return rows


def _sum(one: _Sums, other: _Sums) -> _Sums:
    packets, wire_bytes, payload_bytes, first_ns, last_ns, opens = one
    return (
        packets + other[0],
        wire_bytes + other[1],
        payload_bytes + other[2],
        min(first_ns, other[3]),
        max(last_ns, other[4]),
        opens | other[5],
    )


def _read_ends(key: bytes) -> tuple[Ends, bool]:
    source, destination, source_port, destination_port, protocol, outgoing = _ENDS.unpack(key)
    ends = protocol, unmapped(source), source_port, unmapped(destination), destination_port
    return ends, outgoing


def _load(
    image: bytes, turns_descriptor: int | None, entries: int | None, held: contextlib.ExitStack
) -> _Loaded:
    from procnet.bpf.batches import HashMap
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
        news = mmap.mmap(bpf.map_descriptor("news"), mmap.PAGESIZE, mmap.MAP_SHARED)
    except OSError as error:
        raise LoadError(f"a map of the BPF program cannot be mapped: {error}") from error
    held.callback(news.close)
    return _Loaded(
        bpf, bpf.program_descriptor(_PROGRAM), bpf.map_descriptor("counting"), (first, second),
        overflow, news,
    )  # fmt: skip


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
