"""The sockets of this moment and who holds them, in every network namespace that has a process."""

from __future__ import annotations

from procnet.model import SocketScan
from procnet.report.socket_table import SocketRow, socket_rows
from procnet.sockets.process import ProcessTable
from procnet.sockets.scanner import SocketScanner


def sockets(netns: int | None = None) -> tuple[list[SocketRow], SocketScan]:
    """Every socket with all its holders, and the look that it comes from.

    ``netns`` is the inode of one network namespace; None is for all. Raises ``AccessError`` where
    /proc cannot be read at all, and ``ProcnetError`` if no process shows that namespace; processes
    whose files are closed to us are counted in the scan.
    """
    scan = SocketScanner().scan(netns)
    return socket_rows(scan, ProcessTable().get), scan
