from __future__ import annotations

import pytest

from procnet.bpf import layout
from procnet.bpf.events import decode_event, decode_events
from procnet.bpf.processes import comm_text
from procnet.errors import LayoutError
from procnet.model import TCP, EventKind, OwnerEvent, ProcessId

MAPPED = bytes(10) + b"\xff\xff"
V6 = bytes.fromhex("20010db8000000000000000000000001")

RAW = layout.RawEvent(
    layout=layout.LAYOUT, kind=3, flags=0, netns=4026531840, time_ns=1_000_000_007,
    start_ns=123_456_789, inode=4711, cgroup_id=97, born_ns=1_000_000_003, tgid=1009, uid=1000,
    part_bytes=11, packet_bytes=13,
    local_address=MAPPED + b"\x7f\0\0\x01", remote_address=V6, local_port=40_009,
    remote_port=443, protocol=TCP, comm=b"curl\0an old name",
)  # fmt: skip


def record(**changes: object) -> bytes:
    return layout.OWNER_EVENT.pack(*RAW._replace(**changes))


def test_a_record_becomes_an_event() -> None:
    assert decode_event(record(), 10**18) == OwnerEvent(
        time_ns=10**18 + 1_000_000_007, kind=EventKind.SEND, netns=4026531840, protocol=TCP,
        local_address=b"\x7f\0\0\x01", local_port=40_009, remote_address=V6, remote_port=443,
        inode=4711, process=ProcessId(1009, 120_000_000), name="curl", uid=1000, cgroup_id=97,
        kernel=False, part_bytes=11, packet_bytes=13, born_ns=10**18 + 1_000_000_003,
    )  # fmt: skip


def test_where_it_is_not_known_since_when_there_is_a_socket_nothing_is_said() -> None:
    event = decode_event(record(born_ns=0), 10**18)
    assert event is not None and event.born_ns == 0


@pytest.mark.parametrize("kind", EventKind)
def test_every_kind_is_known(kind: EventKind) -> None:
    event = decode_event(record(kind=kind), 0)
    assert event is not None and event.kind is kind


@pytest.mark.parametrize("wildcard", [bytes(16), MAPPED + bytes(4)])
def test_an_unknown_peer_is_empty_and_a_wildcard_keeps_its_family(wildcard: bytes) -> None:
    event = decode_event(record(remote_address=wildcard, local_address=wildcard), 0)
    assert event is not None
    assert (event.remote_address, event.remote_port) == (b"", 0)
    assert event.local_address == (bytes(16) if wildcard == bytes(16) else bytes(4))


def test_what_closes_at_once_is_two_events() -> None:
    closing = record(kind=EventKind.ACCEPT, flags=layout.FLAG_CLOSES)
    events, unknown = decode_events([closing, record()])
    assert [event.kind for event in events] == [EventKind.ACCEPT, EventKind.CLOSE, EventKind.SEND]
    assert events[1] == events[0]._replace(kind=EventKind.CLOSE)
    assert unknown == 0


def test_a_kernel_thread_is_marked() -> None:
    event = decode_event(record(flags=layout.FLAG_KERNEL), 0)
    assert event is not None and event.kernel


@pytest.mark.parametrize(
    ("comm", "text"),
    [
        (b"nginx" + bytes(11), "nginx"),
        (b"sixteen-bytes-xy", "sixteen-bytes-xy"),
        (b"caf\xc3\xa9\0", "café"),
        (b"caf\xff\0", "caf\\xff"),
        (b") R 1 1\n\x1b[0m\0", ") R 1 1\n\x1b[0m"),
        (bytes(16), ""),
    ],
)
def test_a_name_may_be_any_bytes(comm: bytes, text: str) -> None:
    assert comm_text(comm) == text


def test_what_says_nothing_is_counted_and_the_rest_is_kept() -> None:
    events, unknown = decode_events([record(kind=0), record(inode=7), record(kind=99)])
    assert [event.inode for event in events] == [7]
    assert unknown == 2


def test_of_one_namespace_alone_if_asked() -> None:
    records = [record(netns=netns, inode=netns) for netns in (7, 2**32 - 7, 7 << 8)]
    for netns in (7, 2**32 - 7, 7 << 8):
        assert [event.inode for event in decode_events(records, netns)[0]] == [netns]
    assert decode_events(records, 8) == ([], 0)


@pytest.mark.parametrize(
    "wrong", [record()[:-1], record() + b"\0", b"", record(layout=layout.LAYOUT + 1)]
)
def test_another_layout_is_refused_and_costs_no_other_record(wrong: bytes) -> None:
    with pytest.raises(LayoutError, match="reinstall procnet"):
        decode_event(wrong, 0)
    events, unknown = decode_events([record(inode=3), wrong, record(inode=7)])
    assert ([event.inode for event in events], unknown) == ([3, 7], 1)
