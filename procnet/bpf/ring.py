"""Reads a BPF ring buffer, and a counter beside it, through their memory: no library, no copy in
between. The format is that of include/uapi/linux/bpf.h and kernel/bpf/ringbuf.c (5.8,
457f44363a88): a page with the consumer's position, one with the producer's, then the data. The
kernel has the data twice in a row, so that a record never wraps; we map it once, for each page of a
mapping counts as memory of the process.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path

PATIENCE_S = 1.0
_PAUSE_S = 0.0002
_BUSY = 1 << 31
_DISCARDED = 1 << 30
_HEADER_BYTES = 8
# Native size and alignment: struct then moves the value in one piece ("=" would go byte by byte).
_POSITION = struct.Struct("Q")
_LENGTH = struct.Struct("I")


def _fence() -> None:
    # A full memory barrier: schedule() has one (smp_mb__after_spinlock in __schedule, which
    # membarrier(2) relies on). x86 would not need it here, arm64 does, and Python has none.
    os.sched_yield()


def _max_entries(descriptor: int, proc_root: Path) -> int:
    # bpf_map_show_fdinfo(), since 4.7
    text = (proc_root / "self/fdinfo" / str(descriptor)).read_text()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "max_entries":
            return int(value)
    raise OSError(f"/proc/self/fdinfo/{descriptor} is not that of a BPF map")


class Ring:
    """The reading end of a BPF_MAP_TYPE_RINGBUF. There can be one; not safe for several threads.

    Takes no ownership of the descriptor.
    """

    def __init__(self, descriptor: int, proc_root: Path = Path("/proc")) -> None:
        page = mmap.PAGESIZE
        self._data_bytes = _max_entries(descriptor, proc_root)
        self._consumer = mmap.mmap(
            descriptor, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE
        )
        try:
            self._producer = mmap.mmap(
                descriptor, page + self._data_bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
            )
        except BaseException:
            self._consumer.close()
            raise
        # Written in one piece too; pack_into() would clear it first, and whoever reserves a record
        # in that moment finds no room.
        self._read_until = memoryview(self._consumer).cast("Q")
        self._position: int = self._read_until[0]

    @property
    def waiting_bytes(self) -> int:
        """How much there is to read, about."""
        end: int = _POSITION.unpack_from(self._producer)[0]
        return end - self._position

    def read(self) -> list[bytes]:
        """Every record there is, oldest first; at most as many as the ring holds.

        A record whose writer was stopped between reserve and submit, by an interrupt or because its
        CPU is a virtual one, hides those behind it, which may be complete: it is waited for,
        ``PATIENCE_S`` at most.
        """
        end = _POSITION.unpack_from(self._producer)[0]
        if end == self._position:
            return []
        places: list[tuple[int, int]] = []
        position, patient_until_s = self._position, time.monotonic() + PATIENCE_S
        _fence()
        while (position := self._find(places, position, end)) < end:
            if time.monotonic() >= patient_until_s:
                break
            time.sleep(_PAUSE_S)
            _fence()
        _fence()
        memory, edge = self._producer, mmap.PAGESIZE + self._data_bytes
        records = [
            memory[start:stop]
            if stop <= edge
            else memory[start:] + memory[mmap.PAGESIZE : stop - self._data_bytes]
            for start, stop in places
        ]
        _fence()
        # Not before they are ours: whoever is interrupted reads them again.
        self._read_until[0] = self._position = position
        return records

    def _find(self, places: list[tuple[int, int]], position: int, end: int) -> int:
        """Adds where the complete records are, up to a busy one; the position behind them."""
        memory, data_bytes = self._producer, self._data_bytes
        while position < end:
            start = mmap.PAGESIZE + position % data_bytes
            (header,) = _LENGTH.unpack_from(memory, start)
            if header & _BUSY:
                break
            length = header & ~_DISCARDED
            start += _HEADER_BYTES
            if length == header:
                places.append((start, start + length))
            position += (_HEADER_BYTES + length + 7) & -8
        return position

    def close(self) -> None:
        """Unmap. Once."""
        self._read_until.release()
        self._consumer.close()
        self._producer.close()


class Counters:
    """64-bit values of a small BPF_MAP_TYPE_ARRAY with BPF_F_MMAPABLE (5.5, fc9702273e2e).

    Less than a page of them. Takes no ownership of the descriptor.
    """

    def __init__(self, descriptor: int, protection: int = mmap.PROT_READ) -> None:
        self._memory = mmap.mmap(descriptor, mmap.PAGESIZE, mmap.MAP_SHARED, protection)
        # Each is read and written in one piece: see Ring.
        self._values = memoryview(self._memory).cast("Q")

    def read(self, which: int) -> int:
        """The value of one of them now."""
        return self._values[which]

    def close(self) -> None:
        """Unmap. Once."""
        self._values.release()
        self._memory.close()


class News(Counters):
    """Some of which say that there is something to be read elsewhere."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, mmap.PROT_READ | mmap.PROT_WRITE)

    def take(self, which: int) -> bool:
        """Is there? To be asked before it is read: what comes in between is told a second time."""
        told = self._values[which]
        if told:
            self._values[which] = 0
        return bool(told)

    def put_back(self, *those: int) -> None:
        """Not all of it could be read."""
        for which in those:
            self._values[which] = 1
