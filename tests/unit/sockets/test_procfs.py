from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from procnet.errors import AccessError, ProcnetError
from procnet.model import TCP, ProcessId, SocketScan, Support
from procnet.sockets.procfs import probe
from procnet.sockets.scanner import SocketScanner
from procnet.testing.proc_tree import ProcTree
from tests.unit.sockets.clock import Clock

OTHER_NETNS = 4026532999
NOBODY = 65534


def identity(pid: int, start_ticks: int = 100) -> ProcessId:
    return ProcessId(pid, start_ticks * 10_000_000)


def pids(scan: SocketScan, inode: int) -> set[int]:
    return {process.pid for process in scan.holders.get(inode, ())}


def test_a_socket_has_the_process_that_has_it_open(tree: ProcTree) -> None:
    tree.add_process(23, fds=[501])
    tree.add_process(29, fds=[502])
    tree.add_socket("tcp", ("127.0.0.1", 80), inode=501, uid=33)
    scan = SocketScanner(tree.root).scan()
    (socket,) = scan.sockets
    assert (socket.protocol, socket.local_port, socket.state, socket.uid) == (TCP, 80, "listen", 33)
    assert scan.holders == {501: frozenset({identity(23)})}


def test_a_shared_socket_has_every_holder(tree: ProcTree) -> None:
    for pid in (23, 29, 31):
        tree.add_process(pid, fds=[501, 501])
    tree.add_socket("tcp", inode=501)
    scan = SocketScanner(tree.root).scan()
    assert scan.holders == {501: frozenset(map(identity, (23, 29, 31)))}


def test_a_socket_without_an_inode_has_no_holder(tree: ProcTree) -> None:
    tree.add_process(23)
    tree.add_socket("tcp", state="time_wait", remote=("127.0.0.1", 80), inode=0)
    scan = SocketScanner(tree.root).scan()
    assert len(scan.sockets) == 1
    assert scan.holders == {}


def test_every_namespace_with_a_process_is_seen_once(tree: ProcTree) -> None:
    tree.add_process(23, fds=[501])
    tree.add_process(29)
    tree.add_process(31, fds=[601], netns=OTHER_NETNS)
    tree.be(23)
    tree.add_socket("udp", ("127.0.0.1", 53), inode=501)
    tree.add_socket("udp", ("127.0.0.1", 53), inode=601, netns=OTHER_NETNS)
    scan = SocketScanner(tree.root).scan()
    assert sorted((s.netns, s.inode) for s in scan.sockets) == [
        (4026531840, 501),
        (OTHER_NETNS, 601),
    ]
    assert (pids(scan, 501), pids(scan, 601)) == ({23}, {31})


def test_one_namespace_can_be_asked_for(tree: ProcTree) -> None:
    tree.add_process(23, fds=[501])
    tree.add_process(31, fds=[601], netns=OTHER_NETNS)
    tree.be(23)
    tree.add_socket("udp", inode=501)
    tree.add_socket("udp", inode=601, netns=OTHER_NETNS)
    scanner = SocketScanner(tree.root)
    assert [s.inode for s in scanner.scan(OTHER_NETNS).sockets] == [601]


def test_a_namespace_that_nobody_shows_is_not_one_without_sockets(tree: ProcTree) -> None:
    tree.add_process(23)
    tree.add_process(31, fds=[601], netns=OTHER_NETNS)
    tree.add_socket("udp", inode=601, netns=OTHER_NETNS)
    scanner = SocketScanner(tree.root)
    assert [s.inode for s in scanner.scan(OTHER_NETNS).sockets] == [601]
    tree.move(31, 4026531840)
    with pytest.raises(ProcnetError, match=f"{OTHER_NETNS}: no process shows them"):
        scanner.scan(OTHER_NETNS)
    tree.move(23, OTHER_NETNS)
    assert [s.inode for s in scanner.scan(OTHER_NETNS).sockets] == [601]


def test_a_namespace_is_read_by_another_process_when_the_first_is_gone(tree: ProcTree) -> None:
    for pid in (31, 37):
        tree.add_process(pid, netns=OTHER_NETNS)
    tree.add_socket("udp", inode=601, netns=OTHER_NETNS)
    scanner = SocketScanner(tree.root)
    scanner.scan(OTHER_NETNS)
    tree.remove_process(31)
    assert len(scanner.scan(OTHER_NETNS).sockets) == 1
    tree.move(37, 4026531840)
    tree.add_process(31, netns=OTHER_NETNS)
    assert len(scanner.scan(OTHER_NETNS).sockets) == 1


def test_a_process_that_changes_its_namespace_while_it_is_read_misleads_nobody(
    tree: ProcTree,
) -> None:
    tree.add_process(23)
    tree.add_socket("udp", inode=601, netns=OTHER_NETNS)
    table = tree.tables() / "tcp"
    table.unlink()
    os.mkfifo(table)

    def move() -> None:
        writer = os.open(table, os.O_WRONLY)  # returns when the scanner opens it
        tree.move(23, OTHER_NETNS)
        os.close(writer)

    moving = threading.Thread(target=move)
    moving.start()
    with pytest.raises(ProcnetError, match="no process shows them"):
        SocketScanner(tree.root).scan(4026531840)
    moving.join()


def test_the_files_of_all_processes_are_not_walked_when_nothing_is_new(
    tree: ProcTree, clock: Clock
) -> None:
    tree.add_process(23, fds=[501, 502])
    tree.add_socket("tcp", inode=501)
    scanner = SocketScanner(tree.root, clock=clock)
    scanner.scan()
    # Bound only now, but it was open when the files were walked.
    tree.add_socket("tcp", inode=502)
    assert pids(scanner.scan(), 502) == {23}
    assert scanner.fd_walks == 1


def test_a_new_socket_is_looked_for(tree: ProcTree, clock: Clock) -> None:
    tree.add_process(23)
    scanner = SocketScanner(tree.root, clock=clock)
    scanner.scan()
    tree.open_socket(23, 501, 3)
    tree.add_socket("tcp", inode=501)
    assert pids(scanner.scan(), 501) == {23}
    assert scanner.fd_walks == 2


def test_a_socket_of_nobody_is_looked_for_once_in_max_age(tree: ProcTree, clock: Clock) -> None:
    tree.add_process(23, fds=[501])
    for inode in (501, 777):
        tree.add_socket("tcp", inode=inode)
    scanner = SocketScanner(tree.root, max_age_s=5, clock=clock)
    for _ in range(3):
        assert 777 not in scanner.scan().holders
    assert scanner.fd_walks == 1
    clock.now_s += 5
    scanner.scan()
    assert scanner.fd_walks == 2


def test_two_namespaces_with_sockets_of_nobody_do_not_drive_each_other(
    tree: ProcTree, clock: Clock
) -> None:
    tree.add_process(23)
    tree.add_process(31, netns=OTHER_NETNS)
    tree.add_socket("tcp", inode=777)
    tree.add_socket("tcp", inode=778, netns=OTHER_NETNS)
    scanner = SocketScanner(tree.root, clock=clock)
    for walks in (2, 4):
        for _ in range(3):
            scanner.scan(4026531840)
            scanner.scan(OTHER_NETNS)
        assert scanner.fd_walks == walks
        clock.now_s += 5


def test_a_socket_of_nobody_is_found_at_max_age_however_busy_the_host(
    tree: ProcTree, clock: Clock
) -> None:
    tree.add_process(23)
    tree.add_socket("tcp", inode=777)
    scanner = SocketScanner(tree.root, max_age_s=5, clock=clock)
    scanner.scan()
    tree.open_socket(23, 777, 3)
    for step in range(6):  # a new socket each second makes every walk a young one
        clock.now_s += 1
        tree.open_socket(23, 900 + step, 10 + step)
        tree.add_socket("tcp", inode=900 + step)
        scan = scanner.scan()
    assert pids(scan, 777) == {23}


def test_a_process_that_began_since_the_walk_is_read_at_each_look(
    tree: ProcTree, clock: Clock
) -> None:
    tree.add_process(23, fds=[501])
    tree.add_socket("tcp", inode=501)
    scanner = SocketScanner(tree.root, clock=clock)
    scanner.scan()
    tree.add_process(29, fds=[501, 502], parent_pid=23)  # as a fork does: no new socket
    tree.add_socket("tcp", inode=502)
    scan = scanner.scan()
    assert (pids(scan, 501), pids(scan, 502)) == ({23, 29}, {29})
    assert scanner.fd_walks == 1


def test_a_socket_that_is_as_new_as_its_holder_may_have_come_from_an_older_process(
    tree: ProcTree, clock: Clock
) -> None:
    tree.add_process(23)
    scanner = SocketScanner(tree.root, clock=clock)
    scanner.scan()
    tree.open_socket(23, 501, 3)
    tree.add_process(29, parent_pid=23)
    tree.add_process(31, parent_pid=29, fds=[501])
    tree.add_socket("tcp", inode=501)
    assert pids(scanner.scan(), 501) == {23, 31}
    assert scanner.fd_walks == 1
    tree.open_socket(23, 502, 4)
    tree.add_process(37, fds=[502])  # whose parent has ended
    tree.add_socket("tcp", inode=502)
    assert pids(scanner.scan(), 502) == {23, 37}
    assert scanner.fd_walks == 2
    tree.add_process(41, parent_pid=43, fds=[503])  # in a circle, and none of them is older
    tree.add_process(43, parent_pid=41)
    tree.open_socket(23, 503, 5)
    tree.add_socket("tcp", inode=503)
    assert pids(scanner.scan(), 503) == {23, 41}
    assert scanner.fd_walks == 3


def test_descriptors_that_were_closed_since_they_were_listed_hide_no_other(
    tree: ProcTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.add_process(23, fds=[501, 502, 503])
    tree.add_socket("tcp", inode=501)
    for inode in (502, 503):
        tree.add_socket("udp", inode=inode)
    listed = os.listdir

    def with_closed_ones(path: str | int) -> list[str]:
        names = listed(path)
        return ["96", *names[:2], "97", "98", *names[2:], "99"] if isinstance(path, int) else names

    monkeypatch.setattr(os, "listdir", with_closed_ones)
    scan = SocketScanner(tree.root).scan()
    assert [pids(scan, inode) for inode in (501, 502, 503)] == [{23}] * 3


@pytest.mark.parametrize(
    "name", ["/tmp/socket:[501]", "socket:[501] (deleted)", "\nsocket:[501]\n", "xsocket:[501]"]
)
def test_a_file_whose_name_is_that_of_a_socket_is_none(tree: ProcTree, name: str) -> None:
    directory = tree.add_process(23)
    (directory / "fd" / "3").symlink_to(name)
    tree.add_socket("tcp", inode=501)
    assert SocketScanner(tree.root).scan().holders == {}


def test_a_descriptor_that_was_passed_on_is_seen_at_max_age(tree: ProcTree, clock: Clock) -> None:
    tree.add_process(23, fds=[501])
    tree.add_process(29)
    tree.add_socket("tcp", inode=501)
    scanner = SocketScanner(tree.root, max_age_s=5, clock=clock)
    assert pids(scanner.scan(), 501) == {23}
    tree.open_socket(29, 501, 3)
    clock.now_s += 5
    assert pids(scanner.scan(), 501) == {23, 29}


def test_refresh_walks_in_any_case(tree: ProcTree, clock: Clock) -> None:
    tree.add_process(23, fds=[501])
    tree.add_process(29)
    tree.add_socket("tcp", inode=501)
    scanner = SocketScanner(tree.root, clock=clock)
    scanner.scan()
    tree.open_socket(29, 501, 3)
    assert pids(scanner.scan(refresh=True), 501) == {23, 29}


def test_a_holder_that_ended_is_not_named(tree: ProcTree, clock: Clock) -> None:
    for pid in (23, 29):
        tree.add_process(pid, fds=[501])
    tree.add_socket("tcp", inode=501)
    scanner = SocketScanner(tree.root, clock=clock)
    scanner.scan()
    tree.remove_process(23)
    assert pids(scanner.scan(), 501) == {29}
    assert scanner.fd_walks == 1


def test_a_process_that_got_the_number_of_a_holder_is_not_named(
    tree: ProcTree, clock: Clock
) -> None:
    for pid in (23, 29):
        tree.add_process(pid, fds=[501])
    tree.add_socket("tcp", inode=501)
    scanner = SocketScanner(tree.root, clock=clock)
    scanner.scan()
    tree.remove_process(23)
    tree.add_process(23, start_ticks=101)
    assert scanner.scan().holders == {501: frozenset({identity(29)})}


def test_a_process_that_got_the_number_of_another_since_the_walk_is_read(
    tree: ProcTree, clock: Clock
) -> None:
    tree.add_process(23, fds=[501])
    tree.add_process(29)
    tree.add_socket("tcp", inode=501)
    scanner = SocketScanner(tree.root, clock=clock)
    scanner.scan()
    tree.remove_process(29)
    tree.add_process(29, start_ticks=101, fds=[501])  # as a fork does, which shows no new socket
    assert scanner.scan().holders == {501: {identity(23), identity(29, 101)}}
    assert scanner.fd_walks == 1


def test_a_socket_that_outlives_its_holders_is_looked_for_at_once(
    tree: ProcTree, clock: Clock
) -> None:
    tree.add_process(23, fds=[501])
    tree.add_process(29)
    tree.add_socket("tcp", inode=501)
    scanner = SocketScanner(tree.root, clock=clock)
    scanner.scan()
    tree.open_socket(29, 501, 3)
    tree.remove_process(23)
    assert pids(scanner.scan(), 501) == {29}


def test_a_zombie_holds_nothing(tree: ProcTree) -> None:
    tree.add_process(23, fds=[501], state="Z")
    tree.add_process(29)
    tree.add_socket("tcp", inode=501)
    scan = SocketScanner(tree.root).scan()
    assert scan.holders == {}
    assert scan.vanished_processes == 1


def test_a_process_whose_first_thread_ended_still_holds(tree: ProcTree) -> None:
    directory = tree.add_process(23, state="Z", threads=2)
    tree.add_process(29)
    files = directory / "task" / "24" / "fd"
    files.mkdir(parents=True)
    (files / "3").symlink_to("socket:[501]")
    tree.add_socket("tcp", inode=501)
    assert pids(SocketScanner(tree.root).scan(), 501) == {23}


def test_a_process_that_vanishes_meanwhile_is_counted(tree: ProcTree) -> None:
    tree.add_process(23, fds=[501])
    (tree.add_process(29, fds=[501]) / "stat").unlink()
    shutil.rmtree(tree.add_process(31) / "fd")
    tree.add_socket("tcp", inode=501)
    scanner = SocketScanner(tree.root)
    scan = scanner.scan()
    assert (scan.vanished_processes, pids(scan, 501)) == (2, {23})
    assert scanner.scan().vanished_processes == 0


def test_a_scan_says_when_it_was_made(tree: ProcTree) -> None:
    tree.add_process(23)
    times = iter([1001, 2003])
    scan = SocketScanner(tree.root, wall_clock_ns=lambda: next(times)).scan()
    assert (scan.started_ns, scan.ended_ns) == (1001, 2003)


def test_malformed_lines_are_counted(tree: ProcTree) -> None:
    tree.add_process(23)
    with (tree.tables() / "udp").open("a") as table:
        table.write("   1: what is this?\n")
    tree.add_socket("udp", inode=0)
    scanner = SocketScanner(tree.root)
    scan = scanner.scan()
    assert (len(scan.sockets), scan.malformed_rows) == (1, 1)


def test_a_kernel_may_lack_tables(tree: ProcTree) -> None:
    tree.add_process(23)
    (tree.tables() / "tcp6").unlink()
    tree.add_socket("tcp", inode=0)
    assert len(SocketScanner(tree.root).scan().sockets) == 1


def test_a_missing_proc_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ProcnetError, match="nowhere"):
        SocketScanner(tmp_path / "nowhere").scan()


def test_a_directory_without_processes_is_no_proc(tmp_path: Path) -> None:
    with pytest.raises(ProcnetError, match="proc file system"):
        SocketScanner(tmp_path).scan()


@contextlib.contextmanager
def closed(*paths: Path) -> Iterator[None]:
    """These paths may not be read, by root neither."""
    for path in paths:
        path.chmod(0)
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)
        for path in paths:
            path.chmod(0o755)


@pytest.fixture
def open_tree() -> Iterator[ProcTree]:
    """A tree that others may enter; pytest's own directories are for one user."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield ProcTree(directory)


def test_a_process_that_may_not_be_read_is_counted(open_tree: ProcTree) -> None:
    directory = open_tree.add_process(23, fds=[501])
    open_tree.add_process(29)
    open_tree.add_socket("tcp", inode=501)
    scanner = SocketScanner(open_tree.root)
    with closed(directory / "fd"):
        assert [
            (s.denied_processes, dict(s.holders)) for s in (scanner.scan(), scanner.scan())
        ] == [
            (1, {}),
            (1, {}),
        ]
    assert scanner.fd_walks == 1


def test_a_namespace_that_nobody_may_show_is_an_access_error(open_tree: ProcTree) -> None:
    directory = open_tree.add_process(23)
    for netns in (None, 4026531840):
        with closed(directory / "ns"), pytest.raises(AccessError, match="CAP_SYS_PTRACE"):
            SocketScanner(open_tree.root).scan(netns)


def test_a_proc_that_may_not_be_listed_is_an_access_error(open_tree: ProcTree) -> None:
    with closed(open_tree.root), pytest.raises(AccessError, match="CAP_SYS_PTRACE"):
        SocketScanner(open_tree.root).scan()


def test_the_probe_says_yes_where_every_process_shows_its_files(tree: ProcTree) -> None:
    tree.add_process(1)
    tree.add_process(23)
    feature = probe(tree.root)
    assert (feature.support, feature.reason) == (
        Support.YES,
        "the files of all 2 processes can be read",
    )


def test_the_probe_says_no_where_other_users_processes_do_not(open_tree: ProcTree) -> None:
    if os.geteuid() != 0:
        pytest.skip("gives a file to another user: run it as root")
    directory = open_tree.add_process(1)
    os.chown(open_tree.add_process(23), NOBODY, NOBODY)
    with closed(directory / "fd"):
        feature = probe(open_tree.root)
    assert feature.support is Support.NO
    assert "1 of 2" in feature.reason
    assert "CAP_SYS_PTRACE" in feature.remedy


def test_the_probe_tells_hidepid_by_the_missing_first_process(tree: ProcTree) -> None:
    tree.add_process(23)
    assert probe(tree.root).support is Support.NO
    assert "hidepid" in probe(tree.root).reason


def test_the_probe_does_not_know_without_a_proc(tmp_path: Path) -> None:
    assert probe(tmp_path / "nowhere").support is Support.UNKNOWN
    assert probe(tmp_path).support is Support.UNKNOWN


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.dictionaries(st.sampled_from(["stat", "net/tcp", "net/packet"]), st.binary(), min_size=1),
    st.lists(st.binary(min_size=1).filter(lambda b: b"\0" not in b), max_size=3),
)
def test_a_scan_of_any_bytes_names_no_wrong_process(
    files: dict[str, bytes], links: list[bytes]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        tree = ProcTree(directory)
        tree.add_process(23, fds=[501])
        tree.add_process(29, fds=[502], netns=OTHER_NETNS)
        tree.add_socket("tcp", inode=501)
        hostile = os.fsencode(tree.root) + b"/29/"
        for name, content in files.items():
            (tree.root / "29" / name).write_bytes(content)
        for number, link in enumerate(links, 50):
            os.symlink(link, hostile + b"fd/%d" % number)
        scan = SocketScanner(tree.root).scan()
        assert identity(23) in scan.holders[501]
        assert {p.pid for p in scan.holders.get(502, ())} <= {29}


def test_this_process_holds_its_own_socket() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        inode = os.fstat(server.fileno()).st_ino
        scan = SocketScanner().scan(os.stat("/proc/self/ns/net").st_ino)
        (found,) = (s for s in scan.sockets if s.inode == inode)
        assert found.local_port == server.getsockname()[1]
        assert pids(scan, inode) == {os.getpid()}
