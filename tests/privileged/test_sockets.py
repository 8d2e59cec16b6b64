"""Sockets and their holders in namespaces of our own, against the kernel's and ss's word."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from procnet.model import ICMP, ICMP6, TCP, UDP, UDPLITE, SocketScan, Support, unmapped
from procnet.report.socket_table import socket_rows
from procnet.sockets.process import ProcessTable
from procnet.sockets.procfs import probe
from procnet.sockets.scanner import SocketScanner
from tests.workloads.writers import SO_DETACH_FILTER, deafen

pytestmark = pytest.mark.privileged

WAIT_S = 20.0
NUMBERS = itertools.count()

# Each script prints one line of JSON when it is ready, and lives until its standard input ends.
EVERY_PROTOCOL = """
from socket import *
import json, sys
open("/proc/sys/net/ipv4/ping_group_range", "w").write("0 2147483647")
opened = {}
def add(name, family, kind, protocol=0, address=None):
    try:
        opened[name] = s = socket(family, kind, protocol)
    except OSError:
        if "udplite" not in name:  # the kernel may be without it
            raise
        return
    if address:
        s.bind(address)
    if kind == SOCK_STREAM:
        s.listen()
add("tcp", AF_INET, SOCK_STREAM, 0, ("127.0.0.1", 7001))
add("tcp6", AF_INET6, SOCK_STREAM, 0, ("::1", 7001))
add("udp", AF_INET, SOCK_DGRAM, 0, ("127.0.0.1", 7002))
add("udp6", AF_INET6, SOCK_DGRAM, 0, ("::1", 7002))
add("udplite", AF_INET, SOCK_DGRAM, 136, ("127.0.0.1", 7003))
add("udplite6", AF_INET6, SOCK_DGRAM, 136, ("::1", 7003))
add("raw", AF_INET, SOCK_RAW, 253)
add("raw6", AF_INET6, SOCK_RAW, 253)
add("icmp", AF_INET, SOCK_DGRAM, 1, ("127.0.0.1", 7004))
add("icmp6", AF_INET6, SOCK_DGRAM, 58, ("::1", 7004))
add("packet", AF_PACKET, SOCK_RAW, 0x0300)
import os
print(json.dumps({n: os.fstat(s.fileno()).st_ino for n, s in opened.items()}), flush=True)
sys.stdin.read()
"""
SHARED = """
from socket import *
import json, os, sys, signal
server = create_server(("127.0.0.1", 7001))
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        signal.pause()
    children.append(child)
print(json.dumps({"inode": os.fstat(server.fileno()).st_ino, "children": children}), flush=True)
if sys.stdin.readline() == "close\\n":
    server.close()
    print("{}", flush=True)
    sys.stdin.read()
for child in children:
    os.kill(child, signal.SIGKILL)
"""
CONNECTIONS = """
from socket import *
import os, sys
four = create_server(("127.0.0.1", 7001))
six = create_server(("::", 7002), family=AF_INET6, dualstack_ipv6=True)
kept = [create_connection(("127.0.0.1", 7001)) for _ in range(5)]
accepted = [four.accept() for _ in range(3)]  # two stay in the queue
kept += [create_connection(("::1", 7002)), create_connection(("127.0.0.1", 7002))]
accepted += [six.accept(), six.accept()]
closed = create_connection(("::1", 7002))
six.accept()[0].close()
closed.recv(1)
closed.close()
udp = socket(AF_INET, SOCK_DGRAM)
udp.connect(("127.0.0.1", 53))
bound = socket(AF_INET6, SOCK_DGRAM)
bound.bind(("::1", 7003))
child = os.fork()
if child == 0:
    sys.stdin.read()
    os._exit(0)
print("{}", flush=True)
sys.stdin.read()
"""
ON_DEMAND = """
from socket import *
import sys
kept = [create_server(("127.0.0.1", 7001))]
print("{}", flush=True)
for line in sys.stdin:
    kept.append(create_server(("127.0.0.1", 0)))
    print("{}", flush=True)
"""
FIRST_THREAD_ENDS = """
from socket import *
import ctypes, json, os, platform, sys, threading
server = create_server(("127.0.0.1", 7001))
print(json.dumps({"inode": os.fstat(server.fileno()).st_ino}), flush=True)
threading.Thread(target=sys.stdin.read).start()
ctypes.CDLL(None).syscall(60 if platform.machine() == "x86_64" else 93, 0)  # exit, not exit_group
"""
# In a pid namespace of its own, where nobody else takes a number.
USED_AGAIN = """
from pathlib import Path
from socket import create_server
import json, os, signal, subprocess
from procnet.sockets.scanner import SocketScanner
server = create_server(("", 7001))
scanner = SocketScanner(clock=lambda: 0.0)
def holders():
    scan = scanner.scan(os.stat("/proc/self/ns/net").st_ino)
    return sorted(process.pid for process in scan.holders[os.fstat(server.fileno()).st_ino])
first = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
before = holders()
first.communicate()
Path("/proc/sys/kernel/ns_last_pid").write_text(str(first.pid - 1))
child = os.fork()
if child == 0:
    signal.pause()
after = holders()
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
print(json.dumps([os.getpid(), first.pid, child, before, after, scanner.fd_walks]))
"""


class Netns:
    """A network namespace with its loopback up, and the processes started in it."""

    def __init__(self) -> None:
        self.name = f"procnet-sockets-{os.getpid()}-{next(NUMBERS)}"
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.inode = os.stat(f"/run/netns/{self.name}").st_ino
        self._processes: list[subprocess.Popen[str]] = []
        self.output("ip", "link", "set", "lo", "up")

    def output(self, *argv: str) -> str:
        return subprocess.run(
            ["ip", "netns", "exec", self.name, *argv], check=True, capture_output=True, text=True
        ).stdout

    def start(self, script: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        """The process, which runs the script itself (ip execs it), and what it printed."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.name, sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._processes.append(process)
        return process, answer(process)

    def close(self) -> None:
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired, BrokenPipeError):
                process.communicate(timeout=WAIT_S)
            process.kill()
            process.wait()
        subprocess.run(["ip", "netns", "del", self.name], check=True)


def answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    told: dict[str, Any] = json.loads(process.stdout.readline())
    return told


def ask(process: subprocess.Popen[str], question: str) -> dict[str, Any]:
    assert process.stdin is not None
    process.stdin.write(question + "\n")
    process.stdin.flush()
    return answer(process)


@pytest.fixture
def make_netns() -> Iterator[Callable[[], Netns]]:
    with contextlib.ExitStack() as stack:

        def make() -> Netns:
            made = Netns()
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def netns(make_netns: Callable[[], Netns]) -> Netns:
    return make_netns()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.01)


def pids(scan: SocketScan, inode: int) -> set[int]:
    return {process.pid for process in scan.holders.get(inode, ())}


def test_every_protocol_in_two_namespaces_has_its_holder(
    make_netns: Callable[[], Netns],
) -> None:
    expected = {
        "tcp": (TCP, 4, 7001, "listen"), "tcp6": (TCP, 6, 7001, "listen"),
        "udp": (UDP, 4, 7002, "unconnected"), "udp6": (UDP, 6, 7002, "unconnected"),
        "udplite": (UDPLITE, 4, 7003, "unconnected"),
        "udplite6": (UDPLITE, 6, 7003, "unconnected"),
        "raw": (253, 4, 0, "unconnected"), "raw6": (253, 6, 0, "unconnected"),
        "icmp": (ICMP, 4, 7004, "unconnected"), "icmp6": (ICMP6, 6, 7004, "unconnected"),
        "packet": (0, 0, 0, "packet"),
    }  # fmt: skip
    spaces = [make_netns(), make_netns()]
    started = [space.start(EVERY_PROTOCOL) for space in spaces]
    scan = SocketScanner().scan()
    by_inode = {socket.inode: socket for socket in scan.sockets}
    for space, (process, inodes) in zip(spaces, started, strict=True):
        for name, inode in inodes.items():
            s = by_inode[inode]
            assert s.netns == space.inode
            assert (s.protocol, s.family, s.local_port, s.state) == expected[name], name
            assert pids(scan, inode) == {process.pid}, name
        seen = [s for s in scan.sockets if s.netns == space.inode]
        assert len(seen) == len(inodes)


def test_a_socket_inherited_by_a_fork_has_every_holder(netns: Netns) -> None:
    process, told = netns.start(SHARED)
    scan = SocketScanner().scan(netns.inode)
    assert pids(scan, told["inode"]) == {process.pid, *told["children"]}


def test_a_holder_that_was_killed_is_not_named(netns: Netns) -> None:
    _, told = netns.start(SHARED)
    scanner = SocketScanner(clock=lambda: 0.0)
    assert told["children"][0] in pids(scanner.scan(netns.inode), told["inode"])
    # Its parent does not reap it: it stays as a zombie, which holds nothing.
    os.kill(told["children"][0], signal.SIGKILL)
    wait_until(
        lambda: told["children"][0] not in pids(scanner.scan(netns.inode), told["inode"]),
        "the killed process is no holder",
    )
    assert told["children"][1] in pids(scanner.scan(netns.inode), told["inode"])
    assert scanner.fd_walks == 1


def test_a_fork_with_the_number_of_one_that_has_ended_is_a_holder() -> None:
    argv = ["unshare", "--net", "--pid", "--fork", "--mount-proc", sys.executable, "-c", USED_AGAIN]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=WAIT_S, check=True)
    parent, first, child, before, after, walks = json.loads(done.stdout)
    assert first == child
    assert (before, after, walks) == ([parent], [parent, child], 1)


def test_a_holder_that_closed_its_descriptor_is_not_named_after_a_refresh(netns: Netns) -> None:
    process, told = netns.start(SHARED)
    scanner = SocketScanner(clock=lambda: 0.0)
    scanner.scan(netns.inode)
    ask(process, "close")
    scan = scanner.scan(netns.inode, refresh=True)
    assert pids(scan, told["inode"]) == set(told["children"])


def test_files_are_walked_only_when_a_socket_is_new(netns: Netns) -> None:
    process, _ = netns.start(ON_DEMAND)
    scanner = SocketScanner(clock=lambda: 0.0)
    for _ in range(3):
        assert len(scanner.scan(netns.inode).sockets) == 1
    assert scanner.fd_walks == 1
    ask(process, "open")
    scan = scanner.scan(netns.inode)
    assert [pids(scan, s.inode) for s in scan.sockets] == [{process.pid}] * 2
    assert scanner.fd_walks == 2


def test_a_process_holds_its_sockets_when_its_first_thread_has_ended(netns: Netns) -> None:
    process, told = netns.start(FIRST_THREAD_ENDS)

    def first_thread_ended() -> bool:
        with open(f"/proc/{process.pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"

    wait_until(first_thread_ended, "the first thread has ended")
    anchor, _ = netns.start(ON_DEMAND.replace("7001", "7002"))
    scan = SocketScanner().scan(netns.inode)
    assert pids(scan, told["inode"]) == {process.pid}
    assert anchor.pid != process.pid


def test_the_table_says_what_ss_says(netns: Netns) -> None:
    netns.start(CONNECTIONS)
    scan = SocketScanner().scan(netns.inode)
    rows = socket_rows(scan, ProcessTable().get)
    ours = sorted(
        (
            row.protocol,
            row.state,
            (row.local_address, row.local_port),
            (row.remote_address, row.remote_port),
            sorted((process.name, process.pid) for process in row.processes),
        )
        for row in rows
    )
    theirs = sorted(map(from_ss, netns.output("ss", "-H", "-tunap").splitlines()))
    assert ours == theirs
    assert len(ours) > 15


SsEnd = tuple[str, int]


def from_ss(line: str) -> tuple[str, str, SsEnd, SsEnd, list[tuple[str, int]]]:
    protocol, state, _, _, local, remote, *users = line.split()
    holders = {(name, int(pid)) for name, pid in re.findall(r'"([^"]*)",pid=(\d+)', "".join(users))}
    names = {"ESTAB": "established", "UNCONN": "unconnected"}
    shown = names.get(state, state.lower().replace("-", "_"))
    near, far = ss_end(local), ss_end(remote)
    # ss shows the wildcard of a socket for both versions as "*".
    return protocol, shown, near, far, sorted(holders)


def ss_end(text: str) -> SsEnd:
    address, _, port = text.rpartition(":")
    packed = ipaddress.ip_address("::" if address == "*" else address.strip("[]")).packed
    return str(ipaddress.ip_address(unmapped(packed))), 0 if port == "*" else int(port)


def test_the_probe_says_that_root_can_look() -> None:
    assert probe().support is Support.YES


def forked_since_the_look_before() -> tuple[bool, bool, bool, bool]:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    netns = os.stat("/proc/self/ns/net").st_ino
    scanner = SocketScanner()

    def is_forked() -> bool:
        return any(process.pid == os.getpid() for process in scanner.scan(netns).forked)

    is_forked()
    quiet = is_forked()
    subprocess.run([sys.executable, "-c", ""], check=True)
    waited, again = is_forked(), is_forked()
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    zombie = is_forked()
    child.wait()
    sock.close()
    return quiet, waited, again, zombie


def test_a_holder_whose_child_has_ended_is_told_once(loopback) -> None:
    assert loopback.call(forked_since_the_look_before) == (False, True, False, True)


def left_in_the_queue(use_diag: bool) -> list[bool]:
    """At each look: may there be bytes of somebody who is gone?"""
    netns = os.stat("/proc/self/ns/net").st_ino
    scanner = SocketScanner(use_diag=use_diag)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    inode = os.fstat(sender.fileno()).st_ino
    found: list[bool] = []

    def look() -> None:
        found.append(inode in scanner.scan(netns).left_behind)

    def arrive(size: int) -> None:
        accepted.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        assert len(accepted.recv(size, socket.MSG_WAITALL)) == size

    with sender, accepted:
        sender.sendall(bytes(3))
        scanner.scan(netns)  # who had a child before, nobody knows
        look()
        deafen(accepted)
        if not os.fork():
            sender.sendall(bytes(101))
            os._exit(0)
        os.wait()
        look()
        look()
        arrive(3 + 101)
        deafen(accepted)
        sender.sendall(bytes(1009))  # its own
        look()
        arrive(1009)
        look()
    return found


@pytest.mark.parametrize("use_diag", [True, False])
def test_what_a_child_wrote_is_not_forgotten_while_it_may_wait_in_the_queue(
    loopback, use_diag: bool
) -> None:
    # /proc says how much waits, but not since when: there it must be seen empty.
    last = [False, False] if use_diag else [True, False]
    assert loopback.call(left_in_the_queue, use_diag) == [False, True, True, *last]
