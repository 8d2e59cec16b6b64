"""The records of bpf/socket_counts.h, and what was moved between one and the next."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import NamedTuple

from procnet.bpf import layout
from procnet.errors import LayoutError
from procnet.model import IPV4_WILDCARD, IPV6_WILDCARD, FlowCount, FlowKey, Reason, unmapped

_TUPLE = "16s16sHHB3x"
RECORD = struct.Struct(f"=H6xQ{_TUPLE}QQQQQQQQQQQQQQQQII")
"""struct procnet_socket_record: layout, time, tuple, socket, since when; what was sent and when
last, the same received; what was read of both; namespace, flags."""
REMOTE_KEY = struct.Struct(f"={_TUPLE}QII")
"""struct procnet_remote_key: tuple, socket, turn, namespace."""
REMOTE_VALUE = struct.Struct("=QQQQQQQQQQ")
"""struct procnet_remote_value: first time, whether it opens; what was sent and when last, the same
received."""

_WILDCARDS = (IPV4_WILDCARD, IPV6_WILDCARD)
_INTERFACE = ""
_REST, _OPEN = 1, 2  # enum procnet_figures_flag

Sum = tuple[int, int, int]
"""Packets, wire bytes and payload bytes, since the beginning."""
Sums = tuple[Sum, Sum]
"""Sent and received."""
NOTHING: Sums = ((0, 0, 0), (0, 0, 0))

_Known = dict[tuple[int, bool], tuple[Sums, int]]
"""What was told of a socket, and until when."""


class SocketRecord(NamedTuple):
    """What a socket has moved with one remote end, or with all of them that had no room."""

    socket: tuple[int, bool]
    """Its cookie, and whether it is the rest."""
    time_ns: int
    """When it was written; as ``since_ns``, of CLOCK_BOOTTIME."""
    since_ns: int
    """Its first packet, or the last change of hands: what was not told yet is not older."""
    key: FlowKey
    sums: Sums
    last_ns: tuple[int, int]
    """Of the last packet, sent and received: CLOCK_MONOTONIC, up to a tick of the kernel early."""
    read: Sums
    """What rows had told of it until then."""
    opens: bool
    """Its first packet was a TCP SYN that it sent."""

    @property
    def packets(self) -> int:
        """Both ways."""
        return self.sums[0][0] + self.sums[1][0]


def decode_record(raw: bytes | memoryview) -> SocketRecord:
    """Raises LayoutError for a record of another size or layout version than ours."""
    if len(raw) != RECORD.size:
        raise LayoutError(f"a record of a socket has {len(raw)} bytes, not {RECORD.size}")
    (
        version, time_ns, local, remote, local_port, remote_port, protocol, cookie, since_ns,
        sent, sent_wire, sent_payload, sent_ns, received, received_wire, received_payload,
        received_ns, *read, netns, flags,
    ) = RECORD.unpack(raw)  # fmt: skip
    if version != layout.LAYOUT:
        raise LayoutError(f"a record of a socket has layout {version}, not {layout.LAYOUT}")
    return SocketRecord(
        (cookie, bool(flags & _REST)),
        time_ns,
        since_ns,
        _key(netns, protocol, local, local_port, remote, remote_port),
        ((sent, sent_wire, sent_payload), (received, received_wire, received_payload)),
        (sent_ns, received_ns),
        ((read[0], read[1], read[2]), (read[3], read[4], read[5])),
        bool(flags & _OPEN),
    )


def decode_rows(rows: bytes) -> Iterator[SocketRecord]:
    """Records one after the other, as an iterator writes them."""
    view = memoryview(rows)
    for at in range(0, len(rows), RECORD.size):
        yield decode_record(view[at : at + RECORD.size])


class Clocks(NamedTuple):
    """What to add to get the wall clock."""

    boot_ns: int
    monotonic_ns: int

    def until(self, since_ns: int, last_ns: int) -> int:
        """The wall-clock time of a last packet, which was not before ``since_ns``, a boot time."""
        return max(since_ns + self.boot_ns, last_ns + self.monotonic_ns)


def decode_remote(
    key: tuple[object, ...], value: tuple[int, ...], clocks: Clocks
) -> list[FlowCount]:
    """An entry of the table of remote ends, which has what was moved since the last reading."""
    local, remote, local_port, remote_port, protocol, _, _, netns = key
    flow = _key(netns, protocol, local, local_port, remote, remote_port)  # type: ignore[arg-type]
    first_ns, opens = value[0], bool(value[1])
    return [
        FlowCount(
            _INTERFACE, flow, sent, value[at], value[at + 1], value[at + 2],
            first_ns + clocks.boot_ns, clocks.until(first_ns, value[at + 3]), opens and not sent,
            None,
        )
        for sent, at in ((True, 2), (False, 6))
        if value[at]
    ]  # fmt: skip


class Differences:
    """Turns what was moved since the beginning into what was moved since the last time.

    A record and a row say what rows had told of the socket before. What was told since the last
    rows is remembered here: that is all there is to remember, however many sockets live.
    """

    def __init__(self) -> None:
        self._rows_ns = self._rows_before_ns = 0
        self._known: _Known = {}
        self._known_before: _Known = {}

    def begin_rows(self, now_ns: int) -> None:
        """Rows are about to be read; they come with the next ``take()``."""
        self._rows_before_ns, self._rows_ns = self._rows_ns, now_ns
        # A record may be written while they are, and say what was told before them.
        self._known_before, self._known = self._known, {}

    def take(self, records: Iterable[SocketRecord], clocks: Clocks) -> Iterator[FlowCount]:
        """Rows and records, in any order."""
        of_sockets: dict[tuple[int, bool], list[SocketRecord]] = {}
        for record in records:
            of_sockets.setdefault(record.socket, []).append(record)
        for socket, its_records in of_sockets.items():
            # Two may be written at the same time, but a socket's figures only grow.
            its_records.sort(key=attrgetter("packets"))
            known = self._known.get(socket) or self._known_before.get(socket)
            before, since_ns = known or (_read_before(its_records), self._rows_before_ns)
            for record in its_records:
                opens = before == NOTHING and record.opens
                since_ns = record.since_ns if before == NOTHING else max(since_ns, record.since_ns)
                yield from moved(record, before, since_ns, clocks, opens=opens)
                before = _combined(max, before, record.sums)
                since_ns = max(since_ns, record.time_ns)
            self._known[socket] = before, since_ns


def _read_before(records: list[SocketRecord]) -> Sums:
    read = records[0].read
    for record in records[1:]:
        read = _combined(min, read, record.read)
    return read


def _combined(choose: Callable[[int, int], int], one: Sums, other: Sums) -> Sums:
    (a, b, c), (d, e, f) = (map(choose, x, y) for x, y in zip(one, other, strict=True))
    return (a, b, c), (d, e, f)


def moved(
    record: SocketRecord, before: Sums, since_ns: int, clocks: Clocks, *, opens: bool
) -> Iterator[FlowCount]:
    """What a record says beside what was known ``before``, as of ``since_ns``."""
    for sent, now, then, last_ns in zip(
        (True, False), record.sums, before, record.last_ns, strict=True
    ):
        packets, wire_bytes, payload_bytes = (max(0, n - t) for n, t in zip(now, then, strict=True))
        if packets or wire_bytes:
            yield FlowCount(
                _INTERFACE, record.key, sent, packets, wire_bytes, payload_bytes,
                since_ns + clocks.boot_ns, clocks.until(since_ns, last_ns), opens, None,
            )  # fmt: skip
            opens = False


def untold(
    sums: Sums, before: Sums, since_ns: int, until_ns: int, clocks: Clocks
) -> Iterator[FlowCount]:
    """What sockets have moved of which nobody could be told; of no flow."""
    for sent, now, then in zip((True, False), sums, before, strict=True):
        packets, wire_bytes, payload_bytes = (n - t for n, t in zip(now, then, strict=True))
        if packets or wire_bytes:
            yield FlowCount(
                _INTERFACE, None, sent, packets, wire_bytes, payload_bytes,
                since_ns + clocks.boot_ns, until_ns + clocks.boot_ns, False, Reason.EVICTED,
            )  # fmt: skip


def _key(
    netns: int, protocol: int, local: bytes, local_port: int, remote: bytes, remote_port: int
) -> FlowKey:
    remote = unmapped(remote)
    if remote in _WILDCARDS:
        remote, remote_port = b"", 0
    return FlowKey(netns, protocol, unmapped(local), local_port, remote, remote_port)
