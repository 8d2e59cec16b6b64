"""A report as JSON values. The keys are the public schema ``procnet.report/1``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from procnet.model import Features, Process, Traffic
from procnet.report.report import (
    Both,
    Endpoint,
    FlowRow,
    OnlyOnWire,
    ProcessRow,
    Report,
    SocketEnds,
)

SCHEMA = "procnet.report/1"


def report_as_json(report: Report) -> dict[str, Any]:
    """The report as a dict that ``json.dumps`` takes; times are nanoseconds, sizes bytes."""
    return {
        "schema": SCHEMA,
        "started_ns": report.started_ns,
        "ended_ns": report.ended_ns,
        "processes": [_process_row(row) for row in report.processes],
        "flows": [_flow_row(row) for row in report.flows],
        "totals": _both(report.totals),
        "attributed": _both(report.attributed),
        "unattributed": {
            **_both(report.unattributed),
            "reasons": {reason.value: _both(both) for reason, both in report.reasons.items()},
        },
        "only_on_wire": None if report.only_on_wire is None else _wire(report.only_on_wire),
        "loss": asdict(report.loss),
        "features": features_as_json(report.features),
    }


def features_as_json(features: Features) -> dict[str, Any]:
    """The ladder of sources, as ``procnet doctor --format json`` prints it."""
    return {
        "counting": features.counting,
        "owners": features.owners,
        "rungs": [
            {
                "name": rung.name,
                "support": rung.support.value,
                "reason": rung.reason,
                "remedy": rung.remedy,
            }
            for rung in features.rungs
        ],
    }


def _process_row(row: ProcessRow) -> dict[str, Any]:
    return {
        **process_as_json(row.process),
        "sent": _traffic(row.sent),
        "received": _traffic(row.received),
    }


def process_as_json(process: Process) -> dict[str, Any]:
    """All that is known of a process; text is empty, ``uid`` null where it is not."""
    return {
        "pid": process.pid,
        "start_time_ns": process.start_time_ns,
        "name": process.name,
        "exe": process.exe,
        "cmdline": list(process.cmdline),
        "uid": process.uid,
        "user": process.user,
        "parent_pid": process.parent_pid,
        "cgroup": process.cgroup,
        "container": process.container,
    }


def _flow_row(row: FlowRow) -> dict[str, Any]:
    flow: dict[str, Any] = {
        "netns": row.netns,
        "interface": row.interface or None,
        "protocol": row.protocol,
        "local": endpoint_as_json(row.local),
        "remote": endpoint_as_json(row.remote),
        "socket": None if row.socket is None else _socket_ends(row.socket),
        "process": None if row.process is None else _named(row.process),
        "evidence": None if row.evidence is None else row.evidence.value,
        "reason": None if row.reason is None else row.reason.value,
        "sent": _traffic(row.sent),
        "received": _traffic(row.received),
        "first_ns": row.first_ns,
        "last_ns": row.last_ns,
    }
    if row.candidates:
        flow["candidates"] = [_named(process) for process in row.candidates]
    return flow


def _socket_ends(ends: SocketEnds) -> dict[str, Any]:
    return {
        "netns": ends.netns,
        "local": endpoint_as_json(ends.local),
        "remote": endpoint_as_json(ends.remote),
    }


def _named(process: Process) -> dict[str, Any]:
    return {
        "pid": process.pid,
        "start_time_ns": process.start_time_ns,
        "name": process.name,
        "container": process.container,
    }


def endpoint_as_json(endpoint: Endpoint) -> dict[str, Any]:
    """Address and port."""
    return {"address": endpoint.address, "port": endpoint.port}


def _wire(only: OnlyOnWire) -> dict[str, Any]:
    return {
        "by_protocol": {name: _both(both) for name, both in only.by_protocol.items()},
        "not_compared": _both(only.not_compared),
    }


def _both(both: Both) -> dict[str, Any]:
    return {"sent": _traffic(both.sent), "received": _traffic(both.received)}


def _traffic(traffic: Traffic) -> dict[str, int]:
    return {
        "packets": traffic.packets,
        "wire_bytes": traffic.wire_bytes,
        "payload_bytes": traffic.payload_bytes,
    }
