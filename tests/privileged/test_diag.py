"""sock_diag against /proc: sockets of every kind in a namespace of their own, row by row."""

from __future__ import annotations

import pytest

from procnet.model import Socket, Support
from procnet.sockets.diag import probe_diag
from tests.contract.every_socket import (
    EverySocket,
    by_diag,
    by_proc,
    differences,
    settled_rows,
)
from tests.privileged.namespace import Namespace

STATES = {
    "established", "syn_sent", "syn_recv", "fin_wait_1", "fin_wait_2", "time_wait", "unconnected",
    "close_wait", "last_ack", "listen", "packet",
}  # fmt: skip


@pytest.fixture
def space(loopback: Namespace) -> Namespace:
    # Packets to 192.0.2.1 find a device and nobody.
    loopback.run(["ip", "route", "add", "192.0.2.0/24", "dev", "lo"])
    return loopback


def rows_of_both() -> tuple[list[Socket], dict[str, Socket], list[Socket], frozenset[str]]:
    with EverySocket(privileged=True) as every:
        fast = by_diag()
        return (
            settled_rows(fast, every),
            every.expected,
            settled_rows(by_proc(), every),
            fast.diag_tables,
        )


def compared() -> tuple[list[str], list[str]]:
    """What the two tell differently, and which of the sockets there was nothing to tell of."""
    with EverySocket(privileged=True) as every:
        shown = set(settled_rows(by_proc(), every))
        missing = [name for name, each in every.expected.items() if each not in shown]
        return list(differences()), missing


def test_both_sources_tell_the_same_row_by_row(space: Namespace) -> None:
    found, missing = space.call(compared)
    assert found == []
    assert missing == []


def test_both_sources_tell_what_every_socket_says_itself(space: Namespace) -> None:
    by_sock_diag, expected, by_proc_net, told = space.call(rows_of_both)
    assert {"tcp", "tcp6", "udp", "udp6"} <= told
    for rows in (by_sock_diag, by_proc_net):
        shown = {s.inode: s for s in rows if s.inode}
        assert {name: shown.get(s.inode) for name, s in expected.items()} == expected
        assert {s.state for s in rows} >= STATES


def test_an_empty_namespace_has_no_sockets(loopback: Namespace) -> None:
    assert loopback.call(compare_nothing) == []


def compare_nothing() -> list[str]:
    return list(differences())


def test_the_probe_says_that_sock_diag_tells_tcp_and_udp() -> None:
    feature = probe_diag()
    assert feature.support is Support.YES, feature.reason
    assert "tcp, tcp6, udp, udp6" in feature.reason
