from __future__ import annotations

import json

from procnet.model import ICMP, TCP, UDP, Process, ProcessId, Socket, SocketScan
from procnet.report.socket_table import socket_rows, sockets_as_json, sockets_as_text

LO = bytes([127, 0, 0, 1])
LO6 = bytes(15) + b"\x01"
ANY, ANY6 = bytes(4), bytes(16)

MASTER = Process(101, 7, "nginx", "/usr/sbin/nginx", uid=0, user="root")
WORKER = Process(1009, 9, "nginx", "/usr/sbin/nginx", uid=33, user="www-data")
EVIL = Process(31, 5, "a\x1b[2J\nb", "/tmp/a\n", uid=4242)
KNOWN = {p.id: p for p in (MASTER, WORKER, EVIL)}


ALIGNED = r"""
Proto   State        Local         Remote           Netns  PID       Process        User
packet  packet       -             -                11     31        a\x1b[2J\x0ab  4242
tcp     listen       0.0.0.0:80    0.0.0.0:*        11     101,1009  nginx,nginx    root,www-data
tcp     time_wait    127.0.0.1:80  127.0.0.1:50000  11     -         -              -
tcp     established  [::1]:80      [::1]:54321      11     1009      nginx          www-data
"""[1:]


def scan_of(*sockets: Socket, holders: dict[int, list[ProcessId]] | None = None) -> SocketScan:
    held = {inode: frozenset(who) for inode, who in (holders or {}).items()}
    return SocketScan(1, 2, list(sockets), held, 3, 5, malformed_rows=7)


LISTENER = Socket(11, TCP, 4, ANY, 80, ANY, 0, "listen", 501, 0)
ACCEPTED = Socket(11, TCP, 6, LO6, 80, LO6, 54321, "established", 502, 33)
WAITING = Socket(11, TCP, 4, LO, 80, LO, 50000, "time_wait", 0, 0)
PACKET = Socket(11, 0, 0, b"", 0, b"", 0, "packet", 503, 0)
SHARED = scan_of(
    ACCEPTED, WAITING, LISTENER, PACKET,
    holders={501: [WORKER.id, MASTER.id], 502: [WORKER.id], 503: [EVIL.id]},
)  # fmt: skip


def test_a_row_has_every_holder_by_pid() -> None:
    rows = {row.inode: row for row in socket_rows(SHARED, KNOWN.get)}
    assert rows[501].processes == (MASTER, WORKER)
    assert rows[502].processes == (WORKER,)
    assert rows[0].processes == ()


def test_ends_are_text() -> None:
    rows = {row.inode: row for row in socket_rows(SHARED, KNOWN.get)}
    assert (rows[501].local, rows[501].remote) == ("0.0.0.0:80", "0.0.0.0:*")
    assert (rows[502].local, rows[502].remote) == ("[::1]:80", "[::1]:54321")
    assert (rows[502].local_address, rows[502].remote_port) == ("::1", 54321)
    assert (rows[503].local, rows[503].local_address, rows[503].protocol) == ("-", "", "packet")


def test_a_holder_of_which_nothing_is_known_has_its_id() -> None:
    scan = scan_of(LISTENER, holders={501: [ProcessId(77, 13)]})
    (row,) = socket_rows(scan, lambda process: None)
    assert row.processes == (Process(77, 13, ""),)
    assert sockets_as_text([row]).splitlines()[1].split()[-3:] == ["77", "-", "-"]


def test_a_process_is_asked_for_once() -> None:
    asked = []

    def processes(process: ProcessId) -> Process | None:
        asked.append(process)
        return None

    sockets = [LISTENER._replace(inode=inode) for inode in range(1, 24)]
    socket_rows(scan_of(*sockets, holders={i: [MASTER.id] for i in range(1, 24)}), processes)
    assert asked == [MASTER.id]


def test_rows_are_ordered_by_number_and_not_by_text() -> None:
    addresses = [bytes([10, 0, 0, 1]), bytes([9, 0, 0, 1]), LO6]
    sockets = [
        Socket(n, UDP, 4, a, 53, ANY, 0, "unconnected", 0, 0) for n in (12, 11) for a in addresses
    ]
    rows = socket_rows(scan_of(*sockets), KNOWN.get)
    assert [(r.netns, r.local_address) for r in rows] == [
        (n, a) for n in (11, 12) for a in ("9.0.0.1", "10.0.0.1", "::1")
    ]


def test_the_table_is_aligned() -> None:
    assert sockets_as_text(socket_rows(SHARED, KNOWN.get)) == ALIGNED


def test_no_name_breaks_a_line_or_steers_the_terminal() -> None:
    text = sockets_as_text(socket_rows(SHARED, KNOWN.get))
    assert text.count("\n") == 5
    assert "\x1b" not in text


def test_a_table_of_nothing_has_its_headings() -> None:
    assert sockets_as_text([]) == "Proto  State  Local  Remote  Netns  PID  Process  User\n"


def test_json_has_the_keys_of_the_report_schema() -> None:
    scan = scan_of(
        Socket(11, ICMP, 4, LO, 77, LO, 77, "established", 504, 1000), holders={504: [EVIL.id]}
    )
    document = sockets_as_json(socket_rows(scan, KNOWN.get), scan)
    assert json.loads(json.dumps(document)) == {
        "schema": "procnet.sockets/1",
        "started_ns": 1,
        "ended_ns": 2,
        "sockets": [
            {
                "netns": 11,
                "protocol": "icmp",
                "state": "established",
                "local": {"address": "127.0.0.1", "port": 77},
                "remote": {"address": "127.0.0.1", "port": 77},
                "inode": 504,
                "uid": 1000,
                "processes": [
                    {"pid": 31, "start_time_ns": 5, "name": "a\x1b[2J\nb", "exe": "/tmp/a\n"}
                ],
            }
        ],
        "vanished_processes": 3,
        "denied_processes": 5,
        "malformed_rows": 7,
    }
