"""A Monitor that is stopped at the wrong moment, by the wrong one, or while things break."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import procnet
from procnet import monitor as monitor_module
from tests.privileged.lab import Namespace
from tests.privileged.namespace import wait_until
from tests.privileged.test_monitor import open_descriptors, send_datagrams


def remains() -> tuple[int, int]:
    return open_descriptors(), threading.active_count()


def thread_that_does_not_start() -> tuple[tuple[int, int], tuple[int, int], str]:
    before = remains()
    real = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name == "procnet-owners":
            raise RuntimeError("can't start new thread")
        real(self)

    threading.Thread.start = refuse  # type: ignore[method-assign]
    monitor = procnet.Monitor(["lo"])
    try:
        monitor.start()
    except procnet.ProcnetError as error:
        message = str(error)
    finally:
        threading.Thread.start = real  # type: ignore[method-assign]
    monitor.stop()
    return before, remains(), message


def test_a_start_that_fails_at_the_second_thread_leaves_nothing(loopback: Namespace) -> None:
    before, after, message = loopback.call(thread_that_does_not_start)
    assert before == after
    assert message == "no thread for the Monitor: can't start new thread"


def interrupted_stop() -> tuple[tuple[int, int], tuple[int, int], bool, int]:
    before = remains()
    monitor = procnet.Monitor(["lo"])
    monitor.start()
    send_datagrams(23, 101)
    owners = monitor._threads[1]
    real = owners.join

    def interrupt(timeout: float | None = None) -> None:
        owners.join = real  # type: ignore[method-assign]
        raise KeyboardInterrupt

    owners.join = interrupt  # type: ignore[method-assign]
    interrupted = False
    try:
        monitor.stop()
    except KeyboardInterrupt:
        interrupted = True
    monitor.stop()
    reports = list(monitor)
    return before, remains(), interrupted, sum(r.totals.sent.payload_bytes for r in reports)


def test_a_stop_that_is_interrupted_ends_all_the_same(loopback: Namespace) -> None:
    before, after, interrupted, sent = loopback.call(interrupted_stop)
    assert before == after
    assert interrupted
    assert sent == 2323


def stop_by_many() -> tuple[tuple[int, int], tuple[int, int], list[int]]:
    before = remains()
    monitor = procnet.Monitor(["lo"])
    monitor.start()
    send_datagrams(23, 101)
    sent: list[int] = []

    def stop() -> None:
        monitor.stop()
        sent.append(monitor.report().totals.sent.payload_bytes)

    stoppers = [threading.Thread(target=stop) for _ in range(5)]
    for stopper in stoppers:
        stopper.start()
    for stopper in stoppers:
        stopper.join(20)
    return before, remains(), sent


def test_whoever_stops_it_finds_all_bytes_afterwards(loopback: Namespace) -> None:
    before, after, sent = loopback.call(stop_by_many)
    assert before == after
    assert sent == [2323] * 5


def stop_in_a_signal_handler_during_report() -> tuple[tuple[int, int], tuple[int, int]]:
    before = remains()
    monitor = procnet.Monitor(["lo"])
    monitor.start()
    signal.signal(signal.SIGUSR1, lambda *_: monitor.stop())
    build = monitor_module.build_report

    def interrupted(*args: Any, **kwargs: Any) -> procnet.Report:
        signal.raise_signal(signal.SIGUSR1)
        return build(*args, **kwargs)

    monitor_module.build_report = interrupted
    monitor.report()
    monitor_module.build_report = build
    monitor.stop()
    return before, remains()


def test_a_signal_handler_may_stop_it_while_a_report_is_made(loopback: Namespace) -> None:
    before, after = loopback.call(stop_in_a_signal_handler_during_report)
    assert before == after


def capture_that_always_fails() -> tuple[int, tuple[int, int], tuple[int, int]]:
    before = remains()
    with procnet.Monitor(["lo"]) as monitor:
        tap = monitor._tap
        assert tap is not None

        def fail(timeout_s: float) -> None:
            raise RuntimeError("broken on purpose")

        tap.wait = fail  # type: ignore[method-assign]
        tap.drain = lambda: fail(0)  # type: ignore[assignment,method-assign,return-value]
        wait_until(lambda: monitor._edge.failures >= 6, "failures to be counted")
    return monitor.report().loss.failures, before, remains()


def test_a_capture_that_always_fails_is_told_and_can_be_stopped(loopback: Namespace) -> None:
    failures, before, after = loopback.call(capture_that_always_fails)
    assert failures >= 6
    assert before == after


def ask_after_fork() -> int:
    with procnet.Monitor(["lo"]) as monitor:
        child = os.fork()
        if not child:
            try:
                monitor.report()
            except procnet.UsageError:
                monitor.stop()
                os._exit(7)
            os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_forked_child_is_told_that_the_monitor_stayed_behind(loopback: Namespace) -> None:
    assert loopback.call(ask_after_fork) == 7


def report_during_a_look() -> int:
    with procnet.Monitor(["lo"]) as monitor:
        witnesses = monitor._witnesses
        assert witnesses is not None
        looking, go_on = threading.Event(), threading.Event()

        def slow(*, asked: bool = False) -> None:
            looking.set()
            go_on.wait(30)

        witnesses.scan_if_due = slow  # type: ignore[method-assign]
        assert looking.wait(20)
        sent = monitor.report().totals.sent.packets
        go_on.set()
    return sent


def test_a_report_does_not_wait_for_a_look(loopback: Namespace) -> None:
    assert loopback.call(report_during_a_look) == 0
