"""A report as text for a terminal. Whatever a process may call itself, no escape gets through."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict

from procnet.model import Feature, Features, Process, Traffic
from procnet.report.printable import printable
from procnet.report.report import Both, Endpoint, FlowRow, OnlyOnWire, Report

NAME_WIDTH = 32
_CONTAINER_WIDTH = 12
_MAX_FLOWS = 40


def report_as_text(report: Report, *, max_flows: int = _MAX_FLOWS) -> str:
    """Processes, the largest flows, what has no owner and why, and what was lost."""
    lines = [f"{report.duration_s:.1f} s, {', '.join(_in_use(report.features))}", ""]
    lines += _table(
        ("PID", "USER", "PROGRAM", "SENT", "RECEIVED", "SENT PAYLOAD", "RECEIVED PAYLOAD"),
        [
            (
                str(row.process.pid),
                _user(row.process),
                printable(row.process.name, NAME_WIDTH),
                str(row.sent.wire_bytes),
                str(row.received.wire_bytes),
                str(row.sent.payload_bytes),
                str(row.received.payload_bytes),
            )
            for row in report.processes
        ]
        + [_total_line(reason.value, both) for reason, both in sorted(
            report.reasons.items(), key=lambda item: -item[1].wire_bytes)]
        + [_total_line("total", report.totals)],
        left=(1, 2),
    )  # fmt: skip
    lines += ["", *_flow_table(report.flows[:max_flows])]
    if len(report.flows) > max_flows:
        lines.append(f"… and {len(report.flows) - max_flows} flows more")
    if report.only_on_wire is not None:
        lines += ["", *_wire_table(report.only_on_wire)]
    lines += _loss_lines(report)
    return "\n".join(lines) + "\n"


def frame_as_text(report: Report, *, max_rows: int = 30, width: int = 100) -> str:
    """One frame of ``procnet top``: bytes a second by process, the busiest first."""
    seconds = max(report.duration_s, 1e-9)

    def rates(sent: Traffic, received: Traffic) -> tuple[str, str, str, str]:
        return (
            _rate(sent.wire_bytes / seconds),
            _rate(received.wire_bytes / seconds),
            f"{sent.packets / seconds:.0f}",
            f"{received.packets / seconds:.0f}",
        )

    rows = [
        (
            str(row.process.pid),
            _user(row.process),
            printable(row.process.name, NAME_WIDTH),
            *rates(row.sent, row.received),
        )
        for row in report.processes[:max_rows]
    ]
    rows += [
        ("-", "-", reason.value, *rates(both.sent, both.received))
        for reason, both in report.reasons.items()
    ]
    rows.append(("", "", "total", *rates(report.totals.sent, report.totals.received)))
    if report.only_on_wire is not None:
        rows += [
            ("", "", f"only on the wire: {name}", *rates(both.sent, both.received))
            for name, both in report.only_on_wire.by_protocol.items()
        ]
    head = ("PID", "USER", "PROGRAM", "SENT/s", "RECEIVED/s", "PKT OUT/s", "PKT IN/s")
    title = "  ".join(("procnet", f"{report.duration_s:.1f} s", *_in_use(report.features)))
    lines = [title, *_table(head, rows, left=(1, 2))]
    hidden = len(report.processes) - max_rows
    if hidden > 0:
        lines.append(f"… and {hidden} processes more")
    lines += _loss_lines(report)
    return "\n".join(line[:width] for line in lines) + "\n"


def features_as_text(features: Features) -> str:
    """The ladder of sources: yes or no, why, and what to do about a no."""
    lines = ["   ".join(_in_use(features)), ""]
    for rung in features.rungs:
        lines += _rung_lines(rung)
    return "\n".join(lines) + "\n"


def _in_use(features: Features) -> tuple[str, str]:
    return f"counting: {features.counting or 'none'}", f"owners: {features.owners or 'none'}"


def _rung_lines(rung: Feature) -> Iterable[str]:
    yield f"{rung.support.value:<8}{rung.name}: {printable(rung.reason)}"
    if rung.remedy:
        yield f"{'':<8}  to do: {printable(rung.remedy)}"


def _wire_table(only: OnlyOnWire) -> list[str]:
    head = ("ONLY ON THE WIRE", "PACKETS SENT", "RECEIVED", "SENT", "RECEIVED")
    rows = list(only.by_protocol.items())
    if only.not_compared.wire_bytes or not rows:
        rows.append(("not compared", only.not_compared))
    return _table(
        head,
        [
            (
                name,
                str(both.sent.packets),
                str(both.received.packets),
                str(both.sent.wire_bytes),
                str(both.received.wire_bytes),
            )
            for name, both in rows
        ],
        left=(0,),
    )


def _flow_table(flows: Sequence[FlowRow]) -> list[str]:
    head = ("PROTO", "INTERFACE", "LOCAL", "REMOTE", "OWNER", "EVIDENCE", "SENT", "RECEIVED")
    rows = [
        (
            row.protocol,
            printable(row.interface) or "-",
            _end(row.local, row.socket.local if row.socket else row.local),
            _end(row.remote, row.socket.remote if row.socket else row.remote),
            _owner(row),
            row.evidence.value if row.evidence else "-",
            str(row.sent.wire_bytes),
            str(row.received.wire_bytes),
        )
        for row in flows
    ]
    return _table(head, rows, left=(0, 1, 2, 3, 4, 5))


def _end(shown: Endpoint, of_socket: Endpoint) -> str:
    return str(shown) if of_socket == shown else f"{shown} ({of_socket})"


def _owner(row: FlowRow) -> str:
    if row.process is not None:
        owner = f"{row.process.pid}/{printable(row.process.name, NAME_WIDTH)}"
        container = printable(row.process.container, _CONTAINER_WIDTH)
        return f"{owner} in {container}" if container else owner
    reason = row.reason.value if row.reason else "-"
    if not row.candidates:
        return reason
    return f"{reason} of {', '.join(str(process.pid) for process in row.candidates[:8])}"


def _total_line(name: str, both: Both) -> tuple[str, ...]:
    return (
        "",
        "-",
        name,
        str(both.sent.wire_bytes),
        str(both.received.wire_bytes),
        str(both.sent.payload_bytes),
        str(both.received.payload_bytes),
    )


def _user(process: Process) -> str:
    if process.user:
        return printable(process.user, 16)
    return "-" if process.uid is None else str(process.uid)


def _loss_lines(report: Report) -> list[str]:
    losses = [
        f"{name.replace('_', ' ')}: {figure}"
        for name, figure in asdict(report.loss).items()
        if figure
    ]
    return ["", "not seen: " + ", ".join(losses)] if losses else []


def _rate(bytes_per_s: float) -> str:
    for unit in ("B", "kB", "MB"):
        if bytes_per_s < 1000:
            return f"{bytes_per_s:.0f} {unit}" if unit == "B" else f"{bytes_per_s:.1f} {unit}"
        bytes_per_s /= 1000
    return f"{bytes_per_s:.1f} GB"


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, left: tuple[int, ...]
) -> list[str]:
    """Aligned columns; those in ``left`` to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()

    return [line(head), *(line(row) for row in rows)]
