"""netdev_max_backlog, which is the whole machine's: the one thing the laboratory borrows.

Every packet on a virtual cable waits in the receiving CPU's backlog. At its default of 1000 packets
a burst overflows it, behind the counters, and nothing says so. It is raised while any laboratory
is open, in whatever process, and put back by the last one that closes. A note holds the first value
and who has it open.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

BACKLOG = Path("/proc/sys/net/core/netdev_max_backlog")
NOTE = Path("/run/procnet-lab-backlog")
BACKLOG_PACKETS = 16384


@contextlib.contextmanager
def raised_backlog() -> Iterator[None]:
    """Raises the backlog as long as the ``with``."""
    if not BACKLOG.exists():  # we are in a namespace already, where it cannot be changed
        yield
        return
    me = f"{os.getpid()} {secrets.token_hex(3)}"
    with _locked():
        value, *users = _read_note() or [BACKLOG.read_text().strip()]
        NOTE.write_text("\n".join([value, *users, me]))
        BACKLOG.write_text(str(max(BACKLOG_PACKETS, int(value))))
    try:
        yield
    finally:
        release_backlog(me)


def release_backlog(me: str) -> None:
    """Crosses out ``me``, and whoever died; puts the value back if that was the last."""
    if not NOTE.exists():
        return
    with _locked():
        note = _read_note()
        users = [user for user in note[1:] if user != me]
        if users:
            NOTE.write_text("\n".join([note[0], *users]))
        elif note:
            BACKLOG.write_text(note[0])
            NOTE.unlink()


def _read_note() -> list[str]:
    """The lines of the note, without the users that died."""
    if not NOTE.exists():
        return []
    value, *users = NOTE.read_text().splitlines()
    return [value, *(user for user in users if Path("/proc", user.split()[0]).exists())]


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    with BACKLOG.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
