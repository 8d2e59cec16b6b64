"""In somebody else's program: threads, forks, event loops, ends of all kinds, a thousand times."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import procnet
from procnet import monitor as monitor_module
from tests.privileged.namespace import TOP, Namespace, wait_until
from tests.privileged.test_denied import DATAGRAMS, PAYLOAD_BYTES, exchange
from tests.privileged.test_interrupted import Objects
from tests.privileged.test_stopping import remains

pytestmark = pytest.mark.privileged

BYTES = DATAGRAMS * PAYLOAD_BYTES
STARTS = {"off": 127, "core": 23}
"""By each of the processes: one takes 50 ms, mostly of waiting, or 100 ms of a CPU."""
PROCESSES = {"off": 8, "core": 1}
PATIENCE_S = 200.0
WARM_UP = 7
GROWN_BYTES = 2 << 20
TRADERS = 3


def own(report: procnet.Report) -> tuple[int, int]:
    """Payload bytes that this process sent and received."""
    rows = [row for row in report.processes if row.process.pid == os.getpid()]
    return (
        sum(row.sent.payload_bytes for row in rows),
        sum(row.received.payload_bytes for row in rows),
    )


# -- several at once, in any thread ------------------------------------------------------------


def several_at_once() -> list[tuple[tuple[int, int], bool, procnet.Loss]]:
    first = procnet.Monitor(["lo"])
    second = procnet.Monitor(["lo"], counting="python")
    third = procnet.Monitor(["lo"])
    watch = procnet.Watch(netns=os.stat("/proc/self/ns/net").st_ino)
    first.start()
    exchange(DATAGRAMS)
    with second, watch:
        exchange(DATAGRAMS)
        third.start()
        exchange(DATAGRAMS)
        senders = {use.local.port for use in watch.read() if use.kind is procnet.EventKind.SEND}
        assert len(senders) > DATAGRAMS and not watch.events_lost
    exchange(DATAGRAMS)
    first.stop()
    exchange(DATAGRAMS)
    third.stop()
    reports = [monitor.report() for monitor in (first, second, third)]
    return [(own(report), report.attributed == report.totals, report.loss) for report in reports]


def test_several_at_once_each_know_their_own_time(loopback: Namespace) -> None:
    found = loopback.call(several_at_once)
    for (moved, is_all, loss), rounds in zip(found, (4, 2, 3), strict=True):
        assert moved == (rounds * BYTES, rounds * BYTES)
        assert is_all
        assert loss == procnet.Loss()


def in_other_threads() -> tuple[list[tuple[int, int]], tuple[int, int], tuple[int, int]]:
    before = remains()
    found: list[tuple[int, int]] = []
    begun = threading.Barrier(TRADERS)
    ended = threading.Barrier(TRADERS)

    def work() -> None:
        with procnet.Monitor(["lo"], interval_s=0.1) as monitor:
            begun.wait()
            exchange(DATAGRAMS)
            ended.wait()
            taken = list(itertools.islice(monitor, 2))
        assert taken
        found.append(own(monitor.report()))

    threads = [threading.Thread(target=work) for _ in range(TRADERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, before, remains()


def test_any_thread_may_have_one(loopback: Namespace) -> None:
    found, before, after = loopback.call(in_other_threads)
    assert found == [(TRADERS * BYTES, TRADERS * BYTES)] * TRADERS
    assert before == after


def blocked_signals() -> dict[str, int]:
    with procnet.Monitor(["lo"]):
        found = {}
        for thread in sorted(Path("/proc/self/task").iterdir(), key=lambda path: int(path.name)):
            status = dict(
                line.split(":\t", 1) for line in (thread / "status").read_text().splitlines()
            )
            found[thread.name] = int(status["SigBlk"], 16)
    return found


def test_signals_are_for_the_program_s_own_threads(loopback: Namespace) -> None:
    main, *ours = loopback.call(blocked_signals).values()
    asked = sum(1 << (each - 1) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1))
    assert main & asked == 0
    assert len(ours) == 2
    assert all(mask & asked == asked for mask in ours)


async def watch_and_count() -> tuple[int, tuple[int, int]]:
    loop = asyncio.get_running_loop()
    uses: list[procnet.SocketUse] = []
    with (
        procnet.Watch(netns=os.stat("/proc/self/ns/net").st_ino) as watch,
        procnet.Monitor(["lo"], interval_s=0.1) as monitor,
    ):
        loop.add_reader(watch, lambda: uses.extend(watch.read()))
        exchange(DATAGRAMS)
        moved, reports = (0, 0), iter(monitor)
        while moved != (BYTES, BYTES):
            sent, received = own(await asyncio.to_thread(next, reports))
            moved = (moved[0] + sent, moved[1] + received)
        loop.remove_reader(watch)
    return sum(use.kind is procnet.EventKind.SEND for use in uses), moved


def in_an_event_loop() -> tuple[int, tuple[int, int]]:
    return asyncio.run(asyncio.wait_for(watch_and_count(), 50))


def test_an_event_loop_waits_for_both(loopback: Namespace) -> None:
    assert loopback.call(in_an_event_loop) == (DATAGRAMS, (BYTES, BYTES))


# -- a thousand times --------------------------------------------------------------------------


def held() -> tuple[tuple[int, int], int, int]:
    """Descriptors and threads, mappings that are shared, bytes in use."""
    gc.collect()
    maps = Path("/proc/self/maps").read_text().splitlines()
    shared = sum(line.split()[1].endswith("s") for line in maps)
    return remains(), shared, int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def start_and_stop(kernel: str, times: int) -> None:
    for _ in range(times):
        monitor = procnet.Monitor(["lo"], kernel=kernel)
        monitor.start()
        monitor.stop()


def start_and_stop_many(kernel: str) -> tuple[object, object, int]:
    monitor_module._LINGER_S = 0.001
    start_and_stop(kernel, WARM_UP)
    before, shared_before, bytes_before = held()
    start_and_stop(kernel, STARTS[kernel])
    after, shared_after, bytes_after = held()
    return (before, shared_before), (after, shared_after), bytes_after - bytes_before


@pytest.mark.parametrize("kernel", STARTS)
def test_a_thousand_starts_leave_nothing(loopback: Namespace, kernel: str) -> None:
    found: list[tuple[object, object, int]] = []

    def work() -> None:
        found.append(loopback.call(start_and_stop_many, kernel, timeout_s=PATIENCE_S))

    workers = [threading.Thread(target=work) for _ in range(PROCESSES[kernel])]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == PROCESSES[kernel]
    for before, after, grown_bytes in found:
        assert before == after
        assert grown_bytes < GROWN_BYTES


def interrupted_start() -> tuple[object, object]:
    def ctrl_c(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    start_and_stop("core", 1)
    before = held()[:2]
    monitor_module.Witnesses = ctrl_c  # type: ignore
    try:
        procnet.Monitor(["lo"], kernel="core").start()
    except KeyboardInterrupt:
        return before, held()[:2]
    raise AssertionError("it was not interrupted")


def test_a_start_that_is_interrupted_between_hooks_and_capture_leaves_nothing(
    loopback: Namespace,
) -> None:
    before, after = loopback.call(interrupted_start)
    assert before == after


# -- fork --------------------------------------------------------------------------------------


def fork_while_running(child_does: str) -> tuple[int, tuple[int, int], procnet.Loss]:
    monitor = procnet.Monitor(["lo"])
    watch = procnet.Watch(netns=os.stat("/proc/self/ns/net").st_ino)
    monitor.start()
    watch.start()
    exchange(DATAGRAMS)
    child = os.fork()
    if not child:
        IN_THE_CHILD[child_does](monitor, watch)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    exchange(DATAGRAMS)
    uses = watch.read()
    assert sum(use.process is not None and use.process.pid == os.getpid() for use in uses) > 0
    monitor.stop()
    watch.stop()
    report = monitor.report()
    assert report.attributed == report.totals
    return status, own(report), report.loss


def refused(work: Callable[[], object]) -> None:
    try:
        work()
    except procnet.UsageError as error:
        assert "fork()" in str(error)
    else:
        raise AssertionError("it answered")


def ask(monitor: procnet.Monitor, watch: procnet.Watch) -> None:
    for question in (monitor.report, watch.read, watch.fileno, lambda: next(iter(watch))):
        refused(question)


def stop_both(monitor: procnet.Monitor, watch: procnet.Watch) -> None:
    monitor.stop()
    watch.stop()


def let_go(monitor: procnet.Monitor, watch: procnet.Watch) -> None:
    for each in (monitor, watch):
        each.__dict__.clear()
    gc.collect()


def have_another(monitor: procnet.Monitor, watch: procnet.Watch) -> None:
    with procnet.Monitor(["lo"]) as other:
        exchange(DATAGRAMS)
    assert own(other.report()) == (BYTES, BYTES)


IN_THE_CHILD: dict[str, Callable[[procnet.Monitor, procnet.Watch], None]] = {
    "ask": ask,
    "stop": stop_both,
    "let go": let_go,
    "another": have_another,
}


@pytest.mark.parametrize("child_does", IN_THE_CHILD)
def test_a_fork_harms_neither(loopback: Namespace, child_does: str) -> None:
    status, moved, loss = loopback.call(fork_while_running, child_does)
    assert status == 0
    assert moved == (2 * BYTES, 2 * BYTES)
    assert loss == procnet.Loss()


def fork_and_stop() -> tuple[bool, bool, set[str]]:
    objects = Objects()
    with procnet.Monitor(["lo"]):
        had = objects.of(os.getpid())
        executed = subprocess.run(
            ["ls", "-l", "/proc/self/fd"],
            close_fds=False,
            capture_output=True,
            text=True,
            check=True,
        )
        child = os.fork()
        if not child:
            signal.pause()
    while_it_lives = had & objects.everywhere() == had
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    wait_until(lambda: not had & objects.everywhere(), "the kernel to let go of it")
    inherited = {word for word in executed.stdout.split() if "bpf" in word or "socket" in word}
    return bool(had), while_it_lives, inherited


def test_a_forked_child_keeps_what_it_inherited_until_it_ends_and_an_executed_one_nothing(
    loopback: Namespace,
) -> None:
    assert loopback.call(fork_and_stop) == (True, True, set())


# -- ends --------------------------------------------------------------------------------------

BEGIN = """
import atexit, os, socket, sys, threading, time
import procnet
from tests.privileged.test_denied import exchange
monitor = procnet.Monitor(["lo"], interval_s=0.1, kernel=sys.argv[1])
monitor.start()
exchange(23)
def take():
    for report in monitor:
        pass
"""
ENDS = {
    "while it runs": ("", 0),
    "while a thread takes intervals": ("threading.Thread(target=take, daemon=True).start()", 0),
    "while a fork's parent runs": ("os.fork() or sys.exit(); os.wait()", 0),
    "_exit": ("os._exit(5)", 5),
    "exit in the with": ("with procnet.Monitor(['lo']): sys.exit(3)", 3),
    "at exit": (
        "atexit.register(lambda: (monitor.stop(), os._exit(7 + monitor.report().loss.failures)))",
        7,
    ),
    "twice at exit": ("atexit.register(monitor.stop); atexit.register(monitor.stop)", 0),
    "a signal": ("os.kill(os.getpid(), 15)", -15),
}


@pytest.mark.parametrize("kernel", ["auto", "off"])
@pytest.mark.parametrize("end", ENDS)
def test_an_end_is_silent_and_soon(loopback: Namespace, end: str, kernel: str) -> None:
    code, status = ENDS[end]
    done = subprocess.run(
        loopback.argv([sys.executable, "-c", BEGIN + code, kernel]),
        capture_output=True, text=True, cwd=TOP, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


def error_in_the_loop() -> tuple[str, tuple[int, int], tuple[int, int], tuple[int, int]]:
    before, said = remains(), ""
    monitor = procnet.Monitor(["lo"], interval_s=0.1)
    try:
        with monitor:
            exchange(DATAGRAMS)
            for _ in monitor:
                raise KeyError("the program's own")
    except KeyError as error:
        said = str(error.args[0])
    return said, own(monitor.report()), before, remains()


def test_an_error_of_the_program_s_own_ends_it_and_is_the_one_that_is_seen(
    loopback: Namespace,
) -> None:
    said, moved, before, after = loopback.call(error_in_the_loop)
    assert said == "the program's own"
    assert moved == (BYTES, BYTES)
    assert before == after
