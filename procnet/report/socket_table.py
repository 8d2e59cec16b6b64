"""The sockets of the host and who holds them: what ss and lsof show, for every namespace."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from procnet.model import Process, ProcessId, Socket, SocketScan
from procnet.report.printable import printable
from procnet.report.protocols import protocol_name

SCHEMA = "procnet.sockets/1"

_HEADINGS = ("Proto", "State", "Local", "Remote", "Netns", "PID", "Process", "User")
_NOBODY = "-"


@dataclass(frozen=True, slots=True)
class SocketRow:
    """One socket. Addresses are text, empty for a packet socket, which has none.

    ``local`` and ``remote`` are the ends as one text: ``127.0.0.1:80``, ``[::1]:80``, with ``*``
    for port 0. ``netns`` is the inode of the network namespace, ``inode`` that of the socket (0 for
    one that no process can hold: a handshake, TIME_WAIT). ``processes`` are all known holders by
    pid, with an empty name where nothing more could be learnt. ``uid`` is the socket's own.
    """

    netns: int
    protocol: str
    state: str
    local: str
    local_address: str
    local_port: int
    remote: str
    remote_address: str
    remote_port: int
    inode: int
    uid: int
    processes: tuple[Process, ...]


def socket_rows(
    scan: SocketScan, processes: Callable[[ProcessId], Process | None]
) -> list[SocketRow]:
    """The rows of a scan, ordered by namespace, protocol and local end.

    ``processes`` says what is known about a process, None for nothing; it is asked once for each.
    """
    known: dict[ProcessId, Process] = {}

    def described(holder: ProcessId) -> Process:
        if holder not in known:
            known[holder] = processes(holder) or Process(*holder, name="")
        return known[holder]

    nobody: frozenset[ProcessId] = frozenset()
    ordered = sorted(scan.sockets, key=_order)
    return [_row(s, map(described, sorted(scan.holders.get(s.inode, nobody)))) for s in ordered]


def sockets_as_text(rows: Sequence[SocketRow]) -> str:
    """A table with aligned columns, one line per socket and a first line of headings.

    Several holders stand in one cell, by pid, separated by commas; ``-`` is for no known holder.
    Nothing in it can steer a terminal. Ends with a newline.
    """
    lines = [_HEADINGS, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join("  ".join(map(str.ljust, line, widths)).rstrip() + "\n" for line in lines)


def sockets_as_json(rows: Sequence[SocketRow], scan: SocketScan) -> dict[str, Any]:
    """The rows and the losses of their scan as what ``json.dumps`` takes.

    Keys are those of ``procnet.report/1``; text is as it is, not escaped for a terminal.
    """
    return {
        "schema": SCHEMA,
        "started_ns": scan.started_ns,
        "ended_ns": scan.ended_ns,
        "sockets": [_as_object(row) for row in rows],
        "vanished_processes": scan.vanished_processes,
        "denied_processes": scan.denied_processes,
        "malformed_rows": scan.malformed_rows,
    }


def _order(socket: Socket) -> tuple[int, int, int, bytes, int, bytes, int, int]:
    """By number and by version, so that 9.0.0.1 stands before 10.0.0.1, and IPv4 before IPv6."""
    return (
        socket.netns,
        socket.protocol,
        len(socket.local_address),
        socket.local_address,
        socket.local_port,
        socket.remote_address,
        socket.remote_port,
        socket.inode,
    )


def _row(socket: Socket, holders: Iterable[Process]) -> SocketRow:
    local_address = _address(socket.local_address)
    remote_address = _address(socket.remote_address)
    return SocketRow(
        netns=socket.netns,
        protocol=protocol_name(socket.protocol) if socket.family else "packet",
        state=socket.state,
        local=_end(local_address, socket.local_port),
        local_address=local_address,
        local_port=socket.local_port,
        remote=_end(remote_address, socket.remote_port),
        remote_address=remote_address,
        remote_port=socket.remote_port,
        inode=socket.inode,
        uid=socket.uid,
        processes=tuple(holders),
    )


def _address(packed: bytes) -> str:
    return str(ipaddress.ip_address(packed)) if packed else ""


def _end(address: str, port: int) -> str:
    if not address:
        return _NOBODY
    return f"{f'[{address}]' if ':' in address else address}:{port or '*'}"


def _cells(row: SocketRow) -> tuple[str, ...]:
    users = dict.fromkeys(_user(process) for process in row.processes)
    return (
        row.protocol,
        row.state,
        row.local,
        row.remote,
        str(row.netns),
        ",".join(str(process.pid) for process in row.processes) or _NOBODY,
        ",".join(printable(p.name) or _NOBODY for p in row.processes) or _NOBODY,
        ",".join(users) or _NOBODY,
    )


def _user(process: Process) -> str:
    if process.user:
        return printable(process.user)
    return _NOBODY if process.uid is None else str(process.uid)


def _as_object(row: SocketRow) -> dict[str, Any]:
    return {
        "netns": row.netns,
        "protocol": row.protocol,
        "state": row.state,
        "local": {"address": row.local_address, "port": row.local_port},
        "remote": {"address": row.remote_address, "port": row.remote_port},
        "inode": row.inode,
        "uid": row.uid,
        "processes": [
            {"pid": p.pid, "start_time_ns": p.start_time_ns, "name": p.name, "exe": p.exe}
            for p in row.processes
        ],
    }
