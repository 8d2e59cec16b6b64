"""Records of what sockets moved: read as they are written, and told once whatever comes twice."""

from __future__ import annotations

import pytest

from procnet.bpf import layout
from procnet.bpf.socket_records import (
    RECORD,
    Clocks,
    Differences,
    SocketRecord,
    decode_records,
    decode_remote,
    untold,
)
from procnet.errors import LayoutError
from procnet.model import MAPPED_PREFIX, TCP, UDP, FlowCount, FlowKey, Reason

BOOT_NS, MONOTONIC_NS = 1_000_000_000_000, 1_000_000_000_500
CLOCKS = Clocks(BOOT_NS, MONOTONIC_NS)
HERE, THERE = (MAPPED_PREFIX, b"\x0a\x09\x00\x01"), (MAPPED_PREFIX, b"\x0a\x09\x00\x02")
KEY = FlowKey(7, UDP, b"\x0a\x09\x00\x01", 5000, b"\x0a\x09\x00\x02", 53)


def raw_record(*, version: int = layout.LAYOUT, flags: int = 0) -> bytes:
    return RECORD.pack(
        version, 41, *HERE, *THERE, 5000, 53, TCP, 99, 37, 2, 210, 150, 39, 3, 307, 223, 40,
        1, 101, 73, 0, 0, 0, 7, flags,
    )  # fmt: skip


def record(
    sent: int, *, read: int = 0, time_ns: int = 100, since_ns: int = 10, socket: int = 1,
    last_ns: int = 97, flags: int = 0, remote: tuple[bytes, bytes] = THERE,
) -> SocketRecord:  # fmt: skip
    """Of so many packets of 100 bytes with 72 of payload; rows told of ``read`` of them."""
    return SocketRecord(
        layout.LAYOUT, time_ns, *HERE, *remote, 5000, 53, UDP, socket, since_ns, *of(sent), last_ns,
        0, 0, 0, 0, *of(read), 0, 0, 0, 7, flags,
    )  # fmt: skip


def of(packets: int) -> tuple[int, int, int]:
    return packets, 100 * packets, 72 * packets


def taken(differences: Differences, *records: SocketRecord) -> list[int]:
    """The packets of each count, which must go with their bytes."""
    counts = differences.take(records, CLOCKS)
    assert [count[3:6] for count in counts] == [of(count.packets) for count in counts]
    return [count.packets for count in counts]


def test_a_record_is_read() -> None:
    (found,) = decode_records(raw_record(flags=2))
    assert (found.since_ns, found.packets, found.sent_last_ns) == (37, 5, 39)
    sent, received = Differences().take([found], CLOCKS)
    key = KEY._replace(protocol=TCP)
    assert sent == FlowCount(
        "", key, True, 1, 109, 77, BOOT_NS + 37, MONOTONIC_NS + 39, False, None
    )
    assert received == FlowCount(
        "", key, False, 3, 307, 223, BOOT_NS + 37, MONOTONIC_NS + 40, False, None
    )


def test_rows_are_records_one_after_the_other() -> None:
    assert decode_records(raw_record() * 3) == decode_records(raw_record()) * 3
    with pytest.raises(LayoutError):
        decode_records(raw_record()[:-1])


@pytest.mark.parametrize("prefix", [bytes(12), MAPPED_PREFIX])
def test_a_rest_has_no_remote_end_and_is_told_apart(prefix: bytes) -> None:
    rest = record(5, flags=1, remote=(prefix, bytes(4)))
    one, other = Differences().take([record(3), rest], CLOCKS)
    assert (one.packets, one.key) == (3, KEY)
    assert (other.packets, other.key) == (5, KEY._replace(remote_address=b"", remote_port=0))


def test_ipv6_addresses_are_whole() -> None:
    here, there = bytes(15) + b"\1", b"\xfd" + bytes(15)
    found = record(1)._replace(
        local_prefix=here[:12], local=here[12:], remote_prefix=there[:12], remote=there[12:]
    )
    (count,) = Differences().take([found], CLOCKS)
    assert count.key is not None
    assert (count.key.local_address, count.key.remote_address) == (here, there)


@pytest.mark.parametrize("odd", [raw_record(version=layout.LAYOUT + 1), raw_record() + b"\0", b""])
def test_a_record_of_another_layout_is_an_error(odd: bytes) -> None:
    with pytest.raises(LayoutError):
        decode_records(odd)


def test_rows_that_follow_each_other_tell_the_difference() -> None:
    differences = Differences()
    for now, before, packets in ((3, 0, [3]), (10, 3, [7]), (10, 10, []), (11, 10, [1])):
        differences.begin_rows(50)
        assert taken(differences, record(now, read=before)) == packets


def test_what_a_record_told_no_row_tells_again() -> None:
    differences = Differences()
    differences.begin_rows(50)
    assert taken(differences, record(3), record(5)) == [3, 2]
    # The row was read before the record was written, but that says what was read before the row.
    differences.begin_rows(60)
    assert taken(differences, record(9, read=3)) == [4]


def test_a_record_that_was_written_during_rows_may_come_after_them() -> None:
    differences = Differences()
    differences.begin_rows(50)
    assert taken(differences, record(7)) == [7]
    assert taken(differences, record(8)) == [1]
    differences.begin_rows(60)
    assert taken(differences, record(13, read=7)) == [5]


def test_a_socket_that_the_iterator_has_passed_over_is_not_told_twice() -> None:
    differences = Differences()
    differences.begin_rows(50)
    assert taken(differences, record(3), record(5)) == [3, 2]
    differences.begin_rows(60)
    assert taken(differences) == []
    differences.begin_rows(70)
    assert taken(differences, record(9)) == [4]


def test_records_and_rows_may_come_in_any_order() -> None:
    differences = Differences()
    assert taken(differences, record(9, read=4), record(4), record(9, read=4)) == [4, 5]


def test_sockets_are_told_apart() -> None:
    differences = Differences()
    assert taken(differences, record(3), record(5, socket=2), record(4)) == [3, 1, 5]


def test_nothing_is_remembered_of_sockets_that_rest() -> None:
    differences = Differences()
    for number in range(101):
        differences.begin_rows(number)
        taken(differences, record(number + 1, read=number, socket=number))
    assert len(differences._known) + len(differences._known_before) == 2
    assert len(differences._known_long_before) == 1


def test_a_connection_opens_once() -> None:
    differences = Differences()
    counts = differences.take([record(1, flags=2), record(2, flags=2)], CLOCKS)
    assert [count.opens for count in counts] == [True, False]


def test_what_was_told_of_nothing_is_not_older_than_the_last_change_of_hands() -> None:
    (count,) = Differences().take([record(1, since_ns=90, time_ns=91, last_ns=90)], CLOCKS)
    assert (count.first_ns, count.last_ns) == (BOOT_NS + 90, MONOTONIC_NS + 90)


def test_a_row_after_a_change_of_hands_does_not_tell_what_its_record_tells() -> None:
    row, of_the_change = record(3, since_ns=90, time_ns=97), record(3, since_ns=10, time_ns=89)
    (count,) = Differences().take([row, of_the_change], CLOCKS)
    assert (count.packets, count.first_ns) == (3, BOOT_NS + 10)


def test_bytes_that_come_before_their_packet_are_not_lost() -> None:
    first, torn, whole = record(3), record(3, time_ns=98), record(4, time_ns=99)
    torn = torn._replace(sent_payload_bytes=whole.sent_payload_bytes)
    counts = Differences().take([first, torn, whole], CLOCKS)
    assert sum(count.packets for count in counts) == 4
    assert sum(count.payload_bytes for count in counts) == whole.sent_payload_bytes


def test_a_tick_is_early_and_never_before_the_change_of_hands() -> None:
    late = record(1, time_ns=900, since_ns=800, last_ns=7)
    (count,) = Differences().take([late], CLOCKS)
    assert (count.first_ns, count.last_ns) == (BOOT_NS + 800, BOOT_NS + 800)


def test_what_comes_after_rows_is_not_older_than_the_rows_before() -> None:
    differences = Differences()
    differences.begin_rows(50)
    taken(differences, record(1))
    differences.begin_rows(150)
    differences.begin_rows(250)
    (count,) = differences.take([record(2, read=1, time_ns=260)], CLOCKS)
    assert count.first_ns == BOOT_NS + 150


def test_a_remote_end_has_a_count_for_each_direction() -> None:
    key = (*HERE, *THERE, 5000, 53, UDP, 99, 0, 7)
    sent, received = decode_remote(key, (30, 1, 2, 210, 150, 39, 3, 307, 223, 40), CLOCKS)
    assert sent == FlowCount(
        "", KEY, True, 2, 210, 150, BOOT_NS + 30, MONOTONIC_NS + 39, False, None
    )
    assert received == FlowCount(
        "", KEY, False, 3, 307, 223, BOOT_NS + 30, MONOTONIC_NS + 40, True, None
    )


def test_what_no_socket_could_tell_is_of_no_flow() -> None:
    (count,) = untold((5, 500, 360, 0, 0, 0), (2, 200, 144, 0, 0, 0), 10, 20, CLOCKS)
    assert count == FlowCount(
        "", None, True, 3, 300, 216, BOOT_NS + 10, BOOT_NS + 20, False, Reason.EVICTED
    )
