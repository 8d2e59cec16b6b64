"""One use of a socket, as the kernel told it: a row, a line of text, a line of JSON."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from procnet.model import EventKind, OwnerEvent, Process
from procnet.report.as_json import endpoint_as_json, process_as_json
from procnet.report.printable import printable
from procnet.report.protocols import protocol_name
from procnet.report.report import Endpoint

SCHEMA = "procnet.use/1"

_UNKNOWN = "*"


@dataclass(frozen=True, slots=True)
class SocketUse:
    """A process used a socket. ``time_ns`` is nanoseconds since 1970.

    ``process`` is None for the kernel itself. ``local`` may be a wildcard address, and ``remote``
    None, where the socket is not connected and the hook does not know better. ``netns`` is the
    inode of the socket's network namespace, ``inode`` that of the socket (0: it has none yet).
    """

    time_ns: int
    kind: EventKind
    process: Process | None
    protocol: str
    local: Endpoint
    remote: Endpoint | None
    netns: int
    inode: int


def socket_use(event: OwnerEvent, process: Process | None) -> SocketUse:
    """The row for an event whose process is known as far as it can be."""
    remote = event.remote_address
    return SocketUse(
        time_ns=event.time_ns,
        kind=event.kind,
        process=process,
        protocol=protocol_name(event.protocol),
        local=Endpoint.of(event.local_address, event.local_port),
        remote=Endpoint.of(remote, event.remote_port) if remote else None,
        netns=event.netns,
        inode=event.inode,
    )


def use_as_json(use: SocketUse) -> dict[str, Any]:
    """A dict that ``json.dumps`` takes, with the schema in it: each line stands for itself."""
    return {
        "schema": SCHEMA,
        "time_ns": use.time_ns,
        "kind": use.kind.name,
        "netns": use.netns,
        "inode": use.inode,
        "protocol": use.protocol,
        "local": endpoint_as_json(use.local),
        "remote": None if use.remote is None else endpoint_as_json(use.remote),
        "process": None if use.process is None else process_as_json(use.process),
    }


def use_as_text(use: SocketUse) -> str:
    """One line without its newline; nothing in it can steer a terminal."""
    who = "the kernel"
    if use.process is not None:
        who = f"{use.process.name} (pid {use.process.pid})"
        if use.process.exe:
            who += f" {use.process.exe}"
    at = datetime.fromtimestamp(use.time_ns / 1e9).strftime("%H:%M:%S.%f")
    ends = f"{use.local} {use.remote or _UNKNOWN}"
    return f"{at} {use.kind.name:<7} {use.protocol:<4} {ends} {printable(who)}"
