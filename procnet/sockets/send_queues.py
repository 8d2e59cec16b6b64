"""Connections in whose send queue the bytes of a process may lie that has them no more.

What it wrote leaves when the other end has room, and again for as long as it is lost on the way:
whoever has the connection by then has not written it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from procnet.model import TCP, ProcessId, Socket
from procnet.sockets.progress import Progress

MAX_ASKED = 256
"""A question is a system call or two: so many at each look."""


class SendQueues:
    """Told of every look; a connection is remembered until what was left behind has arrived.

    ``progress``: of a connection, None if nobody tells it; then the queue must be seen empty.
    """

    def __init__(self, progress: Callable[[Socket], Progress | None]) -> None:
        self._progress = progress
        self._holders: Mapping[int, frozenset[ProcessId]] = {}
        # By inode: all is from those who have it now that comes behind so many bytes, if known.
        self._left_behind: dict[int, int | None] = {}

    def look(
        self,
        sockets: Iterable[Socket],
        holders: Mapping[int, frozenset[ProcessId]],
        forked: frozenset[ProcessId],
    ) -> frozenset[int]:
        """The inodes of those connections. ``forked`` is as of ``SocketScan``; the rows of
        ``sockets`` must be older than the other two."""
        left = self._left(holders, forked)
        self._holders = holders
        if left or self._left_behind:
            before, self._left_behind, asked = self._left_behind, {}, 0
            for socket in sockets:
                if socket.protocol != TCP or socket.state == "listen":
                    continue
                if socket.inode in left:
                    # Whoever is missed only now may have written since the rows were read.
                    self._left_behind[socket.inode] = None
                elif socket.inode in before and socket.send_queue_bytes:
                    asked += 1
                    progress = self._progress(socket) if asked <= MAX_ASKED else None
                    until_bytes = before[socket.inode]
                    if progress is not None:
                        if until_bytes is None:
                            until_bytes = progress.written_bytes
                        if progress.acked_bytes >= until_bytes:
                            continue
                    self._left_behind[socket.inode] = until_bytes
        return frozenset(self._left_behind)

    def _left(
        self, holders: Mapping[int, frozenset[ProcessId]], forked: frozenset[ProcessId]
    ) -> set[int]:
        """Sockets that somebody had until now, or may have had."""
        left = set()
        for inode, now in holders.items():
            before = self._holders.get(inode, now)
            if (before is not now and not before <= now) or not forked.isdisjoint(now):
                left.add(inode)
        return left
