"""Uses of sockets in the caller's hands, as they happen: the library and the command."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading

import pytest

from procnet import EventKind, ProcnetError, SocketUse, UsageError, Watch
from tests.privileged.lab import TOP, Namespace
from tests.privileged.test_report import ready_pair, transfer

HERE = os.stat("/proc/self/ns/net").st_ino
A_DATAGRAM_BYTES = 101


def test_one_use_is_told_while_the_caller_polls() -> None:
    with Watch(netns=HERE) as watch, socket.socket(type=socket.SOCK_DGRAM) as sender:
        assert watch.features.owners == "core"
        sender.sendto(bytes(A_DATAGRAM_BYTES), ("127.0.0.1", 4001))
        ours: list[SocketUse] = []
        while not ours:
            assert select.select([watch], [], [], 20)[0], "nothing was told"
            ours = [use for use in watch.read() if is_own(use) and use.remote.port == 4001]
    (use,) = ours
    assert use.kind is EventKind.SEND
    assert (use.protocol, str(use.remote), use.netns) == ("udp", "127.0.0.1:4001", HERE)
    assert use.process is not None
    assert (use.process.pid, use.process.parent_pid) == (os.getpid(), os.getppid())
    assert use.process.exe == os.readlink("/proc/self/exe")


def is_own(use: SocketUse) -> bool:
    """Others do the same on this machine, as another suite of tests would."""
    return bool(use.remote and use.process and use.process.pid == os.getpid())


def test_an_iteration_ends_when_another_thread_stops_it() -> None:
    files = len(os.listdir("/proc/self/fd"))
    with Watch(netns=HERE) as watch:
        seen: list[SocketUse] = []
        reader = threading.Thread(target=lambda: seen.extend(watch))
        reader.start()
        with socket.socket(type=socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", ("127.0.0.1", 4003))
        while not any(is_own(use) and use.remote.port == 4003 for use in list(seen)):
            reader.join(0.01)
            assert reader.is_alive()
        watch.stop()
        reader.join(20)
        assert not reader.is_alive()
        assert (watch.read(), watch.fileno(), watch.events_lost) == ([], -1, 0)
    assert len(os.listdir("/proc/self/fd")) == files


def test_other_namespaces_are_left_out_if_one_is_asked_for(loopback: Namespace) -> None:
    with Watch(netns=HERE) as here, Watch() as everywhere:
        pair = ready_pair(loopback, loopback, "tcp")
        transfer(pair)
        for end in pair:
            end.finish()
        pids = {end.pid for end in pair}
        assert not pids & {use.process.pid for use in here.read() if use.process}
        told = [use for use in everywhere.read() if use.process and use.process.pid in pids]
    kinds = [use.kind for use in told]
    assert kinds.count(EventKind.CONNECT) == 1
    assert kinds.count(EventKind.ACCEPT) == 1
    assert kinds.count(EventKind.CLOSE) >= 2
    assert len({use.netns for use in told}) == 1


@pytest.mark.parametrize("format", ["text", "json"])
def test_the_command_prints_a_line_for_each_use(loopback: Namespace, format: str) -> None:
    command = loopback.popen(
        [sys.executable, "-m", "procnet", "watch", "--format", format],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=TOP,
    )  # fmt: skip
    try:
        assert command.stderr is not None
        assert command.stderr.readline() == "watching\n"
        server, client = pair = ready_pair(loopback, loopback, "tcp", 6)
        transfer(pair)
        for end in pair:
            end.finish()
        command.send_signal(signal.SIGTERM)
        output, errors = command.communicate(timeout=60)
    finally:
        command.kill()
        command.wait()
    assert (command.returncode, errors) == (0, "")
    if format == "text":
        ends = f"[::1]:{client.port} [::1]:{server.port}"
        (line,) = [line for line in output.splitlines() if "CONNECT" in line and ends in line]
        assert f"(pid {client.pid})" in line
    else:
        uses = [json.loads(line) for line in output.splitlines()]
        assert {use["schema"] for use in uses} == {"procnet.use/1"}
        (use,) = [
            use
            for use in uses
            if use["kind"] == "CONNECT" and use["local"] == {"address": "::1", "port": client.port}
        ]
        assert (use["remote"], use["protocol"]) == ({"address": "::1", "port": server.port}, "tcp")
        assert (use["process"]["pid"], use["process"]["start_time_ns"]) == (
            client.pid,
            client.start_time_ns,
        )


def test_a_watch_is_started_once_and_not_read_before() -> None:
    watch = Watch()
    for act in (watch.read, watch.fileno, lambda: next(iter(watch))):
        with pytest.raises(UsageError, match="start the Watch first"):
            act()
    watch.stop()
    with watch, pytest.raises(UsageError, match="started once"):
        watch.start()


def test_looking_cannot_watch() -> None:
    with pytest.raises(UsageError, match="looking"):
        Watch(kernel="off")


def test_where_nothing_can_tell_it_says_why() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "procnet", "watch"],
        capture_output=True, text=True, timeout=60, cwd=TOP, user=65534, group=65534,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    for words in ("core owners:", "CAP_BPF", "kprobe owners:"):
        assert words in done.stderr


def test_a_forced_rung_that_cannot_be_had_is_an_error() -> None:
    with pytest.raises(ProcnetError, match="kprobe cannot be had here"):
        Watch(kernel="kprobe").start()
