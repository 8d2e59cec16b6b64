"""What a source of sockets promises, for both: sock_diag and /proc. Needs no root.

The kinds that only root may open, and the comparison of whole namespaces, are in
tests/privileged/test_diag.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from procnet.model import Support
from procnet.sockets.diag import probe_diag
from procnet.sockets.scanner import SocketScanner
from tests.conftest import require_or_skip
from tests.contract.every_socket import EverySocket, by_diag, by_proc, settled_rows


@pytest.fixture(params=["sock_diag", "proc"])
def source(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "sock_diag":
        feature = probe_diag()
        missing = "" if feature.support is Support.YES else feature.reason
        require_or_skip(missing, feature.remedy)
    return name


@pytest.fixture
def scanner(source: str) -> SocketScanner:
    return by_diag() if source == "sock_diag" else by_proc()


@pytest.fixture
def every() -> Iterator[EverySocket]:
    with EverySocket() as every:
        yield every


def test_every_socket_has_the_row_that_it_says_itself(
    scanner: SocketScanner, every: EverySocket
) -> None:
    rows = {s.inode: s for s in settled_rows(scanner, every) if s.inode}
    shown = {name: rows.get(s.inode) for name, s in every.expected.items()}
    assert shown == every.expected


def test_every_socket_is_held_by_this_process(scanner: SocketScanner, every: EverySocket) -> None:
    scan = scanner.scan(every.netns)
    for name, expected in every.expected.items():
        assert {p.pid for p in scan.holders[expected.inode]} == {os.getpid()}, name


def test_sockets_without_a_file_have_inode_0(scanner: SocketScanner, every: EverySocket) -> None:
    rows = settled_rows(scanner, every)
    seen = [(s.state, s.local_port, s.remote_port) for s in rows if not s.inode]
    assert {each: seen.count(each) for each in every.without_file} == dict.fromkeys(
        every.without_file, 1
    )


def test_a_scan_comes_from_the_source_that_the_test_is_about(
    source: str, scanner: SocketScanner, every: EverySocket
) -> None:
    scanner.scan(every.netns)
    asked = {"tcp", "tcp6", "udp", "udp6"} if source == "sock_diag" else set()
    assert scanner.diag_tables & {"tcp", "tcp6", "udp", "udp6"} == asked
