"""A process's directory in /proc, held so that it cannot become another process's.

An open descriptor of /proc/PID belongs to that process and not to its number: its inode holds the
kernel's ``struct pid`` (``proc_pid_make_inode``, fs/proc/base.c), so once the process is gone every
look-up below it fails, also when the number is in use again. What is read through one descriptor is
therefore about one process, and a start time that can be read last proves that it was still there.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from procnet.model import CLOCK_TICK_NS, ProcessId

# Running out of our own descriptors or of memory says nothing about the process being read.
_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class Stat(NamedTuple):
    """What is taken from /proc/PID/stat: man proc_pid_stat(5), fields 2, 3, 4, 11, 20 and 22.

    ``children_faults``: page faults of the children that were waited for. Every process has some,
    so that it grows with each child that has ended.
    """

    name: bytes
    state: str
    parent_pid: int
    children_faults: int
    threads: int
    start_time_ns: int

    @property
    def ended(self) -> bool:
        """True once no thread is left. The first thread may have ended before the others: the
        process is then shown as a zombie and still holds its files."""
        return self.state in "ZX" and self.threads <= 1


def parse_stat(text: bytes) -> Stat:
    """The fields of one /proc/PID/stat; ``start_time_ns`` is nanoseconds since boot.

    The name stands in parentheses and may itself contain them, spaces and newlines, so it ends at
    the last ``)``. Raises ValueError for a text that is cut short or is something else.
    """
    opening, closing = text.find(b"("), text.rfind(b")")
    fields = text[closing + 1 :].split()
    if not 0 < opening < closing or len(fields) < 20:
        raise ValueError(f"not a /proc/PID/stat: {text[:60]!r}")
    return Stat(
        name=text[opening + 1 : closing],
        state=fields[0].decode("latin-1"),
        parent_pid=int(fields[1]),
        children_faults=int(fields[8]),
        threads=int(fields[17]),
        start_time_ns=int(fields[19]) * CLOCK_TICK_NS,
    )


@contextmanager
def process_directory(root: str, pid: int | str) -> Iterator[int]:
    """A descriptor of ROOT/PID for ``dir_fd=``, closed at the end. Raises OSError."""
    directory = os.open(f"{root}/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield directory
    finally:
        os.close(directory)


def read_at(directory: int, name: str, limit_bytes: int | None = None) -> bytes:
    """The bytes of a file below ``directory``, at most ``limit_bytes``. Raises OSError."""
    descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        chunks = []
        wanted = 1 << 16 if limit_bytes is None else limit_bytes
        while wanted > 0 and (chunk := os.read(descriptor, wanted)):
            chunks.append(chunk)
            if limit_bytes is not None:
                wanted -= len(chunk)
    finally:
        os.close(descriptor)
    return b"".join(chunks)


def stat_at(directory: int) -> Stat:
    """The Stat of the process that ``directory`` belongs to.

    Raises OSError if it is gone, ValueError if the file cannot be understood.
    """
    return parse_stat(read_at(directory, "stat", 4096))


def list_pids(root: str) -> list[str]:
    """The names of the process directories below ``root``. Raises OSError."""
    return [name for name in os.listdir(root) if _is_pid(name)]


def list_processes(root: str) -> frozenset[tuple[str, int]]:
    """Name and inode of each process directory below ``root``. Raises OSError.

    The next process of that number has another inode: an exit drops what was kept of the directory
    (``proc_flush_pid``, before 5.7 ``proc_flush_task``), and a new one is numbered anew.
    """
    with os.scandir(root) as entries:
        return frozenset((each.name, each.inode()) for each in entries if _is_pid(each.name))


def _is_pid(name: str) -> bool:
    return name.isascii() and name.isdigit()


def stat_of(root: str, process: ProcessId) -> Stat | None:
    """What is said of this very process; None if it runs no more, as far as can be seen."""
    try:
        with process_directory(root, process.pid) as directory:
            stat = stat_at(directory)
    except (OSError, ValueError) as error:
        raise_if_ours(error)
        return None
    return stat if stat.start_time_ns == process.start_time_ns and not stat.ended else None


def is_ours(error: Exception) -> bool:
    """Does it say that this process is short of descriptors or memory?"""
    return isinstance(error, OSError) and error.errno in _OURS


def raise_if_ours(error: Exception) -> None:
    """Raises ``error`` again if it says that this process is short of descriptors or memory."""
    if is_ours(error):
        raise error
