from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procnet.model import TCP, UDP, UDPLITE, Socket, Support
from procnet.sockets import diag as module
from procnet.sockets.diag import DIAG_TABLES, DiagError, DiagTables, parse_page, probe_diag
from tests.unit.sockets.clock import Clock
from tests.unit.sockets.netlink import (
    TCP_ESTABLISHED,
    TCP_LISTEN,
    TCP_SYN_RECV,
    TCP_TIME_WAIT,
    Answer,
    FakeNetlink,
    done,
    netlink_message,
    row,
)

NETNS = 4026531840
FOUR = socket.inet_aton("127.0.0.1")
WILDCARD6 = bytes(16)


def tables(fake: FakeNetlink, clock: Clock | None = None) -> DiagTables:
    return DiagTables(connect=fake.connect, clock=clock or Clock())


def always(*datagrams: bytes | OSError) -> FakeNetlink:
    """Answers every request with these; their sequence number must be 1."""
    return FakeNetlink(lambda protocol, family, sequence: datagrams)


# -- one datagram -----------------------------------------------------------------------------


def test_a_row_has_what_the_kernel_said() -> None:
    page = parse_page(
        row(("127.0.0.1", 7001), ("10.2.3.4", 443), state=TCP_ESTABLISHED, inode=501, uid=33),
        "tcp", NETNS, 1,
    )  # fmt: skip
    remote = bytes((10, 2, 3, 4))
    assert page.sockets == [Socket(NETNS, TCP, 4, FOUR, 7001, remote, 443, "established", 501, 33)]
    assert (page.malformed, page.done, page.interrupted, page.error) == (0, False, False, 0)


@pytest.mark.parametrize(
    ("table", "state", "told"),
    [("tcp", TCP_ESTABLISHED, 1009), ("tcp", TCP_LISTEN, 0), ("udp", TCP_ESTABLISHED, 0)],
)
def test_of_tcp_connections_the_bytes_in_the_send_queue_are_told(
    table: str, state: int, told: int
) -> None:
    page = parse_page(row(state=state, send_queue_bytes=1009), table, NETNS, 1)
    assert [s.send_queue_bytes for s in page.sockets] == [told]


def test_an_ipv6_row_keeps_its_wildcard_and_unwraps_mapped_addresses() -> None:
    pages = row(("::", 7001), ("::", 0)) + row(("::ffff:127.0.0.1", 7002), ("::", 0))
    page = parse_page(pages, "tcp6", NETNS, 1)
    assert [(s.family, s.local_address, s.remote_address) for s in page.sockets] == [
        (6, WILDCARD6, WILDCARD6),
        (6, FOUR, WILDCARD6),
    ]


def test_a_raw_row_has_a_protocol_and_no_ports() -> None:
    page = parse_page(row(("127.0.0.1", 253), ("127.0.0.2", 9), state=1), "raw", NETNS, 1)
    (found,) = page.sockets
    assert (found.protocol, found.local_port, found.remote_port) == (253, 0, 0)


@pytest.mark.parametrize(("table", "protocol"), [("tcp", TCP), ("udp", UDP), ("udplite", UDPLITE)])
def test_the_table_says_the_protocol(table: str, protocol: int) -> None:
    assert parse_page(row(), table, NETNS, 1).sockets[0].protocol == protocol


def test_runs_of_messages_with_different_attributes_are_all_read() -> None:
    attributes = [b"", b"\x05\0\x08\0\1\0\0\0", b"", b"", b"\x05\0\x01\0\0\0\0\0" * 5, b"\x09\0"]
    expected = list(range(501, 501 + 7 * len(attributes)))
    inodes = iter(expected)
    page = b"".join(row(inode=next(inodes), attributes=a) for a in attributes for _ in range(7))
    read = parse_page(page + done(), "tcp", NETNS, 1)
    assert [s.inode for s in read.sockets] == expected
    assert (read.malformed, read.done) == (0, True)


def test_the_last_message_may_lack_its_padding() -> None:
    page = row() + row(inode=503, attributes=b"\x05\0\x08\0\1")
    assert [s.inode for s in parse_page(page[:-3], "tcp", NETNS, 1).sockets] == [501, 503]


def test_a_state_that_is_not_known_is_unknown() -> None:
    assert parse_page(row(state=200), "tcp", NETNS, 1).sockets[0].state == "unknown"


@pytest.mark.parametrize(
    "stranger",
    [
        row(family=socket.AF_INET6),
        row(sequence=2),
        netlink_message(20, b"short"),
        netlink_message(16, bytes(100)),
        netlink_message(1, b""),
    ],
    ids=["family", "sequence", "short", "kind", "noop"],
)
def test_what_is_no_row_is_counted_and_the_rest_is_read(stranger: bytes) -> None:
    page = parse_page(row(inode=501) + stranger + row(inode=503), "tcp", NETNS, 1)
    assert ([s.inode for s in page.sockets], page.malformed) == ([501, 503], 1)


@pytest.mark.parametrize("length", [0, 15, 97, 0xFFFFFFFF])
def test_an_impossible_length_ends_the_datagram(length: int) -> None:
    page = row() + struct.pack("=I", length) + row()[4:]
    read = parse_page(page, "tcp", NETNS, 1)
    assert (len(read.sockets), read.malformed) == (1, 1)


def test_a_rest_that_is_no_message_is_counted() -> None:
    read = parse_page(row() + b"\0" * 7, "tcp", NETNS, 1)
    assert (len(read.sockets), read.malformed) == (1, 1)


def test_an_interrupted_dump_is_seen_in_any_message() -> None:
    page = row() + row(flags=2 | 0x10) + row()
    assert parse_page(page, "tcp", NETNS, 1).interrupted
    assert parse_page(done(flags=2 | 0x10), "tcp", NETNS, 1).interrupted
    assert not parse_page(row() + done(), "tcp", NETNS, 1).interrupted


def test_the_end_of_another_dump_is_not_ours() -> None:
    assert not parse_page(done(sequence=7), "tcp", NETNS, 1).done


@given(st.binary(max_size=600), st.sampled_from(DIAG_TABLES))
def test_any_bytes_are_a_page(page: bytes, table: str) -> None:
    read = parse_page(page, table, NETNS, 1)
    assert len(read.sockets) * 88 <= len(page)


pieces = st.one_of(
    st.binary(max_size=40),
    st.builds(
        row,
        state=st.integers(0, 255),
        inode=st.integers(0, 2**32 - 1),
        uid=st.integers(0, 2**32 - 1),
        attributes=st.binary(max_size=30),
        family=st.sampled_from([0, 2, 10, 99]),
        sequence=st.sampled_from([1, 1, 1, 2]),
        flags=st.integers(0, 0xFFFF),
    ),
    st.builds(netlink_message, st.integers(0, 30), st.binary(max_size=90)),
    st.builds(done, st.integers(-(2**31) + 1, 2**31 - 1)),
)


@given(
    st.lists(pieces, max_size=8).map(b"".join),
    st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), max_size=6),
    st.sampled_from(DIAG_TABLES),
)
def test_damaged_replies_neither_crash_nor_invent(
    page: bytes, damage: list[tuple[int, int]], table: str
) -> None:
    damaged = bytearray(page)
    for position, value in damage:
        if position < len(damaged):
            damaged[position] = value
    read = parse_page(damaged, table, NETNS, 1)
    assert len(read.sockets) * 88 <= len(page)
    for each in read.sockets:
        assert len(each.local_address) in (4, 16)
        assert 0 <= each.local_port <= 0xFFFF


@given(st.lists(st.tuples(st.integers(1, 12), st.binary(max_size=20)), max_size=30))
def test_every_row_is_read_once_whatever_follows_it(rows: list[tuple[int, bytes]]) -> None:
    page = b"".join(
        row(state=state, inode=number, attributes=attributes)
        for number, (state, attributes) in enumerate(rows)
    )
    read = parse_page(page, "tcp", NETNS, 1)
    assert [s.inode for s in read.sockets] == list(range(len(rows)))
    assert read.malformed == 0


def test_a_large_datagram_is_read_in_linear_time() -> None:
    # Lengths that alternate make the shortest runs.
    pair = row(attributes=b"") + row()

    def seconds(count: int) -> float:
        # Of this thread alone: whoever else keeps the machine busy is no matter.
        started = time.thread_time()
        assert len(parse_page(pair * count, "tcp", NETNS, 1).sockets) == 2 * count
        return time.thread_time() - started

    # Sixteen times as much: sixteen times as long, or 256 times.
    assert min(seconds(6400) for _ in range(5)) < 64 * min(seconds(400) for _ in range(5))


# -- a dump -----------------------------------------------------------------------------------


def test_a_table_is_read_over_many_datagrams() -> None:
    fake = always(row(inode=501), row(inode=503), row(inode=509) + done())
    assert [s.inode for s in tables(fake).table("tcp", NETNS)] == [501, 503, 509]
    assert fake.open == 0


def test_every_table_is_asked_for_by_its_protocol_and_family() -> None:
    fake = FakeNetlink(lambda protocol, family, sequence: [done(sequence=sequence)])
    assert tables(fake).read(NETNS) == {table: [] for table in DIAG_TABLES}
    assert fake.asked == [
        (protocol, family) for protocol in (6, 17, 136, 255) for family in (2, 10)
    ]


def test_a_table_without_a_module_is_left_out_and_not_asked_for_again() -> None:
    def answer(protocol: int, family: int, sequence: int) -> Answer:
        return [done(errno.ENOENT if protocol == 255 else 0, sequence=sequence)]

    fake = FakeNetlink(answer)
    diag = tables(fake)
    for _ in range(3):
        assert set(diag.read(NETNS)) == set(DIAG_TABLES) - {"raw", "raw6"}
    assert set(diag.absent) == {"raw", "raw6"}
    assert len([asked for asked in fake.asked if asked[0] == 255]) == 2
    assert diag.failures == 0


def test_an_error_message_is_an_answer_too() -> None:
    diag = tables(always(netlink_message(2, struct.pack("=i", -errno.ENOENT) + bytes(16))))
    with pytest.raises(DiagError, match="tcp"):
        diag.table("tcp", NETNS)
    assert "tcp" in diag.absent


def test_an_error_that_no_kernel_knows_is_one_all_the_same() -> None:
    diag = tables(always(row(), netlink_message(3, struct.pack("=i", -(2**31)))))
    assert "tcp" not in diag.read(NETNS)


def test_an_error_that_may_pass_is_not_remembered() -> None:
    answers = iter([[done(errno.EPERM)], [done(sequence=2)]])
    diag = tables(FakeNetlink(lambda protocol, family, sequence: next(answers)))
    with pytest.raises(DiagError):
        diag.table("tcp", NETNS)
    assert (diag.absent, diag.failures) == ({}, 1)
    assert diag.table("tcp", NETNS) == []


@pytest.mark.parametrize(
    "trouble", [done(flags=2 | 0x10), OSError(errno.ENOBUFS, "no room"), done(errno.ENOBUFS)]
)
def test_an_interrupted_dump_is_made_again(trouble: bytes | OSError) -> None:
    def answer(protocol: int, family: int, sequence: int) -> Answer:
        if sequence == 1:
            return [row(inode=777), trouble]
        return [row(inode=501, sequence=sequence), done(sequence=sequence)]

    assert [s.inode for s in tables(FakeNetlink(answer)).table("tcp", NETNS)] == [501]


def test_a_dump_that_is_always_interrupted_ends() -> None:
    fake = FakeNetlink(lambda protocol, family, sequence: [OSError(errno.ENOBUFS, "no room")])
    diag = tables(fake)
    with pytest.raises(DiagError, match="changed"):
        diag.table("tcp", NETNS)
    assert (len(fake.asked), diag.failures, fake.open) == (4, 1, 0)


def test_after_silence_nothing_is_asked_for_a_minute() -> None:
    fake, clock = always(), Clock()
    diag = tables(fake, clock)
    assert diag.read(NETNS) == diag.read(NETNS) == {}
    assert len(fake.asked) == 1
    clock.now_s += 60
    diag.read(NETNS)
    assert len(fake.asked) == 2


def test_an_answer_without_end_is_broken_off() -> None:
    fake = always(*[row()] * 1000)
    with pytest.raises(DiagError, match="no end"):
        tables(fake, Clock(step_s=0.1)).table("tcp", NETNS)


def test_what_does_not_come_from_the_kernel_is_not_believed() -> None:
    fake = always(row(), done())
    fake.sender = 4242
    diag = tables(fake)
    with pytest.raises(DiagError):
        diag.table("tcp", NETNS)
    assert diag.malformed_messages == 2


def test_a_datagram_that_was_cut_short_is_not_believed() -> None:
    with pytest.raises(DiagError, match="cut short"):
        tables(always(row() * 1000)).table("tcp", NETNS)


@pytest.mark.parametrize("refusal", [errno.EPROTONOSUPPORT, errno.EPERM, errno.EMFILE])
def test_a_netlink_that_cannot_be_had_leaves_every_table_out(refusal: int) -> None:
    def refuse() -> socket.socket:
        raise OSError(refusal, "refused")

    assert DiagTables(connect=refuse).read(NETNS) == {}


def test_a_handshake_has_the_uid_of_its_listener() -> None:
    page = (
        row(("127.0.0.1", 7001), uid=33) + row(("0.0.0.0", 7001), uid=44)
        + row(("0.0.0.0", 7002), uid=55)
        + row(("127.0.0.1", 7001), ("127.0.0.1", 9), state=TCP_SYN_RECV, inode=0)
        + row(("127.0.0.2", 7002), ("127.0.0.1", 9), state=TCP_SYN_RECV, inode=0)
        + row(("127.0.0.1", 7003), ("127.0.0.1", 9), state=TCP_SYN_RECV, inode=0)
        + row(("127.0.0.1", 7001), ("127.0.0.1", 9), state=TCP_TIME_WAIT, inode=0)
    )  # fmt: skip
    found = tables(always(page, done())).table("tcp", NETNS)
    assert [s.uid for s in found if s.state != "listen"] == [33, 55, 0, 0]


@given(st.lists(st.lists(pieces, max_size=4).map(b"".join), max_size=6))
def test_any_answer_comes_to_an_end(datagrams: list[bytes]) -> None:
    fake = always(*datagrams)
    diag = tables(fake)
    for table in DIAG_TABLES:
        with contextlib.suppress(DiagError):
            assert isinstance(diag.table(table, NETNS), list)
    assert fake.open == 0


# -- the probe --------------------------------------------------------------------------------


def probed(monkeypatch: pytest.MonkeyPatch, fake: FakeNetlink) -> tuple[Support, str, str]:
    monkeypatch.setattr(module, "open_diag", fake.connect)
    feature = probe_diag()
    assert feature.name == "sock_diag owners"
    return feature.support, feature.reason, feature.remedy


def test_the_probe_says_which_tables_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(protocol: int, family: int, sequence: int) -> Answer:
        return [done(errno.ENOENT if protocol in (136, 255) else 0, sequence=sequence)]

    support, reason, _ = probed(monkeypatch, FakeNetlink(answer))
    assert support is Support.YES
    assert "tells tcp, tcp6, udp, udp6;" in reason
    assert "/proc/net tells" in reason and "raw6" in reason


def test_the_probe_says_no_without_the_module_of_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(protocol: int, family: int, sequence: int) -> Answer:
        return [done(errno.ENOENT if protocol == 6 else 0, sequence=sequence)]

    support, reason, remedy = probed(monkeypatch, FakeNetlink(answer))
    assert support is Support.NO
    assert "tcp" in reason
    assert "modprobe tcp_diag udp_diag" in remedy


def test_the_probe_does_not_know_where_netlink_is_forbidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = always(OSError(errno.EPERM, "Operation not permitted"))
    support, reason, _ = probed(monkeypatch, fake)
    assert support is Support.UNKNOWN
    assert "not permitted" in reason


def test_the_parser_knows_the_size_of_the_kernels_structure() -> None:
    # struct inet_diag_msg is 72 bytes in every kernel: include/uapi/linux/inet_diag.h.
    assert len(row(attributes=b"")) == 16 + 72
    assert TCP_LISTEN == module._LISTEN
