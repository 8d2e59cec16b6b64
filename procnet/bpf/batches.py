"""Entries of BPF hash maps, many in a call (5.6, 057996380a42), and maps that are in maps."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

from procnet.bpf import libbpf
from procnet.errors import LoadError

_BATCH_ENTRIES = 4096
# What a batch may end with: all is well, there is no more, there is no memory or a lock is taken.
_ENDS = (0, -errno.ENOENT, -errno.ENOMEM, -errno.EBUSY)


class HashMap:
    """A BPF_MAP_TYPE_HASH, or _PERCPU_HASH: then a value is one for each CPU, padded to 8 bytes.

    Takes no ownership of the descriptor. Not safe for several threads.
    """

    def __init__(
        self, descriptor: int, key_bytes: int, value_bytes: int, *, per_cpu: bool = False
    ) -> None:
        self.descriptor = descriptor
        self._library = libbpf.load_library()
        self._key_bytes = key_bytes
        self._value_bytes = value_bytes
        if per_cpu:
            self._value_bytes = (value_bytes + 7) // 8 * 8 * possible_cpus()
        self._make_room(_BATCH_ENTRIES)

    def _make_room(self, entries: int) -> None:
        self._entries = entries
        self._keys = ctypes.create_string_buffer(entries * self._key_bytes)
        self._values = ctypes.create_string_buffer(entries * self._value_bytes)

    def take(self) -> Iterator[tuple[memoryview, memoryview]]:
        """All keys and all values, in batches, which are gone from the map; each is valid until
        the next. Exact only while nobody writes. Raises LoadError."""
        return self._batches(self._library.bpf_map_lookup_and_delete_batch)

    def read(self) -> Iterator[tuple[memoryview, memoryview]]:
        """The same, and they stay in the map."""
        return self._batches(self._library.bpf_map_lookup_batch)

    def _batches(self, function: Callable[..., int]) -> Iterator[tuple[memoryview, memoryview]]:
        # Where to go on: a number that the kernel gives out and takes back.
        place = ctypes.c_uint64()
        start: Any = None
        while True:
            count = ctypes.c_uint32(self._entries)
            result = function(
                self.descriptor, start, ctypes.byref(place), self._keys, self._values,
                ctypes.byref(count), None,
            )  # fmt: skip
            if result == -errno.ENOSPC:
                # A bucket holds more than we have room for.
                self._make_room(2 * self._entries)
                continue
            # Some may be gone from the map when an error comes (after_loop in
            # __htab_map_lookup_and_delete_batch()); one that comes before leaves our number there.
            if count.value and result in _ENDS:
                yield (
                    memoryview(self._keys)[: count.value * self._key_bytes],
                    memoryview(self._values)[: count.value * self._value_bytes],
                )
            if result == -errno.ENOENT:
                return
            if result < 0:
                raise LoadError(f"a BPF map cannot be read: {os.strerror(-result)}")
            start = ctypes.byref(place)


class TwoTables:
    """Two maps of one kind that change places: programs write to the one that is in place 0 of an
    outer map. So nothing is read while it is written, and nothing is told twice or not at all.

    Takes no ownership of the descriptors. Not safe for several threads.
    """

    def __init__(self, outer: int, tables: tuple[HashMap, HashMap]) -> None:
        """Programs write to the first of them now."""
        self._outer = outer
        self._written, self._empty = tables
        self._is_unread = False

    def take(self) -> Iterator[tuple[memoryview, memoryview]]:
        """What was written since the last call, as HashMap.take() has it. Raises LoadError.

        Unless it is read to its end, the next one begins with what was left.
        """
        if self._is_unread:
            yield from self._empty_out()
        put_map(self._outer, 0, self._empty.descriptor)
        self._written, self._empty = self._empty, self._written
        yield from self._empty_out()

    def _empty_out(self) -> Iterator[tuple[memoryview, memoryview]]:
        self._is_unread = True
        yield from self._empty.take()
        self._is_unread = False


def possible_cpus() -> int:
    """How many values an entry of a per-CPU map has."""
    number: int = libbpf.load_library().libbpf_num_possible_cpus()
    if number < 0:
        raise LoadError(f"the number of CPUs is not to be had: {os.strerror(-number)}")
    return number


def put_map(outer: int, index: int, inner: int) -> None:
    """Puts a map into a place of a BPF_MAP_TYPE_ARRAY_OF_MAPS, both by their descriptors.

    Comes back when no program uses any more what was there before (4.20, 1ae80cf31938: RCU).
    Raises LoadError.
    """
    key, value = ctypes.c_uint32(index), ctypes.c_uint32(inner)
    result = libbpf.load_library().bpf_map_update_elem(
        outer, ctypes.byref(key), ctypes.byref(value), 0
    )
    if result < 0:
        raise LoadError(f"a map cannot be put into its place: {os.strerror(-result)}")
