"""What is the kprobes' alone, on the kernel of a virtual machine (tests/kernels).

That they are opened in a thread, and leave nothing when they are closed, is in conftest.py.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from procnet.bpf import kprobe
from procnet.bpf.bcc_attach import HOOKS, UNTIL_THEN
from procnet.bpf.host import Host
from procnet.bpf.kprobe import KprobeOwners, probe
from procnet.errors import LoadError, UnsupportedError
from procnet.model import Support
from tests.privileged.lab import Namespace
from tests.privileged.owners.actors import (
    close,
    inode,
    kprobes,
    udp,
)


def test_every_hook_attaches(owners: KprobeOwners) -> None:
    symbols = {line.split()[2] for line in Path("/proc/kallsyms").read_text().splitlines()}
    expected = {hook for hook, *_ in HOOKS} - (set(UNTIL_THEN) - symbols)
    assert owners.missing_hooks == ()
    assert set(owners.hooks) == expected
    assert len(owners.hooks) == len(expected) == len(kprobes())
    assert owners.feature().support is Support.YES
    assert probe().support is Support.YES


def test_a_full_ring_is_counted(owners: KprobeOwners, inside: Namespace) -> None:
    owners.read()
    lost_before = owners.events_lost()
    receiver = udp(bound="0.0.0.0")
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    port = receiver.getsockname()[1]
    sender = udp()
    peers = [f"127.1.{n >> 8}.{n & 255}" for n in range(40_000)]
    for peer in peers:  # each one a new tuple
        sender.sendto(b"x", (peer, port))
    lost = owners.events_lost() - lost_before
    events = [event for event in owners.read() if event.inode == inode(sender)]
    print(f"{len(events)} told, {lost} lost of {len(peers)}")
    assert lost > 0
    assert len(events) + lost >= len(peers) and len(events) < len(peers)
    assert [event.remote_address for event in events] == [
        socket.inet_aton(peer) for peer in peers[: len(events)]
    ]
    # What was lost is told when it happens again, what was told is not.
    for peer in (peers[0], peers[-1]):
        sender.sendto(b"x", (peer, port))
    again = [event for event in owners.read() if event.inode == inode(sender)]
    assert [event.remote_address for event in again] == [socket.inet_aton(peers[-1])]
    close(sender, receiver)


# As nobody, with nothing but the two capabilities; with sockets that are older than the hooks.
UNPRIVILEGED = """
import os, socket, time
from procnet.bpf.kprobe import KprobeOwners
from procnet.model import EventKind
from tests.privileged.owners.actors import Child, connection, inode, who, who_told
client, accepted, listener = connection()
def accept():
    with listener.accept()[0] as sock:
        return inode(sock)
child = Child(accept)  # waits there before the hooks are attached
try:
    owners = KprobeOwners.open()
except BaseException:
    os.kill(child.pid, 9)
    raise
assert owners.missing_hooks == (), owners.missing_hooks
client.send(b"x")
later = socket.create_connection(listener.getsockname())
number, acceptor = child.result()
events = owners.read()
(sent,) = (event for event in events if event.inode == inode(client))
assert sent.kind is EventKind.SEND and who_told(sent) == who(), sent
(taken,) = (event for event in events if event.inode == number and event.kind is EventKind.ACCEPT)
assert who_told(taken) == acceptor, taken
print("done", os.getuid(), flush=True)
time.sleep(600)
"""


def as_nobody(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            "setpriv", "--reuid=65534", "--clear-groups", "--inh-caps=-all,+bpf,+perfmon",
            "--ambient-caps=-all,+bpf,+perfmon", sys.executable, "-c", code,
        ],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def paranoid() -> Iterator[Path]:
    path = Path("/proc/sys/kernel/perf_event_paranoid")
    before = path.read_text()
    yield path
    path.write_text(before)


def test_two_capabilities_are_enough_and_a_kill_detaches_everything(
    owners: KprobeOwners, paranoid: Path
) -> None:
    paranoid.write_text("2")
    probes = kprobes()
    process = as_nobody(UNPRIVILEGED)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "done 65534\n"
        assert kprobes() == sorted(probes * 2)
    finally:
        process.kill()
        process.communicate()
    assert kprobes() == probes


def test_debian_s_own_level_of_paranoia_is_named(paranoid: Path) -> None:
    paranoid.write_text("3")
    said, _ = as_nobody("from procnet.bpf.kprobe import probe; print(probe())").communicate()
    assert "Support.NO" in said
    assert "kernel.perf_event_paranoid is 3" in said
    assert "sysctl kernel.perf_event_paranoid=2" in said


def test_what_the_compiler_says_is_in_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kprobes.bcc.c").write_text("int on_tcp_connect(void *ctx) { return nonsense; }")
    monkeypatch.setattr(kprobe, "source_directory", lambda: tmp_path)
    with pytest.raises(LoadError, match="undeclared identifier 'nonsense'"):
        KprobeOwners.open()
    assert capfd.readouterr() == ("", "")


def headers(root: Path, release: str) -> Path:
    generated = root / os.uname().release / "build/include/generated"
    generated.mkdir(parents=True)
    (generated / "utsrelease.h").write_text(f'#define UTS_RELEASE "{release}"\n')
    return root


def test_headers_of_another_release_are_refused(tmp_path: Path) -> None:
    host = Host(modules_root=headers(tmp_path, "6.1.0-1-amd64"))
    feature = probe(host)
    assert feature.support is Support.NO
    assert "6.1.0-1-amd64" in feature.reason and os.uname().release in feature.reason
    with pytest.raises(UnsupportedError, match=r"6\.1\.0-1-amd64"):
        KprobeOwners.open(host)


def test_no_headers_are_refused(tmp_path: Path) -> None:
    feature = probe(Host(modules_root=tmp_path))
    assert feature.support is Support.NO
    assert f"no headers of the running kernel {os.uname().release}" in feature.reason
    assert f"linux-headers-{os.uname().release}" in feature.remedy
