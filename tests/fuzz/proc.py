"""What /proc shows. A byte says what: the files of a process, a table of sockets, a cgroup's path.

- A process that lies about itself gets no name, program, argument or socket of another one.
- Text can be written as UTF-8; nothing grows beyond what was read.
- A line of a table tells its own socket, whatever stands in the lines around it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from procnet.kernel_text import decode_text
from procnet.model import CLOCK_TICK_NS, Process, ProcessId
from procnet.sockets.container import container_of
from procnet.sockets.holders import HolderMap
from procnet.sockets.pids import parse_stat
from procnet.sockets.process import ProcessTable
from procnet.sockets.tables import TABLES, parse_table
from procnet.testing.proc_tree import ProcTree
from tests.fuzz.pieces import join, split

_MAX_ROW_BYTES = 250_000
_FILES = ("stat", "status", "cmdline", "cgroup")
_HONEST = "honest"
_HEADINGS = b"  sl  local_address rem_address\n"
_NOWHERE = b"0" * 32
_REST = b" 0A 00000000:00000000 0:0 0  1000        0 501 1\n"
_HONEST_LINES = {
    4: b"   7: 0100007F:0050 00000000:0000" + _REST,
    6: b"   7: " + _NOWHERE + b":0050 " + _NOWHERE + b":0000" + _REST,
    0: b"00000000c1403935 3      3    0003   0     1 0      1000   501   \n",
}
_SPACE = tempfile.TemporaryDirectory()
_TREE = ProcTree(_SPACE.name)
_TREE.add_process(23, _HONEST, 300, exe="/bin/honest", cmdline=[_HONEST], fds=[501], uid=777)


def check(data: bytes) -> None:
    kinds = (_check_process, _check_table, _check_container)
    if data:
        kinds[data[0] % len(kinds)](data[1:])


def _check_process(data: bytes) -> None:
    """The files, where the program is, then where descriptors lead to."""
    pieces = split(data) + [b""] * (len(_FILES) + 1)
    hostile = _TREE.root / "29"
    shutil.rmtree(hostile, ignore_errors=True)
    (hostile / "fd").mkdir(parents=True)
    for name, content in zip(_FILES, pieces, strict=False):
        (hostile / name).write_bytes(content)
    exe, *links = pieces[len(_FILES) :]
    _link(hostile / "exe", exe)
    for number, link in enumerate(links):
        _link(hostile / "fd" / str(number), link)
    table = ProcessTable(_TREE.root, user_name=lambda uid: f"user{uid}")
    current = table.current(29)
    if current is not None:
        _check_row(current, table.get(current), pieces)
    assert table.get(ProcessId(29, 5 * CLOCK_TICK_NS + 1)) is None
    honest = table.get(ProcessId(23, 300 * CLOCK_TICK_NS))
    assert honest is not None
    assert (honest.name, honest.exe, honest.cmdline) == (_HONEST, "/bin/honest", (_HONEST,))
    _check_holders(links)


def _check_row(asked: ProcessId, row: Process | None, pieces: list[bytes]) -> None:
    assert row is not None and row.id == asked
    stat = parse_stat(pieces[0][:4096])
    assert row.name == decode_text(stat.name)
    texts = (row.name, row.exe, *row.cmdline, row.cgroup, row.container)
    assert len("".join(texts).encode()) <= 4 * sum(map(len, pieces)) + 64
    assert sum(map(sys.getsizeof, texts)) <= _MAX_ROW_BYTES
    if _HONEST.encode() not in b"".join(pieces):
        assert not any(_HONEST in text for text in texts)
    assert row.uid is None or re.search(rb"(?m)^Uid:\t0*%d\t" % row.uid, pieces[1])
    assert row.user == ("" if row.uid is None else f"user{row.uid}")


def _check_holders(links: list[bytes]) -> None:
    holders = HolderMap(str(_TREE.root))
    claimed = {int(link[8:-1]) for link in links if re.fullmatch(rb"socket:\[[0-9]{1,20}\]", link)}
    found = holders.of({501, 502, *claimed})
    assert ProcessId(23, 300 * CLOCK_TICK_NS) in found[501]
    for inode, processes in found.items():
        for process in processes:
            assert inode in {23: {501}, 29: claimed}[process.pid]


def _link(path: Path, target: bytes) -> None:
    # What no link can lead to: nothing, NUL, too much.
    with contextlib.suppress(OSError, ValueError):
        os.symlink(target, os.fsencode(path))


def _check_table(data: bytes) -> None:
    table, text = TABLES[data[0] % len(TABLES)] if data else "tcp", data[1:]
    sockets, malformed = parse_table(table, text, 1)
    lines = text.split(b"\n")
    assert len(sockets) <= len(lines) and 0 <= malformed <= len(lines)
    alone = [each for line in lines for each in parse_table(table, line, 1)[0]]
    assert sockets == alone
    for each in sockets:
        assert len(each.local_address) in ((0,) if table == "packet" else (4, 16))
        assert re.search(rb"(?<![0-9])0*%d(?![0-9])" % each.inode, text)
        if each.state == "listen" or not table.startswith("tcp"):
            assert each.send_queue_bytes == 0
        assert not each.send_queue_bytes or b" %08X:" % each.send_queue_bytes in text
    line = _honest_line(table)
    honest = parse_table(table, _HEADINGS + line, 1)
    assert len(honest[0]) == 1 and not honest[1]
    assert parse_table(table, text + b"\n" + line, 1)[0] == sockets + honest[0]


def _honest_line(table: str) -> bytes:
    return _HONEST_LINES[0 if table == "packet" else 6 if table.endswith("6") else 4]


def _check_container(data: bytes) -> None:
    path = decode_text(data)
    found = container_of(path)
    assert found in path and len(found) in (0, 28, 64)
    assert container_of(path + "/" + "a" * 64) == "a" * 64


def seeds() -> Iterator[bytes]:
    directory = _TREE.root / "23"
    files = [(directory / name).read_bytes() for name in _FILES]
    links = [b"/bin/x (deleted)", b"socket:[502]", b"/tmp/socket:[501]", b"pipe:[1]"]
    yield b"\0" + join([*files, *links])
    forged = files[0].replace(b"(honest)", b"(a) S 1 (b)\n\xff\x1b[2J)")
    hybrid = b"12:cpu,memory:/docker/" + b"a" * 64 + b"\n1:name=systemd:/x\n0::/\n"
    yield b"\0" + join([forged, b"Uid:\t0\t0\t", b"a\0\0b\xff\0", hybrid, b""])
    yield b"\0" + join([*files[:2], b"ab\0" * 5000, files[3]])
    ended = files[0].replace(b" S ", b" Z ")
    yield b"\0" + join([ended, *files[1:], b"x", b"socket:[501]", b"socket:[00501]"])
    for number, table in enumerate(TABLES):
        line = _honest_line(table)
        broken = line.replace(b" 0A ", b"\n0A ").replace(b" 3 ", b"\n3 ", 1)
        lines = [_HEADINGS, line, line[:40], b"\n", line.replace(b"7:", b"77:"), broken]
        yield bytes([1, number]) + b"".join(lines)
    for form in ("/docker/%s", "/x.slice/crio-%s.scope/y", "/kubepods:cri-containerd:%s", "/%s"):
        yield b"\2" + (form % ("0123456789abcdef" * 4)).encode()
    yield b"\2/garden/01234567-0123-0123-0123-0123"
