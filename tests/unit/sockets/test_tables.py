"""Lines of /proc/net, captured from a little-endian machine (Linux 6.18) unless built here."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procnet.model import ICMP, ICMP6, TCP, UDP, UDPLITE, Socket
from procnet.sockets.tables import TABLES, decode_address, parse_table, settled_ping_sockets

captured = pytest.mark.skipif(
    sys.byteorder != "little", reason="captured on a little-endian machine; run it on one"
)

LO = bytes([127, 0, 0, 1])
LO6 = bytes(15) + b"\x01"
ULA = bytes.fromhex("fd000000000000001234 56789abcdef0".replace(" ", ""))
ANY, ANY6 = bytes(4), bytes(16)

TCP4_TABLE = b"""\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000001 00:00000000 00000000     0        0 32476 2 000000003d8a3f74 100 0 0 10 0
   1: 0100007F:1F90 0100007F:D6F4 01 00000000:00000000 00:00000000 00000000  1000        0 32478 1 00000000a8005e90 20 0 0 10 -1
   5: 0100007F:D6F8 0100007F:1F90 06 00000000:00000000 03:0000176D 00000000     0        0 0 3 0000000000a5b37e
"""  # noqa: E501
TCP6_TABLE = b"""\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:20FB 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 32479 1 0000000008fb2d4e 100 0 0 10 0
   1: 0000000000000000FFFF00000708090A:20FB 0000000000000000FFFF00000708090A:E750 01 00000000:00000000 00:00000000 00000000     0        0 32483 1 0000000086fe8f37 20 0 0 10 -1
   2: 000000FD0000000078563412F0DEBC9A:20FB 000000FD0000000078563412F0DEBC9A:DA9E 01 00000000:00000000 00:00000000 00000000     0        0 32481 1 000000002d2ca3e2 20 0 0 10 -1
"""  # noqa: E501
UDP4_TABLE = b"""\
   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
 1758: 0100007F:C871 0100007F:0035 01 00000000:00000000 00:00000000 00000000     0        0 32488 2 000000004e22f45f 0
 4950: 00000000:14E9 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 32487 2 00000000dc2583ff 0
"""  # noqa: E501
UDPLITE6_TABLE = b"""\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
 7374: 00000000000000000000000001000000:1E61 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 32492 2 0000000047da41f0 0
"""  # noqa: E501
RAW4_TABLE = b"""\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  84: 00000000:00FD 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 32493 2 0000000061c924b5 0
 147: 0100007F:0001 0100007F:0000 01 00000000:00000000 00:00000000 00000000     0        0 32494 2 0000000012dfd028 0
"""  # noqa: E501
RAW6_TABLE = b"""\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  142: 00000000000000000000000000000000:003A 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 32495 2 00000000bf7d3c89 0
"""  # noqa: E501
ICMP_TABLE = b"""\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
    8: 0100007F:595B 0100007F:004D 01 00000000:00000000 00:00000000 00000000     0        0 32497 2 000000007a6c8348 0
   33: 0100007F:1234 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 32496 2 000000008ffe62b9 0
"""  # noqa: E501
ICMP6_TABLE = b"""\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
   14: 00000000000000000000000001000000:4321 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 32498 2 00000000def63a3a 0
"""  # noqa: E501
PACKET_TABLE = b"""\
sk               RefCnt Type Proto  Iface R Rmem   User   Inode
000000003e69e2b8 3      3    0003   0     1 0      0      32499 
00000000c1403935 3      2    0800   1     1 0      1000   32500 
"""  # noqa: W291


@captured
@pytest.mark.parametrize(
    ("table", "text", "sockets"),
    [
        (
            "tcp",
            TCP4_TABLE,
            [
                Socket(7, TCP, 4, LO, 8080, ANY, 0, "listen", 32476, 0),
                Socket(7, TCP, 4, LO, 8080, LO, 55028, "established", 32478, 1000),
                Socket(7, TCP, 4, LO, 55032, LO, 8080, "time_wait", 0, 0),
            ],
        ),
        (
            "tcp6",
            TCP6_TABLE,
            [
                Socket(7, TCP, 6, ANY6, 8443, ANY6, 0, "listen", 32479, 0),
                Socket(
                    7, TCP, 6, bytes([10, 9, 8, 7]), 8443, bytes([10, 9, 8, 7]), 59216,
                    "established", 32483, 0,
                ),
                Socket(7, TCP, 6, ULA, 8443, ULA, 55966, "established", 32481, 0),
            ],
        ),
        (
            "udp",
            UDP4_TABLE,
            [
                Socket(7, UDP, 4, LO, 51313, LO, 53, "established", 32488, 0),
                Socket(7, UDP, 4, ANY, 5353, ANY, 0, "unconnected", 32487, 0),
            ],
        ),
        (
            "udplite6",
            UDPLITE6_TABLE,
            [Socket(7, UDPLITE, 6, LO6, 7777, ANY6, 0, "unconnected", 32492, 0)],
        ),
        (
            "raw",
            RAW4_TABLE,
            [
                Socket(7, 253, 4, ANY, 0, ANY, 0, "unconnected", 32493, 0),
                Socket(7, ICMP, 4, LO, 0, LO, 0, "established", 32494, 0),
            ],
        ),
        ("raw6", RAW6_TABLE, [Socket(7, ICMP6, 6, ANY6, 0, ANY6, 0, "unconnected", 32495, 0)]),
        (
            "icmp",
            ICMP_TABLE,
            [
                Socket(7, ICMP, 4, LO, 0x595B, LO, 0x595B, "established", 32497, 0),
                Socket(7, ICMP, 4, LO, 0x1234, ANY, 0, "unconnected", 32496, 0),
            ],
        ),
        (
            "icmp6",
            ICMP6_TABLE,
            [Socket(7, ICMP6, 6, LO6, 0x4321, ANY6, 0, "unconnected", 32498, 0)],
        ),
        (
            "packet",
            PACKET_TABLE,
            [
                Socket(7, 0, 0, b"", 0, b"", 0, "packet", 32499, 0),
                Socket(7, 0, 0, b"", 0, b"", 0, "packet", 32500, 1000),
            ],
        ),
    ],
)  # fmt: skip
def test_each_table_of_a_real_kernel_is_understood(
    table: str, text: bytes, sockets: list[Socket]
) -> None:
    assert parse_table(table, text, 7) == (sockets, 0)


def test_an_ipv4_address_is_a_word_in_host_order() -> None:
    word = int.from_bytes(LO, sys.byteorder)
    assert decode_address(f"{word:08X}") == LO


def test_an_ipv6_address_is_four_words_in_host_order() -> None:
    words = [int.from_bytes(ULA[i : i + 4], sys.byteorder) for i in range(0, 16, 4)]
    assert decode_address("".join(f"{word:08X}" for word in words)) == ULA


def test_an_ipv6_wildcard_stays_one() -> None:
    assert decode_address("0" * 32) == ANY6


def test_text_of_another_length_is_no_address() -> None:
    with pytest.raises(ValueError):
        decode_address("0100007F00")


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (1, "established"), (2, "syn_sent"), (3, "syn_recv"), (4, "fin_wait_1"),
        (5, "fin_wait_2"), (6, "time_wait"), (7, "unconnected"), (8, "close_wait"),
        (9, "last_ack"), (10, "listen"), (11, "closing"), (12, "syn_recv"), (99, "unknown"),
    ],
)  # fmt: skip
def test_states_have_the_names_of_ss(number: int, name: str) -> None:
    text = TCP4_TABLE.replace(b" 0A ", b" %02X " % number)
    assert parse_table("tcp", text, 7)[0][0].state == name


def test_a_malformed_line_is_counted_and_the_others_stand() -> None:
    lines = TCP4_TABLE.splitlines(keepends=True)
    for broken in (
        b"   1: 0100007F:1F90\n",
        b"\xff\xfe\x00\n",
        lines[2].replace(b"0100007F:D6F4", b"0100007F00:D6F4"),
        lines[2].replace(b" 32478 ", b" 3247x "),
        lines[2].replace(b" 32478 ", b" " + b"9" * 5000 + b" "),
        lines[2][:60] + b"\n",
    ):
        sockets, malformed = parse_table("tcp", b"".join([*lines[:2], broken, lines[3]]), 7)
        assert [s.inode for s in sockets] == [32476, 0]
        assert malformed == 1


def test_a_table_cut_short_in_its_last_line_loses_that_line_only() -> None:
    sockets, malformed = parse_table("udp", UDP4_TABLE[:-60], 7)
    assert (len(sockets), malformed) == (1, 1)


@pytest.mark.parametrize("text", [b"", b"\n", b"heading", b"heading\n"])
def test_an_empty_table_has_no_sockets(text: bytes) -> None:
    assert parse_table("tcp", text, 7) == ([], 0)


def test_line_numbers_wider_than_their_column_are_no_trouble() -> None:
    text = TCP4_TABLE.replace(b"   0: ", b"123456: ")
    assert len(parse_table("tcp", text, 7)[0]) == 3


def test_of_tcp_connections_the_bytes_in_the_send_queue_are_told() -> None:
    text = TCP4_TABLE.replace(b" 00000000:", b" 000003F1:")
    rows = {s.state: s.send_queue_bytes for s in parse_table("tcp", text, 7)[0]}
    assert rows == {"listen": 0, "established": 1009, "time_wait": 1009}
    text = UDP4_TABLE.replace(b" 00000000:", b" 000003F1:")
    assert {s.send_queue_bytes for s in parse_table("udp", text, 7)[0]} == {0}


def ping(family: int, echo_id: int, inode: int, local: bytes = b"") -> Socket:
    any_address = ANY if family == 4 else ANY6
    protocol = ICMP if family == 4 else ICMP6
    return Socket(
        7, protocol, family, local or any_address, echo_id, any_address, 0, "unconnected", inode, 0
    )


def test_a_ping_socket_that_the_kernel_lists_under_both_families_is_one() -> None:
    # Linux 6.18: the IPv4 socket 501 and the IPv6 socket 502 have the same id.
    four = [ping(4, 7004, 501, LO)]
    six = [ping(6, 7004, 502, LO6), ping(6, 7004, 501)]
    assert settled_ping_sockets(four, six) == [four[0], six[0]]


def test_unbound_ping_sockets_are_told_apart_by_the_first_of_the_bucket() -> None:
    four = [ping(4, 100, 501), ping(4, 164, 502)]
    six = [ping(6, 164, 502)]
    assert settled_ping_sockets(four, six) == [four[0], six[0]]


def test_a_connected_ipv6_ping_socket_is_not_the_ipv4_one_it_shows_as() -> None:
    four = [ping(4, 100, 501), ping(4, 164, 502, bytes([127, 0, 0, 6]))]
    six = [ping(6, 164, 502, LO6)]
    assert settled_ping_sockets(four, six) == [four[0], six[0]]


def test_ping_sockets_of_different_buckets_stand_as_they_are() -> None:
    four, six = [ping(4, 100, 501)], [ping(6, 101, 502)]
    assert settled_ping_sockets(four, six) == four + six


@given(st.sampled_from(TABLES), st.binary())
def test_random_bytes_never_crash_the_parser(table: str, text: bytes) -> None:
    sockets, malformed = parse_table(table, text, 7)
    assert len(sockets) + malformed <= text.count(b"\n") + 1


@given(st.sampled_from([TCP4_TABLE, UDP4_TABLE]), st.integers(0, 500))
def test_a_line_cut_in_two_never_makes_up_an_inode(text: bytes, at: int) -> None:
    whole = {s.inode for s in parse_table("tcp", text, 7)[0]}
    cut = text[:at] + b"\n" + text[at:]
    assert {s.inode for s in parse_table("tcp", cut, 7)[0]} <= whole
