"""Which source a scan takes for which table. What it then does with holders: test_procfs.py."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from procnet.model import SocketScan
from procnet.sockets.diag import DIAG_TABLES, DiagTables
from procnet.sockets.fork_events import Fork
from procnet.sockets.forks import Forks
from procnet.sockets.scanner import SocketScanner
from procnet.testing.proc_tree import ProcTree
from tests.unit.sockets.netlink import Answer, FakeNetlink, done, row

OURS, OTHER = 4026531840, 4026532999


@pytest.fixture
def tree(tmp_path: Path) -> ProcTree:
    """This process is 23, in one namespace; 31 is in another. Each has two sockets in /proc."""
    tree = ProcTree(tmp_path)
    tree.add_process(23, fds=[501, 502, 503])
    tree.add_process(31, fds=[601, 602], netns=OTHER)
    tree.be(23)
    (tree.root / "thread-self").symlink_to("23")
    tree.add_socket("tcp", inode=501)
    tree.add_socket("packet", inode=502)
    tree.add_socket("tcp", inode=601, netns=OTHER)
    tree.add_socket("packet", inode=602, netns=OTHER)
    return tree


def tells(inode: int, *, lacks: int = 0) -> FakeNetlink:
    """A sock_diag that has one TCP socket, and no module for the protocol ``lacks``."""

    def answer(protocol: int, family: int, sequence: int) -> Answer:
        if protocol == lacks:
            return [done(errno.ENOENT, sequence=sequence)]
        rows = row(inode=inode, sequence=sequence) if (protocol, family) == (6, 2) else b""
        return [rows + done(sequence=sequence)]

    return FakeNetlink(answer)


def inodes(scan: SocketScan) -> list[int]:
    return sorted(s.inode for s in scan.sockets)


def test_our_own_namespace_is_told_by_sock_diag_and_what_it_lacks_by_proc(tree: ProcTree) -> None:
    scanner = SocketScanner(tree.root, diag=DiagTables(connect=tells(503).connect))
    scan = scanner.scan(OURS)
    assert inodes(scan) == [502, 503]
    assert {p.pid for holders in scan.holders.values() for p in holders} == {23}
    assert scanner.diag_tables == set(DIAG_TABLES)


def test_another_namespace_is_told_by_proc(tree: ProcTree) -> None:
    fake = tells(503)
    scanner = SocketScanner(tree.root, diag=DiagTables(connect=fake.connect))
    assert inodes(scanner.scan(OTHER)) == [601, 602]
    assert (fake.asked, scanner.diag_tables) == ([], set())
    assert inodes(scanner.scan()) == [502, 503, 601, 602]


def test_the_namespace_of_the_thread_counts_not_that_of_the_process(tree: ProcTree) -> None:
    (tree.root / "thread-self").unlink()
    (tree.root / "thread-self").symlink_to("31")
    scanner = SocketScanner(tree.root, diag=DiagTables(connect=tells(602).connect))
    assert inodes(scanner.scan(OURS)) == [501, 502]
    assert inodes(scanner.scan(OTHER)) == [602, 602]


def test_a_table_that_sock_diag_lacks_is_read_from_proc(tree: ProcTree) -> None:
    scanner = SocketScanner(tree.root, diag=DiagTables(connect=tells(503, lacks=6).connect))
    for _ in range(2):
        assert inodes(scanner.scan(OURS)) == [501, 502]
        assert scanner.diag_tables == set(DIAG_TABLES) - {"tcp", "tcp6"}


def test_a_proc_that_is_not_ours_is_read_without_sock_diag(tree: ProcTree) -> None:
    (tree.root / "thread-self").unlink()
    fake = tells(503)
    scanner = SocketScanner(tree.root, diag=DiagTables(connect=fake.connect))
    assert inodes(scanner.scan(OURS)) == [501, 502]
    assert fake.asked == []


def test_sock_diag_can_be_left_alone(tree: ProcTree) -> None:
    scanner = SocketScanner(tree.root, use_diag=False)
    assert inodes(scanner.scan(OURS)) == [501, 502]


def test_messages_that_are_not_understood_are_counted_with_the_lines(tree: ProcTree) -> None:
    def answer(protocol: int, family: int, sequence: int) -> Answer:
        return [row(sequence=sequence - 1), done(sequence=sequence)]

    scanner = SocketScanner(tree.root, diag=DiagTables(connect=FakeNetlink(answer).connect))
    for _ in range(2):
        assert scanner.scan(OURS).malformed_rows == len(DIAG_TABLES)


class OneFork:
    """Of 23, during the first look."""

    def __init__(self) -> None:
        self._told: list[list[Fork]] = [[], [Fork(23, 1009)]]

    def read(self) -> list[Fork]:
        return self._told.pop(0) if self._told else []


def test_where_the_kernel_tells_of_forks_it_is_believed(tree: ProcTree) -> None:
    forks = Forks(OneFork(), str(tree.root))  # type: ignore[arg-type]
    scanner = SocketScanner(tree.root, use_diag=False, forks=forks)
    forked = [{process.pid for process in scanner.scan().forked or ()} for _ in range(3)]
    assert forked == [{23}, {23}, set()]
