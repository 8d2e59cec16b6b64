"""What the BPF programs hand over. A byte says what: a ring, events, processes, rows, counts.

- Only ``ProcnetError`` leaves, and only for rows of another size.
- Each record is one event, or counted as unknown; a text can be written as UTF-8.
- A process has the pid, and a flow the addresses, of the record that told it.
- Holders are those that a plain reading of the rows finds.
- No packet is lost between the kernel's tables and the rows that are counted from them.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import tempfile
from collections import Counter as Tally
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from procnet.bpf import layout
from procnet.bpf.batches import TwoTables
from procnet.bpf.counts import KernelCounts, _Loaded
from procnet.bpf.events import decode_events
from procnet.bpf.processes import decode_process
from procnet.bpf.ring import News, Ring
from procnet.bpf.snapshot import OPEN_SOCKET, decode_snapshot
from procnet.capture.engine import KernelSide
from procnet.errors import ProcnetError
from procnet.model import (
    CLOCK_TICK_NS,
    EventKind,
    FlowCount,
    Process,
    ProcessId,
    unmapped,
)
from procnet.report.socket_use import socket_use, use_as_text
from procnet.sockets.process import ProcessTable
from tests.fuzz.pieces import join, split

_PAGE = mmap.PAGESIZE
_SPACE = tempfile.TemporaryDirectory()
_PROC = Path(_SPACE.name)
_RING = os.memfd_create("ring")
os.truncate(_RING, 3 * _PAGE)
_NEWS = os.memfd_create("news")
os.truncate(_NEWS, _PAGE)
(_PROC / "self/fdinfo").mkdir(parents=True)
(_PROC / "self/fdinfo" / str(_RING)).write_text(f"max_entries:\t{_PAGE}\n")

_KEY = struct.Struct("=16s16sHHB?6xI")
_SUMS = struct.Struct("=5QB7x")
_OVERFLOW_KEY = struct.Struct("=II")
_CPUS = 2
_BOOT_NS = 10**18


def check(data: bytes) -> None:
    kinds = (_check_ring, _check_events, _check_processes, _check_rows, _check_counts)
    if data:
        kinds[data[0] % len(kinds)](data[1:])


def _check_ring(data: bytes) -> None:
    """Two bytes say where the reader stands; the rest is what has been written since."""
    start, written = int.from_bytes(data[:2], "little") & -8, data[2 : 2 + _PAGE]
    written += bytes(-len(written) % 8)
    at = start % _PAGE
    memory = bytearray(_PAGE)
    memory[at : at + len(written)] = written[: _PAGE - at]
    memory[: max(0, len(written) - (_PAGE - at))] = written[_PAGE - at :]
    os.pwrite(_RING, struct.pack("Q", start), 0)
    os.pwrite(_RING, struct.pack("Q", start + len(written)).ljust(_PAGE, b"\0") + memory, _PAGE)
    ring = Ring(_RING, _PROC)
    try:
        with mock.patch("procnet.bpf.ring.PATIENCE_S", 0):  # nobody is writing
            records = ring.read() + ring.read()
    finally:
        ring.close()
    plain, all_told = _plain_records(written)
    assert records == plain if all_told else records[: len(plain)] == plain
    assert len(records) <= len(written) // 8 and sum(map(len, records)) <= 3 * _PAGE
    events, unknown = decode_events(records)
    assert unknown + len(events) >= len(records)


def _plain_records(written: bytes) -> tuple[list[bytes], bool]:
    """include/uapi/linux/bpf.h, byte by byte, up to a length that goes beyond what was written."""
    records = []
    while written:
        header = int.from_bytes(written[:4], "little")
        if header & 1 << 31:
            break
        length = header & ~(1 << 30)
        if 8 + length > len(written):
            return records, False
        if length == header:
            records.append(written[8 : 8 + length])
        written = written[(8 + length + 7) // 8 * 8 :]
    return records, True


def _check_events(data: bytes) -> None:
    records = _sized(data, layout.OWNER_EVENT.size)
    raw = [layout.RawEvent._make(layout.OWNER_EVENT.unpack(record)) for record in records]
    events, unknown = decode_events(records)
    known = [each for each in raw if 1 <= each.kind <= len(EventKind)]
    closes = [each for each in known if each.flags & layout.FLAG_CLOSES]
    assert len(events) == len(known) + len(closes)
    assert unknown == len(raw) - len(known)
    told = [event for number, event in enumerate(events) if not _follows(events, number, known)]
    for event, each in zip(told, known, strict=True):
        assert event.process == _process(each.tgid, each.start_ns)
        assert (event.netns, event.local_port) == (each.netns, each.local_port)
        assert bool(event.born_ns) is bool(each.born_ns)
        assert event.local_address in each.local_address
        assert event.remote_address in each.remote_address
        event.name.encode()
        person = Process(*event.process, name=event.name)
        assert use_as_text(socket_use(event, person)).isprintable()
    for netns in {each.netns for each in raw}:
        alone, _ = decode_events(records, netns)
        assert [each._replace(time_ns=0, born_ns=0) for each in alone] == [
            each._replace(time_ns=0, born_ns=0) for each in events if each.netns == netns
        ]


def _follows(events: list[object], number: int, known: list[layout.RawEvent]) -> bool:
    """Is it the close that was in the record of the event before?"""
    records, place = iter(known), -1
    for each in records:
        place += 1
        if place == number:
            return False
        if each.flags & layout.FLAG_CLOSES:
            place += 1
            if place == number:
                return True
    return False


def _check_processes(data: bytes) -> None:
    table = ProcessTable(_PROC, user_name=lambda uid: "")
    told: dict[ProcessId, set[tuple[str, str]]] = {}
    for record in _sized(data, layout.PROCESS.size):
        raw = layout.RawProcess._make(layout.PROCESS.unpack(record))
        process = decode_process(record)
        assert process.id == _process(raw.tgid, raw.start_ns)
        texts = (process.name, process.exe, *process.cmdline, process.cgroup)
        assert len("".join(texts).encode()) <= 4 * len(record)
        for path in (process.exe, process.cgroup):
            assert not path or path.startswith("/")
        table.remember(process)
        told.setdefault(process.id, set()).add((process.name, process.exe))
        known = table.get(process.id)
        assert known is not None and known.id == process.id
        for at, text in enumerate((known.name, known.exe)):
            assert text in {names[at] for names in told[process.id]}


def _check_rows(data: bytes) -> None:
    try:
        scan = decode_snapshot(data, 0, 1, _BOOT_NS)
    except ProcnetError:
        assert len(data) % OPEN_SOCKET.size
        return
    holders: dict[int, set[ProcessId]] = {}
    births: dict[int, int] = {}
    for row in OPEN_SOCKET.iter_unpack(data):
        local_port, inode, start_ns, born_ns, pid, kind = row[2], *row[5:9], row[13]
        if local_port or kind == 3:
            if born_ns and inode not in holders:
                births[inode] = _BOOT_NS + born_ns
            holders.setdefault(inode, set()).add(_process(pid, start_ns))
    assert scan.holders == holders
    assert scan.births == births
    assert [each.inode for each in scan.sockets] == list(holders)
    for each in scan.sockets:
        assert each.local_address in data and len(each.local_address) in (4, 16)


class _Table:
    """A hash map of the kernel, as batches.HashMap reads it."""

    descriptor = -1

    def __init__(self) -> None:
        self.keys = self.values = b""

    def read(self) -> Iterator[tuple[memoryview, memoryview]]:
        if self.keys:
            yield memoryview(self.keys), memoryview(self.values)

    def take(self) -> Iterator[tuple[memoryview, memoryview]]:
        yield from self.read()
        self.keys = self.values = b""


def _check_counts(data: bytes) -> None:
    """Entries of the table, then those of what found it full."""
    entries, full, *_ = [*split(data), b"", b""]
    written, empty, overflow = _Table(), _Table(), _Table()
    rows = list(struct.iter_unpack(f"{_KEY.size}s{_SUMS.size}s", _whole(entries, _KEY, _SUMS)))
    written.keys, written.values = (b"".join(row[at] for row in rows) for at in (0, 1))
    kept = {full[at : at + _OVERFLOW_KEY.size] for at in range(0, len(full) - 7, 56)}
    overflow.keys = b"".join(kept)
    # On each CPU a number that the key makes up.
    overflow.values = b"".join(_SUMS.pack(n, n, n, n, n, 0) for key in kept for n in key[:_CPUS])
    tables = TwoTables(-1, (written, empty))
    loaded = _Loaded(mock.Mock(), -1, tables, overflow, News(_NEWS))
    side = KernelSide(KernelCounts(loaded, contextlib.ExitStack()), 1)
    with mock.patch("procnet.bpf.batches.put_map"):
        counted = [*side.drain(surely=True), *side.drain(surely=True)]
    told: Tally[object] = Tally()
    for count in counted:
        told[count.interface, _ends(count)] += count.packets
    for key, sums in rows:
        source, destination, *ports, protocol, _, index = _KEY.unpack(key)
        source, destination = unmapped(source), unmapped(destination)
        ends = (protocol, *sorted([(source, ports[0]), (destination, ports[1])]))
        told[f"#{index}", ends] -= _SUMS.unpack(sums)[0]
    for key in kept:
        told[f"#{_OVERFLOW_KEY.unpack(key)[0]}", None] -= sum(key[:_CPUS])
    assert not any(told.values())


def _ends(count: FlowCount) -> object:
    if count.key is None:
        return None
    _, protocol, local, local_port, remote, remote_port = count.key
    return (protocol, *sorted([(local, local_port), (remote, remote_port)]))


def _sized(data: bytes, size: int) -> list[bytes]:
    """Records of this size and of our layout."""
    head = struct.pack("=H", layout.LAYOUT)
    return [head + piece.ljust(size, b"\0")[2:size] for piece in split(data)]


def _whole(data: bytes, *structs: struct.Struct) -> bytes:
    size = sum(each.size for each in structs)
    return data[: len(data) // size * size]


def _process(pid: int, start_ns: int) -> ProcessId:
    return ProcessId(pid, start_ns // CLOCK_TICK_NS * CLOCK_TICK_NS)


def seeds() -> Iterator[bytes]:
    four = bytes(10) + b"\xff\xff\x7f\0\0\1"
    event = layout.OWNER_EVENT.pack(
        layout.LAYOUT, 1, 0, 7, 1000, 20_000_000, 5, 6, 900, 41, 41, 0, 0, four, four, 80, 4000, 6,
        b"caf\xff\x1b[2J",
    )  # fmt: skip
    closes = event[:2] + b"\2\2" + event[4:]
    header = struct.pack("II", len(event), 0)
    discarded, busy = (struct.pack("II", 16 | flag, 0) + bytes(16) for flag in (1 << 30, 1 << 31))
    yield b"\0\xf0\x0f" + b"".join([header, event, discarded, header, closes, busy])
    yield b"\1" + join([event, closes, event[:4] + bytes(4) + event[8:]])
    process = layout.PROCESS.pack(
        layout.LAYOUT, 9, 8, 7, 20_000_000, 41, 1, 0, b"curl", b"curl\0bin\0", b"curl\0-s\0\0",
        b"a\0\xff\x1b\0",
    )  # fmt: skip
    yield b"\2" + join([process, process[:8] + bytes(8) + process[16:]])
    rows = [
        OPEN_SOCKET.pack(
            four, bytes(16), port, 0, protocol, inode, 20_000_007, born_ns, pid, 7, 0, 4, 10, kind
        )
        for port, protocol, inode, born_ns, pid, kind in (
            (80, 6, 5, 0, 41, 1), (80, 6, 5, 0, 42, 1), (0, 255, 6, 9, 42, 3), (0, 17, 7, 9, 42, 2),
        )
    ]  # fmt: skip
    yield b"\3" + b"".join(rows)
    key = _KEY.pack(four, four, 1, 2, 6, True, 3)
    entries = (key + _SUMS.pack(2, 80, 0, 5, 6, 1)) * 2 + key[::-1] + _SUMS.pack(1, 40, 0, 5, 5, 0)
    yield b"\4" + join([entries, _OVERFLOW_KEY.pack(3, 1) + bytes(48) + _OVERFLOW_KEY.pack(4, 0)])
