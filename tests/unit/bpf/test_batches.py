"""Batches of a hash map, as a kernel hands them out that may fail at any of them."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from procnet.bpf import batches, libbpf
from procnet.bpf.batches import HashMap
from procnet.errors import LoadError

ENTRIES = 11
KEY, VALUE = struct.Struct("=I"), struct.Struct("=Q")


class Kernel:
    """``answers``: what each call has taken out, and what it says then."""

    def __init__(self, *answers: tuple[int, int]) -> None:
        self.answers = list(answers)
        self.entries = ENTRIES

    def take(
        self, _descriptor: int, start: Any, place: Any, keys: Any, values: Any, count: Any, _: None
    ) -> int:
        room, batch = count._obj, place._obj
        assert (start is None) == (batch.value == 0)
        number, result = self.answers.pop(0)
        if result in (-errno.EPERM, -errno.EBADF):
            return result  # before it has looked at anything
        room.value = number
        for at in range(number):
            self.entries -= 1
            KEY.pack_into(keys, at * KEY.size, self.entries)
            VALUE.pack_into(values, at * VALUE.size, 100 + self.entries)
        batch.value += 1
        return result


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[[Kernel], HashMap]:
    def open_map(kernel: Kernel) -> HashMap:
        library = SimpleNamespace(bpf_map_lookup_and_delete_batch=kernel.take)
        monkeypatch.setattr(libbpf, "load_library", lambda: library)
        return HashMap(7, KEY.size, VALUE.size)

    return open_map


def taken(table: HashMap) -> tuple[list[int], str]:
    """The keys, and the error that they ended with."""
    found: list[int] = []
    try:
        for keys, values in table.take():
            for (key,), (value,) in zip(
                KEY.iter_unpack(keys), VALUE.iter_unpack(values), strict=True
            ):
                assert value == 100 + key
                found.append(key)
    except LoadError as error:
        return found, str(error)
    return found, ""


def test_batches_come_until_there_are_no_more(opened: Callable[[Kernel], HashMap]) -> None:
    kernel = Kernel((7, 0), (4, -errno.ENOENT))
    assert taken(opened(kernel)) == ([*range(ENTRIES - 1, -1, -1)], "")
    assert kernel.answers == []


def test_a_bucket_that_has_no_room_gets_more(opened: Callable[[Kernel], HashMap]) -> None:
    table = opened(Kernel((7, 0), (0, -errno.ENOSPC), (4, -errno.ENOENT)))
    assert taken(table) == ([*range(ENTRIES - 1, -1, -1)], "")
    assert len(table._keys) == 2 * batches._BATCH_ENTRIES * KEY.size


@pytest.mark.parametrize("code", [errno.ENOMEM, errno.EBUSY])
def test_what_is_gone_from_the_map_at_an_error_is_told(
    opened: Callable[[Kernel], HashMap], code: int
) -> None:
    table = opened(Kernel((3, 0), (5, -code), (3, -errno.ENOENT)))
    first, said = taken(table)
    assert said
    assert (first, taken(table)) == ([10, 9, 8, 7, 6, 5, 4, 3], ([2, 1, 0], ""))


@pytest.mark.parametrize("code", [errno.EPERM, errno.EBADF])
def test_a_refusal_is_no_batch(opened: Callable[[Kernel], HashMap], code: int) -> None:
    found, said = taken(opened(Kernel((0, -code))))
    assert found == []
    assert said.startswith("a BPF map cannot be read: ")
