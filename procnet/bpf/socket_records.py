"""The records of bpf/socket_counts.h, and what was moved between one and the next."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, cast

from procnet.bpf import layout
from procnet.errors import LayoutError
from procnet.model import MAPPED_PREFIX, FlowCount, FlowKey, Reason

_TUPLE = "12s4s12s4sHHB3x"
RECORD = struct.Struct(f"=H6xQ{_TUPLE}QQQQQQQQQQQQQQQQII")
"""struct procnet_socket_record: a SocketRecord."""
REMOTE_KEY = struct.Struct(f"={_TUPLE}QII")
"""struct procnet_remote_key: tuple, socket, turn, namespace."""
REMOTE_VALUE = struct.Struct("=QQQQQQQQQQ")
"""struct procnet_remote_value: first time, whether it opens; what was sent and when last, the same
received."""

_INTERFACE = ""
_REST, _OPEN = 1, 2  # enum procnet_figures_flag
_WILDCARD_PREFIXES = (bytes(12), MAPPED_PREFIX)

Sums = tuple[int, int, int, int, int, int]
"""Packets, wire bytes and payload bytes, sent and received, since the beginning."""
NOTHING: Sums = (0, 0, 0, 0, 0, 0)
_READ = slice(19, 25)

_Known = dict[int, tuple[Sums, int]]
"""What was told of a socket, and until when."""
# The constructor of a NamedTuple takes three times as long.
_new = tuple.__new__


class SocketRecord(NamedTuple):
    """What a socket has moved with one remote end, or with all of them that had no room.

    An address is what it begins with, and its last four bytes. Times are of CLOCK_BOOTTIME, but
    that of a last packet, which is of CLOCK_MONOTONIC and up to a tick of the kernel early.
    """

    layout: int
    time_ns: int
    """When it was written."""
    local_prefix: bytes
    local: bytes
    remote_prefix: bytes
    remote: bytes
    local_port: int
    remote_port: int
    protocol: int
    cookie: int
    since_ns: int
    """Its first packet, or the last change of hands: what was not told yet is not older."""
    sent_packets: int
    sent_wire_bytes: int
    sent_payload_bytes: int
    sent_last_ns: int
    received_packets: int
    received_wire_bytes: int
    received_payload_bytes: int
    received_last_ns: int
    read_sent_packets: int
    """This and the next: what rows had told of it until then."""
    read_sent_wire_bytes: int
    read_sent_payload_bytes: int
    read_received_packets: int
    read_received_wire_bytes: int
    read_received_payload_bytes: int
    netns: int
    flags: int

    @property
    def packets(self) -> int:
        """Both ways."""
        return self.sent_packets + self.received_packets


def decode_records(raw: bytes) -> list[SocketRecord]:
    """One or more, as a ring or an iterator has them.

    Raises LayoutError for a record of another size or layout version than ours.
    """
    if not raw or len(raw) % RECORD.size:
        raise LayoutError(f"records of sockets have {len(raw)} bytes, not {RECORD.size} each")
    records: list[SocketRecord] = [_new(SocketRecord, each) for each in RECORD.iter_unpack(raw)]
    for record in records:
        if record[0] != layout.LAYOUT:
            raise LayoutError(f"a record of a socket has layout {record[0]}, not {layout.LAYOUT}")
    return records


class Clocks(NamedTuple):
    """What to add to get the wall clock."""

    boot_ns: int
    monotonic_ns: int

    def until(self, since_ns: int, last_ns: int) -> int:
        """The wall-clock time of a last packet, which was not before ``since_ns``, a boot time."""
        return max(since_ns + self.boot_ns, last_ns + self.monotonic_ns)


class Differences:
    """Turns what was moved since the beginning into what was moved since the last time.

    A record and a row say what rows had told of the socket before. What was told since the last
    rows is remembered here, and for two more rounds of them: a record may be written while they
    are, and say what was told before them; and the iterator may pass over a socket once, when its
    neighbour goes away. That is all there is to remember, however many sockets live.
    """

    def __init__(self) -> None:
        self._rows_ns = self._rows_before_ns = 0
        self._known: _Known = {}
        self._known_before: _Known = {}
        self._known_long_before: _Known = {}

    def begin_rows(self, now_ns: int) -> None:
        """Of all sockets rows were read, from that time on, and then every record: all of them come
        with the next ``take()``. Rows of some sockets come without this."""
        self._rows_before_ns, self._rows_ns = self._rows_ns, now_ns
        self._known_long_before = self._known_before
        self._known_before, self._known = self._known, {}

    def take(self, records: Iterable[SocketRecord], clocks: Clocks) -> list[FlowCount]:
        """Rows and records, in any order."""
        counts: list[FlowCount] = []
        of_sockets: dict[int, list[SocketRecord]] = {}
        for record in records:
            # Its cookie, and whether it is the rest.
            of_sockets.setdefault(record[9] << 1 | record[26] & _REST, []).append(record)
        for socket, its_records in of_sockets.items():
            if len(its_records) > 1:
                # Two may be written at the same time, but a socket's figures only grow. A row that
                # was read after a change of hands says nothing new, and not whose it was.
                its_records.sort(key=lambda record: (record.packets, record.since_ns))
            known = self._known.get(socket) or self._known_before.get(socket)
            if known is None:
                passed_over = self._known_long_before.get(socket)
                told = passed_over[0] if passed_over else _read_before(its_records)
                known = told, self._rows_before_ns
            before, since_ns = known
            for record in its_records:
                if before == NOTHING or record[10] > since_ns:
                    since_ns = record[10]
                before = _add_difference(counts, record, before, since_ns, clocks)
                since_ns = max(since_ns, record[1])
            self._known[socket] = before, since_ns
        return counts


def _read_before(records: list[SocketRecord]) -> Sums:
    read = cast("Sums", records[0][_READ])
    for record in records[1:]:
        read = _combined(min, read, cast("Sums", record[_READ]))
    return read


def _combined(choose: Callable[[int, int], int], one: Sums, other: Sums) -> Sums:
    return cast("Sums", tuple(map(choose, one, other)))


def _add_difference(
    counts: list[FlowCount], record: SocketRecord, before: Sums, since_ns: int, clocks: Clocks
) -> Sums:
    """What a record says beside what was known before; what is known then."""
    (
        _, _, local_prefix, local, remote_prefix, remote, local_port, remote_port, protocol, _, _,
        sent, sent_wire, sent_payload, sent_ns, received, received_wire, received_payload,
        received_ns, *_, netns, flags,
    ) = record  # fmt: skip
    now = (sent, sent_wire, sent_payload, received, received_wire, received_payload)
    if before != NOTHING:
        now = _combined(max, before, now)
    key = _key(netns, protocol, local_prefix, local, local_port, remote_prefix, remote, remote_port)
    opens = before == NOTHING and bool(flags & _OPEN)
    first_ns = since_ns + clocks.boot_ns
    for is_sent, last_ns, at in ((True, sent_ns, 0), (False, received_ns, 3)):
        packets, wire_bytes, payload_bytes = (now[at + i] - before[at + i] for i in range(3))
        # A record that is written beside a packet may have its bytes and not yet the packet.
        if packets or wire_bytes or payload_bytes:
            counts.append(_new(FlowCount, (
                _INTERFACE, key, is_sent, packets, wire_bytes, payload_bytes,
                first_ns, max(first_ns, last_ns + clocks.monotonic_ns), opens, None,
            )))  # fmt: skip
            opens = False
    return now


def decode_remote(
    key: tuple[object, ...], value: tuple[int, ...], clocks: Clocks
) -> Iterator[FlowCount]:
    """An entry of the table of remote ends, which has what was moved since the last reading."""
    local_prefix, local, remote_prefix, remote, local_port, remote_port, protocol, _, _, netns = key
    flow = _key(
        netns, protocol, local_prefix, local, local_port, remote_prefix, remote, remote_port  # type: ignore[arg-type]
    )  # fmt: skip
    first_ns, opens = value[0], bool(value[1])
    for sent, at in ((True, 2), (False, 6)):
        if value[at]:
            yield _new(FlowCount, (
                _INTERFACE, flow, sent, value[at], value[at + 1], value[at + 2],
                first_ns + clocks.boot_ns, clocks.until(first_ns, value[at + 3]),
                opens and not sent, None,
            ))  # fmt: skip


def untold(
    sums: Sums, before: Sums, since_ns: int, until_ns: int, clocks: Clocks
) -> Iterator[FlowCount]:
    """What sockets have moved of which nobody could be told; of no flow."""
    for sent, at in ((True, 0), (False, 3)):
        packets, wire_bytes, payload_bytes = (sums[i] - before[i] for i in range(at, at + 3))
        if packets or wire_bytes or payload_bytes:
            yield FlowCount(
                _INTERFACE, None, sent, packets, wire_bytes, payload_bytes,
                since_ns + clocks.boot_ns, until_ns + clocks.boot_ns, False, Reason.EVICTED,
            )  # fmt: skip


def _key(
    netns: int, protocol: int, local_prefix: bytes, local: bytes, local_port: int,
    remote_prefix: bytes, remote: bytes, remote_port: int,
) -> FlowKey:  # fmt: skip
    if local_prefix != MAPPED_PREFIX:
        local = local_prefix + local
    if remote == b"\0\0\0\0" and remote_prefix in _WILDCARD_PREFIXES:
        remote, remote_port = b"", 0
    elif remote_prefix != MAPPED_PREFIX:
        remote = remote_prefix + remote
    return _new(FlowKey, (netns, protocol, local, local_port, remote, remote_port))
