"""A ring and a host that need no kernel."""

from __future__ import annotations

import mmap
import os
import struct
import textwrap
from pathlib import Path

from procnet.bpf.host import Host
from procnet.bpf.ring import News

RELEASE = "6.1.0-23-amd64"
PAGE = mmap.PAGESIZE
BUSY, DISCARDED = 1 << 31, 1 << 30


class FakeRing:
    """The writing end of a ring of one page of data, as kernel/bpf/ringbuf.c lays it out."""

    def __init__(self, proc_root: Path) -> None:
        self.descriptor = os.memfd_create("ring")
        self.proc_root = proc_root
        os.truncate(self.descriptor, 4 * PAGE)
        self.produced = 0
        fdinfo = proc_root / "self/fdinfo"
        fdinfo.mkdir(parents=True, exist_ok=True)
        (fdinfo / str(self.descriptor)).write_text(f"map_type:\t27\nmax_entries:\t{PAGE}\n")

    def write(self, record: bytes, flags: int = 0) -> int:
        """Where its header is, for settle()."""
        start = self.produced
        self._put(start, struct.pack("II", len(record) | flags, 0) + record)
        self.produced += (8 + len(record) + 7) // 8 * 8
        os.pwrite(self.descriptor, struct.pack("Q", self.produced), PAGE)
        return start

    def settle(self, start: int, length: int) -> None:
        """What submit does: the record is no longer busy."""
        self._put(start, struct.pack("I", length))

    def _put(self, start: int, data: bytes) -> None:
        # Each page twice: here the two are different memory.
        place = start % PAGE
        until_edge, rest = data[: PAGE - place], data[PAGE - place :]
        for half in (2 * PAGE, 3 * PAGE):
            os.pwrite(self.descriptor, until_edge, half + place)
            os.pwrite(self.descriptor, rest, half)

    @property
    def consumed(self) -> int:
        (position,) = struct.unpack("Q", os.pread(self.descriptor, 8, 0))
        return int(position)


def fake_news() -> News:
    """Of nothing."""
    descriptor = os.memfd_create("news")
    os.truncate(descriptor, PAGE)
    try:
        return News(descriptor)
    finally:
        os.close(descriptor)


def fake_host(root: Path) -> Host:
    """One on which everything is right, with an interpreter that has no bcc."""
    (root / "sys/bus/event_source/devices/kprobe").mkdir(parents=True)
    (root / "proc/self/ns").mkdir(parents=True)
    (root / "proc/self/status").write_text("Name:\tx\nCapEff:\t000001ffffffffff\n")
    generated = root / "modules" / RELEASE / "build/include/generated"
    generated.mkdir(parents=True)
    (generated / "utsrelease.h").write_text(f'#define UTS_RELEASE "{RELEASE}"\n')
    return Host(
        modules_root=root / "modules", sysfs_root=root / "sys", proc_root=root / "proc",
        release=RELEASE, environment={}, interpreters=(str(interpreter(root, "no_bcc")),),
    )  # fmt: skip


ANSWERS = {
    "no_bcc": "say({'no_bcc': \"No module named 'bcc'\"})",
    "refuses": "print('a.c:7: unknown type'); say({'refusal': 'Failed to compile'})",
    "cannot_attach": "print('Permission denied');"
    " say({'hooks': [], 'missing': {'tcp_connect': 'not traceable'}})",
    "dies": "print('Stack dump'); os.kill(os.getpid(), 9)",
    "checks": "say({'hooks': [], 'missing': {}})",
}


def interpreter(root: Path, answer: str) -> Path:
    """A program in the place of a Python interpreter, with that answer to whatever it runs."""
    path = root / f"python-{answer.split('(')[0]}"
    path.write_text(
        textwrap.dedent("""\
        #!/usr/bin/python3 -I
        import array, json, os, socket, sys
        answer = socket.socket(fileno=int(sys.argv[3]))
        def say(message, *fds):
            passed = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
            answer.sendmsg([json.dumps(message).encode()], [passed] if fds else [])
        """)
        + ANSWERS.get(answer, answer)
    )
    path.chmod(0o755)
    return path
