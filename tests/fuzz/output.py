"""Names of any bytes, on their way to a terminal and to a reader of JSON.

- What is printed has no character that steers a terminal or hides, and a name adds no line.
- A line that was cut to the terminal's width is no wider.
- JSON is ASCII and printable, every string in it can be written as UTF-8, and none is changed.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

import procnet
from procnet import cli
from procnet.kernel_text import decode_text
from procnet.model import (
    EventKind,
    Evidence,
    Feature,
    Features,
    Loss,
    OwnerEvent,
    Process,
    ProcessId,
    Reason,
    Socket,
    SocketScan,
    Support,
    Traffic,
)
from procnet.report import as_json, as_text, socket_table, socket_use
from procnet.report.printable import printable
from procnet.report.report import Both, Endpoint, FlowRow, ProcessRow, Report
from procnet.sockets import process as processes
from tests.fuzz.pieces import join, split

_SENT = Traffic(2, 80, 7)
_BOTH = Both(_SENT, Traffic())
_LOCAL, _REMOTE = Endpoint("127.0.0.1", 80), Endpoint("::1", 4000)
# Bidirectional overrides and what else Unicode lets vanish; str.isprintable() knows the rest.
_UNSEEN = frozenset("\u202e\u2066\u200b\u034f\u115f\u3164\ufe0f\U000e0020")


def check(data: bytes) -> None:
    pieces = (split(data) + [b""] * 8)[:8]
    name, exe, first, second, cgroup, interface, reason = map(decode_text, pieces[:7])
    with mock.patch("pwd.getpwuid") as found:
        found.return_value.pw_name = os.fsdecode(pieces[7])
        user = processes._user_name(5)
    process = Process(41, 20, name, exe, (first, second), 5, user, 1, cgroup, name)
    plain = Process(41, 20, "x", "x", ("x",), 5, "x", 1, "x", "x")
    _check_text(_texts(process, interface, reason), _texts(plain, "x", reason and "x"))
    for width in (1, 2, 40):
        assert len(printable(name, width)) <= width
    for line in as_text.frame_as_text(_report(process, interface, reason), width=40).split("\n"):
        assert len(line) <= 40
    for value in _objects(process, interface, reason):
        _check_json(value)
    _check_program(reason)


def _texts(process: Process, interface: str, reason: str) -> Iterator[str]:
    report = _report(process, interface, reason)
    yield as_text.report_as_text(report)
    yield as_text.frame_as_text(report, width=100)
    yield as_text.features_as_text(report.features)
    yield socket_table.sockets_as_text(
        socket_table.socket_rows(_scan(process), lambda each: process)
    )
    yield socket_use.use_as_text(socket_use.socket_use(_event(process), process))


def _check_text(texts: Iterator[str], plain_texts: Iterator[str]) -> None:
    for text, plain in zip(texts, plain_texts, strict=True):
        assert text.count("\n") == plain.count("\n")
        _check_shown(text)


def _check_shown(text: str) -> None:
    shown = text.replace("\n", "")
    assert shown.isprintable() and not _UNSEEN & set(shown)


def _objects(process: Process, interface: str, reason: str) -> Iterator[Any]:
    yield as_json.report_as_json(_report(process, interface, reason))
    scan = _scan(process)
    yield socket_table.sockets_as_json(socket_table.socket_rows(scan, lambda each: process), scan)
    yield socket_use.use_as_json(socket_use.socket_use(_event(process), process))


def _check_json(value: Any) -> None:
    text = json.dumps(value)
    assert text.isascii() and text.isprintable()
    assert json.loads(text) == value
    json.dumps(value, ensure_ascii=False).encode()


def _check_program(text: str) -> None:
    """Errors, warnings and usage, as the program prints them."""
    for arguments in (["report", "--read", text], ["report", f"--no-such={text}"]):
        said = io.StringIO()
        error = procnet.CaptureError(f"cannot read {text}: no")
        root = logging.Logger("root")
        with (
            mock.patch.object(procnet, "read_capture", side_effect=error),
            mock.patch.object(logging, "root", root),
            contextlib.redirect_stderr(said),
            contextlib.suppress(SystemExit),
        ):
            assert cli.main(arguments) == 1
            root.warning("cannot read %s", text)
        assert "cannot read" in said.getvalue() or "usage: procnet" in said.getvalue()
        _check_shown(said.getvalue())


def _report(process: Process, interface: str, reason: str) -> Report:
    flows = [
        FlowRow(
            7, interface, "tcp", _LOCAL, _REMOTE, owner, Evidence.LISTENER, why, candidates,
            _SENT, Traffic(), 5, 6,
        )
        for owner, why, candidates in (
            (process, None, ()), (None, Reason.AMBIGUOUS, (process, process)),
        )
    ]  # fmt: skip
    rung = Feature("core owners", Support.NO, reason, reason)
    return Report(
        0, 10**9, (ProcessRow(process, _SENT, Traffic()),), tuple(flows), _BOTH, _BOTH, _BOTH,
        {Reason.AMBIGUOUS: _BOTH}, Loss(events_lost=3), Features("python", "proc", (rung,)),
    )  # fmt: skip


def _scan(process: Process) -> SocketScan:
    end = b"\x7f\0\0\1"
    found = Socket(7, 6, 4, end, 80, end, 81, "established", 5, 0)
    holders = {5: frozenset({ProcessId(41, 20), ProcessId(42, 20)})}
    return SocketScan(0, 1, [found], holders, 0, 0)


def _event(process: Process) -> OwnerEvent:
    end = b"\x7f\0\0\1"
    return OwnerEvent(
        10**18, EventKind.SEND, 7, 17, end, 80, end, 81, 5, process.id, process.name, 0, 0, False
    )


def seeds() -> Iterator[bytes]:
    hostile = (
        b"\x1b[2J\x1b]0;x\x07", b"a\nprocnet: b", "\u202eevil\u200b".encode(), b"\xff\xfe\x9b2J",
        b"\x7f\x85\x00\r", "\U000e0041\ufe0f\u3164".encode(), b'"\\\xed\xa0\x80',
        b"\xe2\x80\xa8" * 40,
    )  # fmt: skip
    for turn in range(len(hostile)):
        yield join([*hostile[turn:], *hostile[:turn]])
