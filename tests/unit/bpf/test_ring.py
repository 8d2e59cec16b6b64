from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from procnet.bpf.ring import Counters, Ring
from tests.unit.bpf.fakes import BUSY, DISCARDED, PAGE, FakeRing


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeRing]:
    made = FakeRing(tmp_path)
    yield made
    os.close(made.descriptor)


@pytest.fixture
def ring(fake: FakeRing) -> Iterator[Ring]:
    opened = Ring(fake.descriptor, fake.proc_root)
    yield opened
    opened.close()


def test_records_come_once_and_in_order(fake: FakeRing, ring: Ring) -> None:
    assert ring.read() == []
    records = [bytes([n]) * n for n in range(1, 24)]
    for record in records:
        fake.write(record)
    assert ring.read() == records
    assert ring.read() == []
    assert fake.consumed == fake.produced


WATCH = """
import mmap, struct, sys
memory = mmap.mmap(int(sys.argv[1]), mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ)
position, last, end = struct.Struct("Q"), 0, int(sys.argv[2])
print("watching", flush=True)
while last < end:
    now, = position.unpack_from(memory)
    if now < last:
        sys.exit(f"{now} after {last}")
    last = now
"""


def test_nobody_ever_sees_the_position_half_written(fake: FakeRing, ring: Ring) -> None:
    """The kernel takes it for a full ring, and loses an event."""
    number, record = 50_021, b"x"
    argv = [sys.executable, "-c", WATCH, str(fake.descriptor), str(number * 16)]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=[fake.descriptor], text=True
    ) as watch:
        assert watch.stdout is not None and watch.stdout.readline() == "watching\n"
        for _ in range(number):
            fake.write(record)
            assert ring.read() == [record]
        assert watch.communicate(timeout=60) == ("", "")


def test_a_record_that_is_being_written_is_waited_for(
    fake: FakeRing, ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.write(b"first")
    place = fake.write(b"second", BUSY)
    fake.write(b"third")
    pauses: list[float] = []

    def pause(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 3:
            fake.settle(place, len(b"second"))

    monkeypatch.setattr("procnet.bpf.ring.time.sleep", pause)
    assert ring.read() == [b"first", b"second", b"third"]
    assert len(pauses) == 3


def test_a_record_that_is_never_written_ends_the_batch(
    fake: FakeRing, ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("procnet.bpf.ring.PATIENCE_S", 0.01)
    fake.write(b"first")
    place = fake.write(b"second", BUSY)
    fake.write(b"third")
    assert ring.read() == [b"first"]
    assert ring.read() == []
    fake.settle(place, len(b"second"))
    assert ring.read() == [b"second", b"third"]


def test_an_interrupted_wait_loses_no_record(
    fake: FakeRing, ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.write(b"first")
    place = fake.write(b"second", BUSY)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("procnet.bpf.ring.time.sleep", interrupt)
        ring.read()
    fake.settle(place, len(b"second"))
    assert ring.read() == [b"first", b"second"]


def test_a_discarded_record_is_passed_over(fake: FakeRing, ring: Ring) -> None:
    fake.write(b"first")
    fake.write(b"nothing", DISCARDED)
    fake.write(b"third")
    assert ring.read() == [b"first", b"third"]


def test_records_wrap_around(fake: FakeRing, ring: Ring) -> None:
    for turn in range(3 * PAGE // 112):
        record = turn.to_bytes(2, "little") * 51  # 102 bytes: 112 in the ring, no divisor of a page
        fake.write(record)
        assert ring.read() == [record]
    assert fake.produced > 2 * PAGE


def test_a_reader_goes_on_where_the_last_one_stopped(fake: FakeRing, ring: Ring) -> None:
    fake.write(b"first")
    ring.read()
    fake.write(b"second")
    later = Ring(fake.descriptor, fake.proc_root)
    assert later.read() == [b"second"]
    later.close()


def test_no_ring(tmp_path: Path) -> None:
    (tmp_path / "self/fdinfo").mkdir(parents=True)
    (tmp_path / "self/fdinfo/0").write_text("pos:\t0\n")
    with pytest.raises(OSError, match="not that of a BPF map"):
        Ring(0, tmp_path)


def test_counters_are_read_as_they_stand() -> None:
    descriptor = os.memfd_create("counters")
    os.truncate(descriptor, PAGE)
    counters = Counters(descriptor)
    assert counters.read(0) == counters.read(1) == 0
    os.pwrite(descriptor, (2**40 + 7).to_bytes(8, "little") + (11).to_bytes(8, "little"), 0)
    assert (counters.read(0), counters.read(1)) == (2**40 + 7, 11)
    counters.close()
    os.close(descriptor)
