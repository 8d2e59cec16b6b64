"""What is CO-RE's alone, on the kernel that runs; also run inside virtual machines."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from procnet.bpf import libbpf
from procnet.bpf.core import CoreOwners, probe
from procnet.errors import LoadError
from procnet.model import Socket, Support
from procnet.sockets.scanner import SocketScanner
from tests.privileged.lab import TOP, Namespace, wait_until
from tests.privileged.owners.actors import (
    CLOSE,
    INET,
    INET6,
    LO,
    RECEIVE,
    SEND,
    Child,
    Witness,
    close,
    connection,
    inode,
    kinds,
    open_files,
    run,
    tuple_told,
    udp,
    who,
    who_told,
)

SO_SNDBUFFORCE = 32  # include/uapi/asm-generic/socket.h


def test_every_question_has_its_hook(owners: CoreOwners) -> None:
    print(owners.hooks, owners.feature())
    assert set(owners.missing_hooks) <= {"receive"}  # 6.1 has no tracepoint for it
    assert owners.feature().support is Support.YES
    assert probe().support is Support.YES


def test_sockets_that_are_older_than_the_hooks(inside: Namespace) -> None:
    client, accepted, listener = connection()
    sender, sink, quiet = udp(), udp(bound="127.0.0.1"), udp(bound="127.0.0.1")
    owners = CoreOwners.open()
    try:
        witness = Witness(owners)
        run(lambda: len(accepted.getpeername()), b"asker")
        client.send(b"x")
        accepted.recv(1)
        sender.sendto(b"x", sink.getsockname())
        sink.recvfrom(1)
        assert kinds(witness.of(client)) == [SEND]
        assert kinds(witness.of(accepted)) == [RECEIVE]  # not ACCEPT, by whoever asks
        (sent,) = witness.of(sender)
        assert tuple_told(sent)[1:] == (sender.getsockname()[1], LO, sink.getsockname()[1])
        assert kinds(witness.of(sink)) == [RECEIVE]
        for event in (*witness.of(client), sent):
            assert who_told(event) == who()
        assert witness.of(quiet) == []
    finally:
        owners.close()
        close(client, accepted, listener, sender, sink, quiet)


def test_a_snapshot_is_what_proc_shows(owners: CoreOwners, inside: Namespace) -> None:
    client, accepted, listener = connection(INET6, "::ffff:127.0.0.1")
    bound, unbound = udp(bound="127.0.0.1"), udp()
    connected = udp(INET6)
    connected.connect(("::1", 9))
    raw = socket.socket(INET, socket.SOCK_RAW, 253)
    waiting, ending = os.pipe()
    child = Child(lambda: len(os.read(waiting, 1)))
    try:
        expected = SocketScanner().scan(inside.inode)
        ours = CoreOwners.open(netns=inside.inode)
        scan = ours.snapshot()
        ours.close()
        wildcard = {bytes(4): b"", bytes(16): b""}

        def comparable(sockets: list[Socket]) -> set[Socket]:
            # Of an earlier test's connections, in TIME_WAIT, nobody has a socket.
            opened = (each for each in sockets if each.inode)
            return {s._replace(remote_address=wildcard.get(s[5], s[5])) for s in opened}

        assert comparable(scan.sockets) == comparable(expected.sockets)
        assert len(scan.sockets) == 6
        assert scan.holders == expected.holders
        assert {len(holders) for holders in scan.holders.values()} == {2}
        assert inode(unbound) not in scan.holders
        assert set(scan.sockets) <= set(owners.snapshot().sockets)
    finally:
        os.write(ending, b".")
        child.result()
        close(client, accepted, listener, bound, unbound, connected, raw)


def test_events_and_looks_say_since_when_there_is_a_socket(inside: Namespace) -> None:
    older = udp(bound="127.0.0.1")
    owners = CoreOwners.open(netns=inside.inode)
    sender, receiver, listener = udp(), udp(), socket.socket()
    raw = socket.socket(INET, socket.SOCK_RAW, 253)
    slack_ns = 1_000_000  # of the clocks
    try:
        made_ns = time.time_ns() + slack_ns
        time.sleep(0.02)
        from_ns = time.time_ns() - slack_ns
        receiver.bind(("127.0.0.1", 0))
        listener.bind(("127.0.0.1", 5009))
        until_ns = time.time_ns() + slack_ns
        time.sleep(0.02)
        with pytest.raises(OSError, match="Invalid argument"):
            receiver.bind(("127.0.0.1", 0))
        for target in (older, receiver):
            sender.sendto(b"x", target.getsockname())
            target.recvfrom(1)
        listener.listen()
        born_ns = {each.inode: each.born_ns for each in owners.read() if each.kind is RECEIVE}
        assert born_ns[inode(older)] == 0
        assert from_ns < born_ns[inode(receiver)] < until_ns
        births = owners.snapshot().births
        assert inode(older) not in births
        assert births[inode(raw)] < made_ns
        for sock in (receiver, listener):
            assert from_ns < births[inode(sock)] < until_ns
    finally:
        owners.close()
        close(older, sender, receiver, listener, raw)


def test_a_full_ring_is_counted(inside: Namespace) -> None:
    owners = CoreOwners.open(ring_bytes=4096, netns=inside.inode)
    sender, sink = udp(), udp(bound="0.0.0.0")
    try:
        port = sink.getsockname()[1]
        peers = [f"127.1.0.{n}" for n in range(1, 200)]
        for peer in peers:
            sender.sendto(b"x", (peer, port))
        lost = owners.events_lost()
        events = [event for event in owners.read() if event.inode == inode(sender)]
        assert lost > 0
        assert len(events) < len(peers) <= len(events) + lost
        # What was lost is told when it happens again, what was told is not.
        for peer in (peers[0], peers[-1]):
            sender.sendto(b"x", (peer, port))
        again = [event for event in owners.read() if event.inode == inode(sender)]
        assert [event.remote_address for event in again] == [socket.inet_aton(peers[-1])]
    finally:
        owners.close()
        close(sender, sink)


def test_who_writes_while_the_ring_is_full_is_told_when_the_rest_leaves(inside: Namespace) -> None:
    owners = CoreOwners.open(ring_bytes=4096, netns=inside.inode)
    client, accepted, listener = connection()
    accepted.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 8 << 20)
    sender, sink, size = udp(), udp(bound="0.0.0.0"), 4_000_037
    try:
        for number in range(1, 200):
            sender.sendto(b"x", (f"127.1.0.{number}", sink.getsockname()[1]))
        sent, writer = run(lambda: accepted.send(bytes(size)))
        assert sent == size
        assert not [event for event in owners.read() if who_told(event) == writer]
        taken = 0
        while taken < size:
            taken += len(client.recv(size))
        told = [event for event in owners.read() if event.inode == inode(accepted)]
        assert [who_told(event) for event in told] == [writer]
    finally:
        owners.close()
        close(client, accepted, listener, sender, sink)


def attached() -> set[int]:
    """BPF links of the whole machine: other programs attach and detach, too."""
    library = ctypes.CDLL("libbpf.so.1")
    numbers, link = set(), ctypes.c_uint32(0)
    while library.bpf_link_get_next_id(link, ctypes.byref(link)) == 0:
        numbers.add(link.value)
    return numbers


def links_of(pid: int) -> set[int]:
    """Those that a process has open."""
    links = set()
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # what this loop itself had open
            links |= {int(n) for n in re.findall(r"^link_id:\s*(\d+)", path.read_text(), re.M)}
    return links


def fdinfo(descriptor: int, name: str) -> int:
    """What /proc tells of a program."""
    text = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    found = re.search(rf"^{name}:\t(\d+)$", text, re.MULTILINE)
    assert found is not None, text
    return int(found[1])


def test_a_hook_that_is_passed_over_is_a_loss(
    owners: CoreOwners, monkeypatch: pytest.MonkeyPatch
) -> None:
    bpf, program = owners._bpf, "on_tcp_receive"
    info, descriptor = bpf.program_info(program), bpf.program_descriptor(program)
    # The field behind it is where we take it to be, and so is this one.
    assert info.verified_insns == fdinfo(descriptor, "verified_insns") > 0
    assert info.recursion_misses == fdinfo(descriptor, "recursion_misses")
    before = owners.events_lost()
    real = bpf.program_info

    def passed_over(name: str) -> libbpf.ProgramInfo:
        told = real(name)
        told.recursion_misses += 7 * (name in (program, "on_queue", "on_egress"))
        return told

    monkeypatch.setattr(bpf, "program_info", passed_over)
    assert owners.events_lost() == before + 7


def test_close_gives_everything_back(owners: CoreOwners) -> None:
    files, threads, links = open_files(), threading.active_count(), links_of(os.getpid())
    second = CoreOwners.open()
    added = links_of(os.getpid()) - links
    assert len(added) == len(second.hooks)
    assert added <= attached()
    lost = second.events_lost()
    second.close()
    second.close()
    assert (second.read(), second.fileno(), second.events_lost()) == ([], -1, lost)
    assert (open_files(), threading.active_count()) == (files, threads)
    wait_until(lambda: not added & attached(), "the kernel to detach what was closed")


HOLD = """
from procnet.bpf.core import CoreOwners
import sys, time
owners = CoreOwners.open()
print(len(owners.hooks), flush=True)
time.sleep(600)
"""


def hold(*prefix: str) -> subprocess.Popen[str]:
    command = [*prefix, sys.executable, "-c", HOLD]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=TOP)


def test_cgroup_v2_need_not_be_mounted_where_we_are(inside: Namespace) -> None:
    # `ip netns exec` puts the namespace's own /sys above what was mounted below the other.
    code = (
        "from procnet.bpf.core import CoreOwners\n"
        "assert 'cgroup2' not in open('/proc/self/mountinfo').read()\n"
        "owners = CoreOwners.open(); print(len(owners.hooks)); owners.close()\n"
        "assert 'cgroup2' not in open('/proc/self/mountinfo').read()\n"
    )
    said = subprocess.check_output(inside.argv([sys.executable, "-c", code]), cwd=TOP, text=True)
    assert int(said) >= 8


def test_a_kill_detaches_everything_and_three_capabilities_are_enough() -> None:
    capabilities = "-all,+bpf,+perfmon,+net_admin"
    process = hold(
        "setpriv", "--reuid=65534", "--clear-groups", f"--inh-caps={capabilities}",
        f"--ambient-caps={capabilities}",
    )  # fmt: skip
    assert process.stdout is not None
    try:
        number = int(process.stdout.readline())
        links = links_of(process.pid)
        assert len(links) == number
        assert links <= attached()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    wait_until(lambda: not links & attached(), "the kernel to detach what a dead process had")


def test_it_is_small() -> None:
    code = (
        "from procnet.bpf.core import CoreOwners; owners = CoreOwners.open()\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
    )
    peak_kb = int(subprocess.check_output([sys.executable, "-c", code], text=True, cwd=TOP))
    assert peak_kb < 40_000


SENDER = """
import socket, subprocess
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9))
"""


def test_of_one_namespace_alone(inside: Namespace) -> None:
    owners = CoreOwners.open(netns=inside.inode)
    try:
        subprocess.run(["unshare", "--net", sys.executable, "-c", SENDER], check=True, timeout=60)
        with udp() as sender:
            sender.sendto(b"x", ("127.0.0.1", 9))
            number = inode(sender)
        told = owners.read()
        assert {event.netns for event in told} == {inside.inode}
        assert [event.kind for event in told if event.inode == number] == [SEND, CLOSE]
        assert {each.pid for each in owners.read_processes()} == {os.getpid()}
    finally:
        owners.close()


def test_the_hook_for_what_waits_comes_when_it_is_needed(inside: Namespace) -> None:
    owners = CoreOwners.open(netns=inside.inode)
    if "skb_consume_udp" in owners.hooks:  # which sees the datagram itself
        assert "cgroup_skb ingress" not in owners.feature().reason
        owners.close()
        return
    receiver, one, other = udp(bound="127.0.0.1"), udp(), udp()
    try:
        for sender in (one, other):
            sender.sendto(b"x", receiver.getsockname())
        assert "cgroup_skb ingress" not in owners.hooks
        receiver.recv(1)
        told = [event for event in owners.read() if event.kind is RECEIVE]
        assert [event.remote_address for event in told] == [b""]
        assert "cgroup_skb ingress" in owners.hooks
        # One lies there still, from before: whose it is, nobody has noted.
        one.sendto(b"x", receiver.getsockname())
        assert [receiver.recv(1) for _ in range(2)] == [b"x"] * 2
        assert [event for event in owners.read() if event.kind is RECEIVE] == []
        other.sendto(b"x", receiver.getsockname())
        receiver.recv(1)
        (received,) = [event for event in owners.read() if event.kind is RECEIVE]
        assert received.remote_port == other.getsockname()[1]
    finally:
        owners.close()
        close(receiver, one, other)


def test_without_fentry_there_is_a_rung_if_something_else_tells_who_sends(
    inside: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libbpf, "can_trace_functions", lambda: False)
    names = Path("/sys/kernel/btf/vmlinux").read_bytes()
    if b"\0btf_trace_sock_send_length\0" in names:  # 6.3
        owners = CoreOwners.open(netns=inside.inode)
        assert {"tcp_sendmsg_locked", "sock_send_length"} & set(owners.hooks)
        assert not {"tcp_sendmsg", "skb_consume_udp", "security_sock_graft"} & set(owners.hooks)
        owners.close()
        return
    # Better none than one that takes whoever opened a connection for all who send on it.
    with pytest.raises(LoadError, match="no hook for TCP send"):
        CoreOwners.open(netns=inside.inode)
    assert probe().support is Support.NO
