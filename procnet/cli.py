"""The command line: the smallest user of the public API."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import select
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn

import procnet
from procnet import ladder
from procnet.report.as_json import features_as_json, report_as_json
from procnet.report.as_text import features_as_text, frame_as_text, report_as_text
from procnet.report.printable import printable_lines
from procnet.report.socket_table import sockets_as_json, sockets_as_text
from procnet.report.socket_use import use_as_json, use_as_text

FRAMES_WITHOUT_TERMINAL = 10
_STOP_WITHIN_MS = 250
_CLEAR_SCREEN = "\x1b[H\x1b[2J"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 could not, 2 usage."""
    arguments = _parser().parse_args(argv)
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("procnet: %(message)s"))
    logging.basicConfig(handlers=[handler])
    command: Callable[[argparse.Namespace], int] = arguments.command
    if sys.stdout is None:
        return _say("standard output is closed; give it a place to go, such as /dev/null", 1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names may hold what the encoding of the terminal has not.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = command(arguments)
        sys.stdout.flush()
        return status
    except procnet.UsageError as error:
        return _say(error, 2)
    except procnet.ProcnetError as error:
        return _say(error, 1)
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        # The reader has enough.
        _drop_output()
        return 0
    except OSError as error:
        _drop_output()
        return _say(f"cannot go on: {error.strerror or error}", 1)
    except MemoryError:
        _drop_output()
        return _say("cannot go on: out of memory", 1)


def _drop_output() -> None:
    # What is still in the buffer must not be tried again at exit.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def _say(error: procnet.ProcnetError | str, status: int) -> int:
    _tell(f"procnet: {error}")
    return status


def _tell(text: str) -> None:
    # Files and, by the kernel's rules, interfaces may be called what steers a terminal.
    print(printable_lines(text), file=sys.stderr, flush=True)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(printable_lines(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="procnet", description="Says which process every byte on the network belongs to."
    )
    parser.add_argument("--version", action="version", version=f"procnet {procnet.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    report = commands.add_parser("report", help="count for a while, then print who moved what")
    report.set_defaults(command=_report)
    report.add_argument(
        "--duration", type=_seconds, metavar="SECONDS", help="default: until Ctrl-C"
    )
    report.add_argument("--read", metavar="FILE", help="read a capture file instead of interfaces")
    report.add_argument(
        "--local", action="append", default=[], metavar="ADDRESS",
        help="with --read: an address of the host that captured (repeatable)",
    )  # fmt: skip
    _add_sources(report)
    _add_format(report)

    top = commands.add_parser("top", help="who moves how much a second, again and again")
    top.set_defaults(command=_top)
    top.add_argument("--interval", type=_seconds, default=1.0, metavar="SECONDS")
    top.add_argument(
        "--frames", type=_count, metavar="N",
        help=f"end after N frames (without a terminal: {FRAMES_WITHOUT_TERMINAL})",
    )  # fmt: skip
    _add_sources(top)

    watch = commands.add_parser("watch", help="who uses which socket, line by line as it happens")
    watch.set_defaults(command=_watch)
    watch.add_argument("--kernel", choices=("auto", "core", "kprobe"), default="auto")
    _add_format(watch)

    sockets = commands.add_parser("sockets", help="every socket and the processes that hold it")
    sockets.set_defaults(command=_sockets)
    _add_format(sockets)

    doctor = commands.add_parser(
        "doctor", help="which sources this host offers, and why not others"
    )
    doctor.set_defaults(command=_doctor)
    _add_rungs(doctor)
    _add_format(doctor)
    return parser


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--interface", action="append", metavar="IF",
        help="repeatable; default: every one that is up with an own address, and lo",
    )  # fmt: skip
    parser.add_argument(
        "--containers", choices=ladder.CONTAINERS_CHOICES, default="auto",
        help="name processes in other network namespaces; auto: where this one forwards packets,"
        " or sockets are counted",
    )  # fmt: skip
    parser.add_argument(
        "--compare-sockets", action="store_true",
        help="count at the sockets too, and tell what only the capture saw",
    )  # fmt: skip
    _add_rungs(parser)


def _add_rungs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kernel", choices=ladder.KERNEL_CHOICES, default="auto")
    parser.add_argument("--counting", choices=ladder.COUNTING_CHOICES, default="auto")


def _add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("text", "json"), default="text")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    # A year: beyond it, threading.TIMEOUT_MAX would make a traceback of a typing slip.
    if not 0 < seconds <= 366 * 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return seconds


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 10**9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _monitor(arguments: argparse.Namespace, interval_s: float = 1.0) -> procnet.Monitor:
    return procnet.Monitor(
        arguments.interface,
        interval_s=interval_s,
        kernel=arguments.kernel,
        counting=arguments.counting,
        containers=arguments.containers,
        compare_sockets=arguments.compare_sockets,
    )


def _stop_at_signal() -> threading.Event:
    """An event that SIGINT and SIGTERM set, so that a report is printed at either.

    A second one ends the program as it ends any other: its output may be a pipe that nobody reads.
    """
    stop = threading.Event()

    def ask(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    return stop


def _report(arguments: argparse.Namespace) -> int:
    if arguments.read is not None:
        return _report_of_file(arguments)
    if arguments.local:
        raise procnet.UsageError("--local goes with --read: live addresses are known")
    stop = _stop_at_signal()
    with _monitor(arguments) as monitor:
        _say_where(monitor, arguments.containers)
        stop.wait(arguments.duration)
    _print_report(monitor.report(), arguments.format)
    return 0


def _say_where(monitor: procnet.Monitor, containers: str) -> None:
    namespaces = "this" if containers == "off" else "every"
    sockets = f"every socket of {namespaces} network namespace"
    _tell(f"capturing on {', '.join(monitor.interfaces) or sockets}")


def _report_of_file(arguments: argparse.Namespace) -> int:
    live = (arguments.interface, arguments.duration, arguments.kernel, arguments.counting)
    if (*live, arguments.compare_sockets) != (None, None, "auto", "auto", False):
        raise procnet.UsageError(
            "--read goes without --interface, --duration, --kernel, --counting and"
            " --compare-sockets"
        )
    try:
        report = procnet.read_capture(arguments.read, local_addresses=arguments.local)
    except procnet.IncompleteCaptureError as error:
        _print_report(error.report, arguments.format)
        raise
    _print_report(report, arguments.format)
    return 0


def _print_report(report: procnet.Report, style: str) -> None:
    if style == "json":
        _print_json(report_as_json(report))
    else:
        print(report_as_text(report), end="", flush=True)


def _print_json(value: object) -> None:
    print(json.dumps(value), flush=True)


def _top(arguments: argparse.Namespace) -> int:
    terminal = sys.stdout.isatty()
    frames = arguments.frames or (0 if terminal else FRAMES_WITHOUT_TERMINAL)
    shown = 0
    with _monitor(arguments, arguments.interval) as monitor:
        _say_where(monitor, arguments.containers)
        for report in monitor:
            size = shutil.get_terminal_size((100, 40))
            rows = max(size.lines - 12, 5) if terminal else 30
            frame = frame_as_text(report, max_rows=rows, width=size.columns if terminal else 200)
            print((_CLEAR_SCREEN if terminal else "") + frame, flush=True)
            shown += 1
            if shown == frames:
                break
    return 0


def _watch(arguments: argparse.Namespace) -> int:
    stop = _stop_at_signal()
    stopping, lost = False, 0
    poller = select.poll()
    with procnet.Watch(kernel=arguments.kernel) as watch:
        _tell("watching")
        poller.register(watch, select.POLLIN)
        while not stopping:
            poller.poll(_STOP_WITHIN_MS)
            stopping = stop.is_set()
            for use in watch.read():
                if arguments.format == "json":
                    _print_json(use_as_json(use))
                else:
                    print(use_as_text(use), flush=True)
            if watch.events_lost != lost:
                lost = watch.events_lost
                _say(f"{lost} uses could not be told: they came faster than they were read", 0)
    return 0


def _sockets(arguments: argparse.Namespace) -> int:
    rows, scan = procnet.sockets()
    if arguments.format == "json":
        _print_json(sockets_as_json(rows, scan))
    else:
        print(sockets_as_text(rows), end="", flush=True)
        if scan.denied_processes:
            _tell(
                f"procnet: the sockets of {scan.denied_processes} processes may not be seen;"
                " run as root (sudo) to see them"
            )
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    features = ladder.survey(arguments.kernel, arguments.counting)
    if arguments.format == "json":
        _print_json(features_as_json(features))
    else:
        print(features_as_text(features), end="", flush=True)
    return 0
