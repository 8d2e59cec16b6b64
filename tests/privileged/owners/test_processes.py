"""Who exactly: threads, names, users, namespaces, and sockets, ports and pids that change hands."""

from __future__ import annotations

import array
import ctypes
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from procnet.model import CLOCK_TICK_NS, UDP
from tests.privileged.owners import syscalls
from tests.privileged.owners.actors import (
    ACCEPT,
    CLONE_NEWNET,
    CLOSE,
    CONNECT,
    LO,
    RECEIVE,
    SEND,
    Child,
    Who,
    Witness,
    close,
    connection,
    inode,
    kinds,
    run,
    tuple_of,
    tuple_told,
    udp,
    who,
    who_told,
)
from tests.privileged.short_lived import SENDERS, arguments, build, launch

PORT = 4713
TRIES = 101


@pytest.fixture
def sink(witness: Witness) -> Iterator[socket.socket]:
    with udp(bound="127.0.0.1") as made:
        yield made


def send_to(sink: socket.socket, port: int = 0) -> int:
    """From a new socket on ``port``; its inode."""
    with udp() as sock:
        sock.bind(("127.0.0.1", port))
        sock.sendto(b"x", sink.getsockname())
        return inode(sock)


def test_the_process_is_named_not_its_thread(witness: Witness, sink: socket.socket) -> None:
    def send() -> int:
        with udp() as sock:
            thread = threading.Thread(target=named_send, args=(sock, sink.getsockname()))
            thread.start()
            thread.join()
            return inode(sock)

    number, process = run(send, b"the-process")
    (event,) = witness.sends(number)
    assert who_told(event) == process
    assert event.name == "the-process"


def named_send(sock: socket.socket, to: tuple[str, int]) -> None:
    Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_bytes(b"the-thread")
    sock.sendto(b"x", to)


def test_a_name_may_be_any_bytes(witness: Witness, sink: socket.socket) -> None:
    number, process = run(lambda: send_to(sink), b"\xff) \x1b[1mR\n0")
    (event,) = witness.sends(number)
    assert event.process == process.process
    assert event.name == "\\xff) \x1b[1mR\n0"


def test_another_user(witness: Witness, sink: socket.socket) -> None:
    def send_as_nobody() -> int:
        with udp() as sock:
            number = inode(sock)
            os.setuid(65534)
            sock.sendto(b"x", sink.getsockname())
        return number

    number, process = run(send_as_nobody)
    (event,) = witness.sends(number)
    assert (event.uid, event.process) == (65534, process.process)


def test_one_tuple_in_two_namespaces(witness: Witness) -> None:
    done, leave = os.pipe(), os.pipe()

    def talk_elsewhere() -> list[int]:
        assert ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        with udp() as sender, udp() as receiver:
            sender.bind(("127.0.0.1", PORT))
            receiver.bind(("127.0.0.1", PORT + 1))
            sender.sendto(b"x", receiver.getsockname())
            receiver.recvfrom(10)
            os.write(done[1], b".")
            os.read(leave[0], 1)  # a namespace that is gone may have given its number away
            return [inode(sender), inode(receiver)]

    children = [Child(talk_elsewhere, b"namespace-%d" % number) for number in range(2)]
    for _ in children:
        os.read(done[0], 1)
    os.write(leave[1], b"..")
    both = [child.result() for child in children]
    for (sender, receiver), process in both:
        (sent,) = witness.sends(sender)
        assert tuple_told(sent) == (LO, PORT, LO, PORT + 1)
        received, _ = witness.of_inode(receiver)
        assert (received.kind, tuple_told(received)) == (RECEIVE, (LO, PORT + 1, LO, PORT))
        assert who_told(sent) == who_told(received) == process
    assert len({who().netns, *(process.netns for _, process in both)}) == 3


def test_a_port_that_another_process_uses_next(witness: Witness, sink: socket.socket) -> None:
    truth = [run(lambda: send_to(sink, PORT), b"user-%d" % number) for number in range(2)]
    ends = (LO, PORT, LO, sink.getsockname()[1])
    told = witness.where(lambda event: event.local_port == PORT)
    assert kinds(told) == [SEND, CLOSE] * 2
    assert [(event.inode, who_told(event)) for event in told] == [
        each for each in truth for _ in range(2)
    ]
    assert [tuple_told(event) for event in told if event.kind is SEND] == [ends] * 2


def test_a_pid_that_another_process_has_next(witness: Witness, sink: socket.socket) -> None:
    sock = udp(bound="127.0.0.1")
    _, first = run(lambda: sock.sendto(b"x", sink.getsockname()), b"first")
    # Start times are told in ticks: two processes of one tick would be one.
    while time.clock_gettime_ns(time.CLOCK_BOOTTIME) < first.process.start_time_ns + CLOCK_TICK_NS:
        time.sleep(0.001)

    def send_with_that_pid() -> int:
        return os.getpid() == first.process.pid and sock.sendto(b"x", sink.getsockname())

    for _ in range(TRIES):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(first.process.pid - 1))
        sent, second = run(send_with_that_pid, b"second")
        if sent:
            break
    assert sent, "others took the pid each time"
    assert [who_told(event) for event in witness.sends(inode(sock))] == [first, second]
    assert second.process.pid == first.process.pid
    assert second.process.start_time_ns > first.process.start_time_ns
    sock.close()


def test_two_hundred_processes_of_a_millisecond(
    witness: Witness, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    port, senders = launch([str(build(tmp_path)), *arguments("udp", SENDERS)])
    events = witness.where(
        lambda event: (event.kind, event.protocol, event.remote_port) == (SEND, UDP, port)
    )
    told = [(event.process, event.local_port) for event in events]
    truth = [((sender.pid, sender.start_time_ns), sender.local_port) for sender in senders]
    wrong = set(told) - set(truth)
    record_property("named", len(told))
    print(f"named {len(told)}, wrong {len(wrong)} of {SENDERS}")
    assert len(set(truth)) == SENDERS
    assert told == truth
    assert {event.name for event in events} == {"short-lived"}


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_a_socket_passed_to_a_stranger(witness: Witness, kind: int) -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def wait_and_send() -> int:
        _, rights, _, _ = there.recvmsg(1, socket.CMSG_SPACE(4))
        descriptor = array.array("i", rights[0][2][:4])[0]
        with socket.socket(fileno=descriptor) as sock:
            return sock.send(b"x")

    stranger = Child(wait_and_send, b"stranger")  # forked before the socket is there
    one, other, *rest = connected(kind)
    fds = array.array("i", [one.fileno()])
    here.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    sent, expected = stranger.result()
    assert sent == 1
    (event,) = witness.sends(inode(one))
    assert who_told(event) == expected != who()
    assert tuple_told(event) == tuple_of(one)
    close(here, there, one, other, *rest)


def connected(kind: int) -> tuple[socket.socket, ...]:
    """Two ends of a flow, which nobody has sent on."""
    if kind == socket.SOCK_STREAM:
        return connection()
    one, other = udp(bound="127.0.0.1"), udp(bound="127.0.0.1")
    one.connect(other.getsockname())
    other.connect(one.getsockname())
    return one, other


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
@pytest.mark.parametrize(
    ("ring", "entry"),
    [(0, 0), (0, syscalls.ASYNC), (syscalls.SQPOLL, 0)],
    ids=["inline", "worker", "polled"],
)
def test_io_uring(
    witness: Witness, require: Callable[..., None], kind: int, ring: int, entry: int
) -> None:
    refusal = syscalls.uring_refusal()
    require(not refusal, refusal, "sysctl kernel.io_uring_disabled=0")
    one, other, *rest = connected(kind)

    def use(sock: socket.socket, operation: int, name: bytes) -> Who:
        def act() -> Any:
            return syscalls.uring(sock, operation, bytearray(101), ring=ring, entry=entry)

        moved, process = run(act, name)
        assert moved == 101
        return process

    sender = use(one, syscalls.SEND, b"sender")
    receiver = use(other, syscalls.RECEIVE, b"receiver")
    for sock, event_kind, user in ((one, SEND, sender), (other, RECEIVE, receiver)):
        (event,) = (e for e in witness.of(sock) if e.kind not in (CONNECT, ACCEPT))
        assert (event.kind, who_told(event)) == (event_kind, user)
        assert tuple_told(event) == tuple_of(sock)
        assert not event.kernel
    close(one, other, *rest)


def test_the_clock_tick_of_a_start_time(witness: Witness, sink: socket.socket) -> None:
    (event,) = witness.sends(send_to(sink))
    assert event.process.start_time_ns % CLOCK_TICK_NS == 0


def test_a_process_that_is_gone_has_told_who_it_was(witness: Witness, tmp_path: Path) -> None:
    program = tmp_path / ("a name of \xff bytes" + "x" * 101)
    program.symlink_to(build(tmp_path))
    argv = [str(program), *arguments("tcp", 1)]
    launcher = subprocess.Popen(argv, stdout=subprocess.PIPE)
    output, _ = launcher.communicate(timeout=60)
    first, line = output.decode().splitlines()
    port, pid = int(first.removeprefix("port ")), int(line.split()[0])
    told = {process.pid: process for process in witness.processes()}
    sender = told[pid]
    assert sender.exe == str(tmp_path / "short-lived")
    assert sender.cmdline == (sender.exe, "tcp", "0", "101", str(port), "127.0.0.1")
    assert (sender.parent_pid, sender.uid, sender.name) == (
        launcher.pid,
        os.getuid(),
        "short-lived",
    )
    assert told[launcher.pid].cmdline == tuple(argv)
    assert told[launcher.pid].parent_pid == os.getpid()
    assert sender.cgroup == told[launcher.pid].cgroup == own_cgroup()


def test_who_becomes_another_program_tells_again(witness: Witness) -> None:
    code = "import os, socket; s = socket.socket(type=socket.SOCK_DGRAM);"
    code += " s.sendto(b'x', ('127.0.0.1', 9)); os.execv('/bin/sleep', ['sleep', '0'])"
    process = subprocess.Popen([sys.executable, "-c", code])
    process.wait(60)
    told = [each for each in witness.processes() if each.pid == process.pid]
    assert [os.path.basename(each.exe) for each in told] == [
        os.path.basename(os.path.realpath(sys.executable)),
        os.path.basename(os.path.realpath("/bin/sleep")),
    ]
    assert told[1].cmdline == ("sleep", "0")
    assert len({each.id for each in told}) == 1


def own_cgroup() -> str:
    """In the unified hierarchy."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return line.removeprefix("0::")
    raise AssertionError("no cgroup v2")
