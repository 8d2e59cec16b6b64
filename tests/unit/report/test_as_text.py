"""The frames of ``procnet top``, and a report's first line."""

from dataclasses import replace

from procnet.model import Evidence, Features, Loss, Process, Traffic
from procnet.report.as_text import frame_as_text, report_as_text
from procnet.report.report import (
    NOTHING,
    Both,
    Endpoint,
    FlowRow,
    OnlyOnWire,
    ProcessRow,
    Report,
    SocketEnds,
)


def report_of(number: int, loss: Loss) -> Report:
    rows = tuple(
        ProcessRow(Process(1000 + pid, 0, f"worker-{pid}"), Traffic(1, 131, 103), Traffic())
        for pid in range(number)
    )
    return Report(
        0, 10**9, rows, (), Both(Traffic(number), Traffic()), NOTHING, NOTHING, {}, loss,
        Features("python", "proc"),
    )  # fmt: skip


def test_what_does_not_fit_is_counted_after_the_total() -> None:
    for loss in (Loss(), Loss(events_lost=7)):
        lines = frame_as_text(report_of(7, loss), max_rows=5).splitlines()
        total = next(number for number, line in enumerate(lines) if "total" in line)
        assert lines[total + 1] == "… and 2 processes more"


def test_a_report_says_that_nobody_tells_owners() -> None:
    report = replace(report_of(1, Loss()), features=Features("python", ""))
    assert report_as_text(report).startswith("1.0 s, counting: python, owners: none\n")
    assert frame_as_text(report).startswith("procnet  1.0 s  counting: python  owners: none\n")


def test_no_line_is_wider_than_the_terminal() -> None:
    for width in (1, 7, 23):
        frame = frame_as_text(report_of(3, Loss(events_lost=7)), width=width)
        assert max(map(len, frame.splitlines())) == width


def test_a_translated_flow_shows_both_ends_and_the_container() -> None:
    inside = Process(1009, 0, "server", container="0123456789abcdef" * 4)
    far = Endpoint("192.0.2.9", 53)
    row = FlowRow(
        netns=1, interface="eth0", protocol="udp", local=Endpoint("192.0.2.1", 8395), remote=far,
        process=inside, evidence=Evidence.KERNEL_EVENT, reason=None, candidates=(),
        sent=Traffic(1, 131, 103), received=Traffic(), first_ns=0, last_ns=0,
        socket=SocketEnds(2, Endpoint("172.17.0.2", 5000), far),
    )  # fmt: skip
    text = report_as_text(replace(report_of(0, Loss()), flows=(row,)))
    line = next(line for line in text.splitlines() if line.startswith("udp"))
    assert line.split()[2:8] == [
        "192.0.2.1:8395", "(172.17.0.2:5000)", "192.0.2.9:53", "1009/server", "in", "0123456789a…",
    ]  # fmt: skip
    text = report_as_text(replace(report_of(0, Loss()), flows=(replace(row, socket=None),)))
    assert "172.17.0.2" not in text


def test_what_only_the_wire_had_is_a_table_after_the_flows() -> None:
    report = report_of(1, Loss(events_lost=7))
    assert "ONLY ON THE WIRE" not in report_as_text(report)
    sent = {"udp": Both(Traffic(23, 7705, 7061), Traffic(1, 129, 101))}
    report = replace(report, only_on_wire=OnlyOnWire(sent, NOTHING))
    lines = report_as_text(report).splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("ONLY"))
    assert [line.split() for line in lines[begin + 1 :]] == [
        ["udp", "23", "1", "7705", "129"], [], ["not", "seen:", "events", "lost:", "7"],
    ]  # fmt: skip
    frame = frame_as_text(report).splitlines()
    total = next(number for number, line in enumerate(frame) if "total" in line)
    assert frame[total + 1].split()[:5] == ["only", "on", "the", "wire:", "udp"]
    assert frame[total + 1].split()[5:] == ["7.7", "kB", "129", "B", "23", "1"]


def test_what_was_not_compared_is_said_and_so_is_that_nothing_was_left() -> None:
    doubt = Both(Traffic(2, 40, 0), Traffic())
    for left, figures in ((NOTHING, "0 0 0 0"), (doubt, "2 0 40 0")):
        report = replace(report_of(1, Loss()), only_on_wire=OnlyOnWire({}, left))
        last = report_as_text(report).splitlines()[-1]
        assert " ".join(last.split()) == f"not compared {figures}"
