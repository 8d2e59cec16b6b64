"""A capture file becomes a report."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from procnet.errors import UsageError
from procnet.offline import read_capture
from procnet.report.as_json import report_as_json
from procnet.testing import frames

ONE = frames.udp_frame("10.0.0.1", 5, "10.0.0.2", 6, b"x" * 7)
OTHER = frames.udp_frame("10.0.0.1", 5, "10.0.0.3", 6, b"x" * 11)


def test_a_file_may_begin_at_time_0(tmp_path: Path) -> None:
    frames.write_pcap(tmp_path / "zero.pcap", [(0.0, ONE), (5.0, OTHER)])
    report = read_capture(tmp_path / "zero.pcap")
    assert (report.started_ns, report.ended_ns) == (0, 5 * 10**9)
    assert {(flow.first_ns, flow.last_ns) for flow in report.flows} == {(0, 0), (5 * 10**9,) * 2}


def test_a_file_without_packets_takes_no_time(tmp_path: Path) -> None:
    frames.write_pcap(tmp_path / "empty.pcap", [])
    report = read_capture(tmp_path / "empty.pcap")
    assert (report.started_ns, report.ended_ns, report.flows) == (0, 0, ())


def test_a_path_may_be_any_bytes_and_the_report_is_text(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xff.pcap")
    frames.write_pcap(path, [ONE])
    report = read_capture(path)
    assert report.flows[0].interface == f"{tmp_path}/caf\\xff.pcap"
    json.dumps(report_as_json(report), ensure_ascii=False).encode()


def test_what_no_path_can_be_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="cannot read"):
        read_capture("\ud800.pcap")
